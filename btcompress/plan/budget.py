"""Spending a budget of parameters or bytes: one option for each matrix, the least loss in all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

#: Seconds after which the best allocation found so far is taken.
_TIME_LIMIT = 20.0
#: The solver's tolerances are absolute; losses are scaled so that they do not matter.
_SCALE = 1e3

#: Parts that a budget is cut into to be spent fast, for up to so many matrices, and for each of more; at most.
_PARTS, _PARTS_EACH, _MOST_PARTS = 2**14, 2**6, 2**16
#: Losses for a parameter between which the price is sought, and by how many halvings of its logarithm.
_PRICES = (1e-40, 1e6)
_HALVINGS = 60

Option = tuple[int, float]


def allocate(options: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """The choice of one option for each matrix with the least sum of losses among those within the budget.

    A multiple-choice knapsack, solved as an integer program by HiGHS.

    Args:
        options: parameters and loss of each option, for each matrix; losses are not negative.
        budget: most parameters in all.

    Returns:
        The position of the option chosen for each matrix; None where even the smallest are too large.
    """
    found = _priced(options, budget)
    if found is None:
        return None
    bound = sum(each[n][1] for each, n in zip(options, found, strict=True))
    if bound == 0:
        return found
    # What alone loses more than a known choice in all is in no better one.
    owners, places = zip(
        *((m, n) for m, each in enumerate(options) for n, (_, loss) in enumerate(each) if loss <= bound), strict=True
    )
    params = np.array([options[m][n][0] for m, n in zip(owners, places, strict=True)], dtype=np.float64)
    losses = np.array([options[m][n][1] for m, n in zip(owners, places, strict=True)])
    columns = np.arange(len(owners))
    one_each = csr_array((np.ones(len(owners)), (np.array(owners), columns)))
    limit = float(budget)
    while True:
        solved = milp(
            losses / bound * _SCALE,
            integrality=np.ones(len(owners)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(params[None, :], -np.inf, limit)],
            options={"mip_rel_gap": 0.0, "time_limit": _TIME_LIMIT},
        )
        if solved.x is None:
            return found
        taken = np.flatnonzero(np.round(solved.x))
        choice = [places[column] for column in taken]
        total = sum(each[n][0] for each, n in zip(options, choice, strict=True))
        if total <= budget:
            better = sum(each[n][1] for each, n in zip(options, choice, strict=True)) < bound
            return choice if better else found
        # Within the solver's tolerance a choice may pass the limit by a few parameters.
        limit -= total - budget


def allocate_fast(options: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """As :func:`allocate`, but as good as can be had in parts of the budget: by dynamic programming, always fast.

    An integer program takes minutes to prove which of very many choices that are nearly alike is best. Sizes are
    rounded up to parts of the budget here, and what is left over in the end goes where it serves most.

    Args:
        options: size and loss of each option, for each matrix; losses are not negative.
        budget: most size in all.
    """
    found = _priced(options, budget)
    if found is None or budget < 1:
        return found
    parts = min(budget, max(_PARTS, _PARTS_EACH * len(options)), _MOST_PARTS)
    least = np.zeros(parts + 1)
    taken = []
    for each in options:
        losses = np.full(parts + 1, np.inf)
        choice = np.zeros(parts + 1, dtype=np.int32)
        for place, (size, loss) in enumerate(each):
            n_parts = -(-size * parts // budget)
            if n_parts > parts:
                continue
            reached = least[: parts + 1 - n_parts] + loss
            better = reached < losses[n_parts:]
            losses[n_parts:][better] = reached[better]
            choice[n_parts:][better] = place
        least = losses
        taken.append(choice)
    if np.isfinite(least[-1]):
        places, left = [], parts
        for each, choice in zip(reversed(options), reversed(taken), strict=True):
            places.append(int(choice[left]))
            left -= -(-each[places[-1]][0] * parts // budget)
        found = min((found, places[::-1]), key=lambda choice: _loss(options, choice))
    return _filled(options, found, budget)


def _loss(options: Sequence[Sequence[Option]], choice: Sequence[int]) -> float:
    return sum(each[n][1] for each, n in zip(options, choice, strict=True))


def _filled(options: Sequence[Sequence[Option]], choice: Sequence[int], budget: int) -> list[int]:
    """The choice with what it leaves of the budget spent, step by step where that lowers the loss most."""
    filled = list(choice)
    while True:
        left = budget - sum(each[n][0] for each, n in zip(options, filled, strict=True))
        steps = [
            (each[n][1] - loss, -m, place)
            for m, (each, n) in enumerate(zip(options, filled, strict=True))
            for place, (size, loss) in enumerate(each)
            if size <= each[n][0] + left and loss < each[n][1]
        ]
        if not steps:
            return filled
        _, m, place = max(steps)
        filled[-m] = place


def _priced(options: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """For each matrix the option of least loss at one price for every parameter, the lowest that the budget allows."""
    params = [np.array([n_params for n_params, _ in each], dtype=np.float64) for each in options]
    losses = [np.array([loss for _, loss in each]) for each in options]

    def choose(price: float) -> list[int]:
        # Of options that are as good at this price, the smaller.
        keys = [(some, loss + price * some) for some, loss in zip(params, losses, strict=True)]
        return [int(np.lexsort(key)[0]) for key in keys]

    def total(choice: Sequence[int]) -> float:
        return sum(float(some[n]) for some, n in zip(params, choice, strict=True))

    smallest = [int(np.lexsort((loss, some))[0]) for some, loss in zip(params, losses, strict=True)]
    if total(smallest) > budget:
        return None
    best = smallest
    low, high = _PRICES
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        choice = choose(middle)
        if total(choice) <= budget:
            best, high = choice, middle
        else:
            low = middle
    return best
