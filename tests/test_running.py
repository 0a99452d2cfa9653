"""Recipes of several steps: what was interrupted at any moment goes on where it was, and ends in the same bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress import DenseStep, FactorizeStep, FineTuneStep, Recipe, SampleInputs
from btcompress.errors import BTCompressError, OutputError
from btcompress.finetune import Epoch, TrainConfig
from btcompress.recipe import save_recipe
from btcompress.results import StepProgress
from btcompress.running import RunFile

KILLED = KeyboardInterrupt


@pytest.fixture
def place(tmp_path, monkeypatch):
    torch.manual_seed(0)
    torch.save(nn.ModuleDict({"lstm": nn.LSTM(20, 6), "head": nn.Linear(6, 3)}).state_dict(), tmp_path / "model.pt")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(30, 4, 20)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=generator.integers(0, 3, size=30))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def two_steps_way(output="out.safetensors"):
    """Factorize ``W``, fine-tune, form dense, factorize all, calibrate, fine-tune."""
    tune = FineTuneStep({"data": "x.npz"}, TrainConfig(epochs=2, cpu=True))
    both = ("input", "recurrent")
    calibrated = FactorizeStep(
        matrices=both, target_ratio=1.5, calibration=(SampleInputs("x.npz"),), calibration_epochs=1
    )
    return Recipe(Path("model.pt"), Path(output), (FactorizeStep(tucker_rank=2), tune, DenseStep(), calibrated, tune))


def contents(place):
    """What lies there, without the times in metrics."""
    return {
        path.name: path.read_bytes()
        for path in place.iterdir()
        if path.is_file() and not path.name.endswith((".lock", ".jsonl"))
    }


def test_each_step_goes_on_from_the_one_before_and_every_result_is_kept(place):
    seen = []
    result = btcompress.run(two_steps_way(), on_progress=seen.append)
    names = [
        "out.1-factorize.safetensors",
        "out.2-finetune.safetensors",
        "out.3-dense.safetensors",
        "out.4-factorize.safetensors",
        "out.safetensors",
    ]
    assert set(names) <= set(contents(place))
    assert not any(name.endswith((".run", ".state")) for name in contents(place))
    steps = [state for state in seen if isinstance(state, StepProgress)]
    assert [(state.index, state.state) for state in steps] == [(n, s) for n in range(5) for s in ("begun", "done")]
    assert [step["step"] for step in result.history] == ["factorize", "calibrate", "finetune"]
    first, second, last = (btcompress.load(names[n]) for n in (0, 1, 4))
    assert set(first.matrices) == {"lstm.weight_ih_l0"}
    assert [step["step"] for step in second.history] == ["factorize", "finetune"]
    assert last.source.name == "out.3-dense.safetensors"
    assert set(last.matrices) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0"}


def test_a_run_killed_at_any_moment_goes_on_and_ends_in_the_same_bytes(place, tmp_path_factory, monkeypatch):
    whole, seen = [], []
    btcompress.run(two_steps_way(), on_progress=seen.append)
    expected = contents(place)
    assert len(seen) > 20
    # Files change between steps and between epochs. Of what is told within them, the first of each kind will do.
    kinds = [type(state) for state in seen]
    within = [kind not in (StepProgress, Epoch) for kind in kinds]
    first = {n for n, kind in enumerate(kinds) if within[n] and kind != kinds[n - 1]}
    for moment in {*first, *(n for n in range(0, len(seen), 2) if not within[n]), len(seen) - 1}:
        folder = tmp_path_factory.mktemp("killed")
        for name in ("model.pt", "x.npz"):
            (folder / name).write_bytes((place / name).read_bytes())
        monkeypatch.chdir(folder)
        left = [moment]

        def kill(_, left=left):
            if not left[0]:
                raise KILLED
            left[0] -= 1

        with pytest.raises(KILLED):
            btcompress.run(two_steps_way(), on_progress=kill)
        kept = []
        btcompress.run(two_steps_way(), on_progress=kept.append)
        assert contents(folder) == expected, moment
        whole.append([state.state for state in kept if isinstance(state, StepProgress)])
    assert any(states.count("kept") == 4 for states in whole)


@pytest.mark.parametrize("before", [True, False])
def test_a_kill_beside_the_record_of_a_run_costs_at_most_a_step(before, place, tmp_path_factory, monkeypatch):
    btcompress.run(two_steps_way())
    expected, save = contents(place), RunFile.save
    # Nothing happens from the record that a step is done to the one that the next has begun.
    for moment in range(10) if before else (*range(0, 10, 2), 9):
        folder = tmp_path_factory.mktemp("killed")
        for name in ("model.pt", "x.npz"):
            (folder / name).write_bytes((place / name).read_bytes())
        monkeypatch.chdir(folder)
        left = [moment]

        def kill(file, record, left=left):
            if left[0]:
                left[0] -= 1
                save(file, record)
                return
            if not before:
                save(file, record)
            raise KILLED

        with monkeypatch.context() as patch:
            patch.setattr(RunFile, "save", kill)
            with pytest.raises(KILLED):
                btcompress.run(two_steps_way())
        btcompress.run(two_steps_way())
        assert contents(folder) == expected, moment


def test_a_training_within_a_run_goes_on_after_the_last_epoch_that_was_done(place):
    def kill(state):
        if isinstance(state, Epoch):
            raise KILLED

    with pytest.raises(KILLED):
        btcompress.run(two_steps_way(), on_progress=kill)
    seen = []
    btcompress.run(two_steps_way(), on_progress=seen.append)
    assert [state.epoch for state in seen if isinstance(state, Epoch)] == [2, 1, 2]


def stopped_in_step(place, n):
    """A run that was killed as a step began."""

    def kill(state):
        if isinstance(state, StepProgress) and (state.index, state.state) == (n, "begun"):
            raise KILLED

    with pytest.raises(KILLED):
        btcompress.run(two_steps_way(), on_progress=kill)


def test_another_recipe_or_other_inputs_are_not_gone_on_with(place):
    stopped_in_step(place, 2)
    other = Recipe(Path("model.pt"), Path("out.safetensors"), (FactorizeStep(), *two_steps_way().steps[1:]))
    with pytest.raises(BTCompressError, match="was of another recipe"):
        btcompress.run(other)
    np.savez("x.npz", x=np.ones((30, 4, 20), np.float32), y=np.arange(30) % 3)
    with pytest.raises(BTCompressError, match="a file that it reads has changed"):
        btcompress.run(two_steps_way())
    btcompress.run(two_steps_way(), force=True)


def test_a_result_that_was_changed_is_told_and_one_that_is_gone_is_made_again(place):
    stopped_in_step(place, 3)
    dense = place / "out.3-dense.safetensors"
    content = dense.read_bytes()
    dense.write_bytes(content[:-1] + b"?")
    with pytest.raises(BTCompressError, match=r"out\.3-dense\.safetensors has changed"):
        btcompress.run(two_steps_way())
    dense.unlink()
    btcompress.run(two_steps_way())
    assert dense.read_bytes() == content


def test_what_lay_there_before_is_replaced_by_force_alone(place):
    for name in ("out.safetensors", "out.2-finetune.safetensors"):
        (place / name).write_text("mine")
        with pytest.raises(OutputError, match="already exists"):
            btcompress.run(two_steps_way())
        assert (place / name).read_text() == "mine"
        assert not (place / "out.1-factorize.safetensors").exists()
        (place / name).unlink()
    (place / "out.safetensors").write_text("mine")
    btcompress.run(two_steps_way(), force=True)
    assert btcompress.load("out.safetensors").matrices


def test_what_came_in_between_is_not_replaced(place):
    stopped_in_step(place, 2)
    (place / "out.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        btcompress.run(two_steps_way())
    assert (place / "out.safetensors").read_text() == "mine"


def test_no_step_writes_over_what_another_reads(place):
    with pytest.raises(OutputError, match="never overwritten"):
        btcompress.run(two_steps_way("model.pt"), force=True)
    with pytest.raises(OutputError, match="never overwritten"):
        btcompress.run(two_steps_way("x.npz"), force=True)


def test_a_damaged_record_is_told(place):
    (place / "out.safetensors.run").write_text("{")
    with pytest.raises(BTCompressError, match="is damaged"):
        btcompress.run(two_steps_way())


def test_the_command_tells_of_each_step_and_reports_the_last(place, run):
    save_recipe(two_steps_way(), Path("recipe.yaml"))
    out, err = run("run", "recipe.yaml")
    assert "step 3 of 5, dense, is done: out.3-dense.safetensors" in err
    assert "lstm.weight_hh_l0" in out
    assert "out.safetensors" in out
    _, err = run("run", "recipe.yaml", code=2)
    assert "already exists" in err
