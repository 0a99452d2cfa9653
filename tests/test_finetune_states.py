"""Sequences that start from states, and sequences of different lengths, as fine-tuning takes them."""

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.errors import BTCompressError, ShapeError
from btcompress.finetune.data import Arrays, open_data
from btcompress.finetune.networks import choose_lstm, student_of
from tuning import draw, saved_pair, tune

HIDDEN, N = 6, 30
SIZES = {"num_layers": 2, "bidirectional": True}


def states(n=N, layers=4, h=HIDDEN, c=HIDDEN):
    return {"h0": draw(n, layers, h, seed=1), "c0": draw(n, layers, c, seed=2)}


def ragged(n=N, **more):
    lengths = np.random.default_rng(3).integers(1, 9, n)
    return {"x": draw(lengths.sum(), 24), "lengths": lengths, **more}


def npz(folder, name="data.npz", **arrays):
    np.savez(folder / name, **arrays)
    return folder / name


@pytest.fixture
def pair(tmp_path):
    return saved_pair(tmp_path, nn.LSTM(24, HIDDEN, **SIZES))


@pytest.mark.parametrize("given", [{}, states()], ids=["from zeros", "from states"])
def test_each_sequence_counts_as_it_would_alone(given, pair, tmp_path):
    dense, compressed = pair
    data = open_data(str(npz(tmp_path, **ragged(**given))))
    step = tune(tmp_path, compressed, tmp_path / "data.npz", dense, held=str(tmp_path / "data.npz"))
    squares = torch.zeros(2)
    lstms = []
    for tensors in (torch.load(dense), btcompress.to_dense(compressed)):
        lstms.append(nn.LSTM(24, HIDDEN, batch_first=True, **SIZES))
        lstms[-1].load_state_dict(tensors)
    for row in range(N):
        batch = data.batch(torch.tensor([row]))
        theirs, ours = (lstm(batch.x, batch.state)[0].detach() for lstm in lstms)
        squares += torch.stack([(ours - theirs).square().sum(), theirs.square().sum()])
    assert step["before"] == pytest.approx((squares[0] / squares[1]).sqrt().item(), rel=1e-4)
    assert step["after"] < step["before"]


def test_a_network_starts_from_the_states_of_each_sequence(pair):
    compressed = btcompress.load(pair[1])
    entry = choose_lstm(compressed, None)
    arrays = ragged(**states())
    data = Arrays("x.npz", arrays["x"], None, arrays["lengths"], 1.0, None, arrays["h0"], arrays["c0"])
    network = student_of(compressed, entry)
    together = data.batch(torch.tensor([5, 2, 9]))
    hidden = network(together.x, together.lengths, together.state)[0]
    for row, own in zip((5, 2, 9), hidden, strict=True):
        alone = data.batch(torch.tensor([row]))
        torch.testing.assert_close(own[: alone.lengths[0]], network(alone.x, None, alone.state)[0][0])
        assert not torch.allclose(own[0], network(alone.x)[0][0, 0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (states(layers=2), r"h0 has states of shape \(2, 6\) .* starts from \(4, 6\)"),
        (states(h=5), r"h0 has states of shape \(4, 5\)"),
        (states(c=7), r"c0 has states of shape \(4, 7\) .* starts from \(4, 6\)"),
        ({"h0": states()["h0"]}, "h0 is there without c0, but the LSTM, of the class LSTM, starts from both"),
    ],
    ids=["layers", "h", "c", "no c"],
)
def test_states_of_other_sizes_than_the_lstm_has_are_refused(given, words, pair, tmp_path):
    with pytest.raises(ShapeError, match=words):
        tune(tmp_path, pair[1], npz(tmp_path, **ragged(**given)), pair[0])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_states_of_a_projected_lstm_have_two_sizes(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, HIDDEN, proj_size=4))
    assert tune(tmp_path, compressed, npz(tmp_path, **ragged(**states(layers=1, h=4))), dense)["n_train"] == 27
    with pytest.raises(ShapeError, match=r"h0 has states of shape \(1, 6\) .* starts from \(1, 4\)"):
        tune(tmp_path, compressed, npz(tmp_path, **ragged(**states(layers=1))), dense, name="no.safetensors")


@pytest.mark.parametrize("with_states", ["train", "val"])
def test_data_that_start_from_states_are_not_measured_on_data_that_do_not(with_states, pair, tmp_path):
    train, held = npz(tmp_path, **ragged()), npz(tmp_path, "val.npz", **ragged(**states()))
    if with_states == "train":
        train, held = held, train
    with pytest.raises(ShapeError, match=r"and initial states.*Give data of one kind"):
        tune(tmp_path, pair[1], train, pair[0], held=str(held))


def test_a_network_of_the_user_is_not_given_states(pair, tmp_path, monkeypatch):
    (tmp_path / "starting_network.py").write_text(
        "from torch import nn\ndef net(): return nn.LSTM(24, 6, 2, bidirectional=True)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BTCompressError, match="initial states"):
        tune(tmp_path, pair[1], npz(tmp_path, **ragged(y=np.zeros(N, int), **states())), model="starting_network:net")
