"""What block-term LSTMs, GRUs and plain RNNs have in common: all but their cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.functional import dropout as drop
from torch.nn.utils.rnn import PackedSequence

from btcompress.contraction import autocast, is_captured
from btcompress.kinds import MatrixKind
from btcompress.modes import ShapeRequest
from btcompress.nn.celltype import State
from btcompress.nn.convertible import Convertible
from btcompress.nn.options import recurrent_shapes
from btcompress.nn.recurrence import Direction
from btcompress.nn.running import Layer
from btcompress.nn.ways import Method
from btcompress.nn.weight import BTWeight
from btcompress.shapes import MatrixShape

#: Torch's module whose place is taken.
Plain = TypeVar("Plain", bound=nn.RNNBase)


class BTRecurrent(Convertible[Plain]):
    """Layers of one cell with matrices in block-term form; see :class:`btcompress.BTLSTM` for what all have.

    Args:
        plain: torch's module of the same arguments, without storage: it has checked them, and knows the name and size
            of each parameter.
        device: where the parameters are.
        dtype: of the parameters.
        shapes: block-term shapes by the names of matrices, or None to choose them.
        matrices: for which matrices they are then chosen.
        method: how to multiply.
        keeps_formed: whether predictions keep what they form of the parameters.
        request: by which shapes are chosen.
    """

    _arguments: ClassVar[Mapping[str, object]] = {
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
    }
    _recurrent: ClassVar[str] = "weight_hh_l0"

    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    weight_hh_l0: nn.Parameter | BTWeight

    def __init__(
        self,
        plain: Plain,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        shapes: Mapping[str, MatrixShape | None] | None,
        matrices: Sequence[MatrixKind],
        method: Method,
        keeps_formed: bool,
        request: ShapeRequest,
    ) -> None:
        super().__init__(method, keeps_formed=keeps_formed)
        for name in ("input_size", "hidden_size", "proj_size", *self._arguments):
            setattr(self, name, getattr(plain, name))
        sizes = {name: parameter.shape for name, parameter in plain.named_parameters()}
        factorized = recurrent_shapes(sizes, shapes, request, matrices, self._cell.n_gates)
        self._hold(sizes, factorized, device, dtype)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw parameters so that each matrix and bias has the variance that torch's class gives it."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters(recurse=False):
            init.uniform_(parameter, -bound, bound, generator)
        for matrix in self._block_term_weights().values():
            matrix.reset_parameters(bound**2 / 3, generator)

    @property
    def shapes(self) -> dict[str, MatrixShape]:
        """The block-term shape of each matrix that has one, by its name."""
        return {name: matrix.shape for name, matrix in self._block_term_weights().items()}

    def _block_term_weights(self) -> dict[str, BTWeight]:
        return {name: child for name, child in self.named_children() if isinstance(child, BTWeight)}

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def flatten_parameters(self) -> None:
        """Nothing, as there is nothing to lay out; for code written for torch's class."""

    def _call(self, given: Tensor | PackedSequence, hx: State | None) -> tuple[Tensor | PackedSequence, State]:
        """Outputs of the last layer, and final states; arguments as those of ``forward``, states in a tuple."""
        if type(given) is Tensor and given.dim() == 3:
            layers = self.kept_run(given, hx)
            if layers is not None and self._fits(given, hx):
                return self._run_again(layers, given, hx)
        if isinstance(given, PackedSequence):
            data, batch_sizes, order, back = given
            outputs, state = self._run(data, hx and _reorder(hx, order), batch_sizes)
            return PackedSequence(outputs, batch_sizes, order, back), _reorder(state, back)
        if given.dim() not in (2, 3):
            raise ValueError(f"input must have 2 or 3 dimensions, (T, I) or with a batch, but it has {given.dim()}.")
        if hx is not None and any(each.dim() != given.dim() for each in hx):
            raise RuntimeError(
                f"with an input of {given.dim()} dimensions {_listed(self._cell.states)} must have {given.dim()} as "
                f"well, but {'they have' if len(hx) > 1 else 'it has'} {_listed(each.dim() for each in hx)}."
            )
        if given.dim() == 3:
            return self._run(given, hx)
        batch = 0 if self.batch_first else 1
        outputs, state = self._run(given.unsqueeze(batch), hx and tuple(each.unsqueeze(1) for each in hx))
        return outputs.squeeze(batch), tuple(each.squeeze(1) for each in state)

    def _run(self, inputs: Tensor, hx: State | None, batch_sizes: Tensor | None = None) -> tuple[Tensor, State]:
        """All layers, for an input with a batch."""
        initial = self._initial_state(inputs, hx, batch_sizes)
        outputs = inputs
        finals: list[State] = []
        layers: list[Layer | None] = []
        for layer in range(self.num_layers):
            if layer:
                outputs = drop(outputs, self.dropout, self.training)
            outputs, final, run = self._layer(layer, outputs, self._own(initial, layer), batch_sizes)
            finals.append(final)
            layers.append(run)
        kept = [layer for layer in layers if layer is not None]
        if len(kept) == self.num_layers and not (self.training and self.dropout):
            self.keep_run(inputs, kept)
        return outputs, _joined(finals)

    def _own(self, state: State, layer: int) -> State:
        """The states of one layer."""
        if self.num_layers == 1:
            return state
        n = self._directions
        own = slice(layer * n, (layer + 1) * n)
        return tuple([each[own] for each in state])

    def _fits(self, inputs: Tensor, hx: State | None) -> bool:
        """Whether initial states are as they have to be for inputs that were met before."""
        if hx is None:
            return True
        batch = inputs.shape[0 if self.batch_first else 1]
        n_states, h, last = self.num_layers * self._directions, hx[0], hx[-1]
        return (
            h.shape == (n_states, batch, self.proj_size or self.hidden_size)
            and last.shape == (n_states, batch, self.hidden_size)
            and h.dtype == last.dtype == inputs.dtype
        )

    def _run_again(self, layers: Sequence[Layer], inputs: Tensor, hx: State | None) -> tuple[Tensor, State]:
        """All layers, as they ran before on inputs of this shape."""
        initial = self._zeros(inputs, inputs.shape[0 if self.batch_first else 1]) if hx is None else hx
        outputs, finals = inputs, []
        for layer, run in enumerate(layers):
            outputs, final = run.run(outputs, self._own(initial, layer), batch_first=self.batch_first)
            finals.append(final)
        return outputs, _joined(finals)

    def _layer(
        self, layer: int, inputs: Tensor, state: State, batch_sizes: Tensor | None
    ) -> tuple[Tensor, State, Layer | None]:
        """Both directions of one layer."""
        both = self._both(layer)
        inputs, state = both[0].cell.autocast(inputs, state)
        return self.run(f"l{layer}", both, inputs, state, batch_sizes, batch_first=self.batch_first)

    def layers(self) -> dict[str, list[Direction]]:
        """Matrices and biases of each layer, by its name: ``l0`` and so on."""
        return {f"l{layer}": self._both(layer) for layer in range(self.num_layers)}

    def _both(self, layer: int) -> list[Direction]:
        return [self._direction(f"_l{layer}{end}") for end in ("", "_reverse")[: self._directions]]

    def _direction(self, suffix: str) -> Direction:
        return Direction(
            getattr(self, "weight_ih" + suffix),
            getattr(self, "weight_hh" + suffix),
            getattr(self, "weight_hr" + suffix) if self.proj_size else None,
            (getattr(self, "bias_ih" + suffix), getattr(self, "bias_hh" + suffix)) if self.bias else None,
            self._cell,
        )

    def _initial_state(self, inputs: Tensor, hx: State | None, batch_sizes: Tensor | None) -> State:
        """The initial state, zero where not given, once inputs and state are found to fit."""
        if is_captured():
            # What is asked about sizes would hold for these alone; torch's kernel refuses what does not fit.
            # A tracer has tensors for sizes, and so they may be.
            batch: Any = inputs.shape[0 if self.batch_first else 1] if batch_sizes is None else batch_sizes[0]
            return hx or self._zeros(inputs, batch)
        if inputs.shape[-1] != self.input_size:
            raise RuntimeError(f"input has {inputs.shape[-1]} features, but input_size is {self.input_size}.")
        own = self.weight_hh_l0.dtype
        if inputs.dtype != own and autocast(inputs)[0].dtype != autocast(inputs.new_empty(0, dtype=own))[0].dtype:
            raise ValueError(
                f"input is {inputs.dtype}, but the parameters are {self.weight_hh_l0.dtype}. Convert one of them."
            )
        if batch_sizes is not None:
            steps, batch = len(batch_sizes), int(batch_sizes[0])
        else:
            steps, batch = inputs.shape[1::-1] if self.batch_first else inputs.shape[:2]
        if not steps:
            raise RuntimeError("input has no steps; give at least one.")
        if hx is None:
            return self._zeros(inputs, batch)
        n_states = self.num_layers * self._directions
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        expected = [(n_states, batch, size) for size in sizes][: len(hx)]
        if [each.shape for each in hx] != expected:
            s, have = ("s", "have") if len(hx) > 1 else ("", "has")
            raise RuntimeError(
                f"{_listed(self._cell.states)} must have shape{s} {_listed(expected)} for this input, but {have} "
                f"{_listed(tuple(each.shape) for each in hx)}."
            )
        return hx

    def _zeros(self, inputs: Tensor, batch: int) -> State:
        n_states = self.num_layers * self._directions
        c = inputs.new_zeros(n_states, batch, self.hidden_size)
        h = inputs.new_zeros(n_states, batch, self.proj_size) if self.proj_size else c
        return (h, c) if len(self._cell.states) > 1 else (h,)


class OneStateLayer(BTRecurrent[Plain]):
    """Layers whose state is ``h`` alone: those of GRUs and plain RNNs."""

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - torch's name
        hx: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run over whole sequences.

        Args:
            input: ``(T, B, I)``, or ``(B, T, I)`` with ``batch_first``, or ``(T, I)`` without batch, or packed.
            hx: initial ``h``, shape ``(num_layers * directions, B, H)``, or without ``B``. Zero when left out.

        Returns:
            The outputs of the last layer, directions side by side and packed if the input is, and the final ``h``.

        Raises:
            ValueError: the input's number of dimensions or dtype is wrong.
            RuntimeError: sizes do not fit together, or there are no steps.
        """
        outputs, (h,) = self._call(input, None if hx is None else (hx,))
        return outputs, h


def _listed(values: Iterable[object]) -> str:
    return " and ".join(map(str, values))


def _joined(states: Sequence[State]) -> State:
    """The states of all layers."""
    return states[0] if len(states) == 1 else tuple(torch.cat(each) for each in zip(*states, strict=True))


def _reorder(state: State, order: Tensor | None) -> State:
    """The states of a batch in another order."""
    return state if order is None else tuple(each.index_select(1, order) for each in state)
