import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import btcompress
from btcompress import compression
from btcompress.demo import Size, Training
from btcompress.demo.video import Video
from btcompress.shapes import BlockTermShape
from forms import in_blocks


@pytest.fixture(autouse=True)
def _plain_output(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.ModuleDict({"lstm": nn.LSTM(64, 32), "head": nn.Linear(32, 5)}).state_dict(), path)
    return path


def test_factorize_writes_beside_the_input_and_report_says_the_same(model, run):
    out, err = run("factorize", model, "--cp-rank", "1", "--tucker-rank", "4")
    result = model.parent / "model.bt.safetensors"
    assert str(result) in out
    assert err == ""
    told = run("report", result)[0]
    assert told in out
    for words in ("lstm.weight_ih_l0", "128 x 64", "equal size", "whole model"):
        assert words in told


def test_json_is_one_object_that_counts_the_file(model, tmp_path, run):
    target = tmp_path / "out.safetensors"
    value = json.loads(run("factorize", model, "-o", target, "--json", "--tucker-rank", "3,3")[0])
    assert value["matrices"][0]["tucker_ranks"] == [3, 3]
    assert value["model"]["bytes_after"] == target.stat().st_size
    assert value["model"]["bytes_before"] == sum(tensor.nbytes for tensor in torch.load(model).values())
    assert value["model"]["file_bytes_before"] == model.stat().st_size
    assert value["model"]["params_after"] == sum(tensor.numel() for tensor in load_file(target).values())
    assert json.loads(run("report", target, "--json")[0]) == value


def test_same_command_and_seed_write_the_same_bytes(model, tmp_path, run):
    for name in ("a", "b"):
        run("factorize", model, "-o", tmp_path / name, "--cp-rank", "2", "--seed", "7", "--restarts", "1")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_existing_result_is_kept_unless_forced(model, run):
    result = model.parent / "model.bt.safetensors"
    result.write_text("precious")
    _, err = run("factorize", model, code=2)
    assert "--force" in err
    assert result.read_text() == "precious"
    run("factorize", model, "--force")
    assert btcompress.load(result).matrices


def test_the_input_itself_is_never_overwritten(model, run):
    before = model.read_bytes()
    _, err = run("factorize", model, "-o", model, "--force", code=2)
    assert err.startswith("Error: ")
    assert model.read_bytes() == before


def test_dry_run_shows_the_plan_and_writes_nothing(model, run):
    out, _ = run("factorize", model, "--dry-run")
    assert "128 x 64" in out
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.pt"]
    planned = json.loads(run("factorize", model, "--dry-run", "--json")[0])["matrices"][0]
    done = json.loads(run("factorize", model, "--json")[0])["matrices"][0]
    assert planned.items() <= done.items()


def test_matrices_of_every_kind_are_inspected_and_factorized(model, run):
    kinds = ("--matrices", "recurrent, linear", "--cp-rank", "1", "--tucker-rank", "2")
    inspected = json.loads(run("inspect", model, *kinds, "--json")[0])["matrices"]
    assert [row["name"] for row in inspected] == ["lstm.weight_hh_l0", "head.weight"]
    done = json.loads(run("factorize", model, *kinds, "--json")[0])
    assert all(row.items() <= matrix.items() for row, matrix in zip(inspected, done["matrices"], strict=True))
    result = model.parent / "model.bt.safetensors"
    assert json.loads(run("report", result, "--json")[0]) == done
    told, _ = run("report", result, "--against", model)
    assert "5 x 32" in told
    assert "128 x 32" in told


def test_inspect_names_lstms_and_what_looks_alike(tmp_path, run):
    path = tmp_path / "weights.bin"
    layers = {"gru": nn.GRU(8, 4), "rnn": nn.RNNCell(8, 4), "enc": nn.LSTM(64, 32, 2, bidirectional=True)}
    state = nn.ModuleDict(layers).state_dict()
    torch.save(state | {"cut.weight_ih_l0": torch.ones(8, 4)}, path)
    out, _ = run("inspect", path)
    assert re.search(r"enc +LSTM +64 +32 +2 +2", out)
    assert re.search(r"gru +GRU +8 +4 +1 +1", out)
    assert re.search(r"rnn +RNNCell +8 +4 +1 +1", out)
    assert "cut: cut.weight_hh_l0 missing" in out
    value = json.loads(run("inspect", path, "--json")[0])
    assert [entry["kind"] for entry in value["lstms"]] == ["lstm"]
    assert [entry["kind"] for entry in value["grus"]] == ["gru"]
    assert [(entry["kind"], entry["nonlinearity"]) for entry in value["rnns"]] == [("rnn_cell", "tanh")]
    assert [entry["name"] for entry in value["others"]] == ["cut"]
    assert "rnn: a plain RNN, taken to apply tanh" in value["notices"][-1]


def test_training_takes_the_gpu_that_was_named(monkeypatch):
    current = []

    @contextmanager
    def device(name):
        current.append(name)
        yield
        current.append("left")

    monkeypatch.setattr(compression, "check_device", lambda name: name)
    monkeypatch.setattr("btcompress.fit.blockfit.check_device", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(compression, "prepare", lambda *_, **__: current.append("prepared"))
    monkeypatch.setattr(compression, "finish", lambda *_: current.append("finished"))
    for name in ("cpu", "cuda", "cuda:1"):
        btcompress.compress({}, btcompress.FactorizeStep(device=name))
    assert current == ["prepared", "finished"] * 2 + ["cuda:1", "prepared", "finished", "left"]


def test_report_against_measures_anew(model, run):
    run("factorize", model)
    result = model.parent / "model.bt.safetensors"
    recorded = json.loads(run("report", result, "--json")[0])
    anew = json.loads(run("report", result, "--against", model, "--json")[0])
    assert anew["matrices"][0]["weight_error"] == pytest.approx(recorded["matrices"][0]["weight_error"], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--in-modes", "8,20,20"], "in_modes 8,20,20 multiplies to 3200, but lstm.weight_ih_l0 has 64 inputs"),
        (["--in-modes", "8,x"], "8,20,20,18"),
        (["--tucker-rank", "0"], "at least 1"),
        (["--cp-rank", "0"], "--cp-rank"),
        (["--layer", "decoder"], "decoder"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--device", "abacus"], "abacus"),
        (["-o", "missing-folder/out.safetensors"], "missing-folder"),
        (["--gates", "some"], "some"),
        (["--matrices", "input,hidden"], "input, recurrent, linear, but input, hidden was given"),
        (["--layer", "head"], "head.weight does, but is linear"),
        (["--container", "ema"], "ema"),
        (["--target-ratio", "0.5"], "above 1"),
        (["--target-ratio", "1e9"], "What is in reach is"),
        (["--target-ratio", "9", "--max-params", "5"], "Give one of them"),
        (["--max-error", "0"], "between 0 and 1"),
        (["--max-error", "0.5", "--cp-rank", "1"], "leaves the ranks"),
        (["--max-error", "0.5", "--plan", "plan.yaml"], "leaves the ranks"),
        (["--of", "model"], "--target-ratio"),
        (["--of", "bytes"], "--max-bytes"),
        (["--of", "file", "--max-error", "0.5"], "of says what a ratio or a size is of, here file"),
        (["--of", "file", "--max-params", "5"], "a number of parameters was given, but of says file"),
        (["--of", "letters"], "bytes"),
        (["--max-bytes", "4x"], "max_bytes '4x' is not a size such as 8G, 1.5M, 400k"),
        (["--max-bytes", "0"], "is not a size"),
        (["--max-bytes", "4k", "--target-ratio", "2"], "Give one of them"),
        (["--max-bytes", "4k", "--cp-rank", "1"], "leaves the ranks"),
        (["--max-bytes", "4k", "--plan", "plan.yaml"], "leaves the ranks"),
        (["--bits", "9"], "bits must be auto, a whole number from 2 to 8, float16 or bfloat16, but '9' was given"),
        (["--bits", "int4/32"], "--group"),
        (["--bits", "auto"], "leaves them to a wish in bytes, but there is none"),
        (["--bits", "auto", "--target-ratio", "2"], "leaves them to a wish in bytes, but there is none"),
        (["--bits", "4", "--order", "2"], "leave the matrices dense, but order was given"),
        (["--bits", "4", "--group", "7"], "group must be a whole number from 8"),
        (["--bits", "bfloat16", "--group", "32"], "no bits of integers were given"),
        (["--group", "32"], "no bits of integers were given"),
        (["--others", "int8"], "--others"),
        (["--plan", "plan.yaml", "--bits", "4"], "a plan says it all"),
        (["--max-memory", "4x"], "--max-memory '4x' is not a size such as 8G"),
        (["--plan", "plan.yaml"], "plan.yaml cannot be read"),
        (["--plan", "model.pt"], "model.pt is"),
        (["--plan", "plan.yaml", "--tucker-rank", "3"], "a plan says it all"),
        (["--plan", "plan.yaml", "--layer", "lstm"], "a plan says it all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_requests_are_one_clear_error_with_exit_code_2_and_write_nothing(model, arguments, words, run):
    out, err = run("factorize", model, *arguments, code=2, cwd=model.parent)
    assert words in err
    assert "Traceback" not in err
    assert out == ""
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.pt"]


def test_plan_shows_forms_and_curves_and_writes_nothing(model, run):
    out, err = run("plan", model, "--target-ratio", "4")
    assert err == ""
    for words in ("at least 4 for the matrices", "lstm.weight_ih_l0", "128 x 64", "equal size", "1,024x"):
        assert words in out
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.pt"]
    value = json.loads(run("plan", model, "--target-ratio", "4", "--json")[0])
    (matrix,) = value["matrices"]
    assert value["totals"]["matrices"]["ratio"] >= 4
    given = {name: wish for name, wish in value["wish"].items() if wish is not None}
    assert given == {"target_ratio": 4.0, "of": "matrices"}
    assert matrix["chosen"] in matrix["curve"]
    assert matrix["chosen"]["weight_error"] <= matrix["svd_error"]
    assert [point["params"] for point in matrix["curve"]] == sorted(point["params"] for point in matrix["curve"])


def test_what_is_planned_is_what_factorize_does_with_the_wish_or_the_plan(model, tmp_path, run):
    wish, plan = ("--target-ratio", "9", "--of", "matrices"), tmp_path / "plan.yaml"
    planned = json.loads(run("plan", model, *wish, "--json", "--save-plan", plan)[0])["matrices"][0]["chosen"]
    direct = json.loads(run("factorize", model, *wish, "--json", "-o", tmp_path / "a")[0])["matrices"][0]
    from_plan = json.loads(run("factorize", model, "--plan", plan, "--json", "-o", tmp_path / "b")[0])["matrices"][0]
    assert direct == from_plan
    assert direct["params_after"] == planned["params"]
    assert direct["weight_error"] == pytest.approx(planned["weight_error"], rel=0.02)
    stored = load_file(tmp_path / "a")
    assert stored.keys() == load_file(tmp_path / "b").keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in load_file(tmp_path / "b").items())


def test_wish_and_plan_do_the_same_with_orders_as_planned(tmp_path, run):
    model = nn.LSTM(20, 24)
    part = BlockTermShape((4, 5), (24, 4), (2, 2), n_gates=4, core="identity")
    with torch.no_grad():
        model.weight_ih_l0.copy_(in_blocks(part, torch.Generator().manual_seed(0)))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    wish, plan = ("--max-params", "160", "--order", "2", "--order-units"), tmp_path / "plan.yaml"
    out = run("plan", tmp_path / "model.pt", *wish, "--save-plan", plan)[0]
    assert "rows and columns in order" in out
    planned = json.loads(run("plan", tmp_path / "model.pt", *wish, "--json")[0])["matrices"][0]["chosen"]
    assert planned["row_order"]
    assert planned["column_order"]
    command = ("factorize", tmp_path / "model.pt", "--json", "-o")
    direct = json.loads(run(*command, tmp_path / "a", *wish)[0])["matrices"][0]
    for extra in ((), ("--order-units",)):
        from_plan = json.loads(run(*command, tmp_path / "b", "--plan", plan, "--force", *extra)[0])["matrices"][0]
        assert from_plan == direct
    assert direct["row_order"]
    assert direct["params_after"] == planned["params"] <= 160
    assert direct["weight_error"] <= planned["weight_error"]
    assert "rows and columns in order" in run("report", tmp_path / "a")[0]
    dry = json.loads(run(*command, tmp_path / "c", "--plan", plan, "--dry-run")[0])["matrices"][0]
    assert dry.items() <= direct.items()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["plan", "--bits", "4"], "--bits alone leaves nothing to plan"),
        (["plan", "--bits", "float16", "--others", "float16"], "Give a wish with it"),
        (["plan", "--others", "float16"], "nothing is wished for"),
        (["plan", "--bits", "9", "--target-ratio", "2"], "bits must be auto, a whole number from 2 to 8"),
        (["plan", "--max-bytes", "4x"], "is not a size"),
        (["inspect", "--bits", "1"], "bits must be auto, a whole number from 2 to 8"),
        (["inspect", "--bits", "auto"], "leaves them to a wish in bytes"),
        (["inspect", "--group", "32"], "no bits of integers were given"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bits_and_bytes_that_cannot_be_planned_or_shown_are_one_clear_error(model, command, words, run):
    name, *arguments = command
    save = ("--save-plan", "plan.yaml") if name == "plan" else ()
    out, err = run(name, model, *arguments, *save, code=2, cwd=model.parent)
    assert words in err
    assert out == ""
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.pt"]


def test_existing_plans_are_kept_unless_forced(model, run):
    plan = model.parent / "plan.yaml"
    plan.write_text("precious")
    _, err = run("plan", model, "--max-error", "0.5", "--save-plan", plan, code=2)
    assert "--force" in err
    assert plan.read_text() == "precious"
    run("plan", model, "--max-error", "0.5", "--save-plan", plan, "--force")
    assert "weight_ih_l0" in plan.read_text()


def test_dry_run_of_a_wish_shows_its_forms(model, run):
    out, _ = run("factorize", model, "--max-error", "0.5", "--dry-run")
    assert "low rank" in out or "without a core" in out
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.pt"]


@pytest.mark.parametrize("command", ["factorize", "inspect", "report"])
def test_missing_and_foreign_files_are_refused(command, tmp_path, run):
    _, err = run(command, tmp_path / "nowhere.pt", code=2)
    assert "nowhere.pt" in err
    (tmp_path / "text.pt").write_text("hello")
    _, err = run(command, tmp_path / "text.pt", code=2)
    assert "text.pt" in err
    assert "Traceback" not in err


def test_compressed_files_are_told_from_dense_ones(model, run):
    run("factorize", model)
    _, err = run("factorize", model.parent / "model.bt.safetensors", "-o", model.parent / "again.safetensors", code=2)
    assert "lstm.weight_ih_l0 are block terms already, and no other matrix was chosen" in err
    _, err = run("report", model, code=2)
    assert "not a compressed checkpoint" in err


def test_every_option_in_the_documents_exists(run):
    helps = " ".join(
        run(*command.split(), "--help")[0]
        for command in ("", "factorize", "plan", "inspect", "report", "bench", "export", "finetune", "run", "demo")
    )
    root = Path(__file__).parent.parent
    for document in (root / "README.md", *(root / "docs").glob("*.md")):
        for option in re.findall(r"`(?:btcompress \w+ [^`]*)?(--[a-z-]+)", document.read_text()):
            assert option in helps + " --version", f"{document.name}: {option}"


def test_module_runs_as_the_command_and_errors_exit_with_2_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "btcompress", "inspect", str(tmp_path / "nowhere.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


@pytest.fixture
def sequences(model, run):
    run("factorize", model)
    path = model.parent / "data.npz"
    x = torch.randn(120, 5, 64, generator=torch.Generator().manual_seed(0))
    np.savez(path, x=(x * 40).clamp(-128, 127).to(torch.int8).numpy())
    return path


def test_finetune_wins_back_what_was_lost_and_report_says_so(model, sequences, run):
    start, tuned = model.parent / "model.bt.safetensors", model.parent / "tuned.safetensors"
    options = ("--teacher", model, "--data", sequences, "--scale", "1/40", "--epochs", "3", "--lr", "5e-3", "--cpu")
    out, err = run("finetune", start, *options, "-o", tuned)
    assert err == ""
    assert "hidden-state error (lower is better)" in out
    assert str(tuned) in out
    assert run("report", tuned)[0] in out
    trained = json.loads(run("report", tuned, "--json")[0])["finetuned"][0]
    assert trained["dense"] == 0
    assert trained["after"] < trained["before"]
    assert json.loads(run("report", start, "--json")[0])["finetuned"] == []
    again = json.loads(run("finetune", tuned, *options, "-o", model.parent / "again.safetensors", "--json")[0])
    assert [step["before"] for step in again["finetuned"]] == [
        trained["before"],
        pytest.approx(trained["after"], rel=1e-6),
    ]


def test_report_compares_with_other_forms_on_weights_and_on_inputs(model, sequences, run):
    command = ("report", model.parent / "model.bt.safetensors", "--against", model)
    options = ("--yardsticks", "--inputs", sequences, "--scale", "1/40", "--lstm", "lstm")
    row = json.loads(run(*command, *options, "--json")[0])["matrices"][0]
    out, err = run(*command, *options)
    assert err == ""
    low_rank, on_inputs, *_ = row["yardsticks"]
    assert [other["form"] for other in row["yardsticks"]] == [
        *("low_rank", "low_rank_on_inputs", "tensor_train", "greedy"),
    ]
    assert on_inputs["weighted_activation_error"] < low_rank["weighted_activation_error"]
    for form in (row, *row["yardsticks"]):
        # On independent inputs of equal size, the two errors estimate the same.
        assert form is on_inputs or form["activation_error"] == pytest.approx(form["weight_error"], rel=0.05)
        assert f"{form['activation_error']:.3f}" in out
        assert f"{form['weighted_activation_error']:.3f}" in out
    unscaled = json.loads(run(*command, "--inputs", sequences, "--json")[0])["matrices"][0]
    assert unscaled["activation_error"] == pytest.approx(row["activation_error"], rel=1e-5)
    assert unscaled["yardsticks"] == []
    assert "tensor train" in run(*command, "--yardsticks")[0]
    assert "activation" in run(*command, "--inputs", sequences)[0]
    assert "tensor train" not in run(*command)[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--yardsticks"], "--against MODEL"),
        (["--inputs", "data.npz"], "--against MODEL"),
        (["--against", "model.pt", "--scale", "1/255"], "--inputs FILE"),
        (["--against", "model.pt", "--lstm", "lstm"], "--inputs FILE"),
        (["--against", "model.pt", "--inputs", "data.npz", "--scale", "0"], "1/255"),
        (["--against", "model.pt", "--inputs", "data.npz", "--lstm", "decoder"], "no LSTM or linear layer named"),
        (["--against", "model.pt", "--inputs", "nowhere.npz"], "nowhere.npz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_comparisons_are_one_clear_error(model, sequences, arguments, words, run):
    out, err = run("report", "model.bt.safetensors", *arguments, code=2, cwd=model.parent)
    assert words in err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--data", "nowhere.at_all:factory"], "no module nowhere"),
        (["--data", "data.npz", "--scale", "1/0"], "1/255"),
        (["--data", "data.npz", "--lr", "0"], "learning_rate"),
        (["--data", "data.npz", "--layer", "decoder"], "no LSTM named 'decoder'"),
        (["--data", "data.npz"], "--teacher"),
        (["--data", "data.npz", "--val-fraction", "1"], "--val-fraction"),
        (["--data", "data.npz", "--resume"], "nothing to resume"),
        (["--data", "data.npz", "--teacher", "model.bt.safetensors"], "compressed already"),
        (["--data", "data.npz", "--val", "text.csv"], "text.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_finetunings_are_one_clear_error_and_write_nothing(model, sequences, arguments, words, run):
    before = sorted(path.name for path in model.parent.iterdir())
    if "--resume" in arguments:
        arguments = [*arguments, "--teacher", "model.pt"]
    command = ("finetune", "model.bt.safetensors", *arguments, "-o", "out.safetensors", "--cpu")
    _, err = run(*command, code=2, cwd=model.parent)
    assert words in err
    assert "Traceback" not in err
    assert sorted(path.name for path in model.parent.iterdir()) == before


@pytest.fixture
def tiny_video():
    once = Training(1, 1e-2)
    return Video(12, 16, Size(60, 40, 8, 1, 2, dense=once, tuning=once, scratch=once, calibration=once))


RIVALS = ("tensor train", "low rank", "fewer hidden units", "rounded")


@pytest.mark.parametrize(("size", "options"), [("SMALL", []), ("FULL", ["--full", "--task", "video", "--rivals"])])
def test_demo_tells_its_story(size, options, tiny_video, tmp_path, run, monkeypatch):
    monkeypatch.setattr(f"btcompress.demo.{size}", {"video": tiny_video})
    out, _ = run("demo", *options, "--output", "new/folder", cwd=tmp_path)
    folder = tmp_path / "new" / "folder"
    for words in ("on 40 test clips", "lstm.weight_ih_l0", "accuracy on clips held back, %", "times smaller"):
        assert words in out
    loaded = btcompress.load(folder / "dense.bt.safetensors")
    assert list(loaded.matrices) == ["lstm.weight_ih_l0"]
    tuned = btcompress.load(folder / "tuned.bt.safetensors")
    assert [step["step"] for step in tuned.history] == ["factorize", "finetune"]
    for name in ("dense", "factorized", "calibrated without labels", "factorized, then fine-tuned", "from scratch"):
        assert re.search(rf"{name} +[\d,]+ +[\d.]+x +[\d.]+ %", out)
    found = {name for name in RIVALS if re.search(rf"{name}.* +[\d,]+ +[\d.]+x +[\d.]+ %", out)}
    assert found == (set(RIVALS) if "--rivals" in options else set())
    named = set(re.findall(r": new/folder/(\S+)\n", out))
    left = {path.name for path in folder.iterdir()}
    assert left - named == {"random.bt.safetensors", "tuned.bt.metrics.jsonl", "scratch.bt.metrics.jsonl"}
    assert named <= left


@pytest.mark.parametrize(
    ("options", "module", "extra"),
    [
        ([], "sklearn.datasets", "demo"),
        (["--task", "images"], "matplotlib.figure", "demo"),
        (["--task", "captions", "--full"], "sacrebleu.metrics.bleu", "demo"),
        (["--rivals"], "tltorch", "rivals"),
    ],
)
def test_what_a_demo_lacks_is_told_before_anything_is_made(options, module, extra, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("btcompress.demo.story.draw_data", None)
    error = run("demo", *options, "--output", "new", cwd=tmp_path, code=2)[1]
    assert error.rstrip().endswith(f"which is not installed. Run pip install 'btcompress[{extra}]'.")
    assert not (tmp_path / "new").exists()


def test_demo_replaces_no_file_that_is_there_unless_forced(tiny_video, tmp_path, run, monkeypatch):
    monkeypatch.setattr("btcompress.demo.SMALL", {"video": tiny_video})
    folder = tmp_path / "btcompress-demo-video"
    folder.mkdir()
    for name in ("dense.pt", "train.npz", "curves.png", "tuned.bt.metrics.jsonl", "scratch.bt.metrics.jsonl"):
        (folder / name).write_text("precious")
        assert "--force" in run("demo", cwd=tmp_path, code=2)[1]
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "precious"
        (folder / name).unlink()
    (folder / name).write_text("precious")
    out, _ = run("demo", "--force", cwd=tmp_path)
    assert run("demo", "--force", cwd=tmp_path)[0] == out
    assert btcompress.load(folder / "tuned.bt.safetensors").matrices


def test_calibration_brings_the_hidden_states_nearer_and_says_so(model, sequences, run):
    wish = ("--target-ratio", "2", "--matrices", "input,recurrent")
    how = ("--calibration", sequences, "--scale", "1/40", "--calibration-epochs", "2")
    out, err = run("factorize", "model.pt", *wish, *how, "-o", "calibrated.safetensors", cwd=model.parent)
    assert err == ""
    assert "hidden-state error" in out
    assert "activation" in out
    shown, _ = run("report", "calibrated.safetensors", "--json", cwd=model.parent)
    (calibration,) = json.loads(shown)["calibrated"]
    assert calibration["hidden_state_error_after"] < calibration["hidden_state_error_before"]
    assert all(row["activation_error"] > 0 for row in json.loads(shown)["matrices"])


def test_plans_are_made_on_sample_inputs_and_kept(model, sequences, run):
    how = ("--matrices", "input,recurrent", "--calibration", sequences, "--scale", "1/40")
    wish = ("--max-activation-error", "0.8", "--order", "2")
    plan, err = run("plan", "model.pt", *wish, *how, "--json", "--save-plan", "plan.yaml", cwd=model.parent)
    assert err == ""
    value = json.loads(plan)
    assert value["wish"]["max_activation_error"] == 0.8
    for row in value["matrices"]:
        assert row["on_inputs"]
        assert row["chosen"]["activation_error"] <= 0.8
        assert row["chosen"]["weight_error"] is None
    shown, _ = run("plan", "model.pt", *wish, *how, cwd=model.parent)
    assert "low rank at" in shown
    assert "activation" in shown
    how = (*how[2:], "--calibration-epochs", "0")
    for name, asked in (("a", (*wish, *how, "--matrices", "input,recurrent")), ("b", ("--plan", "plan.yaml", *how))):
        run("factorize", "model.pt", *asked, "-o", f"{name}.safetensors", cwd=model.parent)
    matrices = [
        json.loads(run("report", f"{name}.safetensors", "--json", cwd=model.parent)[0])["matrices"] for name in "ab"
    ]
    assert matrices[0] == matrices[1]
    for row, foretold in zip(matrices[0], value["matrices"], strict=True):
        assert row["params_after"] == foretold["params_after"]
        assert row["weighted_activation_error"] > 0


def test_an_activation_error_needs_sample_inputs(model, run):
    for command in ("plan", "factorize"):
        _, err = run(command, "model.pt", "--max-activation-error", "0.4", code=2, cwd=model.parent)
        assert "--calibration" in err
    _, err = run("plan", "model.pt", "--max-activation-error", "0.4", "--max-error", "0.4", code=2, cwd=model.parent)
    assert "both given" in err
    assert not list(model.parent.glob("*.safetensors"))


def test_bad_calibration_is_one_clear_error_and_writes_nothing(model, run):
    np.save(model.parent / "x.npy", np.zeros((30, 5, 63), np.float32))
    np.save(model.parent / "zeros.npy", np.zeros((30, 5, 64), np.float32))
    before = sorted(path.name for path in model.parent.iterdir())
    bad = (
        ("x.npy", "64 inputs at each step"),
        ("none.npy", "is not a file"),
        ("zeros.npy", "inputs on the sequences are zero"),
    )
    for data, words in bad:
        _, err = run("factorize", "model.pt", "--calibration", data, code=2, cwd=model.parent)
        assert words in err
        assert sorted(path.name for path in model.parent.iterdir()) == before


@pytest.mark.parametrize("how", [("--target-ratio", "3"), ("--cp-rank", "1")], ids=["wish", "ranks"])
def test_inputs_that_are_all_zero_do_for_matrices_that_do_not_meet_them(how, model, run):
    np.save(model.parent / "zeros.npy", np.zeros((30, 5, 64), np.float32))
    only_u = ("--matrices", "input,recurrent", "--layer", "!lstm.weight_ih_l0", "--calibration", "zeros.npy")
    out, _ = run("factorize", "model.pt", *how, *only_u, "--dry-run", cwd=model.parent)
    assert "lstm.weight_hh_l0" in out
