"""How long each way to run a layer takes on a CPU: a cost model of operations, bytes and calls.

Every kind of run has a formula of its own, a sum of the quantities below times constants. The constants were fitted to
measurements of two cores with tests/benchmarks/ways_costs.py. They are no property of the machine that runs this: the
same sizes always give the same way.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

from btcompress.contraction.layout import plan_layout
from btcompress.nn.ways import Operand, Task, Way, is_low_rank
from btcompress.shapes import MatrixShape

#: Numbers that stay in a core's cache from one step to the next; what is more is read from further away.
_NEAR = 2**19


@dataclass(frozen=True, slots=True)
class Quantities:
    """What a run has to do.

    Attributes:
        call: 1, for what happens once.
        step: steps of all directions.
        gate: hidden units, times rows.
        product: entries that each hidden state meets, times rows, in millions.
        read: entries read at each step, times steps, in millions.
        far: those of them that no cache holds.
        inputs: entries that each input meets, times rows, in millions.
        chain: operations of chains of factors, for all rows, in millions.
        links: calls of chains.
        formed: entries of matrices formed anew or laid out anew, in millions, times what forming one takes.
        compared: parameters compared with what was formed of them, in millions.
    """

    call: float = 0.0
    step: float = 0.0
    gate: float = 0.0
    product: float = 0.0
    read: float = 0.0
    far: float = 0.0
    inputs: float = 0.0
    chain: float = 0.0
    links: float = 0.0
    formed: float = 0.0
    compared: float = 0.0


def kind_of(way: Way, task: Task) -> str:
    """Which formula holds for a way to do a task."""
    predicts = not task.trains and not task.packed
    if way.steps == "loop" and predicts:
        return ("one step" if task.steps == 1 else "loop of one") if task.batch == 1 else "loop"
    if way.steps == "kernel" and predicts and task.keeps and task.onednn and not task.p:
        return "packed kernel"
    if way.steps == "kernel":
        name = "onednn" if task.onednn and not task.p else "own kernel"
        return f"trained {name}" if task.trains else name
    # Packed sequences without gradients take the same steps as with them, but back.
    return f"trained {way.steps}"


def quantities(way: Way, task: Task) -> Quantities:
    """What a way has to do for a task."""
    directions, rows, steps = len(task.u), task.rows, task.steps
    recurrent = [_entries(shape, size, way.recurrent) for shape, size in _recurrent(task)]
    read = steps * sum(recurrent)
    widths = [_input_work(shape, task, way) for shape in task.w]
    laid_out = not (task.keeps and not task.trains) and way.steps == "kernel" and task.onednn
    operands = [(shape, way.inputs) for shape in task.w] + [(shape, way.recurrent) for shape in task.recurrent]
    formed, compared = 0.0, 0.0
    for shape, operand in operands:
        if shape is None:
            continue
        if task.trains or not task.keeps:
            formed += _forming(shape) if operand == "dense" else 0
        elif operand == "dense" or not is_low_rank(shape) or way.steps == "kernel" or steps > 1:
            compared += shape.n_params
    if laid_out:
        formed += sum(recurrent) + sum(width for width, _, _ in widths)
    return Quantities(
        call=1,
        step=directions * steps,
        gate=directions * rows * task.hidden,
        product=rows * sum(recurrent) / 1e6,
        read=read / 1e6,
        far=steps * max(0, sum(recurrent) - _NEAR) / 1e6,
        inputs=rows * sum(width for width, _, _ in widths) / 1e6,
        chain=rows * sum(chain for _, chain, _ in widths) / 1e6,
        links=sum(links for _, _, links in widths),
        formed=formed / 1e6,
        compared=compared / 1e6,
    )


def _recurrent(task: Task) -> Iterator[tuple[MatrixShape | None, int]]:
    outputs = task.outputs or task.hidden
    yield from ((shape, 4 * task.hidden * outputs) for shape in task.u)
    yield from ((shape, outputs * task.hidden) for shape in task.p)


def _entries(shape: MatrixShape | None, dense: int, operand: Operand) -> float:
    """Entries that one row meets."""
    if shape is None or operand == "dense":
        return dense
    return shape.n_params if is_low_rank(shape) else _chain(shape)[0] / 2


def _input_work(shape: MatrixShape | None, task: Task, way: Way) -> tuple[float, float, float]:
    """Entries that a row meets before the steps, operations of chains for one row, and calls of these."""
    gates = 4 * task.hidden
    if shape is None or way.inputs == "dense":
        # Without inputs z is given: a kernel gets it by an identity.
        return gates * (task.inputs or (gates if way.steps == "kernel" else 0)), 0, 0
    if is_low_rank(shape):
        return shape.n_params, 0, 1
    cost, links = _chain(shape)
    return (gates * gates if way.steps == "kernel" else 0), cost, links


@lru_cache(maxsize=1024)
def _chain(shape: MatrixShape) -> tuple[float, int]:
    part = shape.part
    layout = plan_layout(part.n_blocks, part.in_modes, part.out_modes, part.ranks)
    return shape.n_parts * layout.cost, shape.n_parts * len(layout.steps)


def _forming(shape: MatrixShape) -> float:
    """Entries of the matrix, times what one takes: for few terms, that is to write it down."""
    return shape.dense_params * (1 + shape.part.n_blocks * min(shape.part.ranks) / 32)


#: Microseconds of each quantity, by kinds of runs.
_CONSTANTS: dict[str, Quantities] = {
    "own kernel": Quantities(call=79, step=9.81, gate=0.0153, product=15.1, read=107),
    "onednn": Quantities(call=119, step=1.02, gate=0.0053, product=14.8, read=22.3, formed=184),
    "loop": Quantities(call=156, step=17.3, gate=0.00431, read=548, inputs=20.7, chain=14.9, links=18.3, compared=999),
    "loop of one": Quantities(call=150, step=10.8, read=59.7, inputs=65.4, chain=55.7, links=23.4),
    "one step": Quantities(step=47.7, read=325, inputs=463, chain=1260, compared=1030),
    "packed kernel": Quantities(
        call=165, step=1.33, gate=0.00516, product=0.187, read=21.8, inputs=17.2, chain=7.96, links=38.2
    ),
    "trained definition": Quantities(
        call=404, step=111, gate=0.0375, read=752, inputs=36.4, chain=32.5, links=38.1, formed=729
    ),
    "trained own kernel": Quantities(call=225, step=72.4, gate=0.0482, product=4.11, read=713),
    "trained loop": Quantities(
        call=825, step=39.9, gate=0.0279, product=25.6, read=280, inputs=29.8, chain=26.2, links=51.1, formed=819
    ),
    "trained onednn": Quantities(
        call=435, step=5.24, gate=0.0158, product=5.04, read=4.96, inputs=45.1, chain=18.1, links=251, formed=1520
    ),
}


def seconds(way: Way, task: Task) -> float:
    """Estimated seconds of one call."""
    return _sum(_CONSTANTS[kind_of(way, task)], quantities(way, task))


#: Microseconds of a call of torch.nn.LSTMCell, which does what torch's own kernel does with less around it: fitted to
#: what tests/benchmarks/lstm_speed.py measured of cells.
_CELL_CALL = 22.0


def dense_seconds(task: Task, *, onednn: bool, cell: bool = False) -> float:
    """Estimated seconds of one call of the dense layer as torch runs it, which keeps nothing.

    The constants were fitted with as many inputs as hidden units. So half of what a kernel's products take is for
    each of both, and what ``W`` has more than ``U`` is read once, see :func:`reading_seconds`.

    Args:
        task: what to do, in prediction.
        onednn: whether oneDNN's kernel does it, or torch's own.
        cell: whether ``torch.nn.LSTMCell`` does it, on no kernel.
    """
    none = (None,) * len(task.w)
    task = replace(task, w=none, u=none, p=none[: len(task.p)], keeps=False, onednn=onednn and not cell)
    way = Way("kernel", "dense", "dense")
    constants, found = _CONSTANTS[kind_of(way, task)], quantities(way, task)
    constants = replace(constants, call=_CELL_CALL) if cell else constants
    found = replace(found, product=(found.product + found.inputs) / 2)
    return _sum(constants, found) + reading_seconds(task)


def reading_seconds(task: Task) -> float:
    """Estimated seconds of reading once what dense matrices ``W`` have more than ``U``, as torch's own kernel reads."""
    gates = 4 * task.hidden
    more = len(task.w) * gates * max(0, task.inputs - (task.outputs or task.hidden)) / 1e6
    constants = _CONSTANTS["own kernel"]
    return more * (constants.read + constants.far) / 1e6


def _sum(constants: Quantities, found: Quantities) -> float:
    return sum(map(operator.mul, astuple(constants), astuple(found))) / 1e6
