"""Record what the layers of a model get as it runs, to calibrate and train on."""

from btcompress.recorder.hooks import Recorded, Recording, recording

__all__ = ["Recorded", "Recording", "recording"]
