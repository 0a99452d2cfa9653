"""The demonstration: train a dense LSTM on clips, factorize its checkpoint, fine-tune the result, measure all three."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from btcompress.checkpoint import check_target, claimed, replacing, write
from btcompress.compression import factorize
from btcompress.demo.video.clips import Clips, make_clips
from btcompress.demo.video.dense import SCALE, accuracy, train_dense
from btcompress.demo.pictures import Curve, save_clips, save_curves
from btcompress.demo.sizes import SMALL, DemoSize
from btcompress.finetune import Epoch, FineTuneRequest, finetune
from btcompress.finetune.state import StateFile
from btcompress.models import apply
from btcompress.reporting import report
from btcompress.results import CompressionReport


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """What the demonstration writes, by name in a folder.

    Attributes:
        folder: that holds the files.
    """

    folder: Path

    @property
    def data(self) -> Path:
        """The clips to train on: bytes ``x`` and labels ``y``."""
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
    def tuned(self) -> Path:
        """The compressed checkpoint after fine-tuning."""
        return self.folder / "tuned.bt.safetensors"

    @property
    def clips(self) -> Path:
        """A picture of one clip of each class."""
        return self.folder / "clips.png"

    @property
    def curves(self) -> Path:
        """A picture of the learning curves."""
        return self.folder / "curves.png"

    @property
    def all(self) -> tuple[Path, ...]:
        """Every one of them."""
        return self.data, self.dense, self.factorized, self.tuned, self.clips, self.curves


@dataclass(frozen=True, slots=True)
class DemoProgress:
    """What the demonstration is at.

    Attributes:
        what: it does.
        epoch: the last one done, where it trains.
    """

    what: str
    epoch: Epoch | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DemoResult:
    """What the demonstration made and measured.

    Attributes:
        files: what it wrote.
        examples: one test clip of each class.
        curves: of the dense model and of the block-term model, on the clips held back.
        dense_accuracy: of the dense model on the test clips.
        factorized_accuracy: of the factorized model, not trained any further.
        tuned_accuracy: of the fine-tuned model.
        n_test: test clips.
        report: what compression and fine-tuning gained and lost.
    """

    files: DemoFiles
    examples: Clips
    curves: tuple[Curve, ...]
    dense_accuracy: float
    factorized_accuracy: float
    tuned_accuracy: float
    n_test: int
    report: CompressionReport


OnProgress = Callable[[DemoProgress], None]


def run_demo(
    folder: Path,
    size: DemoSize = SMALL,
    *,
    seed: int = 0,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> DemoResult:
    """Train, factorize, fine-tune and measure; checkpoints, training clips and pictures stay in ``folder``.

    Both models learn from the same clips in the same loop and keep the epoch that is best on the same clips held
    back. The test clips are seen by no training and choose nothing.

    Args:
        folder: where to write :class:`DemoFiles`.
        size: of the clips and the models, and how they are trained.
        seed: of the clips, the first weights, and the order of training.
        force: replace those that exist, and start over a fine-tuning that was interrupted there.
        on_progress: called as each stage begins and after each epoch.

    Raises:
        BTCompressError: scikit-learn, whose digits the clips show, or matplotlib is missing.
        OutputError: the folder cannot be written to, holds one of the files, or another process is writing them.
    """
    files = DemoFiles(folder)
    for path in files.all:
        check_target(path, force=force)
    StateFile(files.tuned).check(force=force, resume=False, inputs=())
    with claimed(files.data):  # the first that is written stands for all of them
        return _told(files, size, seed, on_progress)


def _told(files: DemoFiles, size: DemoSize, seed: int, on_progress: OnProgress | None) -> DemoResult:
    def tell(what: str, epoch: Epoch | None = None) -> None:
        if on_progress is not None:
            on_progress(DemoProgress(what, epoch))

    tell("drawing clips")
    test = draw_clips(files.data, size, seed)
    examples = test.one_of_each()
    save_clips(examples, files.clips)

    with torch.random.fork_rng(devices=[]):
        tell("training the dense model")
        model, dense_curve = train_dense(files.data, size, seed, lambda epoch: tell("training the dense model", epoch))
        # By a path, torch.save would write the temporary name into the file.
        with replacing(files.dense) as temporary, temporary.open("wb") as file:
            torch.save(model.state_dict(), file)
        tell("factorizing")
        compressed = factorize(
            files.dense, cp_rank=size.cp_rank, tucker_rank=size.tucker_rank, input_shape=test.frame_shape
        )
        write(compressed, files.factorized, force=True)
        request = FineTuneRequest(
            files.factorized, str(files.data), files.tuned, files.dense, held_fraction=size.held_fraction, scale=SCALE
        )
        epochs: list[Epoch] = []

        def on_epoch(epoch: Epoch) -> None:
            epochs.append(epoch)
            tell("fine-tuning the block-term model", epoch)

        tell("fine-tuning the block-term model")
        tuned = finetune(request, size.tuning_config(seed), force=True, on_epoch=on_epoch).compressed

    tell("measuring")
    told = report(tuned, bytes_after=files.tuned.stat().st_size)
    tuned_curve = (told.finetuned[-1].before, *(epoch.metric for epoch in epochs))
    curves = (Curve("dense", dense_curve), Curve("factorized, then fine-tuned", tuned_curve))
    save_curves(curves, files.curves)
    return DemoResult(
        files,
        examples,
        curves,
        dense_accuracy=accuracy(model, test),
        factorized_accuracy=accuracy(apply(copy.deepcopy(model), compressed), test),
        tuned_accuracy=accuracy(apply(copy.deepcopy(model), tuned), test),
        n_test=size.n_test,
        report=told,
    )


def draw_clips(data: Path, size: DemoSize, seed: int) -> Clips:
    """Draw clips, write those to train on to a file, and return those to test on.

    Raises:
        BTCompressError: scikit-learn is missing.
        OutputError: the file cannot be written.
    """
    clips = make_clips(
        size.n_train + size.n_test,
        height=size.height,
        width=size.width,
        generator=torch.Generator().manual_seed(seed),
    )
    train, test = clips.split(size.n_train, size.n_test)
    with replacing(data) as temporary, temporary.open("wb") as file:
        np.savez(file, x=train.x, y=train.y)
    return test
