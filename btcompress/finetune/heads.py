"""Which linear layer of a file decides on what a recurrent layer gives, where names and shapes leave no doubt."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from btcompress.checkpoint import LinearEntry, RecurrentEntry, find_linear, find_recurrent
from btcompress.checkpoint.names import OtherRecurrent

_Shapes = Mapping[str, tuple[int, ...]]


def deciding_head(tensors: Mapping[str, Tensor], entry: RecurrentEntry) -> LinearEntry | None:
    """The linear layer that takes a recurrent layer's outputs and gives what is decided on.

    The file may hold more: embeddings, layers below, other recurrent layers. It is clear which layer is the head where
    one linear layer alone has as many inputs as the recurrent one has outputs, and nothing else in the file could stand
    between the two, or behind the head. Of layers alike, those that lie in a module with another recurrent layer but
    not with this one belong to that one; and what an ``encoder`` and its ``decoder`` could both have is the decoder's.

    Args:
        tensors: the plain state dict; meta tensors serve.
        entry: the recurrent layer.

    Returns:
        The layer, or None where it is not clear.
    """
    recurrent = find_recurrent(tensors)
    others = [other for other in recurrent if other.keys != entry.keys]
    taken = {key for layer in recurrent for key in layer.keys}
    rest = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key not in taken}
    near = {key: shape for key, shape in rest.items() if not any(_nearer(key, other, entry) for other in others)}
    takers = [key for key in near if _takes(key, near, entry.n_outputs)]
    linear = [layer for layer in find_linear(tensors, recurrent) if layer.key in takers]
    # A matrix without a bias may be an embedding; one that is not as wide as the inputs is none of this layer's.
    embeddings = [layer for layer in linear if not layer.bias and entry.input_size == entry.n_outputs]
    heads = [layer for layer in linear if layer not in embeddings]
    if len(heads) != 1 or len(takers) > len(heads) + len(embeddings):
        return None
    head = heads[0]
    follows = any(_follows(key, shape, head) for key, shape in rest.items())
    return None if follows or any(_makes_doubtful(other, entry, head) for other in others) else head


def _takes(key: str, shapes: _Shapes, n: int) -> bool:
    """Whether a tensor could be that of a layer with ``n`` inputs: a matrix, a kernel, a norm."""
    shape = shapes[key]
    is_weight = key == "weight" or key.endswith(".weight")
    if len(shape) > 1:
        return n == shape[1] if is_weight else n in shape
    weight = shapes.get(f"{key.removesuffix('bias')}weight", ())
    return shape == (n,) and not (key.endswith("bias") and len(weight) > 1)


def _follows(key: str, shape: tuple[int, ...], head: LinearEntry) -> bool:
    """Whether a tensor could be that of a layer behind the head, which then decides nothing."""
    return key != head.key and len(shape) == 2 and shape[1] == head.out_features > 1


def _makes_doubtful(other: RecurrentEntry | OtherRecurrent, entry: RecurrentEntry, head: LinearEntry) -> bool:
    """Whether another recurrent layer could be the one that the head is on, stand between, or follow it."""
    if isinstance(other, OtherRecurrent):
        return True
    if "decoder" in entry.name and other.name == entry.name.replace("decoder", "encoder"):
        return False
    between = other.input_size in (entry.n_outputs, head.out_features) or other.hidden_size == head.out_features
    return between or (other.n_outputs == entry.n_outputs and _shared(head.key, other) >= _shared(head.key, entry))


def _nearer(key: str, other: RecurrentEntry | OtherRecurrent, entry: RecurrentEntry) -> bool:
    return _shared(key, other) > _shared(key, entry)


def _shared(key: str, layer: RecurrentEntry | OtherRecurrent) -> int:
    """How many modules hold both a tensor and a recurrent layer, from the top."""
    n = 0
    for ours, theirs in zip(key.split(".")[:-1], layer.prefix.split(".")[:-1], strict=False):
        if ours != theirs:
            break
        n += 1
    return n
