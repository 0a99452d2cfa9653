"""One recurrent layer where no gradient is asked for: by what was formed of its matrices once, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from btcompress.nn.celltype import State, StepScratch
from btcompress.nn.formed import Formed
from btcompress.nn.plainsteps import (
    added_product,
    loop,
    loop_of_one,
    one_step,
    one_step_of_several,
    transposed,
    turned,
    turned_back,
)
from btcompress.nn.recurrence import (
    Direction,
    Name,
    joined_lefts,
    joined_rows,
    recur_by_steps,
    tensors_of,
    uses_onednn,
)
from btcompress.nn.steps import Chain
from btcompress.nn.ways import Way
from btcompress.nn.weight import Products, multiply

Value = TypeVar("Value")

#: One direction, of inputs and states: outputs, and the final states.
Run = Callable[[int, Tensor, State], tuple[Tensor, State]]

#: How oneDNN's routine is told that it is an LSTM.
_LSTM_MODE = 2

#: From so many hidden units of all sequences on, a step is worth to be turned, features first.
_TURNED_FROM = 2**13


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
        self.cell = directions[0].cell
        self._views = {(name, n): self._view(name, n) for n, own in enumerate(directions) for name in own.names}
        self._tensors = {
            (name, n): tensors_of(own.weight(name)) for n, own in enumerate(directions) for name in own.names
        }
        self._scratch: dict[tuple[int, int], StepScratch] = {}

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
            outputs, final = self._each(self._loop_for(inputs, state), inputs, state)
        elif steps == "kernel" and can_pack(inputs, self.directions):
            outputs, final = self._each(self._packed_kernel, inputs, state)
        elif steps == "kernel":
            outputs, final = self._kernel(inputs, state)
        else:
            outputs, final = self._definition(inputs, state)
        return outputs.transpose(0, 1) if batch_first else outputs, final

    def step(self, n: int, row: Tensor, state: State) -> State:
        """One step of one sequence in direction ``n``; nothing is laid out for it, so that nothing has to be compared.

        Args:
            n: the direction.
            row: its input, shape ``(I)``.
            state: tensors of shape ``(H)``, or of the projected size for ``h``.

        Returns:
            The next state.
        """
        own, w = self.directions[n], self._operand("w", n)
        z = w.matmul(row, own.bias) if isinstance(w, Products) else added_product(own.bias, w, row)
        u, bias = self._chain("u", n), own.recurrent_bias
        return one_step(z, state, u, bias, self._projection(n), self._scratch_for(z))

    def _scratch_for(self, z: Tensor) -> StepScratch:
        """Memory for one step of ``z``; every thread has its own."""
        key = get_ident(), z.numel()
        scratch = self._scratch.get(key)
        if scratch is None:
            # Tensors of inference mode could not be written over outside of it.
            with torch.inference_mode(mode=False):
                scratch = self._scratch[key] = self.cell.scratch(z)
        return scratch

    def _projection(self, n: int) -> Chain:
        return () if self.directions[n].p is None else self._chain("p", n)

    def _one_step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        row = inputs.reshape(-1)
        if len(self.directions) == 1:
            h, *c = self.step(0, row, tuple([each.reshape(-1) for each in state]))
            h = h.view(1, 1, -1)
            return h.clone(), (h, *[each.view(1, 1, -1) for each in c])
        found = [self.step(n, row, tuple(each[n, 0] for each in state)) for n in range(len(self.directions))]
        h, *c = (torch.stack(each).unsqueeze(1) for each in zip(*found, strict=True))
        return h.view(1, 1, -1).clone(), (h, *c)

    def _each(self, run: Run, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """All directions one by one, steps first, each with its part of the states, shape ``(1, B, H)``."""
        if len(self.directions) == 1:
            return run(0, inputs, state)
        found = [run(n, inputs, tuple(each[n : n + 1] for each in state)) for n in range(len(self.directions))]
        outputs, finals = zip(*found, strict=True)
        return torch.cat(outputs, dim=-1), tuple(torch.cat(each) for each in zip(*finals, strict=True))

    def _loop_for(self, inputs: Tensor, state: State) -> Run:
        (steps, batch), hidden = inputs.shape[:2], state[-1].shape[-1]
        if batch == 1:
            return self._loop_of_one
        return self._step_of_several if steps == 1 and batch * hidden < _TURNED_FROM else self._loop

    def _loop_of_one(self, n: int, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        z = self._rows(n, inputs.reshape(len(inputs), -1), self.directions[n].bias)
        recurrent = self._keep(
            ("transposed", self.way.recurrent, n), ("u",), lambda: transposed(self._chain("u", n, keep=False))
        )
        initial, bias = tuple([each.reshape(-1) for each in state]), self.directions[n].recurrent_bias
        outputs, final = loop_of_one(self.cell, z, initial, recurrent, bias, self._projection(n), backward=n == 1)
        return outputs.unsqueeze(1), tuple([each.view(1, 1, -1) for each in final])

    def _step_of_several(self, n: int, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        own, u, p = self.directions[n], self._chain("u", n), self._projection(n)
        z = self._rows(n, inputs[0], own.bias)
        initial = tuple([each[0] for each in state])
        h, *c = one_step_of_several(z, initial, u, own.recurrent_bias, p, self._scratch_for(z))
        h = h.unsqueeze(0)
        return h.clone(), (h, *[each.unsqueeze(0) for each in c])

    def _loop(self, n: int, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        bias, w, batch = self.directions[n].bias, self._operand("w", n), inputs.shape[1]
        if isinstance(w, tuple) and len(w) > 1:
            left, columns = w[0], turned(linear(inputs, w[1]))
            left = left.expand(len(inputs), *left.shape)
            z = torch.bmm(left, columns) if bias is None else torch.baddbmm(bias.unsqueeze(1), left, columns)
        else:
            z = turned(self._rows(n, inputs, bias))
        initial, u = tuple([turned(each)[0] for each in state]), self._chain("u", n)
        added, p = self.directions[n].recurrent_bias, self._projection(n)
        outputs, final = loop(self.cell, z, initial, u, added, p, backward=n == 1)
        return turned_back(outputs, batch), tuple([turned_back(each.unsqueeze(0), batch) for each in final])

    def _rows(self, n: int, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """``W x + b`` of all rows, shape ``(..., gates * H)``."""
        w = self._operand("w", n)
        if isinstance(w, Products):
            return multiply(inputs, w, bias)
        return linear(linear(inputs, w[1]), w[0], bias) if len(w) > 1 else linear(inputs, w[0], bias)

    def _packed_kernel(self, n: int, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """OneDNN's kernel on weights in the layout that it works in, which it would make anew at each call."""
        h, c = state
        own, rows, hidden = self.directions[n], self._begun_rows(n, inputs).contiguous(), c.shape[-1]

        def pack() -> tuple[Tensor, ...]:
            # It takes their memory as it lies, whatever strides they have.
            left, (u,) = self._left(n).contiguous(), self._chain("u", n, keep=False)
            arguments = (hidden, n == 1, own.biases is not None, False, list(rows.shape))
            return tuple(torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(left, u.contiguous(), *arguments))

        packed = self._keep(("packed", self.way.inputs, n), ("w", "u"), pack)
        biases = [bias.contiguous() for bias in own.biases or (h.new_zeros(4 * hidden),) * 2]
        common: tuple[Any, ...] = (n == 1, [], _LSTM_MODE, hidden, 1, own.biases is not None, False, False, False)
        states = (h.contiguous(), c.contiguous())
        outputs, h, c, _ = torch.ops.aten.mkldnn_rnn_layer.default(rows, *packed, *biases, *states, *common)
        return outputs, (h, c)

    def _begun_rows(self, n: int, inputs: Tensor) -> Tensor:
        """The inputs, multiplied as far as factors can."""
        if self.way.inputs == "dense":
            return inputs
        w = self._operand("w", n)
        if isinstance(w, Products):
            return w.matmul(inputs)
        return inputs if len(w) == 1 else linear(inputs, w[1])

    def _left(self, n: int) -> Tensor:
        """By what they are to be multiplied yet, to have been by ``W``."""
        # Factors are kept for the rows.
        w, u = self._operand("w", n, keep=self.way.inputs == "factors"), self.directions[n].u
        if not isinstance(w, Products):
            return w[0]
        return torch.eye(len(u) if isinstance(u, Tensor) else u.shape.out_size, dtype=u.dtype, device=u.device)

    def _kernel(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Torch's kernel, in a module that keeps its weights in one piece of memory, as cuDNN wants them."""
        begun = [self._begun_rows(n, inputs) for n in range(len(self.directions))]
        rows = joined_rows(inputs, begun)
        tensors = [tensor for own in self.directions for tensor in own.tensors]
        key = (self.layer, "kernel", self.way.inputs)
        module = self.formed.get(key, tensors, lambda: self._module(rows, shared=rows is inputs))
        if len(state) > 1:
            outputs, final = module(rows, state)
            return outputs, final
        outputs, h = module(rows, state[0])
        return outputs, (h,)

    def _module(self, rows: Tensor, *, shared: bool) -> nn.RNNBase:
        first = self.directions[0]
        lefts = joined_lefts([self._left(n) for n in range(len(self.directions))], shared=shared)
        named: dict[str, Tensor] = {}
        for n, (own, left) in enumerate(zip(self.directions, lefts, strict=True)):
            suffix = "_l0_reverse" if n else "_l0"
            named |= {"weight_ih" + suffix: left, "weight_hh" + suffix: self._chain("u", n, keep=False)[0]}
            named |= {"weight_hr" + suffix: self._chain("p", n, keep=False)[0]} if own.p is not None else {}
            named |= dict(zip(("bias_ih" + suffix, "bias_hh" + suffix), own.biases or (), strict=False))
        module = self.cell.layer(
            rows.shape[-1],
            len(named["weight_hh_l0"]) // self.cell.n_gates,
            bias=first.biases is not None,
            bidirectional=len(self.directions) == 2,
            device=rows.device,
            dtype=rows.dtype,
            **({} if first.p is None else {"proj_size": len(named["weight_hr_l0"])}),
        )
        module.load_state_dict(named)
        return module.requires_grad_(False).eval()

    def _definition(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Step by step, by products that were prepared."""
        z = [self._rows(n, inputs, own.bias) for n, own in enumerate(self.directions)]
        weights = [[self._multiplier(name, n) for name in own.names[1:]] for n, own in enumerate(self.directions)]
        biases = [own.recurrent_bias for own in self.directions]
        return recur_by_steps(torch.cat(z, dim=-1), state, weights, cell=self.cell, biases=biases)

    def _multiplier(self, name: Name, n: int) -> Tensor | Products:
        weight = self.directions[n].weight(name)
        if isinstance(weight, Tensor) or self.way.recurrent == "dense":
            return self._chain(name, n)[0]
        return self._keep((name, "product", n), (name,), weight.prepare)

    def _view(self, name: Name, n: int) -> Chain | None:
        """What multiplies, where it lies in the parameters as it is: a matrix, or two factors."""
        weight = self.directions[n].weight(name)
        if isinstance(weight, Tensor):
            return (weight.detach(),)
        factored = (self.way.inputs if name == "w" else self.way.recurrent) == "factors"
        if not factored or not weight.is_low_rank or not weight.is_in_place:
            return None
        factors = weight.low_rank_factors()
        # Detached, they hold no parameter that is to be swapped for another.
        return factors and (factors[0].detach(), factors[1].detach())

    def _operand(self, name: Name, n: int, *, keep: bool = True) -> Chain | Products:
        """What multiplies: the matrix itself, its dense form, or its factors; not kept where it is only laid out."""
        view, weight = self._views[name, n], self.directions[n].weight(name)
        if view is not None:
            return view
        if isinstance(weight, Tensor):
            return (weight,)
        operand = self.way.inputs if name == "w" else self.way.recurrent

        def form() -> Chain | Products:
            return (weight.to_dense(),) if operand == "dense" else weight.low_rank_factors() or weight.prepare()

        return self._keep((name, operand, n), (name,), form) if keep else form()

    def _chain(self, name: Name, n: int, *, keep: bool = True) -> Chain:
        """The same of a matrix that is itself, dense, or of low rank in every way to run that uses it."""
        operand = self._operand(name, n, keep=keep)
        if isinstance(operand, Products):
            raise TypeError(f"{self.way} needs matrices, or products of two.")
        return operand

    def _keep(self, key: tuple[Any, ...], names: Sequence[Name], form: Callable[[], Value]) -> Value:
        """What is formed of matrices of a direction, which is the last of the key."""
        tensors = [tensor for name in names for tensor in self._tensors[name, key[-1]]]
        return self.formed.get((self.layer, key), tensors, form)


def can_pack(inputs: Tensor, directions: Sequence[Direction]) -> bool:
    """Whether oneDNN's kernel runs this layer, and torch can lay out weights for it beforehand."""
    return (
        directions[0].p is None
        # It divides by the number of rows.
        and inputs.numel() > 0
        and uses_onednn(inputs, directions[0].cell)
        and hasattr(torch.ops.mkldnn, "_reorder_mkldnn_rnn_layer_weight")
    )
