"""The kinds of matrices that can be factorized, by what they are multiplied with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from btcompress.errors import BTCompressError

#: ``input``: ``weight_ih_*`` of an LSTM, GRU or plain RNN. ``recurrent``: its ``weight_hh_*`` and projections
#: ``weight_hr_*``. ``linear``: the weight of a plain linear layer.
MatrixKind = Literal["input", "recurrent", "linear"]

#: All of them.
KINDS: tuple[MatrixKind, ...] = get_args(MatrixKind)

#: The kinds that a recurrent layer itself has.
RECURRENT_KINDS: tuple[MatrixKind, ...] = ("input", "recurrent")


def check_kinds(kinds: Sequence[MatrixKind], allowed: tuple[MatrixKind, ...] = KINDS) -> tuple[MatrixKind, ...]:
    """The kinds themselves, each once, in the order of :data:`MatrixKind`.

    Raises:
        BTCompressError: there are none, or one is not allowed.
    """
    given = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not given or not set(given) <= set(allowed):
        raise BTCompressError(
            f"the kinds of matrices are {', '.join(allowed)}, but {', '.join(given) or 'none'} was given. "
            "Name one or more of them."
        )
    return tuple(kind for kind in allowed if kind in given)


def kind_of_part(name: str) -> MatrixKind:
    """The kind of a recurrent layer's own matrix, by its name such as ``weight_ih_l0``."""
    return "input" if name.startswith("weight_ih") else "recurrent"
