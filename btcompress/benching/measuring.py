"""Measure how long the layers of a file take, and what else: their block terms and the dense matrices, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from btcompress.benching.counting import Counts, count
from btcompress.benching.graphs import Graph, block_term_graphs, dense_graphs, require_graphs, without_graphs
from btcompress.benching.machine import in_threads, machine, with_rest, without_collection
from btcompress.benching.request import BenchRequest
from btcompress.benching.turns import Timed, Turns, take_turns
from btcompress.benching.ways import Layer, State, block_term_layer, dense_layers, inputs_of, tried
from btcompress.checkpoint import (
    Checkpoint,
    CompressedCheckpoint,
    RecurrentEntry,
    check_plain,
    check_target,
    oddity,
    read,
    read_compressed,
    record_bench,
)
from btcompress.devices import check_device
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.export.modules import dense_module, dtype_of
from btcompress.export.targets import noun
from btcompress.memory import require
from btcompress.reporting.speed import noise_warning, speed_advice
from btcompress.text import listed
from btcompress.timings import BenchCase, BenchProgress, BenchReport, LeftOut, Mode, WayTiming

#: The dense ways of a layer in torch and in ONNX Runtime, and those that there are not.
DenseLayers = tuple[list[Layer], list[LeftOut]]
DenseGraphs = tuple[list[Graph], list[LeftOut]]

OnBench = Callable[[BenchProgress], None]

#: Copies of a layer's dense weights at a time: formed, in a layer, and in training their gradients; and more for ONNX
#: Runtime, as a graph, its bytes, and what sessions make of them.
_COPIES, _COPIES_IN_TRAINING, _COPIES_IN_GRAPHS = 2, 3, 6


def bench(
    compressed: str | PathLike[str] | CompressedCheckpoint,
    *,
    against: str | PathLike[str] | Checkpoint | None = None,
    lstm: str | None = None,
    batch: Sequence[int] = (1, 16),
    steps: Sequence[int] = (1, 50),
    train: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    seconds: float = 2.0,
    seed: int = 0,
    runtime: str | Sequence[str] = ("torch",),
    record: bool = False,
    on_progress: OnBench | None = None,
) -> BenchReport:
    """Measure the layers of a file that have block terms against the dense ones, all ways in turns in this process.

    Args:
        compressed: a result file, or what :func:`btcompress.load` or :func:`btcompress.factorize` gave.
        against: the dense checkpoint, whose weights the dense ways then have; without it they are formed from the
            file. The speed does not depend on their values.
        lstm: name of the only layer to measure; None for all that have block terms.
        batch: numbers of sequences in a call.
        steps: numbers of steps of each sequence in a call.
        train: measure training as well: a call and the backward pass to all parameters.
        device: ``"cpu"``, or a CUDA device.
        threads: to compute in; None for as many as torch takes. It has as many as before again afterwards.
        seconds: for each case, shared by all ways; each is run several times, however long it takes.
        seed: of the random inputs.
        runtime: what runs them: ``"torch"``, ``"onnx"`` for ONNX Runtime, which predicts on the CPU alone, or both.
        record: write what was measured into the file's record as well, in the place of the last bench there.
        on_progress: told where the bench stands.

    Raises:
        BTCompressError: a number is out of range, there is no such device or LSTM, no LSTM has block terms, a library
            for ONNX is not installed, or something is to be recorded of what is in no file.
        CheckpointError: a file cannot be read, or ``against`` does not hold these LSTMs.
        OutputError: what was measured cannot be recorded.
        MemoryLimitError: the dense LSTM needs more memory than there is.
    """
    runtimes = tuple(dict.fromkeys([runtime] if isinstance(runtime, str) else runtime))
    request = BenchRequest(lstm, tuple(batch), tuple(steps), train, device, threads, seconds, seed, runtimes)
    path = None if isinstance(compressed, CompressedCheckpoint) else Path(compressed)
    if record and path is None:
        raise BTCompressError("only the bench of a file can be recorded. Save the result, and give the file.")
    check_device(request.device)
    if torch.device(request.device).type not in ("cpu", "cuda"):
        raise BTCompressError(f"on {request.device!r:.40} nothing is measured. Use cpu, or a CUDA device.")
    if "onnx" in request.runtimes:
        require_graphs()
    if record and path is not None:
        check_target(path.resolve(), force=True)
    opened = compressed if isinstance(compressed, CompressedCheckpoint) else read_compressed(compressed)
    dense = against if against is None or isinstance(against, Checkpoint) else read(against)
    entries, notices = _chosen(opened, request.lstm)
    _check_dense(entries, dense)
    with in_threads(request.threads), _on(request.device):
        cases = tuple(_cases(_Bench(opened, dense, request, on_progress), entries))
        here = machine(request.device, request.runtimes)
        report = BenchReport(here, cases, tuple(notices), tuple(noise_warning(cases)), tuple(speed_advice(cases)))
    if record and path is not None:
        record_bench(path, report, opened)
    return report


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all cases share."""

    compressed: CompressedCheckpoint
    dense: Checkpoint | None
    request: BenchRequest
    on_progress: OnBench | None

    def tensors(self, entry: RecurrentEntry) -> Mapping[str, Tensor]:
        """The dense weights of a layer, by key."""
        if self.dense is not None:
            return self.dense.tensors
        return self.compressed.only(entry.keys).dense_state_dict()

    def tell(self, case: BenchProgress) -> None:
        if self.on_progress is not None:
            self.on_progress(case)


@dataclass(frozen=True, slots=True)
class _Dense:
    """The dense ways of a layer."""

    layers: DenseLayers
    graphs: DenseGraphs


def _on(device: str) -> torch.cuda.device | nullcontext[None]:
    """Where torch allocates and waits where no device is named."""
    return nullcontext() if torch.device(device).index is None else torch.cuda.device(device)


def _chosen(compressed: CompressedCheckpoint, name: str | None) -> tuple[list[RecurrentEntry], list[str]]:
    """The layers to measure, and a sentence on what else the file has and is not measured."""
    every = [entry for entry in compressed.recurrent() if isinstance(entry, RecurrentEntry)]
    factorized = [entry for entry in every if any(key in compressed.matrices for key in entry.matrix_keys)]
    names = [_named(entry) for entry in factorized]
    if not factorized:
        there = f"its {noun(every)}s, {listed([_named(entry) for entry in every])}, have none"
        raise BTCompressError(
            f"there is no {noun(every)} with matrices in block-term form in {compressed.source.name}, compressed: "
            f"{there if every else 'it has no LSTM'}. Only these run otherwise than dense ones."
        )
    chosen = [entry for entry in factorized if name is None or entry.name == name]
    if not chosen:
        raise BTCompressError(
            f"there is no {noun(factorized)} named {name!r} with block terms in the file. Those that there are: "
            f"{listed(names)}."
        )
    plain = [entry for entry in chosen if not entry.siblings]
    if not plain:
        check_plain(chosen[0], "a bench", "Measure it in your own code.")
    notices = [f"Not measured: {oddity(entry)}." for entry in chosen if entry.siblings]
    others = [_named(entry) for entry in every if entry not in factorized]
    if others and name is None:
        notices.append(f"Not measured, as no matrix of theirs is in block-term form: {listed(others)}.")
    keys = {key for entry in every for key in entry.matrix_keys}
    if (linear := [key for key in compressed.matrices if key not in keys]) and name is None:
        notices.append(f"Not measured, as they are no {noun(every)}s' matrices: {listed(linear)}.")
    return plain, notices


def _named(entry: RecurrentEntry) -> str:
    return entry.name or "(top)"


def _check_dense(entries: Sequence[RecurrentEntry], dense: Checkpoint | None) -> None:
    """Refuse a dense checkpoint whose layers are others."""
    if dense is None:
        return
    theirs = {each.name: each for each in dense.recurrent() if isinstance(each, RecurrentEntry)}
    for entry in entries:
        other = theirs.get(entry.name)
        if other is None:
            raise CheckpointError(
                f"{dense.source.name} has no {entry.class_name} named {_named(entry)}; those it has: "
                f"{listed([_named(each) for each in theirs.values()])}. Give the checkpoint that the result was made "
                "from."
            )
        # Sizes say the names and shapes of all tensors.
        pairs = ((each.name, getattr(entry, each.name), getattr(other, each.name)) for each in fields(entry))
        if wrong := [f"{name} {ours} in the file and {given}" for name, ours, given in pairs if ours != given]:
            raise CheckpointError(
                f"{_named(entry)} differs: {', '.join(wrong)} in {dense.source.name}. Give the checkpoint that the "
                "result was made from."
            )


def _cases(job: _Bench, entries: Sequence[RecurrentEntry]) -> Iterator[BenchCase]:
    request = job.request
    sizes = [(batch, steps) for batch in request.batch for steps in request.steps]
    n_cases, index = len(entries) * len(request.modes) * len(sizes), 0
    for entry in entries:
        dtype = dtype_of(job.compressed, entry)
        _require_memory(entry, dtype, request)
        module = dense_module(entry, job.tensors(entry), dtype, request.device)
        graphs = dense_graphs(module, entry) if request.runs_graphs else ([], [])
        for mode in request.modes:
            dense = dense_layers(module, entry, request.device, mode) if "torch" in request.runtimes else ([], [])
            for batch, steps in sizes:
                progress = BenchProgress(entry.name, mode, batch, steps, index, n_cases, 0.0)
                yield _case(job, entry, _Dense(dense, graphs), dtype, progress)
                index += 1


def _require_memory(entry: RecurrentEntry, dtype: torch.dtype, request: BenchRequest) -> None:
    weights = sum(torch.Size(shape).numel() for shape in entry.shapes.values())
    inputs = max(request.batch) * max(request.steps) * (entry.input_size + 5 * entry.hidden_size * entry.num_layers)
    copies = (_COPIES_IN_TRAINING if request.train else _COPIES) + _COPIES_IN_GRAPHS * request.runs_graphs
    require(
        (copies * weights + inputs) * dtype.itemsize,
        f"Measuring {_named(entry)} beside the dense one",
        "Choose smaller batches or fewer steps, or measure on a larger machine.",
    )


def _case(job: _Bench, entry: RecurrentEntry, dense: _Dense, dtype: torch.dtype, progress: BenchProgress) -> BenchCase:
    """One layer in every way, at one batch size and number of steps."""
    request, mode = job.request, progress.mode
    job.tell(progress)
    x, state = inputs_of(entry, progress.batch, progress.steps, dtype, request.device, request.seed)
    layers, left_out = _layers(job, entry, dense.layers, dtype, mode, (x, state))
    graphs, not_written = _graphs(job, entry, dense.graphs, progress)
    calls = {layer.way: Timed(layer.call(x, state, mode), partial(layer.around, mode)) for layer in layers}
    calls |= {graph.way: Timed(graph.call(x, state)) for graph in graphs}
    if len(request.runtimes) > 1 and torch.get_num_threads() > 1:
        calls = {way: replace(timed, around=partial(with_rest, timed.around)) for way, timed in calls.items()}
    with without_collection():
        counts = {layer.way: _counted(layer, x, state, mode, request.device) for layer in layers}
        for graph in graphs:
            calls[graph.way].call()
        turns = take_turns(
            calls, request.seconds, request.device, lambda share: job.tell(replace(progress, share=share))
        )
    ways = []
    for layer in layers:
        seen = counts[layer.way]
        peak = None if seen.peak_bytes is None else layer.param_bytes + seen.peak_bytes
        operations = layer.operations
        if operations is None and mode == "prediction" and seen.operations is not None:
            operations = round(seen.operations / (progress.batch * progress.steps))
        ways.append(_timing(layer.way, turns[layer.way], layer.n_params, peak, operations))
    ways += [_timing(graph.way, turns[graph.way], graph.n_params) for graph in graphs]
    told = (*left_out, *not_written)
    return BenchCase(entry.name, mode, progress.batch, progress.steps, tuple(ways), told, entry.type.upper())


def _timing(
    way: str, turns: Turns, n_params: int, peak_bytes: int | None = None, operations: int | None = None
) -> WayTiming:
    times = (turns.median, turns.quartiles, turns.drift, len(turns.seconds), turns.n_calls)
    return WayTiming(way, *times, n_params, peak_bytes, operations)


def _layers(
    job: _Bench, entry: RecurrentEntry, dense: DenseLayers, dtype: torch.dtype, mode: Mode, given: tuple[Tensor, State]
) -> tuple[list[Layer], list[LeftOut]]:
    """The layers to measure, of the dense ones those that torch can run, and what is left out.

    The layer with block terms is a new one for each case: what it forms and keeps is then counted in each.
    """
    if "torch" not in job.request.runtimes:
        return [], []
    x, state = given
    found, left_out = dense[0], list(dense[1])
    layers = []
    for layer in found:
        failed = tried(layer, layer.call(x, state, mode), mode)
        if failed is None:
            layers.append(layer)
        else:
            left_out.append(failed)
    return [*layers, block_term_layer(job.compressed, entry, dtype, job.request.device, mode)], left_out


def _graphs(
    job: _Bench, entry: RecurrentEntry, dense: DenseGraphs, progress: BenchProgress
) -> tuple[list[Graph], list[LeftOut]]:
    """The graphs to measure, and what is left out; those with block terms are written for the case."""
    if "onnx" not in job.request.runtimes:
        return [], []
    if progress.mode == "training":
        return [], without_graphs("it predicts only")
    if not job.request.runs_graphs:
        return [], without_graphs("it is measured on the CPU alone")
    own, left_out = block_term_graphs(job.compressed, entry, progress.batch, progress.steps)
    return [*dense[0], *own], [*dense[1], *left_out]


def _counted(layer: Layer, x: Tensor, state: State, mode: Mode, device: str) -> Counts:
    layer.module.zero_grad()
    with layer.around(mode):
        return count(layer.call(x, state, mode), device)
