"""Weights of dtypes without arithmetic: left as they are with a reason, or refused in a line, and passed through."""

import sys

import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict
from btcompress.cli import main
from btcompress.compression import factorize, plan_for
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.fit import fit_matrix
from btcompress.shapes import BlockTermShape, MatrixShape

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
UNHELD = ["float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"]
NO_FLOATS = [torch.complex64, torch.bool, torch.int8, torch.int64]


def state_of(dtype):
    """An LSTM and a linear layer in this dtype."""
    modules = {"lstm": nn.LSTM(24, 16), "head": nn.Linear(16, 12)}
    return {
        f"{name}.{key}": tensor.detach().to(dtype)
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("dtype", FLOAT8)
def test_a_matrix_of_8_bits_stays_dense_with_a_reason_and_passes_through_bit_for_bit(dtype, tmp_path):
    state = {f"small.{key}": tensor for key, tensor in state_of(dtype).items()} | state_of(torch.float32)
    result = factorize(state, tucker_rank=2, matrices=("input", "recurrent", "linear"), allow_growth=True)
    assert {key.partition(".")[0] for key in result.matrices} == {"lstm", "head"}
    left = {each["name"]: each["reason"] for each in result.history[0]["left_dense"]}
    assert set(left) == {"small.lstm.weight_ih_l0", "small.lstm.weight_hh_l0", "small.head.weight"}
    assert all("convert it to bfloat16 or float32 first" in reason for reason in left.values())
    btcompress.save(result, tmp_path / "result.safetensors")
    formed = btcompress.to_dense(tmp_path / "result.safetensors")
    assert all(same_bits(formed[key], tensor) for key, tensor in state.items() if key.startswith("small."))


@pytest.mark.parametrize("matrices", [("input",), ("recurrent",), ("linear",), ("input", "recurrent", "linear")])
@pytest.mark.parametrize("dtype", FLOAT8)
def test_where_nothing_else_is_chosen_one_line_says_what_to_convert_to(dtype, matrices):
    state = state_of(dtype)
    for ask in (factorize, lambda weights, **kinds: plan_for(weights, target_ratio=2, **kinds)):
        with pytest.raises(CheckpointError, match="convert it to bfloat16 or float32 first") as refused:
            ask(state, matrices=matrices)
        assert "\n" not in str(refused.value)


def test_patterns_choose_among_dtypes():
    state = {**state_of(torch.float32), "head.weight": state_of(torch.float8_e5m2)["head.weight"]}
    with pytest.raises(CheckpointError, match=r"head\.weight: it has dtype float8_e5m2"):
        factorize(state, matrices=("input", "linear"), layers=("head",))
    result = factorize(state, matrices=("input", "linear"), layers=("!head",), tucker_rank=2)
    assert list(result.matrices) == ["lstm.weight_ih_l0"]


@pytest.mark.parametrize("command", ["inspect", "plan", "factorize"])
def test_commands_say_so_too(command, tmp_path, monkeypatch, capsys):
    torch.save(state_of(torch.float8_e4m3fn), tmp_path / "model.pt")
    wish = [] if command == "inspect" else ["--target-ratio", "2"]
    monkeypatch.setattr(sys, "argv", ["btcompress", command, str(tmp_path / "model.pt"), *wish])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    output = capsys.readouterr()
    assert code == (0 if command == "inspect" else 2)
    assert "float8_e4m3fn" in output.out + output.err


@pytest.mark.parametrize("name", UNHELD)
def test_what_a_safetensors_file_cannot_hold_is_refused_by_name(name):
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip("this torch has no such dtype")
    with pytest.raises(CheckpointError, match=f"the tensor odd has dtype {name}"):
        from_state_dict({"odd": torch.zeros(4, 4, dtype=torch.uint8).view(dtype)})


@pytest.mark.parametrize("dtype", NO_FLOATS)
def test_an_lstm_or_linear_layer_of_no_real_numbers_is_named_and_left_alone(dtype):
    state = state_of(dtype)
    with pytest.raises(CheckpointError, match=f"dtype {str(dtype).removeprefix('torch.')}, no floating-point"):
        factorize(state)
    with pytest.raises(CheckpointError):
        factorize(state, matrices=("linear",))
    with pytest.raises(CheckpointError):
        plan_for(state, target_ratio=2, matrices=("input", "linear"))


@pytest.mark.parametrize("dtype", [*FLOAT8, *NO_FLOATS])
def test_a_matrix_given_to_the_fit_itself_is_refused_in_a_line(dtype):
    with pytest.raises(BTCompressError, match=str(dtype).removeprefix("torch.")):
        fit_matrix(torch.zeros(8, 6).to(dtype), MatrixShape(BlockTermShape((2, 3), (4, 2), (1, 1))))


def test_a_report_against_8_bits_is_refused_by_name():
    result = factorize(state_of(torch.float32), tucker_rank=2)
    with pytest.raises(CheckpointError, match=r"lstm\.weight_ih_l0 .* cannot be measured against: it has dtype float8"):
        btcompress.report(result, against=from_state_dict(state_of(torch.float8_e4m3fn)))
