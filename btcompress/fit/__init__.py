"""Dense matrix to block-term form, and the yardsticks to hold it against."""

from btcompress.fit.blockfit import Fit, FitOptions, MatrixFit, balanced, fit, fit_matrix
from btcompress.fit.yardsticks import SVDYardstick, truncated_svd, weight_error

__all__ = [
    "Fit",
    "FitOptions",
    "MatrixFit",
    "SVDYardstick",
    "balanced",
    "fit",
    "fit_matrix",
    "truncated_svd",
    "weight_error",
]
