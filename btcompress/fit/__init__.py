"""Dense matrix to block-term form, and the yardsticks to hold it against."""

from btcompress.fit.blockfit import Fit, FitOptions, MatrixFit, balanced, fit, fit_matrix
from btcompress.fit.curves import Curve, FormsWithCore, Point, price
from btcompress.fit.ordering import fit_ordered
from btcompress.fit.otherforms import OtherForm, low_rank_form, structured_forms
from btcompress.fit.yardsticks import SVDYardstick, truncated_svd, weight_error

__all__ = [
    "Curve",
    "Fit",
    "FitOptions",
    "FormsWithCore",
    "MatrixFit",
    "OtherForm",
    "Point",
    "SVDYardstick",
    "balanced",
    "fit",
    "fit_matrix",
    "fit_ordered",
    "low_rank_form",
    "price",
    "structured_forms",
    "truncated_svd",
    "weight_error",
]
