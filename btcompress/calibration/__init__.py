"""Fit block terms to what a model computes on sample inputs, without labels."""

from btcompress.calibration.calibrating import DEFAULT, CalibrationRequest, calibrate
from btcompress.calibration.errors import activation_errors, on_inputs

__all__ = ["DEFAULT", "CalibrationRequest", "activation_errors", "calibrate", "on_inputs"]
