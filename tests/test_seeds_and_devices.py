"""What a seed, a device and the numbers of a fit may be: said at once, in a line, by the library and the commands."""

import math
import sys

import pytest
import torch
from safetensors.torch import save_file

from btcompress.cli import main
from btcompress.compression import plan_for
from btcompress.errors import BTCompressError
from btcompress.finetune import TrainConfig
from btcompress.fit import FitOptions, fit
from btcompress.seeds import MAX_SEED
from btcompress.shapes import BlockTermShape

STATE = {"weight_ih_l0": torch.eye(8, 6), "weight_hh_l0": torch.ones(8, 2)}
DEVICES = ["meta", "privateuseone", "vulkan", "mkldnn", "hpu", "nonsense", "", "cuda:99", "cpu:-1", "cpu\n", "x" * 5000]
SEEDS = [-1, MAX_SEED + 1, 2**64, 10**5000, 1.5, True, "1"]


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: repr(device)[:20])
def test_a_device_that_cannot_compute_here_is_refused_in_a_line(device):
    for ask in (lambda: FitOptions(device=device), lambda: plan_for(STATE, target_ratio=2, device=device)):
        with pytest.raises(BTCompressError, match="cannot be used here") as refused:
            ask()
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_device_is_refused_where_there_is_none():
    with pytest.raises(BTCompressError, match="'cuda' cannot be used here"):
        FitOptions(device="cuda")


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: "large" if isinstance(seed, int) and seed > 2**70 else None)
def test_a_seed_out_of_range_is_refused_in_a_line(seed):
    asks = (
        lambda: FitOptions(seed=seed),
        lambda: TrainConfig(seed=seed),
        lambda: plan_for(STATE, target_ratio=2, seed=seed),
    )
    for ask in asks:
        with pytest.raises(BTCompressError, match="the seed must be a whole number from 0 to") as refused:
            ask()
        assert len(str(refused.value)) < 200


def test_the_largest_seed_serves():
    matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    shape = BlockTermShape((3, 4), (4, 3), (2, 2), 2)
    assert fit(matrix, shape, FitOptions(seed=MAX_SEED, restarts=1, max_sweeps=3)).weight_error < 1
    assert TrainConfig(seed=MAX_SEED).seed == MAX_SEED


@pytest.mark.parametrize(
    "numbers",
    [{"max_sweeps": -1}, {"restarts": -2}, {"tolerance": math.nan}, {"tolerance": -1e-9}, {"tolerance": math.inf}],
)
def test_numbers_of_a_fit_out_of_range_are_refused_when_they_are_given(numbers):
    with pytest.raises(BTCompressError, match=f"{next(iter(numbers))} must be a number of at least 0"):
        FitOptions(**numbers)


def refused_by(command, monkeypatch, capsys):
    """What a command says that ends with code 2."""
    monkeypatch.setattr(sys, "argv", ["btcompress", *command])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--device", "meta"], ["--device", ""], ["--seed", str(2**64)], ["--seed=-1"]])
@pytest.mark.parametrize("command", ["plan", "factorize"])
def test_commands_refuse_devices_and_seeds_as_the_library_does(command, arguments, tmp_path, monkeypatch, capsys):
    save_file(STATE, tmp_path / "model.safetensors")
    model = str(tmp_path / "model.safetensors")
    said = refused_by([command, model, "--target-ratio", "2", *arguments], monkeypatch, capsys)
    assert arguments[0].removeprefix("--").partition("=")[0] in said
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("command", [["finetune", "m", "--data", "d.npz", "-o", "r"], ["demo"]])
def test_trainings_refuse_seeds_out_of_range(command, monkeypatch, capsys):
    assert "--seed" in refused_by([*command, "--seed", str(2**64)], monkeypatch, capsys)
