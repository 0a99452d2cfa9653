"""One LSTM layer in a loop over its steps, with a backward pass of its own.

Autograd would note a dozen operations at each step, and multiply and add up the gradient of each matrix step by step.
Here every step writes to memory set aside for all of them, and what can be done for all steps at once is: the
derivatives of the gates, and the gradient of each matrix as one product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

#: What torch hands to the methods of an autograd function; it has no type for it.
Context = Any

#: Matrices whose product, from left to right, is a weight: itself alone, or the two factors of a low-rank one.
Chain = tuple[Tensor, ...]


def loop_over_steps(
    z: Sequence[Tensor],
    state: tuple[Tensor, Tensor],
    weights: Sequence[Sequence[Chain]],
    batch_sizes: Sequence[int],
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A layer; differentiable once.

    Args:
        z: ``W x + b`` for each direction, ``(T, B, 4H)`` or the data of a packed sequence; on a CPU, and like all
            else of one dtype, float32 or float64.
        state: initial states, shapes ``(directions, B, H)``, or ``(directions, B, projected size)`` for ``h``.
        weights: for each direction ``weight_hh``, and ``weight_hr`` where there is one.
        batch_sizes: sequences at each step, at least one, never rising.

    Returns:
        Outputs of all steps, directions side by side, and the final states.
    """
    outline = _Outline(tuple(batch_sizes), tuple(tuple(map(len, own)) for own in weights))
    matrices = [matrix for own in weights for chain in own for matrix in chain]
    tensors = (*state, *z, *matrices)
    kept = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    outputs, h, c = _Layer.apply(outline, kept, *tensors)  # type: ignore[no-untyped-call]
    return outputs.reshape(*z[0].shape[:-1], outputs.shape[-1]), (h, c)


@dataclass(frozen=True, slots=True)
class _Outline:
    """What there is to know of a layer beside its tensors.

    Attributes:
        sizes: sequences at each step.
        lengths: for each direction, of how many matrices ``U``, and ``P`` where there is one, is the product.
    """

    sizes: tuple[int, ...]
    lengths: tuple[tuple[int, ...], ...]

    def by_direction(self, matrices: Sequence[Item]) -> list[list[tuple[Item, ...]]]:
        """What there is for each matrix, by directions and chains."""
        left = iter(matrices)
        return [[tuple(next(left) for _ in range(length)) for length in own] for own in self.lengths]

    def order(self, direction: int) -> range:
        """Steps in the order in which a direction takes them."""
        steps = range(len(self.sizes))
        return steps[::-1] if direction else steps

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """Step by step: the rows of all steps, or those of one, which every step writes over."""
        return rows.split(self.sizes) if len(rows) == sum(self.sizes) else [rows[:n] for n in self.sizes]

    def before(self, rows: Tensor, initial: Tensor, direction: int) -> Tensor:
        """The states from which all steps start, given the rows of those in which they end."""
        steps, order = self.split(rows), self.order(direction)
        found = [initial[: self.sizes[order[0]]]]
        found += [_grown(steps[last], initial, self.sizes[step]) for last, step in pairwise(order)]
        return torch.cat(found[::-1] if direction else found)

    def final(self, steps: Sequence[Tensor], direction: int) -> Tensor:
        """The states in which sequences end. A packed sequence has its longest members first."""
        if direction:
            return steps[0].clone()
        left = zip(steps, self.sizes, (*self.sizes[1:], 0), strict=True)
        return torch.cat([step[after:] for step, n, after in left if n > after][::-1])


def _grown(states: Tensor, initial: Tensor, n: int) -> Tensor:
    """States of the first ``n`` sequences; those that only begin now are in their initial ones."""
    return states[:n] if n <= len(states) else torch.cat([states, initial[len(states) : n]])


class _Product:
    """Rows times a chain, step by step; what lies between its matrices is kept for all steps."""

    def __init__(self, chain: Chain, outline: _Outline, n_rows: int) -> None:
        self.chain, self.transposed = chain, [matrix.T for matrix in chain]
        self.inner = [matrix.new_empty(n_rows, len(matrix)) for matrix in chain[1:]]
        self._steps = [outline.split(rows) for rows in self.inner]

    def before_last(self, step: int, rows: Tensor) -> Tensor:
        """``rows`` by the chain transposed, but for the last product, which is with ``transposed[0]``."""
        for n in range(len(self._steps), 0, -1):
            rows = torch.mm(rows, self.transposed[n], out=self._steps[n - 1][step])
        return rows

    def back(self, step: int, gradients: Tensor, out: Tensor) -> None:
        """``gradients`` by the chain, to ``out``."""
        for n, steps in enumerate(self._steps):
            gradients = torch.mm(gradients, self.chain[n], out=steps[step])
        torch.mm(gradients, self.chain[-1], out=out)


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one direction's pass forward leaves to its gradient, in rows of all steps.

    Attributes:
        outputs: hidden states, projected where there is a projection.
        gates: after their functions, ``i, f, g, o`` side by side.
        cells: ``c``.
        tanhs: of the cells.
        inner: what lies between the matrices of each chain.
    """

    outputs: Tensor
    gates: Tensor
    cells: Tensor
    tanhs: Tensor
    inner: tuple[Tensor, ...]


class _Once(torch.autograd.Function):
    """Gradients as they are. ``once_differentiable`` would take them for constants where no gradient leads to them."""

    @staticmethod
    def forward(ctx: Context, gradient: Tensor) -> Tensor:  # noqa: ARG004
        """The gradient."""
        return gradient.clone()

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> Tensor:  # noqa: ARG004
        """Refuse to go on."""
        raise RuntimeError(
            "an LSTM layer of this size can be differentiated only once here, as torch.nn.LSTM can on a CPU in "
            "float32. Leave out create_graph=True, or take both derivatives by torch.func."
        )


class _Layer(torch.autograd.Function):
    """Initial states, ``z`` of each direction and matrices to outputs, in rows of all steps, and final states."""

    @staticmethod
    def forward(
        ctx: Context, outline: _Outline, kept: bool, h: Tensor, c: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run all directions."""
        n_directions, n_outputs = h.shape[0], h.shape[-1]
        z, matrices = tensors[:n_directions], tensors[n_directions:]
        outputs = h.new_empty(sum(outline.sizes), n_directions * n_outputs)
        columns = outputs.split(n_outputs, dim=1)
        finals, saved = [], []
        for n, chains in enumerate(outline.by_direction(matrices)):
            final, left = _forward(outline, n, chains, z[n], (h[n], c[n]), columns[n], kept)
            finals.append(final)
            saved += [left.gates, left.cells, left.tanhs, *left.inner]
        if kept:
            ctx.outline = outline
            ctx.save_for_backward(h, c, outputs, *matrices, *saved)
            ctx.z_shape = z[0].shape
            ctx.set_materialize_grads(False)
        last_h, last_c = (torch.stack(each) for each in zip(*finals, strict=True))
        return outputs, last_h, last_c

    @staticmethod
    def backward(ctx: Context, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run all directions back."""
        with torch.no_grad():
            found = _Layer._gradients(ctx, *d_results)
        if not torch.is_grad_enabled():
            return found
        return tuple(each if each is None else _Once.apply(each.requires_grad_()) for each in found)  # type: ignore[no-untyped-call]

    @staticmethod
    def _gradients(
        ctx: Context, d_outputs: Tensor | None, d_h: Tensor | None, d_c: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        outline: _Outline = ctx.outline
        h, c, outputs, *rest = ctx.saved_tensors
        n_directions, n_outputs, n_matrices = h.shape[0], h.shape[-1], sum(map(sum, outline.lengths))
        all_chains, saved = outline.by_direction(rest[:n_matrices]), iter(rest[n_matrices:])
        needed = outline.by_direction(ctx.needs_input_grad[4 + n_directions :])
        d_initial = tuple(
            torch.zeros_like(like) if given is None else given.clone() for given, like in ((d_h, h), (d_c, c))
        )
        dz, d_matrices = [], []
        for n, chains in enumerate(all_chains):
            columns = slice(n * n_outputs, (n + 1) * n_outputs)
            gates, cells, tanhs, *inner = [next(saved) for _ in range(3 + sum(len(chain) - 1 for chain in chains))]
            left = _Pass(outputs[:, columns], gates, cells, tanhs, tuple(inner))
            back = _Backward(outline, n, chains, left, (h[n], c[n]))
            back.run(None if d_outputs is None else d_outputs[:, columns], (d_initial[0][n], d_initial[1][n]))
            dz.append(back.dz.reshape(ctx.z_shape))
            d_matrices += list(back.of_matrices(needed[n]))
        return None, None, *d_initial, *dz, *d_matrices


def _forward(
    outline: _Outline,
    direction: int,
    chains: Sequence[Chain],
    z: Tensor,
    initial: tuple[Tensor, Tensor],
    outputs: Tensor,
    kept: bool,
) -> tuple[tuple[Tensor, Tensor], _Pass]:
    """One direction, its hidden states written to ``outputs``: the final state, and what is kept for the gradient."""
    (h, c), hidden_size = initial, initial[1].shape[1]
    n_rows = len(outputs) if kept else len(c)
    gates, cells, tanhs = (z.new_empty(n_rows, n * hidden_size) for n in (4, 1, 1))
    products = [_Product(chain, outline, n_rows) for chain in chains]
    recurrent, *projection = products
    z_steps = z.unbind() if z.dim() == 3 else z.split(outline.sizes)
    output_steps, gate_steps, cell_steps, tanh_steps = map(outline.split, (outputs, gates, cells, tanhs))
    inputs_and_forgets = outline.split(gates[:, : 2 * hidden_size])
    inputs, forgets, updates, opens = map(outline.split, gates.chunk(4, dim=1))
    for step in outline.order(direction):
        n = outline.sizes[step]
        rows = recurrent.before_last(step, _grown(h, initial[0], n))
        torch.addmm(z_steps[step], rows, recurrent.transposed[0], out=gate_steps[step])
        inputs_and_forgets[step].sigmoid_()
        updates[step].tanh_()
        opens[step].sigmoid_()
        torch.mul(forgets[step], _grown(c, initial[1], n), out=cell_steps[step])
        c = cell_steps[step].addcmul_(inputs[step], updates[step])
        tanh = torch.tanh(c, out=tanh_steps[step])
        h = output_steps[step]
        if projection:
            rows = projection[0].before_last(step, opens[step] * tanh)
            torch.mm(rows, projection[0].transposed[0], out=h)
        else:
            torch.mul(opens[step], tanh, out=h)
    final = outline.final(output_steps, direction), outline.final(cell_steps, direction)
    return final, _Pass(outputs, gates, cells, tanhs, tuple(rows for product in products for rows in product.inner))


class _Backward:
    """The gradients of one direction.

    Attributes:
        dz: of ``z``, in rows of all steps. Until :meth:`run` has reached a step, its rows hold derivatives by ``z``: of
            the cell for the first three gates, of the hidden state for the last.
    """

    def __init__(
        self, outline: _Outline, direction: int, chains: Sequence[Chain], left: _Pass, initial: tuple[Tensor, Tensor]
    ) -> None:
        self.outline, self.direction, self.left, self.initial = outline, direction, left, initial
        self.dz = torch.empty_like(left.gates)
        self.products = [_Product(chain, outline, len(self.dz)) for chain in chains]
        self.d_projected = torch.empty_like(left.outputs) if len(chains) > 1 else None

    def run(self, d_outputs: Tensor | None, d_state: tuple[Tensor, Tensor]) -> None:
        """Take all steps back.

        Args:
            d_outputs: gradient of the outputs, in rows; None where it is zero.
            d_state: of the final state; of the initial one afterwards.
        """
        outline, left, hidden_size = self.outline, self.left, self.initial[1].shape[1]
        recurrent, *projection = self.products
        hidden_by_cell = self._derivatives()
        by_cell, by_hidden = self.dz.split([3 * hidden_size, hidden_size], dim=1)
        dz_steps, by_hidden_steps, through_tanh = map(outline.split, (self.dz, by_hidden, hidden_by_cell))
        by_cell_steps = outline.split(by_cell.unflatten(1, (3, hidden_size)))
        forgets = outline.split(left.gates[:, hidden_size : 2 * hidden_size])
        d_output_steps = None if d_outputs is None else outline.split(d_outputs)
        d_projected_steps = () if self.d_projected is None else outline.split(self.d_projected)
        for step in reversed(outline.order(self.direction)):
            n = outline.sizes[step]
            d_output, dc = d_state[0][:n], d_state[1][:n]
            if d_output_steps is not None:
                d_output.add_(d_output_steps[step])
            dh = d_output
            if projection:
                d_projected_steps[step].copy_(d_output)
                dh = torch.empty_like(dc)
                projection[0].back(step, d_output, dh)
            dc.addcmul_(dh, through_tanh[step])
            by_hidden_steps[step].mul_(dh)
            by_cell_steps[step].mul_(dc.unsqueeze(1))
            dc.mul_(forgets[step])
            recurrent.back(step, dz_steps[step], d_output)

    def _derivatives(self) -> Tensor:
        """Those of all steps by ``z``, to :attr:`dz`; returned is that of the hidden state by the cell."""
        inputs, forgets, updates, opens = self.left.gates.chunk(4, dim=1)
        by_input, by_forget, by_update, by_open = self.dz.chunk(4, dim=1)
        cells = self.outline.before(self.left.cells, self.initial[1], self.direction)
        sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        sigmoid_backward.grad_input(updates, inputs, grad_input=by_input)
        sigmoid_backward.grad_input(cells, forgets, grad_input=by_forget)
        tanh_backward.grad_input(inputs, updates, grad_input=by_update)
        sigmoid_backward.grad_input(self.left.tanhs, opens, grad_input=by_open)
        hidden_by_cell: Tensor = tanh_backward(opens, self.left.tanhs)
        return hidden_by_cell

    def of_matrices(self, needed: Sequence[Sequence[bool]]) -> Iterator[Tensor | None]:
        """Gradients of the matrices of all chains, after :meth:`run`; None for those that are not needed."""
        left, inner = self.left, iter(self.left.inner)
        for product, needs in zip(self.products, needed, strict=True):
            recurrent = product is self.products[0]
            between = [next(inner) for _ in product.inner]
            if not any(needs):
                yield from (None for _ in needs)
                continue
            if recurrent:
                rows = self.outline.before(left.outputs, self.initial[0], self.direction)
            else:
                rows = left.gates[:, -left.tanhs.shape[1] :] * left.tanhs
            gradient = self.dz if self.d_projected is None or recurrent else self.d_projected
            pairs = zip((gradient, *product.inner), (*between, rows), strict=True)
            # Transposed like this the product is never slower, and faster where the factors are narrow.
            yield from (
                (right.T @ above).T if need else None for (above, right), need in zip(pairs, needs, strict=True)
            )
