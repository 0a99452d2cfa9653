"""Bits and bytes from end to end: commands, library calls and recipes."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress import SampleInputs

LSTM = ("lstm.weight_ih_l0", "lstm.weight_hh_l0")
ALL = ("--matrices", "input,recurrent")
BOTH = ("input", "recurrent")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(60, 24)
        self.lstm = nn.LSTM(24, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.lstm(self.words(x))[0])


@pytest.fixture
def place(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        for matrix in (model.lstm.weight_ih_l0, model.lstm.weight_hh_l0):
            matrix.mul_(3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    generator = np.random.default_rng(0)
    few, many = generator.normal(size=(60, 8, 6)) / 2, generator.normal(size=(60, 8, 24)) / 10
    x = few @ generator.normal(size=(6, 24)) + many
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def dense():
    return torch.load("model.pt")


def report(run, *arguments):
    return json.loads(run("report", *arguments, "--json")[0])


def factorized(run, *options, name="out.safetensors"):
    return json.loads(run("factorize", "model.pt", "-o", name, "--json", *options)[0])


JOBS = {
    "bits": ([*ALL, "--bits", "4"], {"matrices": BOTH, "bits": 4}),
    "float": (
        [*ALL, "--bits", "float16", "--others", "bfloat16"],
        {"matrices": BOTH, "bits": "float16", "others": "bfloat16"},
    ),
    "bits and group": ([*ALL, "--bits", "int3", "--group", "16"], {"matrices": BOTH, "bits": 3, "group": 16}),
    "ranks": (["-n", "2", "-r", "3", "--bits", "6"], {"cp_rank": 2, "tucker_rank": 3, "bits": 6}),
    "parameters": ([*ALL, "--target-ratio", "1.7", "--bits", "8"], {"matrices": BOTH, "target_ratio": 1.7, "bits": 8}),
    "ratio of bytes": (
        [*ALL, "--target-ratio", "8", "--of", "bytes"],
        {"matrices": BOTH, "target_ratio": 8, "of": "bytes"},
    ),
    "bytes": ([*ALL, "--max-bytes", "1.5k", "--bits", "auto"], {"matrices": BOTH, "max_bytes": 1500}),
    "bytes of the file": (
        [*ALL, "--max-bytes", "16.5k", "--of", "file", "--others", "float16"],
        {"matrices": BOTH, "max_bytes": "16.5k", "of": "file", "others": "float16"},
    ),
    "bits on inputs": (
        [*ALL, "--bits", "3", "--calibration", "x.npz", "--calibration-epochs", "2"],
        {"matrices": BOTH, "bits": "3", "calibration": (SampleInputs("x.npz"),), "calibration_epochs": 2},
    ),
    "bytes on inputs": (
        [*ALL, "--target-ratio", "10", "--of", "bytes", "--calibration", "x.npz", "--calibration-epochs", "1"],
        {
            "matrices": BOTH,
            "target_ratio": 10,
            "of": "bytes",
            "bits": "auto",
            "calibration": (SampleInputs("x.npz"),),
            "calibration_epochs": 1,
        },
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_the_library_the_command_and_a_recipe_give_the_same_bytes_for_the_same_job(job, place, run):
    options, choices = JOBS[job]
    run("factorize", "model.pt", "-o", "by_command.safetensors", "--save-recipe", "recipe.yaml", *options)
    btcompress.save(btcompress.factorize("model.pt", **choices), "by_library.safetensors")
    (place / "recipe.yaml").write_text((place / "recipe.yaml").read_text().replace("by_command", "by_recipe"))
    run("run", "recipe.yaml")
    names = ("by_command", "by_library", "by_recipe")
    contents = {(place / f"{name}.safetensors").read_bytes() for name in names}
    assert len(contents) == 1
    written, given = btcompress.to_dense("by_command.safetensors"), dense()
    assert {name: tensor.shape for name, tensor in written.items()} == {name: t.shape for name, t in given.items()}
    assert all(tensor.dtype == given[name].dtype for name, tensor in written.items())
    model = btcompress.apply(Model(), "by_command.safetensors")
    assert torch.isfinite(model(torch.arange(60).view(4, 15))).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_bits_alone_leave_matrices_dense_with_so_many_values_in_a_group(bits, place, run):
    rows = factorized(run, *ALL, "--bits", bits, "--group", "16")["matrices"]
    assert [row["name"] for row in rows] == list(LSTM)
    compressed = btcompress.load("out.safetensors")
    assert set(compressed.rounded) == set(LSTM)
    assert not compressed.matrices
    written, given = compressed.dense_state_dict(), dense()
    for row in rows:
        assert (row["form"], row["precision"]) == ("dense", f"int{bits}/16")
        n_groups = row["shape"][0] * -(-row["shape"][1] // 16)
        codes, zeros = row["params_before"] * bits, n_groups * (bits + 1)
        assert row["bytes_after"] == -(-codes // 8) + -(-zeros // 8) + 2 * n_groups
        groups = [group for part in written[row["name"]].split(16, dim=1) for group in part]
        assert 2 < max(len(group.unique()) for group in groups) <= 2**bits
        error = float((written[row["name"]] - given[row["name"]]).norm() / given[row["name"]].norm())
        assert row["weight_error"] == pytest.approx(error, rel=1e-4)
        assert error < 2.0 ** (1 - bits)
    for name, tensor in given.items():
        assert torch.equal(tensor, written[name]) or name in LSTM


def test_half_floats_are_just_the_rounded_numbers(place, run):
    rows = factorized(run, *ALL, "--bits", "bfloat16", "--others", "float16")["matrices"]
    assert [row["precision"] for row in rows] == ["bfloat16", "bfloat16"]
    assert all(2 * row["bytes_after"] == row["bytes_before"] for row in rows)
    written = btcompress.to_dense("out.safetensors")
    for name, tensor in dense().items():
        assert torch.equal(written[name], tensor.to(torch.bfloat16 if name in LSTM else torch.float16).float()), name


def test_bits_with_ranks_are_those_of_cores_and_factors(place, run):
    (row,) = factorized(run, "-r", "3", "--bits", "4", "--others", "float16")["matrices"]
    (plain,) = factorized(run, "-r", "3", name="plain.safetensors")["matrices"]
    assert (row["form"], row["precision"]) == ("block_terms", "int4/32")
    assert row["tucker_ranks"] == plain["tucker_ranks"]
    assert row["params_after"] == plain["params_after"]
    assert row["bytes_after"] < plain["bytes_after"] / 4
    assert plain["weight_error"] <= row["weight_error"] < 1
    compressed = btcompress.load("out.safetensors")
    assert all(name in compressed.stored for name in compressed.tensors if name.startswith("lstm.weight_ih_l0."))
    whole = report(run, "out.safetensors", "--against", "model.pt")["matrices"]
    assert whole[0]["weight_error"] == pytest.approx(row["weight_error"], rel=1e-6)


def bytes_of_matrices(told):
    return sum(row["bytes_before"] for row in told["matrices"]), sum(row["bytes_after"] for row in told["matrices"])


@pytest.mark.parametrize("bits", [(), ("--bits", "auto"), ("--bits", "3"), ("--bits", "float16")], ids=" ".join)
def test_a_wish_in_bytes_is_kept_on_the_bytes_that_are_stored(bits, place, run):
    left_dense = 4 * sum(dense()[name].numel() for name in LSTM)
    of_bytes = () if bits else ("--of", "bytes")  # goes without saying of bytes
    for options, most in (
        (("--target-ratio", "9", "--of", "bytes"), left_dense / 9),
        (("--max-bytes", "1.4k", *of_bytes), 1400),
    ):
        told = factorized(run, *ALL, *options, *bits, "--force")
        before, after = bytes_of_matrices(told)
        assert before == left_dense
        assert after <= most
        if bits[-1:] in ((), ("auto",)):
            assert after > 0.8 * most
        elif bits == ("--bits", "3"):
            assert {row["precision"] for row in told["matrices"]} == {"int3/32"}
        else:
            assert {row["precision"] for row in told["matrices"]} == {"float16"}


def test_a_wish_in_bytes_of_the_file_is_kept_by_the_file(place, run):
    state = nn.LSTM(64, 24).state_dict()
    torch.save(state, "model.pt")
    n_bytes = sum(tensor.nbytes for tensor in state.values())
    for options, most in (
        (("--target-ratio", "1.7", "--of", "file"), n_bytes / 1.7),
        (("--max-bytes", "19k", "--of", "model"), 19_000),
        (("--max-bytes", "14k", "--of", "file", "--others", "float16"), 14_000),
    ):
        told = factorized(run, *options, "--force")
        size = (place / "out.safetensors").stat().st_size
        assert told["model"]["bytes_after"] == size
        assert 0.6 * most < size <= most


def test_auto_is_what_a_wish_in_bytes_does_anyway(place, run):
    for name, more in (("a", ()), ("b", ("--bits", "auto"))):
        factorized(run, *ALL, "--max-bytes", "1.3k", *more, name=name)
    assert (place / "a").read_bytes() == (place / "b").read_bytes()


def test_bits_with_a_wish_in_parameters_are_those_of_the_same_forms(place, run):
    plain = factorized(run, *ALL, "--target-ratio", "1.7", name="plain")["matrices"]
    told = {row["name"]: row for row in factorized(run, *ALL, "--target-ratio", "1.7", "--bits", "8")["matrices"]}
    assert plain
    for same in plain:
        row = told.pop(same["name"])
        assert row["precision"] == "int8/32"
        assert row["tucker_ranks"] == same["tucker_ranks"]
        assert row["params_after"] == same["params_after"]
        assert row["bytes_after"] < same["bytes_after"] / 2
    assert all((row["form"], row["precision"]) == ("dense", "int8/32") for row in told.values())


@pytest.mark.parametrize("job", ["bits", "float", "bits and group", "ranks"])
def test_a_dry_run_and_inspect_say_beforehand_how_things_are_stored(job, place, run):
    options, _ = JOBS[job]
    before = sorted(path.name for path in place.iterdir())
    planned = json.loads(run("factorize", "model.pt", *options, "--dry-run", "--json")[0])["matrices"]
    shown, _ = run("factorize", "model.pt", *options, "--dry-run")
    of_inspect = [each for each in options if each != "--others" and each != "bfloat16"]
    assert json.loads(run("inspect", "model.pt", *of_inspect, "--json")[0])["matrices"] == planned
    assert sorted(path.name for path in place.iterdir()) == before
    done = factorized(run, *options)["matrices"]
    assert all(row.items() <= matrix.items() for row, matrix in zip(planned, done, strict=True))
    assert all(row["precision"].split("/")[0] in shown for row in planned)


def test_a_dry_run_of_a_wish_in_bytes_shows_forms_and_bits_within_it(place, run):
    rows = json.loads(run("factorize", "model.pt", *ALL, "--max-bytes", "1.3k", "--dry-run", "--json")[0])["matrices"]
    assert [row["name"] for row in rows] == list(LSTM)
    assert sum(row["bytes_after"] for row in rows) <= 1300
    assert sorted(path.name for path in place.iterdir()) == ["model.pt", "x.npz"]


def test_what_is_planned_in_bytes_is_what_the_plan_file_and_the_wish_do(place, run):
    wish = ("--target-ratio", "9", "--of", "bytes")
    run("plan", "model.pt", *ALL, *wish, "--save-plan", "plan.yaml")
    direct = factorized(run, *ALL, *wish, name="direct")["matrices"]
    from_plan = factorized(run, "--plan", "plan.yaml", "--others", "float16", name="from_plan")
    assert from_plan["matrices"] == direct
    assert any(row["precision"].startswith("int") for row in direct)
    written = btcompress.to_dense("from_plan")
    assert torch.equal(written["head.weight"], dense()["head.weight"].half().float())
    for more in (("--bits", "4"), ("--max-bytes", "4k"), ("--bits", "4", "--group", "64")):
        _, err = run("factorize", "model.pt", "--plan", "plan.yaml", *more, "-o", "refused", code=2)
        assert "given as well" in err
        assert not (place / "refused").exists()


def test_sample_inputs_bring_rounded_hidden_states_nearer(place, run):
    on = ("--calibration", "x.npz", "--calibration-epochs")
    for name, more in (("rounded", ()), ("fed_back", (*on, "0")), ("trained", (*on, "40"))):
        factorized(run, *ALL, "--bits", "2", *more, name=name)
        assert {row["precision"] for row in report(run, name)["matrices"]} == {"int2/32"}
    errors = [
        report(run, name, "--against", "model.pt", "--inputs", "lstm=x.npz")["on_inputs"][0]["hidden_state_error"]
        for name in ("rounded", "fed_back", "trained")
    ]
    assert errors[0] > 1.5 * errors[1]
    assert errors[1] > errors[2]
    assert report(run, "trained")["calibrated"]


def test_an_embedding_that_is_named_exactly_stays_one_in_few_bits(place, run):
    out, _ = run("factorize", "model.pt", "--matrices", "input,linear", "--bits", "8", "-o", "all_but.safetensors")
    assert "words.weight" in " ".join(out.split())
    assert "words.weight" not in btcompress.load("all_but.safetensors").rounded
    rows = factorized(run, "--matrices", "linear", "--layer", "words.weight", "--bits", "8")["matrices"]
    assert [(row["name"], row["form"], row["precision"]) for row in rows] == [("words.weight", "dense", "int8/32")]
    model, given = Model(), Model()
    given.load_state_dict(dense())
    btcompress.apply(model, "out.safetensors")
    assert type(model.words) is nn.Embedding
    x = torch.arange(60).view(4, 15)
    assert 0 < float((model.words(x) - given.words(x)).detach().norm() / given.words(x).detach().norm()) < 0.01


def test_a_recipe_that_rounds_and_fine_tunes_ends_in_the_same_bits(place, run):
    (place / "recipe.yaml").write_text(
        "version: 1\nmodel: model.pt\noutput: small.safetensors\nsteps:\n"
        "- factorize: {matrices: [input, recurrent], bits: int4, group: 16, others: float16}\n"
        "- finetune: {data: x.npz, teacher: model.pt, epochs: 2, lr: 0.003, cpu: true}\n"
    )
    run("run", "recipe.yaml")
    first, last = (report(run, name) for name in ("small.1-factorize.safetensors", "small.safetensors"))
    for before, after in zip(first["matrices"], last["matrices"], strict=True):
        assert after["precision"] == before["precision"] == "int4/16"
        assert after["bytes_after"] == before["bytes_after"]
    assert last["finetuned"][0]["after"] <= last["finetuned"][0]["before"]


def test_a_result_with_block_terms_is_rounded_further(place, run):
    run("factorize", "model.pt", "-o", "first.safetensors", "-r", "3")
    run("factorize", "first.safetensors", "--matrices", "recurrent", "--bits", "4", "-o", "both.safetensors")
    both = btcompress.load("both.safetensors")
    assert (set(both.matrices), set(both.rounded)) == ({LSTM[0]}, {LSTM[1]})
    told = report(run, "both.safetensors", "--against", "model.pt")["matrices"]
    assert [(row["form"], row["precision"]) for row in told] == [("block_terms", "float32"), ("dense", "int4/32")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-bytes", "10"], "reach"),
        (["--max-bytes", "10", "--of", "file"], "reach"),
        (["--target-ratio", "1e6", "--of", "bytes"], "reach"),
        (["--bits", "4", "--layer", "head"], "head.weight does, but is linear"),
        (["--bits", "4", "--calibration", "none.npz"], "is not a file"),
        (["--bits", "4", "--matrices", "linear", "--layer", "words"], "name it exactly, as words.weight"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_clear_error_and_writes_nothing(arguments, words, place, run):
    before = sorted(path.name for path in place.iterdir())
    out, err = run("factorize", "model.pt", *arguments, code=2)
    assert words in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize(("factor", "words"), [(1e7, "float16 scales"), (float("nan"), "finite")])
def test_numbers_that_no_few_bits_hold_are_told(factor, words, place, run):
    state = dense()
    state[LSTM[0]] *= factor
    torch.save(state, "odd.pt")
    before = sorted(path.name for path in place.iterdir())
    _, err = run("factorize", "odd.pt", "--bits", "4", code=2)
    assert words in err
    assert sorted(path.name for path in place.iterdir()) == before
