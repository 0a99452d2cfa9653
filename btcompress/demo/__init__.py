"""The demonstration: a dense model is trained on data drawn for one of three tasks, compressed, and measured."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.demo.files import DemoFiles
    from btcompress.demo.measures import Measure
    from btcompress.demo.names import TaskName
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
    "TaskName",
    "Training",
    "run_demo",
]

_load = on_first_use(
    __name__,
    {
        "FULL": "tasks",
        "SMALL": "tasks",
        "Curve": "pictures",
        "DemoFiles": "files",
        "DemoProgress": "story",
        "DemoResult": "story",
        "Drawn": "task",
        "Measure": "measures",
        "Noise": "noise",
        "Outcome": "story",
        "Size": "task",
        "Task": "task",
        "TaskName": "names",
        "Training": "task",
        "run_demo": "story",
    },
)

if not TYPE_CHECKING:  # to a type checker, any name at all would be there
    __getattr__ = _load
