"""A matrix rounded alone: which integers are tried, and what is measured of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btcompress.fit.rounding import nearest
from btcompress.packing import Integers
from btcompress.shapes import BlockTermShape
from btcompress.yardsticks import (
    INT4,
    fed_back_rounding,
    int8_by_rows,
    parts_in_8_bits,
    roundings_of,
    same_integers_within,
)
from btcompress.yardsticks import roundings as module
from btcompress.yardsticks.roundings import integers_within
from forms import UNEVEN, random_form

SHAPES = st.tuples(st.integers(1, 90), st.integers(1, 400))


def candidates(shape, max_bytes):
    """All integers within so many bytes, as bits and group, no group larger than a row or 8."""
    groups = {min(group, max(shape[1], 8)) for group in (32, 64, 128, 10**9)}
    every = [Integers(bits, group) for bits in range(2, 9) for group in groups]
    return [each for each in every if each.n_bytes(shape) <= max_bytes]


def error_of(matrix, values):
    return float((matrix.double() - values.double()).norm() / matrix.double().norm())


@given(SHAPES, st.integers(0, 9))
def test_integers_within_some_bytes_are_those_that_no_others_beat_in_bits_and_in_groups(shape, eighths):
    max_bytes = shape[0] * shape[1] * eighths // 8 + 3 * shape[0]
    found = integers_within(shape, max_bytes)
    every = candidates(shape, max_bytes)
    kept = {(each.bits, each.group) for each in every if not any(_beats(other, each) for other in every)}
    assert {(each.bits, each.group) for each in found} == kept
    assert [each.group for each in found] == sorted(each.group for each in found)


def _beats(one, other):
    return one != other and one.bits >= other.bits and one.group <= other.group


@given(st.lists(SHAPES, min_size=1, max_size=4), st.integers(0, 40))
def test_the_same_integers_for_all_have_the_most_bits_and_then_the_smallest_groups_that_fit(shapes, tenths):
    max_bytes = sum(rows * columns for rows, columns in shapes) * tenths // 10 + 5
    fitting = []
    for bits in range(2, 9):
        for group in (32, 64, 128, max(8, *(shape[1] for shape in shapes))):
            every = [Integers(bits, min(group, max(shape[1], 8))) for shape in shapes]
            if sum(each.n_bytes(shape) for each, shape in zip(every, shapes, strict=True)) <= max_bytes:
                fitting.append((bits, -group, every))
    found = same_integers_within(shapes, max_bytes)
    assert list(found) == (max(fitting, key=lambda each: each[:2])[2] if fitting else [])


@pytest.mark.parametrize("chunk", [2**22, 100])
def test_roundings_are_int8_by_rows_int4_and_the_best_within_and_measured_on_all_rows(chunk, generator, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ENTRIES", chunk)
    matrix = torch.randn(23, 70, generator=generator, dtype=torch.float64)
    found = roundings_of(matrix, 23 * 70 // 2 + 23 * 3)
    assert [str(each.integers) for each in found] == ["int8/70", "int4/32", "int4/70"]
    for each in found:
        assert each.error == pytest.approx(error_of(matrix, nearest(matrix, each.integers).values()), rel=1e-6)
        assert each.n_bytes == each.integers.n_bytes((23, 70))
    assert not any(each.fed_back for each in found)
    assert [str(each.integers) for each in roundings_of(matrix, 10)] == ["int8/70", "int4/32"]


def test_rows_shorter_than_the_smallest_group_are_one_group(generator):
    matrix = torch.randn(12, 5, generator=generator)
    assert int8_by_rows(5) == Integers(8, 8)
    assert [str(each.integers) for each in roundings_of(matrix, 10_000)] == ["int8/8", "int4/32"]


@pytest.mark.parametrize("value", [0.0, 1e9, 1e-9], ids=["zeros", "huge", "tiny"])
def test_zeros_and_numbers_out_of_range_are_not_rounded(value):
    assert roundings_of(torch.full((6, 40), value), 10_000) == ()


def test_errors_fed_back_are_less_on_the_inputs_and_more_in_the_weights(generator):
    matrix = torch.randn(40, 64, generator=generator)
    inputs = torch.randn(300, 10, generator=generator) @ torch.randn(10, 64, generator=generator)
    (plain,) = [each for each in roundings_of(matrix, 0) if each.integers == INT4]
    rounding, values = fed_back_rounding(matrix, plain, inputs)
    assert (rounding.integers, rounding.n_bytes, rounding.fed_back) == (plain.integers, plain.n_bytes, True)
    assert rounding.error == pytest.approx(error_of(matrix, values), rel=1e-6)
    wanted = inputs @ matrix.T
    rounded = nearest(matrix, INT4).values()
    assert error_of(wanted, inputs @ values.T) < 0.6 * error_of(wanted, inputs @ rounded.T)
    assert rounding.error > plain.error


def test_parts_in_8_bits_are_near_and_say_what_they_save(generator):
    form = random_form(UNEVEN, generator).to(torch.float32)
    (eight,), integers, saved = parts_in_8_bits([form])
    assert integers == Integers(8, 32)
    assert saved == sum(tensor.nbytes - integers.n_bytes(tensor.shape) for tensor in form.tensors)
    for before, after in zip(form.tensors, eight.tensors, strict=True):
        assert torch.equal(after, nearest(before, integers).values())
    assert 0 < error_of(form.to_dense(), eight.to_dense()) < 0.02
    low_rank = random_form(BlockTermShape.low_rank(9, 7, 3), generator)
    (again,), _, saved = parts_in_8_bits([low_rank])
    assert saved == sum(tensor.nbytes - integers.n_bytes(tensor.shape) for tensor in low_rank.factors)
    assert torch.equal(again.cores, low_rank.cores)


def test_parts_out_of_range_are_not_in_8_bits(generator):
    form = random_form(UNEVEN, generator).to(torch.float32)
    scaled = type(form)(form.shape, form.cores * 1e7, form.factors)
    assert parts_in_8_bits([form, scaled]) is None
