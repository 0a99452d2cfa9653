import copy

import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import CompressedCheckpoint, CompressedMatrix, Source
from btcompress.checkpoint.compressed import part_names
from btcompress.errors import CheckpointError, MemoryLimitError
from btcompress.memory import limited
from btcompress.nn import BTLSTM, BTLinear, BTLSTMCell
from btcompress.shapes import BlockTermShape, MatrixShape


class Tagger(nn.Module):
    """Two-layer bidirectional LSTM, cell and head: unequal sizes throughout."""

    def __init__(self, hidden=10, **arguments):
        super().__init__()
        self.lstm = nn.LSTM(24, hidden, num_layers=2, bidirectional=True, batch_first=True, **arguments)
        self.cell = nn.LSTMCell(2 * (arguments.get("proj_size") or hidden), 12)
        self.head = nn.Linear(12, 5)

    def forward(self, frames):
        hidden, _ = self.lstm(frames)
        state = None
        for step in hidden.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])


@pytest.fixture
def frames(generator):
    return torch.randn(3, 7, 24, dtype=torch.float64, generator=generator)


def squeezed(model, **arguments):
    """A file's worth of compressed model, and the dense model that has the same weights."""
    compressed = btcompress.factorize(model, **{"tucker_rank": 2, "allow_growth": True, **arguments})
    dense = copy.deepcopy(model)
    dense.load_state_dict(btcompress.to_dense(compressed))
    return compressed, dense


LAYERS = {"input": {"lstm": BTLSTM, "cell": BTLSTMCell}, "linear": {"head": BTLinear}}
LAYERS["recurrent"] = LAYERS["input"]
KINDS = [["input"], ["recurrent"], ["linear"], ["input", "recurrent", "linear"]]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("gates", ["fused", "separate"])
@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
@pytest.mark.parametrize("proj_size", [0, 7])
def test_applied_model_computes_what_the_dense_weights_of_the_file_compute(gates, matrices, proj_size, frames):
    model = Tagger(proj_size=proj_size).double()
    compressed, dense = squeezed(model, gates=gates, matrices=matrices)
    applied = btcompress.apply(Tagger(proj_size=proj_size).double(), compressed)
    expected = {name: kind for each in matrices for name, kind in LAYERS[each].items()}
    replaced = (BTLSTM, BTLSTMCell, BTLinear)
    assert {name: type(child) for name, child in applied.named_children() if isinstance(child, replaced)} == expected
    torch.testing.assert_close(applied(frames), dense(frames))
    assert (applied(frames) - model(frames)).abs().max() > 1e-4


@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_parameters_of_the_applied_model_are_the_tensors_of_the_file(matrices, tmp_path):
    path = tmp_path / "model.bt.safetensors"
    btcompress.save(btcompress.factorize(Tagger(), tucker_rank=2, allow_growth=True, matrices=matrices), path)
    applied = btcompress.apply(Tagger(), path)
    loaded = btcompress.load(path)
    state = applied.state_dict()
    assert state.keys() == loaded.tensors.keys()
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in state.items())
    assert sum(parameter.numel() for parameter in applied.parameters()) == loaded.n_params


@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_full_rank_changes_nothing_in_the_model(matrices, frames):
    model = Tagger().double().eval()
    compressed = btcompress.factorize(model, tucker_rank=10_000, allow_growth=True, matrices=matrices)
    torch.testing.assert_close(btcompress.apply(copy.deepcopy(model), compressed)(frames), model(frames))


def test_arguments_dtype_and_mode_of_the_replaced_lstm_are_kept():
    model = Tagger(dropout=0.25).double().eval()
    applied = btcompress.apply(model, btcompress.factorize(model, tucker_rank=2, allow_growth=True))
    lstm = applied.lstm
    assert (lstm.num_layers, lstm.bidirectional, lstm.batch_first, lstm.dropout) == (2, True, True, 0.25)
    assert not lstm.training
    assert all(parameter.dtype == torch.float64 for parameter in applied.parameters())


def test_applied_model_shares_no_storage_with_the_file_or_the_dense_model():
    model = Tagger()
    compressed = btcompress.factorize(model, tucker_rank=2, allow_growth=True)
    applied = btcompress.apply(copy.deepcopy(model), compressed)
    with torch.no_grad():
        for parameter in applied.parameters():
            parameter.zero_()
    assert all(tensor.any() for name, tensor in compressed.tensors.items() if "bias" not in name)
    assert model.head.weight.any()


def test_module_that_is_an_lstm_itself_comes_back_as_a_new_one(generator):
    lstm = nn.LSTM(24, 10).double()
    applied = btcompress.apply(lstm, btcompress.factorize(lstm, tucker_rank=10_000, allow_growth=True))
    inputs = torch.randn(5, 2, 24, dtype=torch.float64, generator=generator)
    assert isinstance(applied, BTLSTM)
    torch.testing.assert_close(applied(inputs)[0], lstm(inputs)[0])


@pytest.mark.parametrize("wrapped_side", ["model", "file"])
def test_names_match_across_wrappers(wrapped_side, frames):
    model = Tagger().double()
    wrapped = nn.Module()
    wrapped.module = copy.deepcopy(model)
    source, target = (model, wrapped) if wrapped_side == "model" else (wrapped, model)
    compressed = btcompress.factorize(source, tucker_rank=10_000, allow_growth=True, matrices=KINDS[-1])
    expected = model(frames)
    applied = btcompress.apply(target, compressed)
    inner = applied.module if wrapped_side == "model" else applied
    assert isinstance(inner.lstm, BTLSTM)
    assert isinstance(inner.head, BTLinear)
    torch.testing.assert_close(inner(frames), expected)


def test_prefix_takes_one_part_of_the_file(frames):
    pair = nn.ModuleDict({"model": Tagger().double(), "average": Tagger().double()})
    compressed = btcompress.factorize(pair, tucker_rank=10_000, allow_growth=True, matrices=KINDS[-1])
    applied = btcompress.apply(Tagger().double(), compressed, prefix="average.")
    torch.testing.assert_close(applied(frames), pair["average"](frames))
    with pytest.raises(CheckpointError, match="prefix"):
        btcompress.apply(Tagger(), compressed, prefix="nothing.")


def test_lstm_used_under_two_names_is_replaced_once(generator):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.LSTM(24, 10)
            self.second = self.first

    model = Twice().double()
    applied = btcompress.apply(copy.deepcopy(model), btcompress.factorize(model, tucker_rank=2, allow_growth=True))
    assert isinstance(applied.first, BTLSTM)
    assert applied.first is applied.second


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.GRU(24, 10)
        self.cell = nn.LSTMCell(20, 12)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Other, r"nn\.LSTM at lstm, but that is a GRU"),
        (lambda: nn.Linear(2, 3), "is not in the model"),
        (lambda: Tagger(hidden=12), "input_size 20 in the file and 24 in the model"),
        (lambda: Tagger(bias=False), "bias True in the file and False in the model"),
    ],
    ids=["gru", "no lstm", "hidden size", "bias"],
)
def test_models_that_do_not_match_are_refused_and_left_unchanged(target, words):
    compressed = btcompress.factorize(Tagger(), tucker_rank=2, allow_growth=True)
    model = target()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        btcompress.apply(model, compressed)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_strict_names_what_is_missing_and_loose_loads_what_fits(frames):
    class Larger(Tagger):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(3, 2)

    compressed = btcompress.factorize(Tagger(), tucker_rank=2, allow_growth=True)
    with pytest.raises(CheckpointError, match=r"only in the model: extra\.bias, extra\.weight"):
        btcompress.apply(Larger(), compressed)
    model = Larger()
    kept = model.extra.weight.clone()
    applied = btcompress.apply(model, compressed, strict=False)
    assert isinstance(applied.lstm, BTLSTM)
    assert torch.equal(applied.extra.weight, kept)
    assert torch.equal(applied.head.weight, compressed.tensors["head.weight"])


def test_tensors_of_another_shape_are_refused_before_anything_changes():
    class Wider(Tagger):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(12, 6)

    model = Wider()
    with pytest.raises(CheckpointError, match=r"head\.\w+ has shape"):
        btcompress.apply(model, btcompress.factorize(Tagger(), tucker_rank=2, allow_growth=True), strict=False)
    assert type(model.lstm) is nn.LSTM


def test_applying_twice_is_refused():
    compressed = btcompress.factorize(Tagger(), tucker_rank=2, allow_growth=True)
    applied = btcompress.apply(Tagger(), compressed)
    with pytest.raises(CheckpointError, match="block-term LSTM already"):
        btcompress.apply(applied, compressed)


def test_gradients_reach_cores_and_factors_of_the_applied_model(frames):
    model = Tagger().double()
    applied = btcompress.apply(model, btcompress.factorize(model, tucker_rank=2, allow_growth=True))
    applied(frames).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in applied.parameters())


class Read(nn.Module):
    """A linear layer that comes out of the ordinary: under another type, without a bias, or not at all."""

    def __init__(self, head):
        super().__init__()
        self.lstm = nn.LSTM(24, 10)
        if head is not None:
            self.head = head


def linear_only(**arguments):
    return btcompress.factorize(
        Read(nn.Linear(10, 9)), tucker_rank=2, allow_growth=True, matrices=["linear"], **arguments
    )


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (nn.Embedding(9, 10), r"nn\.Linear at head, but that is a Embedding"),
        (None, r"nn\.Linear at head, but that is not in the model"),
        (nn.Linear(10, 8), "head differs: its weight is 9 x 10 in the file and 8 x 10 in the model"),
        (nn.Linear(10, 9, bias=False), r"only in the file: head\.bias"),
    ],
    ids=["embedding", "missing", "size", "bias"],
)
def test_linear_layers_that_do_not_match_are_refused_and_the_model_left_unchanged(head, words):
    model = Read(head)
    children = dict(model.named_children())
    with pytest.raises(CheckpointError, match=words):
        btcompress.apply(model, linear_only())
    assert dict(model.named_children()) == children


def test_linear_layer_that_is_tied_in_the_model_is_refused():
    model = Read(nn.Linear(10, 9))
    model.embedding = nn.Embedding(9, 10)
    model.embedding.weight = model.head.weight
    with pytest.raises(CheckpointError, match=r"weight of head is tied to embedding\.weight.*!head"):
        btcompress.apply(model, linear_only(), strict=False)
    assert type(model.head) is nn.Linear


def test_linear_layer_applied_twice_is_refused():
    compressed = linear_only()
    applied = btcompress.apply(Read(nn.Linear(10, 9)), compressed)
    with pytest.raises(CheckpointError, match="head is a block-term layer already"):
        btcompress.apply(applied, compressed)


@pytest.mark.parametrize("bias", [True, False])
def test_module_that_is_a_linear_layer_itself_comes_back_as_a_new_one(bias, generator):
    linear = nn.Linear(24, 10, bias).double().eval()
    layers = [] if bias else ["weight"]
    full = {"tucker_rank": 10_000, "allow_growth": True, "matrices": ["linear"], "layers": layers}
    applied = btcompress.apply(linear, btcompress.factorize(linear, **full))
    inputs = torch.randn(5, 24, dtype=torch.float64, generator=generator)
    assert isinstance(applied, BTLinear)
    assert not applied.training
    torch.testing.assert_close(applied(inputs), linear(inputs))


def test_linear_layer_used_under_two_names_is_replaced_once():
    model = Read(nn.Linear(10, 9))
    model.tied = model.head
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compressed = btcompress.factorize(tensors, tucker_rank=2, allow_growth=True, matrices=["linear"])
    applied = btcompress.apply(model, compressed)
    assert isinstance(applied.head, BTLinear)
    assert applied.head is applied.tied


def claims_rows(order=10):
    """A checkpoint of some hundred numbers whose matrix has 2^40 rows."""
    part = BlockTermShape((2, *[1] * (order - 1)), (16,) * order, (1,) * order)
    tensors = dict(zip(part_names("w.weight", MatrixShape(part))[0], map(torch.ones, part.tensor_shapes), strict=True))
    matrix = CompressedMatrix(MatrixShape(part), torch.float32, 0.5, 0, 1.0)
    return CompressedCheckpoint(tensors, {"w.weight": matrix}, ("w.weight",), Source("small", 1, None, 10))


def test_a_dense_form_that_no_memory_holds_is_refused(tmp_path):
    btcompress.save(claims_rows(), tmp_path / "small.safetensors")
    loaded = btcompress.load(tmp_path / "small.safetensors")
    assert btcompress.report(loaded).matrices[0].shape == (2**40, 2)
    with pytest.raises(MemoryLimitError, match=r"The dense form of small would take 8\.8 TB"):
        btcompress.to_dense(loaded)
    (part,) = loaded.parts("w.weight")
    with pytest.raises(MemoryLimitError, match=r"1,099,511,627,776 x 2 matrix"):
        part.to_dense()
    with pytest.raises(MemoryLimitError, match=r"1,099,511,627,776 x 2 matrix"):
        part.matmul(torch.ones(1, 2))


def test_a_dense_form_larger_than_is_allowed_is_refused():
    compressed = btcompress.factorize(nn.LSTM(64, 32))
    with limited(10_000), pytest.raises(MemoryLimitError, match=r"32\.8 kB of memory, but 10\.0 kB are allowed"):
        btcompress.to_dense(compressed)
    with limited(40_000):
        assert btcompress.to_dense(compressed).keys() == dict(nn.LSTM(64, 32).named_parameters()).keys()
