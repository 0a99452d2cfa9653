"""Steps of recurrent layers with all gates in one matrix: found to fit by their shapes, and put together to layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from btcompress.dialects.arranging import Direction, as_layers, in_order, turned
from btcompress.dialects.found import Converted
from btcompress.shapes import GATES, Cell

_MATRIX = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One direction of one layer, whose tensors fit each other.

    Attributes:
        name: what it is called as a layer of its own.
        keys: of its tensors.
        input_size: ``I``.
        hidden_size: ``H``.
        proj_size: ``P``, or 0.
        form: its tensors in torch's order.
    """

    name: str
    keys: tuple[str, ...]
    input_size: int
    hidden_size: int
    proj_size: int
    form: Callable[[], Direction]

    @property
    def n_outputs(self) -> int:
        """What it gives at each step."""
        return self.proj_size or self.hidden_size


def fused_step(
    name: str,
    tensors: Mapping[str, Tensor],
    keys: Mapping[str, str],
    kind: Cell = "lstm",
    order: str | None = None,
    *,
    is_turned: bool = False,
) -> Step | str:
    """The step that some tensors are, or why they are none, as the end of a sentence.

    Args:
        name: what it is called as a layer of its own.
        tensors: the state dict; only shapes and dtypes are looked at.
        keys: by the fields of :class:`Direction`: both weights, and what else there is.
        kind: what it computes.
        order: of the gates as they are stacked, by torch's letters; torch's where it is None.
        is_turned: matrices have a column for each gate's unit, as rows of inputs are multiplied by them.
    """
    gates = order or "".join(GATES[kind])
    own = {part: tensors[key] for part, key in keys.items()}
    shapes = {part: tuple(tensor.shape) for part, tensor in own.items()}
    if is_turned:
        shapes |= {part: shapes[part][::-1] for part in ("weight_ih", "weight_hh")}
    for part, tensor in own.items():
        if not tensor.is_floating_point():
            return f"{keys[part]} holds no floating-point numbers; use the checkpoint from before quantization"
        if not tensor.numel():
            return (
                f"{keys[part]} has shape {tuple(tensor.shape)}: a placeholder, as sharded training leaves it. Gather "
                "the whole weights, and give that file"
            )
    inputs, projection = shapes["weight_ih"], shapes.get("weight_hr")
    rows, columns = inputs if len(inputs) == _MATRIX else (0, 0)
    hidden, rest = divmod(rows, len(gates))
    if rest or not hidden:
        return f"{keys['weight_ih']} has shape {tuple(own['weight_ih'].shape)}, no {len(gates)} gates of equal size"
    state = projection[0] if projection else hidden
    expected = {"weight_ih": inputs, "weight_hh": (rows, state), "weight_hr": (state, hidden)}
    for part, shape in shapes.items():
        right = expected.get(part, (rows,))
        if shape != right:
            stored = right[::-1] if is_turned and part == "weight_hh" else right
            return f"{keys[part]} has shape {tuple(own[part].shape)} where {stored} follows from the other tensors"
    if projection and state >= hidden:
        return f"its projection to {state} of {hidden} hidden units makes them no fewer, as torch's LSTM does"

    def form() -> Direction:
        arranged = {}
        for part, tensor in own.items():
            each = turned(tensor) if is_turned and part in ("weight_ih", "weight_hh") else tensor
            arranged[part] = each if order is None or part == "weight_hr" else in_order(each, order, kind)
        return Direction(**arranged)

    return Step(name, tuple(keys.values()), columns, hidden, state if projection else 0, form)


def are_stacked(steps: Mapping[int, Mapping[int, Step]]) -> bool:
    """Whether numbered layers are as torch's class stacks them: each takes what all directions of the one below give.

    Args:
        steps: by layer, and by direction: 0 forward, 1 reverse.
    """
    directions = {tuple(sorted(each)) for each in steps.values()}
    if sorted(steps) != list(range(len(steps))) or directions not in ({(0,)}, {(0, 1)}):
        return False
    first = steps[0][0]
    n_inputs = first.input_size
    for layer in in_a_row(steps):
        sizes = {(step.input_size, step.hidden_size, step.proj_size) for step in layer}
        if sizes != {(n_inputs, first.hidden_size, first.proj_size)}:
            return False
        n_inputs = sum(step.n_outputs for step in layer)
    return True


def in_a_row(steps: Mapping[int, Mapping[int, Step]]) -> list[list[Step]]:
    """The steps of each layer, from the first on, forward before reverse."""
    return [[by_direction[n] for n in sorted(by_direction)] for _, by_direction in sorted(steps.items())]


def layered(name: str, layers: Sequence[Sequence[Step]], notices: tuple[str, ...] = ()) -> Converted:
    """All steps as one layer of torch's.

    Args:
        name: what it is called.
        layers: that are stacked; of each its forward step, and the reverse one where it has two.
        notices: what a user should know.
    """
    steps = [step for layer in layers for step in layer]
    bidirectional = len(layers[0]) > 1
    return Converted(
        name,
        tuple(key for step in steps for key in step.keys),
        lambda: as_layers([step.form() for step in steps], bidirectional=bidirectional),
        notices=notices,
    )


def alone(step: Step, notices: tuple[str, ...] = ()) -> Converted:
    """A step as a layer of its own, with what a user should know."""
    return layered(step.name, [[step]], notices)


def stacked(name: str, steps: Mapping[int, Mapping[int, Step]], notices: tuple[str, ...] = ()) -> Iterator[Converted]:
    """Numbered layers as one of torch's, where they are stacked so, or else each step as a layer of its own.

    Args:
        name: what they are called together.
        steps: by layer, and by direction: 0 forward, 1 reverse.
        notices: what a user should know.
    """
    if are_stacked(steps):
        yield layered(name, in_a_row(steps), notices)
        return
    for _, by_direction in sorted(steps.items()):
        for direction, step in sorted(by_direction.items()):
            reverse = (f"{step.name} reads its sequences from the end.",) if direction else ()
            yield alone(step, (*notices, *reverse))
            notices = ()
