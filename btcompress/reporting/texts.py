"""What a report says in sentences beside its advice: first the gist, in the end what else to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from btcompress.memory import size_text
from btcompress.results import Agreement, CompressionReport
from btcompress.wording import left_out_texts, machine_text, metric_text, ratio_text, untouched_text


def summary(report: CompressionReport) -> Iterator[str]:
    """The gist: how small it is, and how near to the dense model, as far as that was measured."""
    model = report.model
    times = ratio_text(model.bytes_before / max(model.bytes_after, 1)).removesuffix("x")
    yield (
        f"{times} times smaller: {size_text(model.bytes_after)} instead of {size_text(model.bytes_before)}, and "
        f"{model.params_after:,} parameters instead of {model.params_before:,}."
    )
    latest = report.finetuned[-1] if report.finetuned else None
    if report.on_inputs:
        for each in report.on_inputs:
            yield from _closeness(each.lstm, each.hidden_state_error, each.agreement, "the inputs given")
    elif latest is not None:
        yield from _agreement("", latest.agreement_after, "sequences held back")
        dense = "" if latest.dense is None else f", {metric_text(latest.dense)} of the dense model"
        yield (
            f"Fine-tuned, it has {latest.metric} {metric_text(latest.after)} on sequences held back "
            f"({'higher' if latest.higher_is_better else 'lower'} is better{dense})."
        )
    else:
        for calibrated in {each.lstm: each for each in report.calibrated}.values():
            error = calibrated.hidden_state_error_after
            yield from _closeness(calibrated.lstm, error, calibrated.agreement_after, "sequences held back")


def notes(report: CompressionReport) -> dict[str, Sequence[str]]:
    """What to know beside tables and advice, by what it is called on a terminal."""
    bench, expected = report.bench, report.expected_speed
    left_dense = [f"{left.name}: {left.reason}." for left in report.left_dense]
    return {
        "Expected speed": () if expected is None else expected.advice,
        "Speed": () if bench is None else bench.advice,
        "Measured": () if bench is None else [machine_text(bench.machine)],
        "Left out": () if bench is None else left_out_texts(bench),
        "Warning": () if bench is None else bench.warnings,
        "Not factorized": () if report.untouched is None else [untouched_text(report.untouched)],
        "Left dense": left_dense,
        "Note": [*report.notices, *(() if bench is None else bench.notices)],
    }


def _closeness(lstm: str, error: float, agreement: Agreement | None, where: str) -> Iterator[str]:
    whose = f" of {lstm}" if lstm else ""
    yield from _agreement(whose, agreement, where)
    yield f"The hidden states{whose} are off by {error:.4f} of their size on {where}."


def _agreement(whose: str, agreement: Agreement | None, where: str) -> Iterator[str]:
    if agreement is None:
        return
    counts = ((agreement.steps, agreement.n_steps, "steps"), (agreement.ends, agreement.n_ends, "sequence ends"))
    shares = [f"{share:.1%} of {n:,} {what}" for share, n, what in counts if share is not None]
    if shares:
        yield f"The decisions{whose} are those of the dense model in {' and '.join(shares)}, on {where}."
