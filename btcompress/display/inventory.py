"""What a checkpoint holds, and the form that each matrix gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from btcompress.display.console import make_console, show_json, show_line
from btcompress.display.tables import NumberTable, form_lines, rank_text, ratio_text, show_list, show_table
from btcompress.memory import size_text

if TYPE_CHECKING:
    from btcompress.checkpoint import Checkpoint
    from btcompress.plan import Plan
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
    """Print the shape that each matrix gets, and what that costs."""
    console = make_console()
    table = NumberTable(["matrix", "N", "R", "before", "after", "ratio"])
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
        )
    if plan.matrices:
        show_table(console, table)
    show_list(console, "Stays dense", [f"{left.name}: {left.reason}." for left in plan.left_dense])
    show_list(console, "Note", (*checkpoint.notices, *plan.notices))


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
        "matrices": [form_json(planned.name, planned.shape) for planned in plan.matrices],
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
