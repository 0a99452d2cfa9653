import itertools
import math

import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import tucker
from torch import nn

from btcompress.blockterm import BlockTerm
from btcompress.errors import BTCompressError, ShapeError
from btcompress.fit import FitOptions, Samples, balanced, fit, fit_matrix, fit_to_inputs, hosvd, weight_error
from btcompress.fit.lowrank import joint_errors, kronecker_errors
from btcompress.fit.start import greedy_deflation, random_blocks
from btcompress.fit.sweeps import _solve, _solve_cores, sweep_until_stable
from btcompress.nn import BTLSTM
from btcompress.shapes import MAX_ORDER, BlockTermShape, MatrixShape
from btcompress.yardsticks import truncated_svd
from forms import UNEVEN, random_form

EXACT = FitOptions(max_sweeps=300, tolerance=1e-9, restarts=60)


def paired_tensor(matrix, shape):
    """The order-d tensor with modes I_k * J_k, straight from the definition."""
    order = shape.order
    tensor = matrix.reshape(*shape.out_modes, *shape.in_modes)
    return tensor.permute([axis for k in range(order) for axis in (order + k, k)]).reshape(shape.mode_sizes)


def greedy_error(matrix, shape):
    """Greedy deflation with TensorLy's Tucker on the full tensor."""
    residual = paired_tensor(matrix, shape)
    norm = residual.norm()
    for _ in range(shape.n_blocks):
        with tensorly.backend_context("pytorch", local_threadsafe=True):
            core, factors = tucker(residual, rank=list(shape.limited().ranks), init="svd", random_state=0)
            residual = residual - tensorly.tucker_to_tensor((core, factors))
    return float(residual.norm() / norm)


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_exact_block_term_matrices_are_recovered_with_restarts(n_blocks, seed):
    shape = BlockTermShape((3, 2, 4), (4, 5, 2), (2, 2, 2), n_blocks)
    matrix = random_form(shape, torch.Generator().manual_seed(seed)).to_dense()
    fitted = fit(matrix, shape, EXACT)
    assert fitted.weight_error < 1e-6
    assert weight_error(matrix, (fitted.value,)) < 1e-6


def test_exact_matrices_with_uneven_ranks_are_recovered(generator):
    shape = BlockTermShape((2, 3, 5), (7, 4, 3), (3, 2, 4), n_blocks=1)
    matrix = random_form(shape, generator).to_dense()
    assert weight_error(matrix, (fit(matrix, shape).value,)) < 1e-12


@pytest.mark.parametrize("start", ["greedy", "random"])
def test_error_never_rises_over_sweeps(start, generator):
    tensor = torch.randn(9, 7, 8, dtype=torch.float64, generator=generator)
    ranks = (3, 2, 4)
    blocks = greedy_deflation(tensor, ranks, 3) if start == "greedy" else random_blocks(tensor, ranks, 3, generator)
    errors = [float((tensor - blocks.to_tensor()).norm() / tensor.norm())]
    result = sweep_until_stable(tensor, blocks, 40, 0.0, lambda sweep: errors.append(sweep.error))
    assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0]
    assert result.error == errors[-1]
    assert float((tensor - result.blocks.to_tensor()).norm() / tensor.norm()) == pytest.approx(result.error, abs=1e-12)


def test_one_sweep_solves_each_update_to_its_least_squares_optimum(generator):
    tensor = torch.randn(6, 5, 7, dtype=torch.float64, generator=generator)
    blocks = sweep_until_stable(tensor, random_blocks(tensor, (2, 3, 2), 2, generator), 1, 0.0).blocks
    cores = blocks.cores.clone().requires_grad_()
    loss = (tensor - type(blocks)(cores, blocks.factors).to_tensor()).square().sum()
    (gradient,) = torch.autograd.grad(loss, cores)
    assert gradient.abs().max() < 1e-9


def test_core_systems_solved_directly_and_by_conjugate_gradients_agree(generator, monkeypatch):
    tensor = torch.randn(6, 5, 7, dtype=torch.float64, generator=generator)
    start = random_blocks(tensor, (2, 3, 2), 2, generator)
    direct = sweep_until_stable(tensor, start, 3, 0.0)
    monkeypatch.setattr("btcompress.fit.sweeps.DIRECT_UNKNOWNS", 0)
    iterative = sweep_until_stable(tensor, start, 3, 0.0)
    torch.testing.assert_close(iterative.blocks.to_tensor(), direct.blocks.to_tensor())


@pytest.mark.parametrize("n_blocks", [2, 3])
@pytest.mark.parametrize("twins", [False, True], ids=["apart", "two alike"])
def test_cores_found_without_decomposing_the_first_are_those_of_the_whole_system(n_blocks, twins, generator):
    tensor = torch.randn(6, 5, 7, dtype=torch.float64, generator=generator)
    factors = random_blocks(tensor, (2, 3, 2), n_blocks, generator).factors
    if twins:
        factors = [torch.cat([factor[:1], factor[:1], factor[2:]]) for factor in factors]
    sums = torch.stack(
        [torch.einsum("ar,bs,ct->abcrst", *each).reshape(210, 12) for each in zip(*factors, strict=True)]
    )
    columns = sums.permute(1, 0, 2).reshape(210, -1)
    gram, right = columns.T @ columns, columns.T @ tensor.reshape(-1, 1)
    torch.testing.assert_close(_solve_cores(gram, right, 12), _solve(gram, right))
    torch.testing.assert_close(_solve_cores(gram, right, 12), torch.linalg.pinv(gram, hermitian=True) @ right)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([(2, 2, 2), (3, 1, 2), (4, 4, 4), (1, 1, 1)]))
def test_joint_fit_is_never_worse_than_greedy_deflation(seed, n_blocks, ranks):
    generator = torch.Generator().manual_seed(seed)
    shape = BlockTermShape((3, 4, 2), (4, 2, 3), ranks, n_blocks)
    matrix = torch.randn(24, 24, dtype=torch.float64, generator=generator)
    assert fit(matrix, shape).weight_error <= greedy_error(matrix, shape) + 1e-12


def test_joint_fit_beats_greedy_deflation_where_blocks_overlap():
    shape = BlockTermShape((3, 2, 4), (4, 5, 2), (2, 2, 2), 2)
    matrix = random_form(shape, torch.Generator().manual_seed(5)).to_dense()
    assert fit(matrix, shape).weight_error < 0.1 * greedy_error(matrix, shape)


@pytest.mark.parametrize("shape", [((6, 5), (4, 7)), ((2, 3, 5), (7, 4, 3)), ((30,), (28,))], ids=str)
def test_full_rank_is_exact(shape, generator):
    in_modes, out_modes = shape
    matrix = torch.randn(math.prod(out_modes), math.prod(in_modes), dtype=torch.float64, generator=generator)
    full = BlockTermShape(in_modes, out_modes, (10_000,) * len(in_modes))
    if len(in_modes) == 1:  # One mode is one vector, which a core of size 1 scales.
        assert full.limited().ranks == (1,)
    assert weight_error(matrix, (fit(matrix, full).value,)) < 1e-12


def test_low_rank_matrices_are_block_terms_with_unpaired_modes(generator):
    matrix = torch.randn(28, 30, dtype=torch.float64, generator=generator)
    shape = BlockTermShape((30, 1), (1, 28), (5, 5))
    fitted = fit(matrix, shape)
    assert fitted.weight_error == pytest.approx(truncated_svd(matrix, 5 * (28 + 30)).error, abs=1e-9)


WITHOUT_CORE = {
    "low rank, tall": BlockTermShape.low_rank(28, 18, 5),
    "low rank, wide": BlockTermShape.low_rank(18, 28, 5),
    "Kronecker products": BlockTermShape((2, 9), (7, 4), (5, 5), core="identity"),
}


@pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
@pytest.mark.parametrize("case", WITHOUT_CORE)
def test_forms_without_a_core_are_the_truncated_svd_of_the_rearranged_matrix(case, small, generator, monkeypatch):
    if not small:
        monkeypatch.setattr("btcompress.fit.lowrank.SMALL_ENTRIES", 0)
    shape = WITHOUT_CORE[case]
    matrix = torch.randn(shape.out_size, shape.in_size, dtype=torch.float64, generator=generator)
    values = torch.linalg.svdvals(paired_tensor(matrix, shape))
    fitted = fit(matrix, shape)
    assert fitted.weight_error == pytest.approx(float(values[5:].norm() / values.norm()), rel=1e-9)
    assert weight_error(matrix, (fitted.value,)) == fitted.weight_error
    assert fitted.norm == pytest.approx(float(matrix.norm()))
    assert fitted.value.n_params == 5 * sum(shape.mode_sizes)
    norms = [tensor.norm() for tensor in fitted.value.tensors]
    torch.testing.assert_close(norms[0], norms[1])
    errors = kronecker_errors(matrix, shape, torch.device("cpu"))
    expected = [float(values[rank:].norm() / values.norm()) for rank in range(1, len(values) + 1)]
    torch.testing.assert_close(errors, torch.tensor(expected, dtype=torch.float64))


def test_separate_low_rank_gates_share_their_errors(generator):
    matrices = (
        torch.randn(4, 7, 18, dtype=torch.float64, generator=generator) * torch.tensor([1, 2, 3, 9.0])[:, None, None]
    )
    errors = joint_errors(matrices, torch.device("cpu"))
    for rank in (1, 4, 7):
        fitted = fit_matrix(matrices.reshape(28, 18), MatrixShape(BlockTermShape.low_rank(7, 18, rank), "separate"))
        assert fitted.weight_error == pytest.approx(float(errors[rank - 1]), abs=1e-9)


def test_zero_matrices_without_a_core_stay_zero():
    fitted = fit(torch.zeros(28, 18), BlockTermShape.low_rank(28, 18, 5))
    assert fitted.value.n_params == 5 * (28 + 18)
    assert not fitted.value.to_dense().any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_badly_scaled_matrices_fit_as_well_as_others(scale, generator):
    matrix = random_form(UNEVEN, generator).to_dense() + torch.randn(84, 30, dtype=torch.float64, generator=generator)
    shape = BlockTermShape((2, 3, 5), (7, 4, 3), (2, 2, 2), 2)
    plain, scaled = fit(matrix.float(), shape), fit((matrix * scale).float(), shape)
    assert all(tensor.isfinite().all() for tensor in scaled.value.tensors)
    assert scaled.weight_error == pytest.approx(plain.weight_error, rel=1e-4)
    stored = scaled.value.to(torch.float32)
    assert weight_error((matrix * scale).float(), (stored,)) == pytest.approx(scaled.weight_error, rel=1e-4)


def test_extreme_float64_scales_stay_finite(generator):
    matrix = torch.randn(24, 12, dtype=torch.float64, generator=generator)
    shape = BlockTermShape((3, 4), (4, 6), (3, 3), 2)
    errors = [fit(matrix * scale, shape).weight_error for scale in (1.0, 1e200, 1e-200)]
    assert errors[1:] == pytest.approx([errors[0]] * 2, rel=1e-9)


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_zero_constant_and_rank_one_matrices_come_out_exact(n_blocks, generator):
    shape = BlockTermShape((2, 3, 5), (7, 4, 3), (2, 2, 2), n_blocks)
    zero = torch.zeros(84, 30, dtype=torch.float64)
    kron = [
        torch.randn(j, i, dtype=torch.float64, generator=generator) for i, j in zip((2, 3, 5), (7, 4, 3), strict=True)
    ]
    rank_one = torch.kron(torch.kron(kron[0], kron[1]), kron[2])
    for matrix in (zero, torch.full_like(zero, -3.5), rank_one):
        fitted = fit(matrix, shape)
        assert all(tensor.isfinite().all() for tensor in fitted.value.tensors)
        assert weight_error(matrix, (fitted.value,)) < 1e-12
        torch.testing.assert_close(fitted.value.to_dense(), matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_dtypes_are_fitted_in_float64(dtype, generator):
    matrix = torch.randn(84, 30, dtype=torch.float64, generator=generator).to(dtype)
    shape = BlockTermShape((2, 3, 5), (7, 4, 3), (3, 2, 4), 2)
    fitted = fit(matrix, shape)
    assert fitted.value.cores.dtype == torch.float64
    assert fitted.weight_error == fit(matrix.double(), shape).weight_error


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_fitting_changes_nothing_it_was_given(dtype, generator):
    matrix = torch.randn(84, 30, dtype=torch.float64, generator=generator).to(dtype)
    before = matrix.clone()
    fit(matrix, UNEVEN)
    truncated_svd(matrix, 500)
    assert torch.equal(matrix, before)


def test_rank_above_what_modes_hold_is_lowered_not_a_crash(generator):
    matrix = torch.randn(12, 6, dtype=torch.float64, generator=generator)
    fitted = fit(matrix, BlockTermShape((2, 3), (4, 3), (50, 50), 3))
    assert fitted.value.shape.ranks == (8, 8)
    assert fitted.weight_error < 1e-10


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_matrices_that_are_not_finite_are_refused(value):
    matrix = torch.ones(12, 6)
    matrix[3, 4] = value
    with pytest.raises(BTCompressError, match="not finite"):
        fit(matrix, BlockTermShape((2, 3), (4, 3), (2, 2)))


def test_matrix_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="12 x 7"):
        fit_matrix(torch.ones(12, 7), MatrixShape(BlockTermShape((2, 3), (4, 3), (2, 2))))


def test_same_seed_gives_the_same_numbers_and_another_seed_may_not(generator):
    matrix = torch.randn(84, 30, dtype=torch.float64, generator=generator)
    shape = BlockTermShape((2, 3, 5), (7, 4, 3), (2, 2, 2), 2)

    def tensors(seed):
        torch.rand(seed + 1)  # The global generator must not matter.
        return fit(matrix, shape, FitOptions(seed=seed, restarts=1)).value.tensors

    assert all(torch.equal(a, b) for a, b in zip(tensors(3), tensors(3), strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_rounding_does_not_choose_among_forms_of_one_error(seed):
    shape = BlockTermShape((4, 6), (8, 3), (2, 2), 2)  # of order 2: many are as near as the SVD
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(24, 24, dtype=torch.float64, generator=generator)
    rounded = matrix * (1 + 1e-13 * torch.randn(24, 24, dtype=torch.float64, generator=generator))
    for ours, theirs in zip(fit(matrix, shape).value.tensors, fit(rounded, shape).value.tensors, strict=True):
        torch.testing.assert_close(ours.abs(), theirs.abs(), rtol=1e-6, atol=1e-6)


def test_restarts_never_make_a_fit_worse(generator):
    matrix = torch.randn(84, 30, dtype=torch.float64, generator=generator)
    shape = BlockTermShape((2, 3, 5), (7, 4, 3), (2, 2, 2), 2)
    errors = [fit(matrix, shape, FitOptions(restarts=restarts)).weight_error for restarts in (0, 2, 4)]
    assert errors == sorted(errors, reverse=True)


def test_separate_gates_are_four_fits_of_their_own(generator):
    matrix = torch.randn(4 * 12, 6, dtype=torch.float64, generator=generator)
    part = BlockTermShape((2, 3), (4, 3), (2, 3), 2)
    fitted = fit_matrix(matrix, MatrixShape(part, "separate"))
    for rows, form in zip(matrix.split(12), fitted.parts, strict=True):
        torch.testing.assert_close(form.to_dense(), fit(rows, part).value.to_dense())
    assert fitted.weight_error == pytest.approx(weight_error(matrix, fitted.parts), rel=1e-9)


def test_reported_error_is_the_error_of_the_matrix(generator):
    matrix = torch.randn(84, 30, dtype=torch.float64, generator=generator)
    fitted = fit(matrix, UNEVEN)
    direct = float((matrix - fitted.value.to_dense()).norm() / matrix.norm())
    assert fitted.weight_error == pytest.approx(direct, rel=1e-9)
    assert weight_error(matrix, (fitted.value,)) == pytest.approx(direct, rel=1e-9)


def test_padded_rows_and_columns_do_not_count_in_the_error(generator):
    shape = BlockTermShape((2, 3, 2), (8, 2, 3), (2, 2, 2), 2, in_size=11, out_size=40, n_gates=4)
    matrix = torch.randn(40, 11, dtype=torch.float64, generator=generator)
    form = fit(matrix, shape).value
    direct = float((matrix - form.to_dense()).norm() / matrix.norm())
    assert weight_error(matrix, (form,)) == pytest.approx(direct, rel=1e-9)


def test_padded_exact_matrices_are_recovered(generator):
    shape = BlockTermShape((2, 3, 2), (8, 2, 3), (99, 99, 99), in_size=11, out_size=40, n_gates=4)
    matrix = torch.randn(40, 11, dtype=torch.float64, generator=generator)
    assert weight_error(matrix, (fit(matrix, shape).value,)) < 1e-12


def test_compressing_a_large_core_loses_no_exact_block_terms(generator, monkeypatch):
    shape = BlockTermShape((5, 4, 6), (8, 5, 4), (2, 2, 2), 1)
    matrix = random_form(shape, generator).to_dense()
    monkeypatch.setattr(hosvd, "_FREE_ENTRIES", 64)
    compression = hosvd.compress(matrix, shape, float(matrix.abs().max()), torch.device("cpu"))
    assert compression.core.shape == (6, 6, 6)
    assert fit(matrix, shape).weight_error < 1e-7
    assert weight_error(matrix, (fit(matrix, shape).value,)) < 1e-12


@pytest.mark.parametrize("first_kept", [True, False], ids=["first mode whole", "all truncated"])
def test_compression_is_the_projection_onto_its_bases(first_kept, generator, monkeypatch):
    shape = BlockTermShape(
        (2, 6, 5), (4, 5, 6), (3 if first_kept else 1, 1, 2), 1, in_size=59, out_size=120 - 8, n_gates=4
    )
    matrix = torch.randn(112, 59, dtype=torch.float64, generator=generator)
    monkeypatch.setattr(hosvd, "_FREE_ENTRIES", 1)
    compression = hosvd.compress(matrix, shape, 2.0, torch.device("cpu"))
    tensor = paired_tensor(hosvd.pad_matrix(matrix, shape), shape) / 2.0
    core = torch.einsum("abc,ax,by,cz->xyz", tensor, *compression.bases)
    torch.testing.assert_close(compression.core, core)
    for basis in compression.bases:
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    assert compression.norm == pytest.approx(float(matrix.norm()))
    assert compression.missed == pytest.approx(1 - float(core.square().sum() / tensor.square().sum()))


def test_balancing_keeps_the_matrix_and_evens_out_the_norms(generator):
    form = random_form(UNEVEN, generator)
    skewed = BlockTerm(UNEVEN, form.cores * 1e6, (form.factors[0] * 1e-4, *form.factors[1:]))
    even = balanced(skewed)
    torch.testing.assert_close(even.to_dense(), skewed.to_dense())
    norms = torch.stack([tensor.flatten(1).norm(dim=1) for tensor in even.tensors])
    torch.testing.assert_close(norms, norms[0].expand_as(norms))


@pytest.mark.parametrize("size", [(20, 33), (33, 20)], ids=str)
def test_truncated_svd_is_the_best_low_rank_matrix_of_that_size(size, generator):
    matrix = torch.randn(size, dtype=torch.float64, generator=generator)
    yardstick = truncated_svd(matrix, 53 * 4 + 52)
    values = torch.linalg.svdvals(matrix)
    assert yardstick.rank == 4
    assert yardstick.error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-9)


def test_truncated_svd_without_room_for_rank_one_keeps_nothing():
    assert truncated_svd(torch.ones(20, 33), 52) == truncated_svd(torch.ones(20, 33), 0)
    assert (truncated_svd(torch.ones(20, 33), 52).rank, truncated_svd(torch.ones(20, 33), 52).error) == (0, 1.0)


def test_truncated_svd_with_room_for_everything_is_exact():
    assert truncated_svd(torch.eye(20), 10**9).error == 0.0


def test_sweep_that_would_raise_the_error_is_thrown_away(generator, monkeypatch):
    tensor = torch.randn(6, 5, 7, dtype=torch.float64, generator=generator)
    start = sweep_until_stable(tensor, random_blocks(tensor, (2, 3, 2), 2, generator), 5, 0.0)
    worse = type(start.blocks)(torch.zeros_like(start.blocks.cores), start.blocks.factors)
    monkeypatch.setattr("btcompress.fit.sweeps._sweep", lambda tensor, blocks: worse)
    result = sweep_until_stable(tensor, start.blocks, 5, 0.0)
    assert result.blocks is start.blocks
    assert (result.error, result.converged) == (start.error, True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_error_of_a_truncated_core_counts_what_was_cut_off(dtype, generator, monkeypatch):
    shape = BlockTermShape((5, 4, 6), (8, 5, 4), (2, 2, 2), 1)
    matrix = torch.randn(160, 120, dtype=torch.float64, generator=generator).to(dtype)
    monkeypatch.setattr(hosvd, "_FREE_ENTRIES", 64)
    fitted = fit(matrix, shape)
    assert fitted.weight_error == pytest.approx(weight_error(matrix, (fitted.value,)), rel=1e-6)


def test_a_form_of_the_largest_order_is_fitted_formed_multiplied_and_run(generator):
    """Two blocks of few entries: 2 x 2 x 1 .. by 4 x 1 .. x 2; every way through the package names all modes."""
    order = MAX_ORDER
    shape = BlockTermShape((2, 3) + (1,) * (order - 2), (4,) + (1,) * (order - 2) + (2,), (2,) * order, 2)
    matrix = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    fitted = fit(matrix, shape)
    formed = fitted.value.to_dense()
    assert float((matrix - formed).norm() / matrix.norm()) == pytest.approx(fitted.weight_error, rel=1e-9)
    inputs = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(fitted.value.matmul(inputs), inputs @ formed.T)
    samples = Samples(inputs, inputs, torch.ones(8, dtype=torch.float64))
    assert fit_to_inputs(matrix, [fitted.value], samples, 2).parts[0].shape.order == order
    lstm = BTLSTM.from_dense(nn.LSTM(6, 2), cp_rank=2, tucker_rank=2, in_modes=shape.in_modes)
    lstm(torch.randn(3, 1, 6))[0].sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in lstm.parameters())
