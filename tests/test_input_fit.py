"""Fits of forms to what a matrix gives on inputs, and what they cost."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from btcompress.blockterm import BlockTerm
from btcompress.fit import Samples, fit_matrix, fit_to_inputs, inputfit
from btcompress.fit.inputfit import errors_on, low_rank_errors_on, weighted_size
from btcompress.fit.samples import output_errors
from btcompress.modes import ShapeRequest
from btcompress.plan.candidates import candidates
from btcompress.pricing import price_on_inputs
from btcompress.shapes import BlockTermShape, MatrixShape
from forms import random_form

#: All sizes differ; padded rows in each of two gates, padded columns; both orders.
UNEVEN = BlockTermShape((2, 3, 5), (4, 4, 3), (3, 2, 4), n_blocks=2)
PADDED = BlockTermShape((2, 3, 5), (4, 4, 3), (2, 2, 3), n_blocks=2, in_size=27, out_size=44, n_gates=2)
ORDERED = replace(UNEVEN, row_order=True, column_order=True)
KRONECKER = BlockTermShape((5, 6), (8, 6), (3, 3), core="identity")
SHAPES = {"uneven": UNEVEN, "padded": PADDED, "ordered": ORDERED, "Kronecker": KRONECKER}


def samples_for(shape, generator, n=60, rank=None):
    """Correlated inputs to fit on and others like them, and outputs that count from 0.1 to 1.1."""
    mixing = torch.randn(rank or shape.in_size, shape.in_size, generator=generator, dtype=torch.float64)

    def draw():
        return torch.randn(n, len(mixing), generator=generator, dtype=torch.float64) @ mixing / n**0.5

    return Samples(draw(), draw(), torch.rand(shape.out_size, generator=generator, dtype=torch.float64) + 0.1)


def weighted_error(matrix, parts, inputs, weights):
    """``||S (W - W') X|| / ||S W X||`` from the dense matrices."""
    missed = matrix - torch.cat([part.to_dense() for part in parts])
    return float((inputs @ missed.T * weights).norm() / (inputs @ matrix.T * weights).norm())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_error_on_the_inputs_fitted_to_never_rises_from_sweep_to_sweep(shape, generator):
    matrix = torch.randn(shape.out_size, shape.in_size, generator=generator, dtype=torch.float64)
    samples = samples_for(shape, generator)
    same = replace(samples, held=samples.inputs)
    form = (random_form(shape, generator),)
    errors = [weighted_error(matrix, form, samples.inputs, samples.weights)]
    for _ in range(6):
        form = fit_to_inputs(matrix, form, same, max_sweeps=1).parts
        errors.append(weighted_error(matrix, form, samples.inputs, samples.weights))
    assert all(later <= (1 + 1e-9) * earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_update_of_a_factor_is_the_least_squares_solution(shape, generator, monkeypatch):
    monkeypatch.setattr(inputfit, "_RIDGE", 0.0)
    plain = shape.ordered()
    matrix = torch.randn(plain.out_size, plain.in_size, generator=generator, dtype=torch.float64)
    samples = samples_for(plain, generator)
    form = random_form(plain, generator)
    problem = inputfit.Outputs.of_part(matrix, form, samples.inputs, samples.weights)
    for mode in range(plain.order):
        updated = problem.with_factor(form, mode)
        factor = updated.factors[mode].clone().requires_grad_()
        factors = (*form.factors[:mode], factor, *form.factors[mode + 1 :])
        dense = BlockTerm(plain, form.cores, factors).to_dense()
        missed = samples.inputs @ (matrix - dense).T * samples.weights
        missed.square().sum().backward()
        start = form.factors[mode].clone().requires_grad_()
        dense = BlockTerm(plain, form.cores, (*form.factors[:mode], start, *form.factors[mode + 1 :])).to_dense()
        (samples.inputs @ (matrix - dense).T * samples.weights).square().sum().backward()
        assert float(factor.grad.norm()) < 1e-6 * float(start.grad.norm())


def test_factors_with_many_entries_are_solved_for_on_several_threads(generator):
    shape = BlockTermShape((80, 3), (4, 5), (2, 2))
    matrix = torch.randn(shape.out_size, shape.in_size, generator=generator, dtype=torch.float64)
    samples = samples_for(shape, generator)
    samples = replace(samples, held=samples.inputs)
    start, threads = (random_form(shape, generator),), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        fitted = fit_to_inputs(matrix, start, samples, max_sweeps=2)
    finally:
        torch.set_num_threads(threads)
    assert fitted.n_sweeps
    assert fitted.errors.weighted < errors_on(matrix, start, samples).weighted


def test_cores_end_at_the_least_squares_solution(generator, monkeypatch):
    monkeypatch.setattr(inputfit, "_CORE_STEPS", (200, 200))
    matrix = torch.randn(UNEVEN.out_size, UNEVEN.in_size, generator=generator, dtype=torch.float64)
    samples = samples_for(UNEVEN, generator)
    form = random_form(UNEVEN, generator)
    problem = inputfit.Outputs.of_part(matrix, form, samples.inputs, samples.weights)
    cores = problem.with_cores(form).cores.requires_grad_()
    dense = BlockTerm(UNEVEN, cores, form.factors).to_dense()
    (samples.inputs @ (matrix - dense).T * samples.weights).square().sum().backward()
    wanted = torch.autograd.grad(problem.given(replace(form, cores=cores)).sum(), cores)[0].norm()
    assert float(cores.grad.norm()) < 1e-4 * float(wanted)


def test_a_matrix_that_has_the_form_where_its_inputs_go_is_found_whatever_it_is_elsewhere(generator):
    shape = BlockTermShape((3, 4, 4), (4, 4, 3), (2, 2, 2))
    form = random_form(shape, generator)
    samples = samples_for(shape, generator, rank=12)
    _, _, directions = torch.linalg.svd(samples.inputs, full_matrices=True)
    elsewhere = directions[12:].T @ directions[12:]
    noise = torch.randn(48, 48, generator=generator, dtype=torch.float64)
    matrix = form.to_dense() + 30 * noise @ elsewhere
    samples = replace(samples, held=samples.inputs)
    by_entries = fit_matrix(matrix, MatrixShape(shape)).parts
    fitted = fit_to_inputs(matrix, by_entries, samples, max_sweeps=200)
    assert weighted_error(matrix, by_entries, samples.inputs, samples.weights) > 0.5
    assert fitted.errors.weighted < 1e-3


def test_what_is_told_is_measured_on_inputs_held_back(generator):
    matrix = torch.randn(48, 30, generator=generator, dtype=torch.float64)
    samples = samples_for(UNEVEN, generator)
    fitted = fit_to_inputs(matrix, fit_matrix(matrix, MatrixShape(UNEVEN)).parts, samples)
    told = weighted_error(matrix, fitted.parts, samples.held, samples.weights)
    assert fitted.errors.weighted == pytest.approx(told, rel=1e-9)
    plain = weighted_error(matrix, fitted.parts, samples.held, torch.ones(48, dtype=torch.float64))
    assert fitted.errors.plain == pytest.approx(plain, rel=1e-9)
    assert told != pytest.approx(plain, rel=1e-3)


def test_fit_is_never_worse_than_its_start_on_inputs_held_back(generator):
    shape = BlockTermShape.low_rank(20, 15, 3)
    matrix = torch.randn(20, 15, generator=generator, dtype=torch.float64)
    samples = samples_for(shape, generator, n=4, rank=2)
    other = replace(samples, held=torch.randn(30, 15, generator=generator, dtype=torch.float64))
    start = fit_matrix(matrix, MatrixShape(shape)).parts
    fitted = fit_to_inputs(matrix, start, other)
    assert fitted.errors == errors_on(matrix, start, other)
    assert all(torch.equal(a, b) for a, b in zip(fitted.parts[0].tensors, start[0].tensors, strict=True))


@pytest.mark.parametrize("gates", ["fused", "separate"])
def test_low_rank_errors_are_those_of_the_fits_of_every_rank(gates, generator):
    n_parts = 4 if gates == "separate" else 1
    part = BlockTermShape.low_rank(24 // n_parts, 15, 1, n_gates=4 // n_parts)
    shape = MatrixShape(part, gates)
    matrix = torch.randn(24, 15, generator=generator, dtype=torch.float64)
    samples = samples_for(shape, generator)
    errors = low_rank_errors_on(matrix, shape, samples)
    for rank, told in enumerate(errors[:-1], 1):
        ranked = replace(shape, part=replace(part, ranks=(rank, rank)))
        fitted = fit_to_inputs(matrix, fit_matrix(matrix, ranked).parts, samples)
        assert fitted.errors.weighted <= (1 + 1e-9) * told.weighted
        again = fit_to_inputs(matrix, fit_matrix(matrix, ranked).parts, replace(samples, held=samples.inputs))
        same = low_rank_errors_on(matrix, ranked, replace(samples, held=samples.inputs))[rank - 1]
        assert (again.errors.weighted, again.errors.plain) == pytest.approx((same.weighted, same.plain), rel=1e-6)
    assert errors[-1].weighted < 1e-6


def test_outputs_that_are_all_zero_have_no_error_and_those_given_for_none_an_infinite_one():
    zeros, ones, weights = torch.zeros(3, 2), torch.ones(3, 2), torch.ones(2)
    assert output_errors(zeros, zeros, weights).weighted == 0
    assert output_errors(zeros, ones, weights).plain == math.inf


def test_modes_with_too_many_features_keep_their_factors(generator, monkeypatch):
    monkeypatch.setattr(inputfit, "_MOST_FEATURES", 2 * 5 * 4 - 1)
    matrix = torch.randn(48, 30, generator=generator, dtype=torch.float64)
    samples = samples_for(UNEVEN, generator)
    form = random_form(UNEVEN, generator)
    problem = inputfit.Outputs.of_part(matrix, form, samples.inputs, samples.weights)
    assert problem.with_factor(form, 2) is form
    assert problem.with_factor(form, 1) is not form


# Prices


def priced(matrix, samples, request=ShapeRequest(), n_gates=4):
    tried = candidates("weight", *matrix.shape, n_gates, request)
    return price_on_inputs(matrix, tried.without_core, tried.with_core, samples)


@pytest.mark.parametrize("size", [(32, 18), (24, 40), (28, 13)], ids=str)
def test_no_point_priced_on_inputs_is_beaten_and_low_rank_is_always_within_reach(size, generator):
    matrix = torch.randn(size, generator=generator, dtype=torch.float64)
    samples = samples_for(BlockTermShape.low_rank(*size, 1), generator)
    curve = priced(matrix, samples)
    counts, errors = [point.n_params for point in curve.points], [point.error for point in curve.points]
    assert counts == sorted(set(counts))
    assert errors == sorted(set(errors), reverse=True)
    assert counts[-1] < matrix.numel()
    low_rank = low_rank_errors_on(matrix, MatrixShape(BlockTermShape.low_rank(*size, 1, 4)), samples)
    for rank, told in enumerate(low_rank, 1):
        if rank * sum(size) < matrix.numel():
            assert curve.within(rank * sum(size)).error <= told.weighted
    assert curve.on_inputs
    products = samples.held @ matrix.T * samples.weights
    assert curve.stake == pytest.approx(float(products.norm())) == pytest.approx(weighted_size(matrix, samples))


def test_errors_foretold_on_inputs_are_reached_by_the_fit(generator):
    shape = BlockTermShape((3, 4, 4), (8, 4, 2), (2, 2, 2), n_gates=4)
    matrix = random_form(shape, generator).to_dense() + torch.randn(64, 48, generator=generator, dtype=torch.float64)
    samples = samples_for(shape, generator, rank=20)
    with_core = [point for point in priced(matrix, samples).points if point.shape.part.core == "full"]
    assert with_core
    for point in with_core:
        fitted = fit_to_inputs(matrix, fit_matrix(matrix, point.shape).parts, samples)
        assert fitted.errors.weighted <= 1.05 * point.error


def test_block_terms_that_low_rank_cannot_match_are_found_on_inputs(generator):
    shape = BlockTermShape((3, 4, 4), (8, 4, 2), (2, 2, 2), n_gates=4)
    matrix = random_form(shape, generator).to_dense()
    samples = samples_for(shape, generator)
    point = priced(matrix, samples, ShapeRequest(in_modes=(3, 4, 4), out_modes=(8, 4, 2))).within(shape.n_params)
    assert point.error < 0.1
    assert point.activation_error < 0.2
    ranks = low_rank_errors_on(matrix, MatrixShape(BlockTermShape.low_rank(64, 48, 1, 4)), samples)
    assert ranks[max(shape.n_params // (64 + 48), 1) - 1].weighted > 0.3
