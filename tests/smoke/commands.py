"""Commands whose output is shown only when they fail."""

import os
import subprocess


def run(*command, cwd=None, codes=(0,), **environment):
    """Standard output of a command; ends the program with all of its output where its code is none of these."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=variables | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in codes:
        shown = " ".join(map(str, command))
        raise SystemExit(f"{shown}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
