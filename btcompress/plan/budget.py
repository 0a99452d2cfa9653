"""Spending a budget of parameters: one option for each matrix, the least loss in all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

#: Seconds after which the best allocation found so far is taken.
_TIME_LIMIT = 20.0
#: The solver's tolerances are absolute; losses are scaled so that they do not matter.
_SCALE = 1e3

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
