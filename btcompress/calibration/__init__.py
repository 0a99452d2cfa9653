"""Fit block terms to what a model computes on sample inputs, without labels."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.calibration.calibrating import BATCH_IN_FEW_BITS, DEFAULT, calibrate, gather_samples
    from btcompress.calibration.errors import InputMeasure, activation_errors, on_inputs
    from btcompress.calibration.progress import OnProgress
    from btcompress.calibration.request import CalibrationRequest, SampleInputs

__all__ = [
    "BATCH_IN_FEW_BITS",
    "DEFAULT",
    "CalibrationRequest",
    "InputMeasure",
    "OnProgress",
    "SampleInputs",
    "activation_errors",
    "calibrate",
    "gather_samples",
    "on_inputs",
]

_load = on_first_use(
    __name__,
    {
        "BATCH_IN_FEW_BITS": "calibrating",
        "CalibrationRequest": "request",
        "DEFAULT": "calibrating",
        "InputMeasure": "errors",
        "OnProgress": "progress",
        "SampleInputs": "request",
        "activation_errors": "errors",
        "calibrate": "calibrating",
        "gather_samples": "calibrating",
        "on_inputs": "errors",
    },
)

if not TYPE_CHECKING:  # to a type checker, any name at all would be there
    __getattr__ = _load
