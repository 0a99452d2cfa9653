"""Many cases in several processes: started, watched, started again where one dies, and summed up."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from fuzz.board import KINDS, Board
from fuzz.cases import OUTCOMES
from fuzz.targets import SCHEDULE, TARGETS
from fuzz.worker import keep_input

#: Seconds without any progress after which a worker is taken to hang where no signal reaches it.
_PATIENCE = 60
_STARTUP = 120


@dataclass
class Summary:
    """What came of a campaign.

    Attributes:
        kinds: the number of cases by kind and outcome.
        groups: the number of cases by group of faults.
        slowest: seconds of the processor, kind and number of the slowest case.
        peak_bytes: the most memory that any worker had.
        seconds: it took.
    """

    kinds: dict = field(default_factory=dict)
    groups: Counter = field(default_factory=Counter)
    slowest: tuple = (0.0, None, None)
    peak_bytes: int = 0
    seconds: float = 0.0

    @property
    def cases(self):
        """All that were run."""
        return sum(sum(outcomes.values()) for outcomes in self.kinds.values())

    @property
    def faults(self):
        """All that ended in one."""
        return sum(outcomes["fault"] for outcomes in self.kinds.values())

    def to_dict(self):
        """Plain values, as JSON writes them."""
        seconds, kind, number = self.slowest
        return {
            "cases": self.cases,
            "faults": self.faults,
            "kinds": self.kinds,
            "groups": dict(self.groups.most_common()),
            "slowest": {"seconds": round(seconds, 3), "kind": kind, "case": number},
            "peak_bytes": self.peak_bytes,
            "seconds": round(self.seconds, 1),
        }


def run(cases, *, kinds=KINDS, seed=0, seconds=float(10**9), guided=False, keep=None, processes=None, check=None):
    """Run cases, and sum up how they ended.

    Args:
        cases: how many, of all kinds together.
        kinds: names in :data:`fuzz.targets.TARGETS`.
        seed: of every draw.
        seconds: after which no new case begins.
        guided: let coverage guide the mutations, which needs atheris; cases then depend on what came before.
        keep: a folder for the inputs of faults and their tracebacks.
        processes: how many at a time; one for each processor where left out.
        check: name of a check in :mod:`fuzz.broken` to take instead, which shows that faults are found.
    """
    processes = processes or os.cpu_count() or 1
    jobs = _guided_jobs(cases, kinds, seed, processes) if guided else _seeded_jobs(cases, kinds, seed, processes)
    common = {
        "seconds": seconds,
        "guided": guided,
        "keep": None if keep is None else str(keep),
        "check": check,
        "files": [],
    }
    return _done([{**common, **job} for job in jobs], processes)


def replay(paths):
    """Read files whose names begin with their kind and a hyphen; see :func:`run`."""
    files = [str(path) for path in paths]
    common = {"seconds": float(10**9), "guided": False, "keep": None, "check": None, "files": files}
    return _done([{**common, **job} for job in _seeded_jobs(len(files), KINDS, 0, 1)], 1)


def _done(jobs, processes):
    """Do all jobs, so many at a time."""
    start = time.monotonic()
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    root = Path(tempfile.mkdtemp(prefix="btcompress-fuzz-", dir=place))
    try:
        folders = [root / str(n) for n in range(len(jobs))]
        waiting = SimpleQueue()
        for pair in zip(folders, jobs, strict=True):
            waiting.put(pair)
        with ThreadPoolExecutor(processes) as crews:
            for crew in [crews.submit(_work_off, waiting, start) for _ in range(min(processes, len(jobs)))]:
                crew.result()
        return _summed_up([folder for folder in folders if folder.exists()], time.monotonic() - start)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _seeded_jobs(cases, kinds, seed, processes):
    step = min(processes, cases)
    return [{"kinds": list(kinds), "seed": seed, "cases": cases, "first": n, "step": step} for n in range(step)]


def _guided_jobs(cases, kinds, seed, processes):
    """Jobs of one kind each, the heaviest first."""
    schedule = [kind for kind in SCHEDULE if kind in kinds]
    shares = {kind: cases * TARGETS[kind].weight // len(schedule) for kind in dict.fromkeys(schedule)}
    shares[schedule[0]] += cases - sum(shares.values())
    ordered = sorted(shares, key=lambda kind: -shares[kind])
    return [
        {"kinds": [kind], "seed": seed, "cases": shares[kind], "first": 0, "step": 1}
        for kind in ordered
        if shares[kind]
    ]


def _work_off(waiting, start):
    while True:
        try:
            folder, job = waiting.get_nowait()
        except Empty:
            return
        folder.mkdir()
        while (left := job["seconds"] - (time.monotonic() - start)) > 0 and not _finished(
            folder, {**job, "seconds": left}
        ):
            board = Board(folder / "board")
            job = {**job, "first": board["number"] + job["step"]}
            if job["first"] >= job["cases"]:
                break


def _finished(folder, job):
    """Whether a worker did its job to the end; where it died, the case in progress is a fault."""
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    program = "fuzz.guided" if job["guided"] else "fuzz.worker"
    with log.open("w") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", program, str(folder), json.dumps(job)], stdout=output, stderr=output, env=environment
        )
        hung = _watch(worker, folder)
    if worker.returncode == 0:
        return True
    if worker.returncode == 1 or not (folder / "begun").exists():
        raise RuntimeError(f"a worker failed by a fault of its own: {log.read_text(errors='replace')[-4000:]}")
    _bury(folder, job, "hung" if hung else f"died ({_cause(worker.returncode)})", log.read_text(errors="replace"))
    return False


def _watch(worker, folder):
    """Wait for a worker's end; one without progress is ended, with the place where it stands in its log."""
    last, since = None, time.monotonic()
    while True:
        try:
            worker.wait(0.5)
            return False
        except subprocess.TimeoutExpired:
            begun = (folder / "begun").exists()
            now = Board(folder / "board")["number"] if begun else None
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > (_PATIENCE if begun else _STARTUP):
                worker.send_signal(signal.SIGABRT)
                try:
                    worker.wait(10)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()
                return True


def _cause(code):
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _bury(folder, job, what, log):
    board = Board(folder / "board")
    kind, number = KINDS[board["kind"]], board["number"]
    board.died()
    place = next((line.strip() for line in log.splitlines() if "btcompress/" in line and "tests/" not in line), "")
    group = f"{kind}: the process {what} {place.rpartition('btcompress/')[2]}".strip()
    with (folder / "faults.jsonl").open("a") as faults:
        faults.write(json.dumps({"group": group, "number": number}) + "\n")
    if job["keep"] is not None:
        data = (folder / "files" / TARGETS[kind].file).read_bytes()
        keep_input(Path(job["keep"]), kind, data, group, log[-20000:], number)


def _summed_up(folders, seconds):
    total = Summary(seconds=seconds)
    for folder in folders:
        board = Board(folder / "board")
        for kind, counts in zip(KINDS, board.counts.tolist(), strict=True):
            if sum(counts):
                outcomes = total.kinds.setdefault(kind, dict.fromkeys(OUTCOMES, 0))
                for outcome, count in zip(OUTCOMES, counts, strict=True):
                    outcomes[outcome] += count
        slowest = board["slowest_us"] / 1e6, KINDS[board["slowest_kind"]], board["slowest_number"]
        total.slowest = max(total.slowest, slowest, key=lambda each: each[0])
        total.peak_bytes = max(total.peak_bytes, board["peak"])
        faults = folder / "faults.jsonl"
        total.groups.update(json.loads(line)["group"] for line in faults.read_text().splitlines())
    return total
