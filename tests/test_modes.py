import itertools
import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btcompress.contraction import plan_chain
from btcompress.errors import ShapeError
from btcompress.modes import (
    ShapeRequest,
    choose_shape,
    cuts_along_axes,
    equal_modes,
    fits,
    smallest_cover,
    suggest_order,
)
from btcompress.shapes import MAX_ORDER, MAX_SIZE, BlockTermShape

CHOSEN = [
    # rows, inputs, in_modes, out_modes
    (1024, 57_600, (15, 15, 16, 16), (16, 4, 4, 4)),
    (512, 128, (8, 16), (32, 16)),
    (600, 150, (10, 15), (40, 15)),
    (1024, 256, (16, 16), (64, 16)),
]


@pytest.mark.parametrize(("rows", "inputs", "in_modes", "out_modes"), CHOSEN)
def test_modes_are_equal_with_the_gates_on_the_smallest_input_mode(rows, inputs, in_modes, out_modes):
    part = choose_shape(ShapeRequest(), "w", rows, inputs).shape.part
    assert (part.in_modes, part.out_modes) == (in_modes, out_modes)


@given(st.integers(1, 3000), st.integers(1, 4))
def test_equal_modes_multiply_to_the_size_and_no_other_factors_are_more_equal(size, order):
    modes = equal_modes(size, order)
    assert math.prod(modes) == size
    assert list(modes) == sorted(modes)
    if order == 2:
        assert sum(modes) == min(d + size // d for d in range(1, size + 1) if size % d == 0)


@given(st.integers(1, 10**7), st.integers(1, 5))
def test_smallest_cover_reaches_the_size_and_none_of_its_modes_could_be_smaller(size, order):
    modes = smallest_cover(size, order)
    assert math.prod(modes) >= size
    assert all(math.prod(modes) // mode * (mode - 1) < size for mode in modes)


@settings(max_examples=60)
@given(
    st.integers(1, 300),
    st.integers(1, 70),
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from(["fused", "separate"]),
)
def test_every_size_gets_a_shape_that_covers_it(inputs, hidden, cp_rank, rank, gates):
    shape = choose_shape(ShapeRequest(cp_rank, rank, gates=gates), "w", 4 * hidden, inputs).shape
    assert (shape.out_size, shape.in_size) == (4 * hidden, inputs)
    assert shape.limited() == shape


@pytest.mark.parametrize("inputs", [37, 40, 127, 1009, 57_601])
def test_padding_is_chosen_exactly_where_it_costs_fewer_parameters(inputs):
    chosen = choose_shape(ShapeRequest(), "w", 512, inputs)
    order = suggest_order(inputs)
    exact = choose_shape(ShapeRequest(in_modes=equal_modes(inputs, order)), "w", 512, inputs)
    padded = choose_shape(ShapeRequest(in_modes=smallest_cover(inputs, order)), "w", 512, inputs)
    cheapest = min(exact, padded, key=lambda each: each.shape.n_params)
    assert chosen.shape.n_params == cheapest.shape.n_params
    is_padded = chosen.shape.part.padded_in > inputs
    assert is_padded == (padded.shape.n_params < exact.shape.n_params)
    assert is_padded == any("padded" in notice for notice in chosen.notices)


@pytest.mark.parametrize(
    ("shape", "order"), [((120, 160, 3), 4), ((120, 160, 3), 3), ((7, 11), 2), ((64,), 3), ((2, 128), 2)]
)
def test_modes_along_an_input_shape_never_lie_astride_its_axes(shape, order):
    size = math.prod(shape)
    modes = choose_shape(ShapeRequest(input_shape=shape, order=order), "w", 64, size).shape.part.in_modes
    assert math.prod(modes) == size

    def boundaries(sizes):
        return [math.prod(sizes[k:]) for k in range(1, len(sizes))]

    cuts, axes = boundaries(modes), boundaries(shape)
    for cut, axis in itertools.product(cuts, axes):
        assert cut % axis == 0 or axis % cut == 0
    for start, end in itertools.pairwise([size, *cuts, 1]):
        crosses = any(end < axis < start for axis in axes)
        assert not crosses or end in [*axes, 1]
    assert len(modes) == order


def test_modes_of_a_frame_keep_its_rows_together():
    modes = choose_shape(ShapeRequest(2, 4, input_shape=(120, 160, 3)), "w", 1024, 57_600).shape.part.in_modes
    assert 480 in [math.prod(modes[k:]) for k in range(4)]


def chain_cost(part):
    return plan_chain(part.n_blocks, part.in_modes, part.out_modes, part.ranks).cost


@pytest.mark.parametrize(
    ("shape", "rows"), [((120, 160, 3), 1024), ((80, 100), 512), ((24, 36), 400), (None, 1024)], ids=str
)
def test_with_speed_for_the_objective_modes_are_faster_and_about_as_small(shape, rows):
    inputs = 864 if shape is None else math.prod(shape)
    request = ShapeRequest(2, 4, input_shape=shape)
    small = choose_shape(request, "w", rows, inputs).shape
    fast, again = (choose_shape(replace(request, objective="speed"), "w", rows, inputs).shape for _ in range(2))
    assert fast == again
    assert chain_cost(fast.part) <= chain_cost(small.part)
    assert fast.n_params <= 1.1 * small.n_params
    if shape is not None:
        kept = [{math.prod(each.part.in_modes[k:]) for k in range(1, each.part.order)} for each in (small, fast)]
        axes = {math.prod(shape[k:]) for k in range(1, len(shape))}
        assert len(kept[0] & axes) == len(kept[1] & axes)


def test_with_speed_for_the_objective_modes_of_a_frame_are_others():
    small, fast = (
        choose_shape(ShapeRequest(2, 4, input_shape=(120, 160, 3), objective=objective), "w", 1024, 57_600).shape.part
        for objective in ("size", "speed")
    )
    assert chain_cost(fast) < 0.8 * chain_cost(small)
    assert fast.n_params > small.n_params


def test_given_modes_are_used_as_given():
    request = ShapeRequest(2, 4, (8, 20, 20, 18), (16, 4, 4, 4))
    assert choose_shape(request, "w", 1024, 57_600).shape.n_params == 3_392


def test_ranks_per_mode_are_used_and_lowered_with_a_notice():
    chosen = choose_shape(ShapeRequest(1, (3, 99), (2, 3), (4, 5)), "w", 20, 6)
    assert chosen.shape.part.ranks == (3, 3)
    assert "lowered to 3,3" in chosen.notices[0]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ShapeRequest(in_modes=(8, 20, 20)), "in_modes 8,20,20 multiplies to 3200, but w has 57600 inputs"),
        (ShapeRequest(in_modes=(8, 20, 20, 19)), "57600 inputs"),
        (ShapeRequest(out_modes=(16, 4, 4)), "multiplies to 256, but w has 1024 rows"),
        (ShapeRequest(out_modes=(16, 4, 4), gates="separate"), None),
        (ShapeRequest(input_shape=(120, 160)), "multiplies to 19200, but w has 57600 inputs"),
    ],
)
def test_modes_that_do_not_fit_are_refused_with_the_matrix_named(request_, words):
    if words is None:
        assert choose_shape(request_, "w", 1024, 57_600).shape.n_parts == 4
        return
    with pytest.raises(ShapeError, match=words):
        choose_shape(request_, "w", 1024, 57_600)


@pytest.mark.parametrize(
    "arguments",
    [{"cp_rank": 0}, {"tucker_rank": 0}, {"in_modes": ()}, {"in_modes": (2, 3), "order": 3}, {"gates": "all"}],
)
def test_requests_that_contradict_themselves_are_refused(arguments):
    with pytest.raises(ShapeError):
        ShapeRequest(**arguments)


def test_given_modes_go_only_to_the_matrices_they_fit():
    request = ShapeRequest(in_modes=(4, 5), out_modes=(8, 3))
    whole = fits(request, 24, 20)
    assert (whole.in_modes, whole.out_modes) == ((4, 5), (8, 3))
    other = fits(request, 24, 6)
    assert (other.in_modes, other.out_modes, other.order) == (None, (8, 3), 2)


def test_padded_rows_by_hand_cover_gate_by_gate():
    """Seven rows a gate: 3 x 3 covers them and nothing smaller does, 3 x 4 wastes."""
    shape = choose_shape(ShapeRequest(1, 2, out_modes=(12, 3)), "w", 4 * 7, 6).shape
    assert (shape.part.out_modes, shape.out_size) == ((12, 3), 28)
    with pytest.raises(ShapeError, match="multiplies to 48, but w has 28 rows"):
        choose_shape(ShapeRequest(1, 2, out_modes=(12, 4)), "w", 4 * 7, 6)
    with pytest.raises(ShapeError, match="multiplies to 30, but w has 28 rows"):
        choose_shape(ShapeRequest(1, 2, out_modes=(6, 5)), "w", 4 * 7, 6)


def cheapest_of_all(request, rows, inputs, n_gates=4):
    """What pricing every cut and every permutation of the output modes gives; ties as the package settles them."""
    separate = request.gates == "separate"
    part_rows, part_gates = (rows // n_gates, 1) if separate else (rows, n_gates)
    order, shape = request.order, request.input_shape
    ranks = request.tucker_rank if isinstance(request.tucker_rank, tuple) else (request.tucker_rank,) * order
    in_choices = cuts_along_axes(shape, order) if shape else (equal_modes(inputs, order), smallest_cover(inputs, order))
    each = part_rows // part_gates
    out_choices = {p for m in (equal_modes, smallest_cover) for p in itertools.permutations(m(each, order))}
    priced = []
    for i, j in itertools.product(in_choices, out_choices):
        modes = (part_gates * j[0], *j[1:])
        part = BlockTermShape(i, modes, ranks, request.cp_rank, inputs, part_rows, part_gates)
        priced.append(((part.limited().n_params, part.padded_in * part.padded_out, i, modes), part))

    def kept(part):
        return len({math.prod(part.in_modes[k:]) for k in range(1, order)} & axes)

    if not shape:
        return min(priced, key=lambda one: one[0])[1].limited()
    axes = {math.prod(shape[k:]) for k in range(1, len(shape))}
    limit = 1.5 * min(cost[0] for cost, _ in priced)
    return min((-kept(part), cost, part) for cost, part in priced if cost[0] <= limit)[2].limited()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 7, 16, 64, 100, 256]),
    st.one_of(st.integers(1, 3000), st.just((12, 16, 3)), st.just((64,)), st.just((5, 7, 2))),
    st.integers(1, 6),
    st.integers(1, 20),
    st.sampled_from([1, 4]),
    st.sampled_from(["fused", "separate"]),
)
def test_the_shape_chosen_is_the_cheapest_of_all_pairings(hidden, inputs, order, rank, cp_rank, gates):
    shape = inputs if isinstance(inputs, tuple) else None
    inputs = math.prod(inputs) if shape else inputs
    request = ShapeRequest(cp_rank, rank, order=order, input_shape=shape, gates=gates)
    assert choose_shape(request, "w", 4 * hidden, inputs).shape.part == cheapest_of_all(request, 4 * hidden, inputs)


@pytest.mark.parametrize("order", [7, 8, 10, MAX_ORDER])
@pytest.mark.parametrize("rank", [1, 2])
def test_where_not_every_pairing_is_priced_no_exchange_of_two_output_modes_is_cheaper(order, rank):
    part = choose_shape(ShapeRequest(1, rank, order=order), "w", 4 * 5040, 2**12 * 720).shape.part
    assert min(part.mode_sizes) >= rank
    own = (part.out_modes[0] // 4, *part.out_modes[1:])
    for a, b in itertools.combinations(range(order), 2):
        swapped = list(own)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        other = BlockTermShape(part.in_modes, (4 * swapped[0], *swapped[1:]), part.ranks)
        assert part.n_params <= other.limited().n_params


@pytest.mark.parametrize("shape", [None, (120, 160, 3), (2,) * MAX_ORDER, (7_207_200,), (MAX_SIZE,)])
@pytest.mark.parametrize("order", [6, 8, MAX_ORDER])
def test_a_shape_of_any_order_is_chosen_at_once(shape, order):
    inputs = 57_600 if shape is None else math.prod(shape)
    start = time.process_time()
    part = choose_shape(ShapeRequest(1, 2, order=order, input_shape=shape), "w", 4 * 720, inputs).shape.part
    assert time.process_time() - start < 2
    assert (part.order, part.in_size) == (order, inputs)
    assert shape is None or math.prod(part.in_modes) == inputs


@pytest.mark.parametrize("order", range(1, MAX_ORDER + 1))
def test_modes_of_one_are_modes(order):
    part = choose_shape(ShapeRequest(in_modes=(1,) * (order - 1) + (6,)), "w", 8, 6).shape.part
    assert (part.in_modes, part.order) == ((1,) * (order - 1) + (6,), order)
    assert choose_shape(ShapeRequest(input_shape=(1,) * order, order=order), "w", 4, 1).shape.part.in_size == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda: ShapeRequest(order=MAX_ORDER + 1),
        lambda: ShapeRequest(order=10**5000),
        lambda: ShapeRequest(in_modes=(1,) * 15),
        lambda: ShapeRequest(out_modes=(2,) * 1000),
        lambda: ShapeRequest(tucker_rank=(1,) * 1000),
        lambda: ShapeRequest(tucker_rank=10**5000),
        lambda: ShapeRequest(cp_rank=10**5000),
        lambda: ShapeRequest(in_modes=(2**60, 1)),
        lambda: ShapeRequest(input_shape=(2**60,)),
        lambda: choose_shape(ShapeRequest(), "w", 4, 2**60),
        lambda: choose_shape(ShapeRequest(), "w", 2**60, 4),
        lambda: choose_shape(ShapeRequest(input_shape=(963_761_198_400,)), "w", 4, 963_761_198_400),
        lambda: BlockTermShape((1,) * 13, (1,) * 13, (1,) * 13),
        lambda: BlockTermShape((1,) * 1000, (1,), (1,)),
        lambda: BlockTermShape((2**60,), (2,), (1,)),
        lambda: BlockTermShape((2,), (2,), (10**5000,)),
    ],
)
def test_what_no_form_can_have_is_refused_at_once_in_a_line(ask):
    start = time.process_time()
    with pytest.raises(ShapeError) as refused:
        ask()
    assert time.process_time() - start < 1
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)
