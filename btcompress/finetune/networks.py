"""The networks that are trained, and their dense teachers, built from what the files hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, RecurrentEntry, tied_layers
from btcompress.checkpoint.compressed import order_names
from btcompress.checkpoint.tensors import find_aliases
from btcompress.errors import BTCompressError, CheckpointError, ShapeError
from btcompress.finetune.data import Batch, Data
from btcompress.finetune.items import STATES
from btcompress.finetune.recorded import is_same_layer
from btcompress.nn import BTLinear
from btcompress.nn.celltype import State
from btcompress.nn.replacing import classes_of
from btcompress.shapes import MatrixShape
from btcompress.text import listed

#: ``(B, T, D H)`` hidden states of the last layer, and the final ``h``, and ``c`` of an LSTM, of every layer.
States = tuple[Tensor, ...]


class Network(nn.Module):
    """A network that knows what the file calls its tensors; called with inputs, lengths and initial states."""

    def file_tensors(self) -> dict[str, Tensor]:
        """The live tensors by the names that the file gives them, without what wrappers add."""
        raise NotImplementedError


class Recurrent(Network):
    """A recurrent layer of a file, dense or with block-term matrices; a cell runs as such of one layer.

    Args:
        entry: the recurrent layer, as found in the file.
        tensors: of the file, by name; those of the recurrent layer are taken.
        shapes: the block-term shape of each of its factorized matrices, by key; none for the dense teacher.
        dtype: to compute in.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """

    def __init__(
        self,
        entry: RecurrentEntry,
        tensors: Mapping[str, Tensor],
        shapes: Mapping[str, MatrixShape],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.entry = entry
        own = {self._inner(key): shape for key, shape in shapes.items() if key in entry.matrix_keys}
        arguments = replace(entry, kind=entry.type).arguments | ({"shapes": own} if own else {})
        build: Callable[..., nn.Module] = classes_of(entry.type, is_cell=False)[bool(own)]
        self.layer = build(**arguments, batch_first=True, dtype=dtype)
        given = {self._inner(key): tensors[key] for key in tensors if key.startswith(entry.prefix)}
        fill(self.layer, given, entry.name)

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: State | None = None) -> States:
        """Run over ``x``, shape ``(B, T, I)``, from a state; hidden states beyond a sequence's length are 0."""
        # Torch's LSTM takes and gives a pair, all others a tensor.
        given = state if state is None or self.entry.n_states > 1 else state[0]
        inputs = x if lengths is None else pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        hidden, final = self.layer(inputs, given)
        if lengths is not None:
            hidden, _ = pad_packed_sequence(hidden, batch_first=True, total_length=x.shape[1])
        return (hidden, *final) if self.entry.n_states > 1 else (hidden, final)

    def zeros(self, x: Tensor) -> State:
        """The states that it begins with where none are given, for inputs of this many sequences."""
        entry = self.entry
        sizes = (entry.proj_size or entry.hidden_size, entry.hidden_size)[: entry.n_states]
        return tuple(x.new_zeros(entry.num_layers * (1 + entry.bidirectional), len(x), size) for size in sizes)

    def file_tensors(self) -> dict[str, Tensor]:
        """See :class:`Network`."""
        return {self._outer(name): tensor for name, tensor in self.layer.state_dict(keep_vars=True).items()}

    def _inner(self, key: str) -> str:
        """A key of the file as the name of a tensor of the module: a cell's have no layer number."""
        name = key.removeprefix(self.entry.prefix)
        if not self.entry.is_cell:
            return name
        part, dot, rest = name.partition(".")
        return f"{part}_l0{dot}{rest}"

    def _outer(self, name: str) -> str:
        part, dot, rest = name.partition(".")
        return f"{self.entry.prefix}{part.removesuffix('_l0') if self.entry.is_cell else part}{dot}{rest}"


class RecurrentWithHead(Network):
    """A recurrent layer and a linear head: on each step, or on the last final states, directions side by side.

    Args:
        recurrent: the recurrent layer.
        head: name of the head in the file.
        tensors: of the file, by name.
        shapes: the block-term shape of each factorized matrix of the file, by key; none for the dense teacher.
        per_step: whether the head reads every step.

    Raises:
        CheckpointError: a tensor of the head is missing or has another shape.
    """

    def __init__(
        self,
        recurrent: Recurrent,
        head: str,
        tensors: Mapping[str, Tensor],
        shapes: Mapping[str, MatrixShape],
        *,
        per_step: bool,
    ) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head_name = head
        self.per_step = per_step
        self.head = linear_of(f"{head}.weight", tensors, shapes, next(recurrent.parameters()).dtype)

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: State | None = None) -> Tensor:
        """Outputs of the head, shape ``(B, n_out)``, or ``(B, T, n_out)`` for each step."""
        hidden, h, *_ = self.recurrent(x, lengths, state)
        n_directions = 1 + self.recurrent.entry.bidirectional
        outputs: Tensor = self.head(hidden if self.per_step else torch.cat(list(h[-n_directions:]), dim=-1))
        return outputs

    def file_tensors(self) -> dict[str, Tensor]:
        """See :class:`Network`."""
        head = {f"{self.head_name}.{name}": tensor for name, tensor in self.head.state_dict(keep_vars=True).items()}
        return {**self.recurrent.file_tensors(), **head}


def linear_of(
    key: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, MatrixShape], dtype: torch.dtype
) -> nn.Module:
    """A linear layer of a file, dense or with a block-term matrix.

    Args:
        key: of its matrix, ending in ``weight``.
        tensors: of the file, by name.
        shapes: the block-term shape of each factorized matrix of the file, by key; none for the dense teacher.
        dtype: to compute in.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    prefix = key.removesuffix("weight")
    own = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
    if shape := shapes.get(key):
        layer: nn.Module = BTLinear(shape.in_size, shape.out_size, "bias" in own, dtype=dtype, shape=shape)
    elif "weight" in own:
        n_out, n_in = own["weight"].shape
        layer = nn.Linear(n_in, n_out, bias="bias" in own, dtype=dtype)
    else:
        raise CheckpointError(f"{key} is missing. Give the checkpoint that the result was made from.")
    fill(layer, own, prefix.removesuffix("."))
    return layer


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a module that must have all of them in these shapes.

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    with torch.no_grad():
        for name, target in module.state_dict(keep_vars=True).items():
            given = tensors.get(name)
            if given is None or given.shape != target.shape:
                what = "is missing" if given is None else f"has shape {tuple(given.shape)}, not {tuple(target.shape)}"
                raise CheckpointError(
                    f"{where or 'the layer at the top'}: {name} {what}. Give the checkpoint that the result was made "
                    "from."
                )
            target.copy_(given)


def student_of(compressed: CompressedCheckpoint, entry: RecurrentEntry) -> Recurrent:
    """The recurrent layer of a compressed checkpoint, with its block terms, to be trained."""
    return Recurrent(entry, compressed.tensors, shapes_of(compressed), training_dtype(compressed.outline(), entry))


def teacher_of(dense: Checkpoint, entry: RecurrentEntry, dtype: torch.dtype) -> Recurrent:
    """The same recurrent layer of the dense checkpoint, in the student's dtype.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    return Recurrent(entry, dense.tensors, {}, dtype)


def shapes_of(compressed: CompressedCheckpoint) -> dict[str, MatrixShape]:
    """The shape of each factorized matrix, by its key."""
    return {key: matrix.shape for key, matrix in compressed.matrices.items()}


def training_dtype(tensors: Mapping[str, Tensor], entry: RecurrentEntry) -> torch.dtype:
    """The dtype to compute a recurrent layer in whose matrices these are.

    Small ones would lose the small steps of training.
    """
    own = {tensors[key].dtype for key in entry.recurrent_keys}
    return torch.float64 if own == {torch.float64} else torch.float32


def freeze(network: Network, patterns: tuple[str, ...]) -> None:
    """Keep the tensors whose names in the file match as they are.

    Raises:
        BTCompressError: a pattern matches nothing, or nothing is left to train.
    """
    named = _parameters(network)
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            raise BTCompressError(f"--freeze {pattern!r} matches none of {', '.join(named)}.")
        for name in matched:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise BTCompressError("--freeze leaves nothing to train. Freeze less.")


def _parameters(network: Network) -> Mapping[str, nn.Parameter]:
    return {name: tensor for name, tensor in network.file_tensors().items() if isinstance(tensor, nn.Parameter)}


def stored_tensors(network: Network, compressed: CompressedCheckpoint) -> dict[str, Tensor]:
    """The network's tensors in the file's dtypes, to which the network itself is rounded as well.

    A number beyond a dtype's range becomes its largest: training went on in a wider one, and infinity is no weight.
    Orders of rows and columns are not trained: they are the file's own, which one may share with another.
    """
    orders = {name for key, matrix in compressed.matrices.items() for name in order_names(key, matrix.shape)}
    live = {name: tensor for name, tensor in network.file_tensors().items() if name not in orders}
    aliases = find_aliases(live)
    stored: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in live.items():
            dtype = compressed.tensors[name].dtype
            stored[name] = stored[aliases[name]] if name in aliases else in_range(tensor.detach().cpu(), dtype)
            tensor.copy_(stored[name])
    return stored


def in_range(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a dtype; finite numbers beyond its range become its largest."""
    if not dtype.is_floating_point or torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max:
        return tensor.to(dtype, copy=True)
    most = torch.finfo(dtype).max
    return torch.where(tensor.isinf(), tensor, tensor.clamp(-most, most)).to(dtype)


def choose_lstm(
    compressed: CompressedCheckpoint,
    name: str | None,
    way_out: str = "Name one with --layer, or give the whole model with --model.",
) -> RecurrentEntry:
    """The recurrent layer that the sequences are inputs of.

    Args:
        compressed: the file.
        name: the layer's name; may be left out where only one has compressed matrices, or where none has and the
            file holds only one.
        way_out: what to do where it is not clear, for the message.

    Raises:
        BTCompressError: no such layer, or several and none named.
    """
    every = _layers(compressed, name)
    entries = [entry for entry in every if is_compressed_in(compressed, entry)]
    if not entries and len(every) == 1 and name is None:
        entries = every
    return _only(entries, name, way_out, "those with compressed matrices")


def choose_dense_lstm(dense: Checkpoint, name: str | None, way_out: str) -> RecurrentEntry:
    """The recurrent layer of a dense checkpoint that the sequences are inputs of; see :func:`choose_lstm`.

    Raises:
        BTCompressError: no such layer, or several and none named.
    """
    return _only(_layers(dense, name), name, way_out, "those in the checkpoint")


def _layers(checkpoint: Checkpoint | CompressedCheckpoint, name: str | None) -> list[RecurrentEntry]:
    """Its recurrent layers; of those that are one and the same the first, unless one is named."""
    return [entry for entry, same in tied_layers(checkpoint).items() if name is not None or same[0] == entry]


def _only(entries: Sequence[RecurrentEntry], name: str | None, way_out: str, what: str) -> RecurrentEntry:
    """The one entry, or the one of this name."""
    chosen = [entry for entry in entries if name is None or entry.name == name]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(f"{entry.name or '(top)'} ({entry.input_size} inputs)" for entry in entries) or "none"
    kinds = kinds_of(entries)
    wanted = (
        f"it is not clear which {kinds} the sequences are for"
        if name is None
        else f"there is no {kinds} named {name!r}"
    )
    raise BTCompressError(f"{wanted}: {what} are {names}. {way_out}")


def is_compressed_in(compressed: CompressedCheckpoint, entry: RecurrentEntry) -> bool:
    """Whether a recurrent layer of the file has matrices that are block terms, or dense ones in fewer bits."""
    return any(key in compressed.chosen for key in entry.matrix_keys)


def check_inputs(data: Data, first: Batch, entry: RecurrentEntry) -> None:
    """Refuse sequences that are not inputs of a recurrent layer, and initial states that are not its.

    Raises:
        ShapeError: they have other sizes, or were recorded at another layer.
    """
    name = named(entry)
    if data.layer is not None and not is_same_layer(data.layer, entry.name):
        raise ShapeError(
            f"{data.name} holds inputs of {data.layer}, but they are to be those of {name}. Record its inputs, or name "
            "the layer that these are for (--layer)."
        )
    if first.x.dim() != 3 or first.x.shape[2] != entry.input_size:
        raise ShapeError(
            f"{data.name}: x has sequences of shape {tuple(first.x.shape[1:])}, but {name} takes "
            f"(T, {entry.input_size}): {entry.input_size} inputs at each step. Give the inputs of this "
            f"{entry.class_name}."
        )
    if first.state is None:
        return
    _check_n_states(data, first.state, entry)
    n_states = entry.num_layers * (1 + entry.bidirectional)
    sizes = (entry.proj_size or entry.hidden_size, entry.hidden_size)
    for what, state, size in zip(STATES, first.state, sizes, strict=False):
        if (state.shape[0], state.shape[2]) != (n_states, size):
            raise ShapeError(
                f"{data.name}: {what} has states of shape ({state.shape[0]}, {state.shape[2]}) for each sequence, but "
                f"{name} starts from ({n_states}, {size}): one for each layer and direction."
            )


def _check_n_states(data: Data, state: State, entry: RecurrentEntry) -> None:
    """Refuse initial states that are more or fewer than the layer has."""
    if len(state) < entry.n_states:
        raise ShapeError(
            f"{data.name}: h0 is there without c0, but {named(entry)}, of the class {entry.class_name}, starts from "
            "both. Give both, or neither."
        )
    if len(state) > entry.n_states:
        raise ShapeError(
            f"{data.name}: c0 is there, but {named(entry)}, of the class {entry.class_name}, starts from h0 alone. "
            "Leave c0 out."
        )


def named(entry: RecurrentEntry) -> str:
    """What to call a recurrent layer in messages: by its name, or by its class where it is at the top."""
    return entry.name or f"the {entry.class_name}"


def kinds_of(entries: Sequence[RecurrentEntry]) -> str:
    """What to call one of several recurrent layers: by its class where all are of one, but for cells."""
    types = {entry.type for entry in entries}
    return types.pop().upper() if len(types) == 1 else "recurrent layer"


def find_head(compressed: CompressedCheckpoint, entry: RecurrentEntry) -> str:
    """The linear layer on top of a recurrent layer: all that the file holds beside it.

    Raises:
        BTCompressError: the rest of the file is not one linear layer that takes the recurrent layer's outputs.
    """
    outline = compressed.outline()
    rest = {key: tuple(outline[key].shape) for key in compressed.keys if key not in entry.shapes}
    n_in = entry.n_outputs
    heads = [key.removesuffix(".weight") for key, shape in rest.items() if _takes(key, shape, n_in)]
    others = [key for key in rest if len(heads) != 1 or key not in (f"{heads[0]}.weight", f"{heads[0]}.bias")]
    if len(heads) == 1 and not others:
        return heads[0]
    what = f"the linear layers that take the {n_in} outputs of {named(entry)} are {listed(heads)}"
    raise BTCompressError(
        f"with labels and no --model, a file must hold one {entry.class_name} and one linear head, but {what}"
        + (f", and there is more beside them: {listed(others)}" if len(heads) == 1 else "")
        + ". Build your network with --model package.module:factory."
    )


def _takes(key: str, shape: tuple[int, ...], n_in: int) -> bool:
    return key.endswith(".weight") and len(shape) == 2 and shape[1] == n_in
