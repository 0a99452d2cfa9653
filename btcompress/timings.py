"""What a bench measured: frozen values, checked where they come out of a file, and their JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

#: How a layer is run: its dense matrices through oneDNN's kernel, through torch's own on a CPU, or through cuDNN's on a
#: GPU; its matrices in torch's dynamic int8; or its block terms, however these pick to run. In ONNX Runtime its dense
#: matrices or its block terms, in floats or integers. A file may name others, which later versions measure.
WayName = Literal[
    "dense_onednn",
    "dense_native",
    "dense_cudnn",
    "int8",
    "block_terms",
    "onnx_dense",
    "onnx_dense_int8",
    "onnx_block_terms",
    "onnx_block_terms_int8",
    "onnx_block_terms_int8_lstm",
]

#: What runs layers.
Runtime = Literal["torch", "onnx"]

Mode = Literal["prediction", "training"]

_Seconds = Annotated[float, Meta(ge=1e-12, le=1e12)]
_Share = Annotated[float, Meta(ge=0, le=1e12)]
_Count = Annotated[int, Meta(ge=0, le=2**62)]
_Number = Annotated[int, Meta(ge=1, le=2**62)]


@dataclass(frozen=True, slots=True)
class Machine:
    """What times are of.

    Attributes:
        device: as torch calls it.
        name: of the processor or the GPU.
        threads: that torch computed in.
        torch: its version.
        onnxruntime: its version; None where it ran nothing.
    """

    device: str
    name: str
    threads: _Number
    torch: str
    onnxruntime: str | None = None


@dataclass(frozen=True, slots=True)
class WayTiming:
    """One way to run a layer.

    Attributes:
        way: which, one of :data:`WayName`.
        seconds: of a call, the median of all turns.
        quartiles: of the turns' seconds, the first and the third.
        drift: by how much the medians of the first and of the second half of the turns differ, over :attr:`seconds`.
        turns: that were measured.
        calls: one after another in each turn.
        params: numbers in the layer's parameters.
        peak_bytes: the most that torch had allocated at a time for the layer, its parameters included and its inputs
            not, from its making to its second call; None where torch does not tell.
        operations: multiplications and additions of matrix products in one step of one sequence, once what is kept
            from call to call is formed; None where they cannot be counted, and in training.
    """

    way: str
    seconds: _Seconds
    quartiles: tuple[_Seconds, _Seconds]
    drift: _Share
    turns: _Number
    calls: _Number
    params: _Count
    peak_bytes: _Count | None = None
    operations: _Count | None = None

    @property
    def spread(self) -> float:
        """The distance of the quartiles, over the median."""
        return (self.quartiles[1] - self.quartiles[0]) / self.seconds


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A way that was not measured.

    Attributes:
        way: which.
        reason: why, in words.
    """

    way: str
    reason: str


@dataclass(frozen=True, slots=True)
class BenchCase:
    """A recurrent layer at one batch size and number of steps, run in every way by turns.

    Attributes:
        lstm: its name; empty at the top of a file.
        mode: ``"prediction"``, a call without gradients; or ``"training"``, a call and the backward pass to all
            parameters.
        batch: sequences in a call.
        steps: of each sequence in a call, one call after the other where it is a cell.
        ways: that were measured.
        left_out: the others.
        kind: ``"LSTM"``, ``"GRU"`` or ``"RNN"``, whether layer or cell.
    """

    lstm: str
    mode: str
    batch: _Number
    steps: _Number
    ways: tuple[WayTiming, ...]
    left_out: tuple[LeftOut, ...] = ()
    kind: str = "LSTM"

    @property
    def dense(self) -> WayTiming | None:
        """The fastest way of the dense matrices in torch, int8 aside."""
        found = [way for way in self.ways if way.way.startswith("dense")]
        return min(found, key=lambda way: way.seconds, default=None)

    @property
    def block_terms(self) -> WayTiming | None:
        """The way of the block terms in torch."""
        return self._named("block_terms")

    @property
    def ratio(self) -> float | None:
        """Seconds of the dense layer over those of the block terms in torch, above 1 where these are faster."""
        return _ratio(self.dense, self.block_terms)

    @property
    def onnx_dense(self) -> WayTiming | None:
        """The way of the dense matrices in ONNX Runtime."""
        return self._named("onnx_dense")

    @property
    def onnx_block_terms(self) -> WayTiming | None:
        """The way of the block terms in ONNX Runtime."""
        return self._named("onnx_block_terms")

    @property
    def onnx_ratio(self) -> float | None:
        """Seconds of the dense layer over those of the block terms in ONNX Runtime, both in floats."""
        return _ratio(self.onnx_dense, self.onnx_block_terms)

    @property
    def compared(self) -> tuple[WayTiming, ...]:
        """The ways that the ratios are of."""
        pairs = ((self.dense, self.block_terms), (self.onnx_dense, self.onnx_block_terms))
        return tuple(way for pair in pairs for way in pair if way is not None)

    def _named(self, name: WayName) -> WayTiming | None:
        return next((way for way in self.ways if way.way == name), None)

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form."""
        steps = self.batch * self.steps
        ways = [
            {**asdict(way), "quartiles": list(way.quartiles), "steps_per_second": steps / way.seconds}
            for way in self.ways
        ]
        ratios = {"ratio": self.ratio, "onnx_ratio": self.onnx_ratio}
        return {**asdict(self), "ways": ways, "left_out": [asdict(each) for each in self.left_out], **ratios}


def _ratio(dense: WayTiming | None, own: WayTiming | None) -> float | None:
    return None if dense is None or own is None else dense.seconds / own.seconds


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What running the recurrent layers of a file took, beside the dense ones.

    Attributes:
        machine: on which.
        cases: one entry for each layer, mode, batch size and number of steps.
        notices: what was not measured.
        warnings: where the times are not to be trusted.
        advice: how fast the file is beside the dense layers.
    """

    machine: Machine
    cases: tuple[BenchCase, ...]
    notices: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {
            "machine": asdict(self.machine),
            "cases": [case.to_dict() for case in self.cases],
            "notices": list(self.notices),
            "warnings": list(self.warnings),
            "advice": list(self.advice),
        }


@dataclass(frozen=True, slots=True)
class BenchProgress:
    """Where a bench stands, handed to ``on_progress`` callbacks.

    Attributes:
        lstm: being measured.
        mode: likewise.
        batch: likewise.
        steps: likewise.
        index: cases done before it.
        count: cases in all.
        share: how much of this one is done, 0 to 1.
    """

    lstm: str
    mode: Mode
    batch: int
    steps: int
    index: int
    count: int
    share: float
