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
from btcompress.fit.measures import frobenius_norm, largest, weight_error
from btcompress.fit.samples import OutputErrors, Samples
from btcompress.fit.threads import one_thread_for

__all__ = [
    "Fit",
    "FitOptions",
    "InputFit",
    "MatrixFit",
    "OnSweep",
    "OutputErrors",
    "Samples",
    "balanced",
    "described",
    "explained",
    "fit",
    "fit_matrix",
    "fit_to_inputs",
    "frobenius_norm",
    "largest",
    "obstacle_of_dtype",
    "one_thread_for",
    "weight_error",
]
