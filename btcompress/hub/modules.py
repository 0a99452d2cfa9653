"""The same for modules of any class: those of this package, and networks that do not inherit the mixin."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from os import PathLike
from typing import Annotated, Any, TypeVar, cast

import msgspec
import torch
from huggingface_hub import ModelHubMixin
from msgspec import Meta, Struct
from torch import Tensor, nn

from btcompress.checkpoint import RecurrentEntry, find_recurrent
from btcompress.checkpoint.compressed import part_names
from btcompress.checkpoint.schema import Count, Size
from btcompress.checkpoint.tensors import is_countable
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.hub.mixin import HubMixin, built
from btcompress.hub.weights import Saved
from btcompress.nn import BTGRU, BTLSTM, BTRNN, BTGRUCell, BTLinear, BTLSTMCell, BTRNNCell
from btcompress.nn.replacing import classes_of
from btcompress.nn.ways import Method
from btcompress.shapes import Nonlinearity

_Module = TypeVar("_Module", bound=nn.Module)


class _LinearArguments(Struct):
    in_features: Size
    out_features: Size
    bias: bool = True
    method: Method = "auto"
    keeps_formed: bool = True


class _CellArguments(Struct):
    input_size: Size
    hidden_size: Size
    bias: bool = True
    method: Method = "auto"
    keeps_formed: bool = True


class _RNNCellArguments(_CellArguments):
    nonlinearity: Nonlinearity = "tanh"


class _LayerArguments(_CellArguments):
    num_layers: Size = 1
    batch_first: bool = False
    dropout: Annotated[float, Meta(ge=0, le=1)] = 0.0
    bidirectional: bool = False


class _LSTMArguments(_LayerArguments):
    proj_size: Count = 0


class _RNNArguments(_LayerArguments):
    nonlinearity: Nonlinearity = "tanh"


#: What the modules of this package are built with beside shapes, dtype and device.
_ARGUMENTS: dict[type, type[_LinearArguments | _CellArguments]] = {
    BTLSTM: _LSTMArguments,
    BTGRU: _LayerArguments,
    BTRNN: _RNNArguments,
    BTLSTMCell: _CellArguments,
    BTGRUCell: _CellArguments,
    BTRNNCell: _RNNCellArguments,
    BTLinear: _LinearArguments,
}

#: Which of them follow from the tensors, and from what else a result says.
_HELD = ("input_size", "hidden_size", "bias", "num_layers", "bidirectional", "proj_size", "nonlinearity")


def save_pretrained(
    module: nn.Module,
    save_directory: str | PathLike[str],
    *,
    config: Any = None,  # noqa: ANN401 - a dict or any dataclass
    **options: Any,  # noqa: ANN401
) -> str | None:
    """Save a network as :meth:`btcompress.hub.HubMixin.save_pretrained` does, whatever its class.

    Args:
        module: the network.
        save_directory: the folder.
        config: the arguments that its class was built with. A module of this package, and a class that inherits a
            mixin of ``huggingface_hub``, know their own; others are given them again when they are loaded.
        **options: as there.

    Raises:
        OutputError: as there.
        CheckpointError: as there.
    """
    return _carrier(module, config).save_pretrained(save_directory, **options)


def push_to_hub(module: nn.Module, repo_id: str, *, config: Any = None, **options: Any) -> str:  # noqa: ANN401
    """Upload a network to the Hub; arguments are those of :func:`save_pretrained` and of the mixin's method."""
    return _carrier(module, config).push_to_hub(repo_id, **options)


def from_pretrained(
    build: type[_Module],
    pretrained_model_name_or_path: str | PathLike[str],
    **options: Any,  # noqa: ANN401
) -> _Module:
    """Load a network as :meth:`btcompress.hub.HubMixin.from_pretrained` does, whatever its class.

    Args:
        build: the class.
        pretrained_model_name_or_path: the folder, or a repository on the Hub.
        **options: as there.

    Raises:
        CheckpointError: as there.
        BTCompressError: as there.
    """
    own: type = build
    if issubclass(own, HubMixin):
        return cast(_Module, own.from_pretrained(pretrained_model_name_or_path, **options))
    module = _builder(build).from_pretrained(pretrained_model_name_or_path, **options)
    if type(module) in _ARGUMENTS:
        vars(module).pop("_hub_mixin_config", None)  # these know their arguments themselves
    return cast(_Module, module)


class _Carrier(HubMixin):
    """Saves another module."""

    def __init__(self, module: nn.Module, arguments: Any) -> None:  # noqa: ANN401
        self._carried = module
        self._hub_mixin_config = arguments
        self._hub_mixin_info = getattr(module, "_hub_mixin_info", HubMixin._hub_mixin_info)

    @property
    def _network(self) -> nn.Module:
        return self._carried


def _carrier(module: nn.Module, config: Any) -> HubMixin:  # noqa: ANN401
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module = module.module
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    if config is None and type(module) in _ARGUMENTS:
        config = _arguments_of(module)
    return _Carrier(module, getattr(module, "_hub_mixin_config", None) if config is None else config)


def _arguments_of(module: nn.Module) -> dict[str, Any]:
    names = _ARGUMENTS[type(module)].__struct_fields__
    arguments = {name: getattr(module, name) for name in names}
    return {**arguments, "bias": module.bias is not None} if isinstance(module, BTLinear) else arguments


def _builder(build: type[nn.Module]) -> type[HubMixin]:
    """A mixin that builds this class in its own place."""

    class Builder(HubMixin):
        @classmethod
        def _build(cls, saved: Saved, arguments: dict[str, Any]) -> nn.Module:
            if build in _ARGUMENTS:
                return _own(build, saved, arguments)
            return cast(nn.Module, built(build, arguments))

    Builder._hub_mixin_init_parameters = dict(inspect.signature(build.__init__).parameters)
    if issubclass(build, ModelHubMixin):
        Builder._hub_mixin_coders = build._hub_mixin_coders
        Builder._hub_mixin_jsonable_custom_types = build._hub_mixin_jsonable_custom_types
    return Builder


def _own(build: type[nn.Module], saved: Saved, arguments: dict[str, Any]) -> nn.Module:
    """A module of this package with room for its parameters, once its arguments are found to be those of its tensors.

    Raises:
        CheckpointError: they are not.
        BTCompressError: an argument is given that the class does not take from here.
    """
    kind = _ARGUMENTS[build]
    if strangers := arguments.keys() - set(kind.__struct_fields__) - saved.config.keys():
        raise BTCompressError(
            f"{build.__name__}.from_pretrained takes no {', '.join(sorted(strangers))}. Its shapes and dtype are those "
            "of the files; move and convert it afterwards."
        )
    taken = {name: value for name, value in arguments.items() if name in kind.__struct_fields__}
    try:
        checked = msgspec.structs.asdict(msgspec.convert(taken, kind))
    except msgspec.ValidationError as error:
        raise CheckpointError(f"these are no arguments of {build.__name__}: {error}. Save the module again.") from error
    held = _held(build, saved)
    if differing := [name for name in held if checked[name] != held[name]]:
        said, true = checked[differing[0]], held[differing[0]]
        raise CheckpointError(
            f"the arguments say {differing[0]} {said}, but the tensors are those of a {build.__name__} with {true}. "
            "Give a folder whose files were written together."
        )
    if build is BTLinear:
        checked["shape"] = saved.shapes["weight"]
    else:
        checked["shapes"] = saved.shapes
    dtype = next(tensor.dtype for tensor in saved.tensors.values() if tensor.is_floating_point())
    module: nn.Module = build(**checked, device="meta", dtype=dtype)
    return module.to_empty(device="cpu")


def _held(build: type[nn.Module], saved: Saved) -> dict[str, Any]:
    """The arguments that follow from shapes and tensors.

    Raises:
        CheckpointError: these are not the tensors of such a module.
    """
    outline = _outline(saved)
    if build is BTLinear:
        shape = saved.shapes.get("weight")
        if shape is not None and outline.keys() <= {"weight", "bias"}:
            return {"in_features": shape.in_size, "out_features": shape.out_size, "bias": "bias" in outline}
    else:
        result = saved.result
        # Plain tensors do not say a nonlinearity.
        unknown = {"nonlinearity"} if result is None else set[str]()
        names = [name for name in _ARGUMENTS[build].__struct_fields__ if name in _HELD and name not in unknown]
        entries = find_recurrent(outline, None if result is None else result.nonlinearities)
        for entry in entries if len(entries) == 1 else ():
            if not isinstance(entry, RecurrentEntry) or build not in classes_of(entry.type, entry.is_cell):
                continue
            if set(entry.keys) == outline.keys() and not entry.prefix:
                return {name: getattr(entry, name) for name in names}
    raise CheckpointError(
        f"the files do not hold a {build.__name__} and nothing else. Load them with the class that they were saved of."
    )


def _outline(saved: Saved) -> Mapping[str, Tensor]:
    """The tensors, and in the place of block terms the matrices that they form, which have no values."""
    outline = dict(saved.tensors)
    for key, shape in saved.shapes.items():
        if not is_countable((shape.out_size, shape.in_size)):
            raise CheckpointError(f"{key} is said to have {shape.out_size} x {shape.in_size} entries. Save it again.")
        for names in part_names(key, shape):
            for name in names:
                outline.pop(name, None)
        outline[key] = torch.empty((shape.out_size, shape.in_size), device="meta")
    return outline
