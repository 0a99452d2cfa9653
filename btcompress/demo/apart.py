"""A training in a process of its own, while this one does something else."""

from __future__ import annotations

import os
import pickle  # of what this package itself hands from one of its processes to the other
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from btcompress import memory
from btcompress.errors import BTCompressError
from btcompress.finetune import Epoch, TrainConfig, finetune
from btcompress.finetune.request import FineTuneRequest


class TrainingApart:
    """A training that goes on in another process.

    Args:
        process: what :func:`training_apart` started.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def epochs(self) -> Iterator[Epoch]:
        """Each epoch, as soon as it is done; after the last one the result is written.

        Raises:
            BTCompressError: whatever ended the training.
        """
        answers: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        while True:
            try:
                answer = pickle.load(answers)  # noqa: S301 - of the process that was started here
            except (EOFError, pickle.UnpicklingError) as error:
                raise BTCompressError(
                    f"the process of a training ended by itself, with code {self._process.wait()}. Try it again."
                ) from error
            if answer is None:
                return
            if isinstance(answer, BTCompressError):
                raise answer
            yield answer


@contextmanager
def training_apart(request: FineTuneRequest, config: TrainConfig) -> Iterator[TrainingApart]:
    """Fine-tune in another process while inside this block; each of the two has half of the threads.

    Leaving the block ends that process, and so does the end of this one, however it comes about.

    Args:
        request: as :func:`btcompress.finetune.finetune` takes it; what is at its output is replaced.
        config: likewise.
    """
    n_threads = torch.get_num_threads()
    half = max(n_threads // 2, 1)
    # It finds what is found here, and nothing in the folder that it happens to run in.
    places = [each for each in sys.path if each and Path(each).is_absolute()]
    with subprocess.Popen(  # noqa: S603 - this Python, and a program of this package
        [sys.executable, "-P", "-m", __name__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": str(half)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            if process.stdin is not None:
                pickle.dump((request, config, memory.limit()), process.stdin)
                process.stdin.flush()  # and left open, until this process ends
            torch.set_num_threads(half)
            yield TrainingApart(process)
        finally:
            torch.set_num_threads(n_threads)
            process.kill()


def main() -> None:
    """Train what comes by standard input, and answer on standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal, and one says so
    request, config, limit = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that started this one
    threading.Thread(target=_end_with_input, daemon=True).start()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may come between the answers

    def answer(value: Epoch | BTCompressError | None) -> None:
        pickle.dump(value, answers)
        answers.flush()

    try:
        with memory.limited(limit):
            finetune(request, config, force=True, on_epoch=answer)
    except BTCompressError as error:
        answer(error)
    else:
        answer(None)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
