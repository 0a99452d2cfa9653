"""What is known of all models as Markdown: means, standard deviations over seeds, and each seed's figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from paper_records import Measured, Noisy, Trained, read
from paper_runs import BEGUN, CALIBRATED
from paper_settings import Tasks
from paper_study import Study

from btcompress.demo import Measure, Task

Found = Mapping[Study, Sequence[Measured | Noisy]]
Row = Sequence[str]

BLOCK_TERMS, TENSOR_TRAIN = "block terms", "tensor train"
#: How a model came about, by what its training began with and what was done.
_HOW = {"dense model": ", fine-tuned", "from scratch": ", from scratch", "": ""}
_STAGES = {BEGUN: ", not trained", CALIBRATED: ", calibrated without labels"}


@dataclass(frozen=True, slots=True)
class Group:
    """A task at a size.

    Attributes:
        task: what is learned.
        size: its name.
    """

    task: Task[Any]
    size: str

    @property
    def name(self) -> str:
        """As titles have it."""
        return f"{self.task.name}, {self.size}"

    def own(self, records: Iterable[Measured | Noisy]) -> list[Any]:
        """What is known of its models."""
        return [each for each in records if (each.task, each.size) == (self.task.name, self.size)]


def groups(tasks: Tasks) -> list[Group]:
    """All tasks at all sizes."""
    return [Group(task, size) for size, own in tasks.items() for task in own.values()]


def name_of(record: Measured | Noisy) -> str:
    """What a model is called."""
    stage = record.stage if isinstance(record, Measured) else ""
    return record.form + _STAGES.get(stage, _HOW[record.start])


def by_name(records: Iterable[Measured]) -> dict[str, list[Measured]]:
    """Models by what they are called."""
    found: dict[str, list[Measured]] = {}
    for each in records:
        found.setdefault(name_of(each), []).append(each)
    return found


def spread(measure: Measure, values: Sequence[float]) -> str:
    """Mean, and the standard deviation where there are several values, of two digits but for shares."""
    if len(values) < 2:
        return measure.written(mean(values))
    deviation = stdev(values)
    if measure.is_share:
        return f"{measure.written(mean(values)).removesuffix(' %')} ± {measure.written(deviation)}"
    digits = max(0, 1 - math.floor(math.log10(deviation))) if deviation else 0
    return f"{mean(values):,.{digits}f} ± {deviation:,.{digits}f}"


def difference(measure: Measure, values: Sequence[float]) -> str:
    """The same of differences, which are points where the values are shares."""
    return spread(measure, values).replace("%", "points")


def tables(found: Found, tasks: Tasks) -> str:
    """All tables."""
    parts = []
    makers: dict[str, Callable[[Group, Found], str]] = {
        "Models": _models,
        "Block terms beside the tensor train": _verdict,
        "On noisy inputs": _noise,
        "Ranks": lambda group, found: _forms(group, found["ranks"]),
        "Orders": lambda group, found: _forms(group, found["orders"]),
    }
    for title, make in makers.items():
        made = [(group, make(group, found)) for group in groups(tasks)]
        shown = [f"**{group.name}**: {_about(group, found)}\n\n{text}" for group, text in made if text]
        if shown:
            parts.append(f"## {title}\n\n" + "\n\n".join(shown))
    return "\n\n".join(parts) + "\n"


def trainings(folder: Path, tasks: Tasks) -> str:
    """Every training, those that were searched among included: the best on the examples held back, and seconds."""
    rows = []
    for path in sorted(folder.glob("*/*.trained.json")):
        name, size, _ = path.parent.name.rsplit("-", 2)
        metric, record = tasks[size][name].metric, read(path, Trained)
        told = ("diverged", "")
        if record.curve:
            best = max(record.curve) if metric.higher_is_better else min(record.curve)
            told = (f"{metric.written(best)} ({metric.name})", f"{median(record.seconds):.2f}")
        rows.append((path.parent.name, path.name.removesuffix(".trained.json"), str(len(record.seconds)), *told))
    return _table(("run", "training", "epochs", "best when held back", "median seconds of an epoch"), rows) + "\n"


def _about(group: Group, found: Found) -> str:
    seeds = sorted({each.seed for records in found.values() for each in group.own(records)})
    return f"{group.task.size.n_test:,} test {group.task.examples}, seeds {', '.join(map(str, seeds))}"


def _models(group: Group, found: Found) -> str:
    rows = []
    for name, own in by_name(group.own(found["main"])).items():
        first = own[0]
        rate = "" if first.learning_rate is None else f"{first.learning_rate:g}"
        rate += f", decay {first.weight_decay:g}" if first.weight_decay else ""
        rows.append(
            (name, f"{first.params:,}", f"{first.n_bytes:,}", f"{first.model_params:,}", rate, *_scores(group, own))
        )
    titles = ("model", "parameters of `W`", "bytes of `W`", "of the model", "learning rate", *_titles(group))
    return _table(titles, rows) if rows else ""


def _titles(group: Group) -> Row:
    return (*(each.name for each in group.task.measures), f"{group.task.measures[0].name}, each seed")


def _scores(group: Group, own: Sequence[Measured]) -> Row:
    measures = group.task.measures
    means = [spread(measure, [each.scores[i] for each in own]) for i, measure in enumerate(measures)]
    return (*means, ", ".join(measures[0].written(each.scores[0]) for each in own))


def _verdict(group: Group, found: Found) -> str:
    measure, rows = group.task.measures[0], []
    models = by_name(group.own(found["main"]))
    for how in (_HOW["dense model"], _HOW["from scratch"]):
        ours, theirs = (
            {each.seed: each for each in models.get(f"{form}{how}", ())} for form in (BLOCK_TERMS, TENSOR_TRAIN)
        )
        both = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
        if both:
            sign = 1 if measure.higher_is_better else -1
            gains = [sign * (our.scores[0] - their.scores[0]) for our, their in both]
            ahead = sum(gain > 0 for gain in gains)
            rows.append(
                (
                    how.removeprefix(", "),
                    f"{both[0][0].params:,} and {both[0][1].params:,}",
                    spread(measure, [our.scores[0] for our, _ in both]),
                    spread(measure, [their.scores[0] for _, their in both]),
                    difference(measure, gains),
                    f"{ahead} of {len(both)}",
                    "yes" if mean(gains) > 0 else "no",
                )
            )
    titles = ("", "parameters of `W`", BLOCK_TERMS, TENSOR_TRAIN, "better by", "seeds ahead", "ahead in the mean")
    return _table(titles, rows) if rows else ""


def _noise(group: Group, found: Found) -> str:
    measure, noisy = group.task.measures[0], group.own(found["noise"])
    if not noisy:
        return ""
    kinds = sorted({(each.kind, each.strength) for each in noisy})
    clean = by_name(each for each in group.own(found["main"]) if each.stage not in _STAGES)
    rows = []
    for name in dict.fromkeys(map(name_of, noisy)):
        cells = [spread(measure, [each.scores[0] for each in clean[name]]) if name in clean else ""]
        for kind in kinds:
            scores = [each.scores[0] for each in noisy if (name_of(each), (each.kind, each.strength)) == (name, kind)]
            cells.append(spread(measure, scores) if scores else "")
        rows.append((name, *cells))
    titles = ("model", f"{measure.name}, clean", *(f"{kind} {strength:g}" for kind, strength in kinds))
    return _table(titles, rows)


def _forms(group: Group, records: Sequence[Measured | Noisy]) -> str:
    rows = [(name, f"{own[0].params:,}", *_scores(group, own)) for name, own in by_name(group.own(records)).items()]
    return _table(("model", "parameters of `W`", *_titles(group)), rows) if rows else ""


def _table(titles: Row, rows: Sequence[Row]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ("---",) * len(titles), *rows))
