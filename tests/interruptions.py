"""Trainings that are interrupted."""

from btcompress.finetune.loop import Trainer


class Interrupted(BaseException):
    """As Ctrl-C is: not an error, which some code lives with."""


def interrupt_epochs(monkeypatch, *counts):
    """Interrupt before some of the epochs of all trainings to come, the first of which is 1.

    Returns:
        A list that gets the number of each epoch, in its own training, as it begins or is interrupted.
    """
    epoch, seen = Trainer._epoch, []

    def interrupted(self, number):
        seen.append(number)
        if len(seen) in counts:
            raise Interrupted
        return epoch(self, number)

    monkeypatch.setattr(Trainer, "_epoch", interrupted)
    return seen
