"""Train compressed checkpoints on: distil from the dense model, or learn from labels."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.finetune.config import TrainConfig
    from btcompress.finetune.epoch import Epoch
    from btcompress.finetune.finetuning import FineTuned, finetune
    from btcompress.finetune.processes import is_first
    from btcompress.finetune.request import FineTuneRequest
    from btcompress.finetune.state import StateFile

__all__ = ["Epoch", "FineTuneRequest", "FineTuned", "StateFile", "TrainConfig", "finetune", "is_first"]

_load = on_first_use(
    __name__,
    {
        "Epoch": "epoch",
        "FineTuneRequest": "request",
        "FineTuned": "finetuning",
        "StateFile": "state",
        "TrainConfig": "config",
        "finetune": "finetuning",
        "is_first": "processes",
    },
)

if not TYPE_CHECKING:  # to a type checker, any name at all would be there
    __getattr__ = _load
