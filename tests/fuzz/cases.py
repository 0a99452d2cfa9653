"""One case: bytes made by a seed and a number, read within limits, and judged."""

import random
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import btcompress
from btcompress import memory
from btcompress.errors import BTCompressError
from fuzz import canary, limits
from fuzz.files import WrongAnswerError
from fuzz.targets import SCHEDULE, TARGETS

OUTCOMES = ("right", "refused", "fault")

_PACKAGE = str(Path(btcompress.__file__).parent)


class TooMuchError(Exception):
    """More memory was taken than was allowed."""


class ExecutedError(Exception):
    """Something in the file was run."""


@dataclass(frozen=True)
class Fault:
    """What a case brought to light.

    Attributes:
        group: what all cases of the same fault have in common.
        text: the traceback.
    """

    group: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """How a case ended.

    Attributes:
        outcome: one of :data:`OUTCOMES`.
        seconds: of the processor.
        fault: if it is one.
    """

    outcome: str
    seconds: float
    fault: Fault | None = None


def case(seed, number, kinds=SCHEDULE):
    """The kind and the bytes of a case; the same for the same seed and number on every machine."""
    kind = kinds[number % len(kinds)]
    rng = random.Random(f"{seed}:{number}:{kind}")
    target = TARGETS[kind]
    return kind, target.mutate(rng.choice(list(target.samples().values())), rng)


def judge(kind, data, folder, seconds=limits.SECONDS):
    """Read bytes as a file of this kind, and say how that ended.

    Args:
        kind: one of :data:`fuzz.targets.TARGETS`.
        data: the bytes.
        folder: where the file is written.
        seconds: of the processor that it may take.
    """
    canary.rung.clear()
    before, start = limits.peak(), time.process_time()
    outcome, error = "right", None
    try:
        with limits.within(seconds), memory.limited(limits.ALLOWED), warnings.catch_warnings(action="ignore"):
            TARGETS[kind].check(data, folder)
    except BTCompressError as refusal:
        outcome, error = "refused", _hidden(refusal)
    except (Exception, limits.OutOfTime, SystemExit) as fault:
        error = fault
    taken = time.process_time() - start
    if canary.rung:
        error = ExecutedError("the file made the reader run something")
    grown = limits.peak() - before
    if error is None and grown > limits.GROWTH:
        error = TooMuchError(f"the process grew by more than {limits.GROWTH / 2**30:.2f} GiB")
    if grown > limits.GROWTH:
        limits.forget_peak()
    if error is None:
        return Verdict(outcome, taken)
    return Verdict(
        "fault", taken, Fault(f"{kind}: {group_of(error)}", "".join(traceback.format_exception(error))[-20000:])
    )


def _hidden(refusal):
    """An allocation that failed although its size should have been known before, where a refusal stands for it."""
    error = refusal
    while error is not None:
        if memory.is_out_of_memory(error) and not isinstance(error, BTCompressError):
            return error
        error = error.__cause__ or error.__context__
    return None


def group_of(error):
    """The kind of an error and the innermost places in the package that it passed: one line for all of its like."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_PACKAGE)]
    places = [f"{Path(frame.filename).relative_to(_PACKAGE)}:{frame.lineno}" for frame in frames[-2:]]
    what = type(error).__name__
    if isinstance(error, WrongAnswerError):
        what += f": {error.what}"
    return f"{what} at {' > '.join(places)}" if places else what
