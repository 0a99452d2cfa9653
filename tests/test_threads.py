import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from btcompress.fit import one_thread_for


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_matrices_of_ordinary_size_are_fitted_in_one_thread_and_larger_ones_in_all(two_threads):
    with one_thread_for(2**19):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with one_thread_for(2**19 + 1):
        assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), one_thread_for(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_results_are_the_same_bytes_for_any_number_of_threads(tmp_path, run):
    torch.save(nn.ModuleDict({"lstm": nn.LSTM(256, 128), "head": nn.Linear(128, 96)}).state_dict(), tmp_path / "m.pt")
    job = ["factorize", "m.pt", "-n", "2", "-r", "3", "--matrices", "input,recurrent,linear", "-o"]
    assert torch.get_num_threads() == 1
    run(*job, "1.out", cwd=tmp_path)
    results = {(tmp_path / "1.out").read_bytes()}
    for n_threads in ("2", "3"):
        env = {**os.environ, "OMP_NUM_THREADS": n_threads, "MKL_NUM_THREADS": n_threads}
        command = [sys.executable, "-m", "btcompress", *job, f"{n_threads}.out"]
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
        results.add((tmp_path / f"{n_threads}.out").read_bytes())
    assert len(results) == 1
