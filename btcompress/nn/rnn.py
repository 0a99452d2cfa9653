"""A plain RNN with matrices in block-term form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Unpack

import torch
from torch import nn

from btcompress.kinds import MatrixKind
from btcompress.modes import ShapeRequest
from btcompress.nn.celltype import CellType
from btcompress.nn.layers import OneStateLayer
from btcompress.nn.options import ShapeOptions
from btcompress.nn.rnntype import RNN
from btcompress.nn.ways import Method
from btcompress.shapes import MatrixShape, Nonlinearity


class BTRNN(OneStateLayer[nn.RNN]):
    """A plain RNN with matrices in block-term form; takes the place of :class:`torch.nn.RNN`.

    Arguments, inputs, outputs and errors are those of :class:`torch.nn.RNN`, and so are the names of all parameters
    that stay dense. At each step ``h' = tanh(W x + U h + b)``, or ``relu`` of it. In place of ``weight_ih_l0`` there
    are ``weight_ih_l0.cores`` and ``weight_ih_l0.factors.0`` and so on; likewise for the others.

    Args:
        input_size: ``I``.
        hidden_size: ``H``.
        num_layers: layers, each taking the one before as its input.
        nonlinearity: ``tanh`` or ``relu``.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are ``(B, T, ...)`` rather than ``(T, B, ...)``.
        dropout: probability by which outputs of all layers but the last are zeroed in training.
        bidirectional: whether each layer also runs backward.
        device: where the parameters are.
        dtype: of the parameters.
        shapes: block-term shapes by the names of matrices; one that is missing or ``None`` stays dense.
            Where left out, shapes are chosen as ``shape`` asks.
        matrices: for which matrices they are then chosen: ``"input"`` for every ``weight_ih_*``, ``"recurrent"``
            for every ``weight_hh_*``.
        method: as that of :class:`btcompress.BTLSTM`; in training torch's kernel takes the steps, or the definition.
        keeps_formed: as that of :class:`btcompress.BTLSTM`.
        **shape: fields of :class:`btcompress.modes.ShapeRequest`.

    Raises:
        ShapeError: shapes are not those of the matrices, or none can be chosen as asked.
        BTCompressError: unknown method or kind of matrices.
        ValueError: as :class:`torch.nn.RNN`.
        TypeError: as :class:`torch.nn.RNN`.
    """

    _arguments: ClassVar[Mapping[str, object]] = {"nonlinearity": "tanh", **OneStateLayer._arguments}
    _plain = nn.RNN

    nonlinearity: Nonlinearity

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        shapes: Mapping[str, MatrixShape | None] | None = None,
        matrices: Sequence[MatrixKind] = ("input",),
        method: Method = "auto",
        keeps_formed: bool = True,
        **shape: Unpack[ShapeOptions],
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        plain = nn.RNN(*sizes, nonlinearity, bias, batch_first, dropout, bidirectional, device="meta")
        super().__init__(
            plain,
            device,
            dtype,
            shapes=shapes,
            matrices=matrices,
            method=method,
            keeps_formed=keeps_formed,
            request=ShapeRequest(**shape),
        )

    @property
    def _cell(self) -> CellType:
        return RNN[self.nonlinearity]
