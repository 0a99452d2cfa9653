"""An LSTM with matrices in block-term form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from btcompress.kinds import MatrixKind
from btcompress.modes import ShapeRequest
from btcompress.nn.celltype import CellType
from btcompress.nn.layers import BTRecurrent
from btcompress.nn.lstmtype import LSTM
from btcompress.nn.options import ShapeOptions
from btcompress.nn.ways import Method
from btcompress.shapes import MatrixShape


class BTLSTM(BTRecurrent[nn.LSTM]):
    """An LSTM with matrices in block-term form; takes the place of :class:`torch.nn.LSTM`.

    Arguments, inputs, outputs and errors are those of :class:`torch.nn.LSTM`, and so are the names of all
    parameters that stay dense. In place of ``weight_ih_l0`` there are ``weight_ih_l0.cores`` and
    ``weight_ih_l0.factors.0`` to ``weight_ih_l0.factors.{d-1}``, or those of each gate below
    ``weight_ih_l0.gate_i`` and so on; likewise for the other layers and directions, for the hidden-to-hidden
    matrices ``U`` (``weight_hh_*``) and for the projections ``P`` (``weight_hr_*``).

    Args:
        input_size: ``I``.
        hidden_size: ``H``.
        num_layers: layers, each taking the one before as its input.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are ``(B, T, ...)`` rather than ``(T, B, ...)``.
        dropout: probability by which outputs of all layers but the last are zeroed in training.
        bidirectional: whether each layer also runs backward.
        proj_size: size to which hidden states are projected; 0 for none.
        device: where the parameters are.
        dtype: of the parameters.
        shapes: block-term shapes by the names of matrices; one that is missing or ``None`` stays dense.
            Where left out, shapes are chosen as ``shape`` asks.
        matrices: for which matrices they are then chosen: ``"input"`` for every ``weight_ih_*``, ``"recurrent"``
            for every ``weight_hh_*`` and ``weight_hr_*``.
        method: multiply by the factors, ``W`` for all steps at once and ``U`` and ``P`` at each step; or form the
            dense matrices, once for all steps, and call torch's kernel; or ``"auto"``, whichever way to run is the
            cheapest for the sizes at hand (:mod:`btcompress.nn.costs`), or was pinned (:func:`btcompress.tune`). Where
            a loop of our own is the cheapest on a CPU, a layer can be differentiated only once.
        keeps_formed: whether predictions keep what they form of the parameters; see
            :class:`btcompress.nn.formed.Keeping`.
        **shape: fields of :class:`btcompress.modes.ShapeRequest`. Modes are meant for the matrices that
            they multiply to.

    Raises:
        ShapeError: shapes are not those of the matrices, or none can be chosen as asked.
        BTCompressError: unknown method or kind of matrices.
        ValueError: as :class:`torch.nn.LSTM`.
        TypeError: as :class:`torch.nn.LSTM`.
    """

    _arguments: ClassVar[Mapping[str, object]] = {**BTRecurrent._arguments, "proj_size": 0}
    _plain = nn.LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        shapes: Mapping[str, MatrixShape | None] | None = None,
        matrices: Sequence[MatrixKind] = ("input",),
        method: Method = "auto",
        keeps_formed: bool = True,
        **shape: Unpack[ShapeOptions],
    ) -> None:
        plain = nn.LSTM(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device="meta"
        )
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
        return LSTM

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - torch's name
        hx: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Run over whole sequences.

        Args:
            input: ``(T, B, I)``, or ``(B, T, I)`` with ``batch_first``, or ``(T, I)`` without batch, or packed.
            hx: initial ``h`` and ``c``, shapes ``(num_layers * directions, B, H)``, or without ``B``; ``h``
                has the projected size, if there is one. Zero when left out.

        Returns:
            The outputs of the last layer, directions side by side and packed if the input is, and the final
            ``h`` and ``c``.

        Raises:
            ValueError: the input's number of dimensions or dtype is wrong.
            RuntimeError: sizes do not fit together, or there are no steps.
        """
        outputs, (h, c) = self._call(input, hx)
        return outputs, (h, c)
