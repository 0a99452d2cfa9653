"""What to do about a result: by what its errors do to the model where that was measured, else by what is known."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from btcompress.checkpoint import Checkpoint
from btcompress.memory import size_text
from btcompress.reporting.comparing import is_better
from btcompress.reporting.roundingadvice import rounding_advice
from btcompress.results import (
    Agreement,
    CalibrationReport,
    FineTuneReport,
    InputsReport,
    MatrixReport,
    ModelReport,
    UntouchedReport,
    YardstickReport,
)
from btcompress.text import listed

#: What each form of equal size is called in advice.
_FORM_WORDS = {
    "low_rank": "A low-rank matrix of equal size",
    "low_rank_on_inputs": "A low-rank matrix of equal size, fitted to these very inputs,",
    "tensor_train": "A tensor train of equal size",
    "greedy": "Greedy deflation, the same blocks fitted one after another,",
}

#: Weight errors from here on leave next to nothing of a matrix.
_NOTHING_KEPT = 0.9
#: Weight errors up to here are those that rounding to bfloat16 makes (0.002) or little more.
_ROUNDED = 0.005
#: From here on blocks cancel one another rather than share the work.
_CANCELLING = 10.0
#: Shares of decisions that agree, from three models (docs/choosing.md, tests/benchmarks/decisions.py): calibrated at a
#: ratio of 2, all of them have more than the second, and only where hidden states are off by 0.88 is there less than
#: the first.
_TOO_FEW_AGREE, _FEW_AGREE = 0.9, 0.98
#: What hidden-state errors up to each of these left of the decisions of the same models; up to the first it is 99 %.
_SAFE_ERROR = 0.1
_DECISIONS_LEFT = (
    (0.25, "errors of 0.1 to 0.25 left 98 to 99%"),
    (0.5, "errors of 0.25 to 0.5 left 97 to 99%"),
    (0.75, "errors of 0.5 to 0.75 left 91 to 97%"),
    (math.inf, "errors above 0.75 left 10 to 96%"),
)
#: Below this share of the model's parameters, the matrices chosen cap what can be gained.
_SMALL_SHARE = 0.5
#: Matrices named in one piece of advice on weight errors.
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True)
class _Effect:
    """What a recurrent layer's errors do.

    Attributes:
        lstm: its name.
        where: what that was measured on.
        hidden_state_error: None where it was not measured.
        agreement: of decisions with the dense model's; None where no head is known.
    """

    lstm: str
    where: str
    hidden_state_error: float | None
    agreement: Agreement | None


@dataclass(frozen=True, slots=True)
class Findings:
    """What advice goes by.

    Attributes:
        rows: the matrices that were chosen.
        low_rank: names of those that are plain low rank already.
        model: the whole checkpoint.
        finetuned: every training, oldest first.
        calibrated: every calibration since the last of these.
        on_inputs: what was measured on inputs given now.
        trained: whether anything was done since the fit.
        untouched: the other tensors, and the dense checkpoint that they were compared with.
    """

    rows: tuple[MatrixReport, ...]
    low_rank: Collection[str]
    model: ModelReport
    finetuned: tuple[FineTuneReport, ...]
    calibrated: tuple[CalibrationReport, ...]
    on_inputs: tuple[InputsReport, ...]
    trained: bool
    untouched: tuple[UntouchedReport, Checkpoint] | None


def advice_on(found: Findings) -> Iterator[str]:
    """What to know and to do, the gravest first."""
    if found.untouched is not None:
        yield from _untouched_advice(*found.untouched)
    yield from _model_advice(found)
    if not found.trained:
        yield from _fit_advice(found)
    yield from rounding_advice(found.rows, found.on_inputs, found.model, trained=found.trained)
    yield from _training_advice(found)
    yield from _other_forms_advice(found)
    yield from _size_advice(found.rows, found.model)


def _untouched_advice(untouched: UntouchedReport, against: Checkpoint) -> Iterator[str]:
    if untouched.changed and not untouched.trained:
        yield (
            f"Not factorized, and yet other than in {against.source.name}: {', '.join(untouched.changed)}. Nothing was "
            "trained since that could have changed them. Do not use the result with this checkpoint."
        )


def _model_advice(found: Findings) -> Iterator[str]:
    """What the errors do to the model, as far as that was measured; where it was not, that nobody knows."""
    effects = {effect.lstm: effect for effect in _held_back(found)}
    effects |= {
        each.lstm: _Effect(each.lstm, "the inputs given", each.hidden_state_error, each.agreement)
        for each in found.on_inputs
    }
    for effect in effects.values():
        yield from _effect_advice(effect)
    unknown = [row for row in found.rows if row.activation_error is None and row.weight_error > _ROUNDED]
    if unknown and not found.finetuned:
        worst, names = max(row.weight_error for row in unknown), listed([row.name for row in unknown], _MOST_NAMED)
        yield (
            f"Nobody knows what the weight errors of {names} (up to {worst:.3f}) do to the model: they count what no "
            "input ever meets. Record what it gets (btcompress.recording) and factorize with --calibration FILE, or "
            "measure this result: report --against MODEL --inputs FILE."
        )


def _held_back(found: Findings) -> Iterator[_Effect]:
    """What was measured last on sequences held back, of each recurrent layer."""
    where = "the sequences held back"
    for each in found.calibrated:
        yield _Effect(each.lstm, where, each.hidden_state_error_after, each.agreement_after)
    if found.finetuned and not found.calibrated:
        latest = found.finetuned[-1]
        if _as_good_as_dense(latest):
            return  # other decisions than the dense model's, and by the labels as good ones
        of_states = latest.metric == "hidden-state error"
        yield _Effect("", where, latest.after if of_states else None, latest.agreement_after)


def _as_good_as_dense(training: FineTuneReport) -> bool:
    if training.dense is None:
        return False
    return training.after >= training.dense if training.higher_is_better else training.after <= training.dense


def _effect_advice(effect: _Effect) -> Iterator[str]:
    whose = f" of {effect.lstm}" if effect.lstm else ""
    counts = [] if effect.agreement is None else list(_shares(effect.agreement))
    if counts:
        lowest = min(share for share, _ in counts)
        told = " and ".join(f"{share:.1%} of {what}" for share, what in counts)
        if lowest < _FEW_AGREE:
            much = "Do not use it as it is" if lowest < _TOO_FEW_AGREE else "Measure the model before you use it"
            yield (
                f"The decisions{whose} are the dense model's in {told}, on {effect.where}. {much}; higher ranks, more "
                "sequences to calibrate on, or fine-tuning bring them closer."
            )
    elif effect.hidden_state_error is not None and effect.hidden_state_error >= _SAFE_ERROR:
        left = next(words for most, words in _DECISIONS_LEFT if effect.hidden_state_error <= most)
        yield (
            f"The hidden states{whose} are off by {effect.hidden_state_error:.3f} of their size on {effect.where}. On "
            f"three models measured, {left} of the decisions as they were (docs/choosing.md). Measure yours before you "
            "use it; higher ranks, more sequences to calibrate on, or fine-tuning lower the error."
        )


def _shares(agreement: Agreement) -> Iterator[tuple[float, str]]:
    if agreement.steps is not None:
        yield agreement.steps, f"{agreement.n_steps:,} steps"
    if agreement.ends is not None:
        yield agreement.ends, f"{agreement.n_ends:,} sequence ends"


def _fit_advice(found: Findings) -> Iterator[str]:
    """From the weight errors, which say nothing any more once the tensors are trained or fitted to inputs.

    Matrices that are plain low rank already are told of no better one: theirs is only rounded. In fewer bits they are
    told, as a lower rank in floats may be the better bargain.
    """
    emptied = [row for row in found.rows if row.weight_error >= _NOTHING_KEPT and row.activation_error is None]
    told = [row for row in found.rows if row.has_fewer_bits or row.name not in found.low_rank]
    outdone = [row for row in told if row.svd_rank and is_better(row.svd_error, row.weight_error)]
    if emptied:
        names = ", ".join(f"{row.name} (weight error {row.weight_error:.3f})" for row in emptied)
        yield (
            f"Next to nothing is kept of {names}. Raise the CP rank or the Tucker rank, calibrate on "
            "sample inputs, or expect to retrain the model before it is of use."
        )
    if blocks := [row for row in outdone if not row.has_fewer_bits]:
        yield (
            f"A low-rank matrix of equal size fits better than block terms for {_at_ranks(blocks)}. Where "
            "inputs are flattened data, mode sizes along the data's own axes may change that."
        )
    if rounded := [row for row in outdone if row.has_fewer_bits]:
        yield (
            f"A low-rank matrix of as many bytes, its factors in the model's own precision, fits better for "
            f"{_at_ranks(rounded)}. Leave form and bits to --bits auto, which weighs both."
        )


def _at_ranks(rows: Sequence[MatrixReport]) -> str:
    return ", ".join(
        f"{row.name} ({row.svd_error:.3f} at rank {row.svd_rank} against {row.weight_error:.3f})" for row in rows
    )


def _training_advice(found: Findings) -> Iterator[str]:
    if found.finetuned and not found.calibrated and not found.finetuned[-1].best_epoch:
        yield "Fine-tuning made nothing better, so the tensors are those it began with. Try another --lr."
    latest: Sequence[FineTuneReport | CalibrationReport] = found.calibrated or found.finetuned[-1:]
    for cancellation in [each.cancellation for each in latest if each.cancellation > _CANCELLING]:
        yield (
            f"Blocks cancel one another: their squared norms add up to {cancellation:,.0f} times that of "
            "their sum, which costs digits and slows training. Lower the CP rank, or train with a lower --lr."
        )


def _other_forms_advice(found: Findings) -> Iterator[str]:
    """Where another form fits better: the weights of what was not trained since, and the outputs on the inputs.

    Matrices that are plain low rank already are told of no better one: another fit is no other form.
    """
    for form, words in _FORM_WORDS.items():
        own = found.low_rank if form.startswith("low_rank") else ()
        rows = [row for row in found.rows if row.name not in own]
        pairs = [(row, other) for row in rows for other in row.yardsticks if other.form == form]
        # Low rank has its advice without being asked for; training gives up weights for what they do.
        if form == "tensor_train" or (form == "greedy" and not found.trained):
            fitting = [
                f"{row.name} ({_error_at(other.weight_error, other)} against {row.weight_error:.3f})"
                for row, other in pairs
                if is_better(other.weight_error, row.weight_error)
            ]
            if fitting:
                more = " Factorize anew with more --restarts." if form == "greedy" else ""
                yield f"{words} fits better than block terms for {', '.join(fitting)}.{more}"
        nearer = [
            (row, other)
            for row, other in pairs
            if is_better(other.weighted_activation_error, row.weighted_activation_error)
        ]
        closer = [
            f"{row.name} ({_error_at(other.weighted_activation_error, other)} against "
            f"{row.weighted_activation_error:.3f})"
            for row, other in nearer
        ]
        if closer:
            than = "what is stored" if any(row.form == "dense" for row, _ in nearer) else "block terms"
            yield f"{words} is closer than {than} on the inputs given for {', '.join(closer)}."


def _error_at(error: float | None, other: YardstickReport) -> str:
    """An error, with the rank where the form has one of its own, or all ranks where they differ."""
    ranks = ",".join(map(str, other.ranks if len(set(other.ranks)) > 1 else other.ranks[:1]))
    return f"{error:.3f}" if other.form == "greedy" else f"{error:.3f} at rank {ranks}"


def _size_advice(rows: Sequence[MatrixReport], model: ModelReport) -> Iterator[str]:
    grown = [
        f"{row.name} (from {row.params_before:,} to {row.params_after:,} parameters)"
        for row in rows
        if not row.has_fewer_bits and row.params_after >= row.params_before
    ]
    wider = [
        f"{row.name} (from {size_text(row.bytes_before)} to {size_text(row.bytes_after)})"
        for row in rows
        if row.has_fewer_bits and row.bytes_after >= row.bytes_before
    ]
    if grown:
        yield f"What grew: {', '.join(grown)}. Lower the ranks."
    if wider:
        yield f"What takes no fewer bytes: {', '.join(wider)}. Take fewer bits, larger groups or lower ranks."
    if any(row.has_fewer_bits for row in rows):
        yield from _bytes_advice(rows, model)
        return
    chosen = sum(row.params_before for row in rows)
    if chosen < _SMALL_SHARE * model.params_before:
        best = model.params_before / (model.params_before - chosen)
        yield (
            f"The factorized matrices are {chosen / model.params_before:.0%} of the model's parameters: however small "
            f"they get, the model ratio cannot pass {best:.2f}."
        )


def _bytes_advice(rows: Sequence[MatrixReport], model: ModelReport) -> Iterator[str]:
    chosen = sum(row.bytes_before for row in rows)
    rest = model.tensor_bytes_after - sum(row.bytes_after for row in rows)
    if rest > 0 and chosen < _SMALL_SHARE * model.bytes_before:
        yield (
            f"The matrices that were chosen are {chosen / model.bytes_before:.0%} of the model's bytes, and all else "
            f"takes {size_text(rest)} as it is stored: however few bytes they take, the file cannot get more than "
            f"{model.bytes_before / rest:.2f} times smaller. Choose more of them (--matrices), or store the rest as "
            "--others float16."
        )
