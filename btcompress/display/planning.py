"""A priced plan: the form that each matrix gets, and its curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from btcompress.display.console import make_console, show_json, show_line
from btcompress.display.inventory import form_json
from btcompress.display.tables import NumberTable, form_lines, rank_text, ratio_text, show_list, show_table

if TYPE_CHECKING:
    from btcompress.checkpoint import Checkpoint
    from btcompress.plan import ChosenForm, PricedPlan
    from btcompress.pricing import Point

#: Weights ratios at which curves are shown.
_RATIOS = (2, 4, 8, 16, 32, 64, 128, 1024)


def show_priced_plan(checkpoint: Checkpoint, priced: PricedPlan) -> None:
    """Print the forms chosen, what they come to, and the curve of each matrix."""
    console = make_console()
    show_line(f"Wish: {priced.wish}")
    show_table(console, _forms_table(priced.forms))
    show_table(console, _totals_table(priced))
    on_inputs = any(form.curve.on_inputs for form in priced.forms)
    what = "Predicted error (weighted activation error where there are samples)" if on_inputs else "Weight error"
    console.print(Text(f"\n{what} that is in reach at weights ratios of"), style="bold")
    show_table(console, _curves_table(priced.forms))
    plan = priced.plan
    show_list(console, "Stays dense", [f"{left.name}: {left.reason}." for left in plan.left_dense])
    show_list(console, "Note", (*checkpoint.notices, *plan.notices))


def show_priced_plan_json(checkpoint: Checkpoint, priced: PricedPlan) -> None:
    """Print what :func:`show_priced_plan` shows, and every point of the curves, as one JSON object."""
    plan, wish = priced.plan, priced.wish
    after = priced.params_of_model - priced.params_before + priced.params_after
    show_json(
        {
            "wish": {
                "target_ratio": wish.target_ratio,
                "max_params": wish.max_params,
                "max_error": wish.max_error,
                "max_activation_error": wish.max_activation_error,
                "of": wish.of,
            },
            "matrices": [_chosen_json(form) for form in priced.forms],
            "totals": {
                "matrices": _total_json(priced.params_before, priced.params_after),
                "model": _total_json(priced.params_of_model, after),
            },
            "left_dense": [{"name": left.name, "reason": left.reason} for left in plan.left_dense],
            "notices": [*checkpoint.notices, *plan.notices],
        }
    )


def _forms_table(forms: Sequence[ChosenForm]) -> NumberTable:
    on_inputs = any(form.curve.on_inputs for form in forms)
    headers = ["matrix", "N", "R", "before", "after", "ratio", "predicted\nerror"]
    headers += ["activation\nerror", "low rank at\nequal size"] if on_inputs else ["SVD at\nequal size"]
    table = NumberTable(headers)
    for form in forms:
        before = form.curve.dense_params
        if form.point is None:
            name = [form.name, f"  {form.size[0]} x {form.size[1]}", "  stays dense"]
            table.add_row(name, "", "", f"{before:,}", f"{before:,}", "1.00x", "0.000", *[""] * (1 + on_inputs))
            continue
        shape, part = form.point.shape, form.point.shape.part
        table.add_row(
            form_lines(form.name, form.size, part.out_modes, part.in_modes, shape.gates, part.core, part.order_sizes),
            str(part.n_blocks),
            rank_text(part.ranks),
            f"{before:,}",
            f"{form.n_params:,}",
            ratio_text(before / form.n_params),
            f"{form.point.error:.3f}",
            *[_optional(form.point.activation_error)] * on_inputs,
            _svd_text(form.low_rank),
        )
    return table


def _optional(error: float | None) -> str:
    return "not measured" if error is None else f"{error:.3f}"


def _svd_text(low_rank: Point | None) -> str:
    if low_rank is None:
        return "none so small"
    return f"{low_rank.error:.3f} (rank {low_rank.shape.part.ranks[0]})"


def _totals_table(priced: PricedPlan) -> NumberTable:
    table = NumberTable(["parameters", "before", "after", "ratio"])
    others = priced.params_of_model - priced.params_before
    for name, before, after in (
        ("chosen matrices", priced.params_before, priced.params_after),
        ("whole model", priced.params_of_model, priced.params_after + others),
    ):
        table.add_row(name, f"{before:,}", f"{after:,}", ratio_text(before / after))
    return table


def _curves_table(forms: Sequence[ChosenForm]) -> NumberTable:
    table = NumberTable(["matrix", *(f"{ratio:,}x" for ratio in _RATIOS)])
    for form in forms:
        points = (form.curve.within(form.curve.dense_params // ratio) for ratio in _RATIOS)
        table.add_row(form.name, *("" if point is None else f"{point.error:.3f}" for point in points))
    return table


def _chosen_json(form: ChosenForm) -> dict[str, Any]:
    return {
        "name": form.name,
        "shape": list(form.size),
        "params_before": form.curve.dense_params,
        "params_after": form.n_params,
        "chosen": None if form.point is None else _point_json(form, form.point),
        "svd_rank": form.low_rank.shape.part.ranks[0] if form.low_rank else 0,
        "svd_error": form.low_rank.error if form.low_rank else 1.0,
        "on_inputs": form.curve.on_inputs,
        "curve": [_point_json(form, point) for point in form.curve.points],
        "low_rank": [_point_json(form, point) for point in form.curve.low_rank],
    }


def _point_json(chosen: ChosenForm, point: Point) -> dict[str, Any]:
    form = form_json(chosen.name, point.shape)
    kept = ("in_modes", "out_modes", "gates", "cp_rank", "tucker_ranks", "core", "weights_ratio")
    of_weights, of_outputs = (None, point.error) if chosen.curve.on_inputs else (point.error, None)
    errors = {
        "weight_error": of_weights,
        "weighted_activation_error": of_outputs,
        "activation_error": point.activation_error,
    }
    return {"params": point.n_params, **errors, **{key: form[key] for key in (*kept, "row_order", "column_order")}}


def _total_json(before: int, after: int) -> dict[str, Any]:
    return {"params_before": before, "params_after": after, "ratio": before / after}
