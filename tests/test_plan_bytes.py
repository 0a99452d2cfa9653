"""Wishes in bytes: forms and precisions together, never worse than what anybody could do by hand in as many bytes."""

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from btcompress import display
from btcompress.checkpoint import from_state_dict, others_stored_as, write
from btcompress.errors import BTCompressError
from btcompress.factorization import factorize_as_planned
from btcompress.fit import Samples, fed_back, nearest
from btcompress.fit.inputfit import low_rank_errors_on
from btcompress.fit.samples import output_errors
from btcompress.modes import ShapeRequest
from btcompress.packing import Integers
from btcompress.plan import Wish, make_plan, meet, read_plan, save_plan
from btcompress.plan.candidates import candidates
from btcompress.plan.filesize import bytes_beside
from btcompress.pricing import Room, price_in_bits
from btcompress.shapes import BlockTermShape, MatrixShape
from btcompress.yardsticks import truncated_svd
from forms import random_form

INPUTS, HIDDEN = 40, 24
KEYS = ("weight_ih_l0", "weight_hh_l0")
#: Forms without a core, priced without a fit: for tests to which it does not matter what is chosen of all there is.
FEW = ShapeRequest(order=2)


def gaussian(size, generator):
    return torch.randn(size, generator=generator) / size[1] ** 0.5


def low_rank_and_noise(size, generator):
    left, right = (torch.randn(n, 3, generator=generator) for n in size)
    return (left @ right.T + 0.1 * torch.randn(size, generator=generator)) / size[1] ** 0.5


def heavy_tailed(size, generator):
    return torch.randn(size, generator=generator) ** 3 / size[1] ** 0.5


def huge_directions(size, generator):
    scale = torch.ones(size[1])
    scale[:2] = 300.0
    return torch.randn(size, generator=generator) * scale / size[1]


def block_terms(size, generator):
    part = BlockTermShape((4, size[1] // 4), (size[0] // 4, 4), (2, 2), n_gates=4)
    return random_form(part, generator).to_dense().float() + 0.01 * torch.randn(size, generator=generator)


MATRICES = {each.__name__: each for each in (gaussian, low_rank_and_noise, heavy_tailed, huge_directions, block_terms)}


def lstm(kinds, seed=0, dtype=torch.float32):
    """A checkpoint whose ``W`` and ``U`` are of these kinds."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.LSTM(INPUTS, HIDDEN)
    with torch.no_grad():
        for key, kind in zip(KEYS, kinds, strict=True):
            parameter = getattr(module, key)
            parameter.copy_(MATRICES[kind](tuple(parameter.shape), generator))
    return from_state_dict(module.to(dtype).state_dict())


def samples_for(dense, seed, n=80):
    """Correlated inputs of each matrix, and outputs that count differently."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for key in KEYS:
        n_outputs, n_inputs = dense.tensors[key].shape
        mixing = torch.randn(n_inputs, n_inputs, generator=generator) * torch.logspace(0, -2, n_inputs)[:, None]
        fit, held = torch.randn(2, n, n_inputs, generator=generator) @ mixing / n**0.5
        found[key] = Samples(fit, held, torch.rand(n_outputs, generator=generator) + 0.1)
    return found


def planned(dense, wish, samples=None, request=ShapeRequest(), **arguments):
    chosen = make_plan(dense, ShapeRequest(), matrices=("input", "recurrent"), allow_growth=True)
    return meet(dense, chosen, wish, request, samples=samples, **arguments)


def by_hand(columns):
    """What anybody can do: 8 bits with a scale for each row, 4 bits in groups of 32."""
    return Integers(8, max(columns, 8)), Integers(4, 32)


# The law


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 99),
    st.tuples(*[st.sampled_from(list(MATRICES))] * 2),
    st.floats(1.5, 60),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_no_matrix_comes_out_worse_than_svd_int8_or_int4_in_as_many_bytes(seed, kinds, ratio, dtype):
    dense = lstm(kinds, seed, dtype)
    try:
        plan = planned(dense, Wish(target_ratio=ratio, of="bytes"))
    except BTCompressError as error:
        assert "in reach" in str(error)  # noqa: PT017
        return
    assert plan.bytes_after * ratio <= plan.bytes_before
    done = factorize_as_planned(dense, plan.plan)
    assert (
        sum(done.bytes_of_matrix(form.name) if form.point else form.n_bytes for form in plan.forms) == plan.bytes_after
    )
    slack = 1e-6 + torch.finfo(dtype).eps
    for form in plan.forms:
        matrix = dense.tensors[form.name]
        if form.point is None:
            continue
        n_bytes = done.bytes_of_matrix(form.name)
        error = float((done.dense_state_dict()[form.name].double() - matrix).norm() / matrix.double().norm())
        assert error <= truncated_svd(matrix, n_bytes // dtype.itemsize).error + slack
        for integers in by_hand(matrix.shape[1]):
            if integers.n_bytes(matrix.shape) <= n_bytes:
                rounded = nearest(matrix, integers).values().double()
                assert error <= float((rounded - matrix).norm() / matrix.double().norm()) + slack


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99), st.tuples(*[st.sampled_from(list(MATRICES))] * 2), st.floats(1.5, 40))
def test_on_inputs_no_matrix_is_planned_worse_than_low_rank_int8_or_int4_in_as_many_bytes(seed, kinds, ratio):
    dense = lstm(kinds, seed)
    samples = samples_for(dense, seed)
    plan = planned(dense, Wish(target_ratio=ratio, of="bytes"), samples)
    assert plan.bytes_after * ratio <= plan.bytes_before
    for form in plan.forms:
        if form.point is None:
            continue
        matrix, own, n_bytes = dense.tensors[form.name], samples[form.name], form.n_bytes
        low_rank = MatrixShape(BlockTermShape.low_rank(*matrix.shape, 1, 4))
        for rank, errors in enumerate(low_rank_errors_on(matrix, low_rank, own), 1):
            assert 4 * rank * sum(matrix.shape) > n_bytes or form.point.error <= errors.weighted + 1e-6
        for integers in by_hand(matrix.shape[1]):
            if integers.n_bytes(matrix.shape) <= n_bytes:
                rounded = fed_back(matrix, integers, own.inputs).values()
                errors = output_errors(own.held @ matrix.T, own.held @ rounded.T, own.weights)
                assert form.point.error <= errors.weighted + 1e-9


@pytest.mark.parametrize("on_inputs", [False, True])
@pytest.mark.parametrize(("ratio", "request_"), [(3, FEW), (9, ShapeRequest()), (25, FEW)], ids=str)
def test_what_was_chosen_was_measured_and_comes_out_as_measured(on_inputs, ratio, request_):
    dense = lstm(("low_rank_and_noise", "gaussian"))
    samples = samples_for(dense, 0) if on_inputs else None
    plan = planned(dense, Wish(target_ratio=ratio, of="bytes"), samples, request_)
    assert all(form.point is None or form.point.measured for form in plan.forms)
    if on_inputs:
        return
    done = factorize_as_planned(dense, plan.plan)
    for form in plan.forms:
        matrix = dense.tensors[form.name]
        error = float((done.dense_state_dict()[form.name] - matrix).norm() / matrix.norm())
        assert error == pytest.approx(form.point.error, rel=1e-3)


def test_forms_and_bits_multiply_where_a_matrix_has_both():
    """Low rank alone, or rounding alone, needs several times the bytes."""
    dense = lstm(("low_rank_and_noise", "low_rank_and_noise"))
    plan = planned(dense, Wish(target_ratio=11, of="bytes"))
    for form in plan.forms:
        assert form.point.shape.part.core == "identity"
        assert isinstance(form.point.precision, Integers)
        assert form.point.error < 0.5 * min(form.low_rank.error, form.rounding.error if form.rounding else 1.0)


def test_a_structured_matrix_is_found_in_few_bits():
    generator = torch.Generator().manual_seed(1)
    part = BlockTermShape((4, 4, 4), (16, 4, 4), (3, 3, 3), n_gates=4)
    matrix = random_form(part, generator).to_dense().float()
    tried = candidates("weight", 256, 64, 4, ShapeRequest(in_modes=(4, 4, 4), out_modes=(16, 4, 4)))
    curve = price_in_bits(matrix, tried.without_core, tried.with_core)
    point = curve.curve().within(part.n_params)
    found = curve.measure(point)
    assert found.shape.part.core == "full"
    assert found.measured
    assert found.error < 0.1
    assert nearest(matrix, Integers(2, 128)).n_bytes > 5 * part.n_params


# What is foretold


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("on_inputs", [False, True])
def test_what_is_foretold_is_near_what_comes_out_once_something_was_measured(kind, on_inputs):
    dense = lstm((kind, "gaussian"))
    matrix, samples = dense.tensors[KEYS[0]], samples_for(dense, 0)[KEYS[0]] if on_inputs else None
    tried = candidates("weight", *matrix.shape, 4, ShapeRequest(order=2))
    curve = price_in_bits(matrix, tried.without_core, (), None, samples)
    for bits in (3, 4, 6):
        at = [p for p in curve.curve().points if isinstance(p.precision, Integers) and p.precision.bits == bits]
        for point in at[len(at) // 2 : len(at) // 2 + 1]:
            if not point.measured:
                curve.measure(point)
    foretold = [p for p in curve.curve().points if not p.measured and p.error > 0.02][::8]
    assert foretold
    ratios = [curve.measure(point).error / point.error for point in foretold]
    assert 0.85 < statistics.median(ratios) < 1.15
    assert all(0.5 < ratio < 1.5 for ratio in ratios)


def test_points_of_a_curve_rise_in_bytes_and_fall_in_error_and_say_what_was_measured():
    dense = lstm(("gaussian", "heavy_tailed"))
    for form in planned(dense, Wish(target_ratio=6, of="bytes")).forms:
        sizes, errors = zip(*((p.n_bytes(form.dtype), p.error) for p in form.curve.points), strict=True)
        assert list(sizes) == sorted(set(sizes))
        assert list(errors) == sorted(set(errors), reverse=True)
        assert sizes[-1] < form.bytes_before
        assert all(point.measured for point in (*form.curve.roundings, *form.curve.low_rank))
        assert {Integers(4, 32)} <= {p.precision for p in form.curve.roundings}


def test_what_is_far_beyond_a_wish_is_not_priced():
    generator = torch.Generator().manual_seed(0)
    part = BlockTermShape((4, 4, 4), (16, 4, 4), (2, 2, 2), n_gates=4)
    matrix = random_form(part, generator).to_dense().float() + 0.1 * gaussian((256, 64), generator)
    tried = candidates("weight", 256, 64, 4, ShapeRequest(in_modes=(4, 4, 4), out_modes=(16, 4, 4)))
    room = Room(matrix.nbytes // 2, matrix.nbytes // 8)
    some, every = (
        price_in_bits(matrix, tried.without_core, tried.with_core, room=each).curve().points for each in (room, None)
    )
    assert max(p.n_bytes(torch.float32) for p in some if p.precision is not None) <= room.most
    small = [[p for p in points if p.shape and p.shape.part.core == "full"] for points in (some, every)]
    assert min(p.n_params for p in small[1]) * 4 < room.mean / 16
    assert all(p.n_params * 4 >= room.mean / 16 for p in small[0])


# Wishes


def test_bytes_of_the_matrices_are_kept_to_the_last_one():
    dense = lstm(("gaussian", "low_rank_and_noise"))
    for most in (700, 2048, 3001, 9000):
        plan = planned(dense, Wish(max_bytes=most), request=FEW)
        assert plan.bytes_after <= most
    assert planned(dense, Wish(max_bytes=10**6), request=FEW).plan.rounded == ()


@pytest.mark.parametrize("others", [None, torch.float16])
def test_files_are_never_larger_than_wished_for(others, tmp_path):
    dense = lstm(("gaussian", "low_rank_and_noise"))
    for most, request in ((8000, FEW), (12000, ShapeRequest()), (20000, FEW)):
        plan = planned(dense, Wish(max_bytes=most, of="file"), others=others, request=request)
        done = factorize_as_planned(dense, plan.plan, record={"target": "a" * 200})
        done = done if others is None else others_stored_as(done, others)
        write(done, tmp_path / f"{most}.safetensors")
        size = (tmp_path / f"{most}.safetensors").stat().st_size
        assert size <= plan.file_bytes <= most
        assert size > most - 7000


def test_the_bytes_beside_are_those_of_other_tensors_as_they_will_be_stored():
    dense = lstm(("gaussian", "gaussian"))
    biases = sum(t.nbytes for key, t in dense.tensors.items() if "bias" in key)
    header = bytes_beside(dense.tensors, dense.tensors, None)
    plain, halved = (bytes_beside(dense.tensors, KEYS, others) for others in (None, torch.float16))
    assert plain >= header + biases
    assert plain - halved < biases / 2
    with pytest.raises(BTCompressError, match="of other tensors and the header"):
        planned(dense, Wish(max_bytes=3000, of="file"), request=FEW)


def test_a_file_with_values_beside_its_tensors_is_as_small_as_wished(tmp_path):
    tensors = lstm(("gaussian", "low_rank_and_noise")).tensors
    words = {f'"wörd" {n}': n for n in range(300)}
    dense = from_state_dict({"state_dict": tensors, "words": words, "lists": [{"a": [1, 2]}] * 100})
    plan = planned(dense, Wish(max_bytes=30_000, of="file"), request=FEW)
    write(factorize_as_planned(dense, plan.plan), tmp_path / "a.safetensors")
    assert 20_000 < (tmp_path / "a.safetensors").stat().st_size <= 30_000


def test_wishes_in_bytes_out_of_reach_say_what_is_in_reach_and_that_is():
    dense = lstm(("gaussian", "gaussian"))
    with pytest.raises(
        BTCompressError, match=r"leaves .* bytes to the matrices.*What is in reach is .* bytes"
    ) as caught:
        planned(dense, Wish(target_ratio=1e5, of="bytes"))
    reach = float(str(caught.value).split("a ratio of ")[-1].split(":")[0])
    plan = planned(dense, Wish(target_ratio=reach, of="bytes"))
    assert plan.bytes_after * reach <= plan.bytes_before


def test_an_error_and_bytes_hold_together():
    dense = lstm(("gaussian", "low_rank_and_noise"))
    plan = planned(dense, Wish(target_ratio=4, of="bytes", max_error=0.1), request=FEW)
    assert plan.bytes_after * 4 <= plan.bytes_before
    done = factorize_as_planned(dense, plan.plan)
    for key in KEYS:
        matrix = dense.tensors[key]
        assert float((done.dense_state_dict()[key] - matrix).norm() / matrix.norm()) <= 0.1
    with pytest.raises(BTCompressError, match=r"with weight errors of at most 0\.01"):
        planned(dense, Wish(target_ratio=20, of="bytes", max_error=0.01), request=FEW)


# One precision


@pytest.mark.parametrize("precision", [Integers(4), Integers(3, 64), torch.float16])
def test_one_precision_is_that_of_every_matrix(precision):
    dense = lstm(("gaussian", "low_rank_and_noise"))
    plan = planned(dense, Wish(target_ratio=14, of="bytes"), precision=precision)
    assert all(form.point.precision == precision for form in plan.forms)
    assert set(plan.plan.precisions.values()) == {precision}
    roomy = planned(dense, Wish(max_bytes=10**6), precision=precision, request=FEW)
    assert [each.precision for each in roomy.plan.rounded] == [precision] * 2
    with pytest.raises(BTCompressError, match="What is in reach"):
        planned(dense, Wish(target_ratio=1e4, of="bytes"), precision=precision, request=FEW)


def test_the_matrices_own_dtype_may_be_the_one_precision():
    dense = lstm(("gaussian", "low_rank_and_noise"))
    plan = planned(dense, Wish(target_ratio=3, of="bytes"), precision=torch.float32)
    assert plan.plan.precisions == {}
    assert planned(dense, Wish(max_bytes=10**6), precision=torch.float32, request=FEW).plan.matrices == ()


def test_an_error_alone_with_bits_is_one_of_what_is_stored():
    dense = lstm(("gaussian", "low_rank_and_noise"))
    plan = planned(dense, Wish(max_error=0.2), precision=Integers(4), request=FEW)
    assert all(form.point.error <= 0.2 and form.point.measured for form in plan.forms)
    with pytest.raises(BTCompressError, match=r"no form in this precision keeps its weight error within 0\.001"):
        planned(dense, Wish(max_error=0.001), precision=Integers(4), request=FEW)
    with pytest.raises(BTCompressError, match="Rounding adds to errors"):
        planned(dense, Wish(max_error=0.2, target_ratio=2), precision=Integers(4))


def test_a_wish_in_parameters_with_bits_gives_the_forms_of_the_wish_these_bits():
    dense = lstm(("gaussian", "low_rank_and_noise"))
    plain, stored = (planned(dense, Wish(max_params=2600), request=FEW, precision=each) for each in (None, Integers(4)))
    assert [each.shape for each in stored.plan.matrices] == [each.shape for each in plain.plan.matrices]
    assert {each.precision for each in stored.plan.matrices} == {Integers(4)}
    assert {each.name for each in stored.plan.rounded} == {left.name for left in plain.plan.left_dense}
    assert any("before they are rounded to int4/32" in notice for notice in stored.plan.notices)


def test_what_suits_no_scales_stays_as_it_is_and_says_why():
    dense = lstm(("gaussian", "gaussian"))
    dense.tensors[KEYS[1]].mul_(1e7)
    plan = planned(dense, Wish(max_bytes=18000), precision=Integers(4), request=FEW)
    (left,) = plan.plan.left_dense
    assert (left.name, "does not suit float16 scales" in left.reason) == (KEYS[1], True)
    assert planned(dense, Wish(max_bytes=9000), request=FEW).forms[1].point.precision is None


# Fallbacks


def test_every_rounded_form_may_give_way_to_what_it_was_held_against():
    dense = lstm(("low_rank_and_noise", "gaussian"))
    plan = planned(dense, Wish(target_ratio=9, of="bytes"))
    forms = {form.name: form for form in plan.forms}
    assert plan.plan.matrices
    for each in plan.plan.matrices:
        form, fallback = forms[each.name], each.fallback
        rivals = [rival for rival in (form.low_rank, form.rounding) if rival is not None]
        best = min(rivals, key=lambda rival: rival.error)
        assert fallback.max_error == best.error >= form.point.error
        assert (fallback.shape, fallback.precision) == (best.shape, best.precision)
        worse = replace(each, fallback=replace(fallback, max_error=0.0))
        done = factorize_as_planned(dense, replace(plan.plan, matrices=(worse,), rounded=()))
        error = weight_error_of(done, dense, each.name)
        assert error == pytest.approx(best.error, rel=1e-4)
        assert done.bytes_of_matrix(each.name) <= form.n_bytes


def weight_error_of(done, dense, key):
    matrix = dense.tensors[key]
    return float((done.dense_state_dict()[key] - matrix).norm() / matrix.norm())


# Files and what is shown


def test_plans_in_bytes_are_read_again(tmp_path):
    dense = lstm(("low_rank_and_noise", "gaussian"))
    every = make_plan(dense, ShapeRequest(), matrices=("input", "recurrent"), allow_growth=True)
    for ratio, request in ((2, FEW), (9, ShapeRequest()), (25, FEW)):
        plan = planned(dense, Wish(target_ratio=ratio, of="bytes"), request=request)
        save_plan(plan, tmp_path / "plan.yaml", name="made up", sha256=None)
        read = read_plan(tmp_path / "plan.yaml", dense, every)
        assert read.matrices == plan.plan.matrices
        assert read.rounded == plan.plan.rounded
        assert read.left_dense == plan.plan.left_dense


def test_tables_and_json_say_bits_and_bytes(capsys):
    dense = lstm(("low_rank_and_noise", "gaussian"))
    plan = planned(dense, Wish(target_ratio=9, of="bytes"), request=FEW)
    display.show_priced_plan(dense, plan)
    shown = capsys.readouterr().out
    assert "byte ratios of" in shown
    assert f"{plan.bytes_after:,}" in shown
    assert all(str(form.point.precision) in shown for form in plan.forms)
    display.show_priced_plan_json(dense, plan)
    told = json.loads(capsys.readouterr().out)
    assert told["totals"]["bytes"]["matrices_after"] == plan.bytes_after
    for form, entry in zip(plan.forms, told["matrices"], strict=True):
        assert entry["bytes_after"] == form.n_bytes == entry["chosen"]["bytes"]
        assert entry["chosen"]["precision"] == str(form.point.precision)
        assert entry["chosen"]["measured"]
        assert math.isclose(entry["chosen"]["weight_error"], form.point.error)
