"""What is to be measured: the job of a bench as one value, checked when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from btcompress.errors import BTCompressError
from btcompress.seeds import check_seed
from btcompress.timings import Mode, Runtime

#: More sequences, steps or threads than anybody means.
_MOST, _MOST_THREADS = 10**6, 1024
#: Seconds that may be asked for.
_LEAST_SECONDS, _MOST_SECONDS = 0.01, 3600.0


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure, and how long.

    Attributes:
        lstm: name of the only LSTM to measure; None for all that have block terms.
        batch: numbers of sequences in a call.
        steps: numbers of steps of each.
        train: measure training as well as prediction.
        device: where to compute.
        threads: to compute in; None for as many as torch takes.
        seconds: for each case, shared by all ways.
        seed: of the inputs.
        runtimes: what runs the LSTMs.

    Raises:
        BTCompressError: a number is none, or out of range; there is no such runtime, or it runs nothing of that.
    """

    lstm: str | None = None
    batch: tuple[int, ...] = (1, 16)
    steps: tuple[int, ...] = (1, 50)
    train: bool = False
    device: str = "cpu"
    threads: int | None = None
    seconds: float = 2.0
    seed: int = 0
    runtimes: tuple[str, ...] = ("torch",)

    def __post_init__(self) -> None:
        for name in ("batch", "steps"):
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        if self.threads is not None and not _is_count(self.threads, _MOST_THREADS):
            raise BTCompressError(
                f"--threads {self.threads!r:.30} is no number of threads. Give a whole number from 1 to "
                f"{_MOST_THREADS}."
            )
        if not isinstance(self.seconds, int | float) or not _LEAST_SECONDS <= self.seconds <= _MOST_SECONDS:
            raise BTCompressError(
                f"--seconds {self.seconds!r:.30} is no time to measure a case. Give {_LEAST_SECONDS} to "
                f"{_MOST_SECONDS:.0f}."
            )
        check_seed(self.seed)
        self._check_runtimes()

    def _check_runtimes(self) -> None:
        known = get_args(Runtime)
        if not self.runtimes or not set(self.runtimes) <= set(known):
            shown = ",".join(f"{name!s:.20}" for name in self.runtimes[:8]) or "nothing"
            raise BTCompressError(f"--runtime {shown} is no list of runtimes. Give {', '.join(known)}, or both.")
        if self.runtimes == ("onnx",) and (self.train or self.device != "cpu"):
            what = "trains nothing" if self.train else "is measured on the CPU alone"
            raise BTCompressError(f"ONNX Runtime {what}. Take --runtime torch, or torch,onnx.")

    @property
    def runs_graphs(self) -> bool:
        """Whether ONNX Runtime is measured, which it is on the CPU alone."""
        return "onnx" in self.runtimes and self.device == "cpu"

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What is measured of each LSTM, batch size and number of steps."""
        return ("prediction", "training") if self.train else ("prediction",)


def _checked(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Each number once, in order."""
    given = (values,) if isinstance(values, int) else tuple(values)
    if not given or not all(_is_count(value, _MOST) for value in given):
        shown = ",".join(f"{value!r:.20}" for value in given[:8]) or "nothing"
        raise BTCompressError(
            f"--{name} {shown} is no list of sizes to measure. Give whole numbers from 1 to {_MOST:,}, such as 1,16."
        )
    return tuple(dict.fromkeys(given))


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
