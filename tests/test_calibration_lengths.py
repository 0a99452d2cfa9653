"""Sequences by length, and batches of neighbours among them."""

import numpy as np
import torch
from torch import nn

from btcompress.calibration.lengths import by_length
from btcompress.checkpoint import find_recurrent, from_state_dict
from btcompress.finetune import TrainConfig
from btcompress.finetune.data import Arrays, Rows
from btcompress.finetune.loop import Trainer
from btcompress.finetune.networks import teacher_of
from btcompress.finetune.tasks import HiddenStates
from tuning import draw

LENGTHS = np.random.default_rng(0).integers(1, 31, size=300)


def test_sequences_come_in_the_order_of_their_lengths_each_once():
    data = Arrays("x.npz", draw(300, 30, 4), None, LENGTHS, 1.0)
    some = Rows(data, torch.arange(50, 250))
    for source, wanted in ((data, LENGTHS), (some, LENGTHS[50:250])):
        batch = by_length(source).batch(torch.arange(len(source)))
        assert batch.lengths.tolist() == sorted(wanted)
        numbers = [number for _, number in batch.names]
        assert sorted(numbers) == [number for _, number in source.batch(torch.arange(len(source))).names]
        assert torch.equal(batch.x, data.batch(torch.tensor(numbers)).x)
    whole = Arrays("x.npz", draw(300, 30, 4), None, None, 1.0)
    assert by_length(whole) is whole


def test_batches_of_neighbours_have_fewer_steps_and_hold_every_sequence_once_in_another_order_each_epoch():
    dense = from_state_dict(nn.LSTM(4, 3).state_dict())
    entry = find_recurrent(dense.tensors)[0]
    train = by_length(Arrays("x.npz", draw(300, 30, 4), None, LENGTHS, 1.0))
    held = Arrays("x.npz", draw(5, 3, 4), None, None, 1.0)
    steps, orders = {}, {}
    for neighbours in (False, True):
        seen = []

        class Spied(HiddenStates):
            def loss(self, outputs, batch, seen=seen):
                seen.append(batch)
                return super().loss(outputs, batch)

        network, teacher = (teacher_of(dense, entry, torch.float32) for _ in range(2))
        config = TrainConfig(epochs=2, batch_size=8, cpu=True, patience=0)
        Trainer(network, Spied(teacher), train, held, config, neighbours=neighbours).run()
        numbers = [[number for _, number in batch.names] for batch in seen]
        half = len(numbers) // 2
        for epoch in (numbers[:half], numbers[half:]):
            assert sorted(number for batch in epoch for number in batch) == list(range(300))
        assert numbers[:half] != numbers[half:]
        steps[neighbours], orders[neighbours] = sum(int(batch.lengths.max()) for batch in seen), numbers
    assert steps[True] < 0.75 * steps[False]
    lengths = [int(LENGTHS[batch].max()) for batch in orders[True]]
    assert lengths != sorted(lengths)
