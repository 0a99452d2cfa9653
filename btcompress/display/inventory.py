"""What a checkpoint holds, and the form that each matrix gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from btcompress.display.console import make_console, show_json
from btcompress.display.tables import NumberTable, show_lists, show_sentence, show_table
from btcompress.memory import size_text
from btcompress.wording import form_lines, precision_words, rank_text, ratio_text, worse_if

if TYPE_CHECKING:
    from btcompress.checkpoint import Checkpoint, RecurrentEntry
    from btcompress.plan import Plan, PlannedMatrix, PlannedRounding
    from btcompress.shapes import MatrixShape


def show_inventory(checkpoint: Checkpoint, plan: Plan) -> None:
    """Print what a checkpoint holds: its recurrent layers, what looks alike, and what each matrix would cost."""
    console = make_console()
    source = checkpoint.source
    counts = f"{len(checkpoint.tensors)} tensors, {source.n_params:,} parameters, {size_text(source.n_bytes)}"
    show_sentence(console, f"{source.name}: {counts}")
    table = NumberTable("layer", ["class", "inputs", "hidden"], ["layers", "directions", "projection", "biases"])
    for layer in plan.recurrent:
        table.add_row(
            layer.name or "(top)",
            f"{layer.class_name} (relu)" if layer.nonlinearity == "relu" else layer.class_name,
            *(f"{number:,}" for number in (layer.input_size, layer.hidden_size, layer.num_layers)),
            "2" if layer.bidirectional else "1",
            f"{layer.proj_size:,}" if layer.proj_size else "none",
            "yes" if layer.bias else "no",
        )
    if plan.recurrent:
        console.print()
        show_table(console, table)
    else:
        show_sentence(console, "No LSTM, GRU or plain RNN found.")
    show_lists(console, {"Not taken": [f"{other.name or '(top)'}: {other.reason}." for other in plan.others]})
    console.print()
    show_plan(checkpoint, plan)


def show_plan(checkpoint: Checkpoint, plan: Plan) -> None:
    """Print the form and the bits that each matrix gets, and what that costs."""
    console = make_console()
    sizes, of_bytes = ["N", "R", "before", "after", "ratio"], ["bytes\nbefore", "bytes\nafter", "bytes\nratio"]
    table = NumberTable("matrix", sizes, ["stored as", *of_bytes], worse="is larger than before.")
    rows = _matrices_json(checkpoint, plan)
    for row in rows:
        size, form = row["shape"], (row["out_modes"], row["in_modes"], row["gates"], row["core"])
        table.add_row(
            form_lines(row["name"], size, *form, [side for side in ("row_order", "column_order") if row[side]]),
            str(row["cp_rank"]) if row["cp_rank"] else "-",
            rank_text(row["tucker_ranks"]) if row["tucker_ranks"] else "-",
            f"{row['params_before']:,}",
            f"{row['params_after']:,}",
            worse_if(row["weights_ratio"] < 1, ratio_text(row["weights_ratio"])),
            precision_words(row["precision"], size[1]),
            size_text(row["bytes_before"]),
            size_text(row["bytes_after"]),
            worse_if(row["bytes_ratio"] < 1, ratio_text(row["bytes_ratio"])),
        )
    if rows:
        show_table(console, table)
    show_notes(console, checkpoint, plan)


def show_notes(console: Console, checkpoint: Checkpoint, plan: Plan) -> None:
    """Print which matrices stay dense, and what there is to know of the checkpoint and of the plan."""
    stays = [f"{left.name}: {left.reason}." for left in plan.left_dense]
    show_lists(console, {"Stays dense": stays, "Note": (*checkpoint.notices, *plan.told)})


def show_inventory_json(checkpoint: Checkpoint, plan: Plan) -> None:
    """Print what :func:`show_inventory` shows as one JSON object."""
    source = checkpoint.source
    value = {
        "name": source.name,
        "params": source.n_params,
        "bytes": source.n_bytes,
        "lstms": [_layer_json(layer) for layer in plan.recurrent if layer.type == "lstm"],
        "grus": [_layer_json(layer) for layer in plan.recurrent if layer.type == "gru"],
        "rnns": [
            _layer_json(layer) | {"nonlinearity": layer.nonlinearity} for layer in plan.recurrent if layer.type == "rnn"
        ],
        "others": [{"name": other.name, "kind": other.kind, "reason": other.reason} for other in plan.others],
        "matrices": _matrices_json(checkpoint, plan),
        "left_dense": [{"name": left.name, "reason": left.reason} for left in plan.left_dense],
        "notices": [*checkpoint.notices, *plan.told],
    }
    show_json(value)


def _layer_json(layer: RecurrentEntry) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "input_size": layer.input_size,
        "hidden_size": layer.hidden_size,
        "num_layers": layer.num_layers,
        "bidirectional": layer.bidirectional,
        "proj_size": layer.proj_size,
        "bias": layer.bias,
        "siblings": list(layer.siblings),
    }


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


def _matrices_json(checkpoint: Checkpoint, plan: Plan) -> list[dict[str, Any]]:
    """The form and the bits that each matrix gets, in the order of the checkpoint."""
    places = {name: n for n, name in enumerate(checkpoint.tensors)}
    rows = [form_json(each.name, each.shape) | _stored_json(checkpoint, each, each.shape) for each in plan.matrices]
    rows += [_dense_json(each) | _stored_json(checkpoint, each, None) for each in plan.rounded]
    return sorted(rows, key=lambda row: places[row["name"]])


def _dense_json(rounded: PlannedRounding) -> dict[str, Any]:
    """As :func:`form_json` has it, of a matrix that stays dense, which has no modes and ranks."""
    rows, columns = rounded.size
    form = {"in_modes": [], "out_modes": [], "gates": "fused", "cp_rank": 0, "tucker_ranks": [], "core": "none"}
    params = {"params_before": rows * columns, "params_after": rows * columns, "weights_ratio": 1.0}
    return {"name": rounded.name, "shape": [rows, columns], **form, "row_order": False, "column_order": False, **params}


def _stored_json(
    checkpoint: Checkpoint, planned: PlannedMatrix | PlannedRounding, shape: MatrixShape | None
) -> dict[str, Any]:
    """How a matrix, or the block terms of this shape in its place, will be stored, and in how many bytes."""
    # Here, since the help of the commands is shown without torch.
    from btcompress.packing import bytes_of, precision_text
    from btcompress.pricing.curves import form_bytes

    matrix = checkpoint.tensors[planned.name]
    precision = planned.precision or matrix.dtype
    n_bytes = bytes_of(matrix.shape, precision) if shape is None else form_bytes(shape, precision)
    n_before = matrix.numel() * matrix.itemsize
    return {
        "form": "dense" if shape is None else "block_terms",
        "dtype": precision_text(matrix.dtype),
        "precision": precision_text(precision),
        "bytes_before": n_before,
        "bytes_after": n_bytes,
        "bytes_ratio": n_before / max(n_bytes, 1),
    }
