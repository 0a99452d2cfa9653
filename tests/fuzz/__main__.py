"""``python -m fuzz``, with ``tests/`` on the path: many cases, and one line of JSON at the end."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

from fuzz import campaign
from fuzz.board import KINDS


def main():
    """Run what the arguments ask for; exit code 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10**9, help="begin no case after this time")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind of file; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="folder for the inputs of faults")
    parser.add_argument("--processes", type=int, help="as many as there are processors where left out")
    parser.add_argument("--unguided", action="store_true", help="do without coverage, though atheris is there")
    asked = parser.parse_args()
    guided = not asked.unguided and importlib.util.find_spec("atheris") is not None
    summary = campaign.run(
        asked.cases,
        kinds=tuple(asked.kind or KINDS),
        seed=asked.seed,
        seconds=asked.seconds,
        guided=guided,
        keep=asked.keep,
        processes=asked.processes,
    )
    for group, count in summary.groups.most_common():
        print(f"{count:8,}  {group}", file=sys.stderr)
    print(json.dumps({"seed": asked.seed, "guided": guided, **summary.to_dict()}))
    return 1 if summary.faults else 0


if __name__ == "__main__":
    sys.exit(main())
