"""Numbers in few bits: what is packed comes back, takes the bytes that it is said to, and lies as the page says."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btcompress.checkpoint.storage import to_file
from btcompress.errors import BTCompressError, ShapeError
from btcompress.fit.rounding import nearest
from btcompress.packing import (
    Integers,
    Packed,
    bytes_of,
    from_rows,
    pack_bits,
    precision_of,
    precision_text,
    rows_and_columns,
    to_rows,
    unpack_bits,
)

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)
INTEGERS = st.builds(Integers, st.integers(2, 8), st.sampled_from([8, 9, 32, 2**40]))


@st.composite
def numbers(draw):
    width = draw(st.integers(1, 9))
    return width, draw(st.lists(st.integers(0, 2**width - 1), max_size=60))


@st.composite
def packed_tensors(draw):
    """Any codes, scales and zero points that a tensor may have."""
    shape, integers = draw(SHAPES), draw(INTEGERS)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, columns = rows_and_columns(shape)
    groups = (rows, integers.n_groups(columns))
    codes = torch.randint(0, integers.most + 1, (rows, columns), generator=generator).to(torch.uint8)
    scales = (torch.rand(groups, generator=generator) * draw(st.sampled_from([0.0, 1e-6, 1.0, 100.0]))).half()
    zeros = torch.randint(0, 2 * integers.most + 2, groups, generator=generator).to(torch.int16)
    return Packed(integers, shape, draw(st.sampled_from([torch.float32, torch.float64])), codes, scales, zeros)


@given(numbers())
def test_numbers_lie_bit_after_bit_as_the_page_says(drawn):
    width, values = drawn
    packed = pack_bits(torch.tensor(values, dtype=torch.int16), width)
    assert len(packed) == math.ceil(len(values) * width / 8)
    bits = [0] * (8 * len(packed))
    for n, value in enumerate(values):
        for k in range(width):
            bits[n * width + k] = value >> k & 1
    assert [int(byte) >> k & 1 for byte in packed for k in range(8)] == bits
    assert unpack_bits(packed, width, len(values)).tolist() == values


def test_the_example_of_the_page():
    assert pack_bits(torch.tensor([5, 2, 4]), 3).tolist() == [0b00010101, 0b00000001]


@pytest.mark.parametrize("chunk", [1, 3])
def test_packing_a_part_at_a_time_gives_the_same_bytes(monkeypatch, chunk, generator):
    values = torch.randint(0, 2**5, (201,), generator=generator)
    whole = pack_bits(values, 5)
    monkeypatch.setattr("btcompress.packing._CHUNK", chunk)
    assert torch.equal(pack_bits(values, 5), whole)
    assert torch.equal(unpack_bits(whole, 5, 201), values.to(torch.int16))


@given(numbers().filter(lambda drawn: drawn[1]), st.integers(-2, 2).filter(bool))
def test_more_or_fewer_bytes_than_the_numbers_take_are_refused(drawn, more):
    width, values = drawn
    packed = pack_bits(torch.tensor(values), width)
    changed = torch.cat([packed, torch.zeros(more, dtype=torch.uint8)]) if more > 0 else packed[:more]
    with pytest.raises(ShapeError, match=f"{width} bits are"):
        unpack_bits(changed, width, len(values))


def test_bits_beyond_the_last_number_are_refused():
    packed = pack_bits(torch.tensor([5, 2, 4]), 3)
    for place in range(1, 8):
        with pytest.raises(ShapeError, match="beyond the last number"):
            unpack_bits(packed | torch.tensor([0, 1 << place], dtype=torch.uint8), 3, 3)


@given(SHAPES)
def test_rows_of_a_tensor_make_it_again(shape):
    tensor = torch.arange(math.prod(shape)).reshape(shape)
    rows = to_rows(tensor)
    assert tuple(rows.shape) == rows_and_columns(shape)
    assert torch.equal(from_rows(rows, shape), tensor)


def test_a_row_of_a_factor_is_what_one_rank_of_one_block_has():
    factor = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    rows = to_rows(factor)
    for n in range(2):
        for r in range(5):
            assert rows[n * 5 + r].tolist() == [factor[n, i, j, r] for i in range(3) for j in range(4)]


@settings(deadline=None)
@given(packed_tensors())
def test_values_are_scale_times_code_less_half_the_zero_point(packed):
    rows = to_rows(packed.values())
    group = packed.integers.group
    for j, row in enumerate(rows.tolist()):
        for i, value in enumerate(row):
            scale, zero = (float(each[j, i // group]) for each in (packed.scales, packed.zeros))
            assert value == scale * (int(packed.codes[j, i]) - zero / 2)
    assert packed.values().dtype == packed.dtype


@settings(deadline=None)
@given(packed_tensors())
def test_bytes_are_those_of_the_tensors_in_the_file(packed):
    in_file = to_file("w", packed.values(), packed)
    assert sum(tensor.nbytes for tensor in in_file.values()) == packed.n_bytes
    assert bytes_of(packed.shape, packed.integers) == packed.n_bytes


@settings(deadline=None, max_examples=50)
@given(SHAPES, INTEGERS, st.integers(0, 100))
def test_tensors_of_any_shape_are_rounded_better_than_to_zero(shape, integers, seed):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    packed = nearest(tensor, integers)
    assert packed.shape == shape
    assert float((packed.values() - tensor).norm()) < float(tensor.norm())


def test_a_group_beyond_all_sizes_takes_no_memory_beyond_its_row():
    packed = nearest(torch.arange(12.0).reshape(3, 4), Integers(8, 2**40))
    assert packed.scales.shape == (3, 1)
    torch.testing.assert_close(packed.values(), torch.arange(12.0).reshape(3, 4), atol=0.1, rtol=0)


@pytest.mark.parametrize(("dtype", "n_bytes"), [(torch.float32, 24), (torch.float16, 12), (torch.bfloat16, 12)])
def test_floats_take_their_bytes(dtype, n_bytes):
    assert bytes_of((2, 3), dtype) == n_bytes


SOUND = {
    "codes": torch.tensor([[3, 0]], dtype=torch.uint8),
    "scales": torch.ones(1, 1, dtype=torch.float16),
    "zeros": torch.tensor([[7]], dtype=torch.int16),
}
UNSOUND = {
    "a code of more bits": ("codes", torch.tensor([[4, 0]], dtype=torch.uint8), "codes must be from 0 to 3"),
    "codes of another dtype": ("codes", torch.tensor([[3, 0]]), "codes must be torch.uint8"),
    "codes of another shape": ("codes", torch.zeros(2, 1, dtype=torch.uint8), "codes must be torch.uint8 of shape"),
    "a zero point of more bits": ("zeros", torch.tensor([[8]], dtype=torch.int16), "zeros must be from 0 to 7"),
    "a negative zero point": ("zeros", torch.tensor([[-1]], dtype=torch.int16), "zeros must be from 0 to 7"),
    "a scale too many": ("scales", torch.ones(1, 2, dtype=torch.float16), "scales must be torch.float16 of shape"),
    "a wider scale": ("scales", torch.ones(1, 1), "scales must be torch.float16"),
    "a negative scale": ("scales", -torch.ones(1, 1, dtype=torch.float16), "not negative"),
    "an endless scale": ("scales", torch.full((1, 1), torch.inf, dtype=torch.float16), "finite"),
    "a scale that is no number": ("scales", torch.full((1, 1), torch.nan, dtype=torch.float16), "finite"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_what_cannot_be_packed_is_refused(case):
    name, value, words = UNSOUND[case]
    assert torch.equal(Packed(Integers(2), (1, 2), torch.float32, **SOUND).values(), torch.tensor([[-0.5, -3.5]]))
    with pytest.raises(ShapeError, match=re.escape(words)):
        Packed(Integers(2), (1, 2), torch.float32, **{**SOUND, name: value})


@pytest.mark.parametrize(
    "given", [(1, 32), (9, 32), (4, 7), (4, 2**40 + 1), (True, 32), (4.0, 32), (4, None), (-4, 32), ("4", 32)]
)
def test_bits_and_groups_out_of_range_are_refused(given):
    with pytest.raises(BTCompressError, match="must be a whole number from"):
        Integers(*given)


@pytest.mark.parametrize("precision", [Integers(2, 8), Integers(8, 2**40), Integers(4), torch.float16, torch.bfloat16])
def test_the_text_of_a_precision_is_read_as_it(precision):
    assert precision_of(precision_text(precision)) == precision


@pytest.mark.parametrize(
    "text",
    ["", "int", "float8", "int4/", "int9", "4/3/2", "int-4", "1e1", "²", "int4/99999999999999999999", True, None],
)
def test_what_is_no_precision_is_refused(text):
    with pytest.raises(BTCompressError):
        precision_of(text)
