"""Train a network through the rounding of some of its tensors, straight-through.

The network always holds the rounded numbers: what is computed and measured is what the result will give. The numbers
that the optimizer moves lie outside. Of a tensor in integers, ``value = scale (code - zero / 2)``, they are the place
of each number among the codes, ``code = round(place)`` within the range, and the relative growth of each group's scale;
zero points stay. The gradient of a place is that of its value times the scale, as if nothing were rounded, and 0 for
one beyond the range; that of a scale is the sum over its group of each value's gradient times ``code - zero / 2``
(Esser et al. 2020, "Learned step size quantization", for places that move along with their scale). Of a tensor in
floats of fewer bytes, they are the same numbers in full, and gradients go to them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from btcompress.checkpoint.precisions import Stored
from btcompress.finetune.networks import Network, in_range
from btcompress.packing import Packed, from_rows, to_rows

#: Steps of places: as shares of the range of codes, for each unit of the learning rate; and at most, in codes, or as
#: such shares where that is more. Steps of scales, as shares of themselves, likewise. Measured on published models;
#: see docs/math.md.
_PLACE_RATE, _MOST_CODES, _MOST_OF_RANGE = 2.5, 0.012, 0.0008
_GROWTH_RATE, _MOST_GROWTH = 7.5, 0.01
#: The largest scale: that of float16.
_MOST_SCALE = 65504.0


class _Rounded(Protocol):
    """A tensor that is rounded, and what stands for it while it is trained."""

    def moved(self) -> dict[str, nn.Parameter]:
        """What the optimizer moves, by name."""

    def groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        """The same in groups for an optimizer; see :meth:`Rounding.groups`."""

    def values(self) -> Tensor:
        """The tensor, rounded."""

    def take(self, gradient: Tensor) -> None:
        """Hand a gradient of the values on to what is moved."""

    def stored(self) -> Stored:
        """How the tensor is stored."""


class _OfIntegers:
    """A tensor in integers.

    Args:
        packed: its start.
        device: where it is trained.
    """

    def __init__(self, packed: Packed, device: torch.device) -> None:
        self.packed = packed
        n = packed.codes.shape[1]
        self.start = packed.scales.float().to(device)
        self.half = packed.integers.spread(packed.zeros.float().to(device), n) / 2
        #: Distance of each number from the zero point, in codes: shape (rows, columns).
        self.places = nn.Parameter(packed.codes.float().to(device) - self.half)
        #: Of each scale, as a share of its start: shape (rows, groups).
        self.growth = nn.Parameter(torch.zeros_like(self.start))

    def moved(self) -> dict[str, nn.Parameter]:
        return {"places": self.places, "growth": self.growth}

    def groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        most = self.packed.integers.most
        step = min(_PLACE_RATE * rate * most, max(_MOST_CODES, _MOST_OF_RANGE * most))
        places = {"params": [self.places], "lr": step, "weight_decay": decay * rate / step}
        return [places, {"params": [self.growth], "lr": min(_GROWTH_RATE * rate, _MOST_GROWTH), "weight_decay": 0.0}]

    @torch.no_grad()
    def values(self) -> Tensor:
        rows = (self._codes() - self.half) * self._wide()
        return from_rows(rows, self.packed.shape).to(self.packed.dtype)

    @torch.no_grad()
    def take(self, gradient: Tensor) -> None:
        rows, raw = to_rows(gradient).float(), self.places + self.half
        inside = (raw >= -0.5) & (raw <= self.packed.integers.most + 0.5)
        self.places.grad = rows * self._wide() * inside
        self.growth.grad = self._summed(rows * (self._codes() - self.half)) * self.start

    @torch.no_grad()
    def stored(self) -> Packed:
        codes, scales = self._codes().to(torch.uint8).cpu(), self._scales().cpu()
        return replace(self.packed, codes=codes, scales=scales)

    def _codes(self) -> Tensor:
        return (self.places + self.half).round_().clamp_(0, self.packed.integers.most)

    def _scales(self) -> Tensor:
        return (self.start * (1 + self.growth)).clamp_(0, _MOST_SCALE).half()

    def _summed(self, rows: Tensor) -> Tensor:
        """The sum over each group, shape ``(rows, groups)``."""
        size = min(self.packed.integers.group, rows.shape[1])
        return pad(rows, (0, -rows.shape[1] % size)).unflatten(1, (-1, size)).sum(-1)

    def _wide(self) -> Tensor:
        return self.packed.integers.spread(self._scales().float(), self.places.shape[1])


class _OfFloats:
    """A tensor in floats of fewer bytes."""

    def __init__(self, dtype: torch.dtype, tensor: Tensor) -> None:
        self.dtype = dtype
        self.numbers = nn.Parameter(tensor.detach().clone())

    def moved(self) -> dict[str, nn.Parameter]:
        return {"numbers": self.numbers}

    def groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        return [{"params": [self.numbers], "lr": rate, "weight_decay": decay}]

    @torch.no_grad()
    def values(self) -> Tensor:
        return in_range(self.numbers, self.dtype)

    def take(self, gradient: Tensor) -> None:
        self.numbers.grad = gradient

    def stored(self) -> torch.dtype:
        return self.dtype


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A parameter of the network, and what it holds the values of."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    rounded: _Rounded


class Rounding:
    """The rounding of those tensors of a network that are trained and stored in fewer bits.

    Args:
        network: holds the values that are stored, exactly; frozen tensors keep them.
        stored: how tensors are stored, by their names in the file; those of other networks are left out.
    """

    def __init__(self, network: Network, stored: Mapping[str, Stored]) -> None:
        found: dict[nn.Parameter, list[str]] = {}
        for name, tensor in network.file_tensors().items():
            if name in stored and isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                found.setdefault(tensor, []).append(name)
        self._held = [_Held(tensor, tuple(own), _rounded(tensor, stored[own[0]])) for tensor, own in found.items()]

    def __len__(self) -> int:
        return len(self._held)

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter of the network is one of the rounded."""
        return any(each.parameter is parameter for each in self._held)

    def groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        """Groups of what is moved, for an optimizer whose other parameters have this rate and weight decay.

        Weight decay takes the same share of rounded numbers in a step as of all others; of scales it takes none.
        """
        return [group for each in self._held for group in each.rounded.groups(rate, decay)]

    def take_gradients(self) -> None:
        """Hand the gradients of the network's rounded tensors on to what is moved."""
        for each in self._held:
            if each.parameter.grad is not None:
                each.rounded.take(each.parameter.grad)
                each.parameter.grad = None

    @torch.no_grad()
    def put(self) -> None:
        """Let the network hold the values of what was moved."""
        for each in self._held:
            each.parameter.copy_(each.rounded.values())

    def state(self) -> dict[str, Tensor]:
        """All that is moved, as plain tensors that share its memory."""
        return {name: parameter.detach() for name, parameter in self._moved()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`state` gave, the network's values included."""
        for name, parameter in self._moved():
            parameter.copy_(state[name])
        self.put()

    def stored(self) -> dict[str, Stored]:
        """How the tensors that are trained are stored, by name, as they are now."""
        return {name: each.rounded.stored() for each in self._held for name in each.names}

    def _moved(self) -> Iterator[tuple[str, nn.Parameter]]:
        for each in self._held:
            for kind, parameter in each.rounded.moved().items():
                yield f"{each.names[0]}.{kind}", parameter


def _rounded(parameter: nn.Parameter, how: Stored) -> _Rounded:
    return _OfIntegers(how, parameter.device) if isinstance(how, Packed) else _OfFloats(how, parameter)
