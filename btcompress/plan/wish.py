"""What a user may wish for instead of giving ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from btcompress.errors import BTCompressError

#: What a size is about: parameters of the chosen matrices, or of all tensors; bytes of the chosen matrices, or of the
#: whole file.
Of = Literal["matrices", "model", "bytes", "file"]


@dataclass(frozen=True, slots=True)
class Wish:
    """How small the result is to be, or how accurate, or both.

    Attributes:
        target_ratio: what there is before over what there is after, at least, in parameters or in bytes; above 1.
        max_params: parameters after, at most.
        max_error: weight error of every matrix, at most; between 0 and 1.
        of: what the ratio, the parameters and the bytes are those of.
        max_activation_error: activation error of every matrix on sample inputs, at most; likewise.
        max_bytes: bytes after, at most.

    Raises:
        BTCompressError: nothing is wished for, a size is given in two ways, or a number is out of range.
    """

    target_ratio: float | None = None
    max_params: int | None = None
    max_error: float | None = None
    of: Of = "matrices"
    max_activation_error: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.of not in get_args(Of):
            raise BTCompressError(f"of must be one of {', '.join(get_args(Of))}, but {self.of!r} was given.")
        errors = self.errors
        if not self.has_size and errors == (None, None):
            raise BTCompressError(
                "nothing is wished for. Give a target ratio, a number of parameters or of bytes, or an error."
            )
        if None not in errors:
            raise BTCompressError(
                "a largest weight error and a largest activation error were both given. Give one of them: the second "
                "where there are sample inputs."
            )
        self._check_size()
        for what, error in zip(("weight", "activation"), errors, strict=True):
            if error is not None and not 0 < error < 1:
                raise BTCompressError(
                    f"the largest {what} error must be between 0 and 1, but {error:g} was given. At 0 nothing may "
                    "change, and at 1 nothing need be kept."
                )

    def _check_size(self) -> None:
        sizes = {
            "a target ratio": self.target_ratio,
            "a number of parameters": self.max_params,
            "a number of bytes": self.max_bytes,
        }
        given = [what for what, size in sizes.items() if size is not None]
        if len(given) > 1:
            raise BTCompressError(f"{given[0]} and {given[1]} were both given. Give one of them.")
        if self.target_ratio is not None and not (self.target_ratio > 1 and math.isfinite(self.target_ratio)):
            raise BTCompressError(
                f"the target ratio must be above 1, but {self.target_ratio:g} was given. 20 asks for a twentieth."
            )
        for what, most in (("parameters", self.max_params), ("bytes", self.max_bytes)):
            if most is not None and most < 1:
                raise BTCompressError(f"the most {what} must be at least 1, but {most} was given.")
        if self.max_params is not None and self.of in ("bytes", "file"):
            raise BTCompressError(
                f"a number of parameters was given, but of says {self.of}. Give a number of bytes (--max-bytes), or "
                "the parameters of the matrices or of the model."
            )

    @property
    def has_size(self) -> bool:
        """Whether a size is wished for, and not an error alone."""
        return (self.target_ratio, self.max_params, self.max_bytes) != (None, None, None)

    @property
    def errors(self) -> tuple[float | None, float | None]:
        """The weight error and the activation error wished for."""
        return self.max_error, self.max_activation_error

    @property
    def in_bytes(self) -> bool:
        """Whether sizes are bytes, and not parameters."""
        return self.max_bytes is not None or self.of in ("bytes", "file")

    @property
    def of_all(self) -> bool:
        """Whether sizes are those of everything, and not of the chosen matrices alone."""
        return self.of in ("model", "file")

    def budget(self, of_matrices: int, of_model: int, beside: int | None = None) -> int | None:
        """Parameters, or bytes, that the matrices may have after, below 0 if none may be left; None for no limit.

        Args:
            of_matrices: entries of the matrices before, or their bytes.
            of_model: likewise of all tensors.
            beside: what all has after beside the matrices: as before where left out. For a file, bytes of the other
                tensors as stored and of what describes them.
        """
        others = (of_model - of_matrices if beside is None else beside) if self.of_all else 0
        most = self.max_bytes if self.in_bytes else self.max_params
        if most is not None:
            return most - others
        if self.target_ratio is not None:
            # A hair more, so that a ratio which is met exactly is not missed by rounding.
            before = of_model if self.of_all else of_matrices
            return math.floor(before / self.target_ratio * (1 + 1e-12)) - others
        return None

    def budgets(self, of_groups: Sequence[int], of_model: int, beside: int | None = None) -> list[int] | None:
        """The same for each of several groups of the matrices, in proportion to what each has; None for no limit.

        Args:
            of_groups: entries, or bytes, of the matrices of each group before.
            of_model: as for :meth:`budget`.
            beside: likewise.
        """
        if self.target_ratio is not None and not self.of_all:
            # Each group has the ratio by itself, as if there were no other.
            return [self.budget(own, of_model) or 0 for own in of_groups]
        whole = sum(of_groups)
        budget = self.budget(whole, of_model, beside)
        return None if budget is None else [budget * own // whole for own in of_groups]

    def __str__(self) -> str:
        whose = "the matrices" if not self.of_all else "the file" if self.in_bytes else "the model"
        what = " in bytes" if self.in_bytes else ""
        parts = []
        if self.target_ratio is not None:
            parts.append(f"a ratio of at least {self.target_ratio:g}{what} for {whose}")
        if self.max_params is not None:
            parts.append(f"at most {self.max_params:,} parameters for {whose}")
        if self.max_bytes is not None:
            parts.append(f"at most {self.max_bytes:,} bytes for {whose}")
        if self.max_error is not None:
            parts.append(f"a weight error of at most {self.max_error:g} for every matrix")
        if self.max_activation_error is not None:
            parts.append(f"an activation error of at most {self.max_activation_error:g} for every matrix")
        return " and ".join(parts)
