"""What a tensor must be to travel from one weight file to another, and which tensors are one and the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from btcompress.checkpoint.mapping import page_out
from btcompress.errors import CheckpointError

#: What a result can hold.
HELD_DTYPES = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.complex64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
    }
)

#: Bytes handled at a time.
_CHUNK = 1 << 24

#: Entries, counted without empty sizes, from which on torch cannot count.
_MOST_ENTRIES = 2**60

#: The one name that a ``.safetensors`` header keeps for itself.
_RESERVED = "__metadata__"

#: How an obstacle begins that only the float checkpoint is a way around.
QUANTIZED = "is quantized"


@dataclass(frozen=True, slots=True)
class Unheld:
    """A tensor of a kind that no result could hold, and that is therefore not formed.

    Attributes:
        obstacle: what it is instead of plain values, as the end of a sentence.
    """

    obstacle: str

    def numel(self) -> int:
        """As if it had many entries, like the weight that it may be."""
        return 2

    def is_floating_point(self) -> bool:
        """As if it had floating-point entries, like the weight that it may be."""
        return True


def plain_tensor(name: str, tensor: Tensor | Unheld) -> Tensor:
    """The tensor's values alone, sharing its memory: no gradient, no ``Parameter``.

    Raises:
        CheckpointError: a ``.safetensors`` file cannot hold this tensor or its name.
    """
    if name == _RESERVED or not _is_unicode(name):
        raise CheckpointError(f"a tensor is named {name!r}, which a .safetensors file cannot hold. Rename it.")
    obstacle = tensor.obstacle if isinstance(tensor, Unheld) else _obstacle(tensor)
    if obstacle is not None and obstacle.startswith(QUANTIZED):
        raise CheckpointError(
            f"the tensor {name} {obstacle}, so the model was quantized. Use the float checkpoint from before "
            "quantization."
        )
    if obstacle or isinstance(tensor, Unheld):
        raise CheckpointError(
            f"the tensor {name} {obstacle}, which a .safetensors file cannot hold. Save the checkpoint with plain, "
            "dense values in its place, or without it."
        )
    return tensor.detach()


def _obstacle(tensor: Tensor) -> str | None:
    if is_lazy(tensor) or tensor.is_meta:
        return "has a shape but no values"
    if tensor.is_nested:
        return "is a nested tensor"
    if tensor.is_quantized:
        return f"{QUANTIZED} ({_dtype_name(tensor)})"
    if tensor.layout != torch.strided:
        return f"is sparse ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.dtype not in HELD_DTYPES:
        return f"has dtype {_dtype_name(tensor)}"
    return None


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_countable(sizes: Sequence[int]) -> bool:
    """Whether torch can hold a tensor of these sizes: it counts also the entries that an empty one would have."""
    return all(size >= 0 for size in sizes) and prod(max(size, 1) for size in sizes) <= _MOST_ENTRIES


def find_aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the same memory in the same layout as one before them.

    Returns:
        Each such name, with the first name of that tensor.
    """
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            layout = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            known = first.setdefault(layout, name)
            if known != name:
                aliases[name] = known
    return aliases


def count_params(tensors: Mapping[str, Tensor]) -> int:
    """Entries of all tensors, tied ones counted once."""
    aliases = find_aliases(tensors)
    return sum(tensor.numel() for name, tensor in tensors.items() if name not in aliases)


def count_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors, tied ones counted once."""
    aliases = find_aliases(tensors)
    return sum(tensor.nbytes for name, tensor in tensors.items() if name not in aliases)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits, of which NaN has some as well."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    pairs = zip(byte_chunks(first), byte_chunks(second), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def byte_chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor in C order, uint8 on the CPU, a part at a time; mapped ones leave memory once used."""
    whole = tensor.detach().cpu().contiguous()
    # One entry counts as contiguous with any stride, of which bytes allow but one.
    flat = whole.as_strided((whole.numel(),), (1,))
    for chunk in flat.view(torch.uint8).split(_CHUNK) if len(flat) else ():
        yield chunk
        page_out(chunk)
