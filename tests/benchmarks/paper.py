"""The tables and figures of docs/paper.md: three tasks, block terms beside their rivals, from the data to the pictures.

    python tests/benchmarks/paper.py FOLDER

For each task, size and seed: a dense model, trained well; the same in block terms, as a tensor train, of low rank and
rounded, from it and from scratch, and the dense model with fewer hidden units. Then all of them on noisy inputs, block
terms of several ranks, and of several orders. Learning rates are searched on seed 0, by the examples held back.

One JSON line for each thing measured goes to standard output; ``FOLDER/tables.md`` has the tables of all that is in the
folder, ``FOLDER/trainings.md`` every training, and ``FOLDER/paper_*.png`` are the figures. What is in the folder is not
made again, and a training that was interrupted goes on behind its last epoch: the same command again ends in the same
tables. A part may be asked for first and the rest later. The command may run several times at once, which
``--processes`` sees to as well: all share the work. Plan for 8 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from paper_figures import draw_figures
from paper_records import Measured, Noisy, wait_for
from paper_settings import TASKS, Settings, Tasks, keep_settings, quick, tiny, unsearched
from paper_study import FORMS, STUDIES, Asked, Paper, Study
from paper_table import tables, trainings

from btcompress.checkpoint import replacing
from btcompress.errors import BTCompressError


def arguments(given: Sequence[str] | None, tasks: Tasks) -> argparse.Namespace:
    """The arguments, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where models, tables and figures go")
    names = list(dict.fromkeys(name for of_size in tasks.values() for name in of_size))
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, help="all by default")
    parser.add_argument("--sizes", nargs="+", choices=tasks, default=list(tasks), help="likewise")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="0 1 2 by default")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="beside the dense model")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES), help="which tables")
    ranks_of = Settings().ranks_of
    parser.add_argument(
        "--ranks-of", nargs="+", metavar="TASK-SIZE", default=ranks_of, help=f"{' '.join(ranks_of)} by default"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    parser.add_argument("--processes", type=int, default=1, help="which share the work")
    parser.add_argument("--unsearched", action="store_true", help="train all at the tasks' own rates, in less time")
    parser.add_argument("--quick", action="store_true", help="everything tiny: tries the script, and measures nothing")
    parser.add_argument("--tables-only", action="store_true", help="make nothing but tables and figures")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None, tasks: Tasks = TASKS) -> int:
    """Read the arguments, and do what is not done."""
    args = arguments(given, tasks)
    torch.set_num_threads(args.threads)
    try:
        with _helped(sys.argv[1:] if given is None else given, args.processes - 1):
            failures = _paper(args, tasks)
    except (BTCompressError, OSError) as error:
        failures = [str(error)]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 2 if failures else 0


@contextmanager
def _helped(given: Sequence[str], helpers: int) -> Iterator[None]:
    """Let so many more processes do the same; once this one has ended, so have they."""
    command = [sys.executable, __file__, *given, "--processes", "1"]
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(helpers)]
    try:
        yield
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.terminate()


def _paper(args: argparse.Namespace, tasks: Tasks) -> list[str]:
    settings = quick() if args.quick else unsearched() if args.unsearched else Settings()
    if args.quick:
        tasks = {size: {name: tiny(task) for name, task in own.items()} for size, own in tasks.items()}
    args.folder = args.folder.resolve()  # states of trainings know their files by name
    args.folder.mkdir(parents=True, exist_ok=True)
    named = {f"{name}-{size}": tasks[size][name] for size in args.sizes for name in args.tasks if name in tasks[size]}
    keep_settings(args.folder, settings, named)

    def tell(study: Study, record: Measured | Noisy) -> None:
        print(json.dumps({"study": study, **asdict(record)}), flush=True)

    failures = []
    if not args.tables_only:
        asked = Asked(args.tasks, args.sizes, args.seeds, args.forms, args.studies, args.ranks_of)
        paper = Paper(
            args.folder,
            settings,
            tasks,
            tell,
            lambda name, epoch: print(f"{name}: epoch {epoch.epoch}, {epoch.metric:.4g}", file=sys.stderr, flush=True),
        )
        failures = paper.do(asked)
    _write(args.folder, settings, tasks)
    return failures


def _write(folder: Path, settings: Settings, tasks: Tasks) -> None:
    """Write tables and figures of all that is in the folder."""
    found: dict[Study, list[Measured | Noisy]] = {study: [] for study in STUDIES}
    every = [path.name.rsplit("-", 2) for path in folder.iterdir() if path.is_dir()]
    seeds = sorted({int(parts[-1]) for parts in every if len(parts) == 3 and parts[-1].isdecimal()})
    names = list(dict.fromkeys(name for of_size in tasks.values() for name in of_size))
    everything = Asked(names, list(tasks), seeds, list(FORMS), STUDIES, [f"{n}-{s}" for s in tasks for n in names])
    told = Paper(
        folder, settings, tasks, lambda study, record: found[study].append(record), lambda *_: None, making=False
    )
    told.do(everything)
    with wait_for(folder / "tables.md"):
        for name, text in (("tables.md", tables(found, tasks)), ("trainings.md", trainings(folder, tasks))):
            with replacing(folder / name) as temporary:
                temporary.write_text(text)
        draw_figures(found, tasks, folder)


if __name__ == "__main__":
    sys.exit(main())
