import os

import pytest
import torch

os.environ.setdefault("COLUMNS", "120")


@pytest.fixture(autouse=True)
def _same_draws_every_run():
    torch.manual_seed(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
