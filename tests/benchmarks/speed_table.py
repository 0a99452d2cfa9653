"""Rows of lstm_speed.py as a Markdown table."""

import math
from collections.abc import Iterable, Iterator, Mapping

Row = Mapping[str, object]

_KINDS = {
    "prediction": "prediction",
    "training": "training",
    "cell": "one step of a cell",
}
_COLUMNS = ("inputs, hidden, steps", "batch", "dense", "by the other kernel", "low rank", "plain loop", "block terms")


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Lines: a table for each kind, in milliseconds, and in brackets the ratio of dense to it."""
    rows = list(rows)
    for kind, title in _KINDS.items():
        cases: dict[tuple[object, ...], dict[object, Row]] = {}
        for row in rows:
            if row["kind"] == kind:
                case = (row["inputs"], row["hidden"], row["steps"], row["batch"])
                cases.setdefault(case, {})[row["form"]] = row
        if not cases:
            continue
        yield from ("", f"**{title.capitalize()}**, milliseconds:", "")
        yield _line(_COLUMNS)
        yield _line(["---"] * len(_COLUMNS))
        for (inputs, hidden, steps, batch), forms in sorted(cases.items()):
            seconds = {name: each for row in forms.values() for name, each in row["seconds"].items()}
            best, *others = sorted(each for name, each in seconds.items() if name.startswith("dense"))
            times = [_ms(best), *(_ms(each) for each in others or [None])]
            for name in ("low rank", "plain loop", "block terms"):
                time = seconds.get(name)
                times.append("" if time is None else f"{_ms(time)} ({best / time:.2g})")
            yield _line([f"{inputs:,}, {hidden:,}, {steps}", str(batch), *times])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ms(seconds: float | None) -> str:
    """Three digits."""
    if seconds is None:
        return ""
    value = seconds * 1e3
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"
