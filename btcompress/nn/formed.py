"""What prediction computes of parameters once and keeps: never used where they may have changed since."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrize import is_parametrized

Value = TypeVar("Value")

#: Numbers up to which a tensor is compared with a copy: there that is quicker than to add them up.
_FEW = 2048

#: Integers to read a tensor's bytes as, by the size of its numbers in bytes.
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Keeping(nn.Module):
    """A module that keeps what it forms of its parameters while no gradient is asked for.

    What is kept is no parameter and no buffer, and no part of state dicts, pickles, deep copies and replicas. It goes
    with ``train()``, ``eval()``, ``load_state_dict``, and whatever moves or converts the module, and is not used where
    a tensor is another one, lies elsewhere, or holds other values than it was formed of.

    Args:
        keeps_formed: whether it does so.
    """

    def __init__(self, *, keeps_formed: bool = True) -> None:
        super().__init__()
        self._formed: Formed | None = None
        self._keeps_formed = keeps_formed

    @property
    def keeps_formed(self) -> bool:
        """Whether predictions keep what they form; switched off, all is formed at each call."""
        return self._keeps_formed

    @keeps_formed.setter
    def keeps_formed(self, keeps: bool) -> None:
        self._keeps_formed = bool(keeps)
        self.drop_formed()

    @property
    def formed_bytes(self) -> int:
        """Bytes of memory that what is kept takes now, beside the parameters."""
        return 0 if self._formed is None else self._formed.n_bytes

    def drop_formed(self) -> None:
        """Drop what is kept; it is formed again when it is needed."""
        self._formed = None

    def formed(self) -> Formed:
        """What is kept, or to be kept from now on; to be thrown away after the call if this module keeps nothing."""
        if self._formed is None or not self._formed.is_of_now():
            formed = Formed(self)
            if not self._keeps_formed or not formed.is_whole:
                return formed
            self._formed = formed
        return self._formed

    def train(self, mode: bool = True) -> Self:
        """As torch's; what was formed is dropped."""
        self.drop_formed()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_formed": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.drop_formed()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *arguments: Any) -> None:  # noqa: ANN401 - as torch hands them on
        self.drop_formed()
        super()._load_from_state_dict(*arguments)

    def _replicate_for_data_parallel(self) -> Self:
        replica: Self = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._formed, replica._keeps_formed = None, False
        return replica


class Formed:
    """Values formed of a module's tensors, for as long as these are the same ones, in the same memory.

    Args:
        module: whose tensors they are, with those of its children.

    Attributes:
        is_whole: whether every tensor is held as a parameter or buffer; where some are computed from others, as
            ``torch.nn.utils.parametrize`` does, nothing can be kept.
        runs: what the module keeps here for inputs of one shape.
    """

    def __init__(self, module: nn.Module) -> None:
        self._held: list[tuple[dict[str, Any], str, Any]] = []
        self._places: list[tuple[Tensor, int, tuple[int, ...]]] = []
        self.is_whole = True
        for each in module.modules():
            self.is_whole = self.is_whole and not is_parametrized(each)
            for held in (each._modules, each._parameters, each._buffers):
                for name, value in held.items():
                    self._held.append((held, name, value))
                    if isinstance(value, Tensor):
                        self._places.append((value, value.data_ptr(), value.stride()))
        self._records: dict[Hashable, _Record] = {}
        self.runs: dict[Hashable, Any] = {}

    def is_of_now(self) -> bool:
        """Whether the module's tensors are still the same objects, and their memory is where it was."""
        for held, name, value in self._held:
            if held.get(name) is not value:
                return False
        for tensor, address, strides in self._places:
            if tensor.data_ptr() != address or tensor.stride() != strides:
                return False
        return True

    def get(self, key: Hashable, tensors: Sequence[Tensor], form: Callable[[], Value]) -> Value:
        """A value, formed if there is none of this key, or if a tensor does not hold what it held then.

        Args:
            key: of the value.
            tensors: all that it depends on.
            form: makes the value: tensors, modules, tuples, lists and dataclasses of these.
        """
        record = self._records.get(key)
        if record is None or not record.is_current():
            # An inference tensor could not take part in what is differentiated later.
            with torch.inference_mode(mode=False), torch.no_grad():
                record = self._records[key] = _Record(form(), tensors)
        value: Value = record.value
        return value

    @property
    def n_bytes(self) -> int:
        """Bytes of all values."""
        return sum(tensor.nbytes for record in self._records.values() for tensor in _tensors_in(record.value))


class _Record:
    """A value, and what tells whether it is still that of its tensors.

    Writes through ``tensor.data``, or by another library into the same memory, raise no version: on a CPU a
    tensor's words tell of them, one by one or by their sum. A GPU would have to be waited for, so that they are not
    seen there.
    """

    def __init__(self, value: Any, tensors: Sequence[Tensor]) -> None:  # noqa: ANN401
        self.value = value
        versioned = [tensor for tensor in tensors if not tensor.is_inference()]
        self._versions = [(tensor, tensor._version) for tensor in versioned]
        on_cpu = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        # What is no view of the memory has to be read anew each time.
        words = [(tensor, _words(tensor) if tensor.is_contiguous() else None) for tensor in on_cpu]
        self._copied = [(tensor, each, _words(tensor).clone()) for tensor, each in words if tensor.numel() <= _FEW]
        self._summed = [(tensor, each, int(_words(tensor).sum())) for tensor, each in words if tensor.numel() > _FEW]

    def is_current(self) -> bool:
        """Whether the tensors hold what they held."""
        for tensor, version in self._versions:
            if tensor._version != version:
                return False
        for tensor, words, known in self._copied:
            if not torch.equal(_words(tensor) if words is None else words, known):
                return False
        for tensor, words, total in self._summed:
            if int((_words(tensor) if words is None else words).sum()) != total:
                return False
        return True


def _words(tensor: Tensor) -> Tensor:
    """A tensor's memory as integers, as wide as it can be read."""
    flat = tensor.detach().reshape(-1)
    even = flat.nbytes % 8 == 0 and flat.storage_offset() * flat.itemsize % 8 == 0
    return flat.view(torch.int64 if even else _WORDS[flat.itemsize])


def _tensors_in(value: Any) -> Iterable[Tensor]:  # noqa: ANN401
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors_in(each)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors_in(getattr(value, name))


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing looks into operations on these tensors: no compiler, tracer, transform, mode or autocast."""
    device = tensors[0].device.type
    if device == "meta" or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return (
        not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))
        and not torch.overrides.has_torch_function(tensors)
        and (forward_ad._current_level < 0 or all(forward_ad.unpack_dual(each).tangent is None for each in tensors))
    )
