"""The loop with a backward pass of its own gives what autograd gives step by step."""

import itertools

import pytest
import torch

from btcompress.nn.recurrence import recur_by_steps
from btcompress.nn.steps import loop_over_steps

T, B, H, P, R = 5, 4, 6, 3, 2

#: How many matrices each weight is the product of, and the sizes between them.
INNER = {"dense": (), "low rank": (R,), "three factors": (R, R + 1)}
#: Sequences at each step; None is a batch that is not packed.
PACKED = {"even": None, "uneven": [4, 3, 3, 1], "of one length": [4, 4], "one step": [3], "one sequence": [1, 1, 1]}
CASES = list(itertools.product([1, 2], [None, P], PACKED, INNER))


def draw(*size, generator):
    return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()


def make_chain(rows, columns, inner, generator):
    sizes = (rows, *inner, columns)
    return tuple(draw(n, m, generator=generator) for n, m in itertools.pairwise(sizes))


def make_case(directions, projected, packed, inner, generator):
    """z of each direction, state, weights and batch sizes."""
    sizes = PACKED[packed] or [B] * T
    tokens = (sum(sizes),) if PACKED[packed] else (T, B)
    z = [draw(*tokens, 4 * H, generator=generator) for _ in range(directions)]
    state = (
        draw(directions, sizes[0], projected or H, generator=generator),
        draw(directions, sizes[0], H, generator=generator),
    )
    weights = [
        [make_chain(4 * H, projected or H, INNER[inner], generator)]
        + ([make_chain(projected, H, INNER[inner], generator)] if projected else [])
        for _ in range(directions)
    ]
    return z, state, weights, sizes


def leaves_of(z, state, weights):
    return [*z, *state, *(matrix for own in weights for chain in own for matrix in chain)]


def by_definition(z, state, weights, sizes):
    """Step by step, with each product of matrices formed."""
    formed = [[chain[0] if len(chain) == 1 else torch.linalg.multi_dot(chain) for chain in own] for own in weights]
    batch_sizes = torch.tensor(sizes) if z[0].dim() == 2 else None
    return recur_by_steps(torch.cat(z, dim=-1), state, formed, batch_sizes)


def flat(results):
    outputs, (h, c) = results
    return [outputs, h, c]


def gradients(results, leaves, **options):
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in results]
    return torch.autograd.grad(results, leaves, directions, **options)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("directions", "projected", "packed", "inner"), CASES)
def test_loop_equals_autograd_in_value_and_gradient(directions, projected, packed, inner, generator):
    case = make_case(directions, projected, packed, inner, generator)
    actual, expected = flat(loop_over_steps(*case)), flat(by_definition(*case))
    assert_same(actual, expected)
    leaves = leaves_of(*case[:3])
    assert_same(gradients(actual, leaves), gradients(expected, leaves))


@pytest.mark.parametrize(("directions", "projected", "packed"), [(2, P, "uneven"), (1, None, "even")])
def test_gradients_are_those_of_finite_differences(directions, projected, packed, generator):
    z, state, weights, sizes = make_case(directions, projected, packed, "low rank", generator)
    leaves = leaves_of(z, state, weights)

    def run(*_):
        return tuple(flat(loop_over_steps(z, state, weights, sizes)))

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("inner", ["dense", "low rank"])
def test_each_gradient_may_be_asked_alone(inner, generator):
    z, state, weights, sizes = make_case(2, P, "uneven", inner, generator)
    leaves = leaves_of(z, state, weights)
    expected = gradients(flat(by_definition(z, state, weights, sizes)), leaves)
    for asked, gradient in zip(leaves, expected, strict=True):
        for leaf in leaves:
            leaf.requires_grad_(leaf is asked)
        assert_same(gradients(flat(loop_over_steps(z, state, weights, sizes)), [asked]), (gradient,))


@pytest.mark.parametrize("used", range(3), ids=["outputs", "h", "c"])
@pytest.mark.parametrize("packed", PACKED)
def test_each_result_may_be_used_alone(used, packed, generator):
    case = make_case(2, None, packed, "low rank", generator)
    leaves = leaves_of(*case[:3])
    actual, expected = ([flat(way(*case))[used]] for way in (loop_over_steps, by_definition))
    assert_same(
        gradients(actual, leaves, allow_unused=True, materialize_grads=True),
        gradients(expected, leaves, allow_unused=True, materialize_grads=True),
    )


def test_backward_passes_of_one_graph_give_the_same_bytes(generator):
    case = make_case(2, P, "uneven", "low rank", generator)
    leaves = leaves_of(*case[:3])
    results = flat(loop_over_steps(*case))
    first = gradients(results, leaves, retain_graph=True)
    again = gradients(results, leaves)
    anew = gradients(flat(loop_over_steps(*case)), leaves)
    for one, two, three in zip(first, again, anew, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize(("directions", "projected", "packed", "inner"), CASES)
def test_results_are_the_same_bytes_without_gradients(directions, projected, packed, inner, generator):
    case = make_case(directions, projected, packed, inner, generator)
    before = [leaf.detach().clone() for leaf in leaves_of(*case[:3])]
    kept = flat(loop_over_steps(*case))
    with torch.no_grad():
        free = flat(loop_over_steps(*case))
    assert all(torch.equal(one, other) for one, other in zip(kept, free, strict=True))
    assert not any(result.requires_grad for result in free)
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves_of(*case[:3]), before, strict=True))


def test_results_share_no_storage_with_what_was_given_or_with_one_another(generator):
    case = make_case(2, None, "one step", "dense", generator)
    with torch.no_grad():
        tensors = [*flat(loop_over_steps(*case)), *leaves_of(*case[:3])]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


def test_a_second_derivative_is_refused(generator):
    case = make_case(1, None, "even", "dense", generator)
    leaves = leaves_of(*case[:3])
    plain = gradients(flat(loop_over_steps(*case)), leaves)
    with_graph = gradients(flat(loop_over_steps(*case)), leaves, create_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, with_graph, strict=True))
    for gradient in with_graph:
        with pytest.raises(RuntimeError, match="differentiated only once"):
            gradient.square().sum().backward()


def test_no_more_is_kept_than_gates_cells_tanhs_and_outputs(generator):
    case = make_case(2, None, "even", "low rank", generator)
    given = {tensor.untyped_storage().data_ptr() for tensor in leaves_of(*case[:3])}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loop_over_steps(*case)
    assert sum(kept.values()) == 2 * T * B * ((4 + 1 + 1 + 1) * H + R) * 8


def test_backward_pass_leaves_the_gradients_it_is_given_as_they_are(generator):
    z, state, weights, sizes = make_case(2, P, "uneven", "low rank", generator)
    results = flat(loop_over_steps(z, state, weights, sizes))
    given = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in results]
    before = [each.clone() for each in given]
    torch.autograd.grad(results, leaves_of(z, state, weights), given)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))
