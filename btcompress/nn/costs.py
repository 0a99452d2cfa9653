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
    "loop": Quantities(call=47.3, step=28.7, gate=0.0163, read=442, inputs=10.9, taken=589, links=5.01, compared=384),
    "loop of one": Quantities(call=80.5, step=11.8, gate=0.0422, product=57.2, read=0.0691, inputs=0.000468, taken=800, links=1.35, compared=56.1),
    "loop of one, chain": Quantities(call=0.000381, step=11.2, gate=0.0752, product=0.0983, read=9.04, far=34.6, chain=12, links=37.1, compared=25900),
    "loop, chain": Quantities(step=30.1, gate=0.0209, read=381, chain=8.21, links=52, compared=8080),
    "one step": Quantities(call=0.0444, step=49.7, gate=0.0171, product=206, read=0.298, inputs=233, taken=0.304, compared=16.1),
    "one step, chain": Quantities(call=0.000238, step=0.000238, product=0.268, read=217, far=11.6, chain=19.7, links=58.4),
    "onednn": Quantities(call=99.4, step=7.52, gate=0.00853, read=12.7, far=8.18, inputs=15.5, taken=1260),
    "own kernel": Quantities(call=66.2, step=12.4, gate=0.0186, product=21.9, read=91.5, far=110, inputs=8.42, taken=348),
    "packed kernel": Quantities(call=84.8, step=6.33, gate=0.00924, product=6.64, read=18.4, far=3.72, inputs=8.24, taken=382, links=13.7, compared=341),
    "packed kernel, chain": Quantities(step=6.73, gate=0.0156, product=0.056, far=32.4, inputs=9.69, taken=183, chain=9.48, links=96),
    "trained definition": Quantities(call=306, step=140, gate=0.06, product=23.8, read=856, far=7.18, inputs=13.3, taken=2020, formed=993),
    "trained definition, chain": Quantities(step=141, gate=0.0742, product=13, read=908, chain=27.3, links=380),
    "trained loop": Quantities(call=735, step=50, gate=0.0501, product=51.8, read=179, far=49.8, inputs=8.53, taken=4360, formed=925),
    "trained loop, chain": Quantities(call=12.5, step=39.5, gate=0.0666, product=46.3, read=177, far=539, chain=26, links=782),
    "trained onednn": Quantities(call=494, step=16.1, gate=0.0238, product=17.7, read=33, far=22.2, inputs=31, taken=3430, links=83.5, formed=1180),
    "trained onednn, chain": Quantities(call=760, step=12.9, gate=0.0813, product=0.222, inputs=29.1, taken=7.85, chain=18.8, links=0.519, formed=6760),
    "trained own kernel": Quantities(call=139, step=108, gate=0.0503, product=10.3, read=714, inputs=28.8, taken=1260),
}


def seconds(way: Way, task: Task) -> float:
    """Estimated seconds of one call."""
    constants = _CONSTANTS[kind_of(way, task)]
    return sum(map(operator.mul, astuple(constants), astuple(quantities(way, task)))) / 1e6
