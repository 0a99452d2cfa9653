"""Dense matrix to block-term form, fitted to its entries or to what it gives on sample inputs."""

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
from btcompress.fit.demand import described, explained
from btcompress.fit.inputfit import InputFit, fit_to_inputs
from btcompress.fit.measures import difference_error, frobenius_norm, largest, weight_error
from btcompress.fit.roundedforms import RoundedForm, round_matrix, round_parts
from btcompress.fit.rounding import fed_back, nearest, obstacle_to_integers
from btcompress.fit.samples import OutputErrors, Samples
from btcompress.fit.threads import one_thread_for

__all__ = [
    "Fit",
    "FitOptions",
    "InputFit",
    "MatrixFit",
    "OnSweep",
    "OutputErrors",
    "RoundedForm",
    "Samples",
    "balanced",
    "described",
    "difference_error",
    "explained",
    "fed_back",
    "fit",
    "fit_matrix",
    "fit_to_inputs",
    "frobenius_norm",
    "largest",
    "nearest",
    "obstacle_of_dtype",
    "obstacle_to_integers",
    "one_thread_for",
    "round_matrix",
    "round_parts",
    "weight_error",
]
