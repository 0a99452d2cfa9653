"""Layers that stay as they are, run once over each sequence; and layers cut out of a checkpoint."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.calibration.layers import dense_layers, layers_of
from btcompress.calibration.stacks import Room, Stack, Taught
from btcompress.checkpoint import find_recurrent, from_state_dict
from btcompress.finetune.data import Arrays
from btcompress.finetune.networks import student_of, teacher_of
from tuning import draw

CPU, WIDE = torch.device("cpu"), torch.float64


def made(lengths=None, states=False, **arguments):
    """An LSTM's checkpoint, its entry, sequences, and a stack for each layer that counts how often it runs."""
    torch.manual_seed(0)
    dense = from_state_dict(nn.LSTM(6, 4, num_layers=3, bidirectional=True, **arguments).double().state_dict())
    entry = find_recurrent(dense.tensors)[0]
    given = {}
    if states:
        sizes = {"h0": entry.proj_size or 4, "c0": 4}
        given = {name: draw(10, 6, size, seed=len(name)) for name, size in sizes.items()}
    data = Arrays("x.npz", draw(10, 5, 6).astype(np.float64), None, lengths, 1.0, **given)
    return dense, entry, data


def stacks_of(dense, entry, room):
    stacks, runs = [], []
    for layer, network in zip(layers_of(entry), dense_layers(entry, dense, WIDE), strict=True):
        network.register_forward_hook(lambda *_, n=layer.number: runs.append(n))
        stacks.append(Stack(layer, network, room, stacks[-1] if stacks else None))
    return stacks, runs


BATCHES = ([3, 1, 2], [0, 4, 5, 6, 7, 8, 9], [9, 0, 1], [2, 5, 7, 3])
LENGTHS = np.array([3, 5, 1, 4, 2, 5, 5, 1, 2, 3])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("arguments", [{}, {"proj_size": 3}, {"states": True}], ids=["plain", "projected", "states"])
def test_states_kept_are_those_that_the_whole_lstm_gives(lengths, arguments):
    dense, entry, data = made(lengths, **arguments)
    stacks, runs = stacks_of(dense, entry, Room())
    whole = teacher_of(dense, entry, WIDE)
    taught = Taught(data, stacks[-1], CPU, WIDE)
    for rows in BATCHES:
        batch = taught.batch(torch.tensor(rows))
        assert batch.x.shape[1] == (5 if lengths is None else lengths[rows].max())
        for ours, theirs in zip(batch.wanted, whole(batch.x, batch.lengths, batch.state), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert runs == [0, 1, 2, 0, 1, 2]


def test_a_layer_is_given_what_those_below_it_give():
    dense, entry, data = made(LENGTHS, states=True)
    stacks, _ = stacks_of(dense, entry, Room())
    layer, whole = layers_of(entry)[1], teacher_of(dense, replace(entry, num_layers=2), WIDE)
    batch = Taught(data, stacks[1], CPU, WIDE, layer, stacks[0]).batch(torch.tensor([1, 4, 8]))
    network = dense_layers(entry, dense, WIDE)[1]
    for ours, theirs in zip(network(batch.x, batch.lengths, batch.state), batch.wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    source = data.batch(torch.tensor([1, 4, 8]))
    state = tuple(each[:4] for each in source.to(CPU, WIDE).state)
    torch.testing.assert_close(batch.wanted[0], whole(source.x, source.lengths, state)[0])


def test_no_more_is_kept_than_there_is_room_for_and_what_is_kept_above_leaves_below():
    dense, entry, data = made()
    per_sequence = (5 * 8 + 2 * 6 * 4) * 8  # hidden states of the third layer, and the final ones of all
    room = Room(3 * per_sequence)
    stacks, runs = stacks_of(dense, entry, room)
    batches = [data.batch(torch.tensor(rows)) for rows in ([0, 1, 2], [3, 4])]
    for batch in batches:
        stacks[-1].states(batch)
    assert room.left == 0
    runs.clear()
    for batch in batches:
        stacks[-1].states(batch)
    assert runs == [0, 1, 2]
    stacks[-1].forget(batches[0].names)
    assert room.left == 3 * per_sequence
    nameless = replace(batches[0], names=None)
    stacks[-1].states(nameless)
    assert room.left == 3 * per_sequence


@pytest.mark.parametrize("prefix", ["", "model.rnn."])
def test_a_layer_cut_out_computes_as_it_does_within_and_goes_back_where_it_was(prefix):
    torch.manual_seed(0)
    module = nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True).double()
    tensors = {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
    options = {"matrices": ("input", "recurrent"), "allow_growth": True, "max_sweeps": 1}
    compressed = btcompress.factorize(tensors, **options)
    entry = find_recurrent(compressed.outline())[0]
    x = torch.from_numpy(draw(3, 5, 6)).double()
    below = x
    for layer in layers_of(entry):
        cut = layer.cut(compressed)
        below = student_of(cut, layer.entry)(below)[0]
        back = layer.put_back(compressed, {name: tensor + layer.number for name, tensor in cut.tensors.items()}, {})
        changed = {name for name in back.tensors if not torch.equal(back.tensors[name], compressed.tensors[name])}
        assert changed == ({name for name in back.tensors if "_l1" in name} if layer.number else set())
    torch.testing.assert_close(below, student_of(compressed, entry)(x)[0])
