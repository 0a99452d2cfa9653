"""Types as a program outside sees them, by two type checkers, from the installed wheel."""

import json
import sys

from smoke.commands import run


def check(environment):
    """Check the typed program, wrong uses included, and that every public type is known."""
    program = environment.work / "typed_program.py"
    checker = ["-m", "mypy", "--strict", "--config-file=", "--python-executable", environment.python]
    run(sys.executable, *checker, program, cwd=environment.work)
    pyright = [sys.executable, "-m", "basedpyright", "--pythonpath", environment.python]
    run(*pyright, "--project", _settings(environment), cwd=environment.work)
    # Whose types are not known: those of others that have none are none of this package's.
    run(*pyright, "--verifytypes", "btcompress", "--ignoreexternal", cwd=environment.work)


def _settings(environment):
    """As strict as pyright is, and with needless exceptions as errors; those are written as mypy's."""
    path = environment.work / "pyrightconfig.json"
    settings = {"include": ["typed_program.py"], "typeCheckingMode": "strict", "enableTypeIgnoreComments": True}
    path.write_text(json.dumps(settings | {"reportUnnecessaryTypeIgnoreComment": "error"}))
    return path
