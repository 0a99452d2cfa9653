"""When one error is smaller than another, and when that says anything."""

from __future__ import annotations

from btcompress.results import CompressionReport

#: Errors that differ by a smaller share are as good as equal: a low-rank matrix is rounded when it is stored.
_NO_DIFFERENCE = 1e-3


def is_better(error: float | None, than: float | None) -> bool:
    """Whether an error is smaller by more than rounding, and also as it is printed."""
    if error is None or than is None or f"{error:.3f}" == f"{than:.3f}":
        return False
    return error < (1 - _NO_DIFFERENCE) * than


def of_matrices_count(report: CompressionReport) -> bool:
    """Whether the errors of single matrices say how good they are, which they do not once those were trained."""
    return not (report.calibrated or report.finetuned)
