"""What a checkpoint holds, and the form that each matrix gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from btcompress.display.console import make_console, show_json, show_line
from btcompress.display.tables import NumberTable, form_lines, rank_text, ratio_text, show_list, show_table
from btcompress.memory import size_text

if TYPE_CHECKING:
    from btcompress.checkpoint import Checkpoint
    from btcompress.plan import Plan, PlannedMatrix
    from btcompress.plan.choice import PlannedRounding
    from btcompress.shapes import MatrixShape


def show_inventory(checkpoint: Checkpoint, plan: Plan) -> None:
    """Print what a checkpoint holds: its LSTMs, what looks alike, and what each matrix would cost."""
    console = make_console()
    source = checkpoint.source
    counts = f"{len(checkpoint.tensors)} tensors, {source.n_params:,} parameters, {size_text(source.n_bytes)}"
    show_line(f"{source.name}: {counts}")
    table = NumberTable(["LSTM", "inputs", "hidden", "layers", "directions", "projection", "biases"])
    for lstm in plan.lstms:
        table.add_row(
            f"{lstm.name or '(top)'}{' (cell)' if lstm.kind == 'cell' else ''}",
            *(f"{number:,}" for number in (lstm.input_size, lstm.hidden_size, lstm.num_layers)),
            "2" if lstm.bidirectional else "1",
            f"{lstm.proj_size:,}" if lstm.proj_size else "none",
            "yes" if lstm.bias else "no",
        )
    if plan.lstms:
        show_table(console, table)
    else:
        show_line("No LSTM found.")
    show_list(console, "No LSTM", [f"{other.name or '(top)'}: {other.reason}." for other in plan.others])
    show_plan(checkpoint, plan)


def show_plan(checkpoint: Checkpoint, plan: Plan) -> None:
    """Print the form and the bits that each matrix gets, and what that costs."""
    console = make_console()
    headers = [
        "matrix",
        "N",
        "R",
        "before",
        "after",
        "ratio",
        "stored as",
        "bytes\nbefore",
        "bytes\nafter",
        "bytes\nratio",
    ]
    table = NumberTable(headers)
    for planned in plan.matrices:
        shape, part = planned.shape, planned.shape.part
        table.add_row(
            form_lines(
                planned.name,
                (shape.out_size, shape.in_size),
                part.out_modes,
                part.in_modes,
                shape.gates,
                part.core,
                part.order_sizes,
            ),
            str(part.n_blocks),
            rank_text(part.ranks),
            f"{shape.dense_params:,}",
            f"{shape.n_params:,}",
            ratio_text(shape.ratio),
            *_bytes_cells(stored_json(checkpoint, planned)),
        )
    for rounded in plan.rounded:
        rows, columns = rounded.size
        table.add_row(
            [rounded.name, f"  {rows} x {columns}", "  dense"],
            *("", "", f"{rows * columns:,}", f"{rows * columns:,}", ratio_text(1)),
            *_bytes_cells(stored_json(checkpoint, rounded)),
        )
    if plan.matrices or plan.rounded:
        show_table(console, table)
    show_list(console, "Stays dense", [f"{left.name}: {left.reason}." for left in plan.left_dense])
    show_list(console, "Note", (*checkpoint.notices, *plan.notices))


def _bytes_cells(stored: dict[str, Any]) -> tuple[str, ...]:
    before, after = stored["bytes_before"], stored["bytes_after"]
    return stored["precision"], size_text(before), size_text(after), ratio_text(before / after)


def show_inventory_json(checkpoint: Checkpoint, plan: Plan) -> None:
    """Print what :func:`show_inventory` shows as one JSON object."""
    source = checkpoint.source
    value = {
        "name": source.name,
        "params": source.n_params,
        "bytes": source.n_bytes,
        "lstms": [
            {
                "name": lstm.name,
                "kind": lstm.kind,
                "input_size": lstm.input_size,
                "hidden_size": lstm.hidden_size,
                "num_layers": lstm.num_layers,
                "bidirectional": lstm.bidirectional,
                "proj_size": lstm.proj_size,
                "bias": lstm.bias,
            }
            for lstm in plan.lstms
        ],
        "others": [{"name": other.name, "kind": other.kind, "reason": other.reason} for other in plan.others],
        "matrices": [
            *(form_json(each.name, each.shape) | stored_json(checkpoint, each) for each in plan.matrices),
            *(_dense_json(each) | stored_json(checkpoint, each) for each in plan.rounded),
        ],
        "left_dense": [{"name": left.name, "reason": left.reason} for left in plan.left_dense],
        "notices": [*checkpoint.notices, *plan.notices],
    }
    show_json(value)


def form_json(name: str, shape: MatrixShape) -> dict[str, Any]:
    """The stable JSON form of a matrix and the shape it gets."""
    return {
        "name": name,
        "shape": [shape.out_size, shape.in_size],
        "in_modes": list(shape.part.in_modes),
        "out_modes": list(shape.part.out_modes),
        "gates": shape.gates,
        "cp_rank": shape.part.n_blocks,
        "tucker_ranks": list(shape.part.ranks),
        "core": shape.part.core,
        "row_order": shape.part.row_order,
        "column_order": shape.part.column_order,
        "params_before": shape.dense_params,
        "params_after": shape.n_params,
        "weights_ratio": shape.ratio,
    }


def _dense_json(rounded: PlannedRounding) -> dict[str, Any]:
    """The same of a matrix that stays dense, which has no modes and ranks."""
    rows, columns = rounded.size
    params = {"params_before": rows * columns, "params_after": rows * columns, "weights_ratio": 1.0}
    return {"name": rounded.name, "shape": [rows, columns], **params}


def stored_json(checkpoint: Checkpoint, planned: PlannedMatrix | PlannedRounding) -> dict[str, Any]:
    """The stable JSON form of how a matrix will be stored, and of the bytes that it takes before and after."""
    # Here, since the help of the commands is shown without torch.
    import torch

    from btcompress.packing import bytes_of, precision_text
    from btcompress.plan import PlannedMatrix

    matrix = checkpoint.tensors[planned.name]
    precision = planned.precision or matrix.dtype
    if isinstance(planned, PlannedMatrix):
        form, part = "block_terms", planned.shape.part
        n_bytes = sum(bytes_of(shape, precision) for shape in part.tensor_shapes)
        n_bytes += sum(part.order_sizes.values()) * torch.int32.itemsize
        n_bytes *= planned.shape.n_parts
    else:
        form, n_bytes = "dense", bytes_of(planned.size, precision)
    return {
        "form": form,
        "precision": precision_text(precision),
        "bytes_before": matrix.numel() * matrix.itemsize,
        "bytes_after": n_bytes,
    }
