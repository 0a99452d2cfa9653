"""The demonstration: a dense model is trained on data drawn for one of three tasks, compressed, and measured."""

from btcompress.demo.files import DemoFiles
from btcompress.demo.measures import Measure
from btcompress.demo.noise import Noise
from btcompress.demo.pictures import Curve
from btcompress.demo.story import DemoProgress, DemoResult, Outcome, run_demo
from btcompress.demo.task import Drawn, Size, Task, Training
from btcompress.demo.tasks import FULL, SMALL

__all__ = [
    "FULL",
    "SMALL",
    "Curve",
    "DemoFiles",
    "DemoProgress",
    "DemoResult",
    "Drawn",
    "Measure",
    "Noise",
    "Outcome",
    "Size",
    "Task",
    "Training",
    "run_demo",
]
