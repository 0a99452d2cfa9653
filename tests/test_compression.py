"""One job, the same from a library call and from the command line; results that are factorized further."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import btcompress
from btcompress import FactorizeStep, SampleInputs
from btcompress.checkpoint import read
from btcompress.errors import CheckpointError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(24, 12, batch_first=True)
        self.head = nn.Linear(12, 40)


@pytest.fixture
def place(tmp_path, monkeypatch):
    torch.save(Model().state_dict(), tmp_path / "model.pt")
    x = np.random.default_rng(0).normal(size=(40, 6, 24)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


JOBS = {
    "ranks": (["-n", "2", "-r", "2"], {"cp_rank": 2, "tucker_rank": 2}),
    "modes": (
        ["--in-modes", "4,6", "--out-modes", "8,6", "--gates", "fused", "--seed", "3", "--max-sweeps", "7"],
        {"in_modes": (4, 6), "out_modes": (8, 6), "seed": 3, "max_sweeps": 7},
    ),
    "wish": (
        ["--target-ratio", "2", "--matrices", "input,recurrent,linear"],
        {"target_ratio": 2, "matrices": ("input", "recurrent", "linear")},
    ),
    "calibrated": (
        ["--target-ratio", "2", "--matrices", "input,recurrent", "--calibration", "x.npz", "--calibration-epochs", "2"],
        {
            "target_ratio": 2,
            "matrices": ("input", "recurrent"),
            "calibration": (SampleInputs("x.npz"),),
            "calibration_epochs": 2,
        },
    ),
    "named layer": (
        ["--max-params", "700", "--calibration", "lstm=x.npz", "--scale", "1/2", "--calibration-epochs", "0"],
        {"max_params": 700, "calibration": (SampleInputs("x.npz", "lstm", 0.5),), "calibration_epochs": 0},
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_the_library_and_the_command_give_the_same_bytes_for_the_same_job(job, place, run):
    options, choices = JOBS[job]
    run("factorize", "model.pt", "-o", "by_command.safetensors", "--save-recipe", "recipe.yaml", *options)
    btcompress.save(btcompress.compress("model.pt", FactorizeStep(**choices)), "by_library.safetensors")
    btcompress.save(btcompress.factorize("model.pt", **choices), "by_face.safetensors")
    (place / "recipe.yaml").write_text((place / "recipe.yaml").read_text().replace("by_command", "by_recipe"))
    run("run", "recipe.yaml")
    names = ("by_command", "by_library", "by_face", "by_recipe")
    contents = {(place / f"{name}.safetensors").read_bytes() for name in names}
    assert len(contents) == 1


def test_a_result_is_factorized_further_and_keeps_what_it_has(place, run):
    run("factorize", "model.pt", "-o", "first.safetensors")
    out, _ = run("factorize", "first.safetensors", "--matrices", "input,linear", "-r", "2", "-o", "both.safetensors")
    assert "lstm.weight_ih_l0: in block-term form already; left as it is." in " ".join(out.split())
    first, both = (btcompress.load(f"{name}.safetensors") for name in ("first", "both"))
    assert set(both.matrices) == {"lstm.weight_ih_l0", "head.weight"}
    assert both.keys == first.keys
    assert both.source == first.source
    assert [step["step"] for step in both.history] == ["factorize", "factorize"]
    for name in first.tensors:
        if name != "head.weight":
            assert torch.equal(first.tensors[name], both.tensors[name])
    btcompress.apply(Model(), both)
    told = json.loads(run("report", "both.safetensors", "--against", "model.pt", "--json")[0])
    assert len(told["matrices"]) == 2
    assert told["untouched"]["changed"] == []


def test_a_result_that_is_factorized_further_is_calibrated_as_a_whole(place, run):
    run("factorize", "model.pt", "-o", "first.safetensors", "--target-ratio", "2")
    more = ["--matrices", "recurrent", "--target-ratio", "1.5", "--calibration", "x.npz", "--calibration-epochs", "1"]
    run("factorize", "first.safetensors", "-o", "both.safetensors", *more)
    both = btcompress.load("both.safetensors")
    assert set(both.matrices) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0"}
    assert both.history[-1]["step"] == "calibrate"
    assert set(both.history[-1]["activation_errors"]) == set(both.matrices)


def test_what_is_all_block_terms_already_is_told_so(place):
    btcompress.save(btcompress.factorize("model.pt"), "first.safetensors")
    before = (place / "first.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="weight_ih_l0 are block terms already, and no other matrix was chosen"):
        btcompress.compress("first.safetensors")
    with pytest.raises(CheckpointError, match="leave the container out"):
        btcompress.compress("first.safetensors", FactorizeStep(container="model"))
    assert (place / "first.safetensors").read_bytes() == before


def test_nothing_that_was_given_is_changed(place):
    model = read("model.pt")
    before = {name: tensor.clone() for name, tensor in model.tensors.items()}
    btcompress.compress(
        model, FactorizeStep(target_ratio=2, calibration=(SampleInputs("x.npz"),), calibration_epochs=1)
    )
    assert all(torch.equal(tensor, model.tensors[name]) for name, tensor in before.items())


def test_progress_tells_of_every_stage_in_turn(place):
    seen = []
    step = FactorizeStep(target_ratio=2, calibration=(SampleInputs("x.npz"),), calibration_epochs=1)
    btcompress.compress("model.pt", step, seen.append)
    kinds = [type(state).__name__ for state in seen]
    stages = [kind for n, kind in enumerate(kinds) if n == 0 or kinds[n - 1] != kind]
    assert stages[0] == stages[-1] == "CalibrationProgress"
    assert "PricingProgress" in stages


def test_a_recipe_is_saved_with_a_dry_run_and_never_over_what_is_read(place, run):
    run("factorize", "model.pt", "--dry-run", "--save-recipe", "recipe.yaml")
    assert (place / "recipe.yaml").exists()
    assert not (place / "model.bt.safetensors").exists()
    _, err = run("factorize", "model.pt", "--dry-run", "--save-recipe", "recipe.yaml", code=2)
    assert "already exists" in err
    _, err = run("factorize", "model.pt", "--force", "--save-recipe", "model.pt", code=2)
    assert "never overwritten" in err
    run("run", "recipe.yaml")
    assert set(load_file("model.bt.safetensors")) > {"head.weight"}
