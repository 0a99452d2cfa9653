"""Steps of recurrent layers with a matrix for each gate: found to fit by their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from btcompress.dialects.arranging import Direction, stack, turned
from btcompress.dialects.steps import Step
from btcompress.shapes import GATES, Cell

_MATRIX = 2


def separate_step(
    name: str,
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Mapping[str, str]],
    biases: Mapping[str, Mapping[str, Sequence[str]]],
    kind: Cell = "lstm",
    *,
    is_turned: bool = False,
) -> Step | str:
    """The step that some tensors are, or why they are none, as the end of a sentence.

    Args:
        name: what it is called as a layer of its own.
        tensors: the state dict; only shapes and dtypes are looked at.
        weights: keys of ``weight_ih`` and ``weight_hh``, by torch's letters of all gates.
        biases: keys of ``bias_ih`` and ``bias_hh``, by gates; several are added, and where there are none it is zeros.
        kind: what it computes.
        is_turned: matrices have a column for each unit, as rows of inputs are multiplied by them.
    """
    keys = [key for part in weights.values() for key in part.values()]
    keys += [key for part in biases.values() for each in part.values() for key in each]
    for key in keys:
        if not tensors[key].is_floating_point():
            return f"{key} holds no floating-point numbers; use the checkpoint from before quantization"
        if not tensors[key].numel():
            return f"{key} has no entries, as sharded training leaves it; gather the whole weights, and give that file"
    first_shapes = [tuple(tensors[next(iter(part.values()))].shape) for part in weights.values()]
    if any(len(shape) != _MATRIX for shape in first_shapes):
        return f"its weights have shapes {first_shapes}, and only matrices are factorized"
    hidden, n_inputs = tensors[weights["weight_hh"][GATES[kind][0]]].shape[0], 0
    for part, by_gate in weights.items():
        shapes = {key: tuple(tensors[key].shape) for key in by_gate.values()}
        first = next(iter(shapes.values()))
        if part == "weight_ih":
            n_inputs = first[0 if is_turned else 1]
        columns = n_inputs if part == "weight_ih" else hidden
        right = (columns, hidden) if is_turned else (hidden, columns)
        for key, shape in shapes.items():
            if shape != right:
                return f"{key} has shape {shape} where {right} follows from the other tensors"
    for by_bias in biases.values():
        for key in (key for each in by_bias.values() for key in each):
            if sorted(tensors[key].shape)[-1:] != [hidden] or tensors[key].numel() != hidden:
                return f"{key} has shape {tuple(tensors[key].shape)} where {(hidden,)} follows from the other tensors"

    def form() -> Direction:
        formed = {}
        for part, by_gate in weights.items():
            matrices = {gate: tensors[key] for gate, key in by_gate.items()}
            formed[part] = stack({gate: turned(each) if is_turned else each for gate, each in matrices.items()}, kind)
        for part, by_bias in biases.items():
            if any(by_bias.values()):
                zeros = tensors[keys[0]].new_zeros(hidden)
                vectors = {gate: [tensors[key].reshape(-1) for key in by_bias.get(gate, ())] for gate in GATES[kind]}
                formed[part] = stack({gate: _sum(each, zeros) for gate, each in vectors.items()}, kind)
        return Direction(**formed)

    return Step(name, tuple(keys), n_inputs, hidden, 0, form)


def _sum(vectors: Sequence[Tensor], zeros: Tensor) -> Tensor:
    total = vectors[0] if vectors else zeros
    for vector in vectors[1:]:
        total = total + vector
    return total
