"""Draws that an error needs and the work allows: the error that importance draws leave is the one that is promised."""

import math

import numpy as np
import pytest

from mxlogit.diagnostics.thresholds import largest_pareto_k
from mxlogit.inference import budgets
from mxlogit.inference.budgets import Budget, draws_for

BUDGETS = {name: value for name, value in vars(budgets).items() if isinstance(value, Budget)}


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("people", [1, 37, 2_000, 50_000, 3_000_000])
@pytest.mark.parametrize("wanted", [0.0, 3.0, 100.0, 1e9, math.inf])
def test_draws_stay_within_work_and_number(name, people, wanted):
    budget = BUDGETS[name]
    draws = budget.draws(people, wanted)
    assert draws % budget.multiple == 0
    assert 0 < draws <= budget.most
    assert draws <= budget.least or draws * people <= budget.work
    # No fewer than wanted, unless that is not allowed; and none that nobody wants.
    allowed = budget.draws(people)
    assert draws == allowed if wanted > allowed else wanted <= draws < wanted + budget.multiple + 1


@pytest.mark.parametrize(("sd", "people"), [(0.3, 40), (0.3, 4_000), (0.7, 400)])
def test_the_error_of_a_mode_is_the_one_asked_for(sd, people):
    """Means of normal tastes with known variance: the score of a person is the weighted mean of its draws.

    Draws come from a normal wider than the posterior. However many people there are, the error of the maximum is that
    share of its standard deviation.
    """
    rng, wider = np.random.default_rng(0), 1.0 + sd
    ess = math.sqrt(2.0 * wider**2 - 1.0) / wider**2
    draws = draws_for(0.1, ess, people, Budget(4, 100_000, 1e12))
    errors = []
    for _ in range(60):
        z = wider * rng.standard_normal((people, draws))
        log_weights = -0.5 * z**2 + 0.5 * (z / wider) ** 2
        weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
        score = (weights * z).sum(1) / weights.sum(1)
        # The information of a person is one, a posterior standard deviation of the mean 1 / sqrt(people).
        errors.append(score.sum() / math.sqrt(people))
    found = float(np.sqrt(np.mean(np.square(errors))))
    # The variance of self-normalised means is that of weights times that of the draws they come from: of the same order.
    lone = math.sqrt(1.0 / draws)
    assert found == pytest.approx(math.hypot(0.1, lone), rel=0.5), (found, lone)


def test_limits_of_pareto_k():
    """Table of the paper: 0.5 at 100 draws, 0.67 at 1,000; 0.7 from 2,200 on."""
    assert largest_pareto_k(100) == pytest.approx(0.5)
    assert largest_pareto_k(1_000) == pytest.approx(2.0 / 3.0)
    assert largest_pareto_k(2_200) == pytest.approx(0.7, abs=0.002)
    assert largest_pareto_k(10**6) == 0.7
    assert 0.0 < largest_pareto_k(2) < 0.1
