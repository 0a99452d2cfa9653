import itertools
import math

import pytest
import tensorly
import torch
from tensorly.decomposition import tensor_train

from btcompress.blockterm import BlockTerm
from btcompress.fit import hosvd
from btcompress.fit.start import greedy_deflation
from btcompress.shapes import BlockTermShape, MatrixShape
from btcompress.yardsticks import low_rank_form, otherforms, structured_forms, truncated_svd
from btcompress.yardsticks.otherforms import tensor_train_params, tensor_train_ranks
from forms import UNEVEN, random_form


def paired_tensor(matrix, shape):
    """The tensor ``(I_1 J_1, .., I_d J_d)`` of a matrix, entry by entry; padding is 0."""
    tensor = matrix.new_zeros(shape.mode_sizes)
    columns = list(itertools.product(*map(range, shape.in_modes)))[: shape.in_size]
    rows = list(itertools.product(*map(range, shape.out_modes)))
    gate_rows, padded = shape.out_size // shape.n_gates, shape.padded_out // shape.n_gates
    true_rows = [row for n, row in enumerate(rows) if n % padded < gate_rows]
    for n, row in enumerate(true_rows):
        for m, column in enumerate(columns):
            place = tuple(i * size + j for i, j, size in zip(column, row, shape.out_modes, strict=True))
            tensor[place] = matrix[n, m]
    return tensor


def matrix_of(tensor, shape):
    """The matrix whose paired-mode tensor this is, without padding."""
    order = shape.order
    sizes = [size for pair in zip(shape.in_modes, shape.out_modes, strict=True) for size in pair]
    axes = [*range(1, 2 * order, 2), *range(0, 2 * order, 2)]
    return tensor.reshape(sizes).permute(axes).reshape(shape.padded_out, shape.padded_in)


def dense_of(form):
    return torch.cat([part.to_dense() for part in form.parts])


def error_of(form, matrix):
    return float((matrix - dense_of(form)).norm() / matrix.norm())


@pytest.mark.parametrize("mode_sizes", [(14, 12, 15), (3, 40), (2, 9, 2, 11), (7,), (1, 6, 5)])
@pytest.mark.parametrize("max_params", [1, 60, 333, 10_000])
def test_tensor_train_ranks_are_the_largest_that_fit(mode_sizes, max_params):
    limits = [min(math.prod(mode_sizes[:k]), math.prod(mode_sizes[k:])) for k in range(1, len(mode_sizes))]

    def equal(rank):
        return tuple(min(rank, limit) for limit in limits)

    fitting = [rank for rank in range(2, 200) if tensor_train_params(mode_sizes, equal(rank)) <= max_params]
    least = equal(max(fitting, default=1))
    ranks = tensor_train_ranks(mode_sizes, max_params)
    raises = [rank - below for rank, below in zip(ranks, least, strict=True)]
    assert set(raises) <= {0, 1}
    assert ranks == least or tensor_train_params(mode_sizes, ranks) <= max_params
    for k, raised in enumerate(raises):
        larger = (*ranks[:k], ranks[k] + 1, *ranks[k + 1 :])
        assert raised or ranks[k] == limits[k] or tensor_train_params(mode_sizes, larger) > max_params


def test_parameters_left_raise_the_first_ranks_first():
    assert tensor_train_params((100, 36, 50), (5, 4)) == 1420
    assert tensor_train_ranks((100, 36, 50), 1419) == (4, 5)
    assert tensor_train_ranks((100, 36, 50), 1420) == (5, 4)
    assert tensor_train_ranks((100, 36, 50), 1650) == (5, 5)


def test_tensor_train_is_the_one_tensorly_finds_on_the_paired_modes(generator):
    matrix = torch.randn(84, 30, generator=generator, dtype=torch.float64)
    train, _ = structured_forms(matrix, MatrixShape(UNEVEN))
    tensorly.set_backend("pytorch")
    try:
        carriages = tensor_train(paired_tensor(matrix, UNEVEN), rank=[1, *train.ranks, 1])
        wanted = matrix_of(tensorly.tt_to_tensor(carriages), UNEVEN)
    finally:
        tensorly.set_backend("numpy")
    torch.testing.assert_close(dense_of(train), wanted, rtol=0, atol=1e-12)
    assert train.params == sum(math.prod(carriage.shape) for carriage in carriages) <= UNEVEN.n_params
    assert train.weight_error == pytest.approx(error_of(train, matrix), rel=1e-12)
    assert 0.1 < train.weight_error < 1


@pytest.mark.parametrize("free", [2**18, 100], ids=["whole core", "compressed core"])
def test_matrix_that_is_a_tensor_train_is_found_exactly(free, generator, monkeypatch):
    monkeypatch.setattr(hosvd, "_FREE_ENTRIES", free)
    shape = BlockTermShape((2, 3, 5), (7, 4, 3), (2, 2, 2), n_blocks=3)
    ranks = tensor_train_ranks(shape.mode_sizes, shape.n_params)
    assert ranks == (4, 3)
    first, second, third = (
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((14, 3), (3, 12, 3), (3, 15))
    )
    matrix = matrix_of(torch.einsum("ar,rbs,sc->abc", first, second, third), shape)
    train, greedy = structured_forms(matrix, MatrixShape(shape))
    assert train.weight_error < 1e-12
    assert greedy.weight_error > 1e-3


def test_greedy_deflation_is_that_of_the_paired_tensor_and_measured_on_the_matrix(generator):
    matrix = torch.randn(84, 30, generator=generator, dtype=torch.float64)
    _, greedy = structured_forms(matrix, MatrixShape(UNEVEN))
    tensor = greedy_deflation(paired_tensor(matrix, UNEVEN), UNEVEN.ranks, UNEVEN.n_blocks).to_tensor()
    torch.testing.assert_close(dense_of(greedy), matrix_of(tensor, UNEVEN), rtol=0, atol=1e-8)
    assert (greedy.ranks, greedy.params) == (UNEVEN.ranks, UNEVEN.n_params)
    assert greedy.weight_error == pytest.approx(error_of(greedy, matrix), rel=1e-12)


def test_one_block_is_found_exactly_by_greedy_deflation_and_several_are_not(generator):
    one = BlockTermShape((2, 3, 5), (7, 4, 3), (3, 2, 4))
    for shape, exact in ((one, True), (UNEVEN, False)):
        matrix = random_form(shape, generator).to_dense()
        _, greedy = structured_forms(matrix, MatrixShape(shape))
        assert (greedy.weight_error < 1e-12) == exact


def test_padded_matrices_are_measured_without_their_padding(generator):
    shape = BlockTermShape((2, 3, 5), (8, 4, 3), (2, 2, 3), n_blocks=2, in_size=29, out_size=88, n_gates=4)
    matrix = torch.randn(88, 29, generator=generator)
    for form in structured_forms(matrix, MatrixShape(shape)):
        assert dense_of(form).shape == (88, 29)
        assert form.weight_error == pytest.approx(error_of(form, matrix.double()), rel=1e-6)
        assert form.weight_error < 1


@pytest.mark.parametrize("free", [2**18, 100], ids=["whole core", "compressed core"])
def test_separate_gates_get_a_form_each_and_a_gate_of_zeros_stays_zero(free, generator, monkeypatch):
    monkeypatch.setattr(hosvd, "_FREE_ENTRIES", free)
    gate = BlockTermShape((2, 3, 5), (7, 4, 3), (2, 2, 2))
    shape = MatrixShape(gate, "separate")
    matrix = torch.randn(4 * 84, 30, generator=generator, dtype=torch.float64)
    matrix[84:168] = 0
    for form in structured_forms(matrix, shape):
        assert len(form.parts) == 4
        assert not form.parts[1].to_dense().any()
        assert form.params <= shape.n_params
        assert form.params % 4 == 0
        assert form.weight_error == pytest.approx(error_of(form, matrix), rel=1e-12)
        assert form.weight_error < 1


def test_low_rank_form_is_the_truncated_svd(generator):
    matrix = torch.randn(20, 33, generator=generator, dtype=torch.float64)
    form = low_rank_form(matrix, truncated_svd(matrix, 4 * 53 + 1))
    u, s, v = torch.linalg.svd(matrix)
    torch.testing.assert_close(dense_of(form), u[:, :4] @ s[:4].diag() @ v[:4], rtol=0, atol=1e-12)
    assert (form.ranks, form.params) == ((4,), 4 * 53)
    assert form.weight_error == pytest.approx(error_of(form, matrix), rel=1e-9)
    none = low_rank_form(matrix, truncated_svd(matrix, 52))
    assert none.skipped is not None
    assert none.parts == ()


def test_form_that_is_a_tensor_train_already_and_one_that_would_take_too_long_are_skipped(generator, monkeypatch):
    matrix = torch.randn(84, 30, generator=generator)
    for form in structured_forms(matrix, MatrixShape(BlockTermShape.low_rank(84, 30, 3))):
        assert "already" in form.skipped
        assert form.parts == ()
    monkeypatch.setattr(otherforms, "_LARGEST_CORE", 2519)
    train, greedy = structured_forms(matrix, MatrixShape(UNEVEN))
    assert "2,520 entries" in train.skipped
    assert greedy.skipped is None


def test_working_out_other_forms_leaves_tensorly_and_the_matrix_as_they_were(generator):
    matrix = torch.randn(84, 30, generator=generator)
    before = matrix.clone()
    assert tensorly.get_backend() == "numpy"
    structured_forms(matrix, MatrixShape(UNEVEN))
    assert tensorly.get_backend() == "numpy"
    assert torch.equal(matrix, before)


def test_ranks_beyond_what_the_modes_hold_are_lowered(generator):
    shape = BlockTermShape((2, 3), (3, 2), (50, 50))
    matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    train, greedy = structured_forms(matrix, MatrixShape(shape))
    assert train.ranks == (6,)
    assert greedy.ranks == (6, 6)
    for form in (train, greedy):
        assert all(isinstance(part, BlockTerm) for part in form.parts)
        assert form.weight_error < 1e-12
