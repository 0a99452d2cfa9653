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
        target_ratio: parameters before over parameters after, at least; above 1.
        max_params: parameters after, at most.
        max_error: weight error of every matrix, at most; between 0 and 1.
        max_activation_error: activation error of every matrix on sample inputs, at most; likewise.
        of: what the ratio, the parameters and the bytes are those of.
        max_bytes: bytes after, at most: of the chosen matrices with ``"matrices"`` or ``"bytes"``, else of the file.

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
        sizes = {
            "a target ratio": self.target_ratio,
            "a number of parameters": self.max_params,
            "a number of bytes": self.max_bytes,
        }
        given = [what for what, size in sizes.items() if size is not None]
        errors = (self.max_error, self.max_activation_error)
        if not given and errors == (None, None):
            raise BTCompressError(
                "nothing is wished for. Give a target ratio, a number of parameters or of bytes, or an error."
            )
        if None not in errors:
            raise BTCompressError(
                "a largest weight error and a largest activation error were both given. Give one of them: the second "
                "where there are sample inputs."
            )
        if len(given) > 1:
            raise BTCompressError(f"{' and '.join(given[:2])} were both given. Give one of them.")
        if self.max_params is not None and self.of in ("bytes", "file"):
            raise BTCompressError(
                f"a number of parameters was given, but of says {self.of}. Give a number of bytes (--max-bytes), or "
                "the parameters of the matrices or of the model."
            )
        if self.target_ratio is not None and not (self.target_ratio > 1 and math.isfinite(self.target_ratio)):
            raise BTCompressError(
                f"the target ratio must be above 1, but {self.target_ratio:g} was given. 20 asks for a twentieth."
            )
        if self.max_params is not None and self.max_params < 1:
            raise BTCompressError(f"the most parameters must be at least 1, but {self.max_params} was given.")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise BTCompressError(f"the most bytes must be at least 1, but {self.max_bytes} was given.")
        for what, error in zip(("weight", "activation"), errors, strict=True):
            if error is not None and not 0 < error < 1:
                raise BTCompressError(
                    f"the largest {what} error must be between 0 and 1, but {error:g} was given. At 0 nothing may "
                    "change, and at 1 nothing need be kept."
                )

    def budget(self, params_of_matrices: int, params_of_model: int) -> int | None:
        """Parameters that the matrices may have after, below 0 if none may be left; None for no limit.

        Args:
            params_of_matrices: entries of the matrices.
            params_of_model: entries of all tensors.
        """
        others = params_of_model - params_of_matrices if self.of == "model" else 0
        if self.max_params is not None:
            return self.max_params - others
        if self.target_ratio is not None:
            # A hair more, so that a ratio which is met exactly is not missed by rounding.
            return math.floor((params_of_matrices + others) / self.target_ratio * (1 + 1e-12)) - others
        return None

    def budgets(self, params_of_groups: Sequence[int], params_of_model: int) -> list[int] | None:
        """The same for each of several groups of the matrices, so much as it has of their entries; None for no limit.

        Args:
            params_of_groups: entries of the matrices of each group.
            params_of_model: entries of all tensors.
        """
        if self.target_ratio is not None and self.of == "matrices":
            # Each group has the ratio by itself, as if there were no other.
            return [self.budget(own, params_of_model) or 0 for own in params_of_groups]
        whole = sum(params_of_groups)
        budget = self.budget(whole, params_of_model)
        return None if budget is None else [budget * own // whole for own in params_of_groups]

    def __str__(self) -> str:
        whose = "the matrices" if self.of == "matrices" else "the model"
        parts = []
        if self.target_ratio is not None:
            parts.append(f"a ratio of at least {self.target_ratio:g} for {whose}")
        if self.max_params is not None:
            parts.append(f"at most {self.max_params:,} parameters for {whose}")
        if self.max_error is not None:
            parts.append(f"a weight error of at most {self.max_error:g} for every matrix")
        if self.max_activation_error is not None:
            parts.append(f"an activation error of at most {self.max_activation_error:g} for every matrix")
        return " and ".join(parts)
