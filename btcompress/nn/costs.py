"""How long each way to run a layer takes on a CPU: a cost model of operations, bytes and calls.

Every kind of run has a formula of its own, a sum of the quantities below times constants. The constants were fitted to
measurements of two cores with tests/benchmarks/ways_costs.py. They are no property of the machine that runs this: the
same sizes always give the same way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

from btcompress.contraction.layout import plan_layout
from btcompress.nn.ways import Operand, Task, Way, is_low_rank
from btcompress.shapes import MatrixShape

#: Numbers that stay in a core's cache from one step to the next; what is more is read from further away.
_NEAR = 2**19

#: Columns that a product of matrices takes at once.
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Quantities:
    """What a run has to do.

    Attributes:
        call: 1, for what happens once.
        step: steps of all directions.
        gate: hidden units, times rows.
        product: entries that each hidden state meets, times rows, in millions.
        blocked: the same with sequences rounded up to whole blocks of 16, which take as long, in millions.
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
    blocked: float = 0.0
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
        blocked=steps * _BLOCK * math.ceil(task.batch / _BLOCK) * sum(recurrent) / 1e6,
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
    "loop": Quantities(
        call=51.7,
        step=37.3,
        gate=0.00587,
        product=15.3,
        blocked=0.0216,
        far=1.3,
        inputs=14.5,
        taken=697,
        links=8.7,
        compared=457,
    ),
    "loop of one": Quantities(
        call=86.1,
        step=11.7,
        gate=0.0196,
        product=0.0685,
        blocked=3.62,
        read=0.0685,
        inputs=5.98,
        taken=765,
        links=4.82,
        compared=153,
    ),
    "loop of one, chain": Quantities(
        call=0.00116,
        step=14.3,
        product=0.0599,
        blocked=2.36,
        read=0.0599,
        far=24.3,
        chain=12.4,
        links=38.2,
        compared=27200,
    ),
    "loop, chain": Quantities(step=68.8, product=16, blocked=0.0226, far=40.7, chain=8.7, links=35, compared=20300),
    "one step": Quantities(
        call=44.1,
        step=0.0512,
        gate=0.361,
        product=0.259,
        blocked=7.11,
        read=0.259,
        inputs=161,
        taken=0.282,
        compared=171,
    ),
    "one step, chain": Quantities(call=0.00143, step=0.00143, gate=0.535, far=96.2, chain=15.3, links=53.7),
    "onednn": Quantities(call=117, step=4.43, gate=0.00733, far=27.1, inputs=14.2, taken=1370),
    "own kernel": Quantities(
        call=109, step=10.7, gate=0.0114, product=22.8, read=97.2, far=93.1, inputs=7.23, taken=409
    ),
    "packed kernel": Quantities(
        call=117,
        step=3.6,
        gate=0.00739,
        product=6.68,
        read=6.64,
        far=19.4,
        inputs=7.62,
        taken=440,
        links=4.8,
        compared=371,
    ),
    "packed kernel, chain": Quantities(
        step=3.75, gate=0.0181, product=0.0543, far=34, inputs=9, taken=196, chain=9.02, links=110
    ),
    "trained definition": Quantities(
        call=292, step=148, gate=0.0441, product=28.4, read=538, far=433, inputs=16.3, taken=2340, formed=983
    ),
    "trained definition, chain": Quantities(
        step=141, gate=0.0546, product=19.2, read=639, far=334, chain=27.7, links=412
    ),
    "trained loop": Quantities(
        call=697, step=56.9, gate=0.0377, product=52.5, read=103, far=167, inputs=9.6, taken=4410, formed=927
    ),
    "trained loop, chain": Quantities(
        call=0.0219, step=49, gate=0.0454, product=49.7, read=90.8, far=667, chain=26.2, links=789
    ),
    "trained onednn": Quantities(
        call=479, step=11.4, gate=0.0236, product=13.3, far=95.8, inputs=30.9, taken=3430, links=72.1, formed=1160
    ),
    "trained onednn, chain": Quantities(
        call=830, step=5.61, gate=0.0768, product=0.207, inputs=28.8, taken=7.19, chain=19, links=19.5, formed=6660
    ),
    "trained own kernel": Quantities(
        call=186, step=105, gate=0.0396, product=14.9, read=518, far=264, inputs=25.7, taken=1380
    ),
}


def seconds(way: Way, task: Task) -> float:
    """Estimated seconds of one call."""
    return _sum(_constants(kind_of(way, task)), quantities(way, task))


def _constants(kind: str) -> Quantities:
    """Those of a kind of run; of one that was not measured with chains, those without, and a chain's of another."""
    if kind in _CONSTANTS:
        return _CONSTANTS[kind]
    chain = _CONSTANTS["packed kernel, chain"]
    return replace(_CONSTANTS[kind.removesuffix(", chain")], chain=chain.chain, links=chain.links)


#: Microseconds of a call of torch.nn.LSTMCell, which does what torch's own kernel does with less around it: fitted to
#: what tests/benchmarks/lstm_speed.py measured of cells.
_CELL_CALL = 22.0


def dense_seconds(task: Task, *, onednn: bool, cell: bool = False) -> float:
    """Estimated seconds of one call of the dense layer as torch runs it, which keeps nothing.

    Args:
        task: what to do, in prediction.
        onednn: whether oneDNN's kernel does it, or torch's own.
        cell: whether ``torch.nn.LSTMCell`` does it, on no kernel.
    """
    none = (None,) * len(task.w)
    task = replace(task, w=none, u=none, p=none[: len(task.p)], keeps=False, onednn=onednn and not cell)
    way = Way("kernel", "dense", "dense")
    constants = _constants(kind_of(way, task))
    return _sum(replace(constants, call=_CELL_CALL) if cell else constants, quantities(way, task))


def _sum(constants: Quantities, found: Quantities) -> float:
    return sum(map(operator.mul, astuple(constants), astuple(found))) / 1e6
