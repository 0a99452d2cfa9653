import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("kill_moments.py")


def test_killed_commands_leave_the_old_file_or_the_new_and_can_be_run_again():
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    command = [sys.executable, str(SCRIPT), "--trials", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    counts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(counts) >= 8
    assert all(each["targets old"] + each["targets new"] >= each["trials"] == 2 for each in counts)
