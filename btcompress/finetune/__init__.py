"""Train compressed checkpoints on: distil from the dense model, or learn from labels."""

from btcompress.finetune.config import TrainConfig
from btcompress.finetune.finetuning import FineTuned, finetune
from btcompress.finetune.loop import Epoch
from btcompress.finetune.request import FineTuneRequest
from btcompress.finetune.state import StateFolder

__all__ = ["Epoch", "FineTuneRequest", "FineTuned", "StateFolder", "TrainConfig", "finetune"]
