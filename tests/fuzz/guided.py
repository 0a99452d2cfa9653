"""Cases that coverage guides: atheris keeps what reaches new code of the package, and mutates it on with our mutators.

Run as ``python -m fuzz.guided FOLDER JOB``, as :mod:`fuzz.worker` is, for a job of one kind.
"""

import json
import os
import random
import sys
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["btcompress"]):
    from fuzz import limits
    from fuzz.cases import judge
    from fuzz.targets import TARGETS
    from fuzz.worker import Desk, prepare

CORPUS = Path(__file__).parent / "corpus"

#: Off: what libFuzzer would do about limits and signals, which are seen to here.
_OFF = (
    *(
        "rss_limit_mb",
        "malloc_limit_mb",
        "detect_leaks",
        "handle_abrt",
        "handle_segv",
        "handle_bus",
        "handle_fpe",
    ),
    *("handle_ill", "reload", "len_control"),
)
_LONGEST = 1 << 20
#: The share of mutations that are libFuzzer's own, and of the others that begin with a sound file again.
_BYTES, _ANEW = 0.1, 0.4


def main(folder, job):
    """Run the cases of one kind; faults are noted and do not end it."""
    prepare()
    (kind,) = job["kinds"]
    target = TARGETS[kind]
    with atheris.instrument_imports(include=["btcompress"]):
        samples = list(target.samples().values())
        _warm(kind, samples, folder)
    found = folder / "found"
    if not found.exists():
        found.mkdir()
        regressions = [path.read_bytes() for path in CORPUS.glob(f"{kind}-*")]
        for n, data in enumerate([*samples, *regressions]):
            (found / str(n)).write_bytes(data)
    desk, number = Desk(folder, job["keep"]), job["first"]

    def one(data):
        nonlocal number
        if number < job["cases"]:
            desk.take(number, kind, data)
            number += 1

    def mutate(data, most, seed):
        rng = random.Random(f"{job['seed']}:{seed}")
        if rng.random() < _BYTES:
            return atheris.Mutate(data, most)
        # Changes heaped on one another make files that are refused at the first look.
        try:
            return target.mutate(rng.choice(samples) if rng.random() < _ANEW else bytes(data), rng)[:most]
        except Exception:
            traceback.print_exc()
            os._exit(1)  # libFuzzer would wait for ever

    seconds = int(min(job["seconds"], 10**8))
    numbers = {
        "runs": job["cases"] - job["first"],
        "max_total_time": seconds,
        "seed": job["seed"] + 1,
        "max_len": _LONGEST,
        "timeout": 10**6,
    }
    options = {**numbers, **dict.fromkeys(_OFF, 0)}
    arguments = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(found)], one, custom_mutator=mutate)
    with limits.capped():
        atheris.Fuzz()


def _warm(kind, samples, folder):
    """Read the samples once, so that whatever this imports is instrumented."""
    place = folder / "warm"
    place.mkdir(exist_ok=True)
    for data in samples:
        judge(kind, data, place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
