"""One LSTM layer where no gradient is asked for: by what was formed of its matrices once, and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from threading import get_ident
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from btcompress.nn.formed import Formed
from btcompress.nn.plainsteps import Chain, StepScratch, added_product, loop, loop_of_one, one_step, transposed
from btcompress.nn.recurrence import (
    Direction,
    Name,
    State,
    Weight,
    joined_lefts,
    joined_rows,
    recur_by_steps,
    tensors_of,
    uses_onednn,
)
from btcompress.nn.ways import Way
from btcompress.nn.weight import BTWeight, Products, multiply

Value = TypeVar("Value")

#: How oneDNN's routine is told that it is an LSTM.
_LSTM_MODE = 2


class Prediction:
    """One layer, and how to run it.

    Args:
        formed: keeps what is formed, and knows that the layer's tensors are these.
        layer: its name, under which that is kept.
        directions: matrices and biases.
        way: how to run.
    """

    def __init__(self, formed: Formed, layer: str, directions: Sequence[Direction], way: Way) -> None:
        self.formed, self.layer, self.directions, self.way = formed, layer, directions, way
        self._views = {(name, n): self._view(name, n) for n, own in enumerate(directions) for name in own.names}
        self._scratch: dict[int, StepScratch] = {}

    def run(
        self,
        inputs: Tensor,
        state: State,
        *,
        batch_first: bool = False,
    ) -> tuple[Tensor, State]:
        """The layer.

        Args:
            inputs: ``(T, B, I)``, or ``(B, T, I)`` with ``batch_first``.
            state: initial states, shapes ``(directions, B, H)``.
            batch_first: the order of the first two axes of inputs and outputs.

        Returns:
            Outputs of all steps, directions side by side, and the final states.
        """
        steps = self.way.steps
        if steps == "loop" and inputs.shape[0] * inputs.shape[1] == 1:
            return self._one_step(inputs, state)
        inputs = inputs.transpose(0, 1) if batch_first else inputs
        if steps == "loop":
            outputs, final = self._each(self._loop_of_one if inputs.shape[1] == 1 else self._loop, inputs, state)
        elif steps == "kernel" and can_pack(inputs, self.directions):
            outputs, final = self._each(self._packed_kernel, inputs, state)
        elif steps == "kernel":
            outputs, final = self._kernel(inputs, state)
        else:
            outputs, final = self._definition(inputs, state)
        return outputs.transpose(0, 1) if batch_first else outputs, final

    def step(self, n: int, row: Tensor, h: Tensor, c: Tensor) -> State:
        """One step of one sequence in direction ``n``; nothing is laid out for it, so that nothing has to be compared.

        Args:
            n: the direction.
            row: its input, shape ``(I)``.
            h: hidden state, shape ``(H)``, or that of the projected size.
            c: cell state, shape ``(H)``.

        Returns:
            The next ``h`` and ``c``.
        """
        own, w = self.directions[n], self._operand("w", n)
        z = w.matmul(row, own.bias) if isinstance(w, Products) else added_product(own.bias, w, row)
        scratch = self._scratch.get(get_ident())
        if scratch is None:
            scratch = self._scratch[get_ident()] = StepScratch(z)
        return one_step(z, h, c, self._chain("u", n), () if own.p is None else self._chain("p", n), scratch)

    def _one_step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        row, (h, c) = inputs.reshape(-1), state
        if len(self.directions) == 1:
            h, c = self.step(0, row, h.reshape(-1), c.reshape(-1))
            h = h.view(1, 1, -1)
            return h.clone(), (h, c.view(1, 1, -1))
        found = [self.step(n, row, h[n, 0], c[n, 0]) for n in range(len(self.directions))]
        h, c = (torch.stack(each).unsqueeze(1) for each in zip(*found, strict=True))
        return h.view(1, 1, -1).clone(), (h, c)

    def _each(
        self, run: Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]], inputs: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """All directions one by one, steps first."""
        found = [run(n, inputs, state[0][n], state[1][n]) for n in range(len(self.directions))]
        outputs, h, c = zip(*found, strict=True)
        if len(outputs) == 1:
            return outputs[0], (h[0].unsqueeze(0), c[0].unsqueeze(0))
        return torch.cat(outputs, dim=-1), (torch.stack(h), torch.stack(c))

    def _loop_of_one(self, n: int, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, bias = self.directions[n], self.directions[n].bias
        z = self._rows(n, inputs.reshape(len(inputs), -1), bias)
        recurrent = self._keep(("transposed", self.way.recurrent, n), (own.u,), lambda: transposed(self._chain("u", n)))
        projection = () if own.p is None else self._chain("p", n)
        outputs, h, c = loop_of_one(z, h[0], c[0], recurrent, projection, backward=n == 1)
        return outputs.unsqueeze(1), h.unsqueeze(0), c.unsqueeze(0)

    def _loop(self, n: int, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, bias, w = self.directions[n], self.directions[n].bias, self._operand("w", n)
        if isinstance(w, tuple) and len(w) > 1:
            left, columns = w[0], linear(inputs, w[1]).transpose(1, 2)
            left = left.expand(len(inputs), *left.shape)
            z = torch.bmm(left, columns) if bias is None else torch.baddbmm(bias.unsqueeze(1), left, columns)
        else:
            z = self._rows(n, inputs, bias).transpose(1, 2).contiguous()
        projection = () if own.p is None else self._chain("p", n)
        h, c = h.T.contiguous(), c.T.contiguous()
        outputs, h, c = loop(z.unbind(), h, c, self._chain("u", n), projection, backward=n == 1)
        return outputs.transpose(1, 2).contiguous(), h.T, c.T

    def _rows(self, n: int, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """``W x + b`` of all rows, shape ``(..., 4H)``."""
        w = self._operand("w", n)
        if isinstance(w, Products):
            return multiply(inputs, w, bias)
        return linear(linear(inputs, w[1]), w[0], bias) if len(w) > 1 else linear(inputs, w[0], bias)

    def _packed_kernel(self, n: int, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """OneDNN's kernel on weights in the layout that it works in, which it would make anew at each call."""
        own, (steps, batch, _) = self.directions[n], inputs.shape
        rows, lefts = self._begun(n, inputs)
        hidden = c.shape[-1]
        sizes = [steps, batch, rows.shape[-1]]

        def pack() -> tuple[Tensor, ...]:
            (u,) = self._chain("u", n)
            arguments = (hidden, n == 1, own.biases is not None, False, sizes)
            return tuple(torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(lefts(), u, *arguments))

        packed = self._keep(("packed", self.way.inputs, n), (own.w, own.u), pack)
        biases = own.biases or (h.new_zeros(4 * hidden),) * 2
        states = (h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous())
        common: tuple[Any, ...] = (n == 1, [], _LSTM_MODE, hidden, 1, own.biases is not None, False, False, False)
        outputs, h, c, _ = torch.ops.aten.mkldnn_rnn_layer(rows.contiguous(), *packed, *biases, *states, *common)
        return outputs, h[0], c[0]

    def _begun(self, n: int, inputs: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """The inputs, multiplied as far as factors can, and what gives the matrix that is left."""
        w = self._operand("w", n)
        if isinstance(w, Products):
            z = w.matmul(inputs)
            return z, lambda: torch.eye(z.shape[-1], dtype=z.dtype)
        return (inputs if len(w) == 1 else linear(inputs, w[1])), lambda: w[0]

    def _kernel(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Torch's kernel, in an LSTM, which keeps its weights in one piece of memory, as cuDNN wants them."""
        begun = [self._begun(n, inputs) for n in range(len(self.directions))]
        rows = joined_rows(inputs, [given for given, _ in begun])
        weights = [weight for own in self.directions for weight in (own.w, *own.recurrent, *(own.biases or ()))]
        lstm = self._keep(("kernel", self.way.inputs), weights, lambda: self._lstm(begun, rows, shared=rows is inputs))
        return lstm(rows, state)

    def _lstm(self, begun: Sequence[tuple[Tensor, Callable[[], Tensor]]], rows: Tensor, *, shared: bool) -> nn.LSTM:
        first = self.directions[0]
        lefts = joined_lefts([left() for _, left in begun], shared=shared)
        named: dict[str, Tensor] = {}
        for n, (own, left) in enumerate(zip(self.directions, lefts, strict=True)):
            suffix = "_l0_reverse" if n else "_l0"
            named |= {"weight_ih" + suffix: left, "weight_hh" + suffix: self._chain("u", n)[0]}
            named |= {"weight_hr" + suffix: self._chain("p", n)[0]} if own.p is not None else {}
            named |= dict(zip(("bias_ih" + suffix, "bias_hh" + suffix), own.biases or (), strict=False))
        hidden = len(named["weight_hh_l0"]) // 4
        proj_size = 0 if first.p is None else len(named["weight_hr_l0"])
        lstm = nn.LSTM(
            rows.shape[-1],
            hidden,
            bias=first.biases is not None,
            bidirectional=len(self.directions) == 2,
            proj_size=proj_size,
            device=lefts[0].device,
            dtype=lefts[0].dtype,
        )
        lstm.load_state_dict(named)
        return lstm.requires_grad_(False).eval()

    def _definition(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Step by step, by products that were prepared."""
        z = [self._rows(n, inputs, own.bias) for n, own in enumerate(self.directions)]
        weights = [[self._multiplier(name, n) for name in own.names[1:]] for n, own in enumerate(self.directions)]
        return recur_by_steps(torch.cat(z, dim=-1), state, weights)

    def _multiplier(self, name: Name, n: int) -> Tensor | Products:
        weight = self.directions[n].weight(name)
        return weight if isinstance(weight, Tensor) else self._keep((name, "product", n), (weight,), weight.prepare)

    def _view(self, name: Name, n: int) -> Chain | None:
        """What multiplies, where it lies in the parameters as it is: a matrix, or two factors."""
        weight = self.directions[n].weight(name)
        if isinstance(weight, Tensor):
            return (weight.detach(),)
        factored = (self.way.inputs if name == "w" else self.way.recurrent) == "factors"
        if not factored or not weight.is_low_rank or not weight.is_in_place:
            return None
        with torch.no_grad():
            return weight.low_rank_factors()

    def _operand(self, name: Name, n: int) -> Chain | Products:
        """What multiplies: the matrix itself, its dense form, or its factors."""
        view = self._views[name, n]
        if view is not None:
            return view
        weight = self.directions[n].weight(name)
        assert isinstance(weight, BTWeight)  # noqa: S101 - a matrix is its own view
        operand = self.way.inputs if name == "w" else self.way.recurrent
        if operand == "dense":
            return self._keep((name, operand, n), (weight,), lambda: (weight.to_dense(),))
        return self._keep((name, operand, n), (weight,), lambda: weight.low_rank_factors() or weight.prepare())

    def _chain(self, name: Name, n: int) -> Chain:
        """The same of a matrix that is itself, dense, or of low rank in every way to run that uses it."""
        operand = self._operand(name, n)
        if isinstance(operand, Products):
            raise TypeError(f"{self.way} needs matrices, or products of two.")
        return operand

    def _keep(self, key: Hashable, weights: Sequence[Weight], form: Callable[[], Value]) -> Value:
        tensors = [tensor for weight in weights for tensor in tensors_of(weight)]
        return self.formed.get((self.layer, key), tensors, form)


def can_pack(inputs: Tensor, directions: Sequence[Direction]) -> bool:
    """Whether oneDNN's kernel runs this layer, and torch can lay out weights for it beforehand."""
    return (
        directions[0].p is None
        and uses_onednn(inputs)
        and hasattr(torch.ops.mkldnn, "_reorder_mkldnn_rnn_layer_weight")
    )
