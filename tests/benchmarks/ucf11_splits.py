"""Which clips of UCF11 a model learns from, which choose its epoch, and which it is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from btcompress.errors import BTCompressError

SplitName = Literal["groups", "random", "authors"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
#: Share of the groups, or of the clips, that is tested on; and of the others, that is held back to choose the epoch.
TEST_SHARE = HELD_SHARE = 0.2

_Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Positions of clips, sorted.

    Attributes:
        train: learned from.
        held: choose the learning rate and the epoch.
        test: measured on.
    """

    train: _Rows
    held: _Rows
    test: _Rows


def split(name: SplitName, y: _Rows, groups: tuple[str, ...], seed: int) -> Split:
    """Split clips in one of three ways.

    ``groups``: of each class a fifth of its groups is tested on, and a fifth of the others held back, so that nothing
    is measured on a scene that was learned from. ``random``: the same of all clips, wherever they come from; clips of
    one scene are then on both sides. ``authors``: the random split as the authors of the paper use it in their code:
    the same test clips, but all others are learned from, and the test clips choose the epoch as well, so that what is
    measured on them is too good.

    Args:
        name: the way.
        y: classes of the clips, shape ``(n_clips,)``.
        groups: their groups; each is of one class.
        seed: of the order in which groups or clips are taken.

    Raises:
        BTCompressError: a class has fewer than 3 groups, or there are too few clips.
    """
    generator = np.random.default_rng(seed)
    if name == "groups":
        return _by_groups(y, np.array(groups), generator)
    order = generator.permutation(len(y))
    n_train = int(len(y) * (1 - TEST_SHARE))
    others, test = order[:n_train], np.sort(order[n_train:])
    if name == "authors":
        return _checked(Split(np.sort(others), test, test))
    n_held = max(round(n_train * HELD_SHARE), 1)
    return _checked(Split(np.sort(others[n_held:]), np.sort(others[:n_held]), test))


def _by_groups(y: _Rows, groups: NDArray[np.str_], generator: np.random.Generator) -> Split:
    sides: dict[str, int] = {}
    for label in np.unique(y):
        names = np.unique(groups[y == label])
        n_test = max(round(len(names) * TEST_SHARE), 1)
        n_held = max(round((len(names) - n_test) * HELD_SHARE), 1)
        if len(names) < n_test + n_held + 1:
            raise BTCompressError(
                f"class {label} has {len(names)} groups, {', '.join(names)}, and at least 3 are needed: to learn from, "
                "to choose the epoch by and to test on. Give all groups of the data set."
            )
        order = generator.permutation(names)
        sides |= dict.fromkeys(order[:n_test], 2) | dict.fromkeys(order[n_test : n_test + n_held], 1)
    side = np.array([sides.get(group, 0) for group in groups])
    return Split(*(np.flatnonzero(side == number) for number in range(3)))


def _checked(parts: Split) -> Split:
    if not (len(parts.train) and len(parts.held) and len(parts.test)):
        raise BTCompressError("there are too few clips to split. Give all videos of the data set.")
    return parts
