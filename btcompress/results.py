"""Frozen results: what a run measured, and its JSON form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from btcompress.timings import BenchReport


@dataclass(frozen=True, slots=True)
class Sweep:
    """Where an iterative fit stands, handed to ``on_sweep`` callbacks.

    Attributes:
        index: sweeps done.
        limit: sweeps at most.
        error: weight error now.
    """

    index: int
    limit: int
    error: float


@dataclass(frozen=True, slots=True)
class FitProgress:
    """Where a factorization stands, handed to ``on_progress`` callbacks.

    Attributes:
        name: the matrix being fitted.
        index: matrices done before it.
        count: matrices in all.
        sweep: where its fit stands.
    """

    name: str
    index: int
    count: int
    sweep: Sweep


@dataclass(frozen=True, slots=True)
class PricingProgress:
    """Where the pricing of forms stands, handed to ``on_progress`` callbacks.

    Attributes:
        name: the matrix being priced.
        index: matrices done before it.
        count: matrices in all.
        share: how much of this one is done, 0 to 1.
    """

    name: str
    index: int
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class YardstickReport:
    """A matrix in another form than block terms, with at most as many parameters.

    Attributes:
        form: ``"low_rank"``, ``"low_rank_on_inputs"``, fitted to the inputs given, ``"tensor_train"``, or ``"greedy"``,
            blocks fitted one after another.
        ranks: the rank of the truncated SVD, the ``d - 1`` ranks of the tensor train, or the Tucker ranks.
        params: parameters of this form; 0 where it was skipped.
        weight_error: ``||W - W'||_F / ||W||_F``; None where it was skipped.
        activation_error: ``||(W - W') X||_F / ||W X||_F`` on the inputs given; None where it was not measured.
        weighted_activation_error: likewise, each output weighted with what it counts for the hidden states.
        skipped: why there is no such form, in words; None where there is.
    """

    form: str
    ranks: tuple[int, ...]
    params: int
    weight_error: float | None
    activation_error: float | None = None
    weighted_activation_error: float | None = None
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class RoundingReport:
    """Something rounded to integers with the best clipping, and nothing done beside that.

    Attributes:
        precision: bits and group, as ``"int4/32"``.
        bytes: that it takes.
        weight_error: ``||W - W'||_F / ||W||_F``.
        activation_error: on inputs, as that of the matrix; None where it was not measured.
        weighted_activation_error: likewise, weighted as those of the matrix are.
        fed_back: whether errors were fed back by the second moments of the inputs; else each number is rounded to the
            nearest.
    """

    precision: str
    bytes: int
    weight_error: float
    activation_error: float | None = None
    weighted_activation_error: float | None = None
    fed_back: bool = False

    @property
    def error(self) -> float:
        """The weighted activation error where that was measured, else the weight error."""
        return self.weight_error if self.weighted_activation_error is None else self.weighted_activation_error


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """One matrix that was chosen, before and after.

    Attributes:
        name: its key in the checkpoint.
        shape: ``(rows, inputs)``.
        in_modes: ``(I_1..I_d)``.
        out_modes: ``(J_1..J_d)``.
        gates: ``"fused"`` or ``"separate"``.
        cp_rank: ``N``.
        tucker_ranks: ``(R_1..R_d)``.
        core: ``"full"``, or ``"identity"`` for a form without parameters in its core; ``"none"`` for a dense matrix.
        params_before: entries of the dense matrix.
        params_after: entries of the tensors that replace it, counted on those tensors; an order of several of its sides
            counts once, one that it shares with other matrices counts here too.
        weight_error: ``||W - W'||_F / ||W||_F``, measured on the tensors as stored.
        svd_rank: rank of a truncated SVD with at most as many parameters, or for a matrix in fewer bits with at most as
            many bytes, its factors in the dtype of the matrix; may be 0.
        svd_error: weight error of that truncated SVD.
        activation_error: ``||(W - W') X||_F / ||W X||_F`` on the inputs given, or, where nothing was done since it
            was calibrated but to calibrate others, on the sequences held back then; None where it was not measured.
        weighted_activation_error: likewise, each output weighted with what it counts for the hidden states.
        yardsticks: other forms of equal size, where they were asked for.
        row_order: whether its rows are in an order of their own, or of the units.
        column_order: likewise for its columns.
        form: ``"block_terms"``, or ``"dense"`` for a matrix that stays dense in fewer bits: it has no modes and ranks.
        precision: how its numbers are stored: ``"float32"`` and so on, or bits and group as ``"int4/32"``; several of
            these where its tensors differ.
        bytes_before: of the dense matrix.
        bytes_after: of what replaces it, as stored.
        roundings: the dense matrix rounded alone, where that was measured: in 8 bits by rows, in 4 bits in groups of
            32, and in the integers that take no more bytes than it does now.
        dtype: of the dense matrix.
        in_8_bits: cores and factors that are floats, rounded to 8 bits in groups of 32; None where that was not
            measured.
    """

    name: str
    shape: tuple[int, int]
    in_modes: tuple[int, ...]
    out_modes: tuple[int, ...]
    gates: str
    cp_rank: int
    tucker_ranks: tuple[int, ...]
    core: str
    params_before: int
    params_after: int
    weight_error: float
    svd_rank: int
    svd_error: float
    activation_error: float | None = None
    weighted_activation_error: float | None = None
    yardsticks: tuple[YardstickReport, ...] = ()
    row_order: bool = False
    column_order: bool = False
    form: str = "block_terms"
    precision: str = "float32"
    bytes_before: int = 0
    bytes_after: int = 0
    roundings: tuple[RoundingReport, ...] = ()
    dtype: str = "float32"
    in_8_bits: RoundingReport | None = None

    @property
    def has_fewer_bits(self) -> bool:
        """Whether its numbers are stored in another precision than the dense ones."""
        return self.precision != self.dtype

    @property
    def roundings_within(self) -> tuple[RoundingReport, ...]:
        """The roundings that take no more bytes."""
        return tuple(each for each in self.roundings if each.bytes <= self.bytes_after)

    @property
    def best_rounding(self) -> RoundingReport | None:
        """Of those the one to the nearest with the least error."""
        nearest = (each for each in self.roundings_within if not each.fed_back)
        return min(nearest, key=lambda each: each.error, default=None)

    @property
    def bytes_ratio(self) -> float:
        """``bytes_before / bytes_after``."""
        return self.bytes_before / max(self.bytes_after, 1)

    @property
    def weights_ratio(self) -> float:
        """``params_before / params_after``."""
        return self.params_before / self.params_after

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {**asdict(self), "weights_ratio": self.weights_ratio, "bytes_ratio": self.bytes_ratio}


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The tensors of one layer, before and after; those that are one with a tensor of a layer before count there.

    Attributes:
        name: what the names of its tensors begin with; empty at the top of a checkpoint.
        number: of a layer of several in a recurrent one, from 0; None of any other.
        bytes_before: of its tensors in the dense checkpoint.
        bytes_after: of what stands for them, as stored.
    """

    name: str
    number: int | None
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class LeftDense:
    """A matrix that was chosen but stays as it was.

    Attributes:
        name: its key in the checkpoint.
        reason: why, in words.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The whole checkpoint, before and after.

    Attributes:
        params_before: entries of all tensors in.
        params_after: entries of all tensors out.
        bytes_before: of all tensors in, tied ones counted once.
        bytes_after: size of the result.
        file_bytes_before: size of the input file or files, which may hold more than its tensors; 0 where not known.
        tensor_bytes_after: of all tensors out, as stored, tied ones counted once.
    """

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    file_bytes_before: int = 0
    tensor_bytes_after: int = 0

    @property
    def ratio(self) -> float:
        """``params_before / params_after``: the model ratio."""
        return self.params_before / self.params_after

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a model decides as the dense one does, on sequences that it was not trained on.

    A decision is the largest of a step's outputs, or the sign of the only one; the side of 1/2 that it lies on where
    all of the dense model's are probabilities.

    Attributes:
        steps: share of all steps on which both decide alike; None where a sequence is decided on but once.
        ends: share of sequences on which they do so from the final hidden states, or from the only outputs of a
            sequence; None where a network decides on every step.
        n_steps: steps compared.
        n_ends: sequences compared.
    """

    steps: float | None
    ends: float | None
    n_steps: int
    n_ends: int


@dataclass(frozen=True, slots=True)
class CalibrationProgress:
    """Where a calibration stands, handed to ``on_progress`` callbacks.

    Attributes:
        what: is being done, such as ``"calibrating layer 1 of encoder"``.
        index: stages done before it.
        count: stages in all.
        share: how much of this one is done, 0 to 1.
        seconds_left: of all stages, estimated; None where nothing is known yet.
        state: more to show, such as the loss.
    """

    what: str
    index: int
    count: int
    share: float
    seconds_left: float | None = None
    state: str = ""


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Where the run of a recipe stands, handed to ``on_progress`` callbacks.

    Attributes:
        kind: of the step: ``"factorize"``, ``"finetune"`` or ``"dense"``.
        index: steps done before it.
        count: steps in all.
        output: the file that it writes.
        state: ``"begun"``, ``"done"``, or ``"kept"`` where an interrupted run had done it.
    """

    kind: str
    index: int
    count: int
    output: str
    state: str


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """How a metric on the sequences held back went in one training.

    Attributes:
        metrics: before the first epoch and after each, in four digits.
        layer: the number, from 0, of the only layer that was trained; None where all were.
    """

    metrics: tuple[float, ...]
    layer: int | None = None

    @classmethod
    def of(cls, before: float, after: Iterable[float], layer: int | None = None) -> LearningCurve:
        """The curve of a training.

        Args:
            before: the metric before the first epoch.
            after: that after each.
            layer: as above.
        """
        exact = (before, *after)
        rounded = (float(f"{value:.4g}") for value in exact)
        # The largest float has no neighbour to be rounded to.
        return cls(tuple(near if isfinite(near) else value for near, value in zip(rounded, exact, strict=True)), layer)


@dataclass(frozen=True, slots=True)
class FineTuneReport:
    """What fine-tuning brought, on sequences held back.

    Attributes:
        metric: what was measured.
        higher_is_better: whether larger is better.
        dense: of the dense model; None where it was not given.
        before: of the checkpoint that fine-tuning began with.
        after: of the result, on the tensors as stored; the largest float where it is not a number.
        epochs: trained.
        best_epoch: whose state was kept; 0 if none was better than the start.
        n_train: sequences trained on.
        n_held: sequences measured on.
        cancellation: squared norms of the blocks over the squared norm of their sum, the worst of all matrices.
        agreement_before: of the decisions of the start with the dense model's; None where it was not measured.
        agreement_after: likewise of the result.
        learning_curves: of the metric, one; none in files of older versions.
    """

    metric: str
    higher_is_better: bool
    dense: float | None
    before: float
    after: float
    epochs: int
    best_epoch: int
    n_train: int
    n_held: int
    cancellation: float
    agreement_before: Agreement | None = None
    agreement_after: Agreement | None = None
    learning_curves: tuple[LearningCurve, ...] = ()


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What calibrating a recurrent layer brought, on sequences held back.

    Attributes:
        lstm: its name.
        hidden_state_error_before: ``||h - h'|| / ||h||`` of the matrices as fitted, and rounded, by the weights alone.
        hidden_state_error_after: of the result.
        epochs: trained over all layers together; in files of older versions, those of all stages.
        n_train: sequences trained on.
        n_held: sequences measured on.
        cancellation: as for fine-tuning.
        hidden_state_error_refitted: of the block terms as fitted to the inputs; None where it was not measured.
        layer_epochs: trained over single layers before, added up.
        agreement_before: of decisions with the dense model's, as fitted to the weights; None where no head is known.
        agreement_after: likewise of the result.
        hidden_state_error_rounded: of the matrices rounded with their errors fed back, before training; None where
            nothing was rounded.
        learning_curves: of the hidden-state error, one for each training; none in files of older versions.
    """

    lstm: str
    hidden_state_error_before: float
    hidden_state_error_after: float
    epochs: int
    n_train: int
    n_held: int
    cancellation: float
    hidden_state_error_refitted: float | None = None
    layer_epochs: int = 0
    agreement_before: Agreement | None = None
    agreement_after: Agreement | None = None
    hidden_state_error_rounded: float | None = None
    learning_curves: tuple[LearningCurve, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundedLSTM:
    """The dense layer with its chosen matrices rounded alone, each number to the nearest unless errors are fed back.

    Attributes:
        precision: ``"int8"`` by rows, ``"int4"`` in groups of 32, ``"equal_bytes"``: each matrix in the integers that
            come nearest to it at no more bytes than it takes now, or ``"same"``: all in the most bits that they can
            have alike at no more bytes than all take now.
        fed_back: whether errors were fed back by the second moments of the inputs.
        hidden_state_error: ``||h - h'|| / ||h||``.
    """

    precision: str
    fed_back: bool
    hidden_state_error: float


@dataclass(frozen=True, slots=True)
class InputsReport:
    """What a recurrent layer gives on inputs, beside the dense one.

    Attributes:
        lstm: its name.
        n_sequences: of inputs.
        hidden_state_error: ``||h - h'|| / ||h||`` of the tensors as they are.
        agreement: of decisions with the dense model's; None where no head is known.
        rounded: what rounding alone would leave, where that was measured.
    """

    lstm: str
    n_sequences: int
    hidden_state_error: float
    agreement: Agreement | None = None
    rounded: tuple[RoundedLSTM, ...] = ()


@dataclass(frozen=True, slots=True)
class UntouchedReport:
    """Tensors that were not chosen, compared bit for bit with the dense checkpoint.

    Attributes:
        same: how many are the dense checkpoint's own, in dtype, shape and every bit.
        changed: names of the others.
        trained: whether something was trained since, which is what changes them.
        rounded: how many are the dense checkpoint's own in every bit, once these are rounded to the floats that they
            are stored as.
    """

    same: int
    changed: tuple[str, ...]
    trained: bool
    rounded: int = 0


@dataclass(frozen=True, slots=True)
class ExpectedCase:
    """How fast a recurrent layer is to be at one batch size and number of steps, in prediction.

    Attributes:
        lstm: its name; empty at the top of a file.
        batch: sequences in a call.
        steps: of each sequence in a call; 1 for a cell.
        ratio: estimated seconds of the dense layer on the faster of torch's kernels over those of the block terms,
            above 1 where these are faster.
        kind: ``"LSTM"``, ``"GRU"`` or ``"RNN"``, whether layer or cell.
    """

    lstm: str
    batch: int
    steps: int
    ratio: float
    kind: str = "LSTM"


@dataclass(frozen=True, slots=True)
class ExpectedSpeed:
    """What the cost model says of the speed of a result, where nothing was measured.

    Attributes:
        cases: some typical ones of each layer.
        advice: how fast each layer is to be beside the dense one.
    """

    cases: tuple[ExpectedCase, ...]
    advice: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """What a compression gained and lost.

    Attributes:
        matrices: one entry per factorized matrix.
        model: the whole checkpoint.
        left_dense: matrices that were chosen but stay dense.
        notices: how sizes and ranks came about, tensors left out, and the like.
        advice: where the result is not worth it, and what to do next.
        finetuned: one entry for each time that the result was trained on, oldest first.
        calibrated: one entry for each time that a recurrent layer was calibrated, oldest first.
        untouched: the other tensors beside those of the dense checkpoint; None where it was not given.
        on_inputs: one entry for each recurrent layer that inputs were given for.
        bench: what running it took when that was measured last; None where it was not.
        expected_speed: what the cost model says of layers that :attr:`bench` does not hold; None where it says nothing.
        layers: what the tensors of each layer take, in the order of the checkpoint.
    """

    matrices: tuple[MatrixReport, ...]
    model: ModelReport
    left_dense: tuple[LeftDense, ...] = ()
    notices: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    finetuned: tuple[FineTuneReport, ...] = ()
    calibrated: tuple[CalibrationReport, ...] = ()
    untouched: UntouchedReport | None = None
    on_inputs: tuple[InputsReport, ...] = ()
    bench: BenchReport | None = None
    expected_speed: ExpectedSpeed | None = None
    layers: tuple[LayerReport, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {
            "matrices": [matrix.to_dict() for matrix in self.matrices],
            "model": self.model.to_dict(),
            "left_dense": [asdict(left) for left in self.left_dense],
            "notices": list(self.notices),
            "advice": list(self.advice),
            "finetuned": [asdict(training) for training in self.finetuned],
            "calibrated": [asdict(calibration) for calibration in self.calibrated],
            "untouched": None if self.untouched is None else asdict(self.untouched),
            "on_inputs": [asdict(each) for each in self.on_inputs],
            "bench": None if self.bench is None else self.bench.to_dict(),
            "expected_speed": None if self.expected_speed is None else asdict(self.expected_speed),
            "layers": [asdict(layer) for layer in self.layers],
        }
