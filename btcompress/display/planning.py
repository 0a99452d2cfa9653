"""A priced plan: the form that each matrix gets, and its curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from btcompress.display.console import make_console, show_json
from btcompress.display.inventory import form_json, show_notes
from btcompress.display.tables import NumberTable, show_sentence, show_table, show_tables
from btcompress.wording import error_text, form_lines, rank_text, ratio_text, worse_if

if TYPE_CHECKING:
    from btcompress.checkpoint import Checkpoint
    from btcompress.plan import ChosenForm, PricedPlan
    from btcompress.pricing import Point

#: Ratios at which curves are shown: of parameters, and of bytes.
_RATIOS = (2, 4, 8, 16, 32, 64, 128, 1024)
_BYTE_RATIOS = (2, 4, 8, 12, 16, 32, 64, 128, 1024)
#: What of a form is told beside its size.
_FORM_FIELDS = ("in_modes", "out_modes", "gates", "cp_rank", "tucker_ranks", "core", "weights_ratio")


def show_priced_plan(checkpoint: Checkpoint, priced: PricedPlan) -> None:
    """Print the forms chosen, what they come to, and the curve of each matrix."""
    console = make_console()
    show_sentence(console, str(priced.wish), "Wish")
    console.print()
    show_tables(console, (_forms_table(priced), _totals_table(priced)))
    on_inputs = any(form.curve.on_inputs for form in priced.forms)
    what = "Predicted error (weighted activation error where there are samples)" if on_inputs else "Weight error"
    ratios = "byte ratios" if priced.in_bytes else "weights ratios"
    console.print()
    console.print(Text(f"{what} that is in reach at {ratios} of", "bold"))
    show_table(console, _curves_table(priced))
    if any(not point.measured for form in priced.forms for point in form.curve.points):
        show_sentence(console, "~ is foretold: only what may be chosen was really rounded.")
    show_notes(console, checkpoint, priced.plan)


def show_priced_plan_json(checkpoint: Checkpoint, priced: PricedPlan) -> None:
    """Print what :func:`show_priced_plan` shows, and every point of the curves, as one JSON object."""
    plan, wish = priced.plan, priced.wish
    after = priced.params_of_model - priced.params_before + priced.params_after
    show_json(
        {
            "wish": {
                "target_ratio": wish.target_ratio,
                "max_params": wish.max_params,
                "max_bytes": wish.max_bytes,
                "max_error": wish.max_error,
                "max_activation_error": wish.max_activation_error,
                "of": wish.of,
            },
            "matrices": [_chosen_json(form) for form in priced.forms],
            "totals": {
                "matrices": _total_json(priced.params_before, priced.params_after),
                "model": _total_json(priced.params_of_model, after),
                "bytes": {
                    "matrices_before": priced.bytes_before,
                    "matrices_after": priced.bytes_after,
                    "ratio": priced.bytes_before / priced.bytes_after,
                    "model_before": priced.bytes_of_model,
                    "file_after": priced.file_bytes,
                },
            },
            "left_dense": [{"name": left.name, "reason": left.reason} for left in plan.left_dense],
            "notices": [*checkpoint.notices, *plan.told],
        }
    )


def _forms_table(priced: PricedPlan) -> NumberTable:
    from btcompress.packing import precision_text

    forms, in_bytes = priced.forms, priced.in_bytes
    on_inputs = any(form.curve.on_inputs for form in forms)
    bits = in_bytes or any(form.point is not None and form.point.precision is not None for form in forms)
    columns = ["N", "R", *["stored as"] * bits, "bytes\nbefore" if in_bytes else "before", "after", "ratio"]
    errors = ["predicted\nerror", *["activation\nerror"] * on_inputs]
    errors += ["low rank at\nequal size" if on_inputs else "SVD at\nequal size"]
    errors += ["rounded at\nequal size"] * in_bytes
    table = NumberTable("matrix", columns, errors, worse="is worse than another form of equal size.")
    for form in forms:
        size = f"  {form.size[0]} x {form.size[1]}"
        before, after = (form.bytes_before, form.n_bytes) if in_bytes else (form.curve.dense_params, form.n_params)
        sizes = (f"{before:,}", f"{after:,}", ratio_text(before / after))
        point = form.point
        if point is None:
            name, own = [form.name, size, "  stays dense"], [precision_text(form.dtype)] * bits
            table.add_row(name, "", "", *own, *sizes, "0.000", *[""] * (1 + on_inputs + in_bytes))
            continue
        if point.shape is None:
            lines, ranks = [form.name, size, "  dense, rounded"], ("", "")
        else:
            part = point.shape.part
            modes = (part.out_modes, part.in_modes, point.shape.gates, part.core, part.order_sizes)
            lines, ranks = form_lines(form.name, form.size, *modes), (str(part.n_blocks), rank_text(part.ranks))
        table.add_row(
            lines,
            *ranks,
            *[precision_text(point.precision or form.dtype)] * bits,
            *sizes,
            worse_if(_is_worse(form, point), _point_error(point)),
            *[error_text(point.activation_error)] * on_inputs,
            _svd_text(form.low_rank),
            *[_rounding_text(form.rounding)] * in_bytes,
        )
    return table


def _is_worse(form: ChosenForm, point: Point) -> bool:
    """Whether low rank, or the matrix rounded alone, is nearer at equal size, by what is known of it."""
    # Here, since the help of the commands is shown without torch.
    from btcompress.reporting.comparing import is_better

    return any(other is not None and is_better(other.error, point.error) for other in (form.low_rank, form.rounding))


def _point_error(point: Point) -> str:
    return f"{'' if point.measured else '~'}{point.error:.3f}"


def _svd_text(low_rank: Point | None) -> str:
    if low_rank is None or low_rank.shape is None:
        return "none so small"
    return f"{low_rank.error:.3f} (rank {low_rank.shape.part.ranks[0]})"


def _rounding_text(rounding: Point | None) -> str:
    from btcompress.packing import precision_text

    if rounding is None or rounding.precision is None:
        return "none so small"
    return f"{rounding.error:.3f} ({precision_text(rounding.precision)})"


def _totals_table(priced: PricedPlan) -> NumberTable:
    table = NumberTable("bytes" if priced.in_bytes else "parameters", ["before", "after", "ratio"])
    if priced.in_bytes:
        rows = [("chosen matrices", priced.bytes_before, priced.bytes_after)]
        if priced.file_bytes is not None:
            rows.append(("all tensors, file (at most)", priced.bytes_of_model, priced.file_bytes))
    else:
        others = priced.params_of_model - priced.params_before
        rows = [
            ("chosen matrices", priced.params_before, priced.params_after),
            ("whole model", priced.params_of_model, priced.params_after + others),
        ]
    for name, before, after in rows:
        table.add_row(name, f"{before:,}", f"{after:,}", ratio_text(before / after))
    return table


def _curves_table(priced: PricedPlan) -> NumberTable:
    ratios = _BYTE_RATIOS if priced.in_bytes else _RATIOS
    table = NumberTable("matrix", [f"{ratio:,}x" for ratio in ratios])
    for form in priced.forms:
        points = (form.curve.within(form.curve.dense_size // ratio) for ratio in ratios)
        table.add_row(form.name, *("" if point is None else _point_error(point) for point in points))
    return table


def _chosen_json(form: ChosenForm) -> dict[str, Any]:
    low_rank = None if form.low_rank is None else form.low_rank.shape
    return {
        "name": form.name,
        "shape": list(form.size),
        "params_before": form.curve.dense_params,
        "params_after": form.n_params,
        "bytes_before": form.bytes_before,
        "bytes_after": form.n_bytes,
        "chosen": None if form.point is None else _point_json(form, form.point),
        "svd_rank": 0 if low_rank is None else low_rank.part.ranks[0],
        "svd_error": form.low_rank.error if form.low_rank else 1.0,
        "rounding": None if form.rounding is None else _point_json(form, form.rounding),
        "on_inputs": form.curve.on_inputs,
        "curve": [_point_json(form, point) for point in form.curve.points],
        "low_rank": [_point_json(form, point) for point in form.curve.low_rank],
    }


def _point_json(chosen: ChosenForm, point: Point) -> dict[str, Any]:
    from btcompress.packing import precision_text

    of_weights, of_outputs = (None, point.error) if chosen.curve.on_inputs else (point.error, None)
    about = {
        "params": point.n_params,
        "bytes": point.n_bytes(chosen.dtype),
        "precision": precision_text(point.precision or chosen.dtype),
        "measured": point.measured,
        "weight_error": of_weights,
        "weighted_activation_error": of_outputs,
        "activation_error": point.activation_error,
    }
    if point.shape is None:
        return {**about, "form": "dense"}
    form = form_json(chosen.name, point.shape)
    return {**about, "form": "block_terms", **{key: form[key] for key in (*_FORM_FIELDS, "row_order", "column_order")}}


def _total_json(before: int, after: int) -> dict[str, Any]:
    return {"params_before": before, "params_after": after, "ratio": before / after}
