"""One LSTM layer: by torch's kernel, or from the input part ``z = W x + b`` of all its steps, in one of three ways."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from btcompress.nn.steps import Chain, loop_over_steps
from btcompress.nn.weight import BTWeight, Method, multiply, resolve

State = tuple[Tensor, Tensor]

#: A matrix, or one that is applied by its factors.
Weight = Tensor | BTWeight

#: A CPU takes torch's kernel while directions times batch size times squared hidden size stay below this: from there on
#: the products with the identity cost more than the calls of a loop. Where gradients may be asked for, and where not.
#: Measured with tests/benchmarks/training_step.py --ways; not sharp.
_TRAINING_LIMIT = 2**16
_PREDICTION_LIMIT = 2**17

#: The factors of a low-rank matrix take its place in a loop where they have at most this share of its entries. Measured
#: likewise.
_FACTORS_SHARE = 0.6

#: Where every ``W`` is there as a matrix, torch's kernel has no product with an identity to do: for matrices of up to
#: this many entries it is then the cheapest way, ``U`` formed. Measured likewise.
_FORM_FOR_KERNEL_LIMIT = 2**19

#: Matrices of up to this many entries are formed for all steps: their factors' many small products at each step cost
#: more in calls than they save. Measured; not sharp.
_FORM_LIMIT = 2**21


def lstm_step(z: Tensor, state: State, weight_hh: Weight, weight_hr: Weight | None = None) -> State:
    """The next hidden and cell state.

    ``i, f, g, o = split(z + U h)``; ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``; ``h' = sigmoid(o) tanh(c')``,
    projected by ``P`` where there is one.

    Args:
        z: ``W x + b``, shape ``(n, 4H)``.
        state: ``h`` and ``c``, shapes ``(n, H)``, or ``(n, projected size)`` for ``h``.
        weight_hh: ``U``, shape ``(4H, H)`` or ``(4H, projected size)``.
        weight_hr: ``P``, shape ``(projected size, H)``.
    """
    h, c = state
    added = torch.addmm(z, h, weight_hh.T) if isinstance(weight_hh, Tensor) else z + weight_hh.matmul(h)
    i, f, g, o = added.chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if weight_hr is None else multiply(h, weight_hr, None)), c


def kernel_layer(
    inputs: Tensor,
    state: State,
    weights: Sequence[Sequence[Tensor]],
    batch_sizes: Tensor | None = None,
    *,
    bias: bool,
    batch_first: bool = False,
) -> tuple[Tensor, State]:
    """One layer by torch's own kernel.

    Args:
        inputs: ``(T, B, I)``, or ``(B, T, I)`` with ``batch_first``, or the data of a packed sequence.
        state: initial states, shapes ``(directions, B, H)``.
        weights: for each direction ``weight_ih, weight_hh``, then both biases, then ``weight_hr``, as they apply.
        batch_sizes: sequences at each step, for packed inputs.
        bias: whether there are biases.
        batch_first: the order of the first two axes of inputs and outputs.

    Returns:
        Outputs of all steps, directions side by side, and the final states.
    """
    flat = [weight for direction in weights for weight in direction]
    # The kernel has nothing random to do in one layer: training only says that gradients will be asked for.
    common = (flat, bias, 1, 0.0, torch.is_grad_enabled(), len(weights) == 2)
    arguments = (inputs, state, *common, batch_first) if batch_sizes is None else (inputs, batch_sizes, state, *common)
    # A compiler keeps its hands off the kernel, as it does off torch.nn.LSTM: what it makes of it can fail.
    kernel = torch.compiler.disable(_kernel) if torch.compiler.is_compiling() else _kernel
    outputs, h, c = kernel(inputs.device.type, *arguments)
    return outputs, (h, c)


def _kernel(device: str, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401 - as torch.lstm takes them
    """Call torch's kernel on tensors that are in the dtype to compute in."""
    with ExitStack() as stack:
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            # On CUDA it would cast them to float16 here, whatever dtype it is set to.
            stack.enter_context(torch.autocast(device, enabled=False))
        if device != "cpu":
            # Matrices formed anew never lie in one piece of memory, which cuDNN gives advice about at each call.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")
        return torch.lstm(*arguments)


def resolve_for_steps(weight: Weight, n_rows: int, method: Method, *, loops: bool = False) -> Weight:
    """What to multiply by at each step, ``n_rows`` rows in all: the dense matrix, formed once, or the factors.

    ``auto`` takes the factors of a low-rank matrix in a loop over the steps if they are small enough. Else it goes by
    their cost where the matrix is large and on a CPU, and forms what is not, so that torch's kernel can run the steps.

    Args:
        weight: ``U`` or ``P``.
        n_rows: of all steps.
        method: how to multiply.
        loops: whether the steps go by :func:`recur_by_loop` if no matrix stands in the way.
    """
    if method == "auto" and isinstance(weight, BTWeight):
        if loops and weight.is_low_rank and weight.shape.n_params <= _FACTORS_SHARE * weight.shape.dense_params:
            return weight
        large = weight.shape.dense_params > _FORM_LIMIT and weight.device.type == "cpu"
        return resolve(weight, n_rows, "auto" if large else "dense")
    return resolve(weight, n_rows, method)


def loop_pays(inputs: Tensor, state: State, matrices: Sequence[Weight]) -> bool:
    """Whether factors are worth to be kept for the steps, given the ``W`` of each direction as they apply."""
    if not _can_loop([inputs, *state]) or _kernel_pays(state, can_loop=True):
        return False
    by_kernel = all(isinstance(matrix, Tensor) for matrix in matrices)
    return not by_kernel or 4 * state[1].shape[-1] ** 2 > _FORM_FOR_KERNEL_LIMIT


def only_tensors(weights: Sequence[Sequence[Weight]]) -> list[list[Tensor]] | None:
    """The weights themselves if all are matrices; None if one is applied by its factors."""
    tensors = [[weight for weight in own if isinstance(weight, Tensor)] for own in weights]
    return tensors if all(len(kept) == len(own) for kept, own in zip(tensors, weights, strict=True)) else None


def recur(
    z: Tensor,
    state: State,
    weights: Sequence[Sequence[Weight]],
    batch_sizes: Tensor | None = None,
    *,
    batch_first: bool = False,
) -> tuple[Tensor, State]:
    """One layer from the input part of all its steps, by the cheapest of the three ways below that can.

    Args:
        z: ``W x + b`` of each direction side by side, ``(T, B, directions * 4H)``; layouts as :func:`kernel_layer`.
        state: initial states, shapes ``(directions, B, H)``.
        weights: for each direction ``weight_hh``, and ``weight_hr`` where there is one.
        batch_sizes: sequences at each step, for packed inputs.
        batch_first: the order of the first two axes of inputs and outputs.

    Returns:
        As :func:`kernel_layer`.
    """
    return recur_directions(z.chunk(len(weights), dim=-1), state, weights, batch_sizes, batch_first=batch_first)


def recur_directions(
    z: Sequence[Tensor],
    state: State,
    weights: Sequence[Sequence[Weight]],
    batch_sizes: Tensor | None = None,
    *,
    batch_first: bool = False,
) -> tuple[Tensor, State]:
    """:func:`recur` where ``z`` of each direction is a tensor of its own, which saves a copy."""
    matrices, chains = only_tensors(weights), _chains(weights)
    flat = [matrix for own in chains or () for chain in own for matrix in chain]
    can_loop = chains is not None and _can_loop([*z, *state, *flat])
    if matrices is not None and _kernel_pays(state, can_loop=can_loop):
        return recur_by_kernel(torch.cat(list(z), dim=-1), state, matrices, batch_sizes, batch_first=batch_first)
    if chains is not None and can_loop:
        return recur_by_loop(z, state, chains, batch_sizes, batch_first=batch_first)
    return recur_by_steps(torch.cat(list(z), dim=-1), state, weights, batch_sizes, batch_first=batch_first)


def _kernel_pays(state: State, *, can_loop: bool) -> bool:
    """Whether torch's kernel is cheaper than steps or the loop; a GPU's is."""
    directions, batch, hidden = state[1].shape
    limit = _TRAINING_LIMIT if can_loop and torch.is_grad_enabled() else _PREDICTION_LIMIT
    return state[1].device.type != "cpu" or directions * batch * hidden**2 < limit


def _chains(weights: Sequence[Sequence[Weight]]) -> list[list[Chain]] | None:
    """Every weight as itself or its low-rank factors; None if one is neither a matrix nor of low rank."""
    found: list[list[Chain]] = []
    for own in weights:
        chains = [(weight,) if isinstance(weight, Tensor) else weight.low_rank_factors() for weight in own]
        kept: list[Chain] = [chain for chain in chains if chain is not None]
        if len(kept) < len(chains):
            return None
        found.append(kept)
    return found


def _can_loop(tensors: Sequence[Tensor]) -> bool:
    """Whether :func:`recur_by_loop` takes these tensors here: what sees into operations must see all of them."""
    first = tensors[0]
    if first.device.type != "cpu" or first.dtype not in (torch.float32, torch.float64) or not first.numel():
        return False
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return (
        not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and not torch.overrides.has_torch_function(tensors)
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and all(forward_ad.unpack_dual(tensor).tangent is None for tensor in tensors)
    )


def recur_by_loop(
    z: Sequence[Tensor],
    state: State,
    weights: Sequence[Sequence[Chain]],
    batch_sizes: Tensor | None = None,
    *,
    batch_first: bool = False,
) -> tuple[Tensor, State]:
    """The layer by :func:`btcompress.nn.steps.loop_over_steps`: on a CPU, and differentiable once."""
    if batch_sizes is not None:
        return loop_over_steps(z, state, weights, batch_sizes.tolist())
    steps_first = [part.transpose(0, 1) for part in z] if batch_first else z
    steps, batch = steps_first[0].shape[:2]
    outputs, final = loop_over_steps(steps_first, state, weights, [batch] * steps)
    return outputs.transpose(0, 1) if batch_first else outputs, final


def recur_by_kernel(
    z: Tensor,
    state: State,
    weights: Sequence[Sequence[Tensor]],
    batch_sizes: Tensor | None = None,
    *,
    batch_first: bool = False,
) -> tuple[Tensor, State]:
    """The layer by torch's kernel: it takes ``z`` for the inputs and rows of the identity for ``W``."""
    selections = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).chunk(len(weights))
    full = [(selection, *own) for selection, own in zip(selections, weights, strict=True)]
    return kernel_layer(z, state, full, batch_sizes, bias=False, batch_first=batch_first)


def recur_by_steps(
    z: Tensor,
    state: State,
    weights: Sequence[Sequence[Weight]],
    batch_sizes: Tensor | None = None,
    *,
    batch_first: bool = False,
) -> tuple[Tensor, State]:
    """The layer step by step, as it is defined."""
    time = int(batch_first)
    outputs, finals = [], []
    for direction, own in enumerate(weights):
        part = z.chunk(len(weights), dim=-1)[direction]
        steps = part.unbind(time) if batch_sizes is None else part.split(batch_sizes.tolist())
        hidden, final = _run(steps[::-1] if direction else steps, (state[0][direction], state[1][direction]), own)
        outputs.append(hidden[::-1] if direction else hidden)
        finals.append(final)
    joined = [torch.cat(step, dim=-1) for step in zip(*outputs, strict=True)]
    h, c = (torch.stack(each) for each in zip(*finals, strict=True))
    return (torch.stack(joined, time) if batch_sizes is None else torch.cat(joined)), (h, c)


def _run(steps: Sequence[Tensor], state: State, weights: Sequence[Weight]) -> tuple[list[Tensor], State]:
    """All hidden states of one direction, and its final state.

    A packed sequence has its longest members first: a step of ``n`` rows leaves the others' states alone,
    which are final going forward and still initial going backward.
    """
    h, c = state
    outputs = []
    for z in steps:
        n = len(z)
        new_h, new_c = lstm_step(z, (h[:n], c[:n]), *weights)
        outputs.append(new_h)
        h, c = (new_h, new_c) if n == len(h) else (torch.cat([new_h, h[n:]]), torch.cat([new_c, c[n:]]))
    return outputs, (h, c)
