"""A checkpoint of which some matrices are block terms: what a result file holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.checkpoint.layout import Layout
from btcompress.checkpoint.names import OtherRecurrent, RecurrentEntry, find_recurrent
from btcompress.checkpoint.precisions import Stored, bytes_in_file, check_stored, precision, values_of
from btcompress.checkpoint.reader import Checkpoint
from btcompress.checkpoint.source import Source
from btcompress.checkpoint.tensors import count_bytes, count_params, find_aliases, same_bits
from btcompress.errors import CheckpointError
from btcompress.memory import require
from btcompress.packing import Packed, Precision
from btcompress.results import RoundingReport
from btcompress.shapes import MatrixShape, Nonlinearity
from btcompress.timings import BenchReport


@dataclass(frozen=True, slots=True)
class CompressedMatrix:
    """How one factorized matrix is written, and what was measured when it was.

    Attributes:
        shape: mode sizes, ranks and gates.
        dtype: of the dense matrix.
        weight_error: ``||W - W'||_F / ||W||_F`` of the factorization, on the tensors as stored then.
        svd_rank: rank of a truncated SVD with at most as many parameters, or as many bytes where its tensors are stored
            in fewer bits; may be 0.
        svd_error: weight error of that truncated SVD.
        roundings: the dense matrix rounded alone, where that was measured.
        in_8_bits: its cores and factors in 8 bits; None where that was not measured.
    """

    shape: MatrixShape
    dtype: torch.dtype
    weight_error: float
    svd_rank: int
    svd_error: float
    roundings: tuple[RoundingReport, ...] = ()
    in_8_bits: RoundingReport | None = None


@dataclass(frozen=True, slots=True)
class RoundedMatrix:
    """A matrix that was chosen and stays dense, its numbers stored in fewer bits.

    Attributes:
        shape: ``(rows, columns)``.
        dtype: of the dense matrix.
        precision: how its numbers are stored.
        weight_error: ``||W - W'||_F / ||W||_F``, on the tensors as stored.
        svd_rank: rank of a truncated SVD of at most as many bytes; may be 0.
        svd_error: weight error of that truncated SVD.
        roundings: the matrix rounded alone, where that was measured.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    precision: Precision
    weight_error: float
    svd_rank: int = 0
    svd_error: float = 1.0
    roundings: tuple[RoundingReport, ...] = ()

    @classmethod
    def of(cls, tensor: Tensor, how: Stored, weight_error: float) -> RoundedMatrix:
        """What there is to say of a dense matrix that is stored so.

        Raises:
            CheckpointError: it is no matrix.
        """
        if tensor.dim() != 2:
            raise CheckpointError(f"a tensor of shape {tuple(tensor.shape)} is no matrix, and is not rounded as one.")
        return cls((tensor.shape[0], tensor.shape[1]), tensor.dtype, precision(how), weight_error)


@dataclass(frozen=True, slots=True, eq=False)
class CompressedCheckpoint:
    """Every tensor of a compressed checkpoint, with all that is needed to form the dense one again.

    Attributes:
        tensors: those that stayed as they were under their own names, and in place of each factorized
            ``key`` its ``key.cores``, unless they are the identity, and ``key.factors.<k>``; with separate
            gates ``key.gate_i.cores`` and so on. Orders, where a form has any, are ``key.row_order`` and
            ``key.column_order``.
        matrices: the factorized matrices by key.
        keys: all keys of the dense checkpoint in its own order.
        source: the dense checkpoint.
        history: what was done since, one JSON object a step.
        notices: what a user should know about how the result came about.
        files: files that tensors may lie in, never overwritten by :func:`btcompress.checkpoint.write`.
        rounded: by key the matrices that were chosen and stay dense, in fewer bits.
        stored: how tensors are stored that are not stored as they are, by name: as these integers, or as floats of this
            dtype. ``tensors`` has their values, exactly, in the dtype that they stand for.
        bench: what running it took when that was measured last; None where it was not. It stands for the forms of the
            matrices, whatever their values.
        layout: how the dense checkpoint was arranged, and the plain values in it; None for a plain state dict.
        nonlinearities: of plain RNNs that have another than ``"tanh"``, by their names.

    Raises:
        CheckpointError: a tensor is missing, too many or of another shape than its matrix gives it, an order is not
            one, ``rounded`` and ``stored`` are not true of the tensors, or the layout is not one of the keys.
    """

    tensors: dict[str, Tensor]
    matrices: dict[str, CompressedMatrix]
    keys: tuple[str, ...]
    source: Source
    history: tuple[dict[str, Any], ...] = ()
    notices: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    rounded: dict[str, RoundedMatrix] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    bench: BenchReport | None = None
    layout: Layout | None = None
    nonlinearities: dict[str, Nonlinearity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = expected_shapes(self.keys, self.matrices)
        wrong = [name for name in (*expected, *self.tensors) if name not in expected or name not in self.tensors]
        if wrong:
            where = "missing" if wrong[0] in expected else "not accounted for"
            raise CheckpointError(f"{self.source.name}, compressed: the tensor {wrong[0]} is {where}.")
        orders = {name for key, matrix in self.matrices.items() for name in order_names(key, matrix.shape)}
        for name, shape in expected.items():
            if shape is not None:
                _check_part(f"{self.source.name}, compressed: {name}", self.tensors[name], shape, order=name in orders)
        check_stored(f"{self.source.name}, compressed", self.tensors, self.stored)
        for key, matrix in self.rounded.items():
            self._check_rounded(key, matrix)
        if self.layout is not None:
            self.layout.check(self.keys)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        matrices: Mapping[str, CompressedMatrix],
        parts: Mapping[str, Sequence[BlockTerm]],
        history: Sequence[dict[str, Any]] = (),
        notices: Sequence[str] = (),
        rounded: Mapping[str, RoundedMatrix] | None = None,
        stored: Mapping[str, Stored] | None = None,
    ) -> CompressedCheckpoint:
        """Put block terms in the place of matrices; every other tensor is taken as it is, or as it is to be stored.

        Args:
            checkpoint: the dense one.
            matrices: how each factorized matrix is written, by its key.
            parts: the block terms of each, one, or one for each of separate gates.
            history: the first steps.
            notices: what to add to the checkpoint's own.
            rounded: the matrices that stay dense in fewer bits, by key.
            stored: how tensors are stored that are not stored as they are, by name; their values, and those of tensors
                tied to them, become what is left of them so.
        """
        tensors: dict[str, Tensor] = {}
        for key, tensor in checkpoint.tensors.items():
            if key not in matrices:
                tensors[key] = tensor
                continue
            for names, part in zip(part_names(key, matrices[key].shape), parts[key], strict=True):
                tensors.update(zip(names, (*part.tensors, *part.orders), strict=True))
        aliases = find_aliases(checkpoint.tensors)
        ties = {key: first for key, first in aliases.items() if key in matrices or first in matrices}
        plain = cls(
            tensors,
            dict(matrices),
            tuple(checkpoint.tensors),
            checkpoint.source,
            tuple(history),
            (*checkpoint.notices, *notices),
            checkpoint.files,
            layout=_with_ties(checkpoint.layout, ties),
            nonlinearities=checkpoint.nonlinearities,
        )
        return plain.with_tensors(stored=stored, rounded=rounded) if stored or rounded else plain

    @property
    def chosen(self) -> tuple[str, ...]:
        """The keys of all matrices that are block terms, or rounded, in the checkpoint's order."""
        return tuple(key for key in self.keys if key in self.matrices or key in self.rounded)

    @property
    def others(self) -> tuple[str, ...]:
        """The keys of all tensors that were not chosen, nor are one with a matrix that was rounded to integers."""
        taken = {*self.chosen, *(name for name, how in self.stored.items() if isinstance(how, Packed))}
        return tuple(key for key in self.keys if key not in taken)

    @property
    def n_params(self) -> int:
        """Entries of all tensors, tied ones counted once."""
        return count_params(self.tensors)

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors as stored, tied ones counted once."""
        return self._bytes_of(self.tensors)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors of the dense checkpoint, tied ones counted once."""
        kept = {key: self.tensors[key] for key in self.keys if key not in self.matrices}
        sizes = [(matrix.shape.dense_params, matrix.dtype.itemsize) for matrix in self.matrices.values()]
        # A factorized matrix was tied to another tensor where more entries are found than there were.
        tied = max(count_params(kept) + sum(n for n, _ in sizes) - self.source.n_params, 0)
        widest = max((size for _, size in sizes), default=0)
        return count_bytes(kept) + sum(n * size for n, size in sizes) - tied * widest

    def bytes_of_matrix(self, key: str) -> int:
        """Bytes, as stored, of what stands for one chosen matrix: cores, factors and orders, or the matrix rounded.

        What is one and the same tensor counts once, and in full where other matrices have it as well.
        """
        return self._bytes_of(self.names_of(key))

    def precisions_of_matrix(self, key: str) -> tuple[Precision, ...]:
        """How the numbers of one chosen matrix are stored: each precision once, that of the most numbers first."""
        counts: dict[Precision, int] = {}
        for name in self.names_of(key):
            tensor, how = self.tensors[name], self.stored.get(name)
            if tensor.is_floating_point():  # orders are no numbers of it
                kind = tensor.dtype if how is None else precision(how)
                counts[kind] = counts.get(kind, 0) + tensor.numel()
        return tuple(sorted(counts, key=lambda kind: -counts[kind]))

    def has_fewer_bits(self, key: str) -> bool:
        """Whether a matrix, or any of its cores and factors, is stored otherwise than as it is."""
        return any(name in self.stored for name in self.names_of(key))

    def is_same_but_for_precision(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor that was not chosen is this one of the dense checkpoint, rounded to what it is stored as.

        Bit for bit; where it is stored as it is, that means the very same.
        """
        how = self.stored.get(name)
        rounds = isinstance(how, torch.dtype) and tensor.is_floating_point()
        return same_bits(self.tensors[name], values_of(tensor, how) if rounds and how is not None else tensor)

    def parts(self, key: str) -> tuple[BlockTerm, ...]:
        """The block terms of a factorized matrix, stacked by rows: one, or one for each gate i, f, g, o."""
        shape = self.matrices[key].shape
        n = len(shape.part.tensor_shapes)
        tensors = ([self.tensors[name] for name in names] for names in part_names(key, shape))
        return tuple(BlockTerm.of(shape.part, each[:n], each[n:]) for each in tensors)

    def dense_state_dict(self) -> dict[str, Tensor]:
        """The plain state dict in the checkpoint's order: each matrix summed in float64, in its own dtype.

        Raises:
            CheckpointError: a matrix does not fit the range of its dtype, though its block terms do.
            MemoryLimitError: the matrices together need more memory than there is.
        """
        sizes = (matrix.shape.dense_params * matrix.dtype.itemsize for matrix in self.matrices.values())
        require(sum(sizes), f"The dense form of {self.source.name}", "Use it in block-term form (btcompress.apply).")
        formed: dict[tuple[int, ...], Tensor] = {}
        dense = {}
        for key in self.keys:
            if key not in self.matrices:
                dense[key] = self.tensors[key]
                continue
            # What is one under two names stays one.
            same = tuple(self.tensors[name].data_ptr() for name in self.names_of(key))
            if same not in formed:
                formed[same] = self._dense(key)
            dense[key] = formed[same]
        return dense

    def dense_layout(self) -> Layout:
        """How the dense checkpoint was arranged, with all keys that are one tensor."""
        aliases = find_aliases({key: self.tensors[key] for key in self.keys if key not in self.matrices})
        return _with_ties(self.layout, aliases) or Layout()

    def recurrent(self) -> tuple[RecurrentEntry | OtherRecurrent, ...]:
        """The recurrent layers of the dense checkpoint, and what looks like some."""
        return find_recurrent(self.outline(), self.nonlinearities)

    def outline(self) -> dict[str, Tensor]:
        """The plain state dict with factorized matrices as meta tensors, which have a shape but no values."""
        outline = {}
        for key in self.keys:
            matrix = self.matrices.get(key)
            if matrix is None:
                outline[key] = self.tensors[key]
            else:
                size = (matrix.shape.out_size, matrix.shape.in_size)
                outline[key] = torch.empty(size, dtype=matrix.dtype, device="meta")
        return outline

    def only(self, keys: Sequence[str]) -> CompressedCheckpoint:
        """The part of it that has these keys of the dense checkpoint alone, without history; tensors are shared."""
        names = [name for key in keys for name in self.names_of(key)]
        return replace(
            self,
            tensors={name: self.tensors[name] for name in names},
            matrices={key: self.matrices[key] for key in keys if key in self.matrices},
            keys=tuple(keys),
            history=(),
            notices=(),
            rounded={key: self.rounded[key] for key in keys if key in self.rounded},
            stored={name: self.stored[name] for name in names if name in self.stored},
            bench=None,
            layout=None,
        )

    def with_step(
        self,
        step: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
        stored: Mapping[str, Stored | None] | None = None,
    ) -> CompressedCheckpoint:
        """The same after one more step, with the tensors that it changed.

        Args:
            step: what was done, a JSON object.
            tensors: as for :meth:`with_tensors`.
            stored: likewise.

        Raises:
            CheckpointError: likewise.
        """
        changed, kept = self._changed(tensors, stored)
        return replace(self, tensors=changed, stored=kept, history=(*self.history, step))

    def with_tensors(
        self,
        tensors: Mapping[str, Tensor] | None = None,
        stored: Mapping[str, Stored | None] | None = None,
        rounded: Mapping[str, RoundedMatrix] | None = None,
    ) -> CompressedCheckpoint:
        """The same with other tensors, or with tensors stored otherwise.

        Args:
            tensors: new values by name; all others stay, but what was one with any of these and has none of its own
                follows, unless ``stored`` says that the tensor is stored as it is.
            stored: how tensors are stored from now on, by name; None for one that is stored as it is, and with new
                values by itself. Where no new values are given, those of the tensor and of all that are tied to it
                become what is left of them so.
            rounded: matrices that are rounded from now on, or were measured anew, by key.

        Raises:
            CheckpointError: a tensor has new values, but what is said to be stored of it has others.
        """
        changed, kept = self._changed(tensors, stored)
        return replace(self, tensors=changed, stored=kept, rounded={**self.rounded, **(rounded or {})})

    def _changed(
        self, tensors: Mapping[str, Tensor] | None, stored: Mapping[str, Stored | None] | None
    ) -> tuple[dict[str, Tensor], dict[str, Stored]]:
        """All tensors, and how they are stored, once these are changed."""
        changed, given = dict(tensors or {}), dict(stored or {})
        before = _tied(self.tensors)
        for name, value in (tensors or {}).items():
            if given.get(name, value) is not None:
                changed |= {other: value for other in before.get(name, ()) if other not in (tensors or {})}
        for name, how in given.items():
            if how is not None and name in self.tensors and name not in (tensors or {}):
                value = values_of(self.tensors[name], how)
                changed |= {other: value for other in before[name] if other not in (tensors or {})}
        merged = {**self.tensors, **changed}
        after = _tied(merged) if given else {}
        follow = {other: how for name, how in given.items() for other in after.get(name, ())}
        kept = {name: how for name, how in {**self.stored, **follow, **given}.items() if how is not None}
        return merged, kept

    def names_of(self, key: str) -> tuple[str, ...]:
        """The names of all tensors that stand for a matrix, chosen or not."""
        if key not in self.matrices:
            return (key,)
        return tuple(name for names in part_names(key, self.matrices[key].shape) for name in names)

    def _bytes_of(self, names: Iterable[str]) -> int:
        own = {name: self.tensors[name] for name in names}
        aliases = find_aliases(own)
        return sum(bytes_in_file(own[name], self.stored.get(name)) for name in own if name not in aliases)

    def _check_rounded(self, key: str, matrix: RoundedMatrix) -> None:
        where = f"{self.source.name}, compressed: {key}"
        obstacles = {
            "is block terms": key in self.matrices,
            "is not a key of the checkpoint": key not in self.keys,
            "is stored as it is": key not in self.stored,
        }
        if why := [why for why, holds in obstacles.items() if holds]:
            raise CheckpointError(f"{where} is said to be a rounded matrix, but {why[0]}.")
        true = RoundedMatrix.of(self.tensors[key], self.stored[key], matrix.weight_error)
        fields = ("shape", "dtype", "precision")
        if wrong := [name for name in fields if getattr(matrix, name) != getattr(true, name)]:
            said, found = (getattr(each, wrong[0]) for each in (matrix, true))
            raise CheckpointError(f"{where} is said to have {wrong[0]} {said}, but has {found}.")

    def _dense(self, key: str) -> Tensor:
        matrix = self.matrices[key]
        parts = self.parts(key)
        dense = torch.empty(
            matrix.shape.out_size, matrix.shape.in_size, dtype=matrix.dtype, device=parts[0].cores.device
        )
        for n, part in enumerate(parts):
            first = n * matrix.shape.part.out_size
            rows = dense[first : first + matrix.shape.part.out_size]
            for index, slab in part.to(torch.float64).dense_slabs():
                rows[index] = slab.to(dense.dtype)
                if not torch.isfinite(rows[index].double()).all() and torch.isfinite(slab).all():
                    raise CheckpointError(
                        f"{key} has values beyond the range of {str(matrix.dtype).removeprefix('torch.')} once it is "
                        "formed. Use its block terms as they are (btcompress.apply), or factorize it in float32."
                    )
        return dense


def part_names(key: str, shape: MatrixShape) -> tuple[tuple[str, ...], ...]:
    """For each block term of a matrix the names of its tensors: cores if stored, then the factors, then orders."""
    prefixes = (f"{key}.{name}" if name else key for name in shape.part_names)
    names = [f"factors.{k}" for k in range(shape.part.order)]
    if shape.part.core == "full":
        names.insert(0, "cores")
    names += shape.part.order_sizes
    return tuple(tuple(f"{prefix}.{name}" for name in names) for prefix in prefixes)


def order_names(key: str, shape: MatrixShape) -> tuple[str, ...]:
    """The names of all orders of a matrix's rows and columns."""
    n_params = len(shape.part.tensor_shapes)
    return tuple(name for names in part_names(key, shape) for name in names[n_params:])


def expected_shapes(keys: Sequence[str], matrices: Mapping[str, CompressedMatrix]) -> dict[str, tuple[int, ...] | None]:
    """The shape of every tensor of a compressed checkpoint by name; None where any shape is right.

    Raises:
        CheckpointError: a matrix is not among the keys, or two tensors have one name.
    """
    expected: dict[str, tuple[int, ...] | None] = {}
    if strangers := matrices.keys() - set(keys):
        raise CheckpointError(f"the matrix {min(strangers)} is not a key of the checkpoint.")
    for key in keys:
        shapes: dict[str, tuple[int, ...] | None] = {key: None}
        if matrix := matrices.get(key):
            part = matrix.shape.part
            sizes = (*part.tensor_shapes, *((size,) for size in part.order_sizes.values()))
            names = part_names(key, matrix.shape)
            shapes = {name: size for each in names for name, size in zip(each, sizes, strict=True)}
        if clash := expected.keys() & shapes.keys():
            raise CheckpointError(f"two tensors would be named {min(clash)}. Rename one in the dense checkpoint.")
        expected.update(shapes)
    return expected


def check_parts(where: str, key: str, shape: MatrixShape, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not hold a matrix of this shape.

    Args:
        where: what holds them, for the message.
        key: of the matrix.
        shape: mode sizes, ranks and gates.
        tensors: by name, with others among them.

    Raises:
        CheckpointError: a tensor of it is missing, or of another shape, or an order is not one.
    """
    sizes = (*shape.part.tensor_shapes, *((size,) for size in shape.part.order_sizes.values()))
    orders = order_names(key, shape)
    for names in part_names(key, shape):
        for name, size in zip(names, sizes, strict=True):
            if name not in tensors:
                raise CheckpointError(f"{where}: the tensor {name} is missing.")
            _check_part(f"{where}: {name}", tensors[name], size, order=name in orders)


def _check_part(where: str, tensor: Tensor, shape: tuple[int, ...], *, order: bool) -> None:
    if order:
        _check_order(where, tensor, shape)
    elif tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise CheckpointError(
            f"{where} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, but floating-point numbers of shape "
            f"{shape} were expected."
        )


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """For each tensor the names of all that are one with it, its own among them."""
    aliases = find_aliases(tensors)
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(aliases.get(name, name), []).append(name)
    return {name: tuple(group) for group in groups.values() for name in group}


def _with_ties(layout: Layout | None, ties: Mapping[str, str]) -> Layout | None:
    """A layout with more keys that are one tensor."""
    if not ties:
        return layout
    layout = layout or Layout()
    merged = {**layout.ties, **ties}
    for key, first in merged.items():
        while first in merged:  # comes to an end, as firsts lie before
            first = merged[first]
        merged[key] = first
    return replace(layout, ties=merged)


def _check_order(where: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what does not name every row or column once."""
    integers = tensor.dtype in (torch.int32, torch.int64)
    if not integers or tuple(tensor.shape) != shape or not torch.equal(tensor.long().sort().values, _counted(tensor)):
        raise CheckpointError(
            f"{where} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, but an order was expected: int32 or "
            f"int64 of shape {shape}, each number from 0 on once."
        )


def _counted(tensor: Tensor) -> Tensor:
    return torch.arange(len(tensor), device=tensor.device)
