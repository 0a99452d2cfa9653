"""Dense matrix to block-term form, and the yardsticks to hold it against."""

from btcompress.fit.blockfit import Fit, FitOptions, MatrixFit, OnSweep, balanced, fit, fit_matrix
from btcompress.fit.curves import Curve, FormsWithCore, Point, price
from btcompress.fit.ordering import check_orders, fit_ordered, obstacle_to_orders, price_in_orders
from btcompress.fit.otherforms import OtherForm, low_rank_form, structured_forms
from btcompress.fit.unitorders import share_orders
from btcompress.fit.yardsticks import SVDYardstick, truncated_svd, weight_error

__all__ = [
    "Curve",
    "Fit",
    "FitOptions",
    "FormsWithCore",
    "MatrixFit",
    "OnSweep",
    "OtherForm",
    "Point",
    "SVDYardstick",
    "balanced",
    "check_orders",
    "fit",
    "fit_matrix",
    "fit_ordered",
    "low_rank_form",
    "obstacle_to_orders",
    "price",
    "price_in_orders",
    "share_orders",
    "structured_forms",
    "truncated_svd",
    "weight_error",
]
