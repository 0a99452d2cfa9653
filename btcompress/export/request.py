"""What is asked of an export to ONNX, and what comes of it: frozen values, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from btcompress.errors import BTCompressError

#: How the steps of a layer are written: ONNX's operator of the cell, or a ``Scan`` over the definition of a step.
Steps = Literal["lstm", "gru", "rnn", "scan"]

#: What may be asked of that: any, an operator of the cell, of which ``"lstm"`` is another name, or a ``Scan``.
FormRequest = Literal["auto", "operator", "scan", "lstm"]

#: When numbers in few bits become floats: once, as a session is made; or at each run, by ``DequantizeLinear``.
Dequantize = Literal["load", "run"]

#: More sequences or steps than anybody means.
_MOST = 10**6


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """How recurrent layers are written as ONNX graphs.

    Attributes:
        batch: sequences in a run for which the graph is to be fast; it runs with any number.
        steps: of each sequence in a run, likewise.
        form: how the steps of every layer are written: ``"operator"`` for ONNX's of the cell (``"lstm"`` says the
            same), ``"scan"`` for the definition step by step, ``"auto"`` for whichever is faster.
        lengths: whether the graph takes the number of steps of each sequence.
        batch_first: whether ``x`` and ``y`` are ``(B, T, ...)``.
        int8: compute matrix products in integers.
        dequantize: when numbers in few bits become floats.

    Raises:
        BTCompressError: a number is out of range, or there is no such form.
    """

    batch: int = 1
    steps: int = 1
    form: FormRequest = "auto"
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
        known = {"form": get_args(FormRequest), "dequantize": get_args(Dequantize)}
        for name, values in known.items():
            if (given := getattr(self, name)) not in values:
                raise BTCompressError(
                    f"{name} must be {', '.join(values[:-1])} or {values[-1]}, but {given!r:.30} was given."
                )
        if self.form == "lstm":
            object.__setattr__(self, "form", "operator")


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A graph that was written.

    Attributes:
        path: its file.
        lstm: name of the layer; empty at the top of a checkpoint, or for a whole network.
        forms: how the steps of each layer and direction are written, by its suffix such as ``"l0_reverse"``.
        n_bytes: of the file.
        opset: of ONNX's operators.
        tensor_bytes: of the layer's tensors as the result stores them; None for a whole network.
        error: largest difference of its outputs from the module's on random inputs, over the module's largest output;
            None where onnxruntime is not installed.
        int8_error: of a graph that computes in integers, the same beside the graph that does not.
        notices: what was not done.
        warnings: where it is not to be trusted.
    """

    path: Path
    lstm: str
    forms: Mapping[str, Steps]
    n_bytes: int
    opset: int
    tensor_bytes: int | None = None
    error: float | None = None
    int8_error: float | None = None
    notices: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form."""
        lists = {name: list(getattr(self, name)) for name in ("notices", "warnings")}
        return {**asdict(self), "path": str(self.path), "forms": dict(self.forms), **lists}
