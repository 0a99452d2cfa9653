"""Recipes: checked when they are made, the same once written and read, and refused in words where they are wrong."""

from dataclasses import fields, replace
from inspect import signature
from pathlib import Path

import pytest
import torch
from torch import nn

import btcompress
from btcompress import DenseStep, FactorizeStep, FineTuneStep, Recipe, SampleInputs
from btcompress.checkpoint import from_state_dict
from btcompress.errors import BTCompressError, ShapeError
from btcompress.finetune import FineTuneRequest, TrainConfig
from btcompress.recipe import read_recipe, save_recipe

ALL = Recipe(
    Path("model.pt"),
    Path("small.safetensors"),
    (
        FactorizeStep(
            matrices=("input", "recurrent"),
            layers=("encoder.*", "!head"),
            target_ratio=4.5,
            of="model",
            order=2,
            input_shape=(3, 4),
            calibration=(SampleInputs("enc.npz", "encoder.rnn", 1 / 255), SampleInputs("mine:made")),
            calibration_epochs=3,
            seed=7,
            device="cpu",
        ),
        FineTuneStep(
            {"data": "x.npz", "teacher": Path("model.pt"), "held_fraction": 0.25}, TrainConfig(epochs=3, seed=5)
        ),
        DenseStep(),
        FactorizeStep(cp_rank=2, tucker_rank=(2, 3), in_modes=(4, 5), gates="separate", allow_growth=True, strict=True),
        FactorizeStep(plan=Path("plan.yaml")),
    ),
)


def test_a_recipe_is_the_same_once_written_and_read(tmp_path):
    save_recipe(ALL, tmp_path / "recipe.yaml")
    again = read_recipe(tmp_path / "recipe.yaml", allow_code=True)
    assert again == ALL
    save_recipe(again, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == (tmp_path / "recipe.yaml").read_bytes()


def test_only_what_differs_from_the_defaults_is_written(tmp_path):
    save_recipe(Recipe(Path("m.pt"), Path("o.safetensors"), (FactorizeStep(),)), tmp_path / "recipe.yaml")
    lines = [line for line in (tmp_path / "recipe.yaml").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["version: 1", "model: m.pt", "output: o.safetensors", "steps:", "- factorize: {}"]


def test_lists_become_tuples_so_that_equal_jobs_are_equal():
    assert FactorizeStep(layers=["a"], tucker_rank=[2, 3], in_modes=[4, 5], calibration=[SampleInputs("x.npz")]) == (
        FactorizeStep(layers=("a",), tucker_rank=(2, 3), in_modes=(4, 5), calibration=(SampleInputs("x.npz"),))
    )


def test_settings_may_be_written_as_on_the_command_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nmodel: m.pt\noutput: o.safetensors\nsteps:\n"
        "- factorize: {layer: ['!b'], calibration: ['a.rnn=x.npz', y.npz, {data: z.npz, scale: 1/4}]}\n"
        "- finetune: {data: x.npz, scale: 1/255, lr: 0.01, val: v.npz, val_fraction: 0.3, path: mine, epochs: 2}\n"
        "- dense:\n- factorize:\n"
    )
    first, second, third, fourth = read_recipe(tmp_path / "recipe.yaml").steps
    inputs = (SampleInputs("x.npz", "a.rnn"), SampleInputs("y.npz"), SampleInputs("z.npz", None, 0.25))
    assert first == FactorizeStep(layers=("!b",), calibration=inputs)
    assert second.config == TrainConfig(epochs=2, learning_rate=0.01)
    request = second.request(Path("a"), Path("b"))
    assert request == FineTuneRequest(
        Path("a"), "x.npz", Path("b"), scale=1 / 255, held="v.npz", held_fraction=0.3, folder=Path("mine")
    )
    assert (third, fourth) == (DenseStep(), FactorizeStep())


def test_a_file_whose_name_has_an_equals_sign_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.npz").touch()
    (tmp_path / "r.yaml").write_text("version: 1\nmodel: m\noutput: o\nsteps: [factorize: {calibration: a=b.npz}]\n")
    assert read_recipe(tmp_path / "r.yaml").steps[0].calibration == (SampleInputs("a=b.npz"),)


STEP = "version: 1\nmodel: m.pt\noutput: o.safetensors\nsteps:\n- "


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "no recipe of version 1"),
        ("version: 2", "no recipe of version 1"),
        ("version: 1\nmodel: m\noutput: o\nsteps: 3", "steps must be a list"),
        ("version: 1\nmodel: m\noutput: o\nsteps: []", "no steps"),
        ("version: 1\nmodel: 3\noutput: o\nsteps: [dense:]", "model must be the path"),
        ("version: 1\noutput: o\nsteps: [dense:]", "model must be the path"),
        ("version: 1\nmodel: m\noutput: o\nspeed: 3\nsteps: [dense:]", "there is no 'speed'"),
        (STEP + "squeeze: {}", "step 1 must be one of factorize, finetune, dense"),
        (STEP + "{factorize: {}, dense: {}}", "step 1 must be one of"),
        (STEP + "factorize: 3", "step 1 (factorize): settings must be names with values"),
        (STEP + "factorize: {ranks: 3}", "step 1 (factorize): there is no 'ranks'"),
        (STEP + "factorize: {cp_rank: two}", "cp_rank is 'two', which cannot be"),
        (STEP + "factorize: {cp_rank: 1.5}", "cp_rank is 1.5"),
        (STEP + "factorize: {matrices: [input, hidden]}", "matrices is"),
        (STEP + "factorize: {gates: some}", "gates is 'some'"),
        (STEP + "factorize: {target_ratio: 4, cp_rank: 2}", "a wish leaves the ranks to be chosen"),
        (STEP + "factorize: {target_ratio: 0.5}", "above 1"),
        (STEP + "factorize: {plan: p.yaml, order: 2}", "a plan says it all"),
        (STEP + "factorize: {plan: 3}", "plan is 3"),
        (STEP + "factorize: {of: model}", "of says what a ratio is of"),
        (STEP + "factorize: {calibration: [3]}", "[LAYER=]FILE"),
        (STEP + "factorize: {calibration: [{data: x, scale: none}]}", "scale"),
        (STEP + "factorize: {calibration_epochs: -1}", "calibration_epochs must be at least 0"),
        (STEP + "factorize: {seed: -1}", "seed"),
        (STEP + "factorize: {device: abacus}", "abacus"),
        (STEP + "finetune: {epochs: 3}", "no data"),
        (STEP + "finetune: {data: x, compressed: y}", "compressed"),
        (STEP + "finetune: {data: x, epochs: 0}", "epochs must be"),
        (STEP + "dense: {now: true}", "there is no 'now'"),
        (STEP + "dense:", "ends in a dense state dict"),
        (STEP + "factorize:\n- dense:\n- finetune: {data: x}", "cannot follow a step dense"),
    ],
)
def test_what_is_no_recipe_is_refused_in_words(text, words, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(BTCompressError) as refused:
        read_recipe(tmp_path / "recipe.yaml")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "step",
    [
        "factorize: {calibration: evil:made}",
        "finetune: {data: evil:made}",
        "finetune: {data: x.npz, val: evil:made}",
        "finetune: {data: x.npz, model: evil:made, path: .}",
        "finetune: {data: x.npz, model: m, loss: evil:made}",
    ],
)
def test_a_recipe_runs_no_code_without_the_users_word(step, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("evil.py").write_text("open('ran', 'w').close()\ndef made():\n    raise SystemExit\n")
    Path("r.yaml").write_text(f"version: 1\nmodel: m.pt\noutput: o.safetensors\nsteps:\n- {step}\n")
    _, err = run("run", "r.yaml", code=2)
    assert "names code that running it would run: evil:made" in " ".join(err.split())
    assert not Path("ran").exists()
    assert read_recipe(Path("r.yaml"), allow_code=True).steps[0].code[-1] == "evil:made"


def test_a_job_is_checked_when_it_is_made():
    for wrong in ({"target_ratio": 2, "tucker_rank": 3}, {"seed": -1}, {"device": "abacus"}, {"matrices": ()}):
        with pytest.raises(BTCompressError):
            FactorizeStep(**wrong)
    with pytest.raises(ShapeError):
        FactorizeStep(in_modes=(2, 3), order=3)


def test_a_plan_in_memory_cannot_be_written(tmp_path):
    plan = btcompress.plan_for(nn.LSTM(20, 8), target_ratio=2)
    recipe = Recipe(Path("m"), Path("o"), (FactorizeStep(plan=plan),))
    with pytest.raises(BTCompressError, match="Save it as a plan file"):
        save_recipe(recipe, tmp_path / "recipe.yaml")
    assert not (tmp_path / "recipe.yaml").exists()


def test_results_say_what_was_done_whatever_the_device_is_called():
    model = from_state_dict(nn.LSTM(20, 8).state_dict())
    step = FactorizeStep(target_ratio=2, seed=3)
    results = [btcompress.compress(model, replace(step, device=device)) for device in ("cpu", "cpu:0")]
    for result in results:
        assert result.history[0]["recipe"] == {"target_ratio": 2, "seed": 3}
    assert all(torch.equal(tensor, results[1].tensors[name]) for name, tensor in results[0].tensors.items())


def test_the_simple_face_takes_the_fields_of_a_step_and_tells_of_each():
    for face in (btcompress.factorize, btcompress.plan_for):
        assert all(f"{each.name}: " in face.__doc__ for each in fields(FactorizeStep))
        assert [*signature(face).parameters] == ["weights", *(each.name for each in fields(FactorizeStep))]
    with pytest.raises(TypeError):
        btcompress.factorize(nn.LSTM(3, 4), ratio=2)
