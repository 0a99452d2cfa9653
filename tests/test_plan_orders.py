"""Plans and wishes with orders of rows and columns: priced, chosen, kept in files and found again."""

from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict, read
from btcompress.errors import BTCompressError
from btcompress.factorization import factorize_as_planned
from btcompress.fit import fit_matrix
from btcompress.fit.arranged import in_orders
from btcompress.modes import ShapeRequest
from btcompress.orders import fit_ordered
from btcompress.orders.search import Piece, by_similarity
from btcompress.plan import Fallback, Wish, make_plan, meet, read_plan, save_plan
from btcompress.plan.candidates import candidates
from btcompress.pricing import Curve, FormsWithCore, price, price_in_orders
from btcompress.shapes import BlockTermShape, MatrixShape
from btcompress.yardsticks import truncated_svd
from forms import in_blocks

KEY = "weight_ih_l0"
#: 4 gates of 24 rows, 20 columns; sums of Kronecker products, and a form with a core.
PLAIN = BlockTermShape((4, 5), (24, 4), (2, 2), n_gates=4, core="identity")
CORE = BlockTermShape((2, 2, 5), (8, 4, 3), (2, 2, 2), n_gates=4)
#: Of one Kronecker product, 96 + 20, and 24 + 20 integers.
BUDGET = 160
SIDES = [("row_order",), ("column_order",), ("row_order", "column_order")]


def model_with(matrix):
    model = nn.LSTM(matrix.shape[1], matrix.shape[0] // 4, dtype=torch.float64)
    with torch.no_grad():
        model.weight_ih_l0.copy_(matrix)
    return model


def curves(matrix, request=ShapeRequest()):
    """The curve of a matrix without orders, and with."""
    tried = candidates(KEY, *matrix.shape, 4, request)
    plain = price(matrix, tried.without_core, tried.with_core)
    return plain, price_in_orders(matrix, plain, tried.without_core, tried.with_core)


# Curves


@pytest.mark.parametrize("names", SIDES, ids=" and ".join)
@pytest.mark.parametrize("case", ["Kronecker", "core", "separate"])
def test_points_with_orders_are_fits_in_orders_by_similarity_whose_integers_count(case, names, generator, monkeypatch):
    # The other sides would push these off the curve.
    monkeypatch.setattr("btcompress.pricing.ordercurves.choices_of_sides", lambda _: [names])
    shape = {
        "Kronecker": MatrixShape(replace(PLAIN, ranks=(1, 1))),
        "core": MatrixShape(replace(CORE, ranks=(1, 1, 1))),
        "separate": MatrixShape(BlockTermShape((2, 2, 5), (2, 4, 3), (1, 1, 1)), "separate"),
    }[case]
    matrix = in_blocks(PLAIN, generator)
    nothing = Curve((), (), matrix.numel())
    forms = ([shape], []) if case == "Kronecker" else ([], [FormsWithCore(shape, ((1, 1),))])
    point = price_in_orders(matrix, nothing, *forms).points[0]
    assert point.shape == shape.ordered(names)
    n_integers = sum({"row_order": 24, "column_order": 20}[name] for name in names)
    assert point.n_params == shape.n_params + shape.n_parts * n_integers
    rows = []
    for block in matrix.chunk(shape.n_parts):
        orders = {name: by_similarity([Piece(block, shape.part)], ((0, name),)) for name in names}
        rows.append(in_orders(block, orders, shape.part.n_gates))
    fitted = fit_matrix(torch.cat(rows), shape).weight_error
    if case == "Kronecker":
        assert fitted == pytest.approx(point.error, abs=1e-9)
    else:
        assert fitted <= point.error
    assert fit_ordered(matrix, point.shape).weight_error <= fitted


@pytest.mark.parametrize("in_modes", [(4, 5), (5, 4)], ids=str)
@pytest.mark.parametrize("names", SIDES, ids=" and ".join)
def test_sums_of_kronecker_products_in_orders_are_priced_at_every_rank_that_is_smaller(in_modes, names, generator):
    shape = MatrixShape(replace(PLAIN, in_modes=in_modes).ordered(names))
    matrix = torch.randn(96, 20, generator=generator, dtype=torch.float64)
    points = price(matrix, [shape], []).points
    every = (replace(shape, part=replace(shape.part, ranks=(rank, rank))) for rank in range(1, 21))
    assert [point.shape for point in points] == [each for each in every if each.n_params < matrix.numel()]


@pytest.mark.parametrize("seed", range(2))
def test_orders_only_ever_lower_a_curve_and_leave_low_rank_on_it(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = in_blocks(PLAIN, generator, noise=0.5)
    plain, curve = curves(matrix)
    assert curve.low_rank == plain.low_rank
    assert (curve.stake, curve.dense_params) == (plain.stake, plain.dense_params)
    counts, errors = [point.n_params for point in curve.points], [point.error for point in curve.points]
    assert counts == sorted(set(counts))
    assert errors == sorted(set(errors), reverse=True)
    assert counts[-1] < matrix.numel()
    for point in plain.points:
        assert curve.within(point.n_params).error <= point.error


def test_matrices_that_have_no_orders_keep_their_curve(generator):
    few = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    plain, curve = curves(few)
    assert curve == plain


def test_steps_are_counted_over_all_choices_of_sides(generator):
    matrix = in_blocks(PLAIN, generator)
    tried = candidates(KEY, *matrix.shape, 4, ShapeRequest())
    plain, steps = price(matrix, tried.without_core, tried.with_core), []
    price_in_orders(
        matrix, plain, tried.without_core, tried.with_core, on_step=lambda done, count: steps.append(done / count)
    )
    assert steps == sorted(steps)
    assert 0 < steps[0] < steps[-1] == 1


# Wishes


@pytest.fixture(scope="module")
def shuffled():
    """A model whose matrix is structured, once its rows and columns are in order."""
    return model_with(in_blocks(PLAIN, torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def wished(shuffled):
    """What is planned for it without orders, and with."""
    return tuple(btcompress.plan_for(shuffled, max_params=BUDGET, order_units=orders) for orders in (False, True))


def test_a_wish_with_orders_finds_the_form_that_a_shuffled_matrix_has(shuffled, wished):
    without, within = wished
    assert within.forms[0].point.error < without.forms[0].point.error - 0.05
    shape = within.plan.matrices[0].shape
    assert shape.part.order_sizes
    compressed = btcompress.factorize(shuffled, plan=within)
    (row,) = btcompress.report(compressed).matrices
    assert compressed.matrices[KEY].shape == shape
    assert row.params_after == within.forms[0].n_params <= BUDGET
    assert row.weight_error <= within.forms[0].point.error
    assert any("in an order of their own" in notice for notice in compressed.notices)
    assert not any("worse than foreseen" in notice for notice in compressed.notices)


def test_a_plan_says_which_sides_have_an_order_whatever_is_asked_beside_it(shuffled, wished):
    for order_units, plan in zip((False, True), wished, strict=True):
        results = [btcompress.factorize(shuffled, plan=plan, order_units=orders) for orders in (False, True)]
        for result in results:
            assert bool(result.matrices[KEY].shape.part.order_sizes) == order_units
            assert result.n_params == results[0].n_params


# Every two of seed, dtype and ratio meet.
@pytest.mark.parametrize(
    ("seed", "dtype", "ratio"),
    [
        (0, torch.float64, 5),
        (0, torch.float32, 12),
        (1, torch.float64, 12),
        (1, torch.float32, 5),
    ],
    ids=str,
)
def test_no_matrix_with_an_order_is_ever_worse_than_its_truncated_svd_of_equal_size(seed, dtype, ratio):
    generator = torch.Generator().manual_seed(seed)
    model = model_with(in_blocks([PLAIN, CORE][seed % 2], generator, noise=0.3)).to(dtype)
    plan = btcompress.plan_for(model, target_ratio=ratio, order_units=True)
    (row,) = btcompress.report(btcompress.factorize(model, plan=plan)).matrices
    svd = truncated_svd(model.weight_ih_l0, row.params_after).error
    assert row.weight_error <= svd + (1e-9 if dtype == torch.float64 else 1e-6)
    assert row.params_after * ratio <= row.params_before


def test_forms_with_orders_have_a_low_rank_form_to_fall_back_on(generator):
    model = model_with(in_blocks(PLAIN, generator))
    plan = btcompress.plan_for(model, max_params=BUDGET, order=2, order_units=True)
    (form,), (planned,) = plan.forms, plan.plan.matrices
    assert form.point.shape.part.core == "identity"
    assert planned.fallback == Fallback(form.low_rank.error, form.low_rank.shape)
    checkpoint = from_state_dict(model.state_dict())
    worse = replace(plan.plan, matrices=(replace(planned, fallback=Fallback(0.0, form.low_rank.shape)),))
    compressed = factorize_as_planned(checkpoint, worse)
    assert compressed.matrices[KEY].shape == form.low_rank.shape
    assert any("low rank" in notice and "instead" in notice for notice in compressed.notices)


def test_matrices_too_large_for_orders_are_planned_without_and_named(generator, monkeypatch):
    monkeypatch.setattr("btcompress.orders.ordering._MOST_ENTRIES", 1000)
    model = model_with(in_blocks(PLAIN, generator))
    plan = btcompress.plan_for(model, target_ratio=8, order_units=True)
    assert not plan.forms[0].point.shape.part.order_sizes
    (notice,) = plan.plan.notices
    assert "weight_ih_l0: none of its forms has an order, as the matrix has 1,920 entries" in notice
    assert btcompress.plan_for(model, target_ratio=8).plan.notices == ()


# Files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    torch.save(model_with(in_blocks(PLAIN, torch.Generator().manual_seed(0))).state_dict(), model)
    return read(model)


@pytest.fixture(scope="module")
def every(checkpoint):
    return make_plan(checkpoint, ShapeRequest(1, 1), allow_growth=True)


@pytest.fixture(scope="module")
def priced(checkpoint, every):
    return meet(checkpoint, every, Wish(max_params=BUDGET), order_units=True)


@pytest.fixture
def path(priced, tmp_path):
    save_plan(priced, tmp_path / "plan.yaml", name="model.pt", sha256=None)
    return tmp_path / "plan.yaml"


def test_a_plan_with_orders_read_again_is_the_plan_and_gives_the_same_tensors(path, priced, checkpoint, every):
    entry = yaml.safe_load(path.read_text())["matrices"][KEY]
    assert (
        {name for name in SIDES[2] if entry.get(name)} == set(priced.plan.matrices[0].shape.part.order_sizes) != set()
    )
    assert read_plan(path, checkpoint, every) == priced.plan
    plans = (priced.plan, read_plan(path, checkpoint, every))
    direct, from_file = (factorize_as_planned(checkpoint, plan) for plan in plans)
    assert all(torch.equal(tensor, from_file.tensors[name]) for name, tensor in direct.tensors.items())


@pytest.mark.parametrize("names", SIDES, ids=" and ".join)
@pytest.mark.parametrize("gates", ["fused", "separate"])
def test_orders_asked_for_by_hand_are_found(names, gates, path, checkpoint, every):
    parts = {"fused": PLAIN, "separate": BlockTermShape((4, 5), (6, 4), (2, 2), core="identity")}
    shape = MatrixShape(parts[gates].ordered(names), gates)
    entry = {name: shape.to_dict()[name] for name in ("in_modes", "out_modes", "tucker_ranks", "core", "gates")}
    edit(path, {**entry, **dict.fromkeys(names, True)})
    plan = read_plan(path, checkpoint, every)
    assert plan.matrices[0].shape == shape
    compressed = factorize_as_planned(checkpoint, plan)
    assert compressed.matrices[KEY].shape == shape
    n_integers = shape.n_params - shape.ordered().n_params
    assert any(f"{n_integers} integers" in notice for notice in compressed.notices)


def edit(path, entry):
    value = yaml.safe_load(path.read_text())
    value["matrices"] = {KEY: entry}
    path.write_text(yaml.safe_dump(value))


BY_HAND = {"in_modes": [4, 5], "out_modes": [24, 4], "tucker_ranks": [2, 2]}
BAD = {
    "in words": ({**BY_HAND, "row_order": "yes"}, "row_order and column_order must be true or false"),
    "by number": ({**BY_HAND, "column_order": 1}, "row_order and column_order must be true or false"),
    "of low rank": (
        {"in_modes": [20, 1], "out_modes": [1, 96], "tucker_ranks": [2, 2], "core": "identity", "row_order": True},
        "row_order was asked for, but a plain low-rank matrix fits alike in every order",
    ),
    "of order 1": (
        {"in_modes": [20], "out_modes": [96], "tucker_ranks": [1], "column_order": True},
        "column_order was asked for, but a form of order 1",
    ),
    "by another name": ({**BY_HAND, "order": True}, "there is no field order. There are .*row_order, column_order"),
}


@pytest.mark.parametrize("case", BAD)
def test_orders_that_make_no_sense_are_refused_with_file_and_matrix_named(case, path, checkpoint, every):
    entry, words = BAD[case]
    edit(path, entry)
    with pytest.raises(BTCompressError, match=words) as error:
        read_plan(path, checkpoint, every)
    assert f"{path}: {KEY}" in str(error.value)


@pytest.mark.parametrize(("limit", "words"), [("_MOST", "there are 24 rows"), ("_MOST_ENTRIES", "1,920 entries")])
def test_orders_of_sides_that_are_too_long_are_refused(limit, words, path, checkpoint, every, monkeypatch):
    monkeypatch.setattr(f"btcompress.orders.ordering.{limit}", 23)
    edit(path, {**BY_HAND, "row_order": True})
    with pytest.raises(BTCompressError, match=words):
        read_plan(path, checkpoint, every)


def test_false_is_no_order(path, checkpoint, every):
    edit(path, {**BY_HAND, **dict.fromkeys(SIDES[2], False)})
    assert not read_plan(path, checkpoint, every, allow_growth=True).matrices[0].shape.part.order_sizes


def test_a_form_that_its_integers_make_as_large_as_the_matrix_needs_leave_to_grow(path, checkpoint, every):
    # 1,904 parameters, and 44 integers, for 1,920 entries.
    form = {"in_modes": [5, 4], "out_modes": [24, 4], "tucker_ranks": [14, 14], "core": "identity"}
    edit(path, {**form, **dict.fromkeys(SIDES[2], True)})
    assert "allow growth" in read_plan(path, checkpoint, every).left_dense[0].reason
    edit(path, form)
    assert read_plan(path, checkpoint, every).matrices


def test_in_bytes_forms_with_orders_compete_in_the_matrices_own_dtype(checkpoint, every):
    plan = meet(checkpoint, every, Wish(max_bytes=8 * BUDGET, max_error=0.1), order_units=True)
    ordered = [p for form in plan.forms for p in form.curve.points if p.shape and p.shape.part.order_sizes]
    assert ordered
    assert {p.precision for p in ordered} == {None}
    assert all(p.measured for p in ordered)
    assert any("own dtypes alone" in notice for notice in plan.plan.notices)
    done = factorize_as_planned(checkpoint, plan.plan)
    assert done.bytes_of_matrix(KEY) == plan.bytes_after <= 8 * BUDGET
