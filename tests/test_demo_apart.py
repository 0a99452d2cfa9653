"""A training in a process of its own: the same result, news of it, and no process left behind."""

import dataclasses

import psutil
import pytest
import torch

import btcompress
from btcompress.demo.apart import training_apart
from btcompress.demo.randomstart import random_start
from btcompress.demo.story import draw_data
from btcompress.errors import BTCompressError
from btcompress.finetune import finetune
from test_demo_story import TINY

CONFIG = dataclasses.replace(TINY.size.tuning, epochs=2).config(1)


@pytest.fixture(scope="module")
def request_(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    draw_data(TINY, folder / "train.npz", 1)
    torch.manual_seed(1)
    compressed = btcompress.factorize(TINY.model().state_dict(), layers=["lstm.*"], cp_rank=1, tucker_rank=1)
    btcompress.save(random_start(TINY.model, compressed, 1), folder / "start.safetensors")
    return TINY.finetuning(folder / "start.safetensors", folder / "train.npz", folder / "apart.safetensors")


@pytest.fixture(autouse=True)
def nothing_left():
    """Other tests of this process may have left processes of theirs."""
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


def test_result_and_epochs_are_those_of_a_training_in_this_process(request_):
    epochs = []
    here = dataclasses.replace(request_, output=request_.output.with_name("here.safetensors"))
    finetune(here, CONFIG, on_epoch=epochs.append)
    with training_apart(request_, CONFIG) as training:
        told = list(training.epochs())
    assert [epoch.metric for epoch in told] == [epoch.metric for epoch in epochs]
    assert request_.output.read_bytes() == here.output.read_bytes()


def test_error_arrives_and_nothing_is_left(request_):
    request = dataclasses.replace(request_, data="missing.npz")
    n_threads = torch.get_num_threads()
    with pytest.raises(BTCompressError, match=r"missing\.npz"), training_apart(request, CONFIG) as training:
        list(training.epochs())
    assert torch.get_num_threads() == n_threads


def test_process_ends_with_its_input(request_):
    config = dataclasses.replace(CONFIG, epochs=10_000)
    with training_apart(request_, config) as training:
        next(training.epochs())
        training._process.stdin.close()
        training._process.wait(20)
        with pytest.raises(BTCompressError, match="ended by itself, with code 1"):
            list(training.epochs())
