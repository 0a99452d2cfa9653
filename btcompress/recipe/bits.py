"""How a job says bits and bytes: each in one way of writing, whatever it was given as."""

from __future__ import annotations

import reprlib
from typing import Literal

from btcompress.errors import BTCompressError
from btcompress.memory import size_of
from btcompress.packing import LEAST_BITS, MOST_BITS

#: Floats that numbers may be stored as in fewer bytes.
Half = Literal["float16", "bfloat16"]

#: Bits that are left to be chosen.
AUTO = "auto"

_WHOLE = {str(bits): bits for bits in range(LEAST_BITS, MOST_BITS + 1)}


def bits_of(value: object) -> int | str | None:
    """Bits as a job keeps them: ``"4"`` and ``"int4"`` are ``4``; floats, ``"auto"`` and None stay.

    Raises:
        BTCompressError: it is nothing of the kind.
    """
    if value is None:
        return None
    if isinstance(value, int | str):
        text = str(value)
        if text in (AUTO, "float16", "bfloat16"):
            return text
        if (bits := _WHOLE.get(text.removeprefix("int"))) is not None:
            return bits
    raise BTCompressError(
        f"bits must be {AUTO}, a whole number from {LEAST_BITS} to {MOST_BITS}, float16 or bfloat16, but "
        f"{reprlib.repr(value)} was given. How many columns share a scale is said apart, as group (--group)."
    )


def bytes_of(value: object) -> int | None:
    """Bytes as a job keeps them: a whole number, also for ``"400k"`` or ``"1.5M"``; None stays.

    Raises:
        BTCompressError: it is no such size.
    """
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return size_of(value)
        except BTCompressError as error:
            raise BTCompressError(f"max_bytes {error}") from None
    if not isinstance(value, int) or isinstance(value, bool):
        raise BTCompressError(
            f"max_bytes must be a whole number, or a size such as '400k', but {reprlib.repr(value)} was given."
        )
    return value
