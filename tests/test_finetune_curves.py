import json
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from btcompress.errors import BTCompressError, OutputError
from tuning import draw, saved_pair, tune


@pytest.fixture
def files(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, 6))
    np.savez(tmp_path / "data.npz", x=draw(60, 5, 24))
    return tmp_path, compressed, tmp_path / "data.npz", dense


def curves(folder):
    """What TensorBoard reads: for each name the epochs and the values."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {
        name: ([event.step for event in reader.Scalars(name)], [event.value for event in reader.Scalars(name)])
        for name in reader.Tags()["scalars"]
    }


def rows(folder):
    return [json.loads(line) for line in (folder / "tuned.metrics.jsonl").read_text().splitlines()]


def check_curves_hold_the_metrics_file(folder):
    drawn = curves(folder / "board" / "tuned")
    assert set(drawn) == {"loss", "metric", "learning_rate", "cancellation"}
    for name, (epochs, values) in drawn.items():
        assert epochs == [1, 2, 3]
        assert values == pytest.approx([row[name] for row in rows(folder)], rel=1e-6)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("after", [None, 1, 3])
def test_curves_hold_each_epoch_once_though_training_was_interrupted(after, files):
    def on_epoch(epoch):
        if epoch.epoch == after:
            raise StoppedError

    board = files[0] / "board"
    if after is not None:
        with pytest.raises(StoppedError):
            tune(*files, tensorboard=board, on_epoch=on_epoch)
    tune(*files, tensorboard=board, resume=after is not None)
    check_curves_hold_the_metrics_file(files[0])


def test_curves_of_an_earlier_training_are_not_replaced_unless_forced(files):
    folder = files[0] / "board" / "tuned"
    folder.mkdir(parents=True)
    (folder / "precious").touch()
    with pytest.raises(OutputError, match=r"board.tuned already exists.*--force"):
        tune(*files, tensorboard=files[0] / "board")
    assert not (files[0] / "tuned.safetensors").exists()
    tune(*files, tensorboard=files[0] / "board", force=True)
    check_curves_hold_the_metrics_file(files[0])


def test_folder_of_curves_that_cannot_be_made_is_refused_in_words(files):
    (files[0] / "board").touch()
    with pytest.raises(OutputError, match=r"board.tuned cannot be written to"):
        tune(*files, tensorboard=files[0] / "board")


def test_missing_tensorboard_is_named_with_what_to_install_before_anything_is_written(files, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    before = sorted(files[0].iterdir())
    with pytest.raises(BTCompressError, match=r"btcompress\[tensorboard\]"):
        tune(*files, tensorboard=files[0] / "board")
    assert sorted(files[0].iterdir()) == before
