"""Matrices of every scale that a dtype has: what is stored is finite, and the error stated is its own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from btcompress.checkpoint import from_state_dict
from btcompress.compression import factorize, plan_for
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.factorization import factorize_as_planned
from btcompress.modes import ShapeRequest
from btcompress.nn import BTLinear
from btcompress.plan import PlannedMatrix, make_plan
from btcompress.shapes import BlockTermShape, MatrixShape

KEY = "weight_ih_l0"
FORMS = {
    "two blocks": MatrixShape(BlockTermShape((3, 4), (8, 4), (3, 3), 2, n_gates=4)),
    "all of it": MatrixShape(BlockTermShape((3, 4), (8, 4), (16, 16), n_gates=4)),
    "Kronecker": MatrixShape(BlockTermShape((3, 4), (8, 4), (5, 5), n_gates=4, core="identity")),
    "low rank": MatrixShape(BlockTermShape.low_rank(32, 12, 4, 4)),
    "separate gates": MatrixShape(BlockTermShape((3, 4), (2, 4), (3, 3)), "separate"),
    "orders": MatrixShape(BlockTermShape((3, 4), (8, 4), (3, 3), n_gates=4, row_order=True, column_order=True)),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def scales_of(dtype):
    limits = torch.finfo(dtype)
    least = limits.smallest_normal * limits.eps
    squares_overflow = (2.0**-999, 2.0**999) if dtype == torch.float64 else ()
    return (least, 8 * least, limits.smallest_normal, 1.0, *squares_overflow, limits.max / 1000, limits.max)


def checkpoint_of(dtype, scale):
    values = 2 * torch.rand(32, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    matrix = (values / values.abs().max() * scale).to(dtype)
    return from_state_dict({KEY: matrix, "weight_hh_l0": torch.zeros(32, 8, dtype=dtype)})


def error_in_long_doubles(matrix, formed):
    exact, other = (each.double().numpy().astype(np.longdouble) for each in (matrix, formed))
    return float(np.sqrt(np.square(exact - other).sum()) / np.sqrt(np.square(exact).sum()))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_stated_is_that_of_the_matrix_formed_or_the_matrix_is_left_with_a_reason(dtype, name):
    n_stated = 0
    for scale in scales_of(dtype):
        checkpoint = checkpoint_of(dtype, scale)
        plan = make_plan(checkpoint, ShapeRequest(1, 1), allow_growth=True)
        plan = replace(plan, matrices=(PlannedMatrix(KEY, FORMS[name]),))
        try:
            result = factorize_as_planned(checkpoint, plan)
        except BTCompressError as refused:
            words = str(refused)
            assert KEY in words
            assert "range of" in words or "largest magnitude" in words
            # Refused alone: what no form of the dtype holds, and of float64 what has no reciprocal or norm.
            assert scale == torch.finfo(dtype).max or not 2.0**-1000 < scale < 2.0**1000
            continue
        formed = result.dense_state_dict()[KEY]
        assert all(torch.isfinite(tensor).all() for tensor in (formed, *result.tensors.values()))
        true = error_in_long_doubles(checkpoint.tensors[KEY], formed)
        assert result.matrices[KEY].weight_error == pytest.approx(true, rel=1e-9, abs=1e-15)
        n_stated += 1
    assert n_stated >= (3 if dtype == torch.float64 else 5)


def test_a_matrix_whose_form_leaves_its_range_stays_dense_beside_others():
    largest = torch.finfo(torch.float32).max
    state = {**checkpoint_of(torch.float32, largest).tensors}
    state |= {f"other.{key}": tensor for key, tensor in checkpoint_of(torch.float32, 1.0).tensors.items()}
    result = factorize(state, cp_rank=2, tucker_rank=3, in_modes=(3, 4), out_modes=(8, 4))
    assert list(result.matrices) == [f"other.{KEY}"]
    assert torch.equal(result.dense_state_dict()[KEY], state[KEY])
    (left,) = result.history[0]["left_dense"]
    assert left["name"] == KEY
    assert "range of torch.float32" in left["reason"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("steps", [2, 20, 2000])
def test_the_error_foreseen_of_denormal_matrices_counts_the_step_between_them(dtype, steps):
    limits = torch.finfo(dtype)
    checkpoint = checkpoint_of(dtype, steps * limits.smallest_normal * limits.eps)
    planned = plan_for(checkpoint.tensors, max_params=200)
    foreseen = planned.forms[0].point.error
    result = factorize_as_planned(
        checkpoint, replace(planned.plan, matrices=(replace(planned.plan.matrices[0], fallback=None),))
    )
    assert result.matrices[KEY].weight_error <= 1.1 * foreseen


def test_a_layer_whose_form_leaves_its_range_is_refused_by_name():
    linear = nn.Linear(12, 32)
    with torch.no_grad():
        linear.weight.copy_(checkpoint_of(torch.float32, torch.finfo(torch.float32).max).tensors[KEY])
    with pytest.raises(BTCompressError, match="weight: the matrix that its block terms form holds values"):
        BTLinear.from_dense(linear, cp_rank=1, tucker_rank=3)


def test_a_matrix_that_no_longer_fits_its_range_is_not_formed_silently():
    result = factorize(checkpoint_of(torch.float16, 1.0).tensors, tucker_rank=2)
    larger = {name: 300 * tensor for name, tensor in result.tensors.items() if name.startswith(KEY)}
    assert all(torch.isfinite(tensor).all() for tensor in larger.values())
    with pytest.raises(CheckpointError, match=f"{KEY} has values beyond the range of float16"):
        result.with_step({}, larger).dense_state_dict()


@pytest.mark.parametrize("scale", [1e302, 1e-302, 5e-324, math.nan, math.inf])
def test_what_cannot_be_fitted_is_refused_before_it_is_priced_or_fitted(scale):
    state = checkpoint_of(torch.float64, 1.0).tensors
    state = {**state, KEY: torch.full((32, 12), scale, dtype=torch.float64)}
    for ask in (factorize, lambda weights: plan_for(weights, target_ratio=2)):
        with pytest.raises(BTCompressError, match=f"^{KEY}: "):
            ask(state)
