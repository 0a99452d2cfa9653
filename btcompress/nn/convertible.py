"""Block-term layers and cells out of torch's, and back: what both kinds of recurrent modules have of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar, Unpack

import torch
from torch import Tensor, nn

from btcompress.fit import FitOptions
from btcompress.kinds import MatrixKind
from btcompress.nn.celltype import CellType
from btcompress.nn.conversion import fill_dense, fill_factorized
from btcompress.nn.options import ShapeOptions
from btcompress.nn.pretrained import Pretrained
from btcompress.nn.running import Running
from btcompress.nn.ways import Method
from btcompress.nn.weight import BTWeight
from btcompress.shapes import MatrixShape

#: Torch's module whose place is taken.
Plain = TypeVar("Plain", bound=nn.RNNBase | nn.RNNCellBase)


class Convertible(Pretrained, Running, Generic[Plain]):
    """A recurrent module in the place of one of torch's, with the same arguments and names of parameters."""

    #: What torch's class is built with beside sizes, device and dtype, and its defaults.
    _arguments: ClassVar[Mapping[str, object]]
    #: A recurrent matrix, whose dtype and device are those of all.
    _recurrent: ClassVar[str]
    _plain: type[Plain]

    input_size: int
    hidden_size: int

    @property
    def _cell(self) -> CellType:
        """What is computed at each step."""
        raise NotImplementedError

    def _hold(
        self,
        sizes: Mapping[str, Sequence[int]],
        factorized: Mapping[str, MatrixShape],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Make parameters of these sizes, in block-term form where they have a shape; none is set yet."""
        for name, size in sizes.items():
            if name in factorized:
                self.add_module(name, BTWeight(factorized[name], device, dtype))
            else:
                self.register_parameter(name, nn.Parameter(torch.empty(tuple(size), device=device, dtype=dtype)))

    @staticmethod
    def _asking(shape: ShapeOptions) -> dict[str, Any]:
        """The keywords by which a module is asked to choose shapes."""
        return {**shape}

    @classmethod
    def from_dense(
        cls,
        dense: Plain,
        *,
        options: FitOptions = FitOptions(),
        matrices: Sequence[MatrixKind] = ("input",),
        method: Method = "auto",
        **shape: Unpack[ShapeOptions],
    ) -> Self:
        """Fit every ``W``, or what ``matrices`` says, and copy the rest.

        Dtype, device, training and gradient flags are those of ``dense``.

        Args:
            dense: torch's module; never changed, and shares no storage with the result.
            options: effort, seed and device of the fits.
            matrices: as the constructor's.
            method: as the constructor's.
            **shape: fields of :class:`btcompress.modes.ShapeRequest`; ``cp_rank`` is 2 where left out. Ranks
                beyond what the modes hold mean full rank: the result then computes what ``dense`` does.

        Raises:
            ShapeError: modes, ranks and sizes do not fit together.
            BTCompressError: a matrix is not finite, or such modules have no such kind of matrices.
        """
        shape.setdefault("cp_rank", 2)
        weight: Tensor = dense.get_parameter(cls._recurrent)
        arguments = {name: getattr(dense, name) for name in cls._arguments}
        build: Callable[..., Self] = cls
        module = build(
            dense.input_size,
            dense.hidden_size,
            **arguments,
            device="meta",
            dtype=weight.dtype,
            matrices=matrices,
            method=method,
            **cls._asking(shape),
        )
        return fill_factorized(module.to_empty(device=weight.device), dense, options)

    def to_dense(self) -> Plain:
        """Torch's module, every matrix formed; shares no storage with this one."""
        weight = getattr(self, self._recurrent)
        arguments = {name: getattr(self, name) for name in self._arguments}
        build: Callable[..., Plain] = self._plain
        plain = build(self.input_size, self.hidden_size, **arguments, device="meta", dtype=weight.dtype)
        plain.to_empty(device=weight.device)
        return fill_dense(plain, self)

    def extra_repr(self) -> str:
        """Sizes, and arguments that are not at their defaults, as torch's class shows them."""
        given = ((name, getattr(self, name), default) for name, default in self._arguments.items())
        changed = [f"{name}={own}" for name, own, default in given if own != default]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed])
