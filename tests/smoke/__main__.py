"""``python -m smoke``, with ``tests/`` on the path: build, look into that, and try it on every Python found."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from smoke import packages, pythons, typed
from smoke.environment import Environment

ROOT = Path(__file__).parents[2]

#: The newest versions that are tried, and the oldest that the metadata allow.
NEWEST, OLDEST = ROOT / "constraints.txt", ROOT / "constraints-oldest.txt"


def main():
    """Stop with an error at the first thing that is not as it should be."""
    parser = argparse.ArgumentParser(prog="smoke", description=__doc__)
    parser.add_argument("--python", action="append", metavar="3.N", help="only this version of Python; may be repeated")
    asked = parser.parse_args()
    began = time.monotonic()

    def say(what):
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    found = pythons.found(packages.requires_python(ROOT), asked.python)
    say("Python " + ", ".join(map(str, found)))
    oldest = packages.oldest_python(ROOT)
    with tempfile.TemporaryDirectory(prefix="btcompress-smoke-") as folder:
        built = packages.build(ROOT, Path(folder), constraints=NEWEST)
        packages.check(built)
        say(f"{built.wheel.name} and {built.sdist.name} hold what they should")
        # Types are checked once: on the Python that has the tools for it.
        own = ".".join(map(str, sys.version_info[:2]))
        tries = [(OLDEST, python) for python in found if python.version == oldest]
        for constraints, python in [*tries, *((NEWEST, python) for python in found)]:
            with Environment(python, Path(folder), built.wheel, constraints) as environment:
                say(f"Python {python} with {constraints.name}: {environment.about()}")
                environment.run("program.py")
                if (constraints, python.version) == (NEWEST, own):
                    environment.run("typed_program.py")
                    typed.check(environment)
                    say("types are complete, and right for a program outside")
    say(f"tried in {len(tries) + len(found)} environments")
    if len(found) + len(tries) == 0:
        raise SystemExit("No Python was found to try it with.")


if __name__ == "__main__":
    main()
