"""Use a compressed checkpoint: load it, put it into a model, or turn it back into dense weights."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from btcompress.applied import remember
from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry, find_recurrent, oddity, read_compressed
from btcompress.checkpoint.compressed import part_names
from btcompress.checkpoint.names import PART
from btcompress.checkpoint.wrappers import matched, plain_name
from btcompress.errors import CheckpointError, ShapeError
from btcompress.nn import BTLinear, BTLSTMCell, BTWeight
from btcompress.nn.alterations import alterations
from btcompress.nn.replacing import (
    BlockTerm,
    Recurrent,
    Replaceable,
    classes_of,
    is_replaceable,
    obstacle_to,
    with_shapes,
)
from btcompress.shapes import MatrixShape, Nonlinearity
from btcompress.text import listed

Compressed = str | PathLike[str] | CompressedCheckpoint
Module = TypeVar("Module", bound=nn.Module)

#: What lies in a layer of an LSTM, by its name.
_OF_LAYER = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?P<part>(?:weight|bias)_(?:ih|hh))_l(?P<layer>[0-9]+)(?P<reverse>_reverse)?(?P<rest>(?:\..*)?)",
    re.DOTALL,
)

#: What a parameter is called that weights are dropped from at each call.
_DROPPED = re.compile(f"{PART}_raw")


def load(path: str | PathLike[str]) -> CompressedCheckpoint:
    """Read a result file.

    Raises:
        CheckpointError: it is missing, damaged or no result of btcompress.
    """
    return read_compressed(path)


def to_dense(compressed: Compressed) -> dict[str, Tensor]:
    """The plain state dict, each factorized matrix formed in its original dtype.

    Args:
        compressed: a result file, or what :func:`load` or :func:`btcompress.factorize` gave.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return opened(compressed).dense_state_dict()


def apply(module: Module, compressed: Compressed, *, prefix: str = "", strict: bool = True) -> Module:
    """Swap the layers of a model whose matrices were factorized for block-term layers and load the weights.

    Each such ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``, cell of these or ``nn.Linear`` is replaced in place by a
    :class:`BTLSTM` or its like, or a :class:`BTLinear`, of the same arguments, dtype and device. A layer is
    found by its name, else by the only one that is the same without what wrappers put into names (``module.``,
    ``_orig_mod.``, ``_forward_module.``, ``_fsdp_wrapped_module.``, ``_module.``, and ``model.``) on either side.
    Where the file has plain weights of what the model makes anew at each
    call, by torch's weight norm, spectral norm or pruning, the model gets plain weights as well; a wrapper that drops
    weights of an LSTM goes with that.

    Args:
        module: the model as it was when its dense checkpoint was saved; changed in place.
        compressed: a result file, or what :func:`load` or :func:`btcompress.factorize` gave.
        prefix: take only the tensors whose names begin with this, without it.
        strict: every tensor of the file must have a place in the model and every tensor of the model
            must be in the file.

    Returns:
        The module; a new one if it is such a layer itself.

    Raises:
        CheckpointError: names, types, sizes or nonlinearities do not fit, a layer computes something else than
            torch's, or a linear layer's weight is tied in the model; the module is then unchanged.
    """
    result = opened(compressed)
    tensors = _without_prefix(result.tensors, prefix)
    matrices = _without_prefix({key: matrix.shape for key, matrix in result.matrices.items()}, prefix)
    outline = _without_prefix(result.outline(), prefix)
    names = _names_in(module, (*outline, *tensors), matrices)
    tensors, matrices, outline = _renamed(tensors, names), _renamed(matrices, names), _renamed(outline, names)
    modules = _by_plain_name(dict(module.named_modules(remove_duplicate=False)))
    swaps: dict[str, nn.Module] = {}
    rest = dict(matrices)
    for entry in find_recurrent(outline, _nonlinearities(result, prefix, names)):
        if not isinstance(entry, RecurrentEntry):
            continue
        shapes = {key.removeprefix(entry.prefix): rest.pop(key) for key in entry.matrix_keys if key in rest}
        if shapes:
            name = plain_name(entry.name)
            swaps[name] = _recurrent_replacement(entry, modules.get(name), shapes, list(modules))
    for key, shape in rest.items():
        name = plain_name(key.removesuffix("weight").removesuffix("."))
        swaps[name] = _linear_replacement(name, modules.get(name), shape, module, list(modules))
    module = cast(Module, _filled(module, modules, swaps, tensors, strict=strict))
    remember(module, result, prefix)
    return module


def restore(
    module: nn.Module, shapes: Mapping[str, MatrixShape], tensors: Mapping[str, Tensor], *, strict: bool = True
) -> nn.Module:
    """Give a model, as its class builds it, the block-term layers and the weights that it had when it was saved.

    A layer that has a block-term form may be dense in it, or be a block-term layer of any shapes.

    Args:
        module: changed in place.
        shapes: of all block-term matrices, by key.
        tensors: by name.
        strict: as :func:`apply`'s.

    Returns:
        The module; a new one if it is such a layer itself.

    Raises:
        CheckpointError: names, types or sizes do not fit, or a linear layer's weight is tied in the model; the
            module is then unchanged.
    """
    names = _names_in(module, tensors, shapes)
    tensors, shapes = _renamed(tensors, names), _renamed(shapes, names)
    modules = _by_plain_name(dict(module.named_modules(remove_duplicate=False)))
    layers: dict[str, dict[str, MatrixShape]] = {}
    for key, shape in shapes.items():
        name, _, part = plain_name(key).rpartition(".")
        layers.setdefault(name, {})[part] = shape
    swaps = {}
    for name, own in layers.items():
        old = modules.get(name)
        if _has_shapes(old, own):
            continue
        if old is None or not is_replaceable(old):
            given = "is not in the model" if old is None else f"is a {type(old).__name__}"
            raise CheckpointError(
                f"the files have a block-term layer at {name or 'the model itself'}, but that {given}. Give the class "
                "and the arguments that the model was saved with."
            )
        if isinstance(old, nn.Linear):
            _check_untied(name, old, module)
        try:
            swaps[name] = with_shapes(cast(Replaceable, old), own)
        except ShapeError as error:
            raise CheckpointError(f"{name or 'the model'} differs from the model that was saved: {error}") from error
    return _filled(module, modules, swaps, tensors, strict=strict)


def _nonlinearities(result: CompressedCheckpoint, prefix: str, names: Mapping[str, str]) -> dict[str, Nonlinearity]:
    """Those of the plain RNNs of a result, by what the model calls these.

    Args:
        result: the result.
        prefix: that tensors are named without.
        names: what the model calls the tensors of the file, which are without the prefix.
    """
    found: dict[str, Nonlinearity] = {}
    for entry in result.recurrent():
        if isinstance(entry, RecurrentEntry) and entry.type == "rnn" and entry.prefix.startswith(prefix):
            key = entry.keys[0]
            called, part = names[key.removeprefix(prefix)], key.removeprefix(entry.prefix)
            found[called.removesuffix(part).removesuffix(".")] = entry.nonlinearity
    return found


def _has_shapes(module: nn.Module | None, shapes: Mapping[str, MatrixShape]) -> bool:
    """Whether these are the shapes of all block-term matrices right below a module."""
    found = (
        {} if module is None else {n: each.shape for n, each in module.named_children() if isinstance(each, BTWeight)}
    )
    return found == dict(shapes)


def _filled(
    module: nn.Module,
    modules: Mapping[str, nn.Module],
    swaps: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
    *,
    strict: bool,
) -> nn.Module:
    """The module once layers are swapped for others and it has these weights."""
    _check_names(module, swaps, tensors, strict)
    for name, new in swaps.items():
        module = _put(module, _with_weight_drop(module, modules[name]), new)
    make_plain(module, tensors)
    _copy(module, tensors)
    return module


def make_plain(module: nn.Module, names: Collection[str]) -> None:
    """Undo weight norm, spectral norm and pruning of each parameter of these names, apart from wrappers."""
    given = {plain_name(name) for name in names}
    for each in [each for each in alterations(module) if plain_name(each.name) in given]:
        each.undo()


def _with_weight_drop(root: nn.Module, old: nn.Module) -> nn.Module:
    """The wrapper that drops weights of a module, which looks for these by name; without one, the module itself."""
    for parent in root.modules():
        names = [name for each in (parent, old) for name, _ in each.named_parameters(recurse=False)]
        if list(parent.children()) == [old] and any(_DROPPED.fullmatch(name) for name in names):
            return parent
    return old


def opened(compressed: Compressed) -> CompressedCheckpoint:
    """The result itself, or the one in a file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return compressed if isinstance(compressed, CompressedCheckpoint) else read_compressed(compressed)


_Value = TypeVar("_Value")


def _without_prefix(values: Mapping[str, _Value], prefix: str) -> dict[str, _Value]:
    kept = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    if not kept and values:
        raise CheckpointError(
            f"nothing in the file begins with the prefix {prefix!r}; names begin like {next(iter(values))}."
        )
    return kept


def name_in(given: Collection[str], name: str) -> str:
    """What the file calls a tensor of a model: raw weights, of which some are dropped at each call, are plain there.

    Args:
        given: names of the file, without the parts of wrappers.
        name: in the model.
    """
    plain = plain_name(name)
    is_raw = plain not in given and _DROPPED.fullmatch(plain.rpartition(".")[2])
    return plain.removesuffix("_raw") if is_raw else plain


def uncompiled() -> Any:  # noqa: ANN401 - torch's own context
    """Run what was compiled as it was written; nothing is compiled where dynamo was never loaded."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _by_plain_name(values: Mapping[str, _Value]) -> dict[str, _Value]:
    """Values by name without wrappers; of a wrapper and what it wraps, the wrapped one."""
    return {plain_name(name): value for name, value in values.items()}


def named_as_in(module: nn.Module, values: Mapping[str, _Value]) -> dict[str, _Value]:
    """Values by what the model calls the tensors, as :func:`apply` finds it; others keep their names.

    Args:
        module: the model.
        values: by the names of tensors of a file.
    """
    return _renamed(values, _names_in(module, values, {}))


def _names_in(module: nn.Module, names: Iterable[str], matrices: Mapping[str, MatrixShape]) -> dict[str, str]:
    """What the model calls the tensors and matrices of a file; those of layers that it has not keep their names.

    Args:
        module: the model.
        names: of tensors of the file.
        matrices: the shapes of its block-term matrices, by key.
    """
    keys = {name: key for key, shape in matrices.items() for names in part_names(key, shape) for name in names}
    layers = {name: keys.get(name, name).rpartition(".")[0] for name in (*matrices, *names)}
    held = [name.rpartition(".")[0] for name in module.state_dict()]
    held += [name for name, each in module.named_modules(remove_duplicate=False) if is_replaceable(each)]
    found = matched(layers.values(), held)
    renamed = {name: _in_layer(found.get(layer, layer), name, layer) for name, layer in layers.items()}
    return renamed | _in_steps(module, renamed)


def _in_steps(module: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """The new names of what a model has in single steps, one for each layer, and the file in one LSTM of all layers.

    The custom LSTM of TorchScript's benchmarks has such names, and is converted as one; a model may have torch's own
    cells under them.
    """
    steps = {
        plain_name(name): name
        for name, each in module.named_modules(remove_duplicate=False)
        if isinstance(each, BTLSTMCell) or obstacle_to(each, nn.LSTMCell) is None
    }
    found = {}
    for given, name in names.items() if steps else ():
        if match := _OF_LAYER.fullmatch(name):
            direction = f".directions.{1 if match['reverse'] else 0}"
            layer = plain_name(f"{match['prefix']}layers.{match['layer']}")
            cell = steps.get(f"{layer}{direction}.cell") or steps.get(f"{layer}.cell")
            if cell is not None:
                found[given] = f"{cell}.{match['part']}{match['rest']}"
    return found


def _in_layer(layer: str, name: str, before: str) -> str:
    """The name of what lies in a layer that was called otherwise before."""
    part = name.removeprefix(f"{before}.") if before else name
    return f"{layer}.{part}" if layer else part


def _renamed(values: Mapping[str, _Value], names: Mapping[str, str]) -> dict[str, _Value]:
    return {names[name]: value for name, value in values.items()}


def _recurrent_replacement(
    entry: RecurrentEntry, old: nn.Module | None, shapes: dict[str, MatrixShape], names: Sequence[str]
) -> nn.Module:
    """The block-term module for a recurrent layer of the model, which must be the one that the file was made from."""
    if entry.siblings and old is not None:
        raise CheckpointError(
            f"{oddity(entry)}, and {entry.name or 'the model itself'} is a {type(old).__name__}: no block-term layer "
            "computes what it does. Load to_dense() into the model, or factorize the checkpoint without it (layer "
            f"pattern !{entry.prefix}weight_*)."
        )
    old = _checked(entry.name, old, classes_of(entry.type, entry.is_cell)[0], names)
    _check_sizes(entry, old)
    return with_shapes(cast(Replaceable, old), shapes)


def _linear_replacement(
    name: str, old: nn.Module | None, shape: MatrixShape, root: nn.Module, names: Sequence[str]
) -> nn.Module:
    """The block-term layer for a linear layer of the model."""
    old = _checked(name, old, nn.Linear, names)
    weight = cast(Tensor, old.weight)
    size, given = (shape.out_size, shape.in_size), tuple(weight.shape)
    if given != size:
        raise CheckpointError(
            f"{name or 'the linear layer'} differs: its weight is {size[0]} x {size[1]} in the file and "
            f"{given[0]} x {given[1]} in the model. Build the model as its checkpoint was saved."
        )
    _check_untied(name, old, root)
    return with_shapes(cast(Replaceable, old), {"weight": shape})


def _check_untied(name: str, linear: nn.Module, root: nn.Module) -> None:
    weight = linear.weight
    for other, module in root.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            if parameter is weight and module is not linear:
                raise CheckpointError(
                    f"the weight of {name} is tied to {f'{other}.{part}'.removeprefix('.')} in the model, and would no "
                    f"longer be. Untie them, or factorize the checkpoint without it (layer pattern !{name})."
                )


def _checked(name: str, old: nn.Module | None, expected: type[nn.Module], names: Sequence[str]) -> nn.Module:
    """The module of this name, if it is of this type: others may use their weights in ways of their own."""
    where = name or "the model itself"
    if isinstance(old, BlockTerm):
        what = "layer" if isinstance(old, BTLinear) else _cell_of(old).upper()
        raise CheckpointError(f"{where} is a block-term {what} already. Apply the file to the model's dense form.")
    obstacle = obstacle_to(old, expected)
    if old is None or obstacle is not None:
        raise CheckpointError(
            f"the file has an nn.{expected.__name__} at {where}, but that {obstacle}. Give the model whose dense "
            f"checkpoint was compressed (it has {', '.join(name for name in names[:8] if name) or 'no submodules'}), "
            "or a prefix; or load to_dense() into a model that is written otherwise. Where the layer was converted "
            f"from another project's names, as the report then says, put an nn.{expected.__name__} of its sizes there."
        )
    return old


def _cell_of(module: Recurrent) -> str:
    (directions, *_) = module.layers().values()
    return directions[0].cell.name


def _check_sizes(entry: RecurrentEntry, module: nn.Module) -> None:
    names = ["input_size", "hidden_size", "num_layers", "bidirectional", "proj_size", "bias"]
    names += ["nonlinearity"] if entry.type == "rnn" else []
    pairs = ((name, getattr(entry, name), getattr(module, name, getattr(entry, name))) for name in names)
    differing = [
        f"{name} {ours} in the file and {theirs} in the model" for name, ours, theirs in pairs if ours != theirs
    ]
    if differing:
        said = " Weights do not tell the nonlinearity of a plain RNN: say it when they are factorized (--nonlinearity)."
        raise CheckpointError(
            f"{entry.name or f'the {entry.type.upper()}'} differs: {', '.join(differing)}. Build the model as its "
            f"checkpoint was saved.{said if differing[-1].startswith('nonlinearity') else ''}"
        )


def _check_names(
    module: nn.Module, swaps: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], strict: bool
) -> None:
    """Compare names and shapes as they will be after the swaps, before anything is changed."""
    given = {plain_name(name): tensor.shape for name, tensor in tensors.items()}
    state = {name_in(given, name): tensor.shape for name, tensor in module.state_dict().items()}
    for each in alterations(module):
        if plain_name(each.name) in given:
            for stored in each.stored:
                state.pop(plain_name(stored), None)
            state[plain_name(each.name)] = each.shape
    gone: set[str] = set()
    for name, new in swaps.items():
        below = f"{name}." if name else ""
        gone |= {key for key in state if key.startswith(below)}
        state = {key: shape for key, shape in state.items() if not key.startswith(below)}
        state |= {below + key: tensor.shape for key, tensor in new.state_dict().items()}
    # Buffers of a layer, such as a mask, go with it.
    missing = sorted(state.keys() - given.keys() - held_elsewhere(module, given))
    unexpected = sorted(given.keys() - state.keys() - gone)
    if strict and (missing or unexpected):
        raise CheckpointError(
            "the file and the model do not hold the same tensors: "
            + "; ".join(
                f"only in the {side}: {listed(names, 5)}"
                for side, names in (("model", missing), ("file", unexpected))
                if names
            )
            + ". Give the matching model or a prefix, or pass strict=False to load what fits."
        )
    for name in state.keys() & given.keys():
        if state[name] != given[name]:
            raise CheckpointError(
                f"{name} has shape {tuple(given[name])} in the file and {tuple(state[name])} in the model. "
                "Build the model as its checkpoint was saved."
            )


def held_elsewhere(module: nn.Module, given: Collection[str]) -> set[str]:
    """What a file lacks of a model, but holds under another name, as the two are one tensor in the model.

    Some files hold tied tensors, such as those of an embedding and of the layer that decodes, under one name alone.

    Args:
        module: the model.
        given: the names of the file, without the parts of wrappers.

    Returns:
        The other names, without the parts of wrappers.
    """
    names: dict[int, set[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), set()).add(name_in(given, name))
    return {name for own in names.values() if not own.isdisjoint(given) for name in own} - set(given)


def _put(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever ``old`` stands below ``root``."""
    if root is old:
        return new
    for parent in list(root.modules()):
        for name, child in parent._modules.items():  # named_children() would hide a second name of one child
            if child is old:
                parent._modules[name] = new
    return root


def _copy(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    plain = _by_plain_name(tensors)
    with torch.no_grad():
        for name, target in module.state_dict(keep_vars=True).items():
            if (given := name_in(plain, name)) in plain:
                target.copy_(plain[given])
