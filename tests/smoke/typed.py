"""Types as a program outside sees them, by two type checkers, from the installed wheel."""

import json
import os
import sys

from smoke.commands import run


def check(environment):
    """Check the typed program, wrong uses included, and that the type of every public name is known."""
    program = environment.work / "typed_program.py"
    checker = ["-m", "mypy", "--strict", "--config-file=", "--python-executable", environment.python]
    run(sys.executable, *checker, program, cwd=environment.work)
    _pyright(environment, "--project", _settings(environment))
    # Types of other packages that are not known are none of this one's.
    told = _pyright(environment, "--verifytypes", "btcompress", "--ignoreexternal", "--outputjson", codes=(0, 1))
    symbols = json.loads(told)["typeCompleteness"]["symbols"]
    public = [symbol for symbol in symbols if symbol["isExported"]]
    # What is only inferred, as two checkers might do differently, is known: the program above is checked by both.
    unknown = [symbol for symbol in public if not symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"]]
    if unknown or not public:
        raise SystemExit(f"of {len(public)} types these are unknown:\n" + "\n".join(map(_shown, unknown)))


def _pyright(environment, *arguments, codes=(0,)):
    """Output of pyright, for which the environment's Python is the only one."""
    path = os.pathsep.join([str(environment.python.parent), os.environ["PATH"]])
    python = ("--pythonpath", environment.python)
    command = (sys.executable, "-m", "basedpyright", *python, *arguments)
    return run(*command, cwd=environment.work, codes=codes, PATH=path, VIRTUAL_ENV=str(environment.python.parents[1]))


def _settings(environment):
    """As strict as pyright is, and with needless exceptions as errors; those are written as mypy's."""
    path = environment.work / "pyrightconfig.json"
    settings = {"include": ["typed_program.py"], "typeCheckingMode": "strict", "enableTypeIgnoreComments": True}
    path.write_text(json.dumps(settings | {"reportUnnecessaryTypeIgnoreComment": "error"}))
    return path


def _shown(symbol):
    return f"{symbol['name']}: " + "; ".join(each["message"] for each in symbol["diagnostics"])
