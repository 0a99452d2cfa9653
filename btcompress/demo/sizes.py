"""How large the demonstration is, and how its two models are trained."""

from __future__ import annotations

from dataclasses import dataclass

from btcompress.finetune import TrainConfig


@dataclass(frozen=True, slots=True)
class DemoSize:
    """One size of the demonstration.

    Attributes:
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        n_train: clips to train on, those included that choose the best epoch.
        n_test: clips to measure on at the end; they choose nothing.
        held_fraction: share of ``n_train`` that chooses the best epoch, of both models.
        hidden_size: of the LSTM.
        cp_rank: ``N`` of its input matrix.
        tucker_rank: ``R`` of it.
        dense_epochs: for which the dense model is trained.
        dense_learning_rate: of that.
        tuning_epochs: for which the factorized model is trained on.
        tuning_learning_rate: of that.
    """

    height: int
    width: int
    n_train: int
    n_test: int
    held_fraction: float
    hidden_size: int
    cp_rank: int
    tucker_rank: int
    dense_epochs: int
    dense_learning_rate: float
    tuning_epochs: int
    tuning_learning_rate: float

    def dense_config(self, seed: int) -> TrainConfig:
        """How the dense model is trained."""
        return TrainConfig(epochs=self.dense_epochs, learning_rate=self.dense_learning_rate, patience=0, seed=seed)

    def tuning_config(self, seed: int) -> TrainConfig:
        """How the factorized model is trained on: from the labels alone."""
        return TrainConfig(
            epochs=self.tuning_epochs, learning_rate=self.tuning_learning_rate, patience=0, distill=0.0, seed=seed
        )


#: A minute or two on two cores.
SMALL = DemoSize(60, 80, 2000, 1000, 0.2, 128, 2, 4, 20, 4e-3, 10, 1e-2)

#: That of Ye et al. (2018): 57,600 inputs, 256 hidden units, 58,982,400 input weights.
FULL = DemoSize(120, 160, 2000, 1000, 0.2, 256, 2, 4, 14, 1e-3, 10, 1e-2)
