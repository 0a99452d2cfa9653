"""Hooks on the layers of a model while it runs, and the file that is written when it has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from btcompress.checkpoint.atomic import check_target, claimed
from btcompress.checkpoint.wrappers import plain_name
from btcompress.errors import BTCompressError
from btcompress.models import uncompiled
from btcompress.recorder.calls import CELLS, LINEAR, RECURRENT, call_of
from btcompress.recorder.sample import Sample
from btcompress.recorder.spool import Spool
from btcompress.recorder.streams import Streams
from btcompress.recorder.writing import write
from btcompress.seeds import check_seed
from btcompress.text import listed

_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was recorded of one layer so far.

    Attributes:
        sequences: that are kept.
        steps: of these.
        begun: sequences that there were in all.
        has_states: some of them began from states that are not zero.
    """

    sequences: int
    steps: int
    begun: int
    has_states: bool

    def __str__(self) -> str:
        states = ", with initial states" if self.has_states else ""
        return f"{self.sequences:,} of {self.begun:,} sequences, {self.steps:,} steps{states}"


class Recording:
    """What is being recorded, or was; printed, a line for each layer.

    Args:
        path: the file that is written in the end.
        samples: of each layer, by name.
    """

    def __init__(self, path: Path, samples: Mapping[str, Sample]) -> None:
        self.path = path
        self._samples = samples

    @property
    def layers(self) -> dict[str, Recorded]:
        """What there is so far of each layer, by its name."""
        return {name: _recorded(sample) for name, sample in self._samples.items()}

    def __str__(self) -> str:
        return "\n".join(f"{name or '(top)'}: {recorded}" for name, recorded in self.layers.items())


@contextmanager
def recording(
    model: nn.Module,
    path: str | PathLike[str],
    sequences: int = 1000,
    *,
    steps: int = 256,
    layers: Sequence[str] = (),
    linear: bool = False,
    seed: int = 0,
    force: bool = False,
) -> Iterator[Recording]:
    """Record what the recurrent layers of a model get while the block runs it, and write it as the block ends.

    The file goes to ``--calibration`` and to ``finetune --data`` as it is. It holds, for each ``nn.LSTM``,
    ``nn.GRU``, ``nn.RNN``, their cells and their block-term forms, a sample of the sequences that it was called with,
    of any layout and length, packed or not. A call that starts from the very state in which an earlier one ended, as
    cells in a loop and streaming models are called, goes on with its sequence. Other states that are not zero are kept
    as the initial states of a new one. What the model computes, its gradients and its random numbers stay as they are,
    except that what ``torch.compile`` made runs uncompiled meanwhile, as compiled code calls no hooks.

    Args:
        model: the network, as it is called in the block; a part of a larger one will do.
        path: the ``.npz`` to write, whole or not at all: nothing if the block raises.
        sequences: most to keep of each layer; of more, each has the same chance. They wait on disk, beside ``path``.
        steps: most of a sequence that goes on from call to call; what follows begins a new one. What one call gets
            stays together.
        layers: patterns with ``*`` and ``?`` of the names of layers; one that begins with ``!`` leaves matches out.
            Empty takes all.
        linear: also record linear layers: of ``(B, ..., I)`` inputs, ``B`` sequences of all steps between.
        seed: of the draws; the same calls with the same seed give the same bytes.
        force: replace a file that is there.

    Yields:
        What was recorded so far.

    Raises:
        BTCompressError: the model has no such layers, none of them was called, one got numbers that are not finite,
            or the arguments are out of range.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise BTCompressError(f"recordings are .npz files, but {path} is to be written. Give a name that ends in .npz.")
    for name, value in (("sequences", sequences), ("steps", steps)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BTCompressError(f"{name} must be a whole number from 1 on, but {value!r:.30} was given.")
    check_seed(seed)
    chosen = _chosen(model, (layers,) if isinstance(layers, str) else layers, linear=linear)
    check_target(path, force=force)
    with claimed(path), _spool(path.parent) as spool:
        samples = {name: Sample(spool, sequences, name, seed) for name in chosen}
        streams = {name: Streams(samples[name], steps) for name in chosen}
        recorder = Recording(path, samples)
        with _hooked(chosen, streams), uncompiled():
            yield recorder
        for each in streams.values():
            each.finish()
        _check_called(samples)
        check_target(path, force=force)
        write(path, {name: sample for name, sample in samples.items() if sample.n_begun}, spool)


def _chosen(model: nn.Module, patterns: Sequence[str], *, linear: bool) -> dict[str, nn.Module]:
    """The layers to record, by their names without those of wrappers."""
    if not isinstance(model, nn.Module):
        raise BTCompressError(f"a torch.nn.Module is recorded, but {type(model).__name__} was given.")
    kinds = (*RECURRENT, *CELLS, *(LINEAR if linear else ()))
    found = {plain_name(name): module for name, module in model.named_modules() if isinstance(module, kinds)}
    if not found:
        script = isinstance(model, torch.jit.ScriptModule) or any(
            isinstance(module, torch.jit.ScriptModule) for module in model.modules()
        )
        raise BTCompressError(
            f"{type(model).__name__} has no nn.LSTM, nn.GRU, nn.RNN or cell of these"
            + (" or nn.Linear" if linear else "")
            + (
                " that can be seen: it is TorchScript, whose layers call no hooks. Build the network from its Python "
                "code, load the weights and record that."
                if script
                else ", so there is nothing to record."
            )
        )
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    for pattern in (*wanted, *unwanted):
        if not any(fnmatchcase(name, pattern) for name in found):
            raise BTCompressError(f"no layer matches {pattern!r}; there are {_listed(found)}.")
    chosen = {
        name: module
        for name, module in found.items()
        if (not wanted or any(fnmatchcase(name, pattern) for pattern in wanted))
        and not any(fnmatchcase(name, pattern) for pattern in unwanted)
    }
    if not chosen:
        raise BTCompressError(f"the patterns {', '.join(patterns)} leave no layer; there are {_listed(found)}.")
    return chosen


@contextmanager
def _spool(folder: Path) -> Iterator[Spool]:
    spool = Spool(folder)
    try:
        yield spool
    finally:
        spool.close()


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], streams: Mapping[str, Streams]) -> Iterator[None]:
    """Let the streams take every call of the layers; nothing stays of it on the model."""
    lock = Lock()  # replicas of a DataParallel run side by side
    handles: list[RemovableHandle] = []
    try:
        for name, layer in layers.items():
            hook = _hook(name or "(top)", layer, streams[name], lock)
            handles.append(layer.register_forward_hook(hook, prepend=True, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, layer: nn.Module, streams: Streams, lock: Lock) -> Callable[..., None]:
    @torch.no_grad()
    def take(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        # A copy of the layer has the hook too, and goes its own way; a replica of a DataParallel is the layer itself.
        if called is layer or getattr(called, "_is_replica", False):
            with lock:
                streams.take(call_of(name, called, args, kwargs, output))

    return take


def _listed(names: Collection[str]) -> str:
    """The first of some names."""
    return listed([name or "(top)" for name in names], _MOST_SHOWN)


def _recorded(sample: Sample) -> Recorded:
    kept = sample.sequences
    steps = sum(sequence.n_steps for sequence in kept)
    return Recorded(len(kept), steps, sample.n_begun, sample.state_shapes is not None)


def _check_called(samples: Mapping[str, Sample]) -> None:
    """Refuse a recording of nothing, and say which layers it has nothing of."""
    silent = [name for name, sample in samples.items() if not sample.n_begun]
    why = (
        "A layer is seen where it is called as a module, not where its forward is called or its weights are used "
        "directly."
    )
    if len(silent) == len(samples):
        raise BTCompressError(
            f"nothing was recorded: {_listed(silent)} got no inputs. Run the model inside the block. {why}"
        )
    if silent:
        warnings.warn(f"not recorded, as they got no inputs: {_listed(silent)}. {why}", stacklevel=4)
