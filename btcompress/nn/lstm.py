"""An LSTM with matrices in block-term form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.functional import dropout as drop
from torch.nn.utils.rnn import PackedSequence

from btcompress.contraction import autocast, is_captured
from btcompress.fit import FitOptions
from btcompress.kinds import MatrixKind
from btcompress.modes import ShapeRequest
from btcompress.nn.conversion import fill_dense, fill_factorized
from btcompress.nn.options import ShapeOptions, lstm_shapes
from btcompress.nn.pretrained import Pretrained
from btcompress.nn.recurrence import Direction, State
from btcompress.nn.running import Layer, Running
from btcompress.nn.ways import Method
from btcompress.nn.weight import BTWeight
from btcompress.shapes import MatrixShape

#: What torch.nn.LSTM is built with beside sizes, device and dtype, and its defaults.
ARGUMENTS = {
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "proj_size": 0,
}


class BTLSTM(Pretrained, Running):
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

    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    weight_hh_l0: nn.Parameter | BTWeight

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
        super().__init__(method, keeps_formed=keeps_formed)
        # Without storage, it checks the arguments and knows the name and size of each parameter.
        plain = nn.LSTM(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device="meta"
        )
        self.input_size = input_size
        self.hidden_size = hidden_size
        for name in ARGUMENTS:
            setattr(self, name, getattr(plain, name))
        sizes = {name: parameter.shape for name, parameter in plain.named_parameters()}
        factorized = lstm_shapes(sizes, shapes, ShapeRequest(**shape), matrices)
        for name, size in sizes.items():
            if name in factorized:
                self.add_module(name, BTWeight(factorized[name], device, dtype))
            else:
                self.register_parameter(name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw parameters so that each matrix and bias has the variance that :class:`torch.nn.LSTM` gives it."""
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
        """Nothing, as there is nothing to lay out; for code written for :class:`torch.nn.LSTM`."""

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - torch's name
        hx: State | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
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
        if type(input) is Tensor and input.dim() == 3:
            layers = self.kept_run(input, hx)
            if layers is not None and self._fits(input, hx):
                return self._run_again(layers, input, hx)
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, back = input
            outputs, state = self._run(data, hx and _reorder(hx, order), batch_sizes)
            return PackedSequence(outputs, batch_sizes, order, back), _reorder(state, back)
        if input.dim() not in (2, 3):
            raise ValueError(f"input must have 2 or 3 dimensions, (T, I) or with a batch, but it has {input.dim()}.")
        if hx is not None and not hx[0].dim() == hx[1].dim() == input.dim():
            raise RuntimeError(
                f"with an input of {input.dim()} dimensions h and c must have {input.dim()} as well, "
                f"but they have {hx[0].dim()} and {hx[1].dim()}."
            )
        if input.dim() == 3:
            return self._run(input, hx)
        batch = 0 if self.batch_first else 1
        outputs, (h, c) = self._run(input.unsqueeze(batch), hx and (hx[0].unsqueeze(1), hx[1].unsqueeze(1)))
        return outputs.squeeze(batch), (h.squeeze(1), c.squeeze(1))

    def _run(self, inputs: Tensor, hx: State | None, batch_sizes: Tensor | None = None) -> tuple[Tensor, State]:
        """All layers, for an input with a batch."""
        h, c = self._initial_state(inputs, hx, batch_sizes)
        outputs = inputs
        finals: list[State] = []
        layers: list[Layer | None] = []
        for layer in range(self.num_layers):
            if layer:
                outputs = drop(outputs, self.dropout, self.training)
            own = slice(layer * self._directions, (layer + 1) * self._directions)
            state = (h, c) if self.num_layers == 1 else (h[own], c[own])
            outputs, final, run = self._layer(layer, outputs, state, batch_sizes)
            finals.append(final)
            layers.append(run)
        kept = [layer for layer in layers if layer is not None]
        if len(kept) == self.num_layers and not (self.training and self.dropout):
            self.keep_run(inputs, kept)
        return outputs, _joined(finals)

    def _fits(self, inputs: Tensor, hx: State | None) -> bool:
        """Whether initial states are as they have to be for inputs that were met before."""
        if hx is None:
            return True
        batch = inputs.shape[0 if self.batch_first else 1]
        n_states, (h, c) = self.num_layers * self._directions, hx
        return (
            h.shape == (n_states, batch, self.proj_size or self.hidden_size)
            and c.shape == (n_states, batch, self.hidden_size)
            and h.dtype == c.dtype == inputs.dtype
        )

    def _run_again(self, layers: Sequence[Layer], inputs: Tensor, hx: State | None) -> tuple[Tensor, State]:
        """All layers, as they ran before on inputs of this shape."""
        h, c = self._zeros(inputs, inputs.shape[0 if self.batch_first else 1]) if hx is None else hx
        outputs, finals, n = inputs, [], self._directions
        for layer, run in enumerate(layers):
            own = slice(layer * n, (layer + 1) * n)
            state = (h, c) if len(layers) == 1 else (h[own], c[own])
            outputs, final = run.run(outputs, state, batch_first=self.batch_first)
            finals.append(final)
        return outputs, _joined(finals)

    def _layer(
        self, layer: int, inputs: Tensor, state: State, batch_sizes: Tensor | None
    ) -> tuple[Tensor, State, Layer | None]:
        """Both directions of one layer."""
        inputs, h, c = autocast(inputs, *state)
        return self.run(
            f"l{layer}",
            self._both(layer),
            inputs,
            (h, c),
            batch_sizes,
            batch_first=self.batch_first,
        )

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
        n_states = self.num_layers * self._directions
        h_shape = (n_states, batch, self.proj_size or self.hidden_size)
        c_shape = (n_states, batch, self.hidden_size)
        if hx is None:
            return self._zeros(inputs, batch)
        if hx[0].shape != h_shape or hx[1].shape != c_shape:
            raise RuntimeError(
                f"h and c must have shapes {h_shape} and {c_shape} for this input, but have "
                f"{tuple(hx[0].shape)} and {tuple(hx[1].shape)}."
            )
        return hx

    def _zeros(self, inputs: Tensor, batch: int) -> State:
        n_states = self.num_layers * self._directions
        c = inputs.new_zeros(n_states, batch, self.hidden_size)
        return (inputs.new_zeros(n_states, batch, self.proj_size) if self.proj_size else c), c

    @classmethod
    def from_dense(
        cls,
        lstm: nn.LSTM,
        *,
        options: FitOptions = FitOptions(),
        matrices: Sequence[MatrixKind] = ("input",),
        method: Method = "auto",
        **shape: Unpack[ShapeOptions],
    ) -> BTLSTM:
        """Fit every ``W``, or what ``matrices`` says, and copy the rest.

        Dtype, device, training and gradient flags are those of ``lstm``.

        Args:
            lstm: never changed, and shares no storage with the result.
            options: effort, seed and device of the fits.
            matrices: as the constructor's.
            method: as the constructor's.
            **shape: fields of :class:`btcompress.modes.ShapeRequest`; ``cp_rank`` is 2 where left out. Ranks
                beyond what the modes hold mean full rank: the result then computes what ``lstm`` does.

        Raises:
            ShapeError: modes, ranks and sizes do not fit together.
            BTCompressError: a matrix is not finite, or an LSTM has no such kind of matrices.
        """
        shape.setdefault("cp_rank", 2)
        weight: Tensor = lstm.get_parameter("weight_hh_l0")
        arguments = {name: getattr(lstm, name) for name in ARGUMENTS}
        module = cls(
            lstm.input_size,
            lstm.hidden_size,
            **arguments,
            device="meta",
            dtype=weight.dtype,
            matrices=matrices,
            method=method,
            **shape,
        )
        return fill_factorized(module.to_empty(device=weight.device), lstm, options)

    def to_dense(self) -> nn.LSTM:
        """The plain LSTM, every matrix formed; shares no storage with this one."""
        weight = self.weight_hh_l0
        arguments = {name: getattr(self, name) for name in ARGUMENTS}
        lstm = nn.LSTM(self.input_size, self.hidden_size, **arguments, device="meta", dtype=weight.dtype)
        return fill_dense(lstm.to_empty(device=weight.device), self)

    def extra_repr(self) -> str:
        """Arguments that are not at their defaults, as :class:`torch.nn.LSTM` shows them."""
        changed = {name: getattr(self, name) for name, default in ARGUMENTS.items() if getattr(self, name) != default}
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *(f"{name}={changed[name]}" for name in changed)])


def _joined(states: Sequence[State]) -> State:
    """The states of all layers."""
    if len(states) == 1:
        return states[0]
    h, c = (torch.cat(each) for each in zip(*states, strict=True))
    return h, c


def _reorder(state: State, order: Tensor | None) -> State:
    """The states of a batch in another order."""
    if order is None:
        return state
    h, c = state
    return h.index_select(1, order), c.index_select(1, order)
