"""What a fit takes of memory: foreseen, refused before it begins, and named where it runs out all the same."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from btcompress import memory
from btcompress.compression import compress, factorize, plan_for
from btcompress.errors import MemoryLimitError
from btcompress.fit.demand import bytes_to_fit
from btcompress.nn import BTLinear
from btcompress.recipe import FactorizeStep
from btcompress.shapes import BlockTermShape

SHAPES = {
    "truncated": BlockTermShape((8, 8, 16), (16, 16, 16), (4, 4, 4)),
    "whole in float64": BlockTermShape((32, 16), (32, 32), (8, 8)),
    "low rank": BlockTermShape.low_rank(1024, 1024, 16),
}
KEY = "lstm.weight_ih_l0"
ASKED = {"cp_rank": 2, "tucker_rank": 3, "in_modes": (8, 10), "out_modes": (16, 8)}

#: Prints the bytes by which the largest resident set grows over that before the fit.
MEASURE = """
import sys, torch
from btcompress.blockterm import params_of
from btcompress.fit import FitOptions, fit, weight_error
from btcompress.shapes import BlockTermShape
from btcompress.yardsticks import truncated_svd
torch.set_num_threads(1)
options = FitOptions(max_sweeps=2)
for shape in (BlockTermShape((6, 8), (8, 6), (2, 2), 2), BlockTermShape.low_rank(48, 48, 3)):
    fit(torch.randn(48, 48), shape, options)
shape = BlockTermShape(*eval(sys.argv[1]))
matrix = torch.empty(shape.out_size, shape.in_size).normal_()

def resident(name):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the largest set so far is forgotten
before = resident("VmRSS:")
parts = (fit(matrix, shape, options).value.to(matrix.dtype),)
weight_error(matrix, parts, matrix.dtype)
truncated_svd(matrix, params_of(parts))
print(resident("VmHWM:") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", SHAPES)
def test_the_memory_foreseen_is_within_a_factor_of_two_of_what_a_fit_takes(name):
    shape = SHAPES[name]
    arguments = repr((shape.in_modes, shape.out_modes, shape.ranks, 1, 0, 0, 1, shape.core))
    done = subprocess.run([sys.executable, "-c", MEASURE, arguments], check=True, capture_output=True, text=True)
    foreseen = bytes_to_fit(shape, torch.float32)
    assert foreseen / 2 < int(done.stdout) < 2 * foreseen


def state():
    """An LSTM of 80 inputs and 32 hidden units."""
    torch.manual_seed(0)
    return {f"lstm.{key}": tensor.detach() for key, tensor in nn.LSTM(80, 32).state_dict().items()}


def test_what_would_not_fit_is_refused_before_it_begins_and_says_what_would_help():
    with memory.limited(10_000), pytest.raises(MemoryLimitError) as refused:
        compress(state(), FactorizeStep(**ASKED), lambda _: pytest.fail("a fit began"))
    said = str(refused.value)
    for words in (KEY, "CP rank 2", "Tucker ranks 3,3", "modes 8,10 by 16,8", "10.0 kB are allowed", "Lower the ranks"):
        assert words in said
    with memory.limited(10_000), pytest.raises(MemoryLimitError, match=f"{KEY}: pricing .* would take"):
        plan_for(state(), target_ratio=4)
    with memory.limited(10_000), pytest.raises(MemoryLimitError, match="the fit with CP rank"):
        BTLinear.from_dense(nn.Linear(64, 64), cp_rank=2, tucker_rank=2)
    with memory.limited(10**9):
        assert list(factorize(state(), **ASKED).matrices) == [KEY]


@pytest.mark.parametrize("shape", [
    BlockTermShape((4,) * 12, (2,) * 12, (4,) * 12, 2),
    BlockTermShape((240, 240), (32, 32), (240, 240), 99),
    BlockTermShape.low_rank(2**20, 2**20, 2**10),
])  # fmt: skip
def test_the_memory_foreseen_of_fits_beyond_any_machine_is_more_than_any_machine_has(shape):
    assert bytes_to_fit(shape, torch.float32) > 10**10


@pytest.mark.parametrize("error", [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
], ids=["Python", "CPU", "CUDA"])  # fmt: skip
def test_memory_that_runs_out_names_the_matrix_and_what_was_asked_for(error, monkeypatch):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("btcompress.fit.blockfit.compress", fail)
    with pytest.raises(MemoryLimitError, match=f"{KEY}: memory ran out in the fit with CP rank 2, Tucker ranks 3,3"):
        factorize(state(), **ASKED)
    monkeypatch.setattr("btcompress.plan.planner.price", fail)
    with pytest.raises(MemoryLimitError, match=f"{KEY}: memory ran out in pricing"):
        plan_for(state(), target_ratio=4)


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("a defect")

    monkeypatch.setattr("btcompress.fit.blockfit.compress", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        factorize(state(), **ASKED)
