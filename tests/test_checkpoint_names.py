"""The grammar of recurrent layers' keys."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from btcompress.checkpoint import OtherRecurrent, RecurrentEntry, find_recurrent, natural_key

ARGUMENTS = list(itertools.product([1, 2, 11], [False, True], [0, 2], [False, True]))


def meta(shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def lstm_state(layers=1, bidirectional=False, proj_size=0, bias=True, kind=nn.LSTM, **options):
    if proj_size:
        options["proj_size"] = proj_size
    return kind(5, 3, layers, bidirectional=bidirectional, bias=bias, device="meta", **options).state_dict()


def prefixed(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(("layers", "bidirectional", "proj_size", "bias"), ARGUMENTS)
def test_every_kind_of_lstm_is_found_as_its_arguments_made_it(layers, bidirectional, proj_size, bias):
    state = lstm_state(layers, bidirectional, proj_size, bias)
    (entry,) = find_recurrent(prefixed("lstm.", state))
    assert entry == RecurrentEntry("lstm.", "lstm", 5, 3, layers, bidirectional, proj_size, bias)
    assert entry.name == "lstm"
    assert list(entry.keys) == [f"lstm.{key}" for key in state]
    assert entry.shapes == {f"lstm.{key}": tuple(tensor.shape) for key, tensor in state.items()}
    assert list(entry.input_keys) == [key for key in entry.keys if "weight_ih" in key]
    assert list(entry.recurrent_keys) == [key for key in entry.keys if "weight_hh" in key]


@pytest.mark.parametrize("bias", [False, True])
def test_cells_are_found_by_keys_without_a_layer(bias):
    state = nn.LSTMCell(5, 3, bias=bias, device="meta").state_dict()
    (entry,) = find_recurrent(prefixed("cell.", state))
    assert entry == RecurrentEntry("cell.", "cell", 5, 3, bias=bias)
    assert set(entry.keys) == {f"cell.{key}" for key in state}
    assert entry.input_keys == ("cell.weight_ih",)
    assert entry.recurrent_keys == ("cell.weight_hh",)


@pytest.mark.parametrize("prefix", ["", "lstm.", "module._orig_mod.a.module.lstm.", "weight_ih_l0.", "a..b.", "ä\n."])
def test_any_prefix_will_do(prefix):
    (entry,) = find_recurrent(prefixed(prefix, lstm_state(2, True)))
    assert entry == RecurrentEntry(prefix, "lstm", 5, 3, 2, True)


@given(st.text(max_size=12))
def test_arbitrary_prefixes_change_nothing_but_the_prefix(text):
    prefix = f"{text}."
    (entry,) = find_recurrent(prefixed(prefix, lstm_state(2)))
    assert entry == RecurrentEntry(prefix, "lstm", 5, 3, 2)


def test_several_layers_come_in_natural_order_with_all_else_left_aside():
    state = {"lstms.10.weight": meta((2, 2)), "weight_ih_l0_mean": meta((2,)), "my_weight_ih_l0": meta((12, 5))}
    for prefix in ("lstms.10.", "lstms.9.", "decoder.cell.", "lstms.9.inner."):
        kind = nn.LSTMCell(5, 3, device="meta").state_dict() if "cell" in prefix else lstm_state()
        state |= prefixed(prefix, kind)
    found = find_recurrent(state)
    assert [entry.prefix for entry in found] == ["decoder.cell.", "lstms.9.", "lstms.9.inner.", "lstms.10."]
    assert [entry.kind for entry in found] == ["cell", "lstm", "lstm", "lstm"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_dtype_will_do(dtype):
    (entry,) = find_recurrent({key: tensor.to(dtype) for key, tensor in lstm_state().items()})
    assert isinstance(entry, RecurrentEntry)


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("lstm", nn.LSTM(5, 3, 2, bidirectional=True, device="meta")),
        ("cell", nn.LSTMCell(5, 3, device="meta")),
        ("gru", nn.GRU(5, 3, 2, bidirectional=True, device="meta")),
        ("rnn", nn.RNN(5, 3, 2, device="meta")),
        ("gru_cell", nn.GRUCell(5, 3, device="meta")),
        ("rnn_cell", nn.RNNCell(5, 3, device="meta")),
        ("gru_cell", nn.GRUCell(5, 4, bias=False, device="meta")),
    ],
)
def test_rows_per_hidden_unit_tell_which_layer_it_is(kind, module):
    (entry,) = find_recurrent(prefixed("enc.", module.state_dict()))
    assert isinstance(entry, RecurrentEntry)
    assert (entry.name, entry.kind, entry.class_name) == ("enc", kind, type(module).__name__)
    assert (entry.type, entry.is_cell) == (type(module).__name__.removesuffix("Cell").lower(), "cell" in kind)
    assert (entry.input_size, entry.hidden_size, entry.bias) == (5, module.hidden_size, bool(module.bias))
    assert (entry.num_layers, entry.bidirectional) == (
        getattr(module, "num_layers", 1),
        getattr(module, "bidirectional", False),
    )
    assert entry.shapes == {f"enc.{key}": tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert entry.n_states == (2 if entry.type == "lstm" else 1)


def test_a_nonlinearity_is_that_of_the_plain_rnn_of_its_name():
    state = prefixed("a.", nn.RNN(5, 3).state_dict()) | prefixed("b.", nn.RNN(5, 3).state_dict())
    state |= prefixed("c.", nn.GRU(5, 3).state_dict())
    found = find_recurrent(state, {"b": "relu", "c": "relu"})
    assert [entry.nonlinearity for entry in found] == ["tanh", "relu", "tanh"]


def without(key, **options):
    state = lstm_state(**options)
    del state[key]
    return state


def changed(key, shape, **options):
    return {**lstm_state(**options), key: meta(shape)}


BROKEN = {
    "no weight_hh": (without("weight_hh_l0"), "weight_hh_l0 missing"),
    "biases alone": ({"bias_ih_l0": meta((12,))}, "weight_ih_l0 and x.weight_hh_l0 missing"),
    "one bias": (without("bias_hh_l0"), "bias_hh_l0 missing"),
    "a gap in the layers": (
        {k: v for k, v in lstm_state(3).items() if "_l1" not in k},
        "weight_ih_l1 missing",
    ),
    "a far layer": ({**lstm_state(), "weight_ih_l99999": meta((12, 3))}, "only 5 tensors"),
    "one direction in one layer": (
        {k: v for k, v in lstm_state(2, True).items() if "_l1_reverse" not in k},
        "weight_ih_l1_reverse missing",
    ),
    "reverse alone": ({f"{k}_reverse": v for k, v in lstm_state().items()}, "weight_ih_l0 and x.weight_hh_l0 missing"),
    "one projection": (without("weight_hr_l1", layers=2, proj_size=2), "weight_hr_l1 missing"),
    "a late projection": ({**lstm_state(2), "weight_hr_l1": meta((2, 3))}, "weight_hr_l1 belongs to no LSTM"),
    "a projection's bias": ({**lstm_state(proj_size=2), "bias_hr_l0": meta((2,))}, "bias_hr_l0 belongs to no LSTM"),
    "a deeper input": (changed("weight_ih_l1", (12, 5), layers=2), "(12, 5) where (12, 3)"),
    "a deeper bidirectional input": (changed("weight_ih_l1", (12, 3), layers=2, bidirectional=True), "where (12, 6)"),
    "a projected input": (changed("weight_ih_l1", (12, 3), layers=2, proj_size=2), "where (12, 2)"),
    "another hidden size": (changed("weight_hh_l1", (16, 4), layers=2), "where (12, 3)"),
    "rows": (changed("weight_ih_l0", (16, 5)), "where (12, 5)"),
    "a bias": (changed("bias_ih_l0", (3,)), "where (12,)"),
    "two gates": ({"weight_ih_l0": meta((6, 5)), "weight_hh_l0": meta((6, 3))}, "6 rows for a hidden size of 3"),
    "five gates": ({"weight_ih": meta((15, 5)), "weight_hh": meta((15, 3))}, "15 rows for a hidden size of 3"),
    "no whole gates": ({"weight_ih_l0": meta((13, 5)), "weight_hh_l0": meta((13, 3))}, "13 rows"),
    "a vector": ({"weight_ih_l0": meta((12,)), "weight_hh_l0": meta((12, 3))}, "must be matrices"),
    "nothing inside": ({"weight_ih_l0": meta((0, 5)), "weight_hh_l0": meta((0, 0))}, "must be matrices"),
    "integers": ({k: v.to(torch.int8) for k, v in lstm_state().items()}, "dtype int8"),
    "a projected cell": (
        {"weight_ih": meta((12, 5)), "weight_hh": meta((12, 2)), "weight_hr": meta((2, 3))},
        "cell with a projection",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_layers_that_do_not_hold_together_are_named_with_the_reason(case):
    state, reason = BROKEN[case]
    (other,) = find_recurrent(prefixed("x.", state))
    assert isinstance(other, OtherRecurrent)
    assert other.kind == "unknown"
    assert reason in other.reason
    assert set(other.keys) == set(prefixed("x.", state))


@given(st.sets(st.sampled_from(sorted(lstm_state(2, True, 2)))))
def test_an_lstm_is_only_found_when_all_its_keys_are_there(kept):
    state = lstm_state(2, True, 2)
    found = find_recurrent({key: state[key] for key in kept})
    if not kept:
        assert found == ()
        return
    (entry,) = found
    assert set(entry.keys) == kept
    if isinstance(entry, RecurrentEntry):
        biased = entry.bias * 2
        assert len(kept) == entry.num_layers * (1 + entry.bidirectional) * (2 + biased + (entry.proj_size > 0))
        assert entry.shapes == {key: tuple(state[key].shape) for key in entry.keys}


def spectral(module):
    return nn.utils.parametrizations.spectral_norm(module, "weight_hh_l0")


def old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module, "weight_hh_l0")


def pruned(module):
    from torch.nn.utils import prune

    return prune.l1_unstructured(module, "weight_ih_l0", 0.5)


@pytest.mark.parametrize(
    "alter",
    [
        lambda module: nn.utils.parametrizations.weight_norm(module, "weight_hh_l0"),
        lambda module: nn.utils.parametrizations.weight_norm(module, "weight_ih_l0"),
        spectral,
        old_weight_norm,
        pruned,
    ],
)
def test_weights_that_are_made_from_others_are_named_with_the_way_out(alter):
    torch.manual_seed(0)
    state = prefixed("rnn.", alter(nn.LSTM(5, 3)).state_dict())
    (other,) = find_recurrent(state)
    assert isinstance(other, OtherRecurrent)
    assert other.kind == "unknown"
    assert "is not stored as such but made from rnn." in other.reason
    assert set(other.keys) == set(state)


def test_weight_dropout_is_named():
    state = prefixed("rnns.0.module.", without("weight_hh_l0"))
    state["rnns.0.weight_hh_l0_raw"] = meta((12, 3))
    outer, inner = find_recurrent(state)
    assert outer.prefix == "rnns.0."
    assert "weight_hh_l0 is not stored as such but made from rnns.0.weight_hh_l0_raw" in outer.reason
    assert inner.prefix == "rnns.0.module."
    assert inner.reason == "rnns.0.module.weight_hh_l0 missing"


def test_packed_quantized_layers_are_named():
    (other,) = find_recurrent({"lstm._all_weight_values.0.param.0": meta((3,))})
    assert "quantized" in other.reason


@given(st.dictionaries(st.text("_.abdefghilnoprstvw01_", max_size=30), st.just(meta((12, 3))), max_size=4))
def test_other_keys_never_crash_and_are_never_taken_for_an_lstm(state):
    assert not any(isinstance(entry, RecurrentEntry) for entry in find_recurrent(state))


@pytest.mark.parametrize(
    "key", ["weight_ih_l00", "weight_ih_l", "weight_ih_l0_reverse_", "weight_ih_l١", "weight_ih_l" + "9" * 5000]
)
def test_keys_outside_the_grammar_are_no_part_of_it(key):
    assert find_recurrent({key: meta((12, 3))}) == ()


def test_names_sort_by_their_numbers():
    names = ["", "a", "a.2", "a.9", "a.9.b", "a.10", "a.b", "b1c2", "b1c10", "b2", "x9", "x" + "9" * 5000, "x.1"]
    assert sorted([*names[5:], *names[:5]], key=natural_key) == names
    assert natural_key("a.007") < natural_key("a.8") < natural_key("a.0010")


@given(st.text(), st.text())
def test_any_two_names_can_be_compared(first, second):
    assert (natural_key(first) < natural_key(second)) + (natural_key(second) < natural_key(first)) <= 1


@given(st.lists(st.integers(0, 10**12), unique=True))
def test_numbered_names_sort_as_their_numbers_do(numbers):
    names = [f"layers.{number}.lstm" for number in numbers]
    assert sorted(names, key=natural_key) == [f"layers.{number}.lstm" for number in sorted(numbers)]
