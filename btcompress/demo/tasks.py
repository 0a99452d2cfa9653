"""The tasks by name, small and at full size."""

from __future__ import annotations

from typing import Any

from btcompress.demo import images, video
from btcompress.demo.captions import task as captions
from btcompress.demo.names import TaskName
from btcompress.demo.task import Task

#: About two minutes on two cores, each.
SMALL: dict[TaskName, Task[Any]] = {"video": video.SMALL, "captions": captions.SMALL, "images": images.SMALL}

#: With larger inputs: the video's are those of Ye et al. (2018).
FULL: dict[TaskName, Task[Any]] = {"video": video.FULL, "captions": captions.FULL, "images": images.FULL}
