"""Seeds that every random generator takes."""

from __future__ import annotations

from btcompress.errors import BTCompressError

#: torch takes no more than 64 bits, and epochs of a training count on from the seed.
MAX_SEED = 2**63 - 1


def check_seed(seed: int) -> int:
    """The seed itself.

    Raises:
        BTCompressError: it is no whole number from 0 to :data:`MAX_SEED`.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
        raise BTCompressError(f"the seed must be a whole number from 0 to {MAX_SEED}, but {_shown(seed)} was given.")
    return seed


def _shown(seed: object) -> str:
    # Python refuses to write integers of thousands of digits.
    return "a larger one" if isinstance(seed, int) and seed > 2**100 else f"{seed!r:.30}"
