"""Train compressed checkpoints on: distil from the dense model, or learn from labels."""

from btcompress.finetune.config import TrainConfig
from btcompress.finetune.finetuning import FineTuned, finetune
from btcompress.finetune.loop import Epoch
from btcompress.finetune.request import FineTuneRequest

__all__ = ["Epoch", "FineTuneRequest", "FineTuned", "TrainConfig", "finetune"]
