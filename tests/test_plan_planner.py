import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import btcompress
from btcompress import factorization
from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import from_state_dict
from btcompress.compression import priced_plan
from btcompress.errors import BTCompressError, CheckpointError, ShapeError
from btcompress.fit import fit_matrix
from btcompress.modes import ShapeRequest
from btcompress.plan import Fallback, Wish, make_plan, meet
from btcompress.plan.candidates import candidates
from btcompress.plan.ledger import Ledger
from btcompress.plan.speed import row_cost, slowness
from btcompress.pricing import Curve, FormsWithCore, Point, price
from btcompress.shapes import BlockTermShape, MatrixShape
from btcompress.yardsticks import truncated_svd
from forms import random_form

#: What storing in the dtype of the matrices may add to a weight error.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-6, torch.bfloat16: 1e-2}


def lstm(seed=0, sizes=(18, 8), layers=2, dtype=torch.float64, decay=0.0):
    """An LSTM with random weights, their singular values made to fall faster by ``decay``."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.LSTM(*sizes, num_layers=layers, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if name.startswith("weight_ih"):
                left, values, right = torch.linalg.svd(parameter, full_matrices=False)
                values *= torch.exp(-decay * torch.arange(len(values)))
                parameter.copy_(left * values @ right)
    return module.to(dtype)


def priced(matrix, request=ShapeRequest(), n_gates=4):
    tried = candidates("weight", *matrix.shape, n_gates, request)
    return price(matrix, tried.without_core, tried.with_core)


def svd_error(matrix, n_params):
    return truncated_svd(matrix, n_params).error


# Curves


@pytest.mark.parametrize("size", [(32, 18), (24, 40), (20, 6), (28, 13)], ids=str)
def test_no_point_of_a_curve_is_beaten_and_low_rank_is_always_within_reach(size, generator):
    matrix = torch.randn(size, generator=generator, dtype=torch.float64)
    curve = priced(matrix)
    counts, errors = [point.n_params for point in curve.points], [point.error for point in curve.points]
    assert counts == sorted(set(counts))
    assert errors == sorted(set(errors), reverse=True)
    assert counts[-1] < matrix.numel()
    for budget in range(1, matrix.numel()):
        point = curve.within(budget)
        assert (1.0 if point is None else point.error) <= svd_error(matrix, budget) + 1e-9
    assert (curve.stake, curve.on_inputs) == (1.0, False)


def test_errors_on_a_curve_are_those_of_fits(generator):
    matrix = torch.randn(32, 18, generator=generator, dtype=torch.float64)
    for point in priced(matrix).points:
        fitted = fit_matrix(matrix, point.shape).weight_error
        if point.shape.part.core == "identity":
            assert fitted == pytest.approx(point.error, abs=1e-9)
        else:
            assert fitted <= point.error * 1.02


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_the_form_that_a_matrix_has_is_found(n_blocks, generator):
    shape = BlockTermShape((3, 4, 4), (8, 4, 2), (2, 2, 2), n_blocks, n_gates=4)
    matrix = random_form(shape, generator).to_dense()
    point = priced(matrix, ShapeRequest(in_modes=(3, 4, 4), out_modes=(8, 4, 2))).within(shape.n_params)
    assert point.error < 0.1
    assert svd_error(matrix, shape.n_params) > 0.3


def test_sums_of_kronecker_products_are_found(generator):
    shape = BlockTermShape((3, 6), (8, 4), (2, 2), n_gates=4, core="identity")
    matrix = random_form(shape, generator).to_dense()
    assert priced(matrix).within(shape.n_params).error < 1e-6
    assert svd_error(matrix, shape.n_params) > 0.3


def test_separate_low_rank_gates_are_found(generator):
    part = BlockTermShape.low_rank(10, 24, 1)
    matrix = torch.cat([random_form(part, generator).to_dense() for _ in range(4)])
    point = priced(matrix).within(4 * part.n_params)
    assert point.error < 1e-6
    assert point.shape == MatrixShape(part, "separate")


def test_truncated_cores_and_gates_price_as_whole_ones_do_where_nothing_is_lost(generator, monkeypatch):
    part = BlockTermShape((3, 4, 4), (4, 4, 2), (2, 2, 2))
    matrix = torch.cat([random_form(part, generator).to_dense() for _ in range(4)])
    forms = FormsWithCore(MatrixShape(part, "separate"), ((1, 2),))
    low_rank = MatrixShape(BlockTermShape.low_rank(128, 48, 1))
    for entries in (2**16, 4**3):
        monkeypatch.setattr("btcompress.pricing.curves._CORE_ENTRIES", entries)
        points = price(matrix, [low_rank], [forms]).points
        (found,) = [point for point in points if point.shape.part.core == "full"]
        assert found.shape == MatrixShape(part, "separate")
        assert found.error < 1e-6


def test_matrices_without_a_smaller_low_rank_form_have_none():
    curve = priced(torch.arange(1.0, 9.0)[:, None])
    assert curve.low_rank == ()
    assert curve.points


def test_zero_matrices_cost_the_least_form_and_lose_nothing():
    curve = priced(torch.zeros(32, 18))
    assert [point.error for point in curve.points] == [0.0]


def test_pricing_changes_nothing_counts_its_steps_and_is_the_same_every_time(generator):
    matrix = torch.randn(32, 18, generator=generator)
    before, seen = matrix.clone(), []
    tried = candidates("weight", 32, 18, 4, ShapeRequest())
    curve = price(matrix, tried.without_core, tried.with_core, on_step=lambda *step: seen.append(step))
    assert torch.equal(matrix, before)
    count = len(tried.without_core) + len(tried.with_core)
    assert seen == [(done, count) for done in range(1, count + 1)]
    torch.rand(3)
    assert price(matrix, tried.without_core, tried.with_core) == curve


# Candidates


@pytest.mark.parametrize("n_gates", [1, 4])
@pytest.mark.parametrize("size", [(32, 18), (4, 1), (44, 13), (4096, 2048)], ids=str)
def test_candidates_are_forms_of_the_matrix_and_begin_with_low_rank(size, n_gates):
    tried = candidates("weight", *size, n_gates, ShapeRequest())
    assert tried.without_core[0] == MatrixShape(BlockTermShape.low_rank(*size, 1, n_gates))
    assert len(set(tried.without_core)) == len(tried.without_core)
    for shape in (*tried.without_core, *(forms.shape for forms in tried.with_core)):
        assert (shape.out_size, shape.in_size) == size
        assert n_gates == 4 or shape.gates == "fused"
    low_rank = [shape for shape in tried.without_core if 1 in shape.part.mode_sizes]
    assert size == (4, 1) or not low_rank


def test_candidates_keep_to_modes_and_axes_asked_for():
    asked = ShapeRequest(in_modes=(3, 2, 3), out_modes=(8, 2, 2))
    tried = candidates("weight", 32, 18, 4, asked)
    assert [forms.shape.part.in_modes for forms in tried.with_core] == [(3, 2, 3)]
    assert [forms.shape.part.out_modes for forms in tried.with_core] == [(8, 2, 2)]
    assert {shape.gates for shape in tried.without_core} == {"fused", "separate"}
    assert all(shape.part.is_low_rank for shape in tried.without_core)
    along = candidates("weight", 32, 30, 4, ShapeRequest(input_shape=(2, 5, 3)))
    allowed = {(2, 15), (10, 3), (1, 30), (30, 1)}
    assert {s.part.in_modes for s in along.without_core if not s.part.is_low_rank} <= allowed
    assert (2, 5, 3) in [forms.shape.part.in_modes for forms in along.with_core]
    separate = candidates("weight", 32, 18, 4, ShapeRequest(gates="separate"))
    assert {forms.shape.gates for forms in separate.with_core} == {"separate"}


# Wishes


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from([(18, 8), (7, 5), (30, 4)]),
    st.floats(1.1, 40),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from(list(ROUNDING)),
)
def test_no_matrix_is_ever_worse_than_its_truncated_svd_of_equal_size(seed, sizes, ratio, decay, dtype):
    model = lstm(seed, sizes, dtype=dtype, decay=decay)
    try:
        plan = btcompress.plan_for(model, target_ratio=ratio)
        compressed = btcompress.factorize(model, plan=plan)
    except BTCompressError as error:
        assert any(words in str(error) for words in ("in reach", "no matrix is worth"))  # noqa: PT017
        return
    report = btcompress.report(compressed)
    for row in report.matrices:
        matrix = model.state_dict()[row.name]
        assert row.weight_error <= svd_error(matrix, row.params_after) + ROUNDING[dtype]
    dense = sum(form.curve.dense_params for form in plan.forms if form.point is None)
    assert (dense + sum(row.params_after for row in report.matrices)) * ratio <= plan.params_before * (1 + 1e-9)


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_errors_wished_for_are_kept_by_what_is_stored(dtype):
    model = lstm(dtype=dtype, decay=0.2)
    for most in (0.7, 0.3, 0.1):
        compressed = btcompress.factorize(model, plan=btcompress.plan_for(model, max_error=most))
        assert all(row.weight_error <= most for row in btcompress.report(compressed).matrices)


def test_predicted_errors_allow_for_rounding():
    model = nn.LSTM(18, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight_ih_l0.copy_(torch.outer(torch.arange(1.0, 9).repeat(4), torch.arange(1.0, 19)))
    plan = btcompress.plan_for(model, max_error=0.01)
    (row,) = btcompress.report(btcompress.factorize(model, plan=plan)).matrices
    assert plan.forms[0].point.shape.part.ranks == (1, 1)
    assert 1e-4 < row.weight_error <= plan.forms[0].point.error < 0.01


def test_without_a_budget_each_form_is_the_smallest_within_the_error():
    for form in btcompress.plan_for(lstm(decay=0.2), max_error=0.3).forms:
        smaller = form.curve.within(form.n_params - 1)
        assert form.point.error <= 0.3
        assert smaller is None or smaller.error > 0.3


def fastest_first(form):
    return sorted(form.curve.points, key=lambda point: slowness(form.curve, point))


def test_with_speed_for_the_objective_forms_within_the_error_are_the_fastest_of_those_about_as_small():
    model, wish = lstm(decay=0.2, sizes=(64, 16)), {"max_error": 0.3}
    for small, fast in zip(
        btcompress.plan_for(model, **wish).forms,
        btcompress.plan_for(model, objective="speed", **wish).forms,
        strict=True,
    ):
        equals = [p for p in fastest_first(fast) if p.error <= 0.3 and p.n_params <= 1.1 * small.n_params]
        assert fast.point == equals[0]


def test_with_speed_for_the_objective_a_larger_form_is_taken_where_it_is_faster_and_hardly_larger():
    core, low = MatrixShape(BlockTermShape((8, 8), (16, 16), (4, 5))), BlockTermShape.low_rank(256, 64, 4)
    large = MatrixShape(replace(low, ranks=(5, 5)))
    curve = Curve((Point(core, 0.3), Point(MatrixShape(low), 0.2), Point(large, 0.1)), (), 64 * 256)
    chosen = {each: Ledger(Wish(max_error=0.4), ("w",), 64 * 256, objective=each) for each in ("size", "speed")}
    assert core.n_params < low.n_params < 1.1 * core.n_params < large.n_params
    assert {each: ledger.first(0, curve).error for each, ledger in chosen.items()} == {"size": 0.3, "speed": 0.2}


def test_with_speed_for_the_objective_a_budget_goes_to_the_least_of_errors_weighed_by_time():
    low, core = MatrixShape(BlockTermShape.low_rank(256, 64, 2)), MatrixShape(BlockTermShape((8, 8), (16, 16), (4, 4)))
    assert low.n_params < core.n_params < 2 * low.n_params
    assert row_cost(core) > 4 * row_cost(low)
    for error, expected in ((0.49, {"size": 0.49, "speed": 0.5}), (0.3, {"size": 0.3, "speed": 0.3})):
        curve = Curve((Point(low, 0.5), Point(core, error)), (), 64 * 256)
        for objective, best in expected.items():
            ledger = Ledger(Wish(max_params=core.n_params), ("w",), 64 * 256, objective=objective)
            (group,) = ledger.groups([curve])
            (point,) = ledger.spend(group, [curve])
            assert point.error == best


def test_ratios_of_the_model_count_all_tensors():
    model = nn.ModuleDict({"lstm": lstm(), "head": nn.Linear(8, 5)})
    plan = btcompress.plan_for(model, target_ratio=1.5, of="model")
    report = btcompress.report(btcompress.factorize(model, plan=plan))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert plan.params_of_model == total
    assert report.model.params_after == total - plan.params_before + plan.params_after <= total / 1.5


def test_budgets_go_where_they_serve_most_and_not_one_parameter_over():
    model = lstm()
    with torch.no_grad():
        model.weight_ih_l0.copy_(torch.outer(torch.arange(1.0, 33), torch.arange(1.0, 19)))
    first, second = btcompress.plan_for(model, max_params=210).forms
    assert first.n_params + second.n_params <= 210
    assert first.point.error < 1e-6
    assert second.n_params > first.n_params


def test_scaling_a_matrix_does_not_change_what_it_is_worth():
    model, scaled = lstm(), lstm()
    with torch.no_grad():
        scaled.weight_ih_l0.mul_(1024.0)
    plans = [btcompress.plan_for(each, target_ratio=3) for each in (model, scaled)]
    assert [f.point.shape for f in plans[0].forms] == [f.point.shape for f in plans[1].forms]


def test_both_wishes_at_once_hold_together():
    model = lstm(decay=0.2)
    plan = btcompress.plan_for(model, target_ratio=2, max_error=0.6)
    assert plan.params_after * 2 <= plan.params_before
    assert all(form.point is None or form.point.error <= 0.6 for form in plan.forms)
    with pytest.raises(BTCompressError, match=r"with weight errors of at most 0\.05"):
        btcompress.plan_for(model, target_ratio=20, max_error=0.05)


def test_wishes_out_of_reach_say_what_is_in_reach_and_that_is():
    model = lstm()
    with pytest.raises(BTCompressError, match="What is in reach is") as caught:
        btcompress.plan_for(model, target_ratio=1e6)
    reach = float(str(caught.value).split("a ratio of ")[-1].split(":")[0])
    assert btcompress.plan_for(model, target_ratio=reach).params_after <= 832 / reach
    with pytest.raises(BTCompressError, match="of other tensors"):
        btcompress.plan_for(model, target_ratio=50, of="model")


def test_matrices_stay_dense_for_a_reason():
    roomy = btcompress.plan_for(lstm(), max_params=10**6)
    assert [left.reason for left in roomy.plan.left_dense] == ["the budget has room for all matrices as they are"] * 2
    strict = btcompress.plan_for(lstm(), max_error=0.001)
    assert all("closest reaches" in left.reason for left in strict.plan.left_dense)
    with pytest.raises(CheckpointError, match="no matrix is worth"):
        btcompress.factorize(lstm(), plan=strict)
    tiny = nn.LSTM(1, 1)
    assert "no form has fewer" in btcompress.plan_for(tiny, max_error=0.5).plan.left_dense[0].reason


def test_a_matrix_stays_dense_where_even_its_most_accurate_form_loses_more_than_the_others_gain_by_it():
    """Told of one that a flat spectrum makes dear, beside one that nearly nothing is lost of; and true."""
    model = nn.LSTM(18, 8, num_layers=2, dtype=torch.float64)
    with torch.no_grad():
        model.weight_ih_l0.copy_(torch.linalg.qr(torch.randn(32, 18, dtype=torch.float64))[0])
        model.weight_ih_l1.copy_(torch.outer(torch.arange(1.0, 33), torch.arange(1.0, 9)) + 0.01 * torch.randn(32, 8))
    plan = btcompress.plan_for(model, max_params=700)
    (left,) = plan.plan.left_dense
    assert left.name == "weight_ih_l0"
    dense, other = plan.forms
    closest = dense.curve.points[-1]
    words = f"({closest.n_params:,} of 576 parameters, weight error {closest.error:.3g}) would lose more"
    assert words in left.reason
    assert plan.params_before > 700
    saved = dense.n_params - closest.n_params
    gained = other.point.error**2 - other.curve.within(other.n_params + saved).error ** 2
    assert 0 <= gained < closest.error**2


def test_planning_asks_for_matrices_finite_numbers_and_modes_that_fit():
    with pytest.raises(CheckpointError, match="no matrix to plan for"):
        btcompress.plan_for(nn.Linear(3, 4), max_error=0.5)
    with pytest.raises(ShapeError, match="in_modes 5,7"):
        btcompress.plan_for(lstm(), max_error=0.5, in_modes=(5, 7))
    broken = lstm()
    with torch.no_grad():
        broken.weight_ih_l1[2, 3] = math.nan
    with pytest.raises(BTCompressError, match=r"weight_ih_l1: .*not finite"):
        btcompress.plan_for(broken, max_error=0.5)


def test_planner_takes_any_list_of_matrices(generator):
    """Rows without gates, as a linear layer has them, beside an LSTM's."""
    checkpoint = from_state_dict({**lstm().state_dict(), "head.weight": torch.randn(30, 24, generator=generator)})
    base = make_plan(checkpoint, ShapeRequest(1, 1), allow_growth=True)
    head = replace(base.matrices[0], name="head.weight", shape=MatrixShape(BlockTermShape.low_rank(30, 24, 1)))
    plan = meet(checkpoint, replace(base, matrices=(*base.matrices, head)), Wish(target_ratio=2))
    assert [form.name for form in plan.forms] == ["weight_ih_l0", "weight_ih_l1", "head.weight"]
    assert plan.forms[2].point.shape.gates == "fused"
    assert plan.params_after * 2 <= plan.params_before


def test_layers_and_progress():
    seen = []
    plan = priced_plan(lstm(), btcompress.FactorizeStep(max_error=0.5, layers=["*_l1"]), on_progress=seen.append)
    assert [form.name for form in plan.forms] == ["weight_ih_l1"]
    assert {(state.name, state.index, state.count) for state in seen} == {("weight_ih_l1", 0, 1)}
    assert seen[-1].share == 1


def test_forms_that_fit_worse_than_foreseen_may_leave_the_matrix_dense():
    checkpoint = from_state_dict(lstm().state_dict())
    base = make_plan(checkpoint, ShapeRequest(1, 2, order=3), allow_growth=True)
    first, second = base.matrices
    plan = replace(base, matrices=(replace(first, fallback=Fallback(0.0, None)), second))
    compressed = factorization.factorize_as_planned(checkpoint, plan)
    assert list(compressed.matrices) == ["weight_ih_l1"]
    (left,) = btcompress.report(compressed).left_dense
    assert (left.name, left.reason) == ("weight_ih_l0", "its block terms came out worse than foreseen")


@pytest.mark.parametrize("worse", [True, False])
def test_forms_that_fit_worse_than_foreseen_give_way_to_low_rank(worse, monkeypatch):
    model = lstm()
    checkpoint = from_state_dict(model.state_dict())
    base = make_plan(checkpoint, ShapeRequest(1, 2, order=3), ["*_l0"], allow_growth=True)
    low_rank = MatrixShape(BlockTermShape.low_rank(32, 18, 1, 4))
    planned = replace(base.matrices[0], fallback=Fallback(0.0 if worse else 1.0, low_rank))
    compressed = factorization.factorize_as_planned(checkpoint, replace(base, matrices=(planned,)))
    (row,) = btcompress.report(compressed).matrices
    assert (row.core == "identity") == worse
    assert any("low rank 1 instead" in notice for notice in compressed.notices) == worse
    if worse:
        assert row.weight_error == pytest.approx(truncated_svd(model.weight_ih_l0, row.params_after).error, abs=1e-9)


def test_every_form_with_a_core_has_a_low_rank_form_to_fall_back_on():
    part = BlockTermShape((3, 4, 4), (8, 4, 2), (3, 3, 3), 1, n_gates=4)
    model = nn.LSTM(48, 16, dtype=torch.float64)
    with torch.no_grad():
        model.weight_ih_l0.copy_(random_form(part, torch.Generator().manual_seed(0)).to_dense())
    plan = btcompress.plan_for(model, max_params=175, in_modes=(3, 4, 4), out_modes=(8, 4, 2))
    (form,), (planned,) = plan.forms, plan.plan.matrices
    assert planned.shape.part.core == "full"
    assert planned.fallback == Fallback(form.low_rank.error, form.low_rank.shape)
    strict = btcompress.plan_for(model, max_error=0.05, in_modes=(3, 4, 4), out_modes=(8, 4, 2)).plan.matrices[0]
    assert strict.shape.part.core == "full"
    assert strict.fallback == Fallback(0.05, None)
    assert strict.shape.n_params < min(point.n_params for point in form.curve.low_rank if point.error < 0.3)


def test_planned_low_rank_runs_trains_and_loads_like_any_other_form(tmp_path):
    model = lstm(decay=0.3)
    compressed = btcompress.factorize(model, plan=btcompress.plan_for(model, target_ratio=2))
    btcompress.save(compressed, tmp_path / "out")
    applied = btcompress.apply(lstm(1), tmp_path / "out")
    dense = lstm(1)
    dense.load_state_dict(btcompress.to_dense(tmp_path / "out"))
    inputs = torch.randn(5, 3, 18, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(applied(inputs)[0], dense(inputs)[0])
    gradients = [torch.autograd.grad(each(inputs)[0].square().sum(), inputs)[0] for each in (applied, dense)]
    torch.testing.assert_close(*gradients)
    assert any(isinstance(part, BlockTerm) for part in applied.weight_ih_l0.parts)
    assert {name for name, _ in applied.named_parameters()} == set(btcompress.load(tmp_path / "out").tensors)
