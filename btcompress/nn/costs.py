"""How long each way to run a layer takes on a CPU: a cost model of operations, bytes and calls.

Every kind of run has a formula of its own, a sum of the quantities below times constants. The constants were fitted to
measurements of two cores with tests/benchmarks/ways_costs.py. They are no property of the machine that runs this: the
same sizes always give the same way. They were fitted to LSTMs; a GRU or plain RNN has as many entries less as it has
gates less, and is taken to need what an LSTM needs for each of them and for each step. On a CPU torch's kernel for
these is its own, never oneDNN's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

from btcompress.contraction.layout import plan_layout
from btcompress.nn.plainsteps import BLOCK
from btcompress.nn.ways import Operand, Task, Way, is_low_rank
from btcompress.shapes import GATES, MatrixShape

#: Numbers that stay in a core's cache from one step to the next; what is more is read from further away.
NEAR = 2**19


@dataclass(frozen=True, slots=True)
class Quantities:
    """What a run has to do.

    Attributes:
        call: 1, for what happens once.
        step: steps of all directions.
        gate: hidden units, times rows; of cells with fewer gates than an LSTM as many fewer.
        product: entries that each hidden state meets, times rows, in millions.
        read: entries read at each step, times steps, in millions.
        far: those of them, and of the ones below, that no cache near a core holds.
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
    # A loop fills up blocks of sequences.
    blocks = kind_of(way, task).startswith("loop") and task.batch > 1
    run = steps * BLOCK * math.ceil(task.batch / BLOCK) if blocks else rows
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
        gate=directions * run * task.hidden * task.n_gates / len(GATES["lstm"]),
        product=run * sum(recurrent) / 1e6,
        read=read / 1e6,
        far=(steps * max(0, sum(recurrent) - NEAR) + max(0, sum(width for width, _, _ in widths) - NEAR)) / 1e6,
        inputs=rows * sum(width for width, _, _ in widths) / 1e6,
        taken=sum(width for width, _, _ in widths) / 1e6,
        chain=rows * sum(chain for _, chain, _ in widths) / 1e6,
        links=sum(links for _, _, links in widths),
        formed=formed / 1e6,
        compared=compared / 1e6,
    )


def _recurrent(task: Task) -> Iterator[tuple[MatrixShape | None, int]]:
    outputs = task.outputs or task.hidden
    yield from ((shape, task.n_gates * task.hidden * outputs) for shape in task.u)
    yield from ((shape, outputs * task.hidden) for shape in task.p)


def _entries(shape: MatrixShape | None, dense: int, operand: Operand) -> float:
    """Entries that one row meets."""
    if shape is None or operand == "dense":
        return dense
    return shape.n_params if is_low_rank(shape) else chain_work(shape)[0] / 2


def _input_work(shape: MatrixShape | None, task: Task, way: Way) -> tuple[float, float, float]:
    """Entries that a row meets before the steps, operations of chains for one row, and calls of these."""
    gates = task.n_gates * task.hidden
    if shape is None or way.inputs == "dense":
        # Without inputs z is given: a kernel gets it by an identity.
        return gates * (task.inputs or (gates if way.steps == "kernel" else 0)), 0, 0
    if is_low_rank(shape):
        return shape.n_params, 0, 1
    cost, links = chain_work(shape)
    return (gates * gates if way.steps == "kernel" else 0), cost, links


@lru_cache(maxsize=1024)
def chain_work(shape: MatrixShape) -> tuple[float, int]:
    """Operations of a matrix's chains for one row, and their products."""
    part = shape.part
    layout = plan_layout(part.n_blocks, part.in_modes, part.out_modes, part.ranks)
    return shape.n_parts * layout.cost, shape.n_parts * len(layout.steps)


def _forming(shape: MatrixShape) -> float:
    """Entries of the matrix, times what one takes: for few terms, that is to write it down."""
    return shape.dense_params * (1 + shape.part.n_blocks * min(shape.part.ranks) / 32)


#: Microseconds of each quantity, by kinds of runs.
_CONSTANTS: dict[str, Quantities] = {
    "loop": Quantities(
        call=53.3, step=32, gate=0.0082, product=15.9, far=29.3, inputs=12.9, taken=500, links=7.42, compared=461
    ),
    "loop of one": Quantities(
        call=84.6, step=12.1, gate=0.0147, product=58, read=0.0706, inputs=14.7, taken=552, links=1.3, compared=321
    ),
    "loop of one, chain": Quantities(
        step=10.8, gate=0.00567, product=0.0775, read=72.9, chain=12.5, links=95.2, compared=5890
    ),
    "loop, chain": Quantities(step=61.6, product=15.1, read=120, chain=9.86, links=75.3),
    "one step": Quantities(
        call=34.5, step=0.0469, gate=0.426, product=0.247, read=124, inputs=139, taken=0.23, compared=162
    ),
    "one step, chain": Quantities(gate=0.559, read=0.000775, far=91.5, chain=15.9, links=48.9),
    "onednn": Quantities(call=117, step=4.44, gate=0.00759, product=3.99, far=34.6, inputs=10, taken=695, formed=283),
    "own kernel": Quantities(
        call=106, step=9.48, gate=0.0115, product=20.8, read=132, far=45.6, inputs=9.83, taken=326
    ),
    "packed kernel": Quantities(
        call=118, step=3.42, gate=0.00744, product=6.51, read=10.9, far=19.1, inputs=8.55, taken=260, compared=482
    ),
    "packed kernel, chain": Quantities(
        step=3.86, gate=0.0173, product=0.0541, far=29.6, inputs=9.07, taken=177, chain=9.95, links=110
    ),
    "trained definition": Quantities(
        call=285, step=147, gate=0.0431, product=24.6, read=651, far=260, inputs=20.6, taken=2140, formed=992
    ),
    "trained definition, chain": Quantities(
        step=138, gate=0.0468, product=18.6, read=844, far=49.8, chain=31.5, links=425
    ),
    "trained loop": Quantities(
        call=710, step=55.6, gate=0.0377, product=49.5, read=134, far=156, inputs=16, taken=3470, formed=944
    ),
    "trained loop, chain": Quantities(step=46, gate=0.0424, product=47.8, read=139, far=596, chain=30.7, links=798),
    "trained onednn": Quantities(
        call=486, step=11.6, gate=0.0239, product=11, far=109, inputs=33.7, taken=2920, links=47.3, formed=1220
    ),
    "trained onednn, chain": Quantities(
        call=823, step=6.64, gate=0.0761, product=0.212, far=3.33, inputs=31.4, taken=6.84, chain=20.5, formed=6050
    ),
    "trained own kernel": Quantities(
        call=194, step=109, gate=0.0399, product=13.9, read=543, far=383, inputs=24.4, taken=870
    ),
}


def seconds(way: Way, task: Task) -> float:
    """Estimated seconds of one call."""
    return estimated(_constants(kind_of(way, task)), quantities(way, task))


def _constants(kind: str) -> Quantities:
    """Those of a kind of run; of one that was not measured with chains, those without, and a chain's of another."""
    if kind in _CONSTANTS:
        return _CONSTANTS[kind]
    chain = _CONSTANTS["packed kernel, chain"]
    return replace(_CONSTANTS[kind.removesuffix(", chain")], chain=chain.chain, links=chain.links)


#: Microseconds of a call of torch.nn.LSTMCell or one of the others, which does what torch's own kernel does with less
#: around it: fitted to what tests/benchmarks/lstm_speed.py measured of LSTM cells.
_CELL_CALL = 22.0


def dense_seconds(task: Task, *, onednn: bool, cell: bool = False) -> float:
    """Estimated seconds of one call of the dense layer as torch runs it, which keeps nothing.

    Args:
        task: what to do, in prediction.
        onednn: whether oneDNN's kernel does it, or torch's own.
        cell: whether ``torch.nn.LSTMCell`` or one of the others does it, on no kernel.
    """
    none = (None,) * len(task.w)
    onednn = onednn and not cell and task.cell == "lstm"
    task = replace(task, w=none, u=none, p=none[: len(task.p)], keeps=False, onednn=onednn)
    way = Way("kernel", "dense", "dense")
    constants = _constants(kind_of(way, task))
    return estimated(replace(constants, call=_CELL_CALL) if cell else constants, quantities(way, task))


def reading_seconds(task: Task) -> float:
    """Estimated seconds of reading dense matrices ``W`` once, which nothing that multiplies by them can beat."""
    entries = len(task.w) * task.n_gates * task.hidden * task.inputs
    constants = _CONSTANTS["own kernel"]
    return (entries * constants.taken + max(0, entries - NEAR) * constants.far) / 1e12


def estimated(constants: Quantities, found: Quantities) -> float:
    """Seconds of what there is to do, each quantity times its microseconds."""
    return sum(map(operator.mul, astuple(constants), astuple(found))) / 1e6
