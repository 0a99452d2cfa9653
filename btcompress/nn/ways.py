"""The ways to run a recurrent layer, and what each needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from btcompress.errors import BTCompressError
from btcompress.shapes import GATES, Cell, MatrixShape

#: How to multiply by factorized matrices: by their factors, by dense matrices formed of them, or by the cheaper.
Method = Literal["auto", "factored", "dense"]

#: What multiplies: the factors of a matrix that has some, or the dense matrix.
Operand = Literal["factors", "dense"]

#: Who takes the steps: torch's kernel; a loop of our own; or the definition, under autograd.
Steps = Literal["kernel", "loop", "definition"]


def check_method(method: Method) -> Method:
    """The method itself.

    Raises:
        BTCompressError: there is no such method.
    """
    if method not in get_args(Method):
        raise BTCompressError(f"method must be one of {', '.join(get_args(Method))}, but {method!r} was given.")
    return method


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a layer; a matrix without factors is dense in all of them.

    Attributes:
        steps: who takes the steps.
        inputs: what multiplies the inputs, for all steps at once. Torch's kernel does it itself with a dense matrix, or
            with the left factor of a low-rank one; of what other factors give it copies, by an identity.
        recurrent: what multiplies the hidden states, step by step: ``U`` and ``P``.
    """

    steps: Steps
    inputs: Operand
    recurrent: Operand

    def __str__(self) -> str:
        return f"{self.steps}, inputs by {self.inputs}, states by {self.recurrent}"


@dataclass(frozen=True, slots=True)
class Task:
    """What a layer is to do, and what it may use.

    Attributes:
        inputs: ``I``.
        hidden: ``H``.
        steps: ``T``.
        batch: ``B``.
        rows: of all steps; fewer than ``T B`` in packed sequences.
        packed: whether sequences are packed.
        trains: whether gradients are asked for.
        w: for each direction, the form of ``W``; None if it is dense.
        u: likewise.
        p: likewise, of projections; empty without.
        outputs: size to which hidden states are projected; 0 without.
        loops: whether a loop of our own may run here.
        keeps: whether what is formed may be kept.
        onednn: whether torch's kernel is that of oneDNN.
        cpu: whether a CPU computes.
        cell: what is computed at each step.
    """

    inputs: int
    hidden: int
    steps: int
    batch: int
    rows: int
    packed: bool
    trains: bool
    w: tuple[MatrixShape | None, ...]
    u: tuple[MatrixShape | None, ...]
    p: tuple[MatrixShape | None, ...] = ()
    outputs: int = 0
    loops: bool = True
    keeps: bool = True
    onednn: bool = True
    cpu: bool = True
    cell: Cell = "lstm"

    @property
    def n_gates(self) -> int:
        """Rows of ``W`` and ``U`` per hidden unit."""
        return len(GATES[self.cell])

    @property
    def recurrent(self) -> tuple[MatrixShape | None, ...]:
        """Forms of all that multiplies hidden states."""
        return self.u + self.p


def possible_ways(task: Task, method: Method) -> Iterator[Way]:
    """All ways in which the task can be done as the method asks."""
    inputs, recurrent = _operands(task.w, method), _operands(task.recurrent, method)
    # The loop that is differentiable, and takes packed sequences, is that of an LSTM.
    loops = task.loops and (task.cell == "lstm" or not (task.trains or task.packed))
    # A loop multiplies by matrices, or by two factors.
    by_matrices = all(shape is None or is_low_rank(shape) for shape in task.recurrent)
    for w in inputs:
        for u in recurrent:
            if u == "dense":
                yield Way("kernel", w, u)
            if loops and (u == "dense" or by_matrices):
                yield Way("loop", w, u)
            yield Way("definition", w, u)


def _operands(shapes: tuple[MatrixShape | None, ...], method: Method) -> tuple[Operand, ...]:
    if not any(shapes) or method == "dense":
        return ("dense",)
    return ("factors",) if method == "factored" else ("factors", "dense")


def is_low_rank(shape: MatrixShape) -> bool:
    """Whether a matrix of this form is a plain product of two factors."""
    return shape.gates == "fused" and shape.part.is_low_rank
