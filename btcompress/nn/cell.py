"""A single LSTM step with matrices in block-term form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import init

from btcompress.contraction import autocast, is_captured
from btcompress.fit import FitOptions
from btcompress.kinds import MatrixKind
from btcompress.modes import ShapeRequest
from btcompress.nn.conversion import fill_dense, fill_factorized
from btcompress.nn.options import ShapeOptions, lstm_shapes
from btcompress.nn.prediction import Prediction
from btcompress.nn.pretrained import Pretrained
from btcompress.nn.recurrence import Direction, State
from btcompress.nn.running import Layer, Running
from btcompress.nn.ways import Method
from btcompress.nn.weight import BTWeight
from btcompress.shapes import MatrixShape


class BTLSTMCell(Pretrained, Running):
    """One LSTM step with matrices in block-term form; takes the place of :class:`torch.nn.LSTMCell`.

    ``i, f, g, o = split(W x + U h + b)``; ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``;
    ``h' = sigmoid(o) tanh(c')``. Parameters: ``weight_ih.cores`` and ``weight_ih.factors.0`` to
    ``weight_ih.factors.{d-1}`` (or those of each gate), ``weight_hh``, or the like for it, ``bias_ih`` and
    ``bias_hh``.

    Args:
        input_size: ``I``.
        hidden_size: ``H``.
        bias: whether there are biases.
        device: where the parameters are.
        dtype: of the parameters.
        shape: the block-term shape of ``W`` alone, or a request by which to choose shapes.
        shapes: block-term shapes by name, ``weight_ih`` and ``weight_hh``, in place of ``shape``; one that is
            missing or ``None`` stays dense.
        matrices: for which matrices shapes are chosen: ``"input"`` for ``W``, ``"recurrent"`` for ``U``.
        method: as that of :class:`BTLSTM`, of whose steps this is one.
        keeps_formed: as that of :class:`BTLSTM`.

    Raises:
        ShapeError: a shape is not that of its matrix, or none can be chosen.
        BTCompressError: unknown method or kind of matrices.
    """

    weight_ih: nn.Parameter | BTWeight
    weight_hh: nn.Parameter | BTWeight
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        shape: MatrixShape | ShapeRequest = ShapeRequest(),
        shapes: Mapping[str, MatrixShape | None] | None = None,
        matrices: Sequence[MatrixKind] = ("input",),
        method: Method = "auto",
        keeps_formed: bool = True,
    ) -> None:
        super().__init__(method, keeps_formed=keeps_formed)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        if isinstance(shape, MatrixShape):
            shapes = {"weight_ih": shape} if shapes is None else shapes
            shape = ShapeRequest()
        sizes = {"weight_ih": (4 * hidden_size, input_size), "weight_hh": (4 * hidden_size, hidden_size)}
        factorized = lstm_shapes(sizes, shapes, shape, matrices)
        for name, size in sizes.items():
            if name in factorized:
                self.add_module(name, BTWeight(factorized[name], device, dtype))
            else:
                self.register_parameter(name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)))
        for name in ("bias_ih", "bias_hh"):
            value = nn.Parameter(torch.empty(4 * hidden_size, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, value)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw parameters so that each has the variance that :class:`torch.nn.LSTMCell` gives it."""
        bound = self.hidden_size**-0.5
        for matrix in self.children():
            if isinstance(matrix, BTWeight):
                matrix.reset_parameters(bound**2 / 3, generator)
        for parameter in self.parameters(recurse=False):
            init.uniform_(parameter, -bound, bound, generator)

    def forward(self, input: Tensor, hx: State | None = None) -> State:  # noqa: A002 - torch's name
        """One step.

        Args:
            input: ``x``, shape ``(B, I)`` or ``(I)``.
            hx: ``h`` and ``c``, shapes ``(B, H)`` or ``(H)``; zero when left out.

        Returns:
            The next ``h`` and ``c``.

        Raises:
            ValueError: an argument does not have one or two dimensions.
            RuntimeError: sizes do not fit together.
        """
        if type(input) is Tensor and hx is not None:
            cell = self.kept_run(input, hx)
            fits = hx[0].dtype == hx[1].dtype == input.dtype
            if cell is not None and fits and hx[0].shape == hx[1].shape == (*input.shape[:-1], self.hidden_size):
                return _run_again(cell[0], input, hx)
        if input.dim() not in (1, 2):
            raise ValueError(f"input must have 1 or 2 dimensions, (I) or (B, I), but it has {input.dim()}.")
        if hx is not None and any(value.dim() not in (1, 2) for value in hx):
            raise ValueError(f"hx must have 1 or 2 dimensions, but h has {hx[0].dim()} and c has {hx[1].dim()}.")
        if input.dim() == 1:
            h, c = self._step(input.unsqueeze(0), hx and (hx[0].unsqueeze(0), hx[1].unsqueeze(0)), input)
            return h.squeeze(0), c.squeeze(0)
        return self._step(input, hx, input)

    def _step(self, rows: Tensor, state: State | None, given: Tensor) -> State:
        if not is_captured():
            # What is asked about sizes would hold for these alone; torch's kernel refuses what does not fit.
            self._check_sizes(rows, state)
        if state is None:
            zeros = rows.new_zeros(rows.shape[0], self.hidden_size)
            state = (zeros, zeros)
        rows, h, c = autocast(rows, *state)
        whole = (h.unsqueeze(0), c.unsqueeze(0))
        ((name, directions),) = self.layers().items()
        _, (h, c), layer = self.run(name, directions, rows.unsqueeze(0), whole)
        if layer is not None:
            self.keep_run(given, [layer])
        return h.squeeze(0), c.squeeze(0)

    def _check_sizes(self, rows: Tensor, state: State | None) -> None:
        if rows.shape[1] != self.input_size:
            raise RuntimeError(f"input has {rows.shape[1]} features, but input_size is {self.input_size}.")
        expected = (len(rows), self.hidden_size)
        if state is not None and any(value.shape != expected for value in state):
            raise RuntimeError(
                f"h and c must have shape {expected} for this input, but have {tuple(state[0].shape)} "
                f"and {tuple(state[1].shape)}."
            )

    def layers(self) -> dict[str, list[Direction]]:
        """Matrices and biases of the one layer that this is."""
        biases = None if self.bias_ih is None or self.bias_hh is None else (self.bias_ih, self.bias_hh)
        return {"cell": [Direction(self.weight_ih, self.weight_hh, None, biases)]}

    @classmethod
    def from_dense(
        cls,
        cell: nn.LSTMCell,
        *,
        options: FitOptions = FitOptions(),
        matrices: Sequence[MatrixKind] = ("input",),
        method: Method = "auto",
        **shape: Unpack[ShapeOptions],
    ) -> BTLSTMCell:
        """Fit ``W``, or what ``matrices`` says, and copy the rest.

        Dtype, device, training and gradient flags are those of ``cell``.

        Args:
            cell: never changed, and shares no storage with the result.
            options: effort, seed and device of the fit.
            matrices: as the constructor's.
            method: as the constructor's.
            **shape: fields of :class:`btcompress.modes.ShapeRequest`; ``cp_rank`` is 2 where left out.

        Raises:
            ShapeError: modes, ranks and sizes do not fit together.
            BTCompressError: a matrix is not finite, or a cell has no such kind of matrices.
        """
        shape.setdefault("cp_rank", 2)
        weight = cell.weight_hh
        module = cls(
            cell.input_size,
            cell.hidden_size,
            cell.bias,
            device="meta",
            dtype=weight.dtype,
            shape=ShapeRequest(**shape),
            matrices=matrices,
            method=method,
        )
        return fill_factorized(module.to_empty(device=weight.device), cell, options)

    def to_dense(self) -> nn.LSTMCell:
        """The plain cell, every matrix formed; shares no storage with this one."""
        weight = self.weight_hh
        cell = nn.LSTMCell(self.input_size, self.hidden_size, self.bias, device="meta", dtype=weight.dtype)
        return fill_dense(cell.to_empty(device=weight.device), self)

    def extra_repr(self) -> str:
        """Sizes, as :class:`torch.nn.LSTMCell` shows them."""
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias else ', bias=False'}"


def _run_again(cell: Layer, inputs: Tensor, state: State) -> State:
    """The step, as it was run before on inputs and states of these shapes."""
    h, c = state
    if isinstance(cell, Prediction) and cell.way.steps == "loop" and h.numel() == h.shape[-1]:
        new_h, new_c = cell.step(0, inputs.reshape(-1), h.reshape(-1), c.reshape(-1))
        return new_h.view(h.shape), new_c.view(c.shape)
    shape = (1, -1, h.shape[-1])
    _, (new_h, new_c) = cell.run(inputs.reshape(1, -1, inputs.shape[-1]), (h.reshape(shape), c.reshape(shape)))
    return new_h.view(h.shape), new_c.view(c.shape)
