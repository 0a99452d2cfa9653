"""How long the forms of a layer take in ONNX Runtime, and the one that is expected to be the fastest.

Times are sums of what there is to do, each times a constant of the operator that does it. The constants were fitted to
what ``tests/benchmarks/onnx_speed.py`` measured with one thread of a CPU, and are printed by it: of LSTMs up to 1,024
hidden units, of other cells up to 512.
"""

from __future__ import annotations

from btcompress.errors import BTCompressError
from btcompress.export.forms import Form, has_operator, possible_forms
from btcompress.export.request import GraphRequest
from btcompress.export.weights import Direction, Weight
from btcompress.nn.costs import NEAR, Quantities, chain_work, estimated
from btcompress.nn.ways import Operand, is_low_rank

#: Microseconds of each quantity, for each operator that takes the steps, and for a ``Scan`` over each cell.
_CONSTANTS: dict[str, Quantities] = {
    "lstm": Quantities(call=10.9, step=0.0964, gate=0.00407, product=17.8, read=16.4, far=60.4, inputs=16.5, taken=140),
    "gru": Quantities(call=10.5, step=0.0531, gate=0.00706, product=17.2, read=21.4, far=43.6, inputs=16.9, taken=75.5),
    "rnn": Quantities(call=7.6, step=0.0913, gate=0.00803, product=54, read=14, inputs=0.00417, taken=75.5),
    "scan of lstm": Quantities(
        call=11.7,
        step=5.58,
        gate=0.00416,
        product=15.5,
        read=23.4,
        far=57.1,
        inputs=20.5,
        taken=127,
        chain=19.3,
        links=2.22,
    ),
    "scan of gru": Quantities(
        call=11.1,
        step=6.45,
        gate=0.00553,
        product=16.9,
        read=39.2,
        far=9.53,
        inputs=16.8,
        taken=68.1,
        chain=8.32,
        links=3.05,
    ),
    "scan of rnn": Quantities(
        call=10.4, step=0.814, gate=0.00124, product=23, read=30.8, inputs=11.6, taken=64.6, chain=6.91, links=2.86
    ),
}


def seconds(form: Form, direction: Direction, hidden_size: int, request: GraphRequest) -> float:
    """Estimated seconds of one run of a direction."""
    found = quantities(form, direction, hidden_size, request)
    return estimated(_CONSTANTS[constants_of(form, direction)], found)


def constants_of(form: Form, direction: Direction) -> str:
    """Whose constants are those of a direction in a form: the operator's, or those of a ``Scan`` over the cell."""
    return f"scan of {direction.cell.steps}" if form.steps == "scan" else form.steps


def quantities(form: Form, direction: Direction, hidden_size: int, request: GraphRequest) -> Quantities:
    """What a run of a direction has to do in a form."""
    steps, rows = request.steps, request.steps * request.batch
    states = [_work(weight, form.recurrent) for weight in (direction.u, direction.p) if weight is not None]
    entries, chain, links = _work(direction.w, form.inputs)
    recurrent = sum(each for each, _, _ in states)
    return Quantities(
        call=1,
        step=steps,
        gate=rows * hidden_size,
        product=rows * recurrent / 1e6,
        read=steps * recurrent / 1e6,
        far=steps * max(0.0, recurrent - NEAR) / 1e6,
        inputs=rows * entries / 1e6,
        taken=entries / 1e6,
        chain=rows * (chain + sum(each for _, each, _ in states)) / 1e6,
        links=links + steps * sum(each for _, _, each in states),
    )


def _work(weight: Weight, operand: Operand) -> tuple[float, float, int]:
    """Entries that a row meets, operations of chains for one row, and products of these."""
    shape = weight.shape
    if shape is None or operand == "dense":
        rows, columns = weight.size
        return rows * columns, 0, 0
    return (shape.n_params, 0, 0) if is_low_rank(shape) else (0, *chain_work(shape))


def choose_form(direction: Direction, hidden_size: int, request: GraphRequest) -> Form:
    """The form that is expected to run the fastest at the sizes asked for.

    Raises:
        BTCompressError: none that is asked for can write the layer.
    """
    forms = possible_forms(direction, request)
    found = min(forms, key=lambda form: seconds(form, direction, hidden_size, request), default=None)
    if found is None:
        raise BTCompressError(
            f"the layer of {direction.w.name} cannot be written with ONNX's {direction.cell.operator} operator: "
            f"{_obstacle(direction, request)}. Leave the form to be chosen, or take scan."
        )
    return found


def _obstacle(direction: Direction, request: GraphRequest) -> str:
    """Why there is no operator for a direction."""
    if not has_operator(direction, request) and direction.p is None:
        return f"ONNX Runtime has no {direction.cell.operator} in integers"
    return "it has no projections, and takes dense matrices, which are not formed where they are very large"
