"""What the speed of BTLSTM is to be, and which of that rows of lstm_speed.py reach."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Figure:
    """The least ratio, dense over ours, of the rows that it is about; ``None`` is about all.

    Attributes:
        least: ratio of the slowest of them.
        kind: ``prediction``, ``training`` or ``cell``.
        form: ``low rank`` or ``block terms``.
        inputs: of the LSTM.
        steps: of a call.
        batch: of a call.
    """

    least: float
    kind: str
    form: str | None = None
    inputs: int | None = None
    steps: int | None = None
    batch: int | None = None

    def covers(self, row: Row) -> bool:
        """Whether it is about a row."""
        fields = ("kind", "form", "inputs", "steps", "batch")
        return all(getattr(self, name) in (None, row[name]) for name in fields)

    @property
    def names_sizes(self) -> bool:
        """Whether it is about single sizes, and not about whatever is measured."""
        return self.inputs is not None

    def __str__(self) -> str:
        given = [self.kind, self.form, self.inputs and f"{self.inputs:,} inputs"]
        given += [self.steps and _steps(self.steps), self.batch and f"batch {self.batch}"]
        return ", ".join(each for each in given if each)


def _low_rank(steps: int, batch: int, least: Mapping[int, float]) -> list[Figure]:
    return [Figure(ratio, "prediction", "low rank", inputs, steps, batch) for inputs, ratio in least.items()]


FIGURES = (
    Figure(1 / 1.05, "prediction"),
    Figure(1 / 1.05, "cell"),
    Figure(1 / 1.1, "training"),
    *_low_rank(1, 1, {128: 1.2, 256: 1.5, 512: 3, 1024: 2.8}),
    *_low_rank(50, 1, {512: 1.7, 1024: 2.7}),
    *_low_rank(50, 16, {512: 1.25, 1024: 2.7}),
    Figure(8, "prediction", inputs=57_600, steps=1, batch=1),
    Figure(8, "prediction", inputs=57_600, steps=6, batch=1),
    Figure(4, "prediction", inputs=57_600, batch=16),
    Figure(4, "prediction", inputs=57_600, batch=32),
    Figure(5, "training", inputs=57_600, steps=6, batch=32),
)


def verdicts(rows: Iterable[Row]) -> Iterator[tuple[str, bool]]:
    """A line for each figure, and whether rows miss it; where several do, one line for each of them."""
    rows = list(rows)
    for figure in FIGURES:
        about = sorted((row for row in rows if figure.covers(row)), key=lambda row: row["ratio"])
        missed = [row for row in about if row["ratio"] < figure.least]
        if not about:
            yield f"not measured  {figure}: to be {figure.least:.3g}", False
            continue
        ends = f"to be {figure.least:.3g}" + (f", {len(missed)} of {len(about)} missed" if len(about) > 1 else "")
        yield f"{'missed' if missed else 'met'}  {figure}: {about[0]['ratio']:.3g}, {ends}", bool(missed)
        for row in missed if len(about) > 1 else ():
            case = f"{row['form']}, {row['inputs']:,} x {row['hidden']:,}, {_steps(row['steps'])}, batch {row['batch']}"
            yield f"    {case}: {row['ratio']:.3g}", True


def _steps(count: object) -> str:
    return "1 step" if count == 1 else f"{count} steps"
