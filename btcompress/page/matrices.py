"""The drawings of each matrix: what its bytes cost in error beside the yardsticks, and its singular values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from btcompress.memory import size_text
from btcompress.page.contents import Picture
from btcompress.page.drawing import AFTER, GROUPS, INK, MUTED, ROWS, SVD, named, plot, svg, titled
from btcompress.reporting.curves import MatrixCurves
from btcompress.results import MatrixReport
from btcompress.wording import precision_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEIGHT = 270
#: Errors that can be drawn on a scale of powers.
_TINY, _HUGE = 1e-12, 1e12
#: Each yardstick: its colour, its line, its mark, and what it is called.
_YARDSTICKS: dict[str, tuple[str, str, str, str]] = {
    "low_rank": (SVD, "-", "", "truncated SVD"),
    "rows": (ROWS, "--", "s", "rounded by rows"),
    "groups": (GROUPS, ":", "^", "rounded in groups"),
}


def error_picture(row: MatrixReport, curves: MatrixCurves | None, anchor: str) -> Picture:
    """Weight error against bytes: the matrix as it is, and what it might be.

    Args:
        row: the matrix.
        curves: of the dense one; None where it is not at hand, which leaves what is on record.
        anchor: of the drawing.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for each in () if curves is None else curves.curves:
            colour, line, mark, words = _YARDSTICKS[each.kind]
            plot(axes, each.points, color=colour, linestyle=line, marker=mark, label=words)
        _recorded(axes, row, curves)
        own = [(float(max(row.bytes_after, 1)), row.weight_error)]
        plot(axes, own, color=AFTER, marker="*", markersize=15, linestyle="", label="as it is", zorder=4)
        _of_bytes(axes, row)
        axes.set(ylim=(0, 1.35), yticks=[0, 0.25, 0.5, 0.75, 1], ylabel="weight error")
        axes.legend(loc="upper right")
        titled(figure, row.name)

    told = f"as it is {size_text(row.bytes_after)} at an error of {row.weight_error:.3f}"
    if row.svd_rank:
        told += f"; truncated SVD of rank {row.svd_rank} at no more bytes {row.svd_error:.3f}"
    for each in row.roundings:
        words = precision_words(each.precision, row.shape[1])
        told += f"; {words}{', errors fed back' * each.fed_back} {size_text(each.bytes)} at {each.weight_error:.3f}"
    drawn = svg(draw, _HEIGHT, f"Weight error of {named(row.name)} against bytes: {told}.", anchor)
    return Picture(drawn, f"{named(row.name)}: weight error against bytes.")


def inputs_picture(row: MatrixReport, anchor: str) -> Picture | None:
    """Weighted activation error against bytes; None where it was not measured of the matrix and of something else.

    Args:
        row: the matrix.
        anchor: of the drawing.
    """
    kinds: dict[str, list[tuple[int, float, str]]] = {"as it is": [], "rounded alone": [], "errors fed back": []}
    if (own := row.weighted_activation_error) is not None:
        kinds["as it is"].append((row.bytes_after, own, ""))
    for each in row.roundings:
        if (error := each.weighted_activation_error) is not None:
            words = precision_words(each.precision, row.shape[1])
            kinds["errors fed back" if each.fed_back else "rounded alone"].append((each.bytes, error, words))
    # Scales of powers have no zero.
    shown = {kind: [each for each in points if _TINY < each[1] < _HUGE] for kind, points in kinds.items()}
    if not shown["as it is"] or not shown["rounded alone"]:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        looks = ((AFTER, "*", 15), (ROWS, "s", 7), (GROUPS, "^", 7))
        for (kind, points), (colour, mark, large) in zip(shown.items(), looks, strict=True):
            marks = {"color": colour, "marker": mark, "markersize": large, "linestyle": "", "label": kind}
            plot(axes, [(size, error) for size, error, _ in points], **marks)
            # Those with errors fed back lie right below, or above, the same integers without.
            for size, error, words in points if kind == "rounded alone" else ():
                axes.annotate(words, (size, error), (6, 5), textcoords="offset points", fontsize=10)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.5, high * (high / low) ** 0.45 * 2)
        _of_bytes(axes, row)
        axes.set_ylabel("weighted activation error")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.legend(loc="upper right")
        titled(figure, row.name)

    told = "; ".join(
        " ".join(filter(None, (words, "" if kind == "rounded alone" else kind, size_text(size), f"at {error:.3f}")))
        for kind, points in shown.items()
        for size, error, words in points
    )
    label = f"Weighted activation error of {named(row.name)} against bytes: {told}."
    return Picture(svg(draw, _HEIGHT, label, anchor), f"{named(row.name)}: weighted activation error against bytes.")


def _recorded(axes: Any, row: MatrixReport, curves: MatrixCurves | None) -> None:  # noqa: ANN401 - matplotlib's
    """The yardsticks on record, where their curves are not drawn."""
    drawn = set() if curves is None else {each.kind for each in curves.curves}
    if "low_rank" not in drawn and row.svd_rank:
        itemsize = row.bytes_before // max(row.params_before, 1)
        size = row.svd_rank * sum(row.shape) * itemsize
        words = f"truncated SVD, rank {row.svd_rank}"
        plot(axes, [(size, row.svd_error)], color=SVD, marker="o", markersize=7, linestyle="", label=words)
    if "rows" not in drawn and row.roundings:
        points = [(each.bytes, each.weight_error) for each in row.roundings if not each.fed_back]
        plot(axes, points, color=ROWS, marker="s", markersize=7, linestyle="", label="rounded alone")
        for each in row.roundings:
            if not each.fed_back:
                words = precision_words(each.precision, row.shape[1])
                axes.annotate(words, (each.bytes, each.weight_error), (5, 5), textcoords="offset points", fontsize=10)


def _of_bytes(axes: Any, row: MatrixReport) -> None:  # noqa: ANN401 - matplotlib's
    """The scale of bytes, up to those of the dense matrix."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    most = max(row.bytes_before, row.bytes_after, 2)
    axes.set_xscale("log")
    axes.set_xlim(max(1, min(row.bytes_after, most) / 8), 1.3 * most)
    axes.axvline(row.bytes_before, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 3), numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(round(value))))
    axes.minorticks_off()
    axes.set_xlabel("bytes (dotted: the dense matrix)")
    axes.grid(axis="y")


def spectrum_picture(row: MatrixReport, curves: MatrixCurves, anchor: str) -> Picture | None:
    """The singular values of a dense matrix; None where all are zero.

    Args:
        row: the matrix.
        curves: of the dense one.
        anchor: of the drawing.
    """
    # Below this, the Gram matrix that they come from has rounded them away.
    points = [(n, value) for n, value in enumerate(curves.singular_values, 1) if value > 1e-7]
    if not points:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        plot(axes, points, color=INK)
        if 0 < row.svd_rank <= len(curves.singular_values):
            axes.axvline(row.svd_rank, color=SVD, linestyle="--", label=f"rank {row.svd_rank}: as large as it is now")
            axes.legend(loc="upper right")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.3), high * 3)
        axes.set(xlabel="number", ylabel="singular value over the first", xlim=(0, None))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.grid(axis="y")
        titled(figure, row.name)

    half = next((n for n, value in points if value < 0.5), None)
    tenth = next((n for n, value in points if value < 0.1), None)
    falls = [f"below {share} from number {n} on" for share, n in (("half", half), ("a tenth", tenth)) if n is not None]
    told = " and ".join(falls) if falls else "none below half"
    label = f"Singular values of {named(row.name)}, {len(curves.singular_values)} of them, over the first: {told}."
    return Picture(svg(draw, _HEIGHT - 30, label, anchor), f"{named(row.name)}: singular values.")
