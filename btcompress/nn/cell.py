"""Single steps of LSTMs, GRUs and plain RNNs with matrices in block-term form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import init

from btcompress.contraction import is_captured
from btcompress.kinds import MatrixKind
from btcompress.modes import ShapeRequest
from btcompress.nn.celltype import CellType, State
from btcompress.nn.convertible import Convertible
from btcompress.nn.grutype import GRU
from btcompress.nn.lstmtype import LSTM
from btcompress.nn.options import ShapeOptions, recurrent_shapes
from btcompress.nn.prediction import Prediction
from btcompress.nn.recurrence import Direction
from btcompress.nn.rnntype import RNN
from btcompress.nn.running import Layer
from btcompress.nn.ways import Method
from btcompress.nn.weight import BTWeight
from btcompress.shapes import MatrixShape, Nonlinearity

#: Torch's module whose place is taken.
Plain = TypeVar("Plain", bound=nn.RNNCellBase)


class BTCell(Convertible[Plain]):
    """One step with matrices in block-term form: what LSTMs, GRUs and plain RNNs have in common.

    Parameters: ``weight_ih.cores`` and ``weight_ih.factors.0`` to ``weight_ih.factors.{d-1}`` (or those of each gate),
    ``weight_hh``, or the like for it, ``bias_ih`` and ``bias_hh``.

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
        method: as that of :class:`btcompress.BTLSTM` or its like, of whose steps this is one.
        keeps_formed: as that of :class:`btcompress.BTLSTM`.

    Raises:
        ShapeError: a shape is not that of its matrix, or none can be chosen.
        BTCompressError: unknown method or kind of matrices.
    """

    _arguments: ClassVar[Mapping[str, object]] = {"bias": True}
    _recurrent: ClassVar[str] = "weight_hh"

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
        rows = self._cell.n_gates * hidden_size
        sizes = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        factorized = recurrent_shapes(sizes, shapes, shape, matrices, self._cell.n_gates)
        self._hold(sizes, factorized, device, dtype)
        for name in ("bias_ih", "bias_hh"):
            value = nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, value)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw parameters so that each has the variance that torch's class gives it."""
        bound = self.hidden_size**-0.5
        for matrix in self.children():
            if isinstance(matrix, BTWeight):
                matrix.reset_parameters(bound**2 / 3, generator)
        for parameter in self.parameters(recurse=False):
            init.uniform_(parameter, -bound, bound, generator)

    def _call(self, given: Tensor, hx: State | None) -> State:
        """The next state; arguments as those of ``forward``, states in a tuple."""
        if type(given) is Tensor and hx is not None:
            kept = self.kept_run(given, hx)
            h, last = hx[0], hx[-1]
            fits = h.dtype == last.dtype == given.dtype
            if kept is not None and fits and h.shape == last.shape == (*given.shape[:-1], self.hidden_size):
                return _run_again(kept[0], given, hx)
        if given.dim() not in (1, 2):
            raise ValueError(f"input must have 1 or 2 dimensions, (I) or (B, I), but it has {given.dim()}.")
        if hx is not None and any(value.dim() not in (1, 2) for value in hx):
            has = " and ".join(f"{name} has {each.dim()}" for name, each in zip(self._cell.states, hx, strict=True))
            raise ValueError(f"hx must have 1 or 2 dimensions, but {has}.")
        if given.dim() == 1:
            state = self._step(given.unsqueeze(0), hx and tuple(each.unsqueeze(0) for each in hx), given)
            return tuple(each.squeeze(0) for each in state)
        return self._step(given, hx, given)

    def _step(self, rows: Tensor, state: State | None, given: Tensor) -> State:
        if not is_captured():
            # What is asked about sizes would hold for these alone; torch's kernel refuses what does not fit.
            self._check_sizes(rows, state)
        ((name, directions),) = self.layers().items()
        cell = directions[0].cell
        if state is None:
            state = (rows.new_zeros(rows.shape[0], self.hidden_size),) * len(cell.states)
        rows, state = cell.autocast(rows, state)
        whole = tuple(each.unsqueeze(0) for each in state)
        _, final, layer = self.run(name, directions, rows.unsqueeze(0), whole)
        if layer is not None:
            self.keep_run(given, [layer])
        return tuple(each.squeeze(0) for each in final)

    def _check_sizes(self, rows: Tensor, state: State | None) -> None:
        if rows.shape[1] != self.input_size:
            raise RuntimeError(f"input has {rows.shape[1]} features, but input_size is {self.input_size}.")
        expected = (len(rows), self.hidden_size)
        if state is not None and any(value.shape != expected for value in state):
            names, have = " and ".join(self._cell.states), "have" if len(state) > 1 else "has"
            raise RuntimeError(
                f"{names} must have shape {expected} for this input, but {have} "
                f"{' and '.join(str(tuple(each.shape)) for each in state)}."
            )

    def layers(self) -> dict[str, list[Direction]]:
        """Matrices and biases of the one layer that this is."""
        biases = None if self.bias_ih is None or self.bias_hh is None else (self.bias_ih, self.bias_hh)
        return {"cell": [Direction(self.weight_ih, self.weight_hh, None, biases, self._cell)]}

    @staticmethod
    def _asking(shape: ShapeOptions) -> dict[str, Any]:
        """As a cell takes them."""
        return {"shape": ShapeRequest(**shape)}


class BTLSTMCell(BTCell[nn.LSTMCell]):
    """One LSTM step with matrices in block-term form; takes the place of :class:`torch.nn.LSTMCell`.

    ``i, f, g, o = split(W x + U h + b)``; ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``;
    ``h' = sigmoid(o) tanh(c')``. Parameters, arguments and errors are those of :class:`BTCell`.
    """

    _plain = nn.LSTMCell

    @property
    def _cell(self) -> CellType:
        return LSTM

    def forward(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        hx: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
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
        h, c = self._call(input, hx)
        return h, c


class BTGRUCell(BTCell[nn.GRUCell]):
    """One GRU step with matrices in block-term form; takes the place of :class:`torch.nn.GRUCell`.

    ``r = sigmoid(W_r x + U_r h + b_r)``, ``z`` likewise; ``n = tanh(W_n x + b_in + r (U_n h + b_hn))``;
    ``h' = (1 - z) n + z h``. Parameters, arguments and errors are those of :class:`BTCell`.
    """

    _plain = nn.GRUCell

    @property
    def _cell(self) -> CellType:
        return GRU

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
        """One step.

        Args:
            input: ``x``, shape ``(B, I)`` or ``(I)``.
            hx: ``h``, shape ``(B, H)`` or ``(H)``; zero when left out.

        Returns:
            The next ``h``.

        Raises:
            ValueError: an argument does not have one or two dimensions.
            RuntimeError: sizes do not fit together.
        """
        (h,) = self._call(input, None if hx is None else (hx,))
        return h


class BTRNNCell(BTCell[nn.RNNCell]):
    """One step of a plain RNN with matrices in block-term form; takes the place of :class:`torch.nn.RNNCell`.

    ``h' = tanh(W x + U h + b)``, or ``relu`` of it. Parameters, arguments and errors are those of :class:`BTCell`, and
    ``nonlinearity``, the fourth argument as torch's, is ``tanh`` or ``relu``.

    Raises:
        ValueError: unknown nonlinearity.
    """

    _arguments: ClassVar[Mapping[str, object]] = {**BTCell._arguments, "nonlinearity": "tanh"}
    _plain = nn.RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        shape: MatrixShape | ShapeRequest = ShapeRequest(),
        shapes: Mapping[str, MatrixShape | None] | None = None,
        matrices: Sequence[MatrixKind] = ("input",),
        method: Method = "auto",
        keeps_formed: bool = True,
    ) -> None:
        if nonlinearity not in get_args(Nonlinearity):
            raise ValueError(f"nonlinearity must be tanh or relu, but {nonlinearity!r} was given.")
        self.nonlinearity: Nonlinearity = nonlinearity
        super().__init__(
            input_size,
            hidden_size,
            bias,
            device,
            dtype,
            shape=shape,
            shapes=shapes,
            matrices=matrices,
            method=method,
            keeps_formed=keeps_formed,
        )

    @property
    def _cell(self) -> CellType:
        return RNN[self.nonlinearity]

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
        """One step; arguments, result and errors as :meth:`BTGRUCell.forward`'s."""
        (h,) = self._call(input, None if hx is None else (hx,))
        return h


def _run_again(cell: Layer, inputs: Tensor, state: State) -> State:
    """The step, as it was run before on inputs and states of these shapes."""
    shape = state[0].shape
    if isinstance(cell, Prediction) and cell.way.steps == "loop" and state[0].numel() == shape[-1]:
        new = cell.step(0, inputs.reshape(-1), tuple([each.reshape(-1) for each in state]))
    else:
        whole = (1, -1, shape[-1])
        rows = inputs.reshape(1, -1, inputs.shape[-1])
        _, new = cell.run(rows, tuple([each.reshape(whole) for each in state]))
    return tuple([each.view(shape) for each in new])
