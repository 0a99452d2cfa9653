"""Checkpoints as trainers write them: what is read of each, and that it goes back into the model it came from."""

import copy

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import btcompress
from btcompress.calibration import SampleInputs
from btcompress.checkpoint import from_state_dict, read
from btcompress.checkpoint.layout import Layout
from btcompress.checkpoint.wrappers import matched
from btcompress.compression import compress
from btcompress.errors import CheckpointError
from btcompress.finetune.networks import stored_tensors
from btcompress.finetune.user import build_student, build_teacher
from btcompress.hub import weights
from btcompress.nn import BTLSTM, BTLinear, BTLSTMCell
from btcompress.plan import save_plan


class Net(nn.Module):
    """An LSTM and a head; all sizes unequal."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def state(seed=0, build=Net):
    torch.manual_seed(seed)
    return build().state_dict()


def prefixed(prefix, tensors):
    return {f"{prefix}.{key}": tensor for key, tensor in tensors.items()}


def zeros(tensors):
    return {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}


NET, OTHER, BARE = state(), state(1), state(2, lambda: nn.LSTM(6, 4))
MATRIX, VECTOR, BYTES = torch.ones(3, 4), torch.ones(4), torch.ones(9, dtype=torch.uint8)
MOMENTS = {"exp_avg": torch.ones(16, 6), "exp_avg_sq": torch.ones(16, 6), "step": torch.tensor(3.0)}

#: What is beside one state dict, the words of the notice on it, and what of that the dense form has again.
BESIDE = {
    "best scores of a callback": (
        {"callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "last": VECTOR, "path": "a.ckpt"}}},
        ("callbacks.ModelCheckpoint.best_model_score", "beside the state dicts: callbacks.ModelCheckpoint.last"),
        {"callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "path": "a.ckpt"}}},
    ),
    "states of random generators": (
        {"rng_states": {"torch": BYTES, "cuda": [BYTES, BYTES]}, "seed": 3},
        ("rng_states.torch", "rng_states.cuda.1"),
        {"seed": 3},
    ),
    "statistics to normalise by": (
        {"normalizer": {"mean": VECTOR, "std": VECTOR}, "scale": {"feature.mean": MATRIX}},
        ("normalizer.mean", "normalizer.std", "scale.feature.mean"),
        {},
    ),
    "hyper-parameters": (
        {"hyper_parameters": {"lr": 0.1, "class_weights": VECTOR, "loss": {"weight": VECTOR}}},
        ("hyper_parameters.class_weights", "hyper_parameters.loss.weight"),
        {"hyper_parameters": {"lr": 0.1}},
    ),
    "a look-ahead optimizer": (
        {"optim": {"fast_state": {0: MOMENTS}, "slow_state": {0: {"slow": MATRIX}}, "param_groups": [{"lr": 0.1}]}},
        ("optimizer states: optim",),
        {},
    ),
    "states of a look-ahead": (
        {"fast_state": {"a": MOMENTS}, "slow_state": {140_219: {"slow_buffer": MATRIX}}},
        ("fast_state.a.exp_avg", "slow_state.140219.slow_buffer"),
        {"fast_state": {"a": {"step": torch.tensor(3.0)}}},
    ),
    "slow weights": ({"slow_state": zeros(NET)}, ("averages of the weights in model", "slow_state"), {}),
    "fastai's optimizer": (
        {"opt": {"state": [{"grad_avg": MATRIX}, {}], "hypers": [{"lr": 0.1}]}},
        ("optimizer states: opt",),
        {},
    ),
    "an average": (
        {"ema_model_state_dict": zeros(NET)},
        ("averages of the weights in model", "--container ema_model_state_dict"),
        {},
    ),
    "an average in a wrapper, and its count": (
        {"AveragedModel": {**prefixed("module", zeros(NET)), "n_averaged": torch.tensor(7)}},
        ("--container AveragedModel",),
        {},
    ),
    "an average of the parameters in a callback": (
        {"callbacks": {"EMACallback": {"weights": {"lstm.weight_hh_l0": torch.zeros(16, 4)}}}},
        ("--container callbacks.EMACallback.weights",),
        {},
    ),
}


def same(found, expected):
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@pytest.mark.parametrize("case", BESIDE)
def test_what_trainers_write_beside_a_model_is_left_out_by_name(tmp_path, case):
    beside, words, kept = BESIDE[case]
    for value in ({"model": NET, **beside}, {**beside, "model": NET}):
        torch.save(value, tmp_path / "model.pt")
        found = read(tmp_path / "model.pt")
        assert same(found.tensors, NET)
        assert all(any(word in notice for notice in found.notices) for word in words), found.notices
        arranged = found.layout.filled(found.tensors)
        assert same({key: arranged[key] for key in kept}, kept)
        assert arranged.keys() == {"model", *kept}


def test_statistics_beside_the_weights_of_a_bare_layer_are_none():
    found = from_state_dict({"model": BARE, "mean": VECTOR})
    assert same(found.tensors, BARE)
    assert any("tensors beside the state dicts: mean" in notice for notice in found.notices)


def test_what_is_beside_a_model_under_a_key_that_is_no_text_is_named_as_well():
    found = from_state_dict({"model": NET, "seen": {0.5: torch.tensor(1.0), "\ud800": torch.tensor(2.0)}})
    assert same(found.tensors, NET)
    assert any("seen.0.5, seen.\ud800" in notice for notice in found.notices)


def test_an_average_can_be_taken_instead_and_so_can_what_holds_no_weights(tmp_path):
    path, averaged = tmp_path / "model.pt", zeros(NET)
    torch.save({"model": NET, "ema": {"net": averaged, "decay": VECTOR}, "scale": {"mean": VECTOR}}, path)
    assert same(read(path).tensors, NET)
    for container in ("ema", "ema.net"):
        found = read(path, container)
        assert same(found.tensors, averaged)
        assert same(found.layout.filled(found.tensors), {"ema": {"net": averaged}})
    found = read(path, "scale")
    assert same(found.tensors, {"mean": VECTOR})
    with pytest.raises(CheckpointError, match=r"There are: model, ema\.net\."):
        read(path, "spam")


@pytest.mark.parametrize(
    "value",
    [
        {"generator": NET, "discriminator": OTHER},
        {"encoder": {"0.weight": torch.ones(3, 1, 2, 2)}, "decoder": NET},
        {"ema": NET, "swa": OTHER},
        {"model": NET, "ema": {**OTHER, "more.weight": MATRIX}},
        {"model": NET, "ema": {**OTHER, "head.weight": MATRIX}},
    ],
    ids=["two with LSTMs", "one without", "two averages", "an average of another model", "of other sizes"],
)
def test_several_models_are_all_taken_with_their_names_before_their_keys(value):
    found = from_state_dict(value)
    assert list(found.tensors) == [f"{name}.{key}" for name, each in value.items() for key in each]
    assert same((found.layout or Layout()).filled(found.tensors), value)


def test_of_several_models_averages_are_left_out_all_the_same():
    found = from_state_dict({"g": NET, "d": prefixed("deep", OTHER), "g_ema": OTHER})
    assert list(found.tensors) == [*prefixed("g", NET), *prefixed("d.deep", OTHER)]


# Wrappers


class Wrapped(nn.Module):
    """A network below attributes of these names."""

    def __init__(self, path, inner):
        super().__init__()
        name, _, rest = path.partition(".")
        self.add_module(name, Wrapped(rest, inner) if rest else inner)


PREFIXES = [
    "model",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_module",
    "module",
    "_orig_mod",
    "_forward_module.model._orig_mod.module",
]
FULL = {"tucker_rank": 1000, "allow_growth": True, "max_sweeps": 1, "matrices": ["input", "linear"]}


@pytest.fixture
def frames(generator):
    return torch.randn(2, 3, 6, generator=generator)


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_layers_are_found_behind_wrappers_on_either_side(prefix, frames, tmp_path):
    dense = net()
    wrapped = btcompress.factorize(prefixed(prefix, dense.state_dict()), **FULL)
    assert all(key.startswith(f"{prefix}.") for key in wrapped.keys)
    behind = Wrapped(prefix, net(1))
    plain = btcompress.apply(net(1), wrapped)
    btcompress.apply(behind, btcompress.factorize(dense, **FULL))
    for found in (plain, behind.get_submodule(prefix)):
        assert (type(found.lstm), type(found.head)) == (BTLSTM, BTLinear)
        torch.testing.assert_close(found(frames), dense(frames))
    assert weights.Network.of(plain).result.keys == wrapped.keys
    weights.Network.of(plain).write(tmp_path / weights.NAME)
    saved = weights.read(tmp_path)
    restored = btcompress.models.restore(net(2), saved.shapes, saved.tensors)
    torch.testing.assert_close(restored(frames), plain(frames), rtol=0, atol=0)


def test_a_part_of_a_name_that_is_an_attribute_is_matched_as_it_is(frames):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.lstm = net(3), nn.LSTM(6, 4)

    pair = Pair()
    applied = btcompress.apply(copy.deepcopy(pair), btcompress.factorize(prefixed("module", pair.state_dict()), **FULL))
    torch.testing.assert_close(applied.model(frames), pair.model(frames))
    torch.testing.assert_close(applied.lstm(frames)[0], pair.lstm(frames)[0])


@pytest.mark.parametrize(
    ("given", "held", "expected"),
    [
        ("a", "a", {"a": "a"}),
        ("module.a", "a", {"module.a": "a"}),
        ("a.b", "model.a._orig_mod.b", {"a.b": "model.a._orig_mod.b"}),
        ("model.a", "module.model.a a", {"model.a": "module.model.a"}),
        ("a model.a", "a", {"a": "a"}),
        ("module.a model.a", "a", {"module.a": "a"}),
        ("model.a model.module.model.a", "a", {}),
        ("b", "model.b x.model.b module.model.b", {}),
        ("module", "", {"module": ""}),
        ("a module.a", "a module.a", {"a": "a", "module.a": "module.a"}),
    ],
)
def test_names_are_matched_exactly_first_and_else_only_where_it_is_clear(given, held, expected):
    assert matched(given.split(" "), held.split(" ")) == expected


def test_names_that_are_not_clear_are_refused_with_the_file_s_own():
    both = nn.ModuleDict({"module": net(1), "_module": net(2)})
    with pytest.raises(CheckpointError, match=r"nn\.LSTM at model\.lstm, but that is not in the model"):
        btcompress.apply(both, btcompress.factorize(prefixed("model", NET), **FULL))


@pytest.mark.parametrize("prefix", ["model", "module", "_forward_module"])
def test_networks_that_are_trained_on_have_the_names_of_the_file(prefix, frames):
    dense = from_state_dict(prefixed(prefix, NET))
    compressed = btcompress.factorize(prefixed(prefix, NET), **FULL)
    student = build_student("here:net", net, compressed)
    assert stored_tensors(student, compressed).keys() == compressed.tensors.keys()
    teacher = build_teacher("here:net", lambda: net(1), dense, student)
    torch.testing.assert_close(teacher(frames), student(frames))


# Layers that something was done to


def test_buffers_that_a_profiler_gave_a_layer_are_not_in_the_way(frames):
    model = net()
    for layer in model.children():
        layer.register_buffer("total_ops", torch.tensor([7.0], dtype=torch.float64))
    compressed = btcompress.factorize(model, **FULL)
    applied = btcompress.apply(copy.deepcopy(model), compressed)
    assert type(applied.lstm) is BTLSTM
    assert compressed.tensors.keys() - applied.state_dict().keys() == {"lstm.total_ops", "head.total_ops"}
    torch.testing.assert_close(applied(frames), model(frames))


def test_weights_that_do_not_lie_row_by_row_are_read_as_they_are(frames, tmp_path):
    model = net()
    for name in ("weight_ih_l0", "weight_hh_l0"):
        tensor = getattr(model.lstm, name)
        tensor.data = tensor.data.t().contiguous().t()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert not read(tmp_path / "model.pt").tensors["lstm.weight_ih_l0"].is_contiguous()
    compressed = btcompress.factorize(tmp_path / "model.pt", **FULL)
    btcompress.save(compressed, tmp_path / "a.safetensors")
    applied = btcompress.apply(net(1), tmp_path / "a.safetensors")
    torch.testing.assert_close(applied(frames), model(frames))
    btcompress.export_dense(tmp_path / "a.safetensors", tmp_path / "dense.pt")
    again = torch.load(tmp_path / "dense.pt", weights_only=True)
    assert torch.equal(again["lstm.weight_hh_l0"], model.lstm.weight_hh_l0)


@pytest.mark.parametrize("precision", [None, "float16"])
def test_an_lstm_under_two_names_is_fitted_once_stored_once_and_counted_once(tmp_path, precision):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = nn.LSTM(24, 10)
            self.first = self.second

    step = btcompress.FactorizeStep(cp_rank=1, tucker_rank=2, max_sweeps=2, bits=precision)
    model, fitted = Twice(), set()
    compressed = compress(model, step, lambda each: fitted.add(each.name))
    alone = compress(model.second, step)
    assert fitted == {"first.weight_ih_l0"}
    btcompress.save(compressed, tmp_path / "a.safetensors")
    loaded = btcompress.load(tmp_path / "a.safetensors")
    for each in (compressed, loaded):
        found, expected = btcompress.report(each), btcompress.report(alone)
        assert set(each.matrices) == {"second.weight_ih_l0", "first.weight_ih_l0"}
        assert (each.n_params, each.n_bytes, each.dense_bytes) == (alone.n_params, alone.n_bytes, alone.dense_bytes)
        assert found.model == expected.model
        assert each.precisions_of_matrix("first.weight_ih_l0") == alone.precisions_of_matrix("weight_ih_l0")
    applied = btcompress.apply(Twice(), loaded)
    assert applied.first is applied.second
    assert sum(each.numel() for each in applied.parameters()) == alone.n_params
    dense = loaded.dense_state_dict()
    assert dense["first.weight_ih_l0"] is dense["second.weight_ih_l0"]


def test_a_wish_counts_an_lstm_under_two_names_once_and_a_plan_says_it_once(tmp_path):
    lstm = nn.LSTM(8, 3)
    model = nn.ModuleDict({"b": lstm, "a": lstm, "c": nn.LSTM(8, 3)})
    alone = nn.ModuleDict({"a": lstm, "c": model["c"]})
    wish = {"max_params": 90}
    priced, expected = btcompress.plan_for(model, **wish), btcompress.plan_for(alone, **wish)
    assert [form.name for form in priced.forms] == ["a.weight_ih_l0", "c.weight_ih_l0"]
    assert [form.point.shape for form in priced.forms] == [form.point.shape for form in expected.forms]
    save_plan(priced, tmp_path / "plan.yml", name="model", sha256=None)
    planned = btcompress.factorize(model, plan=tmp_path / "plan.yml", max_sweeps=2)
    assert planned.matrices["a.weight_ih_l0"] == planned.matrices["b.weight_ih_l0"]
    assert planned.n_params == btcompress.factorize(alone, plan=tmp_path / "plan.yml", max_sweeps=2).n_params
    text = yaml.safe_load((tmp_path / "plan.yml").read_text())
    text["matrices"]["b.weight_ih_l0"] = copy.deepcopy(text["matrices"]["a.weight_ih_l0"])
    (tmp_path / "both.yml").write_text(yaml.safe_dump(text))
    both = btcompress.factorize(model, plan=tmp_path / "both.yml", max_sweeps=2)
    assert both.n_params == planned.n_params
    one = btcompress.factorize(model, layers=["c", "b"], cp_rank=1, tucker_rank=2, max_sweeps=2)
    assert one.matrices.keys() == {"b.weight_ih_l0", "c.weight_ih_l0"}


def test_an_lstm_under_two_names_is_calibrated_as_one(tmp_path):
    lstm = nn.LSTM(12, 6)
    model = nn.ModuleDict({"a": lstm, "b": lstm})
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(40, 5, 12)).astype(np.float32))
    inputs = [SampleInputs(str(tmp_path / "x.npz"), layer="a")]
    rounded = btcompress.factorize(model, calibration=inputs, bits=4, calibration_epochs=1)
    assert rounded.rounded.keys() == {"a.weight_ih_l0", "b.weight_ih_l0"}
    first, second = (rounded.rounded[f"{name}.weight_ih_l0"] for name in "ab")
    assert (first.precision, first.weight_error) == (second.precision, second.weight_error)
    assert all(tensor is rounded.tensors[f"a.{name[2:]}"] for name, tensor in rounded.tensors.items())
    few = {"cp_rank": 1, "tucker_rank": 2, "max_sweeps": 2, "calibration_epochs": 1}
    done = btcompress.factorize(model, calibration=inputs, **few)
    assert done.matrices.keys() == {"a.weight_ih_l0", "b.weight_ih_l0"}
    assert not torch.equal(done.tensors["a.bias_ih_l0"], lstm.bias_ih_l0)
    for name, tensor in done.tensors.items():
        assert tensor is done.tensors[f"a.{name[2:]}"], name
    assert done.dense_bytes == sum(each.nbytes for each in lstm.parameters())


class Tied(nn.Module):
    """A language model whose decoder is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.decoder = nn.Linear(6, 7)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(self.lstm(self.embedding(x))[0])


@pytest.mark.parametrize("left_out", ["decoder.weight", "embedding.weight"])
def test_a_tied_tensor_that_the_file_holds_once_is_both_in_the_model(left_out):
    dense, tokens = Tied(), torch.arange(6).reshape(2, 3)
    held = {name: tensor for name, tensor in dense.state_dict().items() if name != left_out}
    compressed = btcompress.factorize(prefixed("module", held), **{**FULL, "matrices": ["input"]})
    applied = btcompress.apply(Tied(), compressed)
    assert applied.decoder.weight is applied.embedding.weight
    torch.testing.assert_close(applied(tokens), dense(tokens))
    student = build_student("here:Tied", Tied, compressed)
    assert stored_tensors(student, compressed).keys() == compressed.tensors.keys()
    teacher = build_teacher("here:Tied", Tied, from_state_dict(held), student)
    torch.testing.assert_close(teacher(tokens), dense(tokens))
    del held["lstm.bias_ih_l0"]
    with pytest.raises(CheckpointError, match=r"lstm\.bias_ih_l0 is missing"):
        build_teacher("here:Tied", Tied, from_state_dict(held), student)


class Steps(nn.Module):
    """Cells of torch's under the names that the custom LSTM of TorchScript's benchmarks has."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"cell": nn.LSTMCell(size, 4)}) for size in (6, 4))

    def forward(self, x):
        for layer in self.layers:
            steps, state = [], None
            for row in x.unbind(1):
                state = layer["cell"](row, state)
                steps.append(state[0])
            x = torch.stack(steps, 1)
        return x


def test_cells_that_the_file_has_as_one_lstm_are_taken_and_trained_as_they_are(frames):
    torch.manual_seed(0)
    dense = Steps()
    compressed = btcompress.factorize(dense, **FULL)
    assert [entry.kind for entry in compressed.recurrent()] == ["lstm"]
    student = build_student("here:Steps", Steps, compressed)
    assert {type(layer["cell"]) for layer in student.model.layers} == {BTLSTMCell}
    torch.testing.assert_close(student(frames), dense(frames))
    assert stored_tensors(student, compressed).keys() == compressed.tensors.keys()
    teacher = build_teacher("here:Steps", Steps, from_state_dict(dense.state_dict()), student)
    torch.testing.assert_close(teacher(frames), dense(frames))
