import itertools

import pytest
import torch

from btcompress.nn import recurrence
from btcompress.nn.lstmtype import lstm_step
from btcompress.nn.recurrence import (
    Direction,
    Trained,
    recur_by_kernel,
    recur_by_loop,
    recur_by_steps,
)
from btcompress.nn.ways import Way
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
