"""Learning rates and ends of trainings."""

import pytest

from btcompress.finetune import TrainConfig
from btcompress.finetune.schedule import Schedule


def test_learning_rate_rises_and_then_falls_to_zero():
    schedule = Schedule(TrainConfig(warmup=0.25, epochs=4), 10)
    shares = [schedule.share(step) for step in range(41)]
    assert shares[:11] == sorted(shares[:11])
    assert shares[10] == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[40] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("best", "falls_after", "last_epoch"),
    [
        ([], None, 20),
        ([1, 2, 3, 4], None, 20),
        ([0, 0], None, 20),
        ([0, 0, 0], 3, 6),
        ([1, 1, 1, 1, 1], 4, 7),
        ([0, 0, 0, 4, 5], 3, 6),
        ([*range(1, 17), 16, 16, 16], 19, 20),
    ],
    ids=[
        "none done",
        "better each time",
        "not yet",
        "never better",
        "once better",
        "better while it falls",
        "near the end",
    ],
)
def test_training_ends_after_as_many_epochs_more_as_patience_has(best, falls_after, last_epoch):
    schedule = Schedule.of(TrainConfig(epochs=20, patience=3), 7, best)
    assert (schedule.falls_after, schedule.last_epoch) == (falls_after, last_epoch)


def test_without_patience_training_never_ends_early():
    assert Schedule.of(TrainConfig(epochs=20, patience=0), 7, [0] * 15).last_epoch == 20


@pytest.mark.parametrize("n_done", [2, 6, 18], ids=["warming up", "falling", "near the end"])
def test_learning_rate_falls_from_where_it_stands_without_a_jump(n_done):
    config = TrainConfig(epochs=20, patience=4, warmup=0.2)
    planned, falling = Schedule(config, 5), Schedule(config, 5, n_done)
    start, stop = 5 * n_done, 5 * falling.last_epoch
    assert [falling.share(step) for step in range(start + 1)] == [planned.share(step) for step in range(start + 1)]
    shares = [falling.share(step) for step in range(start, stop + 1)]
    assert shares == sorted(shares, reverse=True)
    assert shares[(stop - start) // 2] == pytest.approx(shares[0] / 2)
    assert shares[-1] == pytest.approx(0.0, abs=1e-12)


def test_each_epoch_that_was_undone_leaves_half_of_all_rates():
    config = TrainConfig(epochs=20, patience=4, warmup=0.2)
    for falls_after in (None, 6):
        whole, halved = (Schedule(config, 5, falls_after, setbacks) for setbacks in (0, 2))
        assert [halved.share(step) for step in range(50)] == [whole.share(step) / 4 for step in range(50)]
