"""What is to be done, as frozen values that are checked when they are made and handed down whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, get_args

from btcompress.calibration import CalibrationRequest, SampleInputs
from btcompress.errors import BTCompressError
from btcompress.finetune import FineTuneRequest, TrainConfig
from btcompress.finetune.references import references, sources
from btcompress.fit import FitOptions
from btcompress.kinds import MatrixKind, check_kinds
from btcompress.modes import Objective, ShapeRequest
from btcompress.packing import FLOATS, Integers, Precision
from btcompress.plan import Of, PricedPlan, Wish
from btcompress.recipe.bits import AUTO, Half, bits_of, bytes_of
from btcompress.recipe.plain import plain, without_defaults
from btcompress.shapes import Gates, Nonlinearity


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizeStep:
    """Write matrices of a checkpoint in block-term form (Ye et al. 2018, eq. 4), in fewer bits, or both.

    Those are the input-to-hidden matrices of every LSTM, GRU and plain RNN, or what ``matrices`` and ``layers`` say.
    Their forms are of the ranks given, or chosen so that a wish is met at the least loss, or those of a plan; with bits
    alone they stay dense and are rounded.

    Attributes:
        matrices: the kinds to take: ``"input"``, ``weight_ih_*`` of recurrent layers; ``"recurrent"``, their
            ``weight_hh_*`` and ``weight_hr_*``; ``"linear"``, weights of linear layers.
        layers: patterns of the matrices to take, or with ``!`` to leave out; all when empty. A linear layer
            without a bias is taken only where a pattern is its very key: it may be an embedding. Then it is best
            taken with bits alone, which leave it an embedding.
        allow_growth: also factorize a matrix that this makes larger.
        allow_nonfinite: leave a matrix dense that holds NaN or infinity; else it is refused.
        nonlinearity: ``"tanh"`` or ``"relu"``: that of plain RNNs, where the file does not say it; ``"tanh"`` when left
            out.
        container: where a file holds several state dicts, the path of the one to read.
        strict: refuse a file that holds more than weights.
        cp_rank: ``N``, blocks per matrix; 1 when left out.
        tucker_rank: ``R`` for all modes, or one per mode; lowered where the modes hold less; 4 when left out.
        in_modes: ``(I_1..I_d)`` for the matrices whose inputs they multiply to; chosen when left out.
        out_modes: ``(J_1..J_d)``, likewise for rows, all four gates included when fused.
        order: ``d``; chosen when left out.
        input_shape: shape whose C-order flattening is the input; modes are then cut along its axes.
        gates: one form for all four gates, or one for each; with a wish, of forms with a core.
        objective: with ``"speed"``, mode sizes are chosen among about equally small ones by the time of their product,
            and a wish weighs the time of forms beside their errors.
        target_ratio: a wish: so many times smaller at least, in parameters or bytes, as ``of`` says.
        max_params: a wish: parameters after, at most; instead of a ratio.
        max_bytes: a wish: bytes after, at most; instead of a ratio. A number, or a size such as ``"400k"``, in powers
            of 1,000.
        max_error: a wish: weight error of every matrix, at most; alone, or with one of the three.
        max_activation_error: a wish: activation error of every matrix on samples held back, at most; likewise.
        of: what a ratio or a size is of. ``"matrices"``: of the parameters of the chosen matrices, or with
            ``max_bytes`` of their bytes; ``"model"``: of all parameters, or with ``max_bytes`` of the bytes of the
            file; ``"bytes"``: of the bytes of the chosen matrices; ``"file"``: of those of the file, of which a ratio
            is that of the bytes of all tensors.
        bits: how the numbers of the chosen matrices are stored: integers of ``2`` to ``8`` bits, ``"float16"`` or
            ``"bfloat16"``; where the matrices get cores and factors, of these. Without ranks, wish and plan they stay
            dense. ``"auto"``, and left out with a wish in bytes: chosen for each matrix together with its form. Else
            left out: as they are. A plan says itself which.
        group: with bits that are integers: columns that share a scale and a zero point; 32 when left out.
        others: ``"float16"`` or ``"bfloat16"``: how all other floating-point tensors are stored; as they are when left
            out.
        plan: a plan file, or what :func:`btcompress.plan_for` chose; ranks, modes and layers are then its own.
        order_units: give the rows and columns of a matrix an order of their own, or the hidden units of a layer
            one order in all its matrices, where they fit so much better in it that the integers stored with it pay;
            with a wish, price forms in such orders too. A plan says itself which sides have an order.
        calibration: sample inputs of recurrent and linear layers: forms are chosen and fitted by what they give on
            these, then trained to give the dense hidden states.
        calibration_epochs: passes of that training over all layers of an LSTM, GRU or RNN together; single layers of
            several are trained before, with half as many each. 0 stops after the fit to the inputs.
        calibration_lr: its learning rate at its peak; where left out, one that suits how near the fit to the inputs
            is.
        max_sweeps: most joint least-squares sweeps of a fit.
        restarts: further random starts of each fit; the best is kept.
        tolerance: a sweep that lowers the error by less than this share of it is the last.
        seed: of every random draw.
        device: where to compute, as torch names devices; no part of what is recorded.

    Raises:
        BTCompressError: a value is out of its range, or two contradict one another.
    """

    kind: ClassVar[str] = "factorize"

    matrices: Sequence[MatrixKind] = ("input",)
    layers: Sequence[str] = ()
    allow_growth: bool = False
    allow_nonfinite: bool = False
    nonlinearity: Nonlinearity | None = None
    container: str | None = None
    strict: bool = False
    cp_rank: int | None = None
    tucker_rank: int | Sequence[int] | None = None
    in_modes: Sequence[int] | None = None
    out_modes: Sequence[int] | None = None
    order: int | None = None
    input_shape: Sequence[int] | None = None
    gates: Gates = "fused"
    objective: Objective = "size"
    target_ratio: float | None = None
    max_params: int | None = None
    max_error: float | None = None
    max_activation_error: float | None = None
    max_bytes: int | str | None = None
    of: Of = "matrices"
    bits: int | str | None = None
    group: int | None = None
    others: Half | None = None
    plan: Path | PricedPlan | None = None
    order_units: bool = False
    calibration: Sequence[SampleInputs] = ()
    calibration_epochs: int = 10
    calibration_lr: float | None = None
    max_sweeps: int = 100
    restarts: int = 0
    tolerance: float = 1e-5
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("layers", "tucker_rank", "in_modes", "out_modes", "input_shape", "calibration"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        for name in ("target_ratio", "max_error", "max_activation_error", "calibration_lr", "tolerance"):
            value = getattr(self, name)
            object.__setattr__(self, name, float(value) if isinstance(value, int) else value)
        object.__setattr__(self, "matrices", check_kinds(self.matrices))
        object.__setattr__(self, "max_bytes", bytes_of(self.max_bytes))
        self._check_bits()
        _ = (self.shapes, self.wish, self.fit_options, self.training)
        ranks = (self.cp_rank, self.tucker_rank)
        if self.wish is not None:
            _refuse("a wish leaves the ranks to be chosen", *ranks, self.plan)
        if self.plan is not None:
            sizes = (self.in_modes, self.out_modes, self.order, self.input_shape)
            gates = None if self.gates == "fused" else self.gates
            objective = None if self.objective == "size" else self.objective
            _refuse("a plan says it all", *ranks, *sizes, *self.layers, gates, objective, self.bits, self.group)
        if self.rounds_only:
            self._check_dense()
        if self.nonlinearity is not None and self.nonlinearity not in get_args(Nonlinearity):
            given = self.nonlinearity
            raise BTCompressError(
                f"nonlinearity must be {' or '.join(get_args(Nonlinearity))}, but {given!r} was given."
            )
        if self.calibration:
            _ = self.calibration_request

    def _check_bits(self) -> None:
        """Bring bits into one way of writing, and refuse what says nothing, or nothing that can be."""
        bits = bits_of(self.bits)
        if bits == AUTO:
            if self.max_bytes is None and self.of not in ("bytes", "file"):
                raise BTCompressError(
                    "bits are auto, which leaves them to a wish in bytes, but there is none. Give one (--max-bytes, or "
                    "--target-ratio with --of bytes or file), or say which bits."
                )
            bits = None
        object.__setattr__(self, "bits", bits)
        if self.group is not None and not isinstance(bits, int):
            raise BTCompressError(
                "group says how many columns of integers share a scale, but no bits of integers were given. Give bits "
                "from 2 to 8 with it (--bits), or leave it out."
            )
        if self.others is not None and self.others not in get_args(Half):
            raise BTCompressError(f"others must be {' or '.join(get_args(Half))}, but {self.others!r} was given.")

    def _check_dense(self) -> None:
        """Refuse what is about the form of matrices that stay dense."""
        about_forms = {name: getattr(self, name) for name in ("in_modes", "out_modes", "order", "input_shape")}
        about_forms |= {"gates": self.gates != "fused" or None, "order_units": self.order_units or None}
        about_forms |= {"objective": self.objective != "size" or None}
        given = [name for name, value in about_forms.items() if value is not None]
        if given:
            raise BTCompressError(
                f"bits without ranks, a wish or a plan leave the matrices dense, but {', '.join(given)} was given, "
                "which is about block terms. Give ranks with it (--cp-rank, --tucker-rank), or leave it out."
            )

    @property
    def shapes(self) -> ShapeRequest:
        """The shapes asked for."""
        rank = 4 if self.tucker_rank is None else self.tucker_rank
        in_modes, out_modes, input_shape = (
            None if sizes is None else tuple(sizes) for sizes in (self.in_modes, self.out_modes, self.input_shape)
        )
        return ShapeRequest(
            1 if self.cp_rank is None else self.cp_rank,
            rank if isinstance(rank, int) else tuple(rank),
            in_modes,
            out_modes,
            self.order,
            input_shape,
            self.gates,
            self.objective,
        )

    @property
    def wish(self) -> Wish | None:
        """What is wished for instead of ranks, if anything is."""
        max_bytes = bytes_of(self.max_bytes)
        sizes, errors = (self.target_ratio, self.max_params, max_bytes), (self.max_error, self.max_activation_error)
        if all(size is None for size in sizes):
            # Of an error alone, the model says nothing, which does no harm; bytes would be thought to be spared.
            if self.of in ("bytes", "file") or (self.of != "matrices" and errors == (None, None)):
                raise BTCompressError(
                    f"of says what a ratio or a size is of, here {self.of}, but there is none. Give a target ratio, or "
                    "a number of parameters or of bytes (--target-ratio, --max-params, --max-bytes) with it."
                )
            if errors == (None, None):
                return None
        return Wish(
            self.target_ratio,
            self.max_params,
            self.max_error,
            self.of,
            self.max_activation_error,
            max_bytes=max_bytes,
        )

    @property
    def precision(self) -> Precision | None:
        """How the numbers of all chosen matrices are to be stored; None where that is chosen, or stays as it is."""
        if self.bits is None:
            return None
        if isinstance(self.bits, str):
            return FLOATS[self.bits]
        return Integers(self.bits) if self.group is None else Integers(self.bits, self.group)

    @property
    def rounds_only(self) -> bool:
        """Whether the chosen matrices stay dense and are rounded: there are bits, and nothing about forms."""
        forms = (self.cp_rank, self.tucker_rank, self.plan, self.wish)
        return self.precision is not None and all(form is None for form in forms)

    @property
    def fit_options(self) -> FitOptions:
        """How hard fits try, and where."""
        return FitOptions(self.max_sweeps, self.tolerance, self.restarts, self.seed, self.device)

    @property
    def calibration_request(self) -> CalibrationRequest:
        """What to calibrate on."""
        return CalibrationRequest(tuple(self.calibration), train=self.calibration_epochs > 0)

    @property
    def training(self) -> TrainConfig:
        """How to train while calibrating."""
        if self.calibration_epochs < 0:
            raise BTCompressError(f"calibration_epochs must be at least 0, but {self.calibration_epochs} was given.")
        cpu = self.device == "cpu"
        return TrainConfig(
            epochs=max(self.calibration_epochs, 1), learning_rate=self.calibration_lr, seed=self.seed, cpu=cpu
        )

    @property
    def code(self) -> tuple[str, ...]:
        """Code of the user's that it would run, as ``package.module:name``."""
        return references([each.data for each in self.calibration])

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that are read beside the checkpoint, and never written over: those that user code comes from too."""
        plan = (self.plan,) if isinstance(self.plan, Path) else ()
        return (*plan, *(file for each in self.calibration for file in sources(each.data)))

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON and YAML know it."""
        if isinstance(self.plan, PricedPlan):
            # What such a plan was chosen for is the recipe's; the plan itself is not text.
            return {"plan": {"wish": without_defaults(self.plan.wish)}, **replace(self, plan=None).to_dict()}
        return without_defaults(self)

    @property
    def record(self) -> dict[str, Any]:
        """The same for a result: where it was computed changes nothing of it."""
        return replace(self, device="cpu").to_dict()


@dataclass(frozen=True, slots=True)
class FineTuneStep:
    """Train the result of the step before.

    Attributes:
        inputs: fields of :class:`btcompress.finetune.FineTuneRequest` other than those that the steps around it give:
            ``compressed`` and ``output``.
        config: how to train.

    Raises:
        BTCompressError: there is no such field, or ``data`` is missing.
    """

    kind: ClassVar[str] = "finetune"

    inputs: Mapping[str, Any]
    config: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        known = [each.name for each in fields(FineTuneRequest) if each.name not in ("compressed", "output")]
        unknown = [name for name in self.inputs if name not in known]
        if unknown or "data" not in self.inputs:
            what = f"there is no {unknown[0]} in fine-tuning" if unknown else "fine-tuning has no data"
            raise BTCompressError(f"{what}. Give data, and what else it needs of {', '.join(known)}.")

    @classmethod
    def of(cls, request: FineTuneRequest, config: TrainConfig) -> FineTuneStep:
        """The step that does what a request says."""
        given = {each.name: getattr(request, each.name) for each in fields(request) if each.default is not MISSING}
        inputs = {name: value for name, value in given.items() if value != _default_of(name)}
        return cls({"data": request.data, **inputs}, config)

    def request(self, compressed: Path, output: Path) -> FineTuneRequest:
        """The training of a result file."""
        return FineTuneRequest(compressed=compressed, output=output, **self.inputs)

    @property
    def code(self) -> tuple[str, ...]:
        """Code of the user's that it would run, as ``package.module:name``."""
        return references([self.inputs[name] for name in ("data", "held", "model", "loss") if self.inputs.get(name)])

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that are read beside the result file, and never written over."""
        return self.request(Path(), Path()).inputs[1:]

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON and YAML know it."""
        return {**{name: plain(value) for name, value in self.inputs.items()}, **without_defaults(self.config)}


@dataclass(frozen=True, slots=True)
class DenseStep:
    """Form the dense state dict of the result of the step before, to factorize it anew."""

    kind: ClassVar[str] = "dense"

    code: tuple[str, ...] = field(default=(), init=False)
    files: tuple[Path, ...] = field(default=(), init=False)

    def to_dict(self) -> dict[str, Any]:
        """Nothing: there is no choice."""
        return {}


Step: TypeAlias = FactorizeStep | FineTuneStep | DenseStep


@dataclass(frozen=True, slots=True)
class Recipe:
    """A job of one or several steps, each on what the one before gave.

    Attributes:
        model: the dense checkpoint, or the result file, to begin with.
        output: the result file of the last step; the results of those before lie beside it.
        steps: what to do, in turn.

    Raises:
        BTCompressError: there is no step, or one cannot follow the one before.
    """

    model: Path
    output: Path
    steps: Sequence[Step]

    if TYPE_CHECKING:
        # What is given may be text; what is kept is a path.
        def __init__(
            self, model: str | os.PathLike[str], output: str | os.PathLike[str], steps: Sequence[Step]
        ) -> None: ...

    def __post_init__(self) -> None:
        for name in ("model", "output"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "steps", tuple(self.steps))
        if not self.steps:
            raise BTCompressError("the recipe has no steps. Give at least one: factorize, finetune or dense.")
        last = self.steps[-1].kind
        if last == DenseStep.kind:
            raise BTCompressError("the recipe ends in a dense state dict. Let a step factorize come after it.")
        for before, step in zip(self.steps, self.steps[1:], strict=False):
            if before.kind == DenseStep.kind and step.kind != FactorizeStep.kind:
                raise BTCompressError(f"a step {step.kind} cannot follow a step dense: it has no block terms then.")

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The file that each step writes."""
        stem = self.output.name.removesuffix(self.output.suffix)
        return (*self._outputs_before(stem), self.output)

    def _outputs_before(self, stem: str) -> Iterator[Path]:
        for number, step in enumerate(self.steps[:-1], 1):
            yield self.output.with_name(f"{stem}.{number}-{step.kind}.safetensors")

    def to_dict(self) -> dict[str, Any]:
        """As YAML knows it."""
        steps = [{step.kind: step.to_dict()} for step in self.steps]
        return {"model": str(self.model), "output": str(self.output), "steps": steps}


def _default_of(name: str) -> object:
    return next(each.default for each in fields(FineTuneRequest) if each.name == name)


def sample_inputs(text: str, scale: float = 1.0) -> SampleInputs:
    """Sample inputs from ``[LAYER=]FILE`` or ``[LAYER=]MODULE:FACTORY``; a file of just this name is always meant.

    Args:
        text: as on the command line.
        scale: what to multiply the inputs of files by.
    """
    layer, equals, data = text.partition("=")
    if not equals or not data or os.path.lexists(text) or os.sep in layer:
        return SampleInputs(text, None, scale)
    return SampleInputs(data, layer, scale)


def _refuse(reason: str, *options: object) -> None:
    """Refuse options, of which any that is not None contradicts what others say."""
    if any(option is not None for option in options):
        raise BTCompressError(
            f"{reason}, but options that say otherwise were given as well. Give one of: a wish (--target-ratio, "
            "--max-params, --max-bytes, --max-error, --max-activation-error), --plan, or ranks, bits and what goes "
            "with them."
        )
