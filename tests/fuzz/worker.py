"""A process that runs cases one after the other, and may die of one.

Run as ``python -m fuzz.worker FOLDER JOB``, the job being JSON. It keeps its :class:`fuzz.board.Board` in the folder
and adds each fault as a line to ``faults.jsonl``; the file that is read at the moment lies in ``files/``.
"""

import faulthandler
import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from fuzz import broken, limits
from fuzz.board import Board
from fuzz.cases import case, judge
from fuzz.targets import SCHEDULE, TARGETS

#: Inputs kept of each group of faults.
_KEPT = 3


class Desk:
    """Judges cases, counts them, and keeps the inputs of faults.

    Args:
        folder: the worker's.
        keep: folder for inputs of faults, or None.
    """

    def __init__(self, folder, keep):
        self.board = Board(folder / "board")
        self.files = folder / "files"
        self.files.mkdir(exist_ok=True)
        self._faults = (folder / "faults.jsonl").open("a", buffering=1)
        self._keep, self._kept = keep and Path(keep), {}

        (folder / "begun").touch()

    def take(self, number, kind, data):
        """Judge one case."""
        self.board.begin(number, kind)
        verdict = judge(kind, data, self.files)
        self.board.end(verdict, limits.peak())
        if verdict.fault is not None:
            group = verdict.fault.group
            self._faults.write(json.dumps({"group": group, "number": number, "bytes": len(data)}) + "\n")
            self._kept[group] = self._kept.get(group, 0) + 1
            if self._keep is not None and self._kept[group] <= _KEPT:
                keep_input(self._keep, kind, data, verdict.fault.group, verdict.fault.text, number)


def keep_input(folder, kind, data, group, text, number):
    """Write the bytes of a fault and what it said beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{kind}-{hashlib.sha256(group.encode()).hexdigest()[:8]}-{number}"
    (folder / f"{name}.bin").write_bytes(data)
    (folder / f"{name}.txt").write_text(f"{group}\n\n{text}", encoding="utf-8", errors="backslashreplace")


def _made(job, number):
    kinds = tuple(kind for kind in SCHEDULE if kind in job["kinds"])
    return case(job["seed"], number, kinds)


def _given(job, number):
    path = Path(job["files"][number])
    return path.name.partition("-")[0], path.read_bytes()


def _run(desk, job):
    cases = _given if job["files"] else _made
    stop = time.monotonic() + job["seconds"]
    for number in range(job["first"], job["cases"], job["step"]):
        desk.take(number, *cases(job, number))
        if time.monotonic() > stop:
            break


def prepare():
    """Make the process fit for cases."""
    faulthandler.enable()
    torch.set_num_threads(1)


def main(folder, job):
    """Do a job to its end."""
    prepare()
    if job["check"] is not None:
        check = getattr(broken, job["check"])
        TARGETS.update({kind: replace(TARGETS[kind], check=check) for kind in job["kinds"]})
    desk = Desk(folder, job["keep"])
    for kind in job["kinds"]:
        case(0, 0, (kind,))  # the samples are made before the limits are set
    with limits.capped():
        _run(desk, job)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
