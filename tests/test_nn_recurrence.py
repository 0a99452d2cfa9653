import itertools

import pytest
import torch
from torch.autograd import forward_ad

from btcompress.nn import recurrence
from btcompress.nn.choice import choose_way
from btcompress.nn.lstmtype import lstm_step
from btcompress.nn.recurrence import (
    Direction,
    Trained,
    recur,
    recur_by_kernel,
    recur_by_loop,
    recur_by_steps,
)
from btcompress.nn.ways import Way, possible_ways
from btcompress.nn.weight import BTWeight
from btcompress.shapes import BlockTermShape, MatrixShape

T, B, H, P = 5, 4, 6, 3

CASES = list(itertools.product([1, 2], [None, P], ["time first", "batch first", "packed"]))


def draw(*size, generator):
    return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()


def make_case(directions, projected, layout, generator):
    """The arguments of a layer: z, state, weights and batch sizes, and whether the batch comes first."""
    tokens = {"time first": (T, B), "batch first": (B, T), "packed": (11,)}[layout]
    z = draw(*tokens, directions * 4 * H, generator=generator)
    state = (draw(directions, B, projected or H, generator=generator), draw(directions, B, H, generator=generator))
    weights = [
        [draw(4 * H, projected or H, generator=generator)]
        + ([draw(projected, H, generator=generator)] if projected else [])
        for _ in range(directions)
    ]
    batch_sizes = torch.tensor([4, 3, 2, 1, 1]) if layout == "packed" else None
    return (z, state, weights, batch_sizes), {"batch_first": layout == "batch first"}


def results_and_gradients(way, case, generator):
    (z, state, weights, batch_sizes), options = case
    outputs, (h, c) = way(z, state, weights, batch_sizes, **options)
    results = [outputs, h, c]
    directions = [torch.randn(r.shape, generator=generator.manual_seed(1), dtype=r.dtype) for r in results]
    leaves = [z, *state, *(weight for own in weights for weight in own)]
    return results, torch.autograd.grad(results, leaves, directions)


def by_definition(z, h, c, weight_hh, weight_hr):
    """One sequence, one unit at a time."""
    z = z + weight_hh @ h
    size = len(c)
    new_c = torch.stack(
        [z[size + u].sigmoid() * c[u] + z[u].sigmoid() * z[2 * size + u].tanh() for u in range(size)],
    )
    new_h = torch.stack([z[3 * size + u].sigmoid() * new_c[u].tanh() for u in range(size)])
    return (new_h if weight_hr is None else weight_hr @ new_h), new_c


@pytest.mark.parametrize("projected", [None, P])
def test_step_is_the_definition(projected, generator):
    (z, (h, c), (weights,), _), _ = make_case(1, projected, "time first", generator)
    weight_hh, weight_hr = (*weights, None)[:2]
    new_h, new_c = lstm_step(z[0], (h[0], c[0]), *weights)
    for row in range(B):
        expected_h, expected_c = by_definition(z[0, row], h[0, row], c[0, row], weight_hh, weight_hr)
        torch.testing.assert_close(new_h[row], expected_h)
        torch.testing.assert_close(new_c[row], expected_c)


@pytest.mark.parametrize(("directions", "projected", "layout"), CASES)
def test_kernel_equals_steps_in_value_and_gradient(directions, projected, layout, generator):
    case = make_case(directions, projected, layout, generator)
    by_kernel = results_and_gradients(recur_by_kernel, case, generator)
    by_steps = results_and_gradients(recur_by_steps, case, generator)
    torch.testing.assert_close(by_kernel, by_steps)


@pytest.mark.parametrize("directions", [1, 2])
def test_packed_sequences_equal_each_sequence_alone(directions, generator):
    (z, (h, c), weights, batch_sizes), _ = make_case(directions, None, "packed", generator)
    outputs, (final_h, final_c) = recur_by_steps(z, (h, c), weights, batch_sizes)
    steps, results = z.split(batch_sizes.tolist()), outputs.split(batch_sizes.tolist())
    for row, length in enumerate([5, 3, 2, 1]):
        alone = torch.stack([step[row] for step in steps[:length]]).unsqueeze(1)
        one = slice(row, row + 1)
        expected, (alone_h, alone_c) = recur_by_steps(alone, (h[:, one], c[:, one]), weights)
        torch.testing.assert_close(torch.stack([step[row] for step in results[:length]]), expected.squeeze(1))
        torch.testing.assert_close(final_h[:, one], alone_h)
        torch.testing.assert_close(final_c[:, one], alone_c)


def looped(z, state, weights, batch_sizes=None, **options):
    parts, chains = z.chunk(len(weights), dim=-1), [[(weight,) for weight in own] for own in weights]
    return recur_by_loop(parts, state, chains, batch_sizes, **options)


@pytest.mark.parametrize(("directions", "projected", "layout"), CASES)
def test_loop_equals_steps_in_value_and_gradient(directions, projected, layout, generator):
    case = make_case(directions, projected, layout, generator)
    by_loop = results_and_gradients(looped, case, generator)
    by_steps = results_and_gradients(recur_by_steps, case, generator)
    torch.testing.assert_close(by_loop, by_steps, rtol=1e-11, atol=1e-12)


def choose(monkeypatch, steps):
    """Let ``recur`` take these steps wherever they are possible, and else the definition."""

    def first(task, method):
        return min(possible_ways(task, method), key=lambda way: (way.steps != steps, way.steps != "definition"))

    monkeypatch.setattr(recurrence, "choose_way", first)


def ways_taken(monkeypatch):
    """The names of the ways that are taken from here on."""
    taken = []
    for name in ("recur_by_kernel", "recur_by_loop", "recur_by_steps"):
        way = getattr(recurrence, name)

        def noted(*arguments, name=name, way=way, **options):
            taken.append(name.removeprefix("recur_by_"))
            return way(*arguments, **options)

        monkeypatch.setattr(recurrence, name, noted)
    return taken


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(("steps", "way"), [("loop", "loop"), ("kernel", "kernel"), ("definition", "steps")])
def test_the_way_that_is_chosen_is_taken(steps, way, trains, generator, monkeypatch):
    choose(monkeypatch, steps)
    taken = ways_taken(monkeypatch)
    (z, state, weights, batch_sizes), _ = make_case(2, None, "time first", generator)
    with torch.set_grad_enabled(trains):
        outputs, _ = recur(z, state, weights, batch_sizes)
    assert taken == [way]
    torch.testing.assert_close(outputs, recur_by_steps(z, state, weights, batch_sizes)[0])


def test_what_is_chosen_by_knows_the_task(generator, monkeypatch):
    tasks = []
    monkeypatch.setattr(recurrence, "choose_way", lambda task, method: tasks.append(task) or choose_way(task, method))
    for directions, projected, layout in CASES:
        (z, state, weights, batch_sizes), options = make_case(directions, projected, layout, generator)
        with torch.set_grad_enabled(layout != "packed"):
            recur(z, state, weights, batch_sizes, **options)
        task, each = tasks.pop(), (None,) * directions
        assert (task.inputs, task.hidden, task.steps, task.batch) == (0, H, T, B)
        assert (task.w, task.u, task.p) == (each, each, each if projected else ())
        assert (task.rows, task.packed, task.trains) == (
            (11, True, False) if layout == "packed" else (T * B, False, True)
        )
        assert (task.loops, task.keeps, task.onednn, task.cpu) == (True, False, False, True)


@pytest.mark.parametrize(
    ("part", "way"),
    [
        (BlockTermShape.low_rank(4 * H, H, 2, n_gates=4), "loop"),
        (BlockTermShape((3, 2), (8, 3), (2, 2), n_gates=4), "steps"),
    ],
)
def test_factors_go_by_the_loop_if_of_low_rank_and_else_step_by_step(part, way, generator, monkeypatch):
    taken = ways_taken(monkeypatch)
    (z, state, _, _), _ = make_case(1, None, "time first", generator)
    weight = BTWeight(MatrixShape(part), dtype=torch.float64)
    weight.reset_parameters(0.1, generator)
    factors = tuple(weight.parameters())
    selections = torch.eye(4 * H, dtype=torch.float64)
    layers = [(Way("loop", "dense", "factors"), weight), (Way("definition", "dense", "dense"), weight.to_dense())]
    found = [Trained(chosen, [Direction(selections, given, None, None)]).run(z, state)[0] for chosen, given in layers]
    assert taken == [way, "steps"]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*(torch.autograd.grad(outputs.square().sum(), factors) for outputs in found))


def under_vmap(z, h, c, weight):
    return torch.vmap(lambda part: recur(part, (h, c), [[weight]])[0])(torch.stack([z, -z]))[0]


def under_functional_gradient(z, h, c, weight):
    return torch.func.grad(lambda part: recur(part, (h, c), [[weight]])[0].square().sum())(z)


def under_forward_gradient(z, h, c, weight):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, torch.ones_like(z))
        return forward_ad.unpack_dual(recur(dual, (h, c), [[weight]])[0]).tangent


def under_autocast(z, h, c, weight):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return recur(z, (h, c), [[weight]])[0]


def in_bfloat16(z, h, c, weight):
    z, h, c, weight = (tensor.bfloat16() for tensor in (z, h, c, weight))
    return recur(z, (h, c), [[weight]])[0]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    "inside", [under_vmap, under_functional_gradient, under_forward_gradient, under_autocast, in_bfloat16]
)
def test_where_the_loop_cannot_go_it_goes_step_by_step(inside, generator, monkeypatch):
    choose(monkeypatch, "loop")
    (z, (h, c), ((weight,),), _), _ = make_case(1, None, "time first", generator)
    tensors = [tensor.detach() for tensor in (z, h, c, weight)]
    taken = ways_taken(monkeypatch)
    actual = inside(*tensors)
    assert taken == ["steps"]
    monkeypatch.setattr(recurrence, "recur", recur_by_steps)
    monkeypatch.setitem(inside.__globals__, "recur", recur_by_steps)
    torch.testing.assert_close(actual, inside(*tensors))


def test_a_batch_without_sequences_does_not_go_by_the_loop(generator, monkeypatch):
    choose(monkeypatch, "loop")
    taken = ways_taken(monkeypatch)
    (z, (h, c), weights, _), _ = make_case(1, None, "time first", generator)
    outputs, _ = recur(z[:, :0], (h[:, :0], c[:, :0]), weights)
    assert outputs.shape == (T, 0, H)
    assert taken == ["steps"]
