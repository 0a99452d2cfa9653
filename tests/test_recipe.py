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
from btcompress.packing import Integers
from btcompress.plan import Wish
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
        FactorizeStep(
            cp_rank=2,
            tucker_rank=(2, 3),
            in_modes=(4, 5),
            gates="separate",
            objective="speed",
            allow_growth=True,
            allow_nonfinite=True,
            strict=True,
        ),
        FactorizeStep(plan=Path("plan.yaml"), others="float16"),
        FactorizeStep(max_bytes=400_000, of="file", others="bfloat16"),
        FactorizeStep(target_ratio=8, of="bytes", bits="float16"),
        FactorizeStep(matrices=("recurrent",), bits=4, group=128),
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


def test_bits_and_bytes_may_be_written_as_on_the_command_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nmodel: m.pt\noutput: o.safetensors\nsteps:\n"
        "- factorize: {max_bytes: 1.5M, of: file, bits: auto}\n"
        "- factorize: {max_bytes: 400000, bits: int3, group: 64}\n"
        "- factorize: {bits: 4}\n- factorize: {bits: '4'}\n- factorize: {target_ratio: 8, of: bytes, bits: bfloat16}\n"
    )
    assert read_recipe(tmp_path / "recipe.yaml").steps == (
        FactorizeStep(max_bytes=1_500_000, of="file"),
        FactorizeStep(max_bytes=400_000, bits=3, group=64),
        FactorizeStep(bits=4),
        FactorizeStep(bits=4),
        FactorizeStep(target_ratio=8.0, of="bytes", bits="bfloat16"),
    )


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
        (STEP + "factorize: {of: model}", "of says what a ratio or a size is of, here model"),
        (STEP + "factorize: {max_bytes: 4x}", "max_bytes '4x' is not a size such as"),
        (STEP + "factorize: {max_bytes: 4.5}", "max_bytes is 4.5"),
        (STEP + "factorize: {bits: 9}", "step 1 (factorize): bits must be auto, a whole number from 2 to 8"),
        (STEP + "factorize: {bits: 4.5}", "bits is 4.5"),
        (STEP + "factorize: {bits: true}", "bits is True"),
        (STEP + "factorize: {bits: 4, group: wide}", "group is 'wide'"),
        (STEP + "factorize: {others: int8}", "others is 'int8'"),
        (STEP + "factorize: {plan: p.yaml, bits: 4}", "a plan says it all"),
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


@pytest.mark.parametrize(
    ("given", "bits", "precision"),
    [
        *((given, bits, Integers(bits)) for bits in range(2, 9) for given in (bits, f"{bits}", f"int{bits}")),
        ("float16", "float16", torch.float16),
        ("bfloat16", "bfloat16", torch.bfloat16),
        (None, None, None),
    ],
)
def test_bits_are_kept_in_one_way_of_writing_so_that_equal_jobs_are_equal(given, bits, precision):
    step = FactorizeStep(bits=given)
    assert (step.bits, step.precision) == (bits, precision)
    assert step.record == ({} if bits is None else {"bits": bits})


def test_bits_that_are_left_to_a_wish_are_the_same_as_none():
    for wish in ({"max_bytes": 400}, {"target_ratio": 8, "of": "bytes"}, {"target_ratio": 8, "of": "file"}):
        assert FactorizeStep(bits="auto", **wish) == FactorizeStep(**wish)
        assert FactorizeStep(**wish).precision is None


def test_a_group_goes_with_its_bits():
    assert FactorizeStep(bits=3, group=8).precision == Integers(3, 8)
    assert FactorizeStep(max_bytes=9, bits=8, group=2**40).precision == Integers(8, 2**40)


@pytest.mark.parametrize(
    ("given", "n_bytes"),
    [
        (7, 7),
        ("7", 7),
        ("400k", 400_000),
        ("1.5M", 1_500_000),
        ("2G", 2 * 10**9),
        ("1.001 kB", 1001),
        ("1.0019k", 1001),
    ],
)
def test_sizes_are_kept_in_bytes(given, n_bytes):
    step = FactorizeStep(max_bytes=given)
    assert step == FactorizeStep(max_bytes=n_bytes)
    assert step.wish == Wish(max_bytes=n_bytes)
    assert step.record == {"max_bytes": n_bytes}


@pytest.mark.parametrize(
    ("more", "rounds_only"),
    [
        ({}, True),
        ({"matrices": ("linear",), "layers": ("words.weight",), "others": "float16"}, True),
        ({"calibration": (SampleInputs("x.npz"),)}, True),
        ({"cp_rank": 1}, False),
        ({"tucker_rank": (2, 3), "in_modes": (4, 5), "gates": "separate", "order_units": True}, False),
        ({"target_ratio": 4}, False),
        ({"max_bytes": 400}, False),
        ({"max_error": 0.5, "order": 2}, False),
    ],
)
def test_bits_leave_matrices_dense_where_nothing_is_said_of_forms(more, rounds_only):
    assert FactorizeStep(bits=4, **more).rounds_only is rounds_only
    assert not FactorizeStep(**more).rounds_only


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *(
            ({"bits": bits}, f"from 2 to 8, float16 or bfloat16, but {bits!r} was")
            for bits in (1, 9, -4, 4.0, True, "")
        ),
        *(({"bits": bits}, f"but {bits!r} was given") for bits in ("int1", "float32", "four", "int4/32", " 4", "٤")),
        ({"bits": "int4/32"}, "said apart, as group (--group)"),
        ({"bits": "auto"}, "leaves them to a wish in bytes, but there is none. Give one (--max-bytes"),
        ({"bits": "auto", "target_ratio": 8}, "leaves them to a wish in bytes"),
        ({"bits": "auto", "max_error": 0.5}, "leaves them to a wish in bytes"),
        ({"bits": "auto", "plan": Path("p.yaml")}, "leaves them to a wish in bytes"),
        ({"group": 32}, "no bits of integers were given. Give bits from 2 to 8 with it (--bits)"),
        ({"group": 32, "bits": "float16"}, "no bits of integers"),
        ({"group": 32, "bits": "auto", "max_bytes": 9}, "no bits of integers"),
        ({"group": 32, "plan": Path("p.yaml")}, "no bits of integers"),
        *(
            ({"group": group, "bits": 4}, "group must be a whole number from 8")
            for group in (0, 7, 2**40 + 1, True, 8.0)
        ),
        ({"others": "int8"}, "others must be float16 or bfloat16, but 'int8' was given"),
        ({"others": "float32"}, "others must be float16 or bfloat16"),
        *(({"max_bytes": size}, f"but {size!r} was given") for size in (0, -1, 4e5, True)),
        *(
            ({"max_bytes": size}, f"max_bytes {size!r} is not a size")
            for size in ("", "0", "0.5", "4x", "-4k", "1_000")
        ),
        ({"max_bytes": 400, "target_ratio": 4}, "both given. Give one of them"),
        ({"max_bytes": 400, "max_params": 4}, "both given. Give one of them"),
        ({"of": "bytes"}, "of says what a ratio or a size is of, here bytes, but there is none"),
        ({"of": "file", "max_error": 0.5}, "of says what a ratio or a size is of, here file, but there is none"),
        ({"of": "bytes", "max_activation_error": 0.5}, "but there is none"),
        ({"of": "file", "max_params": 5}, "a number of parameters was given, but of says file"),
        ({"of": "letters"}, "of says what"),
        ({"of": "letters", "max_bytes": 5}, "of must be one of matrices, model, bytes, file"),
        ({"max_bytes": 400, "tucker_rank": 3}, "a wish leaves the ranks to be chosen"),
        ({"max_bytes": 400, "plan": Path("p.yaml")}, "a wish leaves the ranks to be chosen"),
        ({"bits": 4, "plan": Path("p.yaml")}, "a plan says it all"),
        ({"bits": "float16", "plan": Path("p.yaml")}, "a plan says it all"),
        ({"bits": 4, "order": 2}, "leave the matrices dense, but order was given"),
        ({"bits": 4, "in_modes": (4, 5), "out_modes": (4, 5)}, "dense, but in_modes, out_modes was given"),
        ({"bits": 4, "input_shape": (4, 5)}, "dense, but input_shape was given"),
        ({"bits": 4, "gates": "separate", "order_units": True}, "dense, but gates, order_units was given"),
        ({"bits": 4, "objective": "speed"}, "dense, but objective was given"),
        ({"plan": Path("plan.yaml"), "objective": "speed"}, "a plan says it all"),
        ({"objective": "fast"}, "objective must be 'size' or 'speed', but 'fast' was given"),
    ],
    ids=str,
)
def test_bits_and_bytes_that_cannot_be_or_contradict_one_another_are_refused_in_words(given, words):
    with pytest.raises(BTCompressError) as refused:
        FactorizeStep(**given)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 300


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
