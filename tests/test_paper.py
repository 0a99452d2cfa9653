"""The tables and figures of docs/paper.md, from nothing to the last of them, on a task of tiny sizes."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from btcompress.checkpoint.atomic import _beside
from btcompress.demo import Measure, Size, Training
from btcompress.demo.video import FULL, Video
from btcompress.errors import BTCompressError
from btcompress.modes import ShapeRequest, choose_shape
from interruptions import Interrupted, interrupt_epochs

SCRIPTS = Path(__file__).parent / "benchmarks"
_ONE = Training(1, 2e-2)
TASKS = {"small": {"video": Video(6, 8, Size(60, 30, 4, 1, 2, dense=_ONE, tuning=_ONE, scratch=_ONE))}}
#: Learning rates are searched on seed 0 all the same.
ASKED = ("--quick", "--seeds", "1")


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


def module(name):
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "out"
    assert module("paper").main([str(folder), *ASKED], TASKS) == 0
    return folder


def records(folder, ending):
    return {path.relative_to(folder): json.loads(path.read_text()) for path in folder.glob(f"*/*{ending}.json")}


def test_the_script_trains_every_model_and_writes_tables_and_figures(told):
    text = (told / "tables.md").read_text()
    models, verdict, noise, ranks = (part.split("\n\n")[2] for part in text.split("## ")[1:])
    names = [line.split(" | ")[0].removeprefix("| ") for line in models.splitlines()[2:]]
    forms = ("block terms", "tensor train", "low rank")
    trained = [f"{form}, {how}" for form in forms for how in ("fine-tuned", "from scratch")]
    trained += ["dense", "fewer hidden units, from scratch", "rounded, fine-tuned"]
    begun = [f"{form}, not trained" for form in (*forms, "rounded")]
    assert sorted(names) == sorted([*trained, *begun, "block terms, calibrated without labels"])
    assert [line.split(" | ")[0] for line in verdict.splitlines()[2:]] == ["| fine-tuned", "| from scratch"]
    assert {line.split(" | ")[0].removeprefix("| ") for line in noise.splitlines()[2:]} == set(trained)
    assert len(ranks.splitlines()) == 2 + 2 * 3
    assert f"| dense | {6 * 8 * 3 * 16:,} | {6 * 8 * 3 * 16 * 4:,} |" in models
    for name in ("convergence", "noise", "ranks"):
        with Image.open(told / f"paper_{name}_video_small.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    # Neither data nor states nor models that were not chosen stay.
    assert not [*told.glob("**/*.npz"), *told.glob("**/*.state"), *told.glob("*/*/")]
    assert len([*told.glob("video-small-0/dense-*.trained.json")]) == 2
    (chosen,) = told.glob("video-small-0/dense-*.safetensors")
    assert [path.name for path in told.glob("video-small-1/dense-*.safetensors")] == [chosen.name]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_rates_are_searched_on_seed_0_and_decays_at_the_best_of_them(tmp_path, monkeypatch, higher_is_better):
    class Other(Video):
        metric = Measure("metric", higher_is_better=higher_is_better)

    study, runs, asked, kept = module("paper_study"), module("paper_runs"), [], set()
    sign = 1 if higher_is_better else -1
    known = {
        (0.005, 0): (0.1, 0.2),
        (0.01, 0): (0.1, 0.6, 0.3),
        (0.02, 0): (),
        (0.04, 0): (0.1, 0.5),
        (0.01, 1): (0.9,),
    }

    def trained(run, model):
        asked.append((run.seed, model.training.learning_rate, model.training.weight_decay))
        kept.add(asked[-1][1:])
        return module("paper_records").Trained(tuple(sign * one for one in known[asked[-1][1:]]), ())

    monkeypatch.setattr(runs.Run, "trained", trained)
    monkeypatch.setattr(
        runs.Run, "discard", lambda _, model: kept.discard((model.training.learning_rate, model.training.weight_decay))
    )
    tasks = {"small": {"video": Other(6, 8, TASKS["small"]["video"].size)}}
    paper = study.Paper(tmp_path, module("paper_settings").Settings(), tasks, lambda *_: None, lambda *_: None)
    chosen = paper._chosen(paper.run("video", "small", 2), module("paper_forms").Form(), "")
    assert (chosen.learning_rate, chosen.weight_decay) == (0.01, 1.0)
    assert {one[1:] for one in asked} == set(known)
    assert {seed for seed, *_ in asked} == {0}
    assert kept == {(0.01, 1.0)}


def test_an_interrupted_run_ends_in_the_same_tables_and_a_second_run_trains_nothing(told, tmp_path, monkeypatch):
    folder, script = tmp_path / "out", module("paper")
    seen = interrupt_epochs(monkeypatch, 2, 8, 19)
    for _ in range(3):
        with pytest.raises(Interrupted):
            script.main([str(folder), *ASKED], TASKS)
    # A part first, the rest later.
    assert script.main([str(folder), *ASKED, "--studies", "main", "--forms", "tensor-train"], TASKS) == 0
    assert (folder / "tables.md").read_bytes() != (told / "tables.md").read_bytes()
    assert script.main([str(folder), *ASKED], TASKS) == 0
    assert (folder / "tables.md").read_bytes() == (told / "tables.md").read_bytes()
    trained = records(told, "trained")
    calibrating = 2 * 1
    assert len(seen) == sum(len(one["curve"]) - 1 for one in trained.values()) + calibrating + 3
    assert {path: one["curve"] for path, one in records(folder, "trained").items()} == {
        path: one["curve"] for path, one in trained.items()
    }
    seen.clear()
    assert script.main([str(folder), *ASKED], TASKS) == 0
    assert not seen


def test_a_folder_begun_with_other_settings_is_refused(told, capsys):
    task = TASKS["small"]["video"]
    other = {"small": {"video": replace(task, size=replace(task.size, hidden_size=5))}}
    assert module("paper").main([str(told), *ASKED], other) == 2
    assert "was begun with video-small Video(height=6" in capsys.readouterr().err


def test_what_another_process_makes_is_put_off_until_it_is_there(tmp_path, monkeypatch):
    study, kept = module("paper_study"), module("paper_records")
    path, done = tmp_path / "one.json", []
    record = kept.Trained((0.5,), ())
    run = module("paper_runs").Run(TASKS["small"]["video"], "small", 0, tmp_path, lambda *_: None)
    other = FileLock(_beside(path, "lock"))
    other.acquire()

    def first():
        assert kept.kept(path, kept.Trained, lambda: record) == record
        done.append("first")

    def second():
        done.append("second")
        other.release()

    paper = study.Paper(tmp_path, module("paper_settings").Settings(), TASKS, lambda *_: None, lambda *_: None)
    monkeypatch.setattr(study.Paper, "items", lambda *_: [study.Item(run, first), study.Item(run, second)])
    assert paper.do(None) == []
    assert done == ["second", "first"]
    assert kept.read(path, kept.Trained) == record


def test_one_model_that_fails_does_not_end_the_night(tmp_path, monkeypatch):
    study = module("paper_study")
    run = module("paper_runs").Run(TASKS["small"]["video"], "small", 0, tmp_path / "video-small-0", lambda *_: None)
    done = []

    def fails():
        raise BTCompressError("no such thing")

    paper = study.Paper(tmp_path, module("paper_settings").Settings(), TASKS, lambda *_: None, lambda *_: None)
    items = [study.Item(run, fails), study.Item(run, lambda: done.append(1))]
    monkeypatch.setattr(study.Paper, "items", lambda *_: items)
    assert paper.do(None) == ["video-small-0: no such thing"]
    assert done == [1]


def measured(**changes):
    one = {
        "task": "video",
        "size": "small",
        "seed": 0,
        "form": "block terms",
        "start": "from scratch",
        "stage": "trained",
        "params": 10,
        "n_bytes": 40,
        "model_params": 20,
        "model_bytes": 80,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "curve": (0.1, 0.5),
        "scores": (0.5,),
    }
    return module("paper_records").Measured(**{**one, **changes})


def test_block_terms_are_ahead_where_they_are_in_the_mean_over_seeds():
    ours = [measured(seed=seed, scores=(score,)) for seed, score in ((0, 0.5), (1, 0.7), (2, 0.6))]
    theirs = [measured(seed=seed, scores=(score,), form="tensor train") for seed, score in ((0, 0.6), (1, 0.6))]
    table = module("paper_table").tables
    found = {"main": [*ours, *theirs], "noise": [], "ranks": [], "orders": []}
    assert "| from scratch | 10 and 10 | 60.0 ± 14.1 % | 60.0 ± 0.0 % | 0.0 ± 14.1 points | 1 of 2 | no |" in table(
        found, TASKS
    )
    found["main"][3] = replace(theirs[0], scores=(0.4,))
    assert "| 10.0 ± 0.0 points | 2 of 2 | yes |" in table(found, TASKS)
    assert "| block terms, from scratch | 10 | 40 | 20 | 0.01 | 60.0 ± 10.0 % | 50.0 %, 70.0 %, 60.0 % |" in table(
        found, TASKS
    )


def test_orders_are_drawn_beside_the_dense_model_and_told_in_a_table(tmp_path):
    forms = [(f"d={order}", start) for order in (2, 3) for start in ("dense model", "from scratch")]
    orders = [
        measured(form=form, start=start, seed=seed, scores=(0.4 + seed / 10,))
        for form, start in forms
        for seed in (0, 1)
    ]
    found = {"main": [measured(form="dense", start="")], "noise": [], "ranks": [], "orders": orders}
    module("paper_figures").draw_figures(found, TASKS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "paper_convergence_video_small.png",
        "paper_orders_video_small.png",
    ]
    assert "| d=3, from scratch | 10 | 45.0 ± 7.1 % | 40.0 %, 50.0 % |" in module("paper_table").tables(found, TASKS)


def test_less_is_better_where_a_measure_says_so():
    class Loss(Video):
        measures = (Measure("loss", higher_is_better=False),)

    tasks = {"small": {"video": Loss(6, 8, TASKS["small"]["video"].size)}}
    found = {"main": [measured(scores=(2.0,)), measured(scores=(2.5,), form="tensor train")]}
    found |= {"noise": [], "ranks": [], "orders": []}
    assert "| 2 | 2.5 | 0.5 | 1 of 1 | yes |" in module("paper_table").tables(found, tasks)


def test_block_terms_of_the_authors_orders_have_the_parameters_that_these_are_known_by():
    settings = module("paper_settings").Settings()
    n, rank = settings.order_ranks
    for each, n_params in zip(settings.orders, (186_912, 13_184, 3_392, 3_936), strict=True):
        request = ShapeRequest(n, rank, each.in_modes, each.out_modes)
        sizes = [i * j for i, j in zip(each.in_modes, each.out_modes, strict=True)]
        by_hand = n * (rank * sum(sizes) + rank ** len(sizes))
        assert choose_shape(request, "W", 1024, 57_600).shape.n_params == by_hand == each.n_params == n_params
        assert math.prod(sizes) == math.prod(FULL.input_shape) * 4 * FULL.size.hidden_size
