"""Kill commands at random moments, and see that each target is the old file or the new one and nothing else changed.

A process that has imported torch and computed nothing forks a child for each trial, so a trial takes as long as the
command itself. Run ``python tests/kill_moments.py --trials 1000``; it prints a line of JSON for each command.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Children are forked, and a process that has begun threads cannot be forked safely.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "120"}

import numpy as np
import torch

import btcompress.calibration
import btcompress.checkpoint.writer
import btcompress.compression
import btcompress.demo.story
import btcompress.display
import btcompress.finetune
import btcompress.plan
import btcompress.reporting
from btcompress.cli import main
from btcompress.demo import DemoFiles, Size, Training
from btcompress.demo.video import Video
from btcompress.finetune import TrainConfig
from btcompress.recipe import DenseStep, FactorizeStep, FineTuneStep, Recipe, save_recipe

OLD = b"what lay there before"
#: What a killed command may leave beside its targets: locks, and files half written.
LEFTOVERS = re.compile(r"(.*/)?\.btcompress-[0-9a-f]{16}\.(lock|tmp(?:/.*)?)")
#: Seconds after which a command counts as hanging.
PATIENCE = 120
#: Of what commands import: found out for each, it would be imported twice.
_LONG_TO_IMPORT = (
    "tensorly.decomposition",
    "torch._dynamo",
    "onnxruntime.quantization",
    "sklearn.datasets",
    "matplotlib.backends.backend_agg",
)
_ONCE = Training(1, 1e-2)
TINY_DEMO = Video(60, 80, Size(20, 10, 4, 1, 1, dense=_ONCE, tuning=_ONCE, scratch=_ONCE, calibration=_ONCE))


@dataclass(frozen=True)
class Command:
    """A command that writes, and what may come of it.

    Attributes:
        run: the arguments, or a function to call.
        targets: files it writes, of which each is the old one or the new one, byte for byte.
        others: files it writes besides, whose contents differ from run to run.
        kept: files that only a killed run leaves, to go on from.
        old: whether the targets exist before.
        go_on: options with which it goes on from these.
    """

    run: tuple[str, ...] | Callable[[list[str]], None]
    targets: tuple[str, ...]
    others: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    old: bool = False
    go_on: tuple[str, ...] = ("--resume",)


FACTORIZE = ("factorize", "model.pt", "-n", "1", "-r", "2", "--max-sweeps", "2", "-o", "out.safetensors", "--json")
CALIBRATE = (*FACTORIZE, "--calibration", "data.npz", "--calibration-epochs", "1")
PLAN = ("plan", "model.pt", "--target-ratio", "4", "--save-plan", "plan.yaml", "--json")
FINETUNE = ("finetune", "model.bt.safetensors", "--data", "data.npz", "--teacher", "model.pt", "-o", "out.safetensors")
FINETUNE += ("--epochs", "3", "--batch-size", "8", "--cpu", "--json")
EXPORT = ("export", "model.bt.safetensors", "--json", "--to")
#: What the demonstration writes; inputs of this task are its data, and not recorded.
DEMO_TARGETS = tuple(str(path) for path in DemoFiles(Path("demo")).all if path.name != "inputs.npz")
RUN_TARGETS = (
    "out.1-factorize.safetensors",
    "out.2-finetune.safetensors",
    "out.3-dense.safetensors",
    "out.safetensors",
)
TUNED = {"others": ("out.metrics.jsonl",), "kept": ("out.safetensors.state",)}


def _demo(more: list[str]) -> None:
    Path("demo").mkdir(exist_ok=True)
    btcompress.demo.story.run_demo(Path("demo"), TINY_DEMO, force=bool(more))


COMMANDS = {
    "factorize": Command(FACTORIZE, ("out.safetensors",)),
    "factorize --force": Command((*FACTORIZE, "--force"), ("out.safetensors",), old=True),
    "factorize --calibration": Command(CALIBRATE, ("out.safetensors",)),
    "plan --save-plan": Command(PLAN, ("plan.yaml",)),
    "finetune": Command(FINETUNE, ("out.safetensors",), **TUNED),
    "finetune --force": Command((*FINETUNE, "--force"), ("out.safetensors",), **TUNED, old=True),
    "export --to onnx": Command((*EXPORT, "onnx", "--int8", "--force"), ("model.onnx",), old=True),
    "export --to dense": Command((*EXPORT, "dense"), ("model.dense.pt",)),
    "run": Command(
        ("run", "recipe.yaml", "--json"),
        RUN_TARGETS,
        ("out.2-finetune.metrics.jsonl",),
        ("out.safetensors.run", "out.2-finetune.safetensors.state"),
        go_on=(),
    ),
    "demo": Command(
        _demo,
        DEMO_TARGETS,
        ("demo", "demo/tuned.bt.metrics.jsonl", "demo/scratch.bt.metrics.jsonl"),
        ("demo/tuned.bt.safetensors.state", "demo/scratch.bt.safetensors.state"),
    ),
}


def main_program() -> None:
    """Run the trials that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--command", action="append", choices=COMMANDS, help="only these; repeatable")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        inputs = Path(place) / "inputs"
        inputs.mkdir()
        _waited(_forked(_make_inputs, inputs))
        names = given.command or list(COMMANDS)
        _import_what_commands_import([COMMANDS[name] for name in names], inputs, Path(place))
        # Children that look for garbage would copy all memory in which they look.
        gc.collect()
        gc.freeze()
        for name in names:
            counts = _Trials(name, COMMANDS[name], inputs, Path(place)).run(given.trials, given.seed)
            print(json.dumps({"command": name, "seed": given.seed, **counts}), flush=True)


class _Trials:
    """Kills one command many times.

    Args:
        name: of the command.
        command: what to run.
        inputs: a folder of what it reads.
        place: for folders of trials.
    """

    def __init__(self, name: str, command: Command, inputs: Path, place: Path) -> None:
        self.name, self.command, self.inputs, self.place = name, command, inputs, place
        self.before = _contents(inputs)
        self.allowed = {*self.before, *command.targets, *command.others, *command.kept}
        whole = self._folder()
        watch = _Watch(self._start(whole), whole)
        code = watch.wait()
        self.duration, self.n_changes = watch.worked, watch.n_changes
        self._expect(code == 0, whole, f"exit code {code} without a kill")
        self.whole = _contents(whole)
        self.new = {target: self.whole[target] for target in command.targets}

    def run(self, n_trials: int, seed: int) -> dict[str, object]:
        """Kill at as many moments; how it went.

        Raises:
            AssertionError: something was lost, half written, left behind, or could not be finished.
        """
        counts: Counter[str] = Counter()
        left: Counter[str] = Counter()
        for trial in range(n_trials):
            draws = random.Random(f"{self.name} {seed} {trial}")
            folder = self._folder()
            start = _contents(folder)
            watch = _Watch(self._start(folder), folder)
            # Half of the moments are spread over the work, and half are near those at which files change.
            if trial % 2:
                code = watch.kill(worked=self.duration * draws.uniform(0, 1.1))
            else:
                code = watch.kill(n_changes=draws.randint(1, self.n_changes), seconds=draws.expovariate(1000))
            self._expect(code in (0, -signal.SIGKILL), folder, f"exit code {code}")
            left.update(self._check(folder))
            found = _contents(folder)
            n_new = sum(found.get(name) == new for name, new in self.new.items())
            after = code == 0 or (n_new == len(self.new) and not found.keys() & set(self.command.kept))
            counts["killed after" if after else "killed before" if found == start else "killed during"] += 1
            counts["targets new"] += n_new
            counts["targets old"] += len(self.new) - n_new
            if trial % 4 < 2:
                self._finish(folder)
                counts["finished afterwards"] += 1
            shutil.rmtree(folder)
        return {"trials": n_trials, "seconds of work": round(self.duration, 3), **counts, "left behind": dict(left)}

    def _check(self, folder: Path) -> list[str]:
        """Every file is as it was, as it should be, or allowed to be left; the kinds of those left."""
        found = _contents(folder)
        left = []
        for name, contents in self.before.items():
            self._expect(found.get(name) == contents, folder, f"the input {name} changed")
        for name in self.command.targets:
            old = OLD if self.command.old else None
            self._expect(found.get(name) in (old, self.new[name]), folder, f"{name} is neither the old nor the new one")
        for name in found.keys() - self.allowed:
            own = LEFTOVERS.fullmatch(name)
            self._expect(own is not None, folder, f"{name} is left")
            left.append(str(own and own[2].partition("/")[0]))
        return left + [name for name in self.command.kept if name in found]

    def _finish(self, folder: Path) -> None:
        """Run the command as a user would after a kill: it ends as without one, and nothing is left."""
        more: list[str] = []
        if any((folder / name).exists() for name in self.command.kept):
            more = list(self.command.go_on)
        elif any((folder / name).exists() for name in (*self.command.targets, *self.command.others)):
            more = ["--force"]
        code = _waited(self._start(folder, more))
        self._expect(code == 0, folder, f"exit code {code} with {more} after a kill")
        found = _contents(folder)
        self._expect(found.keys() == self.whole.keys(), folder, f"files are left: {found.keys() ^ self.whole.keys()}")
        for name, contents in self.new.items():
            self._expect(found[name] == contents, folder, f"{name} differs after a kill and a second run")

    def _folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.place))
        shutil.copytree(self.inputs, folder, dirs_exist_ok=True)
        for target in self.command.targets if self.command.old else ():
            (folder / target).write_bytes(OLD)
        return folder

    def _start(self, folder: Path, more: list[str] | None = None) -> int:
        run = self.command.run
        if callable(run):
            return _forked(partial(run, more or []), folder)
        return _forked(main, folder, ["btcompress", *run, *(option for option in more or [] if option not in run)])

    def _expect(self, holds: bool, folder: Path, what: str) -> None:
        if not holds:
            told = "".join(path.read_text() for path in sorted(self._told(folder)) if path.exists())
            raise AssertionError(f"{self.name}: {what}\n{sorted(_contents(folder))}\n{told}")

    def _told(self, folder: Path) -> list[Path]:
        return [folder.with_suffix(".out"), folder.with_suffix(".err")]


class _Watch:
    """Watches a child at its work in a folder, and kills it.

    Attributes:
        n_changes: how often a name or a size in the folder was seen to change.
        worked: seconds that the child has computed, which tell where it stands whatever else the machine does.
    """

    def __init__(self, child: int, folder: Path) -> None:
        self.child, self.folder = child, folder
        self.began = time.monotonic()
        self.n_changes, self.worked = 0, 0.0
        self.seen = self._names()

    def wait(self) -> int:
        """Let it end; its exit code."""
        while (code := self._look()) is None:
            pass
        return code

    def kill(self, *, worked: float = float("inf"), n_changes: float = float("inf"), seconds: float = 0.0) -> int:
        """Kill it so many seconds after it has done so much; its exit code."""
        while self.worked < worked and self.n_changes < n_changes:
            if (code := self._look()) is not None:
                return code
        time.sleep(seconds)
        os.kill(self.child, signal.SIGKILL)
        return _waited(self.child)

    def _look(self) -> int | None:
        """The exit code if it has ended."""
        with contextlib.suppress(OSError, IndexError):
            self.worked = int(Path(f"/proc/{self.child}/schedstat").read_text().split()[0]) / 1e9
        names = self._names()
        self.n_changes += names != self.seen
        self.seen = names
        number, status = os.waitpid(self.child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - self.began > PATIENCE:
            os.kill(self.child, signal.SIGKILL)
            raise AssertionError("a command hangs")
        time.sleep(0.0002)
        return None

    def _names(self) -> list[tuple[str, int]]:
        found = []
        for folder, _, files in os.walk(self.folder):
            for name in files:
                with contextlib.suppress(OSError):
                    found.append((name, (Path(folder) / name).stat().st_size))
        return sorted(found)


def _import_what_commands_import(commands: list[Command], inputs: Path, place: Path) -> None:
    """So that each child need not: what a command imports as it runs, unless it is part of running itself."""
    for name in _LONG_TO_IMPORT:
        importlib.import_module(name)
    for number, command in enumerate(commands):
        folder = place / f"imports{number}"
        shutil.copytree(inputs, folder)
        before = set(sys.modules)

        def run(command: Command = command, before: set[str] = before) -> None:
            try:
                command.run([]) if callable(command.run) else main()
            finally:
                Path("imported").write_text("\n".join(name for name in sys.modules if name not in before))

        argv = [] if callable(command.run) else ["btcompress", *command.run]
        _waited(_forked(run, folder, argv))
        for name in (folder / "imported").read_text().split():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        shutil.rmtree(folder)


def _make_inputs() -> None:
    model = torch.nn.LSTM(16, 4)
    torch.save(model.state_dict(), "model.pt")
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(24, 3, 16)).astype(np.float32))
    tune = FineTuneStep(
        {"data": "data.npz", "teacher": Path("model.pt")}, TrainConfig(epochs=2, batch_size=8, cpu=True)
    )
    quick = FactorizeStep(tucker_rank=2, max_sweeps=2)
    save_recipe(Recipe("model.pt", "out.safetensors", (quick, tune, DenseStep(), quick)), Path("recipe.yaml"))
    compressed = btcompress.factorize(Path("model.pt"), tucker_rank=2)
    btcompress.checkpoint.writer.write(compressed, "model.bt.safetensors")


def _forked(function: Callable[[], None], folder: Path, argv: list[str] | None = None) -> int:
    """Start a function in a child of its own, in a folder beside which what it says is kept; the child's number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        for descriptor, ending in ((1, ".out"), (2, ".err")):
            file = os.open(folder.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
            os.close(file)
        sys.argv = argv or sys.argv
        function()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _waited(child: int) -> int:
    """The exit code of a child, negative for the signal that ended it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("a command hangs")
        time.sleep(0.001)


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder in it with nothing in it, by its name."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() or not any(path.iterdir()):
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else b""
    return found


if __name__ == "__main__":
    main_program()
