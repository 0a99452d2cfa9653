"""How long each way to run a layer takes on a CPU: a cost model of operations, bytes and calls.

Every kind of run has a formula of its own, a sum of the quantities below times constants. The constants were fitted to
measurements of two cores with tests/benchmarks/ways_costs.py. They are no property of the machine that runs this: the
same sizes always give the same way.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import astuple, dataclass
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
    outputs = next((shape.out_size for shape in task.p if shape is not None), task.hidden)
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
    "loop": Quantities(call=53.5, step=30, gate=0.0142, read=376, inputs=14.5, chain=8.8, links=17.6, compared=1100),
    "loop of one": Quantities(call=104, step=12.1, gate=0.0266, product=58.9, inputs=22.4, chain=14.2, links=9.14, compared=532),
    "one step": Quantities(call=48.9, product=230, inputs=205, chain=33.7, links=5.15, compared=27.2),
    "onednn": Quantities(call=94, step=8.14, gate=0.00672, read=2.46, far=23.2, inputs=18, formed=551),
    "own kernel": Quantities(call=85.3, step=11.3, gate=0.0165, product=14.6, read=109, far=93, inputs=17.1),
    "packed kernel": Quantities(call=95.1, step=5.28, gate=0.0078, product=5.03, read=22.9, far=8.6, inputs=12.6, chain=9.22, links=38.3, compared=533),
    "trained definition": Quantities(call=319, step=134, gate=0.0612, product=18.7, read=882, inputs=19, chain=31.2, links=71.7, formed=1220),
    "trained loop": Quantities(call=798, step=45, gate=0.0496, product=46.1, read=264, far=52.4, inputs=18.4, chain=33.2, links=137, formed=1350),
    "trained onednn": Quantities(call=448, step=13.8, gate=0.0244, product=0.672, read=65.1, far=21.2, inputs=53.3, chain=31.1, links=278, formed=1580),
    "trained own kernel": Quantities(call=224, step=91, gate=0.0467, product=1.28, read=808, far=93.3, inputs=46.1),
}


def seconds(way: Way, task: Task) -> float:
    """Estimated seconds of one call."""
    constants = _CONSTANTS[kind_of(way, task)]
    return sum(map(operator.mul, astuple(constants), astuple(quantities(way, task)))) / 1e6
