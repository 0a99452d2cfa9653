"""How tensors of a result are stored that are not stored as they are: as integers, or as floats of fewer bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from btcompress.checkpoint.tensors import find_aliases
from btcompress.errors import CheckpointError
from btcompress.packing import FLOATS, Packed, Precision, precision_text

#: The integers of a tensor, or the floats that its numbers are stored as.
Stored: TypeAlias = Packed | torch.dtype

#: Dtypes of tensors that may be stored otherwise, by what they are called.
STANDS_FOR = {"float64": torch.float64, **FLOATS}
#: What follows a tensor's name in the names of the file's tensors that its integers are in.
CODES, SCALES, ZEROS = ".codes", ".scales", ".zeros"


def precision(how: Stored) -> Precision:
    """The precision alone, without the numbers."""
    return how.integers if isinstance(how, Packed) else how


def values_of(tensor: Tensor, how: Stored) -> Tensor:
    """What is left of a tensor that is stored so: the values of the integers, or its own rounded to those floats."""
    return how.values() if isinstance(how, Packed) else tensor.detach().to(how).to(tensor.dtype)


def bytes_in_file(tensor: Tensor, how: Stored | None) -> int:
    """Bytes that a tensor takes in a file; None stands for a tensor that is stored as it is."""
    if isinstance(how, Packed):
        return how.n_bytes
    return tensor.nbytes if how is None else tensor.numel() * how.itemsize


def same_stored(ours: Stored | None, theirs: Stored | None) -> bool:
    """Whether two tensors are stored in the same way, integers and all."""
    if not (isinstance(ours, Packed) and isinstance(theirs, Packed)):
        return ours is theirs
    about = ((each.integers, each.shape, each.dtype) for each in (ours, theirs))
    numbers = ((each.codes, each.scales, each.zeros) for each in (ours, theirs))
    first, second = about
    return ours is theirs or (
        first == second and all(torch.equal(one, other) for one, other in zip(*numbers, strict=True))
    )


def check_stored(where: str, tensors: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> None:
    """Refuse what is not how these tensors can be stored.

    Args:
        where: what they belong to, for the message.
        tensors: all of them, by name.
        stored: how some of them are stored, by name.

    Raises:
        CheckpointError: there is no such tensor, its values are others than those stored, tied ones are stored in
            different ways, or a tensor of the file would have the name of another.
    """
    for name, how in stored.items():
        if name not in tensors:
            raise CheckpointError(f"{where}: {name} is said to be stored as {_text(how)}, but is no tensor of it.")
        if obstacle := _obstacle(tensors[name], how):
            raise CheckpointError(f"{where}: {name} is said to be stored as {_text(how)}, but {obstacle}.")
        names = [name + ending for ending in (CODES, SCALES, ZEROS)] if isinstance(how, Packed) else []
        if clash := tensors.keys() & set(names):
            raise CheckpointError(
                f"{where}: two tensors would be named {min(clash)}. Rename one in the dense checkpoint, or leave "
                f"{name} in floating point."
            )
    for alias, name in find_aliases(tensors).items() if stored else ():
        if not same_stored(stored.get(alias), stored.get(name)):
            raise CheckpointError(
                f"{where}: {alias} and {name} are one tensor, but are said to be stored as "
                f"{_text(stored.get(alias))} and as {_text(stored.get(name))}. Store both in the same way."
            )


def _obstacle(tensor: Tensor, how: Stored) -> str:
    """Why a tensor cannot be what is stored so; empty if it can."""
    if tensor.dtype not in STANDS_FOR.values():
        return f"has dtype {str(tensor.dtype).removeprefix('torch.')}, of which no other floats or integers are stored"
    others = "its values are others. Give how it is stored together with new values, or that it is stored as it is"
    if isinstance(how, Packed):
        about, own = (how.shape, how.dtype), (tuple(tensor.shape), tensor.dtype)
        if about != own or not tensor.dim() or not tensor.numel():
            return f"is {own[1]} of shape {own[0]}, and the integers are {about[1]} of shape {about[0]}"
        if not torch.equal(tensor.detach(), how.values()):
            return others
        # Scales of float16 and codes of few bits fit the range of every other dtype.
        beyond = tensor.dtype == torch.float16 and not torch.isfinite(tensor).all()
        return "its numbers are beyond the range of float16" if beyond else ""
    if how not in FLOATS.values() or how.itemsize >= tensor.dtype.itemsize:
        return f"its own dtype, {tensor.dtype}, is no wider"
    return "" if torch.equal(tensor.detach(), values_of(tensor, how)) else others


def _text(how: Stored | None) -> str:
    return "it is" if how is None else precision_text(precision(how))
