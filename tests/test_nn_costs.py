"""The cost model: it knows every kind of run, and picks by sizes alone what a layer of these sizes is best run by."""

import itertools
from collections import defaultdict
from dataclasses import fields, replace

import pytest
import torch

from btcompress.nn import BTLSTM, costs
from btcompress.nn.choice import choose_way, speed_over_dense
from btcompress.nn.costs import Quantities, dense_seconds, kind_of, quantities, seconds
from btcompress.nn.ways import Task, Way, possible_ways
from btcompress.shapes import BlockTermShape, MatrixShape

LARGE = BlockTermShape((16, 15, 16, 15), (4, 4, 8, 8), (4, 4, 4, 4), 2, n_gates=4)


def low_rank(rows, columns, rank, n_gates=4):
    return MatrixShape(BlockTermShape.low_rank(rows, columns, rank, n_gates))


def task_of(hidden, steps, batch, *, rank=None, inputs=None, recurrent=True, directions=1, **more):
    """A layer whose matrices have a quarter of the entries, or this rank; U is dense where it is not ``recurrent``."""
    inputs = inputs or hidden
    u = low_rank(4 * hidden, hidden, rank or hidden // 5)
    given = {
        "rows": steps * batch,
        "packed": False,
        "trains": False,
        "w": (low_rank(4 * hidden, inputs, rank or 4 * hidden * inputs // (4 * (4 * hidden + inputs))),) * directions,
        "u": (u if recurrent else None,) * directions,
    }
    return Task(inputs, hidden, steps, batch, **given | more)


def all_tasks():
    """Tasks of all kinds, small and large, low rank and not, on a CPU."""
    chain = MatrixShape(BlockTermShape((2, 3), (8, 3), (2, 2), 2, n_gates=4))
    forms = [(None, low_rank(24, 6, 2)), (chain, None), (low_rank(24, 6, 2), chain), (None, None)]
    for (w, u), trains, packed, keeps, onednn, loops in itertools.product(forms, *[[False, True]] * 5):
        for steps, batch, projected, directions in itertools.product([1, 5], [1, 3], [False, True], [1, 2]):
            yield Task(
                6,
                6,
                steps,
                batch,
                steps * batch,
                packed=packed,
                trains=trains,
                w=(w,) * directions,
                u=(u,) * directions,
                p=(low_rank(3, 6, 1, 1),) * directions if projected else (),
                loops=loops,
                keeps=keeps,
                onednn=onednn,
            )


def test_every_kind_of_run_has_constants_and_takes_time():
    kinds = set()
    for task in all_tasks():
        for way in possible_ways(task, "auto"):
            kinds.add(kind_of(way, task))
            assert 0 < seconds(way, task) < 1
    # Of what goes by chains not all kinds were measured: those have the constants of the others.
    assert set(costs._CONSTANTS) <= kinds
    assert all(kind.endswith(", chain") for kind in kinds - set(costs._CONSTANTS))


def test_no_constant_is_negative_and_each_is_of_something_that_runs_of_its_kind_have():
    used = defaultdict(set)
    for task in all_tasks():
        for way in possible_ways(task, "auto"):
            found = quantities(way, task)
            used[kind_of(way, task)] |= {field.name for field in fields(Quantities) if getattr(found, field.name)}
    for kind, constants in costs._CONSTANTS.items():
        given = {field.name for field in fields(Quantities) if getattr(constants, field.name)}
        assert all(getattr(constants, name) > 0 for name in given)
        # ``far`` is of layers that are larger than those above.
        assert given <= used[kind] | {"far"}


def test_more_to_do_never_takes_less_time():
    for task in all_tasks():
        for way in possible_ways(task, "auto"):
            longer = replace(task, steps=2 * task.steps, rows=2 * task.rows)
            if kind_of(way, longer) == kind_of(way, task):
                assert seconds(way, longer) > seconds(way, task)


def test_same_sizes_always_pick_the_same_way():
    first = [choose_way(task, "auto") for task in all_tasks()]
    choose_way.cache_clear()
    assert [choose_way(task, "auto") for task in all_tasks()] == first
    # Nor does it matter what was met before, or in which order.
    choose_way.cache_clear()
    assert [choose_way(task, "auto") for task in reversed(list(all_tasks()))] == first[::-1]


def test_what_is_picked_is_possible_and_the_cheapest():
    for task in all_tasks():
        for method in ("auto", "factored", "dense"):
            ways = list(possible_ways(task, method))
            best = choose_way(task, method)
            if task.trains and task.steps == 1 and any(way.steps != "loop" for way in ways):
                # To train one step there is no loop.
                ways = [way for way in ways if way.steps != "loop"]
            assert best in ways
            assert all(seconds(best, task) <= seconds(way, task) for way in ways)


def test_methods_restrict_operands():
    both, none = task_of(64, 5, 3), task_of(64, 5, 3, w=(None,), u=(None,))
    assert {(way.inputs, way.recurrent) for way in possible_ways(both, "factored")} == {("factors", "factors")}
    assert {(way.inputs, way.recurrent) for way in possible_ways(both, "dense")} == {("dense", "dense")}
    assert len(list(possible_ways(both, "auto"))) == 2 * (3 + 2)
    for method in ("auto", "factored", "dense"):
        assert {(way.inputs, way.recurrent) for way in possible_ways(none, method)} == {("dense", "dense")}
        assert {way.steps for way in possible_ways(none, method)} == {"kernel", "loop", "definition"}


def test_a_loop_runs_only_where_it_may_and_by_matrices_or_two_factors():
    chain = MatrixShape(LARGE)
    for task in (
        task_of(256, 5, 3, u=(chain,)),
        task_of(64, 5, 3, p=(MatrixShape(BlockTermShape((8, 8), (8, 2), (2, 2))),)),
    ):
        loops = {way.recurrent for way in possible_ways(task, "auto") if way.steps == "loop"}
        assert loops == {"dense"}
    assert not [way for way in possible_ways(task_of(64, 5, 3, loops=False), "auto") if way.steps == "loop"]


def test_torchs_kernel_has_dense_recurrent_matrices():
    assert {way.recurrent for way in possible_ways(task_of(64, 5, 3), "auto") if way.steps == "kernel"} == {"dense"}
    assert [way.steps for way in possible_ways(task_of(64, 5, 3, loops=False), "factored")] == ["definition"]


@pytest.mark.parametrize("trains", [False, True])
def test_a_gpu_has_the_kernel(trains):
    for hidden, steps, batch in itertools.product((32, 1024), (1, 50), (1, 16)):
        task = task_of(hidden, steps, batch, cpu=False, loops=False, onednn=False, trains=trains)
        assert choose_way(task, "auto").steps == "kernel"
        assert choose_way(task, "dense").steps == "kernel"
        # There is no kernel that multiplies by factors.
        assert choose_way(task, "factored") == Way("definition", "factors", "factors")


@pytest.mark.parametrize("hidden", [128, 256, 512, 1024])
def test_one_step_of_one_sequence_reads_factors(hidden):
    assert choose_way(task_of(hidden, 1, 1), "auto") == Way("loop", "factors", "factors")


@pytest.mark.parametrize("batch", [1, 16])
def test_wide_low_rank_layers_go_by_factors(batch):
    assert choose_way(task_of(1024, 50, batch), "auto") == Way("loop", "factors", "factors")
    # Beside a dense W as well: of several sequences the dense kernel takes about as long.
    only_u = task_of(1024, 50, 1, w=(None,))
    assert choose_way(only_u, "auto").recurrent == "factors"


def test_small_layers_of_many_steps_go_by_the_kernel():
    for trains in (False, True):
        way = choose_way(task_of(32, 100, 16, trains=trains), "auto")
        assert (way.steps, way.recurrent) == ("kernel", "dense")


def test_factors_with_more_entries_than_the_matrix_are_formed():
    for batch in (1, 16):
        way = choose_way(task_of(512, 50, batch, rank=512), "auto")
        assert (way.inputs, way.recurrent) == ("dense", "dense")


def test_a_large_input_part_goes_by_its_factors():
    w = MatrixShape(LARGE)
    for trains, (steps, batch) in itertools.product((False, True), [(1, 1), (6, 1), (6, 16), (6, 32)]):
        assert (
            choose_way(task_of(256, steps, batch, inputs=57_600, w=(w,), u=(None,), trains=trains), "auto").inputs
            == "factors"
        )


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_module_picks_by_the_task_that_its_layers_have(generator):
    lstm = BTLSTM(8, 6, 2, bidirectional=True, proj_size=3, matrices=("input", "recurrent"), batch_first=True)
    inputs = torch.randn(2, 5, 8, generator=generator)
    lstm(inputs)
    with torch.no_grad():
        lstm(inputs)
    found = {(place.layer, place.trains): task for place, task in lstm.choice.tasks.items()}
    assert found.keys() == set(itertools.product(("l0", "l1"), (False, True)))
    for (layer, trains), task in found.items():
        suffixes = [f"_{layer}{end}" for end in ("", "_reverse")]
        shapes = [
            tuple(lstm.shapes[kind + suffix] for suffix in suffixes) for kind in ("weight_ih", "weight_hh", "weight_hr")
        ]
        assert [task.w, task.u, task.p] == shapes
        assert (task.inputs, task.hidden, task.steps, task.batch) == (8 if layer == "l0" else 6, 6, 5, 2)
        assert (task.rows, task.packed, task.trains, task.loops, task.keeps, task.cpu) == (
            10,
            False,
            trains,
            True,
            True,
            True,
        )


def plain(inputs, hidden, batch=1, steps=1, *, w=(None,), u=(None,), **fields):
    return Task(inputs, hidden, steps, batch, steps * batch, packed=False, trains=False, w=w, u=u, **fields)


def test_reading_a_wide_matrix_counts_for_dense_layers():
    wide = MatrixShape(BlockTermShape((10, 12, 16, 30), (16, 4, 4, 4), (4, 4, 4, 4), 2, n_gates=4))
    for batch, steps in ((1, 1), (1, 50), (16, 50)):
        assert speed_over_dense([plain(57_600, 256, batch, steps, w=(wide,))]) > 1
    # What stays dense is read by both.
    for batch, steps in ((1, 50), (16, 50)):
        assert 0.5 < speed_over_dense([plain(57_600, 256, batch, steps, u=(low_rank(1024, 256, 16),))]) < 2


def test_a_projection_makes_the_dense_layer_smaller():
    seconds = [dense_seconds(plain(512, 512, steps=50, p=(None,), outputs=size), onednn=False) for size in (32, 512)]
    assert seconds[0] < 0.5 * seconds[1]


def test_a_dense_cell_takes_less_than_a_kernel_that_is_called():
    for batch in (1, 16):
        one = plain(128, 128, batch)
        assert speed_over_dense([one], cell=True) < speed_over_dense([one])
