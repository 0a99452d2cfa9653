import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from btcompress.errors import BTCompressError
from btcompress.plan import Wish
from btcompress.plan.budget import allocate, allocate_fast

OPTIONS = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1, width=32)), min_size=1, max_size=6), min_size=1, max_size=4
)


def best_by_trying_all(options, budget):
    choices = itertools.product(*options)
    losses = [sum(loss for _, loss in each) for each in choices if sum(n_params for n_params, _ in each) <= budget]
    return min(losses, default=None)


@settings(max_examples=150, deadline=None)
@given(OPTIONS, st.integers(0, 200), st.sampled_from([1.0, 1e-9]))
def test_allocation_is_the_best_of_all_within_the_budget(options, budget, scale):
    options = [[(n_params, loss * scale) for n_params, loss in each] for each in options]
    found = allocate(options, budget)
    best = best_by_trying_all(options, budget)
    if best is None:
        assert found is None
        return
    chosen = [each[n] for each, n in zip(options, found, strict=True)]
    assert sum(n_params for n_params, _ in chosen) <= budget
    assert sum(loss for _, loss in chosen) == pytest.approx(best, rel=1e-6, abs=1e-12 * scale)


@settings(max_examples=150, deadline=None)
@given(OPTIONS, st.integers(0, 200), st.sampled_from([1, 10**6]))
def test_fast_allocation_is_the_best_as_far_as_parts_of_the_budget_tell(options, budget, scale):
    """Exact where a part is one; with large sizes, no worse than with a budget smaller by a part for each matrix."""
    options = [[(size * scale, loss) for size, loss in each] for each in options]
    found = allocate_fast(options, budget * scale)
    best = best_by_trying_all(options, budget * scale)
    if best is None:
        assert found is None
        return
    chosen = [each[n] for each, n in zip(options, found, strict=True)]
    assert sum(size for size, _ in chosen) <= budget * scale
    assert sum(loss for _, loss in chosen) >= best - 1e-9
    less = budget * scale * (1 - len(options) / 2**14) if scale > 1 else budget
    nearly = best_by_trying_all(options, less)
    assert nearly is None or sum(loss for _, loss in chosen) <= nearly + 1e-9


def test_fast_allocation_takes_matrices_that_are_all_alike():
    """Twenty curves of which no one is better, each with a jump: an integer program tries for minutes."""
    options = [[(200 * n + m, 1 - 0.004 * n) for n in range(1, 60)] + [(17000 + m, 0.06)] for m in range(20)]
    found = allocate_fast(options, 200_000)
    assert 0 <= 200_000 - sum(options[m][n][0] for m, n in enumerate(found)) < 200 * 2
    assert sum(n == 59 for n in found) == 11


def test_fast_allocation_never_passes_the_budget_by_less_than_a_part():
    options = [[(1, 1.0), (333_334, 0.0)]] * 3
    assert sorted(allocate_fast(options, 10**6)) == [0, 1, 1]
    assert allocate_fast(options, 3 * 333_334) == [1, 1, 1]


def test_one_price_for_all_is_not_enough_and_the_program_finds_what_is():
    # At any price the second matrix takes all or nothing of its large option, and the first its small one.
    options = [[(1, 1.0), (6, 0.4)], [(1, 1.0), (10, 0.0)]]
    assert allocate(options, 10) == [1, 0]
    assert allocate(options, 11) == [0, 1]
    assert allocate(options, 16) == [1, 1]
    assert allocate(options, 1) is None


def best_by_table(options, budget):
    """The least loss for every number of parameters, matrix after matrix."""
    table = {0: 0.0}
    for each in options:
        following = {}
        for spent, lost in table.items():
            for n_params, loss in each:
                total = spent + n_params
                if total <= budget:
                    following[total] = min(following.get(total, math.inf), lost + loss)
        table = following
    return min(table.values())


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e-12])
def test_allocation_is_the_best_however_small_the_losses(scale):
    draw = random.Random(0)
    curves = [sorted((draw.random() for _ in range(25)), reverse=True) for _ in range(8)]
    options = [[(3 + 7 * n + draw.randrange(6), loss * scale) for n, loss in enumerate(curve)] for curve in curves]
    for budget in (100, 307, 700):
        found = allocate(options, budget)
        lost = sum(each[n][1] for each, n in zip(options, found, strict=True))
        assert lost == pytest.approx(best_by_table(options, budget), rel=1e-9, abs=0)


def test_a_solver_that_passes_the_limit_is_held_to_it(monkeypatch):
    def lenient(losses, *, constraints, **arguments):
        one_each, limit = constraints
        return milp(losses, constraints=[one_each, LinearConstraint(limit.A, -np.inf, limit.ub + 3)], **arguments)

    monkeypatch.setattr("btcompress.plan.budget.milp", lenient)
    options = [[(1, 1.0), (5, 0.4), (6, 0.3)], [(1, 1.0), (10, 0.0)]]
    found = allocate(options, 13)
    assert sum(each[n][0] for each, n in zip(options, found, strict=True)) <= 13


def test_large_budgets_are_kept_to_the_last_parameter():
    options = [[(10**9 + n, 1 / (n + 1)) for n in range(50)] for _ in range(6)]
    found = allocate(options, 6 * 10**9 + 100)
    assert sum(options[m][n][0] for m, n in enumerate(found)) <= 6 * 10**9 + 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "nothing is wished for"),
        ({"target_ratio": 2, "max_params": 5}, "Give one of them"),
        ({"target_ratio": 2, "max_bytes": 5}, "Give one of them"),
        ({"max_params": 2, "max_bytes": 5}, "Give one of them"),
        ({"max_bytes": 0}, "the most bytes must be at least 1"),
        ({"max_params": 2, "of": "bytes"}, "of says bytes"),
        ({"max_params": 2, "of": "file"}, "of says file"),
        ({"target_ratio": 1}, "above 1"),
        ({"target_ratio": float("nan")}, "above 1"),
        ({"target_ratio": float("inf")}, "above 1"),
        ({"max_params": 0}, "at least 1"),
        ({"max_error": 0}, "between 0 and 1"),
        ({"max_error": 1.0}, "between 0 and 1"),
        ({"max_error": float("nan")}, "between 0 and 1"),
        ({"max_activation_error": 0}, "largest activation error must be between 0 and 1"),
        ({"max_activation_error": 1.5}, "largest activation error must be between 0 and 1"),
        ({"max_error": 0.5, "max_activation_error": 0.5}, "both given"),
        ({"max_error": 0.5, "of": "layer"}, "matrices, model"),
    ],
    ids=str,
)
def test_wishes_that_mean_nothing_are_refused(arguments, words):
    with pytest.raises(BTCompressError, match=words):
        Wish(**arguments)


@given(st.integers(1, 10**9), st.integers(0, 10**9), st.floats(1.001, 10**6))
def test_a_budget_meets_its_ratio(matrices, others, ratio):
    for of, beside in (("matrices", 0), ("model", others)):
        budget = Wish(target_ratio=ratio, of=of).budget(matrices, matrices + others)
        assert (budget + beside) * ratio <= (matrices + beside) * (1 + 1e-9)
        assert (budget + beside + 1) * ratio > (matrices + beside) * (1 - 1e-9)


@given(st.integers(1, 10**9), st.integers(0, 10**9), st.integers(0, 10**5), st.floats(1.001, 10**6))
def test_a_budget_of_bytes_meets_its_ratio(matrices, others, header, ratio):
    for of, beside, before in (("bytes", 0, matrices), ("file", others + header, matrices + others)):
        budget = Wish(target_ratio=ratio, of=of).budget(matrices, matrices + others, others + header)
        assert (budget + beside) * ratio <= before * (1 + 1e-9)
        assert (budget + beside + 1) * ratio > before * (1 - 1e-9)


def test_wishes_know_what_they_are_in():
    assert [Wish(max_bytes=9, of=of).in_bytes for of in ("matrices", "model", "bytes", "file")] == [True] * 4
    assert [Wish(max_bytes=9, of=of).of_all for of in ("matrices", "model", "bytes", "file")] == [False, True] * 2
    assert [Wish(target_ratio=9, of=of).in_bytes for of in ("matrices", "model", "bytes", "file")] == [False] * 2 + [
        True
    ] * 2
    assert Wish(max_bytes=70, of="file").budget(100, 150, 30) == 40
    assert Wish(max_bytes=70).budget(100, 150, 30) == 70
    assert Wish(max_bytes=70, of="model").budgets([60, 40], 150, 30) == [24, 16]
    assert Wish(target_ratio=2, of="bytes").budgets([60, 40], 150) == [30, 20]
    assert str(Wish(target_ratio=8, of="bytes")) == "a ratio of at least 8 in bytes for the matrices"
    assert str(Wish(max_bytes=4096, of="model")) == "at most 4,096 bytes for the file"


def test_budgets_by_number_and_by_error():
    assert Wish(max_params=70).budget(100, 150) == 70
    assert Wish(max_params=70, of="model").budget(100, 150) == 20
    assert Wish(max_error=0.5).budget(100, 150) is None
    assert Wish(target_ratio=3).budget(300, 400) == 100
