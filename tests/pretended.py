"""A device that is only pretended: CPU tensors that say they lie elsewhere, and refuse what a GPU refuses.

Tensors of it meet no tensor of the CPU in one operation, numbers without dimensions and indices excepted, and take no
generator of the CPU; NumPy does not see them. What runs here mixes no devices. It says nothing of a real one's
kernels, numbers or speed. torch knows one such device in a process, and for good: use it in a process of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from accelerate.state import PartialState
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
aten = torch.ops.aten

#: Operations that bring tensors from one device to another.
_CROSSING = {aten._to_copy.default, aten.copy_.default}
#: Operations that take indices from the CPU, as on a GPU.
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
#: Operations that take or give lengths on the CPU beside data of the device.
_PACKING = {
    aten._pack_padded_sequence.default,
    aten._pack_padded_sequence_backward.default,
    aten._pad_packed_sequence.default,
}

#: The kernels registered for the device, which last as long as this does.
_registered: list[torch.library.Library] = []


class Elsewhere(torch.Tensor):
    """A tensor whose numbers ``held`` has on the CPU."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"{self.held!r} elsewhere"

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)

    def new_tensor(self, data, **options):
        # torch's own makes it past all dispatch to Python.
        return torch.tensor(data, dtype=self.dtype, **options).to(self.device)

    def data_ptr(self):
        return self.held.data_ptr()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Watching(TorchDispatchMode):
    """Sees operations without tensors of the device too: those that make them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[None]:
    """Have the device, and let accelerate choose it."""
    if not _registered:
        _setup_privateuseone_for_python_backend(NAME)
        _registered.append(torch.library.Library("aten", "IMPL"))
        # torch.tensor of a list of tensors asks for their numbers past all dispatch to Python.
        _registered[0].impl("_local_scalar_dense", lambda each: each.held.item(), "PrivateUse1")
    chosen = property(lambda _: torch.device(NAME, 0))
    with patch.object(PartialState, "default_device", chosen), patch.object(nn.Module, "to", _to), _Watching():
        yield


def _to(module, *args, _to=nn.Module.to, **kwargs):
    """As on a real device, parameters stay the same objects when they move."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _to(module, *args, **kwargs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _run(func, args, kwargs):
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, Elsewhere)]
    here = [each for each in tensors if not isinstance(each, Elsewhere) and each.dim()]
    if there and here and not _may_meet(func, args):
        raise RuntimeError(
            f"{func}: tensors on {NAME} and on the CPU meet, of sizes {[each.shape for each in tensors]}"
        )
    device = kwargs.get("device")
    lies_there = bool(there) if device is None else torch.device(device).type == NAME
    if lies_there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator on the CPU draws for {NAME}")
    if device is not None and lies_there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map_only(Elsewhere, lambda each: each.held, (args, kwargs))
    result = _KERNELS.get(func, func)(*plain_args, **plain_kwargs)
    if not func._schema.returns:
        return None
    if func._schema.name.endswith("_") and func._schema.is_mutable:
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    if lies_there and func in _PACKING and isinstance(result, tuple):
        return Elsewhere(result[0]), result[1]
    return tree_map_only(torch.Tensor, Elsewhere, result) if lies_there else result


def _may_meet(func, args):
    return func in _CROSSING or func in _PACKING or (func in _INDEXING and isinstance(args[0], Elsewhere))


def _lstm_cell(from_input, from_hidden, c, input_bias=None, hidden_bias=None):
    """One step of an LSTM, which torch has no CPU kernel for; the last of its results is for the gradient."""
    z = from_input + from_hidden
    if input_bias is not None:
        z = z + input_bias + hidden_bias
    i, f, g, o = z.chunk(4, dim=1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    new_c = f * c + i * g
    return o * new_c.tanh(), new_c, torch.cat([i, f, g, o], dim=1)


def _lstm_cell_backward(grad_h, grad_c, c, new_c, gates, has_bias):
    i, f, g, o = gates.chunk(4, dim=1)
    along = torch.zeros_like(c) if grad_c is None else grad_c
    by_o = torch.zeros_like(c)
    if grad_h is not None:
        along, by_o = along + grad_h * o * (1 - new_c.tanh() ** 2), grad_h * new_c.tanh()
    parts = [along * g * i * (1 - i), along * c * f * (1 - f), along * i * (1 - g**2), by_o * o * (1 - o)]
    grad = torch.cat(parts, dim=1)
    return grad, along * f, grad.sum(0) if has_bias else None


def _gru_cell(from_input, from_hidden, h, input_bias=None, hidden_bias=None):
    """One step of a GRU, likewise."""
    if input_bias is not None:
        from_input, from_hidden = from_input + input_bias, from_hidden + hidden_bias
    (x_r, x_z, x_n), (u_r, u_z, u_n) = from_input.chunk(3, dim=1), from_hidden.chunk(3, dim=1)
    r, z = (x_r + u_r).sigmoid(), (x_z + u_z).sigmoid()
    n = (x_n + r * u_n).tanh()
    return (1 - z) * n + z * h, torch.cat([r, z, n, u_n, h], dim=1)


def _gru_cell_backward(grad, kept, has_bias):
    r, z, n, u_n, h = kept.chunk(5, dim=1)
    by_n = grad * (1 - z) * (1 - n**2)
    shared = [by_n * u_n * r * (1 - r), grad * (h - n) * z * (1 - z)]
    both = torch.cat([*shared, by_n], dim=1), torch.cat([*shared, by_n * r], dim=1)
    biases = tuple(each.sum(0) for each in both) if has_bias else (None, None)
    return *both, grad * z, *biases


_KERNELS = {
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_cell_backward,
}
