"""What prediction computes of parameters once and keeps: never used where they may have changed since."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NoReturn, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrize import is_parametrized

from btcompress.contraction import autocasts
from btcompress.errors import BTCompressError

Value = TypeVar("Value")

#: What tensors that nothing looks into are.
_PLAIN = (Tensor, nn.Parameter)

#: Words up to which a tensor is compared with a copy; there that is hardly slower than to add them up.
_FEW = 4096

#: Of more words every so many are added up: a prime number, so that hardly a row of a matrix is a multiple of it.
_COLUMNS = 2039

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

    def __prepare_scriptable__(self) -> NoReturn:
        """Torch asks for what to script in a module's place.

        Raises:
            BTCompressError: always.
        """
        raise BTCompressError(
            f"torch.jit.script cannot read the code of {type(self).__name__}. Trace it (torch.jit.trace), export it "
            "(torch.export.export), or script its dense form (to_dense())."
        )

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
            ``torch.nn.utils.parametrize`` does, or as attributes by hooks of ``weight_norm`` and the like, nothing can
            be kept.
        runs: what the module keeps here for inputs of one shape.
    """

    def __init__(self, module: nn.Module) -> None:
        self._held: list[tuple[dict[str, Any], str, Any]] = []
        self._places: list[tuple[Tensor, int, tuple[int, ...]]] = []
        self.is_whole = True
        for each in module.modules():
            computed = is_parametrized(each) or any(isinstance(value, Tensor) for value in vars(each).values())
            self.is_whole = self.is_whole and not computed
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
        """Bytes of all values that are no views of the parameters."""
        own = {tensor.untyped_storage().data_ptr() for tensor, _, _ in self._places}
        found: dict[int, int] = {}
        for record in self._records.values():
            for tensor in _tensors_in(record.value):
                # What oneDNN has laid out has no storage that could be shared.
                storage = None if tensor.is_mkldnn else tensor.untyped_storage()
                key, size = (id(tensor), tensor.nbytes) if storage is None else (storage.data_ptr(), storage.nbytes())
                found |= {} if key in own else {key: size}
        return sum(found.values())


class _Record:
    """A value, and what tells whether it is still that of its tensors.

    Writes through ``tensor.data``, or by another library into the same memory, raise no version: on a CPU a tensor's
    memory, read as integers, tells of them. Of small tensors every word does; of large ones sums of words far apart,
    which any single change alters, and so do changes of sign or scale and, but for odd chances, other orders. A GPU
    would have to be waited for, so that such writes are not seen there.
    """

    def __init__(self, value: Any, tensors: Sequence[Tensor]) -> None:  # noqa: ANN401
        self.value = value
        self._versions = [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]
        on_cpu = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        # What is no view of the memory has to be read anew each time.
        self._copied = [(tensor, _words(tensor).clone()) for tensor in on_cpu if not tensor.is_contiguous()]
        self._small, self._large = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()
        for words in (_words(tensor) for tensor in on_cpu if tensor.is_contiguous()):
            n = 0
            if words.numel() > _FEW:
                rows = words.numel() // _COLUMNS
                # Of an even number of words the same change to all can leave their sum as it was.
                n = (rows - 1 + rows % 2) * _COLUMNS
                columns = words[:n].view(-1, _COLUMNS)
                self._large.append((columns, columns.sum(0)))
            self._small.append((words[n:], words[n:].clone()))

    def is_current(self) -> bool:
        """Whether the tensors hold what they held."""
        for tensor, version in self._versions:
            if tensor._version != version:
                return False
        for words, known in self._small:
            if not torch.equal(words, known):
                return False
        for columns, known in self._large:
            if not torch.equal(columns.sum(0), known):
                return False
        return all(torch.equal(_words(tensor), known) for tensor, known in self._copied)


def _words(tensor: Tensor) -> Tensor:
    """A tensor's memory as integers, as wide as it can be read."""
    flat = tensor.detach().reshape(-1).contiguous()
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
        and not autocasts(device)
        # Others than torch's own two kinds may be no numbers in memory.
        and all(type(tensor) in _PLAIN for tensor in tensors)
        and (forward_ad._current_level < 0 or all(forward_ad.unpack_dual(each).tangent is None for each in tensors))
    )
