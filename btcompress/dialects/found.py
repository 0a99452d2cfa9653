"""What a grammar of other projects' keys finds: recurrent layers in torch's names and order, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from btcompress.shapes import Nonlinearity


@dataclass(frozen=True, slots=True)
class Converted:
    """A recurrent layer as one of torch's classes has it.

    Attributes:
        name: what it is called; empty at the top.
        keys: the tensors of the file that it is made of.
        make: forms its tensors, by the names of torch's class, such as ``weight_ih_l0``, or ``weight_ih`` for a single
            step, with gates and axes in torch's order. Called once, when there is memory for it.
        nonlinearity: of a plain RNN, where the file says it.
        notices: what a user should know of how it came about, as sentences.
    """

    name: str
    keys: tuple[str, ...]
    make: Callable[[], Mapping[str, Tensor]]
    nonlinearity: Nonlinearity | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A recurrent layer that cannot be brought into torch's order without a loss.

    Attributes:
        name: what it is called; empty at the top.
        keys: its tensors, which stay as they are; but not those of linear layers that it is made of, which may be
            factorized as such.
        reason: what it is and why, and what to do, as the end of a sentence.
    """

    name: str
    keys: tuple[str, ...]
    reason: str


Found: TypeAlias = Converted | Refused


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a project names the tensors of its recurrent layers.

    Attributes:
        name: of the project or class, as in ``"converted from ..."``.
        find: the layers of a flat state dict that are written so. It yields nothing for others, never raises for what
            does not fit, and reads values only where shapes do not tell.
    """

    name: str
    find: Callable[[Mapping[str, Tensor]], Iterator[Found]]
