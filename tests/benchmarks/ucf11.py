"""The experiment of Ye et al. (2018) on UCF11: a dense LSTM on videos, and the same in block terms.

    python tests/benchmarks/ucf11.py UCF11_updated_mpg FOLDER

Decodes the videos once, then trains a dense LSTM, factorizes its ``W`` in the modes and ranks of the paper and in what
the planner chooses, fine-tunes that, and trains the same forms from scratch; on three splits (``ucf11_splits.py``) and
several seeds. Learning rates are searched on the clips held back, for seed 0 of each split. One JSON line for each
model goes to standard output, and the table of all to ``FOLDER/table.md``. What is in ``FOLDER`` is not made again, and
a training that was interrupted goes on behind its last epoch: the same command again ends in the same table.
See docs/ucf11.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from ucf11_clips import ClipSize, VideoClips, decode
from ucf11_splits import SPLITS, Split, SplitName, split
from ucf11_table import Outcome, standard_error, table
from ucf11_videos import CLASSES, N_VIDEOS, Found, find_videos

from btcompress import FactorizeStep, apply, compress, load, report, save
from btcompress.checkpoint import CompressedCheckpoint, claimed, replacing
from btcompress.demo.randomstart import random_start
from btcompress.demo.video import Clips
from btcompress.demo.video.dense import SCALE, ClipClassifier, decisions, train_classifier, training_scale
from btcompress.errors import BTCompressError
from btcompress.finetune import Epoch, FineTuneRequest, TrainConfig, finetune
from btcompress.finetune.data import open_data
from btcompress.finetune.state import StateFile

#: The seed on which learning rates are searched.
SEARCH_SEED = 0
#: The split whose clips held back choose the learning rates of another, which has none of its own.
RATES_OF: dict[SplitName, SplitName] = {"groups": "groups", "random": "random", "authors": "random"}
STARTS = ("fine-tuned", "from scratch")


@dataclass(frozen=True)
class Settings:
    """What is trained, and how; what a folder was begun with it is gone on with.

    Attributes:
        hidden_size: of the LSTM.
        in_modes: ``(I_1..I_d)`` of the forms whose ranks are given, which multiply to the inputs of a frame.
        out_modes: ``(J_1..J_d)``, which multiply to four times the hidden size.
        ranks: pairs of CP rank and Tucker rank, with a comma.
        target_ratios: how many times fewer weights the planner is asked for.
        epochs: of the dense model, at most.
        tuning_epochs: of a block-term model, at most.
        patience: epochs without a better accuracy on the clips held back after which training ends.
        batch_size: clips in a step.
        dense_rates: learning rates of the dense model to choose from.
        dense_decays: weight decays of it, tried with each of them.
        rates: learning rates of the block-term models to choose from.
    """

    hidden_size: int = 256
    in_modes: tuple[int, ...] = (8, 20, 20, 18)
    out_modes: tuple[int, ...] = (16, 4, 4, 4)
    ranks: tuple[str, ...] = ("2,1", "2,2", "2,4")
    target_ratios: tuple[float, ...] = (17_388.0,)
    epochs: int = 40
    tuning_epochs: int = 30
    patience: int = 8
    batch_size: int = 32
    dense_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    dense_decays: tuple[float, ...] = (0.0, 1.0)
    rates: tuple[float, ...] = (3e-3, 1e-2)

    def forms(self, frame_shape: tuple[int, int, int]) -> dict[str, FactorizeStep]:
        """What ``W`` is factorized to, by name."""
        forms = {}
        for pair in self.ranks:
            n, r = map(int, pair.split(","))
            forms[f"N={n} R={r}"] = FactorizeStep(
                cp_rank=n, tucker_rank=r, in_modes=self.in_modes, out_modes=self.out_modes
            )
        for ratio in self.target_ratios:
            forms[f"planner, {ratio:,g} times fewer"] = FactorizeStep(target_ratio=ratio, input_shape=frame_shape)
        return forms

    def config(self, epochs: int, rate: float, decay: float, seed: int) -> TrainConfig:
        """How one model is trained: from the labels alone."""
        return TrainConfig(
            epochs,
            self.batch_size,
            learning_rate=rate,
            weight_decay=decay,
            patience=self.patience,
            distill=0.0,
            seed=seed,
        )


@dataclass
class Run:
    """One split with one seed, and what was made of it in a folder.

    Attributes:
        folder: of its files.
        clips: all of them.
        settings: what is trained.
        split: name of the split.
        seed: of the split and of the trainings.
        on_epoch: called after each epoch of a training.
    """

    folder: Path
    clips: VideoClips
    settings: Settings
    split: SplitName
    seed: int
    on_epoch: Callable[[str, Epoch], None] = field(repr=False)

    @cached_property
    def rows(self) -> Split:
        """Which clips are for what."""
        return split(self.split, self.clips.y, self.clips.groups, self.seed)

    @cached_property
    def test(self) -> Clips:
        """The test clips."""
        return self.clips.part(self.rows.test)

    def data(self) -> tuple[Path, Path]:
        """Files of the clips to train on and of those held back, written where they are missing."""
        paths = self.folder / "train.npz", self.folder / "held.npz"
        for path, rows in zip(paths, (self.rows.train, self.rows.held), strict=True):
            if not path.exists():
                part = self.clips.part(rows)
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.savez(file, x=part.x, y=part.y)
        return paths

    def close(self) -> None:
        """Let go of the clips, in files and in memory; where they are asked for again, they are there again."""
        for name in ("train.npz", "held.npz"):
            (self.folder / name).unlink(missing_ok=True)
        self.__dict__.pop("test", None)

    def new_model(self) -> ClipClassifier:
        """A dense model with the random weights of the seed."""
        torch.manual_seed(self.seed)
        return self._random_model()

    def _random_model(self) -> ClipClassifier:
        return ClipClassifier(self.clips.x.shape[-1], self.settings.hidden_size, len(self.clips.class_names))

    def dense_path(self, rate: float, decay: float) -> Path:
        """The dense checkpoint that was trained so."""
        return self.folder / f"dense-{rate:g}-{decay:g}.pt"

    def dense_model(self, rate: float, decay: float) -> ClipClassifier:
        """The dense model that was trained so."""
        model = self.new_model()
        model.load_state_dict(torch.load(self.dense_path(rate, decay), weights_only=True))
        return model

    def dense(self, rate: float, decay: float) -> Outcome:
        """Train the dense model, unless that is done."""
        path = self.dense_path(rate, decay)
        config = self.settings.config(self.settings.epochs, rate, decay, self.seed)
        file = StateFile(path, {"config": repr(config), "clips": self.clips.sha256})
        outcome = self._kept(path.stem, lambda: self._dense(path, config, file))
        file.remove()
        return outcome

    def _dense(self, path: Path, config: TrainConfig, file: StateFile) -> Outcome:
        model = self.new_model()
        scale = training_scale(model.lstm.input_size)
        train, held = (open_data(str(part), scale) for part in self.data())
        curve = train_classifier(model, train, held, config, file=file, on_epoch=self._telling(path.stem))
        with replacing(path) as temporary, temporary.open("wb") as opened:
            torch.save(model.state_dict(), opened)
        weights = model.lstm.get_parameter("weight_ih_l0").numel()
        return self._outcome("dense", model, (weights, 1.0, 1.0), config.peak, max(curve), len(curve) - 1)

    def factorized(self, form: str, dense: tuple[float, float]) -> Outcome:
        """Factorize a dense model, unless that is done."""

        def measured() -> Outcome:
            found = load(self._start(form, dense, STARTS[0]))
            model = apply(self.dense_model(*dense), found)
            return self._outcome(f"factorized, {form}", model, _sizes(found), None, None, 0)

        return self._kept(_file_name("factorized", form), measured)

    def tuned(self, form: str, dense: tuple[float, float], start: str, rate: float) -> Outcome:
        """Train a factorized model on, or one of the same form from scratch, unless that is done."""
        name = _file_name(start, form, f"{rate:g}")
        path = self.folder / f"{name}.safetensors"

        def trained() -> Outcome:
            config = self.settings.config(self.settings.tuning_epochs, rate, 0.0, self.seed)
            interrupted = StateFile(path).exists()
            if interrupted or not path.exists():
                train, held = self.data()
                begin = self._start(form, dense, start)
                request = FineTuneRequest(begin, str(train), path, self.dense_path(*dense), held=str(held), scale=SCALE)
                finetune(request, config, resume=interrupted, on_epoch=self._telling(name))
            found = load(path)
            told = report(found).finetuned[-1]
            model = apply(self.dense_model(*dense), found)
            return self._outcome(f"{start}, {form}", model, _sizes(found), rate, told.after, told.epochs)

        return self._kept(name, trained)

    def _start(self, form: str, dense: tuple[float, float], start: str) -> Path:
        """The checkpoint that a training begins with."""
        path = self.folder / f"{_file_name('start', start, form)}.safetensors"
        if not path.exists():
            if start == STARTS[0]:
                found = compress(self.dense_path(*dense), self.settings.forms(self.clips.frame_shape)[form])
            else:
                factorized = load(self._start(form, dense, STARTS[0]))
                found = random_start(self._random_model, factorized, self.seed)
            save(found, path)
        return path

    def _outcome(
        self,
        name: str,
        model: nn.Module,
        sizes: tuple[int, float, float],
        rate: float | None,
        held: float | None,
        epochs: int,
    ) -> Outcome:
        right = (decisions(model, self.test) == torch.from_numpy(self.test.y)).numpy()
        groups = [self.clips.groups[row] for row in self.rows.test]
        error = standard_error(right, groups)
        return Outcome(self.split, self.seed, name, *sizes, rate, held, float(right.mean()), error, epochs)

    def _kept(self, name: str, make: Callable[[], Outcome]) -> Outcome:
        """What came of a model, from the file of this name or made now."""
        record = self.folder / f"{name}.json"
        if record.exists():
            return Outcome(**json.loads(record.read_text()))
        outcome = make()
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(asdict(outcome)) + "\n")
        return outcome

    def _telling(self, name: str) -> Callable[[Epoch], None]:
        return lambda epoch: self.on_epoch(f"{self.folder.name}/{name}", epoch)


def _file_name(*parts: str) -> str:
    return "-".join(parts).replace(",", "").replace(" ", "-")


def _sizes(found: CompressedCheckpoint) -> tuple[int, float, float]:
    """Weights of ``W``, and how many times smaller it and the model are."""
    told = report(found)
    (matrix,) = told.matrices
    return matrix.params_after, matrix.weights_ratio, told.model.ratio


class Study:
    """All splits and seeds of one folder."""

    def __init__(
        self, folder: Path, clips: VideoClips, settings: Settings, on_epoch: Callable[[str, Epoch], None]
    ) -> None:
        self.folder, self.clips, self.settings, self.on_epoch = folder, clips, settings, on_epoch
        self._check_settings()
        self._runs: dict[tuple[SplitName, int], Run] = {}

    def _check_settings(self) -> None:
        """Keep the settings with the first run; refuse other ones."""
        path = self.folder / "settings.json"
        now = json.loads(json.dumps({**asdict(self.settings), "clips": self.clips.sha256}))
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(now, indent=1) + "\n")
        before = json.loads(path.read_text())
        for name, value in now.items():
            if before.get(name) != value:
                raise BTCompressError(
                    f"{self.folder} was begun with {name} {before.get(name)}, and now it is {value}. Give another "
                    "folder, or the settings that it was begun with."
                )

    def run(self, name: SplitName, seed: int) -> Run:
        """The run of a split and a seed."""
        if (name, seed) not in self._runs:
            folder = self.folder / f"{name}-{seed}"
            folder.mkdir(exist_ok=True)
            self._runs[name, seed] = Run(folder, self.clips, self.settings, name, seed, self.on_epoch)
        return self._runs[name, seed]

    def dense_choice(self, name: SplitName) -> tuple[float, float]:
        """Learning rate and weight decay of the dense model that are best on the clips held back."""
        run = self.run(RATES_OF[name], SEARCH_SEED)
        candidates = [(rate, decay) for rate in self.settings.dense_rates for decay in self.settings.dense_decays]
        return max(candidates, key=lambda one: run.dense(*one).held or 0.0)

    def rate_choice(self, name: SplitName, form: str, start: str) -> float:
        """The learning rate of a form's training that is best on the clips held back."""
        run, dense = self.run(RATES_OF[name], SEARCH_SEED), self.dense_choice(name)
        run.dense(*dense)
        return max(self.settings.rates, key=lambda rate: run.tuned(form, dense, start, rate).held or 0.0)

    def outcomes(self, splits: Sequence[SplitName], seeds: Sequence[int]) -> Iterator[Outcome]:
        """What comes of every model, one after another."""
        for name in splits:
            dense = self.dense_choice(name)
            for seed in seeds:
                run = self.run(name, seed)
                yield run.dense(*dense)
                for form in self.settings.forms(self.clips.frame_shape):
                    yield run.factorized(form, dense)
                    for start in STARTS:
                        yield run.tuned(form, dense, start, self.rate_choice(name, form, start))
                run.close()
            self.run(RATES_OF[name], SEARCH_SEED).close()


def told(found: Found, clips: VideoClips) -> list[str]:
    """What is to be known of the videos, in lines."""
    lines = [f"{len(found.videos)} videos of {len(found.class_names)} classes, {len(clips.y)} of them as clips"]
    if (len(found.videos), found.class_names) != (N_VIDEOS, CLASSES):
        lines.append(f"the data set has {N_VIDEOS} videos of {len(CLASSES)} classes: this is not all of it")
    lines += [f"left out: {name}: {why}" for name, why in clips.left_out.items()]
    return lines + [f"not looked at: {name}" for name in found.strays]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="the folder UCF11_updated_mpg")
    parser.add_argument("folder", type=Path, help="where clips, models and the table go")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--decode-only", action="store_true", help="stop once the videos are decoded")
    for name, value in asdict(ClipSize()).items():
        option = "--draw-seed" if name == "seed" else f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=value, help="of what is drawn" if name == "seed" else None)
    for one in fields(Settings):
        option, value = f"--{one.name.replace('_', '-')}", one.default
        if isinstance(value, tuple):
            parser.add_argument(option, nargs="+", type=type(value[0]), default=value)
        else:
            parser.add_argument(option, type=type(value), default=value)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Read the arguments, and do what is not done."""
    args = arguments(given)
    values = {one.name: getattr(args, one.name) for one in fields(Settings)}
    settings = Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    try:
        _study(args, settings)
    except (BTCompressError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _study(args: argparse.Namespace, settings: Settings) -> None:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    size = ClipSize(args.height, args.width, args.n_frames, args.draw_seed)
    found = find_videos(args.videos)
    clips = decode(
        found,
        args.folder,
        size,
        lambda n_done, _: say(f"decoded {n_done} of {len(found.videos)}") if n_done % 100 == 0 else None,
    )
    for line in told(found, clips):
        say(line)
    if args.decode_only:
        return
    path = args.folder / "table.md"
    with claimed(path):
        study = Study(
            args.folder,
            clips,
            settings,
            lambda name, epoch: say(f"{name}: epoch {epoch.epoch}, {epoch.metric:.1%} of the clips held back"),
        )
        outcomes = []
        for outcome in study.outcomes(args.splits, args.seeds):
            outcomes.append(outcome)
            print(json.dumps(asdict(outcome)), flush=True)
        usual = Settings()
        of_paper = (settings.in_modes, settings.out_modes) == (usual.in_modes, usual.out_modes) and (
            (args.height, args.width, args.n_frames, found.class_names) == (120, 160, 6, CLASSES)
        )
        text = table(outcomes, of_paper=of_paper)
        with replacing(path) as temporary:
            temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
