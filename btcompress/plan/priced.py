"""What a planner comes to: a form for each matrix, and among which it was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from btcompress.plan.choice import Plan
from btcompress.plan.wish import Wish

if TYPE_CHECKING:
    from btcompress.pricing import Curve, Point


@dataclass(frozen=True, slots=True)
class ChosenForm:
    """What a planner chose for one matrix, and among what.

    Attributes:
        name: the matrix's key in the checkpoint.
        size: its rows and columns.
        point: the form and the precision chosen; None leaves the matrix as it is.
        low_rank: the best low-rank form of no larger size in its own dtype; None if there is none so small.
        reason: why the matrix stays as it is; empty where it does not.
        curve: the forms there were; errors include rounding to the matrix's dtype.
        dtype: of the matrix.
        rounding: where sizes are bytes, the best rounding of the dense matrix of no more bytes that was measured; None
            if there is none so small.
    """

    name: str
    size: tuple[int, int]
    point: Point | None
    low_rank: Point | None
    reason: str
    curve: Curve
    dtype: torch.dtype = torch.float32
    rounding: Point | None = None

    @property
    def n_params(self) -> int:
        """Parameters after."""
        return self.curve.dense_params if self.point is None else self.point.n_params

    @property
    def bytes_before(self) -> int:
        """Bytes of the matrix."""
        return self.curve.dense_params * self.dtype.itemsize

    @property
    def n_bytes(self) -> int:
        """Bytes after."""
        return self.bytes_before if self.point is None else self.point.n_bytes(self.dtype)


@dataclass(frozen=True, slots=True)
class PricedPlan:
    """A plan that meets a wish, and how it came about.

    Attributes:
        plan: what to do, as :func:`btcompress.factorize` takes it.
        wish: what was wished for.
        forms: one entry for each matrix that was chosen.
        params_of_model: entries of all tensors before.
        bytes_of_model: bytes of all tensors before.
        in_bytes: whether sizes of the curves are bytes.
        file_bytes: about the bytes of the file after, no less than it will have; None where nobody asked.
    """

    plan: Plan
    wish: Wish
    forms: tuple[ChosenForm, ...]
    params_of_model: int
    bytes_of_model: int = 0
    in_bytes: bool = False
    file_bytes: int | None = None

    @property
    def params_before(self) -> int:
        """Entries of the chosen matrices."""
        return sum(form.curve.dense_params for form in self.forms)

    @property
    def params_after(self) -> int:
        """Parameters of the forms chosen for them."""
        return sum(form.n_params for form in self.forms)

    @property
    def bytes_before(self) -> int:
        """Bytes of the chosen matrices."""
        return sum(form.bytes_before for form in self.forms)

    @property
    def bytes_after(self) -> int:
        """Bytes of the forms chosen for them."""
        return sum(form.n_bytes for form in self.forms)
