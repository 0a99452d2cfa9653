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
        taken: entries that inputs meet, read once for all rows, in millions.
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
    taken: float = 0.0
    chain: float = 0.0
    links: float = 0.0
    formed: float = 0.0
    compared: float = 0.0


def kind_of(way: Way, task: Task) -> str:
    """Which formula holds for a way to do a task."""
    by_chain = way.inputs == "factors" and any(shape is not None and not is_low_rank(shape) for shape in task.w)
    return f"{_kind_of_steps(way, task)}, chain" if by_chain else _kind_of_steps(way, task)


def _kind_of_steps(way: Way, task: Task) -> str:
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
        taken=sum(width for width, _, _ in widths) / 1e6,
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
    "loop": Quantities(call=46.7, step=30.4, gate=0.0146, read=369, inputs=12.9, taken=449, links=5.06, compared=404),
    "loop of one": Quantities(call=77, step=12, gate=0.0378, product=56.9, inputs=2.05, taken=724, links=4.49, compared=87.7),
    "loop of one, chain": Quantities(step=10.7, gate=0.082, read=5.84, far=36.5, chain=11.8, links=44.7, compared=20300),
    "loop, chain": Quantities(step=30.3, gate=0.0228, read=331, chain=7, links=52.7, compared=5670),
    "one step": Quantities(step=49.5, product=197, far=7.66, inputs=223, compared=54.6),
    "one step, chain": Quantities(read=211, far=18.2, chain=19.8, links=58.5),
    "onednn": Quantities(call=94.2, step=7.85, gate=0.00793, read=5.45, far=23, inputs=16.4, taken=1090),
    "own kernel": Quantities(call=69.3, step=12.8, gate=0.0176, product=19.3, read=82.8, far=100, inputs=10.4, taken=257),
    "packed kernel": Quantities(call=84.4, step=5.63, gate=0.00888, product=6.96, read=16.8, far=8.23, inputs=7.98, taken=332, links=16.1, compared=280),
    "packed kernel, chain": Quantities(step=7, gate=0.0154, far=34.9, inputs=9.79, taken=172, chain=8.3, links=92.3),
    "trained definition": Quantities(call=279, step=138, gate=0.0602, product=24.2, read=763, far=48.5, inputs=13.7, taken=1930, formed=986),
    "trained definition, chain": Quantities(step=139, gate=0.0717, product=17, read=838, chain=25.3, links=379),
    "trained loop": Quantities(call=708, step=49.6, gate=0.0499, product=49.7, read=183, far=53.2, inputs=10.1, taken=4020, formed=913),
    "trained loop, chain": Quantities(step=45.9, gate=0.0647, product=47.2, read=146, far=333, chain=25, links=699),
    "trained onednn": Quantities(call=432, step=14.9, gate=0.0243, product=15.1, read=45.5, far=27.8, inputs=35.4, taken=2000, links=125, formed=1230),
    "trained onednn, chain": Quantities(call=796, step=10.4, gate=0.086, inputs=26, chain=18.7, formed=6240),
    "trained own kernel": Quantities(call=154, step=102, gate=0.0503, product=12.4, read=609, far=53.6, inputs=31.7, taken=907),
}


def seconds(way: Way, task: Task) -> float:
    """Estimated seconds of one call."""
    constants = _CONSTANTS[kind_of(way, task)]
    return sum(map(operator.mul, astuple(constants), astuple(quantities(way, task)))) / 1e6
