"""What is asked of an export to ONNX, and what comes of it: frozen values, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from btcompress.errors import BTCompressError

#: How the steps of a layer are written: ONNX's ``LSTM`` operator, or a ``Scan`` over the definition of a step.
Steps = Literal["lstm", "scan"]

#: When numbers in few bits become floats: once, as a session is made; or at each run, by ``DequantizeLinear``.
Dequantize = Literal["load", "run"]

#: More sequences or steps than anybody means.
_MOST = 10**6


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """How LSTMs are written as ONNX graphs.

    Attributes:
        batch: sequences in a run for which the graph is to be fast; it runs with any number.
        steps: of each sequence in a run, likewise.
        form: how the steps of every layer are written; ``"auto"`` for whichever is faster.
        lengths: whether the graph takes the number of steps of each sequence.
        batch_first: whether ``x`` and ``y`` are ``(B, T, ...)``.
        int8: compute matrix products in integers.
        dequantize: when numbers in few bits become floats.

    Raises:
        BTCompressError: a number is out of range, or there is no such form.
    """

    batch: int = 1
    steps: int = 1
    form: Literal["auto", "lstm", "scan"] = "auto"
    lengths: bool = False
    batch_first: bool = False
    int8: bool = False
    dequantize: Dequantize = "load"

    def __post_init__(self) -> None:
        for name in ("batch", "steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
                raise BTCompressError(
                    f"{name} must be a whole number from 1 to {_MOST:,}, but {value!r:.30} was given."
                )
        known = {"form": ("auto", *get_args(Steps)), "dequantize": get_args(Dequantize)}
        for name, values in known.items():
            if (given := getattr(self, name)) not in values:
                raise BTCompressError(
                    f"{name} must be {', '.join(values[:-1])} or {values[-1]}, but {given!r:.30} was given."
                )


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A graph that was written.

    Attributes:
        path: its file.
        lstm: name of the LSTM; empty at the top of a checkpoint, or for a whole network.
        forms: how the steps of each layer and direction are written, by its suffix such as ``"l0_reverse"``.
        n_bytes: of the file.
        opset: of ONNX's operators.
        error: largest difference of its outputs from the module's on random inputs, over the module's largest output;
            None where onnxruntime is not installed.
        int8_error: of a graph that computes in integers, the same beside the graph that does not.
    """

    path: Path
    lstm: str
    forms: Mapping[str, Steps]
    n_bytes: int
    opset: int
    error: float | None = None
    int8_error: float | None = None
    notices: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {**asdict(self), "path": str(self.path), "forms": dict(self.forms), "notices": list(self.notices)}
