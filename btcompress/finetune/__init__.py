"""Train compressed checkpoints on: distil from the dense model, or learn from labels."""

from btcompress.finetune.config import TrainConfig
from btcompress.finetune.finetuning import FineTuned, FineTuneRequest, finetune
from btcompress.finetune.loop import Epoch

__all__ = ["Epoch", "FineTuneRequest", "FineTuned", "TrainConfig", "finetune"]
