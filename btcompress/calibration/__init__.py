"""Fit block terms to what a model computes on sample inputs, without labels."""

from btcompress.calibration.calibrating import DEFAULT, CalibrationRequest, SampleInputs, calibrate, gather_samples
from btcompress.calibration.errors import InputMeasure, activation_errors, on_inputs

__all__ = [
    "DEFAULT",
    "CalibrationRequest",
    "InputMeasure",
    "SampleInputs",
    "activation_errors",
    "calibrate",
    "gather_samples",
    "on_inputs",
]
