"""What is known of all models as pictures: convergence, noise, ranks and orders, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from paper_records import Measured, Noisy
from paper_runs import TRAINED
from paper_settings import Tasks
from paper_table import Found, Group, by_name, groups, name_of

from btcompress.demo import Measure
from btcompress.demo.pictures import figure, save_figure

#: Of each form, whatever it starts from.
_COLOURS = {
    "dense": "black",
    "block terms": "tab:blue",
    "tensor train": "tab:orange",
    "low rank": "tab:green",
    "fewer hidden units": "tab:red",
    "rounded": "tab:purple",
}
_LINES = {"": "-", "dense model": "-", "from scratch": "--"}
_STARTS = {"dense model": "from the dense model", "from scratch": "from scratch"}
_ALPHA = 0.15

Points = Mapping[float, Sequence[float]]


def draw_figures(found: Found, tasks: Tasks, folder: Path) -> None:
    """Draw every picture of which something is known, as ``paper_NAME_TASK_SIZE.png``.

    Raises:
        BTCompressError: matplotlib is missing.
        OutputError: a file cannot be written.
    """
    makers: dict[str, Callable[[Group, Found], Any]] = {
        "convergence": _convergence,
        "noise": _noise,
        "ranks": _ranks,
        "orders": _orders,
    }
    for group in groups(tasks):
        for name, make in makers.items():
            drawing = make(group, found)
            if drawing is not None:
                save_figure(drawing, folder / f"paper_{name}_{group.task.name}_{group.size}.png")


def _convergence(group: Group, found: Found) -> Any:
    models = by_name(_trained(group, found["main"]))
    if not models:
        return None
    metric = group.task.metric
    drawing = figure((8.0, 4.2))
    axes = drawing.subplots()
    for name, own in models.items():
        curves = [each.curve for each in own]
        points = {epoch: [curve[epoch] for curve in curves] for epoch in range(min(map(len, curves)))}
        _line(axes, metric, points, own[0].form, own[0].start, name, band=True)
    _finish(axes, metric, "epochs", f"{metric.name} on {group.task.examples} held back")
    drawing.legend(loc="outside right center", fontsize=7)
    axes.set_xlim(0, None)
    if not metric.is_share:
        _without_start(axes, metric, models)
    return drawing


def _without_start(axes: Any, metric: Measure, models: Mapping[str, Sequence[Measured]]) -> None:
    """Let the axis show what comes after the first epoch: before it, losses are larger by far."""
    later = [value for own in models.values() for each in own for value in each.curve[1:]]
    if later:
        room = 0.05 * (max(later) - min(later)) or abs(max(later)) or 1.0
        axes.set_ylim(min(later) - room, max(later) + room)


def _noise(group: Group, found: Found) -> Any:
    noisy = group.own(found["noise"])
    if not noisy:
        return None
    measure = group.task.measures[0]
    clean = by_name(_trained(group, found["main"]))
    drawing = figure((9.6, 4.2))
    titles = {"gaussian": "standard deviation of the noise", "occlusion": "share covered"}
    panels = drawing.subplots(1, len(titles), sharey=True)
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        for name in dict.fromkeys(map(name_of, noisy)):
            own: list[Noisy] = [each for each in noisy if name_of(each) == name and each.kind == kind]
            points: dict[float, list[float]] = {0.0: [each.scores[0] for each in clean.get(name, ())]}
            for each in own:
                points.setdefault(each.strength, []).append(each.scores[0])
            if own:
                _line(axes, measure, points, own[0].form, own[0].start, name)
        _finish(axes, measure, title, f"{measure.name} on noisy test {group.task.examples}")
    lines = {line.get_label(): line for axes in panels for line in axes.containers}
    drawing.legend(lines.values(), lines.keys(), loc="outside right center", fontsize=7)
    return drawing


def _ranks(group: Group, found: Found) -> Any:
    """The first measure against the parameters of ``W``, a line for each ``N``."""
    models = _trained(group, found["ranks"])
    if not models:
        return None
    measure = group.task.measures[0]
    drawing = figure((9.6, 4.2))
    panels = drawing.subplots(1, len(_STARTS), sharey=True)
    for axes, (start, title) in zip(panels, _STARTS.items(), strict=True):
        lines: dict[str, dict[float, list[float]]] = {}
        for each in models:
            if each.start == start:
                n = each.form.split()[0]
                lines.setdefault(n, {}).setdefault(each.params, []).append(each.scores[0])
        for n, points in lines.items():
            _line(axes, measure, points, "", start, n)
        axes.set_xscale("log")
        axes.set_title(title)
        _finish(axes, measure, "parameters of W", f"{measure.name} on test {group.task.examples}")
        axes.legend(fontsize=7)
    return drawing


def _orders(group: Group, found: Found) -> Any:
    """The first measure against the order."""
    models = _trained(group, found["orders"])
    if not models:
        return None
    measure = group.task.measures[0]
    drawing = figure((6.4, 4.2))
    axes = drawing.subplots()
    for start, title in _STARTS.items():
        points: dict[float, list[float]] = {}
        for each in models:
            if each.start == start:
                points.setdefault(float(each.form.removeprefix("d=")), []).append(each.scores[0])
        if points:
            _line(axes, measure, points, "block terms", start, title)
    dense = [each.scores[0] for each in _trained(group, found["main"]) if not each.start]
    if dense:
        axes.axhline(_percent(measure, mean(dense)), color="black", linewidth=1, label="dense")
    params = {each.form.removeprefix("d="): each.params for each in models}
    axes.set_xticks([float(d) for d in params], [f"{d}\n{n:,}" for d, n in params.items()])
    _finish(axes, measure, "order d, and parameters of W", f"{measure.name} on test {group.task.examples}")
    axes.legend(fontsize=7)
    return drawing


def _trained(group: Group, records: Iterable[Measured | Noisy]) -> list[Measured]:
    return [each for each in group.own(records) if each.stage == TRAINED and each.curve]


def _line(
    axes: Any, measure: Measure, points: Points, form: str, start: str, label: str, *, band: bool = False
) -> None:
    """A line through the means, with a standard deviation over seeds on either side, as a band or as bars."""
    known = {x: [_percent(measure, value) for value in values] for x, values in sorted(points.items()) if values}
    xs, means = list(known), [mean(values) for values in known.values()]
    spreads = [stdev(values) if len(values) > 1 else 0.0 for values in known.values()]
    look = {"color": _COLOURS.get(form), "linestyle": _LINES[start], "linewidth": 1.2, "label": label}
    if not band:
        axes.errorbar(xs, means, spreads if any(spreads) else None, capsize=2, elinewidth=0.8, **look)
        return
    (line,) = axes.plot(xs, means, **look)
    if any(spreads):
        low = [middle - each for middle, each in zip(means, spreads, strict=True)]
        high = [middle + each for middle, each in zip(means, spreads, strict=True)]
        axes.fill_between(xs, low, high, color=line.get_color(), alpha=_ALPHA, linewidth=0)


def _finish(axes: Any, measure: Measure, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(f"{y}, %" if measure.is_share else y)
    axes.grid(alpha=0.3)


def _percent(measure: Measure, value: float) -> float:
    return 100 * value if measure.is_share else value
