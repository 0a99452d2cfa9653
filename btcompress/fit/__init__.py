"""Dense matrix to block-term form, and the yardsticks to hold it against."""

from btcompress.fit.blockfit import Fit, FitOptions, MatrixFit, balanced, fit, fit_matrix
from btcompress.fit.curves import Curve, FormsWithCore, Point, price
from btcompress.fit.inputcurves import price_on_inputs
from btcompress.fit.inputfit import InputFit, fit_to_inputs
from btcompress.fit.ordering import fit_ordered
from btcompress.fit.otherforms import OtherForm, low_rank_form, structured_forms
from btcompress.fit.samples import OutputErrors, Samples
from btcompress.fit.yardsticks import SVDYardstick, truncated_svd, weight_error

__all__ = [
    "Curve",
    "Fit",
    "FitOptions",
    "FormsWithCore",
    "InputFit",
    "MatrixFit",
    "OtherForm",
    "OutputErrors",
    "Point",
    "SVDYardstick",
    "Samples",
    "balanced",
    "fit",
    "fit_matrix",
    "fit_ordered",
    "fit_to_inputs",
    "low_rank_form",
    "price",
    "price_on_inputs",
    "structured_forms",
    "truncated_svd",
    "weight_error",
]
