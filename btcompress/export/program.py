"""The recurrent layers of a result as programs that torch alone runs, each checked before it takes its name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry
from btcompress.errors import BTCompressError
from btcompress.export.checking import TIMES, drawn_inputs, in_float64, layer_error, module_outputs
from btcompress.export.modules import ExportedLayer, layer_module, whole
from btcompress.export.record import RECORD, record_of
from btcompress.export.targets import planned, replacing_all, shown_name
from btcompress.models import Compressed, opened
from btcompress.nn.layers import BTRecurrent
from btcompress.nn.weight import Multiplier, Weight, multiply

#: Told the file of each program before it is written.
OnProgram = Callable[[Path], None]

#: Steps and sequences that a program is made from: of 1, torch would take them for constants.
_TRACED = (3, 2)
#: And of those that it is checked on.
_CHECKED = ((6, 3), (1, 1))
#: Errors that are rounding, over the largest output: so many times the precision of the dtype, at most this, or so many
#: times the error of the module itself.
_ROUNDINGS, _MOST = 100, 0.05


@dataclass(frozen=True, slots=True)
class ExportedProgram:
    """A program that was written.

    Attributes:
        path: its file.
        lstm: name of the layer; empty at the top of a checkpoint.
        n_bytes: of the file.
        tensor_bytes: of the layer's tensors as the result stores them.
        error: largest difference of its outputs from those in float64 on random inputs, over the largest of these.
    """

    path: Path
    lstm: str
    n_bytes: int
    tensor_bytes: int
    error: float

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {**asdict(self), "path": str(self.path)}


def export_program(
    compressed: Compressed,
    path: str | PathLike[str],
    *,
    lstm: str | None = None,
    batch_first: bool = False,
    one_step: bool = False,
    force: bool = False,
    on_program: OnProgram | None = None,
) -> tuple[ExportedProgram, ...]:
    """Write each LSTM, GRU and plain RNN of a result as a ``torch.export`` program, which torch alone loads and runs.

    Inputs are ``x`` ``(T, B, I)``, ``h0`` and ``c0`` ``(layers * directions, B, H)``; outputs are ``y``
    ``(T, B, directions * H)``, ``hn`` and ``cn``; ``H`` of ``h0``, ``hn`` and ``y`` is the projected size, if there is
    one. LSTMs alone have ``c0`` and ``cn``. All are of the layer's dtype, and ``T`` and ``B`` may be any from 1 on. A
    cell is a layer of any number of steps. The file holds cores and factors, in the layer's dtype; matrices are formed
    of them in the program.

    Args:
        compressed: a result file, or what :func:`btcompress.load` or :func:`btcompress.factorize` gave.
        path: the file; with several layers, ``OUT.NAME.pt2`` of ``OUT.pt2`` for each.
        lstm: the name of the only one; None for all that have a matrix that was factorized or rounded.
        batch_first: whether ``x`` and ``y`` are ``(B, T, ...)``.
        one_step: whether the programs take one step at each call, ``T = 1``: by factors alone, no matrix is formed.
        force: replace existing files.
        on_program: told each file before it is written.

    Returns:
        What was written, in the result's order.

    Raises:
        BTCompressError: there is no such LSTM, torch cannot export it, or what was written computes something else;
            there is no new file then.
        OutputError: a file cannot or may not be written there.
        CheckpointError: the result cannot be read.
    """
    result = opened(compressed)
    pairs, found = planned(result, path, lstm, force=force), []
    with replacing_all(target for _, target in pairs) as temporaries:
        for (entry, target), temporary in zip(pairs, temporaries, strict=True):
            if on_program is not None:
                on_program(target)
            written = _written(result, entry, temporary, _Request(batch_first, one_step))
            found.append(replace(written, path=target))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Request:
    """How programs are written."""

    batch_first: bool = False
    one_step: bool = False

    def drawn(self, entry: RecurrentEntry, steps: int, batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Random inputs and states, by name."""
        inputs = drawn_inputs(entry, 1 if self.one_step else steps, batch, batch_first=self.batch_first)
        return {name: each.to(dtype) for name, each in inputs.items()}


def _one_step(layer: nn.Module, x: Any, states: Sequence[Tensor]) -> tuple[Any, ...]:  # noqa: ANN401 - as any run
    """One step of a recurrent layer as it is defined, by its factors: ``(1, B, I)``, or ``(B, 1, I)``."""
    if not isinstance(layer, BTRecurrent):
        return whole(layer, x, states)
    time, finals = int(layer.batch_first), list[tuple[Tensor, ...]]()
    rows = x.squeeze(time)
    for directions in layer.layers().values():
        outputs = []
        for own in directions:
            before = tuple(each[len(finals)] for each in states)
            z = multiply(rows, _by_factors(own.w), own.bias)
            finals.append(own.cell.step(z, before, [_by_factors(each) for each in own.recurrent], own.recurrent_bias))
            outputs.append(finals[-1][0])
        rows = torch.cat(outputs, dim=-1)
    return rows.unsqueeze(time), *(torch.stack(each) for each in zip(*finals, strict=True))


def _by_factors(weight: Weight) -> Multiplier:
    return weight if isinstance(weight, Tensor) else weight.prepare()


def _written(result: CompressedCheckpoint, entry: RecurrentEntry, path: Path, request: _Request) -> ExportedProgram:
    module = layer_module(result, entry, batch_first=request.batch_first)
    program = _program_of(module, entry, request)
    with warnings.catch_warnings():
        # Of endings of names, and of formats to come.
        warnings.simplefilter("ignore")
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={RECORD: json.dumps(record_of(result, entry))})
        with path.open("rb") as file:
            loaded = torch.export.load(file).module()
    error = _check(loaded, module, entry, request)
    return ExportedProgram(path, entry.name, path.stat().st_size, result.only(entry.keys).n_bytes, error)


def _program_of(module: ExportedLayer, entry: RecurrentEntry, request: _Request) -> torch.export.ExportedProgram:
    """The program of a layer, for any number of sequences, and of steps unless it takes one.

    Raises:
        BTCompressError: torch cannot make it.
    """
    dtype = next(module.parameters()).dtype
    drawn = request.drawn(entry, *_TRACED, dtype)
    example = tuple(torch.zeros_like(each) for each in drawn.values())
    steps, batch = torch.export.Dim("steps", min=1), torch.export.Dim("batch", min=1)
    x = {0: batch, 1: steps} if request.batch_first else {0: steps, 1: batch}
    if request.one_step:
        x = {axis: size for axis, size in x.items() if size is batch}
    sizes = {"x": x, **{name: {1: batch} for name in drawn if name != "x"}}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = type(module)(module.layer, _one_step) if request.one_step else module
            program = torch.export.export(traced, example, dynamic_shapes=sizes, strict=False)
    except (RuntimeError, ValueError) as error:
        why = shorten(str(error).partition("\n")[0], 200, placeholder=" ...")
        raise BTCompressError(
            f"torch cannot export {shown_name(entry)} ({why}), so nothing was written. Export it to ONNX."
        ) from error
    for node in program.graph.nodes:
        # Where this package's code lay on this machine.
        node.meta.pop("stack_trace", None)
    return program


def _check(program: nn.Module, module: ExportedLayer, entry: RecurrentEntry, request: _Request) -> float:
    """Compare what was written with the module, which is converted to float64.

    Raises:
        BTCompressError: the difference is more than rounding explains.
    """
    dtype = next(module.parameters()).dtype
    every = [request.drawn(entry, *size, dtype) for size in _CHECKED]
    with torch.no_grad():
        found = [list(program(*inputs.values())) for inputs in every]
    rounded = [module_outputs(module, inputs, batch_first=request.batch_first) for inputs in every]
    module.double()
    exact = [
        module_outputs(
            module, {name: in_float64(each) for name, each in inputs.items()}, batch_first=request.batch_first
        )
        for inputs in every
    ]
    error, own = (
        max(layer_error(outputs, right) for outputs, right in zip(each, exact, strict=True))
        for each in (found, rounded)
    )
    most = max(min(_ROUNDINGS * torch.finfo(dtype).eps, _MOST), TIMES * own)
    if not error <= most:
        raise BTCompressError(
            f"the program's outputs are off by {error:.1e} of the largest, where rounding explains {most:.1e}, so "
            "nothing was written. Report this."
        )
    return error
