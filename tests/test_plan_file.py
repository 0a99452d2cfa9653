import contextlib
import copy
import json
import random
import re
import time
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict, read
from btcompress.errors import BTCompressError, MemoryLimitError
from btcompress.factorization import factorize_as_planned
from btcompress.modes import ShapeRequest
from btcompress.packing import Integers
from btcompress.plan import Fallback, Wish, make_plan, meet, read_plan, save_plan
from btcompress.shapes import BlockTermShape, MatrixShape

KEYS = ("weight_ih_l0", "weight_ih_l1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    state = nn.LSTM(18, 8, num_layers=2).state_dict()
    for tensor in state.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    model = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    torch.save(state, model)
    return read(model)


@pytest.fixture(scope="module")
def every(checkpoint):
    return make_plan(checkpoint, ShapeRequest(1, 1), allow_growth=True)


@pytest.fixture(scope="module")
def priced(checkpoint, every):
    return meet(checkpoint, every, Wish(target_ratio=8))


@pytest.fixture
def path(checkpoint, priced, tmp_path):
    path = tmp_path / "plan.yaml"
    save_plan(priced, path, name="model.pt", sha256=checkpoint.source.sha256)
    return path


def edit(path, change):
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value))


def put(*place, value):
    def change(about):
        for step in place[:-1]:
            about = about[step]
        about[place[-1]] = value

    return change


def test_a_plan_read_again_is_the_plan(path, priced, checkpoint, every):
    assert read_plan(path, checkpoint, every) == priced.plan


@pytest.mark.parametrize(
    "shapes",
    [
        (MatrixShape(BlockTermShape.low_rank(32, 18, 2, 4)), None),
        (None, MatrixShape(BlockTermShape.low_rank(8, 8, 1), "separate")),
    ],
    ids=["fused, dense", "dense, separate"],
)
def test_what_a_form_may_give_way_to_is_read_again(shapes, tmp_path, priced, checkpoint, every):
    matrices = tuple(
        replace(planned, fallback=Fallback(0.25, shape))
        for planned, shape in zip(priced.plan.matrices, shapes, strict=True)
    )
    priced = replace(priced, plan=replace(priced.plan, matrices=matrices))
    save_plan(priced, tmp_path / "with.yaml", name="model.pt", sha256=None)
    assert read_plan(tmp_path / "with.yaml", checkpoint, every) == priced.plan


def test_matrices_left_dense_are_read_again_with_their_reason(tmp_path, checkpoint, every):
    priced = meet(checkpoint, every, Wish(max_params=500))
    assert len(priced.plan.left_dense) == 1
    save_plan(priced, tmp_path / "dense.yaml", name="model.pt", sha256=None)
    assert read_plan(tmp_path / "dense.yaml", checkpoint, every) == priced.plan


def test_a_plan_and_its_file_give_the_same_tensors(path, priced, checkpoint, every):
    direct = factorize_as_planned(checkpoint, priced.plan)
    from_file = factorize_as_planned(checkpoint, read_plan(path, checkpoint, every))
    assert direct.tensors.keys() == from_file.tensors.keys()
    assert all(torch.equal(tensor, from_file.tensors[name]) for name, tensor in direct.tensors.items())


def test_files_say_what_was_predicted_in_plain_yaml(path, priced):
    value = yaml.safe_load(path.read_text())
    assert list(value["matrices"]) == list(KEYS)
    for form in priced.forms:
        entry = value["matrices"][form.name]
        assert entry["size"] == list(form.size)
        assert entry["predicted"]["params"] == form.n_params
        assert entry["predicted"]["weight_error"] == form.point.error
    assert "!!" not in path.read_text()


def test_hand_edits_are_done_and_what_is_not_listed_stays_dense(path, checkpoint, every):
    def change(value):
        del value["matrices"][KEYS[1]]
        value["matrices"][KEYS[0]] = {
            "in_modes": [3, 6],
            "out_modes": [8, 4],
            "tucker_ranks": [2, 2],
            "cp_rank": 3,
        }

    edit(path, change)
    (planned,) = read_plan(path, checkpoint, every).matrices
    assert planned.name == KEYS[0]
    assert planned.shape == MatrixShape(BlockTermShape((3, 6), (8, 4), (2, 2), 3, n_gates=4))
    assert planned.fallback is None


def test_separate_gates_and_padding_by_hand(path, checkpoint, every):
    entry = {"in_modes": [4, 5], "out_modes": [4, 2], "tucker_ranks": [1, 1], "gates": "separate", "core": "identity"}
    edit(path, put("matrices", value={KEYS[0]: entry}))
    (planned,) = read_plan(path, checkpoint, every).matrices
    assert planned.shape == MatrixShape(BlockTermShape((4, 5), (4, 2), (1, 1), in_size=18, core="identity"), "separate")


def test_ranks_beyond_the_modes_are_lowered_and_growth_needs_leave(path, checkpoint, every):
    entry = {"in_modes": [3, 6], "out_modes": [8, 4], "tucker_ranks": [99, 99]}
    edit(path, put("matrices", value={KEYS[0]: entry}))
    plan = read_plan(path, checkpoint, every)
    assert plan.matrices == ()
    assert "allow growth" in plan.left_dense[0].reason
    (planned,) = read_plan(path, checkpoint, every, allow_growth=True).matrices
    assert planned.shape.part.ranks == (24, 24)
    assert any("lowered to 24,24" in notice for notice in plan.notices)


def test_plans_for_another_file_are_done_but_noticed(path, checkpoint, every):
    edit(path, put("checkpoint", "sha256", value="0" * 64))
    assert any("digests differ" in notice for notice in read_plan(path, checkpoint, every).notices)


FIRST = ("matrices", KEYS[0])
BAD = {
    "no version": (put("version", value=None), "no plan of version 1"),
    "a later version": (put("version", value=2), "no plan of version 1"),
    "a list of matrices": (put("matrices", value=[1]), "must be a mapping"),
    "a matrix that is not there": (put("matrices", "head.weight", value={}), "'head.weight' is no matrix"),
    "a matrix by number": (put("matrices", 3, value={}), "must be a mapping"),
    "an entry that is a number": (put(*FIRST, value=3), "must be a mapping"),
    "an unknown field": (put(*FIRST, "rank", value=3), "there is no field rank"),
    "no modes": (put(*FIRST, "in_modes", value=None), "in_modes must be whole numbers"),
    "modes in words": (put(*FIRST, "in_modes", value=["a", "b"]), "in_modes must be whole numbers"),
    "modes of truth": (put(*FIRST, "in_modes", value=[True, 18]), "in_modes must be whole numbers"),
    "fractional modes": (put(*FIRST, "in_modes", value=[4.5, 4]), "in_modes must be whole numbers"),
    "a thousand modes": (put(*FIRST, "in_modes", value=[2] * 1000), "in_modes must be whole numbers"),
    "huge ranks": (put(*FIRST, "tucker_ranks", value=[10**17] * 2), "tucker_ranks must be whole numbers"),
    "modes that do not cover": (
        put(*FIRST, value={"in_modes": [2, 2], "out_modes": [8, 4], "tucker_ranks": [1, 1]}),
        "cover",
    ),
    "another order": (put(*FIRST, "tucker_ranks", value=[2]), "same length"),
    "CP rank 0": (put(*FIRST, "cp_rank", value=0), "cp_rank must be whole numbers"),
    "other gates": (put(*FIRST, "gates", value="both"), "gates must be"),
    "another core": (put(*FIRST, "core", value=["x"]), "core must be"),
    "dense by number": (put(*FIRST, "dense", value=1), "true or false"),
    "a fallback of words": (put(*FIRST, "otherwise", value={"low_rank": 1, "above_error": "x"}), "above_error"),
    "a fallback of rank 0": (put(*FIRST, "otherwise", value={"low_rank": 0, "above_error": 1}), "low_rank must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_plans_are_refused_with_file_and_matrix_named(path, checkpoint, every, case):
    change, words = BAD[case]
    edit(path, change)
    with pytest.raises(BTCompressError, match=re.escape(words)) as caught:
        read_plan(path, checkpoint, every)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "version: [1",
        "version: 1\nmatrices: !!python/object/apply:os.system ['true']",
        "\x00",
        "- 1",
        "",
        "version: 1",
        "[" * 100_000,
    ],
    ids=["cut off", "code", "not text", "a list", "nothing", "no matrices", "endless depth"],
)
def test_what_is_no_plan_is_refused_and_nothing_in_it_runs(path, checkpoint, every, text):
    path.write_text(text)
    with pytest.raises(BTCompressError, match=r"plan\.yaml"):
        read_plan(path, checkpoint, every)


def test_values_that_stand_for_endless_ones_are_refused_at_once(path, checkpoint, every):
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))]
    entry = f"matrices: {{{KEYS[0]}: {{in_modes: *a39}}}}"
    path.write_text("\n".join(["version: 1", *lines, entry]))
    with pytest.raises(BTCompressError, match=r"is no plain YAML \(line 2: anchors and aliases"):
        read_plan(path, checkpoint, every)


def test_a_plan_that_cannot_be_read_is_an_error(tmp_path, checkpoint, every):
    for target in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(BTCompressError, match="cannot be read"):
            read_plan(target, checkpoint, every)


def test_gates_that_are_not_there_cannot_be_separate(path):
    checkpoint = from_state_dict(nn.LSTM(18, 8).state_dict())
    base = make_plan(checkpoint, ShapeRequest(1, 1), allow_growth=True)
    plain = MatrixShape(BlockTermShape.low_rank(32, 18, 1))
    every = type(base)((), (), (type(base.matrices[0])(KEYS[0], plain),), (), ())
    entry = {"in_modes": [18, 1], "out_modes": [1, 8], "tucker_ranks": [1, 1], "gates": "separate"}
    edit(path, put("matrices", value={KEYS[0]: entry}))
    with pytest.raises(BTCompressError, match="no gates to separate"):
        read_plan(path, checkpoint, every)


def test_result_of_a_plan_is_reported_as_any_other(path, checkpoint, every):
    report = btcompress.report(factorize_as_planned(checkpoint, read_plan(path, checkpoint, every)))
    assert {row.core for row in report.matrices} <= {"full", "identity"}
    assert not any("A low-rank matrix of equal size fits better" in line for line in report.advice)


@pytest.mark.parametrize("version", [True, 1.0, "1", [1]], ids=str)
def test_only_the_whole_number_1_is_version_1(version, path, checkpoint, every):
    edit(path, put("version", value=version))
    with pytest.raises(BTCompressError, match="no plan of version 1"):
        read_plan(path, checkpoint, every)


def test_a_matrix_that_is_listed_twice_is_refused(path, checkpoint, every):
    path.write_text(path.read_text() + f"  {KEYS[0]}: {{dense: true}}\n")
    with pytest.raises(BTCompressError, match=rf"line \d+: '{KEYS[0]}' is there twice"):
        read_plan(path, checkpoint, every)


@pytest.mark.parametrize("reason", [3, ["x"], "a\x1b[31mb", "a\nb", "x" * 2000], ids=str)
def test_reasons_that_are_no_line_of_text_are_refused(reason, path, checkpoint, every):
    edit(path, put(*FIRST, value={"dense": True, "reason": reason}))
    with pytest.raises(BTCompressError, match="reason must be a line"):
        read_plan(path, checkpoint, every)


@pytest.mark.parametrize(
    ("given", "read"),
    [(4, Integers(4)), ("3", Integers(3)), ("int5/64", Integers(5, 64)), ("float16", torch.float16), ("float32", None)],
    ids=str,
)
@pytest.mark.parametrize("dense", [True, False])
def test_precisions_are_read_in_every_way_that_they_are_written(given, read, dense, path, checkpoint, every):
    edit(path, put(*FIRST, "precision", value=given))
    edit(path, put(*FIRST, "dense", value=dense))
    plan = read_plan(path, checkpoint, every)
    assert plan.precisions.get(KEYS[0]) == read
    assert (KEYS[0] in {each.name for each in plan.rounded}) == (dense and read is not None)
    assert (KEYS[0] in {left.name for left in plan.left_dense}) == (dense and read is None)


@pytest.mark.parametrize(
    "value",
    [True, 0, 1, 9, -4, 10**17, 4.0, [4], {"bits": 4}, "", "int", "int9/32", "int4/2", "int4/" + "9" * 10**5, "float8"],
    ids=lambda value: str(value)[:20],
)
def test_precisions_that_are_none_are_refused(value, path, checkpoint, every):
    edit(path, put(*FIRST, "precision", value=value))
    with pytest.raises(BTCompressError) as caught:
        read_plan(path, checkpoint, every)
    assert KEYS[0] in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_precisions_that_spare_nothing_are_refused(precision, path, checkpoint, every):
    half = from_state_dict({key: tensor.bfloat16() for key, tensor in checkpoint.tensors.items()})
    edit(path, put(*FIRST, "precision", value=precision))
    if precision == "bfloat16":
        assert read_plan(path, half, every).precisions == {}
        return
    with pytest.raises(BTCompressError, match="takes no fewer bytes than the matrix's own bfloat16"):
        read_plan(path, half, every)


def test_what_a_form_gives_way_to_may_be_rounded(tmp_path, priced, checkpoint, every):
    low_rank = MatrixShape(BlockTermShape.low_rank(32, 8, 2, 4))
    kept = (Fallback(0.25, None, Integers(4)), Fallback(0.25, low_rank, torch.float16))
    matrices = tuple(
        replace(each, fallback=fallback) for each, fallback in zip(priced.plan.matrices, kept, strict=True)
    )
    changed = replace(priced, plan=replace(priced.plan, matrices=matrices))
    save_plan(changed, tmp_path / "with.yaml", name="model.pt", sha256=None)
    assert read_plan(tmp_path / "with.yaml", checkpoint, every) == changed.plan


def test_forms_that_would_take_endless_memory_are_refused_before_they_are_fitted(path, checkpoint, every):
    entry = {"in_modes": [2**40, 2**40], "out_modes": [2**40, 4], "tucker_ranks": [2**40, 2**40]}
    edit(path, put(*FIRST, value=entry))
    with pytest.raises(MemoryLimitError, match=f"{KEYS[0]}: a form of these modes and ranks would take"):
        read_plan(path, checkpoint, every, allow_growth=True)


@pytest.mark.parametrize(
    "change",
    [
        put("matrices", "x" * 10**5, value={}),
        put(*FIRST, "x" * 10**5, value=1),
        put(*FIRST, "gates", value="x" * 10**5),
        put(*FIRST, "core", value="x" * 10**5),
        put(*FIRST, "dense", value="x" * 10**5),
        put(*FIRST, "row_order", value="x" * 10**5),
        put(*FIRST, "cp_rank", value="x" * 10**5),
        put(*FIRST, "otherwise", value={"above_error": 1, "low_rank": 1, "gates": "x" * 10**5}),
    ],
)
def test_long_values_are_shortened_in_what_is_said_of_them(change, path, checkpoint, every):
    edit(path, change)
    with pytest.raises(BTCompressError, match=r"plan\.yaml") as caught:
        read_plan(path, checkpoint, every)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["a\nversion: 2", "\udcff.pt", "a\x1b[31m", "a: b # c"], ids=ascii)
def test_names_of_every_kind_are_written_so_that_the_plan_is_read_again(name, tmp_path, priced, checkpoint, every):
    save_plan(priced, tmp_path / "named.yaml", name=name, sha256=None)
    assert read_plan(tmp_path / "named.yaml", checkpoint, every) == priced.plan


VALUES = (None, True, False, 0, -1, 1, 3, 10**17, 0.5, float("nan"), float("inf"), "x", "", [], [1], [2**39] * 16, {})


def places(value, place=()):
    """Where there is something in a value of mappings and lists."""
    if place:
        yield place
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*place, key))


def test_plans_with_any_value_anywhere_are_read_or_refused_at_once(path, checkpoint, every):
    chance, original = random.Random(0), yaml.safe_load(path.read_text())
    all_places = list(places(original))
    n_read = 0
    for _ in range(400):
        changed = copy.deepcopy(original)
        for place in chance.sample(all_places, chance.choice((1, 1, 2))):
            with contextlib.suppress(TypeError, IndexError, KeyError):  # what lies deeper in what was replaced
                put(*place, value=chance.choice(VALUES))(changed)
        path.write_text(json.dumps(changed) if chance.random() < 0.5 else yaml.safe_dump(changed))
        started = time.perf_counter()
        try:
            plan = read_plan(path, checkpoint, every, allow_growth=chance.random() < 0.5)
        except BTCompressError:
            continue
        finally:
            assert time.perf_counter() - started < 2
        n_read += 1
        assert {each.name for each in (*plan.matrices, *plan.left_dense)} <= set(KEYS)
        assert all(each.shape.part.padded_in < 2**32 for each in plan.matrices)
    assert n_read > 20
