import os

import pytest
import torch

os.environ.setdefault("COLUMNS", "120")
# The tensors of these tests are so small that more threads only wait for one another.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_draws_every_run():
    torch.manual_seed(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
