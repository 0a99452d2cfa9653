import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btcompress.blockterm import BlockTerm
from btcompress.errors import BTCompressError
from btcompress.fit import (
    FitOptions,
    Samples,
    fed_back,
    fit_matrix,
    nearest,
    obstacle_to_integers,
    round_matrix,
    round_parts,
)
from btcompress.fit.inputfit import errors_on
from btcompress.fit.roundedforms import alike
from btcompress.fit.rounding import _fed_back, _moments, fed_back_by_ranks, with_scales
from btcompress.packing import Integers, to_rows
from btcompress.shapes import BlockTermShape, MatrixShape


def inputs_for(n_inputs, generator, n_rows=200):
    """Inputs whose directions differ in size and are not those of single columns."""
    turn = torch.randn(n_inputs, n_inputs, generator=generator)
    return torch.randn(n_rows, n_inputs, generator=generator) * torch.logspace(0, -2, n_inputs) @ turn


def missed(matrix, packed, inputs):
    return float(((packed.values() - matrix) @ inputs.T).square().sum())


def rounded_between_extremes(matrix, integers):
    """The simplest that can be stored: each group's range in equal steps that clip nothing, and no fitting."""
    whole = torch.empty_like(matrix)
    for first in range(0, matrix.shape[1], integers.group):
        own = matrix[:, first : first + integers.group]
        low, high = own.amin(1, keepdim=True).clamp_max(0), own.amax(1, keepdim=True).clamp_min(0)
        step = ((high - low) / (integers.most - 0.5)).clamp_min(1e-30)
        half = (-2 * low / step).round() / 2
        whole[:, first : first + integers.group] = ((own / step + half).round() - half) * step
    return whole


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 70), st.integers(2, 8), st.sampled_from([8, 16, 32, 1000]), st.integers(0, 2**31)
)
def test_every_value_is_the_nearest_that_its_group_has(rows, columns, bits, group, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator) * 10 ** float(torch.randn((), generator=generator))
    packed = nearest(matrix, Integers(bits, group))
    scales, zeros = (packed.integers.spread(each.float(), columns) for each in (packed.scales, packed.zeros))
    values = packed.values()
    for code in range(packed.integers.most + 1):
        other = (code - zeros / 2) * scales
        assert ((values - matrix).abs() <= (other - matrix).abs() * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [16, 32, 100])
def test_clipping_and_least_squares_never_lose_to_equal_steps(bits, group, generator):
    matrix = torch.distributions.Laplace(0.02, 0.1).sample((40, 100))
    packed = nearest(matrix, Integers(bits, group))
    error, plain = (
        float((each - matrix).norm()) for each in (packed.values(), rounded_between_extremes(matrix, packed.integers))
    )
    assert error < plain


def test_columns_that_count_more_come_out_closer(generator):
    matrix = torch.randn(50, 32, generator=generator)
    weights = torch.ones(32)
    weights[:4] = 1000.0
    even, uneven = (nearest(matrix, Integers(2, 32), each) for each in (None, weights))
    assert float((uneven.values() - matrix)[:, :4].norm()) < 0.8 * float((even.values() - matrix)[:, :4].norm())


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(3, 10),
        torch.full((3, 10), 0.7),
        torch.full((3, 10), -0.7),
        torch.arange(30.0).reshape(3, 10) + 100,
        torch.tensor([[0.0] * 9 + [5.0]] * 2),
    ],
    ids=["zeros", "one positive value", "one negative value", "all of one sign", "one entry"],
)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_groups_without_spread_are_kept(matrix, bits):
    packed = nearest(matrix, Integers(bits, 8))
    step = float(matrix.abs().max()) / packed.integers.most
    assert float((packed.values() - matrix).abs().max()) <= max(0.51 * step, 1e-3 * float(matrix.abs().max()))
    fed = fed_back(matrix, Integers(bits, 8), torch.eye(10))
    assert torch.isfinite(fed.values()).all()


def test_numbers_that_float16_scales_cannot_stand_for_are_told():
    assert obstacle_to_integers(torch.tensor([[1e6]]))
    assert obstacle_to_integers(torch.tensor([[1e-6]]))
    assert obstacle_to_integers(torch.tensor([[math.nan]]))
    assert not obstacle_to_integers(torch.tensor([[0.0, 3.0]]))


@pytest.mark.parametrize("integers", [(1, 32), (9, 32), (4, 7), (4, 0), (True, 32), (4.0, 32)])
def test_bits_and_groups_out_of_range_are_refused(integers):
    with pytest.raises(BTCompressError, match="must be a whole number"):
        Integers(*integers)


@pytest.mark.parametrize("group", [8, 32])
def test_error_feedback_is_that_of_the_plain_recursion(group, generator):
    """Frantar et al. 2022, eq. 2 and 3, by the inverse of the moments of the columns left, one entry at a time."""
    matrix, moments = torch.randn(3, 20, generator=generator), _moments(inputs_for(20, generator))
    integers = Integers(3, group)
    codes, scales, zeros = _fed_back(matrix, integers, moments, passes=0)
    left = matrix.double().clone()
    for c in range(20):
        inverse = torch.linalg.inv(moments[c:, c:])
        for row in range(3):
            scale, half = float(scales[row, c // group]), float(zeros[row, c // group]) / 2
            code = min(max(round(float(left[row, c]) / scale + half), 0), integers.most)
            assert code == int(codes[row, c])
            wrong = (float(left[row, c]) - (code - half) * scale) / float(inverse[0, 0])
            left[row, c:] -= wrong * inverse[0]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_error_feedback_beats_rounding_to_the_nearest_on_inputs_and_each_pass_the_one_before(bits, generator):
    matrix, inputs = torch.randn(40, 64, generator=generator), inputs_for(64, generator)
    integers = Integers(bits, 32)
    errors = [missed(matrix, nearest(matrix, integers), inputs)]
    errors += [missed(matrix, fed_back(matrix, integers, inputs, passes), inputs) for passes in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 * errors[0]


def test_many_inputs_are_rounded_in_stretches(generator, monkeypatch):
    matrix, inputs = torch.randn(4, 100, generator=generator), inputs_for(100, generator)
    monkeypatch.setattr("btcompress.fit.rounding._STRETCH", 40)
    packed = fed_back(matrix, Integers(3, 16), inputs)
    own = fed_back(matrix[:, 32:64], Integers(3, 16), inputs[:, 32:64])
    assert torch.equal(packed.codes[:, 32:64], own.codes)
    assert packed.scales.shape == (4, 7)


def test_inputs_that_are_all_zero_count_all_columns_alike(generator):
    matrix = torch.randn(4, 24, generator=generator)
    packed = fed_back(matrix, Integers(4, 8), torch.zeros(5, 24))
    assert missed(matrix, packed, torch.eye(24)) <= missed(matrix, nearest(matrix, Integers(4, 8)), torch.eye(24))


def test_ranks_take_up_the_errors_of_those_before(generator):
    left, given = torch.randn(12, 50, generator=generator), inputs_for(12, generator).double()
    integers, weights = Integers(3, 16), torch.ones(50)
    moments = given.T @ given

    def error(codes, scales, zeros):
        wide, half = (integers.spread(each.float(), 50) for each in (scales, zeros))
        off = left - (codes - half / 2) * wide
        return float((given.float() @ off).square().sum())

    errors = [error(*fed_back_by_ranks(left, integers, moments, weights, passes)) for passes in range(3)]
    plain = nearest(left, integers)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * error(plain.codes.float(), plain.scales, plain.zeros)


FORMS = {
    "low rank": MatrixShape(BlockTermShape.low_rank(48, 30, 6, 4)),
    "low rank, separate gates": MatrixShape(BlockTermShape.low_rank(12, 30, 3), "separate"),
    "Kronecker": MatrixShape(BlockTermShape((6, 5), (12, 4), (7, 7), n_gates=4, core="identity")),
    "blocks": MatrixShape(BlockTermShape((5, 3, 2), (8, 3, 2), (4, 3, 2), n_blocks=2, n_gates=4)),
    "padded": MatrixShape(BlockTermShape((7, 5), (16, 4), (5, 4), 2, 30, 48, 4)),
    "in orders": MatrixShape(BlockTermShape((6, 5), (12, 4), (5, 4), n_gates=4, row_order=True, column_order=True)),
}


def fitted(shape, generator):
    matrix = torch.randn(48, 30, generator=generator)
    parts = fit_matrix(matrix, shape.ordered(), FitOptions()).parts
    sizes = shape.part.order_sizes
    if sizes:
        orders = {name: torch.randperm(size, generator=generator) for name, size in sizes.items()}
        parts = tuple(part.ordered(orders) for part in parts)
    return matrix, parts


def plainly_rounded(parts, integers):
    return [
        BlockTerm.of(each.shape, [nearest(t, integers).values() for t in each.tensors], each.orders) for each in parts
    ]


@pytest.mark.parametrize("given", ["inputs", "entries"])
@pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)
def test_later_tensors_of_a_form_take_up_the_errors_of_those_before(shape, given, generator):
    matrix, parts = fitted(shape, generator)
    inputs = inputs_for(30, generator)
    samples = Samples(inputs, inputs, torch.rand(48, generator=generator) + 0.1) if given == "inputs" else None
    measured_on = samples or alike(matrix)
    for bits in (2, 3, 4):
        form = round_parts(matrix, parts, Integers(bits, 16), samples)
        plain = errors_on(matrix, plainly_rounded(parts, Integers(bits, 16)), measured_on).weighted
        assert errors_on(matrix, form.parts, measured_on).weighted <= plain
        assert [part.shape for part in form.parts] == [part.shape for part in parts]
    assert errors_on(matrix, form.parts, measured_on).weighted < plain  # at 4 bits strictly


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)
def test_what_is_stored_of_a_form_has_its_values(shape, dtype, generator):
    matrix, parts = fitted(shape, generator)
    form = round_parts(matrix.to(dtype), parts, Integers(4, 16))
    for part, stored in zip(form.parts, form.stored, strict=True):
        assert len(stored) == len(part.tensors)
        for tensor, packed in zip(part.tensors, stored, strict=True):
            assert tensor.dtype == packed.dtype == dtype
            assert torch.equal(packed.values(), tensor)
            assert packed.codes.shape == to_rows(tensor).shape


def test_a_form_in_floats_is_cast(generator):
    matrix, parts = fitted(FORMS["blocks"], generator)
    form = round_parts(matrix, parts, torch.float16)
    assert form.stored == ((torch.float16,) * 4,)
    assert all(torch.equal(tensor, tensor.half().float()) for tensor in form.parts[0].tensors)


def test_a_matrix_with_many_inputs_is_rounded_on_a_sketch_of_them(generator, monkeypatch):
    monkeypatch.setattr("btcompress.fit.roundedforms._MOST_DIRECTIONS", 20)
    matrix, parts = fitted(FORMS["blocks"], generator)
    first, again = (round_parts(matrix, parts, Integers(3, 16)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parts[0].tensors, again.parts[0].tensors, strict=True))
    assert alike(matrix).inputs.shape == (20, 30)


def test_given_scales_are_kept(generator):
    matrix = torch.randn(4, 20, generator=generator)
    before = nearest(matrix, Integers(4, 8))
    after = with_scales(matrix + 0.01, before.integers, before.scales, before.zeros)
    assert torch.equal(after.scales, before.scales)
    assert not torch.equal(after.codes, before.codes)


def test_a_dense_matrix_is_never_worse_on_inputs_held_back_than_its_nearest_integers(generator):
    matrix, integers = torch.randn(20, 64, generator=generator), Integers(3, 32)
    whole = torch.randn(8_000, 64, generator=generator)
    weights = torch.ones(20)
    few = Samples(torch.randn(10, 64, generator=generator), whole, weights)
    many = Samples(inputs_for(64, generator), inputs_for(64, torch.Generator().manual_seed(0)), weights)
    plain = nearest(matrix, integers)
    for samples, is_plain in ((few, True), (replace(many, held=many.inputs), False)):
        careful = round_matrix(matrix, integers, samples)
        assert torch.equal(careful.codes, plain.codes) is is_plain
        before, after = (errors_on(matrix, each.values(), samples).weighted for each in (plain, careful))
        assert after <= before
    assert torch.equal(round_matrix(matrix, integers).codes, plain.codes)
