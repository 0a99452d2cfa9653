"""One recurrent layer where a compiler, exporter or tracer records operations, to run them on inputs of any sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from btcompress.contraction import autocast
from btcompress.nn.celltype import State
from btcompress.nn.recurrence import Direction, run_kernel
from btcompress.nn.ways import Method
from btcompress.nn.weight import BTWeight, Products, Weight

#: Rows that inputs are taken to have, as their true number is not known: 50 steps of one sequence.
ROWS = 50


def captured_layer(
    directions: Sequence[Direction],
    inputs: Tensor,
    state: State,
    batch_sizes: Tensor | None = None,
    *,
    method: Method,
    training: bool,
    batch_first: bool = False,
) -> tuple[Tensor, State]:
    """The layer by torch's kernel, one operation for all steps; nothing depends on the sizes of inputs.

    Inputs are multiplied by the factors of ``W`` as far as that pays; of ``U`` and of a projection the dense matrices
    are formed anew at each call, whatever the method says.

    Args:
        directions: matrices and biases.
        inputs: as :func:`btcompress.nn.recurrence.kernel_layer`'s.
        state: initial states, shapes ``(directions, B, H)``.
        batch_sizes: sequences at each step, for packed inputs.
        method: how to multiply by ``W``.
        training: whether the module is in training mode.
        batch_first: the order of the first two axes of inputs and outputs.

    Returns:
        As :func:`btcompress.nn.recurrence.kernel_layer`.
    """
    w = [_input_multiplier(own.w, method) for own in directions]
    recurrent = [[_formed(each) for each in own.recurrent] for own in directions]
    biases = [[autocast(bias)[0] for bias in own.biases or ()] for own in directions]
    return run_kernel(
        w,
        recurrent,
        biases,
        inputs,
        state,
        batch_sizes,
        training=training,
        batch_first=batch_first,
        cell=directions[0].cell,
    )


def _input_multiplier(weight: Weight, method: Method) -> Tensor | Products:
    if not isinstance(weight, BTWeight):
        return autocast(weight)[0]
    if weight.is_low_rank and method != "dense":
        return weight.prepare()
    # Torch's kernel copies what other factors give, by an identity.
    dense = weight.prefers_dense(ROWS, method, copied=True)
    return _formed(weight) if dense else weight.prepare()


def _formed(weight: Weight) -> Tensor:
    """The dense matrix; one of low rank by a single product."""
    if not isinstance(weight, BTWeight):
        return autocast(weight)[0]
    factors = weight.low_rank_factors()
    return autocast(weight.to_dense() if factors is None else factors[0] @ factors[1])[0]
