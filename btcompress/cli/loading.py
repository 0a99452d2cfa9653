"""Loading what every command needs, in the least time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

#: Parameters of commands that name a dense checkpoint, of which the digest is needed.
_CHECKPOINTS = ("model", "against")


def with_torch_loaded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, for which torch is loaded before it begins, and the checkpoint read through meanwhile.

    Of the hundred thousands of objects that this makes none is garbage, and all stay to the end. So none is looked for
    meanwhile, nor among them later, which takes a fifth off the time.
    """

    @wraps(command)
    def command_with_torch(*args: object, **options: object) -> None:
        from btcompress.checkpoint.ahead import begin_digest

        for name in _CHECKPOINTS:
            if isinstance(path := options.get(name), Path):
                begin_digest(path)
        load_torch()
        command(*args, **options)

    return command_with_torch


def load_torch() -> None:
    """Import torch, and look for no garbage meanwhile."""
    if "torch" not in sys.modules:
        gc.disable()
        try:
            import torch  # noqa: F401
        finally:
            gc.freeze()
            gc.enable()
