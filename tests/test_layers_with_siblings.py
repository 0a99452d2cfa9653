"""Recurrent layers that compute something else than torch's, by what lies beside their weights or by their class."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress import display
from btcompress.calibration.request import SampleInputs
from btcompress.calibration.sources import sources_of
from btcompress.checkpoint import OtherRecurrent, RecurrentEntry, find_recurrent, from_state_dict, same_bits
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.export.targets import chosen_lstms
from btcompress.finetune.finetuning import finetune
from btcompress.finetune.request import FineTuneRequest
from btcompress.modes import ShapeRequest
from btcompress.plan import make_plan
from btcompress.reporting.expected import expected_speed


def under(prefix, module, **more):
    state = {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
    return state | {name.replace("__", "."): torch.ones(shape) for name, shape in more.items()}


CELL, LSTM = nn.LSTMCell(5, 3, device="meta"), nn.LSTM(5, 3, 2, device="meta")
SIBLINGS = {
    "layer norm of each gate": (under("cell.", CELL, cell__layernorm_i__weight=(3,)), ("layernorm_i.weight",)),
    "layer norm of the products": (under("a.c.", CELL, a__c__ln_ih__bias=(12,)), ("ln_ih.bias",)),
    "peepholes": (under("cell.", CELL, cell__weight_ch=(9, 3)), ("weight_ch",)),
    "a module in an LSTM": (under("rnn.", LSTM, rnn__layer_norm__weight=(3,)), ("layer_norm.weight",)),
    "two": (under("rnn.", LSTM, rnn__h0=(2, 3), rnn__c0=(2, 3)), ("c0", "h0")),
    "a cell that is the model": (
        under("", CELL, layernorm_i__weight=(3,), weight_ch=(9, 3)),
        ("layernorm_i.weight", "weight_ch"),
    ),
    "none": (under("rnn.", LSTM, head__weight=(2, 3)), ()),
    "a name that goes on": (under("rnn.", LSTM, rnn2__ln__weight=(3,), rnnx=(3,)), ()),
    "counters of a profiler": (under("rnn.", LSTM, rnn__total_ops=(1,), rnn__total_params=(1,)), ()),
    "a mask of its own": (under("rnn.", LSTM, rnn__weight_hh_l0_mask=(12, 3)), ()),
    "a tensor of no entries": (under("rnn.", LSTM, rnn__dummy=(0,)), ()),
    "an LSTM that has a head": (under("rnn.", LSTM, rnn__head__weight=(2, 3), rnn__head__bias=(2,)), ()),
    "a cell that has a layer": (under("c.", CELL, c__mix__weight=(2, 3)), ("mix.weight",)),
    "a model that is an LSTM and has a head": (under("", LSTM, head__weight=(2, 3), head__bias=(2,)), ()),
}


@pytest.mark.parametrize("case", SIBLINGS)
def test_tensors_beside_a_layers_own_are_its_siblings(case):
    state, siblings = SIBLINGS[case]
    (entry,) = find_recurrent(state)
    assert isinstance(entry, RecurrentEntry)
    assert entry.siblings == siblings


def test_a_tensor_is_a_sibling_of_the_nearest_layer_above_it():
    state = under("a.", LSTM) | under("a.b.", CELL, a__b__ln__weight=(3,), a__ln__weight=(3,)) | under("", CELL)
    assert {entry.prefix: entry.siblings for entry in find_recurrent(state)} == {
        "": (),
        "a.": ("ln.weight",),
        "a.b.": ("ln.weight",),
    }


def of(prefix, **shapes):
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


RELATIVES = {
    "ConvLSTM": (of("c.", weight_ih=(12, 5, 3, 3), weight_hh=(12, 3, 3, 3)), "a convolutional LSTM.*(12, 3, 3, 3)"),
    "mLSTM": (of("m.", weight_ih=(12, 5), weight_mh=(12, 3), weight_im=(3, 5), weight_hm=(3, 3)), "multiplicative"),
    "mLSTM that has weight_hh": (of("m.", weight_ih=(12, 5), weight_hh=(12, 3), weight_mh=(3, 3)), "multiplicative"),
    "SRU": (of("rnn_lst.0.", weight=(5, 12), weight_c=(6,), bias=(6,)), "an SRU"),
    "SRU of equal sizes": (of("rnn_lst.0.", weight=(3, 9), weight_c=(6,), bias=(6,)), "an SRU"),
    "highway": (of("h.", weight_ih=(18, 5), weight_hh=(15, 3)), "a highway LSTM"),
    "highway layers": (of("h.", weight_ih_l0=(18, 5), weight_hh_l0=(15, 3), bias_hh_l0=(15,)), "a highway LSTM"),
    "ZeRO": (of("z.", weight_ih_l0=(0,), weight_hh_l0=(0,)), "a placeholder.*Gather the whole weights"),
}


@pytest.mark.parametrize("case", RELATIVES)
def test_what_is_no_lstm_is_named_with_what_to_do(case):
    state, reason = RELATIVES[case]
    (other,) = find_recurrent({**state, "head.weight": torch.empty(4, 3, device="meta")})
    assert isinstance(other, OtherRecurrent)
    assert re.search(reason.replace("(", r"\(").replace(")", r"\)"), other.reason)
    assert set(other.keys) <= state.keys()


def test_a_file_with_nothing_else_is_refused_with_the_reason():
    state = {"z.weight_ih_l0": torch.empty(0), "z.weight_hh_l0": torch.empty(0)}
    with pytest.raises(CheckpointError, match=r"z: weights must be matrices .* a placeholder"):
        btcompress.factorize(state)


class NormedCell(nn.LSTMCell):
    """A cell with a norm of its inputs, as those that are trained with layer norm have it."""

    def __init__(self):
        super().__init__(12, 8)
        self.layernorm_i = nn.LayerNorm(12)

    def forward(self, x, state=None):
        return super().forward(self.layernorm_i(x), state)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = NormedCell()
        self.rnn = nn.LSTM(12, 8)


FIT = {"cp_rank": 1, "tucker_rank": 1, "max_sweeps": 1}
REASON = r"cell is no plain LSTMCell \(beside its weights: layernorm_i.bias, layernorm_i.weight\)"


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def compressed(model):
    return btcompress.factorize(model, **FIT)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "x.npz"
    np.savez(path, x=np.ones((4, 3, 12), np.float32))
    return path


def test_it_is_factorized_and_the_result_says_what_it_is(compressed, model):
    assert "cell.weight_ih" in compressed.matrices
    assert [text for text in compressed.notices if text.startswith("cell is no plain LSTMCell (")]
    model = Model()
    model.load_state_dict(btcompress.to_dense(compressed))


def test_inspect_says_so(model, capsys):
    checkpoint = from_state_dict(model.state_dict())
    plan = make_plan(checkpoint, ShapeRequest(1, 1))
    display.show_inventory_json(checkpoint, plan)
    shown = json.loads(capsys.readouterr().out)
    siblings = {each["name"]: each["siblings"] for each in shown["lstms"]}
    assert siblings == {"cell": ["layernorm_i.bias", "layernorm_i.weight"], "rnn": []}
    assert [text for text in shown["notices"] if "cell is no plain" in text]
    display.show_inventory(checkpoint, plan)
    assert "cell is no plain LSTMCell" in capsys.readouterr().out


def test_sample_inputs_for_it_are_refused_and_those_for_others_are_not(model, inputs):
    checkpoint = from_state_dict(model.state_dict())
    with pytest.raises(CheckpointError, match=REASON):
        sources_of(checkpoint, [SampleInputs(str(inputs), layer="cell")])
    (source,) = sources_of(checkpoint, [SampleInputs(str(inputs), layer="rnn")])
    assert source.name == "rnn"


@pytest.mark.parametrize("labels", [False, True])
def test_it_is_not_trained_without_a_network_of_the_user(labels, compressed, model, inputs, tmp_path):
    path, teacher, data = tmp_path / "m.bt.safetensors", tmp_path / "m.pt", tmp_path / "y.npz"
    btcompress.save(compressed, path)
    torch.save(model.state_dict(), teacher)
    np.savez(data, x=np.ones((4, 3, 12), np.float32), y=np.arange(4))
    request = FineTuneRequest(
        path, str(data if labels else inputs), tmp_path / "out.safetensors", teacher, layer="cell"
    )
    with pytest.raises(CheckpointError, match=REASON):
        finetune(request)


def test_it_is_neither_measured_nor_exported(compressed):
    with pytest.raises(CheckpointError, match=REASON):
        btcompress.bench(compressed, lstm="cell")
    report = btcompress.bench(compressed, batch=[1], steps=[1], seconds=0.01)
    assert {case.lstm for case in report.cases} == {"rnn"}
    assert [text for text in report.notices if text.startswith("Not measured: cell is no plain LSTMCell")]
    for name in (None, "cell"):
        with pytest.raises(CheckpointError, match=REASON):
            chosen_lstms(compressed, name)
    assert [entry.name for entry in chosen_lstms(compressed, "rnn")] == ["rnn"]
    speed = expected_speed(compressed)
    assert speed is not None
    assert {case.lstm for case in speed.cases} == {"rnn"}


def test_no_block_term_layer_takes_its_place(compressed):
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"{REASON}, and cell is a NormedCell: no block-term layer"):
        btcompress.apply(model, compressed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Initialized(nn.LSTM):
    """A subclass that computes what torch's does, as many models have it."""

    def __init__(self, *args, name="x", **options):
        super().__init__(*args, **options)
        self.label = name

    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)


class InitializedCell(nn.LSTMCell):
    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)


class Doubled(nn.LSTM):
    def forward(self, x, state=None):
        return super().forward(2 * x, state)


class WithMethods(Initialized):
    def handle_no_encoding(self, hidden):
        return hidden


@pytest.mark.parametrize("build", [Initialized, InitializedCell])
def test_a_subclass_that_computes_what_torchs_does_is_swapped(build):
    model = nn.Sequential(build(12, 8))
    compressed = btcompress.factorize(model, **FIT)
    plain = nn.Sequential(nn.LSTM(12, 8) if build is Initialized else nn.LSTMCell(12, 8))
    plain.load_state_dict(btcompress.to_dense(compressed))
    btcompress.apply(model, compressed)
    x = torch.randn(3, 12) if build is InitializedCell else torch.randn(4, 3, 12)
    torch.testing.assert_close(model(x), plain(x))
    assert type(model[0]).__name__.startswith("BTLSTM")
    assert getattr(model[0], "label", "x") == "x"


@pytest.mark.parametrize(("build", "what"), [(Doubled, "forward"), (WithMethods, "handle_no_encoding")])
def test_a_subclass_with_ways_of_its_own_is_refused_by_what_it_has(build, what):
    model = nn.Sequential(build(12, 8))
    compressed = btcompress.factorize(model, **FIT)
    with pytest.raises(CheckpointError, match=f"is a {build.__name__}, a subclass with {what} of its own"):
        btcompress.apply(model, compressed)


def test_an_attribute_that_a_block_term_layer_has_otherwise_is_not_overwritten():
    model = nn.Sequential(Initialized(12, 8))
    compressed = btcompress.factorize(model, **FIT)
    model[0].forward = lambda x: (x, None)
    with pytest.raises(CheckpointError, match="a subclass with forward of its own"):
        btcompress.apply(model, compressed)


def with_nan(name):
    model = nn.LSTM(12, 8, 2)
    getattr(model, name).data[0, 0] = float("nan")
    return model


def test_a_matrix_with_nan_is_refused_by_name_with_two_ways_out():
    with pytest.raises(BTCompressError, match=r"weight_ih_l1: .*not finite.*--layer '!NAME'.*--allow-nonfinite"):
        btcompress.factorize(with_nan("weight_ih_l1"), **FIT)


@pytest.mark.parametrize("wish", [{}, {"target_ratio": 2}, {"bits": 4}])
def test_a_matrix_with_nan_is_left_dense_where_that_is_allowed(wish):
    model = with_nan("weight_ih_l1")
    result = btcompress.factorize(model, allow_nonfinite=True, **(wish or FIT))
    assert [*result.chosen] == ["weight_ih_l0"]
    (left,) = btcompress.report(result).left_dense
    assert left.name == "weight_ih_l1"
    assert "not finite" in left.reason
    assert same_bits(result.tensors["weight_ih_l1"], model.weight_ih_l1.detach())
    assert result.history[0]["recipe"]["allow_nonfinite"] is True


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(12, 8)
        self.head = nn.Linear(8, 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kinds", [{nn.LSTM}, {nn.Linear}, {nn.LSTM, nn.Linear}], ids=["LSTM", "Linear", "both"])
@pytest.mark.parametrize("saved", [True, False], ids=["file", "state dict"])
def test_a_quantized_model_is_refused_with_what_to_use_instead(saved, kinds, tmp_path):
    state = torch.ao.quantization.quantize_dynamic(Tagger(), kinds, dtype=torch.qint8).state_dict()
    if saved:
        torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"quantized.*Use the float checkpoint from before quantization\.$"):
        btcompress.factorize(tmp_path / "m.pt" if saved else state, **FIT)
