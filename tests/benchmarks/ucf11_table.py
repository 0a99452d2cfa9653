"""What the trainings on UCF11 came to, as a table: means and standard errors over seeds, the paper's figures beside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray

#: Ye et al., "Learning Compact Recurrent Neural Networks with Block-Term Tensor Decomposition", CVPR 2018: accuracy
#: on UCF11, of the dense LSTM and of one trained from scratch in block terms of 3,392 weights (order 4, N=2, R=4).
PAPER = {"dense": 0.697, "from scratch, N=2 R=4": 0.853}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model on one split with one seed.

    Attributes:
        split: how the clips were split.
        seed: of the split, the first weights and the order of training.
        model: what was trained, and from where.
        weights: those of ``W``, the input-to-hidden matrix.
        weights_ratio: how many times fewer these are than the dense ones.
        model_ratio: likewise, of all parameters of the model.
        learning_rate: of the training; None where there was none.
        held: accuracy on the clips that choose the epoch; None where nothing was trained.
        test: accuracy on the test clips.
        test_error: its standard error, as :func:`standard_error` has it.
        epochs: that were trained.
    """

    split: str
    seed: int
    model: str
    weights: int
    weights_ratio: float
    model_ratio: float
    learning_rate: float | None
    held: float | None
    test: float
    test_error: float
    epochs: int


def standard_error(right: NDArray[np.bool_], groups: Sequence[str]) -> float:
    """Standard error of a share of clips, where those of one group are no independent draws.

    That of a ratio of sums over ``G`` groups (Cochran, "Sampling Techniques", 1977, section 9): with ``r_g`` of the
    ``n_g`` clips of a group right, and ``p`` of all ``n``, it is ``sqrt(G / (G - 1) sum (r_g - p n_g)^2) / n``. NaN
    for a single group.
    """
    names, of = np.unique(np.array(groups), return_inverse=True)
    if len(names) < 2:
        return math.nan
    residuals = np.bincount(of, right - right.mean())
    return math.sqrt(len(names) / (len(names) - 1) * float((residuals**2).sum())) / len(right)


def table(outcomes: Iterable[Outcome], *, of_paper: bool) -> str:
    """Markdown: one table for each split, one row for each model, in the order of their first outcomes.

    Args:
        outcomes: of all splits and seeds.
        of_paper: sizes and modes are those of the paper, whose figures may stand beside.
    """
    found = list(outcomes)
    names = dict.fromkeys(one.split for one in found)
    return "\n\n".join(_of_split(name, found, PAPER if of_paper else {}) for name in names) + "\n"


def _of_split(name: str, outcomes: Sequence[Outcome], paper: Mapping[str, float]) -> str:
    own = [one for one in outcomes if one.split == name]
    models = dict.fromkeys(one.model for one in own)
    rows = [_row([one for one in own if one.model == model], paper.get(model)) for model in models]
    titles = (
        "model",
        "weights of `W`",
        "weights ratio",
        "model ratio",
        "learning rate",
        "test accuracy",
        "standard error",
        "each seed",
        "Ye et al. (2018)",
    )
    lines = [titles, ("---",) * len(titles), *rows]
    return f"**{_SPLITS.get(name, name)}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


_SPLITS = {
    "groups": "Split by groups: no scene is on both sides",
    "random": "Random split: clips of one scene are on both sides",
    "authors": "Random split as in the authors' code: the test clips choose the epoch too",
}


def _row(outcomes: Sequence[Outcome], paper: float | None) -> tuple[str, ...]:
    first, tests = outcomes[0], [one.test for one in outcomes]
    error = stdev(tests) / math.sqrt(len(tests)) if len(tests) > 1 else first.test_error
    return (
        first.model,
        _spread([f"{one.weights:,}" for one in outcomes]),
        _spread([f"{one.weights_ratio:,.0f}" for one in outcomes]),
        _spread([f"{one.model_ratio:,.0f}" for one in outcomes]),
        "" if first.learning_rate is None else f"{first.learning_rate:g}",
        _percent(mean(tests)),
        f"{100 * error:.1f}",
        ", ".join(f"{one.seed}: {_percent(one.test)}" for one in sorted(outcomes, key=lambda one: one.seed)),
        "" if paper is None else _percent(paper),
    )


def _spread(texts: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
