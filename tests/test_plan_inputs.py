"""Planning with sample inputs: what outputs count decides, and what was not measured is not promised."""

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from btcompress import display
from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import from_state_dict
from btcompress.errors import BTCompressError
from btcompress.factorization import factorize_as_planned
from btcompress.fit import Samples, fit_to_inputs
from btcompress.modes import ShapeRequest
from btcompress.plan import Wish, make_plan, meet, save_plan
from btcompress.reporting import report

KEYS = ("weight_ih_l0", "weight_hh_l0")


def lstm(generator, inputs=18, hidden=12):
    module = nn.LSTM(inputs, hidden).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return from_state_dict(module.state_dict())


def samples_for(dense, generator, n=200):
    """Correlated inputs of each matrix, and outputs that count differently."""
    found = {}
    for key in KEYS:
        n_outputs, n_inputs = dense.tensors[key].shape
        mixing = torch.randn(n_inputs, n_inputs, generator=generator, dtype=torch.float64)
        mixing *= torch.logspace(0, -2, n_inputs, dtype=torch.float64)[:, None]
        fit, held = torch.randn(2, n, n_inputs, generator=generator, dtype=torch.float64) @ mixing / n**0.5
        weights = torch.rand(n_outputs, generator=generator, dtype=torch.float64) + 0.1
        found[key] = Samples(fit, held, weights)
    return found


def planned(dense, wish, samples, **arguments):
    return meet(
        dense, make_plan(dense, ShapeRequest(), matrices=("input", "recurrent")), wish, samples=samples, **arguments
    )


@pytest.mark.parametrize("louder", KEYS)
def test_parameters_go_to_the_matrix_whose_outputs_count(louder, generator):
    dense = lstm(generator)
    samples = samples_for(dense, generator)
    samples[louder] = replace(samples[louder], weights=1000 * samples[louder].weights)
    forms = {form.name: form for form in planned(dense, Wish(target_ratio=4), samples).forms}
    (other,) = set(KEYS) - {louder}
    budget = math.floor(sum(form.curve.dense_params for form in forms.values()) / 4)
    # It has the best form that the smallest form of the other leaves room for.
    n_left = budget - forms[other].curve.points[0].n_params
    assert forms[louder].point == forms[louder].curve.within(n_left)
    assert forms[louder].n_params > budget / 2


def two_lstms(generator):
    """Checkpoint of an LSTM ``a`` of large weights and an LSTM ``b``, and samples for ``a`` alone."""
    dense = lstm(generator)
    other = lstm(generator, inputs=24)
    samples = samples_for(dense, generator)
    both = {f"a.{key}": tensor for key, tensor in dense.tensors.items()}
    both |= {f"b.{key}": tensor for key, tensor in other.tensors.items()}
    return from_state_dict(both), {f"a.{key}": sample for key, sample in samples.items()}


def forms_of(dense, wish, samples, layers=()):
    """The plan, low rank alone priced, and each matrix's form with the reason why it stays dense."""
    request = ShapeRequest(order=2)
    chosen = make_plan(dense, request, layers, matrices=("input", "recurrent"), allow_growth=True)
    plan = meet(dense, chosen, wish, request, samples=samples)
    return plan, {form.name: (form.point, form.reason) for form in plan.forms}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1.5, 2, 3.7, 8]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_matrices_without_samples_get_the_forms_that_they_would_get_alone(seed, ratio, loudness):
    generator = torch.Generator().manual_seed(seed)
    dense, samples = two_lstms(generator)
    samples = {key: replace(sample, weights=loudness * sample.weights) for key, sample in samples.items()}
    plan, forms = forms_of(dense, Wish(target_ratio=ratio), samples)
    alone = {}
    for name in "ab":
        alone |= forms_of(dense, Wish(target_ratio=ratio), samples, [f"{name}.*"])[1]
    assert forms == alone
    assert plan.params_after * ratio <= plan.params_before


@pytest.mark.parametrize(("wish", "whole"), [(Wish(max_params=900), 900), (Wish(target_ratio=2, of="model"), None)])
def test_budgets_of_each_kind_are_in_proportion_and_told(wish, whole, generator):
    dense, samples = two_lstms(generator)
    plan, _ = forms_of(dense, wish, samples)
    whole = whole or wish.budget(plan.params_before, dense.source.n_params)
    shares = {}
    for name in "ab":
        own = [form for form in plan.forms if form.name.startswith(name)]
        shares[name] = whole * sum(form.curve.dense_params for form in own) // plan.params_before
        assert sum(form.n_params for form in own) <= shares[name]
    (told,) = plan.plan.notices
    assert "no sample inputs of b.weight_ih_l0, b.weight_hh_l0: priced by their weight errors" in told
    assert f"a budget of their own of {shares['b']:,} of 1,728 parameters" in told
    assert f"Those with sample inputs have {shares['a']:,} of 1,440." in told


def test_plan_and_report_show_which_matrices_have_a_budget_of_their_own(generator, capsys):
    dense, samples = two_lstms(generator)
    plan, _ = forms_of(dense, Wish(target_ratio=4), samples)
    (told,) = plan.plan.notices
    display.show_priced_plan(dense, plan)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Note: {told}" in shown
    display.show_priced_plan_json(dense, plan)
    assert json.loads(capsys.readouterr().out)["notices"] == [told]
    compressed = factorize_as_planned(dense, plan.plan)
    assert told in report(compressed).notices


def test_where_the_smallest_forms_take_more_than_their_share_the_others_have_the_rest(generator):
    tiny = lstm(generator, inputs=2, hidden=2)
    large = lstm(generator, inputs=60, hidden=30)
    tensors = {f"{name}.{key}": t for name, one in (("t", tiny), ("x", large)) for key, t in one.tensors.items()}
    dense = from_state_dict(tensors)
    samples = {f"x.{key}": sample for key, sample in samples_for(large, generator).items()}
    _, (first, second) = (forms_of(dense, Wish(max_error=0.999), None, [f"{name}.*"])[0].forms for name in "tx")
    least = sum(form.curve.points[0].n_params for form in (first, second))
    plan, _ = forms_of(dense, Wish(target_ratio=20), samples)
    small, big = ([form for form in plan.forms if form.name.startswith(name)] for name in "tx")
    assert [form.point for form in small] == [form.curve.points[0] for form in small]
    assert plan.params_after * 20 <= plan.params_before
    assert sum(form.n_params for form in small) > sum(form.curve.dense_params for form in small) / 20
    assert least < sum(form.n_params for form in big)
    with pytest.raises(BTCompressError, match="What is in reach is"):
        forms_of(dense, Wish(target_ratio=1000), samples)


def test_one_kind_of_matrices_has_one_budget_and_no_notice(generator):
    dense, samples = two_lstms(generator)
    for given_samples in (None, {**samples, **{f"b.{key[2:]}": s for key, s in samples.items() if "hh" in key}}):
        layers = () if given_samples is None else ["a.*", "b.weight_hh_l0"]
        plan, _ = forms_of(dense, Wish(target_ratio=3), given_samples, layers)
        assert plan.plan.notices == ()


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([3, 6, 12]))
def test_no_matrix_is_ever_worse_than_low_rank_of_equal_size_fitted_to_the_inputs(seed, ratio):
    generator = torch.Generator().manual_seed(seed)
    dense = lstm(generator)
    samples = samples_for(dense, generator)
    for form in planned(dense, Wish(target_ratio=ratio), samples, seed=seed).forms:
        assert form.curve.on_inputs
        assert form.low_rank is None or form.point.error <= form.low_rank.error
        shapes = [point.shape for point in form.curve.low_rank if point.n_params <= form.n_params]
        assert form.low_rank is None or form.low_rank.shape == shapes[-1]


def test_errors_of_low_rank_are_those_that_the_fit_to_the_inputs_reaches(generator):
    dense = lstm(generator)
    samples = samples_for(dense, generator)
    for form in planned(dense, Wish(target_ratio=4), samples).forms:
        assert form.curve.low_rank
        for point in form.curve.low_rank:
            start = point.shape.part
            zeros = [torch.zeros(shape, dtype=torch.float64) for shape in start.factor_shapes]
            fitted = fit_to_inputs(dense.tensors[form.name], (BlockTerm.of(start, zeros),), samples[form.name])
            assert fitted.errors.weighted == pytest.approx(point.error, rel=1e-6)
            assert fitted.errors.plain == pytest.approx(point.activation_error, rel=1e-6)


def test_every_matrix_is_within_an_activation_error_wished_for(generator):
    dense = lstm(generator)
    samples = samples_for(dense, generator)
    for form in planned(dense, Wish(max_activation_error=0.3), samples).forms:
        assert form.point.activation_error <= 0.3
        smaller = [point for point in form.curve.points if point.n_params < form.n_params]
        assert all(point.activation_error > 0.3 for point in smaller)


def test_an_activation_error_of_a_matrix_without_samples_is_not_promised(generator):
    dense = lstm(generator)
    samples = samples_for(dense, generator)
    del samples["weight_hh_l0"]
    with pytest.raises(BTCompressError, match="no sample inputs of weight_hh_l0"):
        planned(dense, Wish(max_activation_error=0.3), samples)
    with pytest.raises(BTCompressError, match="weight_ih_l0, weight_hh_l0"):
        planned(dense, Wish(max_activation_error=0.3), None)


def test_a_weight_error_wished_for_is_one_though_there_are_samples(generator):
    dense = lstm(generator)
    samples = samples_for(dense, generator)
    with_samples, without = (planned(dense, Wish(max_error=0.6), each) for each in (samples, None))
    assert with_samples.plan.matrices == without.plan.matrices
    assert not any(form.curve.on_inputs for form in with_samples.forms)


def test_plan_files_say_which_errors_were_predicted(generator, tmp_path):
    dense = lstm(generator)
    priced = planned(dense, Wish(target_ratio=4), samples_for(dense, generator))
    save_plan(priced, tmp_path / "plan.yaml", name="made up", sha256=None)
    entries = yaml.safe_load((tmp_path / "plan.yaml").read_text())["matrices"]
    for form in priced.forms:
        predicted = entries[form.name]["predicted"]
        assert predicted["weighted_activation_error"] == form.point.error
        assert predicted["activation_error"] == form.point.activation_error
        assert predicted["low_rank_error"] == form.low_rank.error
        assert "weight_error" not in predicted
