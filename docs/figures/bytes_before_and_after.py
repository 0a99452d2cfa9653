"""Where bytes go: of a real checkpoint and of the published case, matrix by matrix, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from block_terms import PUBLISHED
from looks import COLOURS, DARK, GREY, LARGE, SMALL, bare, tint
from matplotlib.patches import Polygon, Rectangle

from btcompress.demo.pictures import figure
from btcompress.memory import size_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from btcompress import BlockTermShape, CompressedCheckpoint

#: What is drawn of each model, from above: the middles of bars, half their height, and how far lines lie apart.
_BEFORE, _AFTER, _ENLARGED, _HALF, _LINE = 9.0, 6.6, 3.2, 0.8, 1.55
#: Bytes of a number in float32.
_FLOAT = 4
#: How forms are called, by their core.
_FORMS = {"none": "dense", "identity": "rank {}"}


def measure_bytes(result: CompressedCheckpoint, file_bytes: int) -> dict[str, Any]:
    """The bytes of each matrix, and of all else together, before and after.

    Args:
        result: what was made.
        file_bytes: that it takes as a file.
    """
    from btcompress import report

    told = report(result, bytes_after=file_bytes)
    model = told.model
    parts = {
        each.name: {
            "before": each.bytes_before,
            "after": each.bytes_after,
            "form": f"{_FORMS.get(each.core, 'block terms').format(*each.tucker_ranks)}, {each.precision}",
        }
        for each in told.matrices
    }
    before, after = (sum(each[when] for each in parts.values()) for when in ("before", "after"))
    others = {"before": model.bytes_before - before, "after": model.tensor_bytes_after - after, "form": ""}
    header = {"before": 0, "after": model.bytes_after - model.tensor_bytes_after, "form": ""}
    return {**parts, "all other tensors": others, "names, shapes and history": header}


def published_bytes(shape: BlockTermShape = PUBLISHED) -> dict[str, Any]:
    """The same of an LSTM in float32 of whose matrices only ``W`` has a form, by counting.

    Args:
        shape: of ``W``.
    """
    hidden = shape.out_size // 4
    others = {"U": shape.out_size * hidden, "biases": 2 * shape.out_size}
    form = f"block terms, N={shape.n_blocks}, R={shape.ranks[0]}"
    parts = {"W": {"before": shape.dense_params * _FLOAT, "after": shape.n_params * _FLOAT, "form": form}}
    return parts | {name: dict.fromkeys(("before", "after"), n * _FLOAT) | {"form": ""} for name, n in others.items()}


def draw_bytes(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the bytes of models before and after, and after once more, as large as before.

    Args:
        models: by what they are called, as :func:`measure_bytes` gives them.
    """
    rows = [len(parts) for parts in models.values()]
    drawing = figure((8.4, sum(2.3 + 0.2 * n for n in rows)))
    panels = drawing.subplots(len(models), 1, height_ratios=[2.3 + 0.2 * n for n in rows], squeeze=False)[:, 0]
    for axes, (name, parts) in zip(panels, models.items(), strict=True):
        _model(axes, name, parts)
    return drawing


def _model(axes: Any, name: str, parts: Mapping[str, Any]) -> None:  # noqa: ANN401 - matplotlib's
    before, after = (sum(each[when] for each in parts.values()) for when in ("before", "after"))
    lowest = _ENLARGED - _HALF - 1.2 - _LINE * len(parts)
    bare(axes, (-11, 116), (lowest, _BEFORE + 2.6))
    axes.text(-11, _BEFORE + 1.8, name, fontsize=LARGE, va="center")
    for middle, when, whole in ((_BEFORE, "before", before), (_AFTER, "after", before), (_ENLARGED, "after", after)):
        _bar(axes, middle, [100 * each[when] / whole for each in parts.values()])
    for middle, text, size in ((_BEFORE, "before", before), (_AFTER, "after", after)):
        axes.text(-1, middle, text, ha="right", va="center", fontsize=SMALL)
        axes.text(
            101 if size == before else 100 * after / before + 1, middle, size_text(size), va="center", fontsize=SMALL
        )
    axes.text(-1, _ENLARGED, f"x {before / after:.3g}", ha="right", va="center", fontsize=SMALL)
    narrow, wide = _AFTER - _HALF, _ENLARGED + _HALF
    corners = [(0, narrow), (100 * after / before, narrow), (100, wide), (0, wide)]
    axes.add_patch(Polygon(corners, facecolor=tint(GREY, 0.3), edgecolor="none"))
    for line, (colour, (part, own)) in enumerate(zip(_colours(len(parts)), parts.items(), strict=False)):
        base = _ENLARGED - _HALF - 1.6 - _LINE * line
        axes.add_patch(Rectangle((0, base - 0.45), 1.6, 0.9, facecolor=colour))
        size = f"{size_text(own['before'])} to {size_text(own['after'])}" if own["before"] else size_text(own["after"])
        for left, text in ((3, part), (38, size), (68, own["form"])):
            axes.text(left, base, text, va="center", fontsize=SMALL)


def _bar(axes: Any, middle: float, widths: Sequence[float]) -> None:  # noqa: ANN401 - matplotlib's
    left = 0.0
    for colour, width in zip(_colours(len(widths)), widths, strict=False):
        axes.add_patch(Rectangle((left, middle - _HALF), width, 2 * _HALF, facecolor=colour, edgecolor="white", lw=0.4))
        left += width


def _colours(n: int) -> list[str]:
    """The last two parts are no matrices with a form of their own."""
    return [*COLOURS[: n - 2], GREY, DARK]
