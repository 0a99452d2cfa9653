"""Dense matrix to block-term form, and the yardsticks to hold it against."""

from btcompress.fit.blockfit import (
    Fit,
    FitOptions,
    MatrixFit,
    OnSweep,
    balanced,
    fit,
    fit_matrix,
    obstacle_of_dtype,
)
from btcompress.fit.curves import Curve, FormsWithCore, Point, price
from btcompress.fit.demand import described, explained
from btcompress.fit.inputcurves import price_on_inputs
from btcompress.fit.inputfit import InputFit, fit_to_inputs
from btcompress.fit.ordering import check_orders, fit_ordered, obstacle_to_orders, price_in_orders
from btcompress.fit.otherforms import OtherForm, low_rank_form, structured_forms
from btcompress.fit.samples import OutputErrors, Samples
from btcompress.fit.threads import one_thread_for
from btcompress.fit.unitorders import share_orders
from btcompress.fit.yardsticks import SVDYardstick, frobenius_norm, largest, truncated_svd, weight_error

__all__ = [
    "Curve",
    "Fit",
    "FitOptions",
    "FormsWithCore",
    "InputFit",
    "MatrixFit",
    "OnSweep",
    "OtherForm",
    "OutputErrors",
    "Point",
    "SVDYardstick",
    "Samples",
    "balanced",
    "check_orders",
    "described",
    "explained",
    "fit",
    "fit_matrix",
    "fit_ordered",
    "fit_to_inputs",
    "frobenius_norm",
    "largest",
    "low_rank_form",
    "obstacle_of_dtype",
    "obstacle_to_orders",
    "one_thread_for",
    "price",
    "price_in_orders",
    "price_on_inputs",
    "share_orders",
    "structured_forms",
    "truncated_svd",
    "weight_error",
]
