"""What calibrating changes: in which directions a matrix is off, and the errors of a layer from stage to stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from looks import COLOURS, DARK, LARGE, SMALL

from btcompress.demo.pictures import figure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from btcompress import CompressedCheckpoint
    from btcompress.checkpoint import Checkpoint
    from btcompress.fit import Samples

#: Stages by the ends of the names that the record of a calibration gives them.
_STAGES = {"_before": "fitted to the weights", "_refitted": "fitted to the inputs", "_after": "calibrated"}
STAGES = tuple(_STAGES.values())


def measure_calibrating(
    stages: Mapping[str, CompressedCheckpoint], dense: Checkpoint, samples: Mapping[str, Samples], key: str
) -> dict[str, Any]:
    """How far results are off: of one matrix in every direction of its inputs, and all in all.

    Args:
        stages: results by what was done; the last one has the record of it all.
        dense: what they were made from.
        samples: what each matrix meets.
        key: of the matrix whose directions are looked at.
    """
    import torch

    matrix = dense.tensors[key].double()
    held = samples[key].held.double()
    shares, vectors = torch.linalg.eigh(held.T @ held)
    shares, vectors = shares.flip(0).clamp_min(0), vectors.flip(1)
    wanted = (matrix @ vectors).norm(dim=0)
    off = {
        name: (((matrix - result.dense_state_dict()[key].double()) @ vectors).norm(dim=0) / wanted).tolist()
        for name, result in stages.items()
    }
    record = next(reversed(stages.values())).history[-1]
    errors = {
        name: {
            "weight": _mean(_weight_errors(stages[name], dense)),
            "activation": _mean(record["activation_errors" + ("" if end == "_after" else end)]),
            "hidden_state": record[f"hidden_state_error{end}"],
        }
        for end, name in _STAGES.items()
    }
    return {"key": key, "shares": (shares / shares.sum()).tolist(), "off": off, "errors": errors}


def _weight_errors(result: CompressedCheckpoint, dense: Checkpoint) -> dict[str, float]:
    formed = result.dense_state_dict()
    wanted = {key: dense.tensors[key].double() for key in result.chosen}
    return {key: float((formed[key].double() - each).norm() / each.norm()) for key, each in wanted.items()}


def _mean(errors: Mapping[str, float]) -> float:
    return sum(errors.values()) / len(errors)


def draw_calibrating(measured: dict[str, Any], name: str) -> Figure:
    """Draw where the matrix is off, in directions sorted by how far inputs go there, and three errors by stage.

    Args:
        measured: as :func:`measure_calibrating` gives it.
        name: of the model.
    """
    drawing = figure((8.4, 4.2))
    left, right = drawing.subplots(1, 2, width_ratios=(1.5, 1.0))
    numbers = range(1, len(measured["shares"]) + 1)
    strength = [share / measured["shares"][0] for share in measured["shares"]]
    left.fill_between(numbers, strength, color=DARK, alpha=0.2, linewidth=0, label="how far inputs go there, squared")
    for (stage, off), colour, marker in zip(measured["off"].items(), COLOURS, "o^s", strict=False):
        left.plot(numbers, off, marker=marker, markersize=2.5, linewidth=0, color=colour, label=stage)
    left.set(
        xlabel="directions $v$ of the inputs, the strongest first",
        ylabel="share of $W v$ that is wrong",
        ylim=(0, None),
    )
    left.set_title(f"{name}, {measured['key']}", fontsize=LARGE)
    left.legend(fontsize=SMALL, loc="lower right")
    for error, colour, marker in zip(("weight", "activation", "hidden_state"), COLOURS, "os^", strict=False):
        values = [measured["errors"][stage][error] for stage in STAGES]
        right.plot(range(len(STAGES)), values, marker=marker, color=colour, label=error.replace("_", "-") + " error")
    right.set_xticks(range(len(STAGES)), [stage.replace(" to ", "\nto ") for stage in STAGES], fontsize=SMALL)
    right.set(ylim=(0, None), xlim=(-0.3, len(STAGES) - 0.7))
    right.set_title("all matrices of the LSTM", fontsize=LARGE)
    right.legend(fontsize=SMALL)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return drawing
