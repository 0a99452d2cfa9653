"""From a report to a page: which sections there are, what is in each, and the template around them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from btcompress.errors import BTCompressError, missing
from btcompress.memory import size_text
from btcompress.page.contents import Figure, Picture, Section, Tabulated
from btcompress.page.matrices import error_picture, inputs_picture, spectrum_picture
from btcompress.page.sizes import layers_picture
from btcompress.page.speed import case_picture
from btcompress.page.training import agreement_picture, curves_picture, stages_picture
from btcompress.recipe import recipe_text, recorded_recipe
from btcompress.reporting.curves import MatrixCurves
from btcompress.reporting.tables import (
    bench_table,
    calibration_table,
    expected_table,
    inputs_table,
    layer_table,
    matrix_table,
    model_table,
    training_table,
)
from btcompress.reporting.texts import notes, summary
from btcompress.reporting.values import Table
from btcompress.reporting.yardsticktables import rounded_layer_table, rounding_table, yardstick_table
from btcompress.results import Agreement, CalibrationReport, CompressionReport, FineTuneReport, MatrixReport
from btcompress.text import printable, shortened
from btcompress.wording import MARK, Worse, ratio_text

#: Matrices, layers, trainings and cases that are drawn; all of them are in the tables.
_MOST_DRAWN = 8
#: Rows of a table, and sentences of a kind, that are shown; whoever wants all of very many reads JSON.
_MOST_ROWS, _MOST_TEXTS = 1000, 40
#: Characters of a cell, of a sentence, and of what is copied.
_CELL, _SENTENCE, _LISTING = 160, 2000, 20_000


def check_installed() -> None:
    """Refuse to begin where a page cannot be made.

    Raises:
        BTCompressError: jinja2 or matplotlib is missing.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise missing("a report as a page", error.name or "jinja2", "page") from error


def largest(matrices: Sequence[MatrixReport]) -> tuple[MatrixReport, ...]:
    """The matrices that are drawn: those with the most bytes before, in the order of the checkpoint."""
    chosen = sorted(range(len(matrices)), key=lambda n: -matrices[n].bytes_before)[:_MOST_DRAWN]
    return tuple(matrices[n] for n in sorted(chosen))


def page(
    report: CompressionReport,
    name: str,
    *,
    source: str = "",
    history: Sequence[Mapping[str, Any]] = (),
    curves: Sequence[MatrixCurves] = (),
) -> str:
    """A report as one page: HTML that needs no other file, in ASCII, the same for the same report.

    Args:
        report: the report.
        name: of the result.
        source: name of the dense checkpoint.
        history: of the result, for how to get it again.
        curves: of the dense matrices of :func:`largest`, where they are at hand.

    Raises:
        BTCompressError: jinja2 or matplotlib is missing.
    """
    check_installed()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("btcompress", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["worse"] = lambda text: isinstance(text, Worse)
    environment.filters["cell"] = lambda text: shortened(printable(text), _CELL)
    environment.filters["sentence"] = lambda text: shortened(printable(text), _SENTENCE)
    sections = [
        _advice(report),
        _sizes(report),
        _errors(report, curves, name),
        _singular_values(report, curves, name),
        _training(report),
        _speed(report, name),
        _agreement(report, name),
        _recipe(name, source, history),
    ]
    text = environment.get_template("report.html.jinja").render(
        name=name, source=source, figures=list(_figures(report)), sections=sections, mark=MARK
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _figures(report: CompressionReport) -> Iterator[Figure]:
    """What is to be seen first."""
    model = report.model
    yield Figure(
        ratio_text(model.bytes_before / max(model.bytes_after, 1)),
        f"smaller: {size_text(model.bytes_after)} instead of {size_text(model.bytes_before)}",
    )
    yield Figure(
        ratio_text(model.ratio), f"fewer parameters: {model.params_after:,} instead of {model.params_before:,}"
    )
    found = _latest_agreement(report)
    if found is not None:
        agreement, where = found
        share, count = (agreement.steps, agreement.n_steps) if agreement.steps is not None else (agreement.ends, 0)
        if share is not None:
            of = f"{count:,} steps" if count else f"{agreement.n_ends:,} sequence ends"
            yield Figure(f"{share:.1%}", f"of decisions as the dense model makes them, of {of} {where}")


def _latest_agreement(report: CompressionReport) -> tuple[Agreement, str] | None:
    """That of the tensors as they are now, the lowest of several layers, and where it was measured."""

    def lowest(found: Iterable[Agreement | None], where: str) -> tuple[Agreement, str] | None:
        known = [each for each in found if each is not None]
        by_share = sorted(known, key=lambda each: min(x for x in (each.steps, each.ends, 1.0) if x is not None))
        return (by_share[0], where) if by_share else None

    if report.on_inputs:
        return lowest((each.agreement for each in report.on_inputs), "on the inputs given")
    if report.finetuned:
        return lowest([report.finetuned[-1].agreement_after], "held back")
    latest = {each.lstm: each.agreement_after for each in report.calibrated}
    return lowest(latest.values(), "held back")


def _advice(report: CompressionReport) -> Section:
    told = notes(report)
    titled = [(title, text) for title, texts in told.items() for text in _few(texts)]
    nothing = () if report.advice else (("", "There is nothing to warn of, and nothing that has to be done."),)
    advice = [("Advice", text) for text in _few(report.advice)]
    return Section("advice", "What to know", tuple(summary(report)), (*advice, *nothing, *titled))


def _sizes(report: CompressionReport) -> Section:
    tables = {
        "Bytes of each layer, before and after": layer_table(report.layers, report.model),
        "The whole model, before and after": model_table(report.model, report.matrices),
    }
    picture = layers_picture(report.layers)
    return Section("sizes", "Where the bytes went", pictures=_some([picture]), tables=_tabulated(tables))


def _errors(report: CompressionReport, curves: Sequence[MatrixCurves], name: str) -> Section:
    by_name = {each.name: each for each in curves}
    drawn = largest(report.matrices)
    pictures = [error_picture(row, by_name.get(row.name), f"error{n}") for n, row in enumerate(drawn)]
    pictures += _some(inputs_picture(row, f"inputs{n}") for n, row in enumerate(drawn))
    texts = [
        "The weight error is the size of what is missing from a matrix over the size of the matrix: 0 is exact, and 1 "
        "is what zeros would have. Further to the left and further down is better.",
        *_left_out(len(report.matrices) - len(drawn), "matrices"),
    ]
    if curves:
        texts.append("Rounding is drawn in 2 to 8 bits, with a scale for each row or for each group of 32 columns.")
    if any(row.activation_error is not None for row in report.matrices):
        texts.append(
            "Where there were sample inputs, the activation error says what that does to the outputs of the matrix, "
            "and counts for more than the weight error; weighted, each output counts as much as it does for the hidden "
            "states. A fit to inputs gives up the one for the other."
        )
    tables = {
        "The matrices that were chosen": matrix_table(report),
        "The dense matrices rounded alone, for comparison": rounding_table(report),
        "Other forms of equal size": yardstick_table(report.matrices),
    }
    hints = [] if curves else [f"the yardsticks at all sizes: btcompress report {name} --against MODEL --html PAGE"]
    if not any(row.yardsticks for row in report.matrices):
        hints.append("other forms of equal size: --against MODEL --yardsticks")
    hint = f"To see more: {'; '.join(hints)}." if hints else ""
    return Section("errors", "Error against bytes", tuple(texts), (), tuple(pictures), _tabulated(tables), hint=hint)


def _singular_values(report: CompressionReport, curves: Sequence[MatrixCurves], name: str) -> Section:
    rows = {row.name: row for row in report.matrices}
    pictures = _some(
        spectrum_picture(rows[each.name], each, f"spectrum{n}") for n, each in enumerate(curves) if each.name in rows
    )
    if not pictures:
        hint = f"They are those of the dense matrices: btcompress report {name} --against MODEL --html PAGE."
        return Section("singular-values", "Singular values", hint=hint)
    texts = (
        "Where they fall steeply, a matrix is nearly of low rank, and few numbers hold it; where they stay level, "
        "fewer bits are the better bargain.",
        *_left_out(len(report.matrices) - len(pictures), "matrices"),
    )
    return Section("singular-values", "Singular values", texts, pictures=pictures)


def _training(report: CompressionReport) -> Section:
    pictures: list[Picture | None] = []
    for n, each in enumerate(report.calibrated[-_MOST_DRAWN:]):
        name = each.lstm or "the recurrent layer"
        pictures.append(stages_picture(each, f"stages{n}"))
        pictures.append(curves_picture(name, "hidden-state error", each.learning_curves, f"calibration{n}"))
    for n, training in enumerate(report.finetuned[-_MOST_DRAWN:], 1):
        title = "Fine-tuning" if len(report.finetuned) == 1 else f"Fine-tuning {n}"
        drawn = curves_picture(title, training.metric, training.learning_curves, f"training{n}", training.dense)
        pictures.append(drawn)
    tables = {
        "Calibrations, oldest first": calibration_table(report.calibrated),
        "Trainings, oldest first": training_table(report.finetuned),
    }
    trained: list[CalibrationReport | FineTuneReport] = [*report.calibrated, *report.finetuned]
    hint = ""
    if not trained:
        hint = (
            "Nothing was calibrated or fine-tuned. Sample inputs (factorize --calibration FILE) or labels (btcompress "
            "finetune) win back much of what was lost."
        )
    elif not all(each.learning_curves or not each.epochs for each in trained):
        hint = "There are no learning curves of trainings that an older version recorded."
    return Section("training", "Calibration and fine-tuning", (), (), _some(pictures), _tabulated(tables), hint=hint)


def _speed(report: CompressionReport, name: str) -> Section:
    bench, expected = report.bench, report.expected_speed
    cases = () if expected is None else expected.cases
    tables = {"Expected by the cost model, of predictions on a CPU of two cores": expected_table(cases)}
    if bench is None:
        hint = f"Nothing was measured: btcompress bench {name} --record measures it, and keeps it in the file."
        return Section("speed", "Speed", tables=_tabulated(tables), hint=hint)
    drawn = bench.cases[:_MOST_DRAWN]
    pictures = _some(case_picture(case, f"speed{n}") for n, case in enumerate(drawn))
    texts = (*_few(bench.advice), *_left_out(len(bench.cases) - len(drawn), "cases"))
    tables = {"Every way to run a layer, by turns": bench_table(bench.cases), **tables}
    return Section("speed", "Speed", texts, pictures=pictures, tables=_tabulated(tables))


def _agreement(report: CompressionReport, name: str) -> Section:
    picture = agreement_picture(report.calibrated, report.finetuned, report.on_inputs)
    tables = {
        "On the inputs given": inputs_table(report.on_inputs),
        "The dense layers with their matrices rounded alone": rounded_layer_table(report.on_inputs),
    }
    texts: tuple[str, ...] = (
        "A decision is the largest of a step's outputs, or the sign of the only one; it agrees where the dense model "
        "decides the same. The figures of calibrations and trainings are in their tables above.",
    )
    hint = ""
    if picture is None and not report.on_inputs:
        texts, hint = (), f"Nothing is known: btcompress report {name} --against MODEL --inputs FILE measures it."
    elif not report.on_inputs:
        hint = f"To measure it on other inputs: btcompress report {name} --against MODEL --inputs FILE."
    title = "Agreement with the dense model"
    return Section("agreement", title, texts, (), _some([picture]), _tabulated(tables), hint=hint)


def _recipe(name: str, source: str, history: Sequence[Mapping[str, Any]]) -> Section:
    listings = []
    recipe, text = recorded_recipe(history, source, name), None
    if recipe is not None:
        try:
            text = recipe_text(recipe)
        except BTCompressError:
            text = None
    if text is not None:
        listings.append(("recipe.yaml, for btcompress run recipe.yaml", _listing(text)))
    steps = [shortened(json.dumps(step, sort_keys=True, default=str), _SENTENCE) for step in history[-_MOST_TEXTS:]]
    if steps:
        listings.append(("Every step on record", _listing("\n".join(steps))))
    more = any(step.get("step") not in ("factorize", "calibrate", "refit") for step in history)
    hint = ""
    if text is None:
        hint = "The record does not say all that is needed to make it again with one command; what it says is below."
    elif more:
        hint = "The recipe ends where the record does not say on which data the result was trained."
    return Section("recipe", "How to get it again", listings=tuple(listings), hint=hint)


def _listing(text: str) -> str:
    """What is copied or read as it is, its lines kept."""
    lines = (printable(line) for line in text.splitlines())
    return shortened("\n".join(lines), _LISTING)


def _left_out(count: int, what: str) -> tuple[str, ...]:
    if count <= 0:
        return ()
    return (f"The largest are drawn; {count:,} more {what} are in the tables alone.",)


def _few(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts, of very many the first ones and how many more there are."""
    shown = tuple(texts[:_MOST_TEXTS])
    return shown if len(shown) == len(texts) else (*shown, f"and {len(texts) - len(shown):,} more (--json shows all).")


def _some(pictures: Iterable[Picture | None]) -> tuple[Picture, ...]:
    return tuple(each for each in pictures if each is not None)


def _tabulated(tables: Mapping[str, Table]) -> tuple[Tabulated, ...]:
    """The tables that have rows."""
    shown = []
    for caption, table in tables.items():
        if table.rows:
            rows = table.rows[:_MOST_ROWS]
            shown.append(Tabulated(caption, replace(table, rows=rows), len(table.rows) - len(rows)))
    return tuple(shown)
