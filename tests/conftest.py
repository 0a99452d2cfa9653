import gc
import math
import os
import sys

import pytest
import torch

from btcompress.cli import main
from btcompress.display import progress

os.environ.setdefault("COLUMNS", "120")
# The tensors of these tests are so small that more threads only wait for one another.
torch.set_num_threads(1)


def pytest_collection_finish():
    _never_look_for_garbage_again()


@pytest.hookimpl(trylast=True)  # after a file's own fixtures are gone
def pytest_runtest_teardown(item, nextitem):
    if nextitem is None or nextitem.path != item.path:
        _never_look_for_garbage_again()


def _never_look_for_garbage_again():
    """In what is there by now: thousands of tests and compilers, which every collection would walk through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_draws_every_run():
    torch.manual_seed(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def run(capsys, monkeypatch):
    """The command as ``btcompress`` runs it, in this process; returns stdout and stderr.

    Logs are told of no progress: how long a command takes here depends on what else runs.
    """
    monkeypatch.setattr(progress, "_FIRST_LINE", math.inf)

    def call(*arguments, cwd=None, code=0):
        monkeypatch.setattr(sys, "argv", ["btcompress", *map(str, arguments)])
        if cwd is not None:
            monkeypatch.chdir(cwd)
        capsys.readouterr()
        try:
            main()
            exit_code = 0
        except SystemExit as stop:
            exit_code = stop.code or 0
        out, err = capsys.readouterr()
        assert exit_code == code, out + err
        return out, err

    return call
