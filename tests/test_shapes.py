import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btcompress.errors import ShapeError
from btcompress.shapes import BlockTermShape, MatrixShape, limit_ranks

PUBLISHED = [
    # in_modes, out_modes (gates included), rank, parameters
    ((8, 20, 20, 18), (16, 4, 4, 4), 1, 722),
    ((8, 20, 20, 18), (16, 4, 4, 4), 2, 1_472),
    ((8, 20, 20, 18), (16, 4, 4, 4), 4, 3_392),
    ((320, 180), (64, 16), 4, 186_912),
    ((36, 40, 40), (32, 4, 8), 4, 13_184),
    ((8, 10, 10, 9, 8), (16, 2, 2, 4, 4), 4, 3_936),
]


@pytest.mark.parametrize(("in_modes", "out_modes", "rank", "params"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(in_modes, out_modes, rank, params):
    shape = BlockTermShape(in_modes, out_modes, (rank,) * len(in_modes), n_blocks=2)
    assert shape.n_params == params
    assert shape.dense_params == 58_982_400


def test_published_case_has_the_published_ratio():
    shape = BlockTermShape((8, 20, 20, 18), (16, 4, 4, 4), (4,) * 4, 2)
    assert round(shape.ratio, 1) == 17_388.7


def test_count_is_the_count_of_the_tensors_described():
    shape = BlockTermShape((2, 3, 5), (7, 4, 3), (3, 2, 4), 3)
    assert shape.n_params == sum(math.prod(size) for size in (shape.core_shape, *shape.factor_shapes))
    assert shape.n_params == 3 * (2 * 7 * 3 + 3 * 4 * 2 + 5 * 3 * 4 + 3 * 2 * 4)


def test_identity_cores_cost_nothing():
    shape = BlockTermShape((2, 3), (8, 5), (4, 4), core="identity")
    assert shape.n_params == 4 * (2 * 8 + 3 * 5) == BlockTermShape((2, 3), (8, 5), (4, 4)).n_params - 16
    assert BlockTermShape.low_rank(40, 6, 5).n_params == 5 * (40 + 6)
    assert BlockTermShape.low_rank(40, 6, 9).limited() == BlockTermShape.low_rank(40, 6, 6)


def test_separate_gates_count_four_forms():
    part = BlockTermShape((4, 3), (2, 5), (2, 3))
    separate, fused = MatrixShape(part, "separate"), MatrixShape(part)
    assert (separate.n_params, separate.out_size, separate.in_size) == (4 * part.n_params, 40, 12)
    assert (fused.n_params, fused.out_size) == (part.n_params, 10)
    assert separate.part_names == ("gate_i", "gate_f", "gate_g", "gate_o")


@given(st.data())
def test_limited_ranks_hold_no_more_than_the_tensor_and_no_less_than_asked_where_possible(data):
    sizes = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    ranks = tuple(data.draw(st.integers(1, 40)) for _ in sizes)
    limited = limit_ranks(sizes, ranks)
    for k, rank in enumerate(limited):
        bound = min(sizes[k], math.prod(limited[:k] + limited[k + 1 :]))
        assert rank <= min(bound, ranks[k])
        assert rank == min(bound, ranks[k]) or rank == limit_ranks(sizes, limited)[k]
    assert limit_ranks(sizes, limited) == limited


def test_ranks_far_above_the_limit_mean_full_rank():
    assert limit_ranks((6, 35), (99, 99)) == (6, 6)
    assert limit_ranks((6, 4, 20), (99, 99, 99)) == (6, 4, 20)
    assert limit_ranks((6, 4, 30), (99, 99, 99)) == (6, 4, 24)


@pytest.mark.parametrize(
    "part",
    [
        BlockTermShape((2, 3), (8, 2), (3, 2), 2, in_size=5, out_size=12, n_gates=4),
        BlockTermShape.low_rank(12, 5, 3, n_gates=4),
    ],
    ids=["full core", "identity core"],
)
def test_shapes_survive_their_json_form(part):
    shape = MatrixShape(part)
    assert MatrixShape.from_dict(shape.to_dict()) == shape


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((2, 3), (4,), (1, 1)), "same length"),
        (((), (), ()), "at least 1"),
        (((2, 0), (4, 1), (1, 1)), "at least 1"),
        (((2, 3), (4, 1), (1, 1), 0), "at least 1"),
        (((2, 3), (4, 1), (1, 1), 1, 7), "4 x 7"),
        (((2, 3), (6, 2), (1, 1), 1, 6, 10, 4), "multiple of 4"),
        (((2, 3), (4, 1), (2, 2), 2, 0, 0, 1, "identity"), "one block of order 2"),
        (((2, 3), (4, 1), (2, 1), 1, 0, 0, 1, "identity"), "equal Tucker ranks"),
        (((2, 3, 1), (4, 1, 2), (2, 2, 2), 1, 0, 0, 1, "identity"), "order 2"),
        (((2, 3), (4, 1), (2, 2), 1, 0, 0, 1, "round"), "core must be one of full, identity"),
    ],
)
def test_inconsistent_shapes_are_refused_in_words(arguments, words):
    with pytest.raises(ShapeError, match=words):
        BlockTermShape(*arguments)


@pytest.mark.parametrize(
    "change", [{"gates": "both"}, {"cp_rank": None}, {"in_modes": 3}, {"tucker_ranks": ["x", "y"]}]
)
def test_damaged_json_forms_are_refused(change):
    good = MatrixShape(BlockTermShape((2, 3), (4, 2), (3, 2))).to_dict()
    with pytest.raises(ShapeError):
        MatrixShape.from_dict(good | change)
