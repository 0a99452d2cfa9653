"""What the demonstration writes, by name in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """What the demonstration writes, by name in a folder.

    Attributes:
        folder: that holds the files.
    """

    folder: Path

    @property
    def data(self) -> Path:
        """What to train on: ``x`` and ``y``."""
        return self.folder / "train.npz"

    @property
    def dense(self) -> Path:
        """The dense checkpoint."""
        return self.folder / "dense.pt"

    @property
    def factorized(self) -> Path:
        """The compressed checkpoint."""
        return self.folder / "dense.bt.safetensors"

    @property
    def inputs(self) -> Path:
        """Inputs of the layer, recorded to calibrate on; not there where the data are these inputs."""
        return self.folder / "inputs.npz"

    @property
    def calibrated(self) -> Path:
        """The compressed checkpoint after calibration."""
        return self.folder / "calibrated.bt.safetensors"

    @property
    def tuned(self) -> Path:
        """The compressed checkpoint after fine-tuning."""
        return self.folder / "tuned.bt.safetensors"

    @property
    def start(self) -> Path:
        """A compressed checkpoint of the same form, of random numbers."""
        return self.folder / "random.bt.safetensors"

    @property
    def scratch(self) -> Path:
        """The compressed checkpoint that was trained from these."""
        return self.folder / "scratch.bt.safetensors"

    @property
    def examples(self) -> Path:
        """A picture of some examples, and of what models make of them."""
        return self.folder / "examples.png"

    @property
    def curves(self) -> Path:
        """A picture of the learning curves."""
        return self.folder / "curves.png"

    @property
    def trained(self) -> tuple[Path, ...]:
        """Those that trainings write, each with what is beside it while it is trained."""
        return self.tuned, self.scratch

    @property
    def all(self) -> tuple[Path, ...]:
        """Every one of them."""
        return (
            self.data,
            self.dense,
            self.factorized,
            self.inputs,
            self.calibrated,
            self.tuned,
            self.start,
            self.scratch,
            self.examples,
            self.curves,
        )
