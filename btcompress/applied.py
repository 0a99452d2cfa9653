"""What was applied to a module, kept beside it while it lives, so that it can be written as a result again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from btcompress.checkpoint import CompressedCheckpoint, CompressedMatrix, RoundedMatrix, Source
from btcompress.checkpoint.compressed import part_names
from btcompress.checkpoint.precisions import Stored
from btcompress.checkpoint.tensors import byte_chunks
from btcompress.packing import Packed
from btcompress.shapes import Nonlinearity
from btcompress.text import listed
from btcompress.timings import BenchReport

#: What is said of matrices that were changed since, as a step of the history.
_CHANGED = "changed in memory"


@dataclass(frozen=True, slots=True)
class Applied:
    """What a result says beside its tensors, which from then on are the module's.

    Attributes:
        names: of all its tensors.
        digests: of the bytes of the tensors of each chosen matrix, by key, in the dtypes that they have in the result.
        dtypes: of all its tensors, by name.

    All others are those of :class:`btcompress.CompressedCheckpoint`.
    """

    names: tuple[str, ...]
    matrices: Mapping[str, CompressedMatrix]
    keys: tuple[str, ...]
    source: Source
    history: tuple[dict[str, Any], ...]
    notices: tuple[str, ...]
    rounded: Mapping[str, RoundedMatrix]
    stored: Mapping[str, Stored]
    bench: BenchReport | None
    digests: Mapping[str, bytes]
    dtypes: Mapping[str, torch.dtype]
    nonlinearities: Mapping[str, Nonlinearity]

    @classmethod
    def of(cls, compressed: CompressedCheckpoint, prefix: str = "") -> Applied:
        """What a result says, under names without the prefix that all of them have."""

        def named(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name.removeprefix(prefix): value for name, value in values.items()}

        tensors = named(compressed.tensors)
        matrices, rounded = named(compressed.matrices), named(compressed.rounded)
        return cls(
            tuple(tensors),
            matrices,
            tuple(key.removeprefix(prefix) for key in compressed.keys),
            compressed.source,
            tuple(_named(step, prefix) for step in compressed.history),
            compressed.notices,
            rounded,
            named(compressed.stored),
            None if prefix else compressed.bench,
            {key: _digest(tensors, names) for key, names in _names({**matrices, **rounded}).items()},
            {name: tensor.dtype for name, tensor in tensors.items()},
            {
                f"{name}.".removeprefix(prefix).removesuffix("."): value
                for name, value in compressed.nonlinearities.items()
            },
        )

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> CompressedCheckpoint:
        """The result that these tensors make, as much of it as is still true of them.

        A tensor with other values than it was stored with is stored as it is. Matrices that have changed are told of
        in the history and the notices, as what was measured of them was measured before.

        Args:
            tensors: of all its names, on the CPU.

        Raises:
            CheckpointError: a tensor has another shape than its matrix gives it.
        """
        stored = {name: how for name, how in self.stored.items() if self._is_stored_so(name, tensors[name], how)}
        names = _names({**self.matrices, **self.rounded})
        changed = [key for key, own in names.items() if _digest(tensors, own) != self.digests[key]]
        kept = CompressedCheckpoint(
            {name: tensors[name] for name in self.names},
            dict(self.matrices),
            self.keys,
            self.source,
            self.history,
            self.notices,
            rounded={key: matrix for key, matrix in self.rounded.items() if key in stored},
            stored=stored,
            bench=self.bench,
            nonlinearities=dict(self.nonlinearities),
        )
        if not changed:
            return kept
        notice = (
            f"Changed in memory since they were applied, as by training, or converted: {listed(changed)}. What was "
            "measured of them was measured before."
        )
        step = {"step": _CHANGED, "matrices": changed}
        return replace(kept, history=(*kept.history, step), notices=(*kept.notices, notice))

    def _is_stored_so(self, name: str, tensor: Tensor, how: Stored) -> bool:
        """Whether a tensor still has the values that it was stored with."""
        if tensor.dtype != self.dtypes[name]:
            return False
        if isinstance(how, Packed):
            return tuple(tensor.shape) == how.shape and torch.equal(tensor, how.values())
        return torch.equal(tensor, tensor.to(how).to(tensor.dtype))


def _named(step: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A step with names without the prefix, as far as a report reads them."""
    errors: dict[str, Any] = {
        field: {name.removeprefix(prefix): error for name, error in step[field].items()}
        for field in ("activation_errors", "weighted_activation_errors")
        if field in step
    }
    left = [{**each, "name": each["name"].removeprefix(prefix)} for each in step.get("left_dense", ())]
    return {**step, **errors, **({"left_dense": left} if left else {})}


def _names(matrices: Mapping[str, CompressedMatrix | RoundedMatrix]) -> dict[str, tuple[str, ...]]:
    """The names of the tensors of each chosen matrix."""
    return {
        key: (key,)
        if isinstance(matrix, RoundedMatrix)
        else tuple(name for names in part_names(key, matrix.shape) for name in names)
        for key, matrix in matrices.items()
    }


def _digest(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> bytes:
    digest = hashlib.sha256()
    for name in names:
        digest.update(str(tensors[name].dtype).encode())
        for chunk in byte_chunks(tensors[name]):
            digest.update(chunk.numpy().data)
    return digest.digest()


_APPLIED: WeakKeyDictionary[nn.Module, Applied] = WeakKeyDictionary()


def remember(module: nn.Module, compressed: CompressedCheckpoint, prefix: str = "") -> None:
    """Keep what a result says beside the module that it was applied to; none of it is part of the module.

    A part of a result, that of a prefix which not all of its names have, is no result of its own, and is not kept.
    """
    if all(name.startswith(prefix) for name in compressed.tensors):
        _APPLIED[module] = Applied.of(compressed, prefix)


def applied_to(module: nn.Module) -> Applied | None:
    """What was applied last to this very module, if anything was."""
    return _APPLIED.get(module)
