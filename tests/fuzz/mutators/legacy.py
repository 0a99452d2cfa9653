"""Mutations of what ``torch.save`` wrote before zip archives: pickles one after the other, then the storages."""

import pickletools

from fuzz.mutators import pickles, raw


def mutate(data, rng):
    """One change in one of the pickles, or plain damage."""
    ends = list(_ends(data))
    if len(ends) < 2 or rng.random() < 0.15:
        return raw.mutate(data, rng)
    at = rng.randrange(len(ends)) if rng.random() < 0.4 else min(3, len(ends) - 1)
    start = ends[at - 1] if at else 0
    return data[:start] + pickles.mutate(data[start : ends[at]], rng) + data[ends[at] :]


def _ends(data):
    """Where each of the five pickles ends: magic number, protocol, system, value, keys of storages."""
    end = 0
    for _ in range(5):
        try:
            for _op, _argument, at in pickletools.genops(data[end:]):
                last = at
        except (ValueError, IndexError, OverflowError, RecursionError):
            return
        end += last + 1
        yield end
