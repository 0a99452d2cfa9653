"""What the tasks are called; the command line knows no more of them until one is asked for."""

from __future__ import annotations

from typing import Literal

TaskName = Literal["video", "captions", "images"]
