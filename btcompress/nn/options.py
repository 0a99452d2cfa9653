"""Which matrices of a module get a block-term shape, and which one: the same options for every module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from btcompress.errors import ShapeError
from btcompress.kinds import RECURRENT_KINDS, MatrixKind, check_kinds, kind_of_part
from btcompress.modes import Modes, Objective, ShapeRequest, choose_shapes
from btcompress.nn.weight import check_size
from btcompress.shapes import Gates, MatrixShape


class ShapeOptions(TypedDict, total=False):
    """The fields of :class:`btcompress.modes.ShapeRequest`, which says what each means."""

    cp_rank: int
    tucker_rank: int | Modes
    in_modes: Modes | None
    out_modes: Modes | None
    order: int | None
    input_shape: Modes | None
    gates: Gates
    objective: Objective


def recurrent_shapes(
    sizes: Mapping[str, Sequence[int]],
    given: Mapping[str, MatrixShape | None] | None,
    request: ShapeRequest,
    matrices: Sequence[MatrixKind],
    n_gates: int,
) -> dict[str, MatrixShape]:
    """The block-term shape of each matrix of a recurrent layer or cell that is to have one: as given, or else chosen.

    Args:
        sizes: of all its parameters, by name.
        given: shapes by the names of matrices, ``None`` for one that stays dense; or nothing given.
        request: by which to choose where nothing is given.
        matrices: the kinds to choose for then.
        n_gates: rows of ``W`` and ``U`` per hidden unit.

    Raises:
        ShapeError: a shape is given for what is no matrix or one of another size, or none can be chosen.
        BTCompressError: recurrent layers have no such kind of matrices.
    """
    kinds = check_kinds(matrices, RECURRENT_KINDS)
    all_sizes = {name: (size[0], size[1]) for name, size in sizes.items() if len(size) == 2}
    if given is None:
        chosen = {
            # A projection has no gates.
            name: (*size, 1 if name.startswith("weight_hr") else n_gates)
            for name, size in all_sizes.items()
            if kind_of_part(name) in kinds
        }
        return {name: choice.shape for name, choice in choose_shapes(request, chosen).items()}
    unknown = sorted(given.keys() - all_sizes.keys())
    if unknown:
        raise ShapeError(
            f"shapes has {', '.join(unknown)}, but the matrices are {', '.join(all_sizes)}. Use their names."
        )
    return {name: check_size(name, shape, all_sizes[name]) for name, shape in given.items() if shape is not None}
