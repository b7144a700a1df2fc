"""Posteriors that were wrong or had false alarms, at sizes of seconds: a fit agrees with the exact one, or says not.

Exact posteriors are those of `tests/benchmarks/trust_cases.py`, of one taste by sums. Sign-restricted tastes with uneven
weights are in test_short_chains.py.
"""

import json
import warnings

import pytest
from bench_trust import compare
from one_taste import LABELS, OneTaste
from quadrature import REFERENCE, first_people
from trust_cases import all_cases, fit

from mxlogit import ConvergenceWarning, MixedLogit
from mxlogit.simulate import simulate_published_study

CASES = {case.name: case for case in all_cases(None)}
# Errors of a fit with an estimated error of .2 at most are rarely larger (docs/benchmarks).
LARGE = 0.3


def fit_beside_exact(name, seed):
    case = CASES[name]
    return compare(case, case.load(), seed)


@pytest.mark.parametrize(
    "name",
    ["johnson_sb 60", "johnson_sb 120", "truncated_normal 60", "censored_normal 60", "uniform 60", "triangular 60"],
)
def test_tastes_between_bounds(name):
    """Tails and ridges that the Gaussian does not show: means, standard deviations and quantiles."""
    row, _ = fit_beside_exact(name, 0)
    assert row["trusted"]
    assert row["locations and sds"] < 0.15
    assert row["least ratio of sds"] > 0.8
    assert row["largest"] < 1.15
    assert row["quantiles"] < 0.3


def test_a_ridge_beyond_the_samples_is_told():
    """A truncated normal of 400 people that is nearly exponential: what is not sampled is not trusted."""
    row, _ = fit_beside_exact("truncated_normal 400", 0)
    wrong = max(row["locations and sds"], 1.0 - row["least ratio of sds"])
    assert wrong < LARGE or not row["trusted"]


@pytest.mark.parametrize("name", ["lognormal 300 x 2, 1", "lognormal 2000 x 1, 1"])
def test_few_choices_of_a_lognormal_taste(name):
    """Two seeds agree with the exact posterior and, within what they say of themselves, with each other."""
    rows, estimates = zip(*(fit_beside_exact(name, seed) for seed in (0, 1)), strict=True)
    for row in rows:
        assert row["trusted"]
        assert row["locations and sds"] < 0.15
        assert row["least ratio of sds"] > 0.9
        assert row["largest"] < 1.1
    apart = (estimates[0] - estimates[1]).abs().max()
    assert apart < 0.2
    assert apart < 4.0 * max(row["estimated"] for row in rows)


@pytest.mark.parametrize(
    "name",
    [
        "normal 5000 x 1, 2",
        "lognormal 5000 x 2, 2",
        pytest.param("lognormal 2000 x 2, 2", marks=pytest.mark.slow),
        pytest.param("normal 20000 x 1, 2", marks=pytest.mark.slow),
        pytest.param("lognormal 20000 x 1, 2", marks=pytest.mark.slow),
    ],
)
def test_few_choices_of_two_tastes(name):
    """Two seeds agree with quadrature to a tenth, and with each other to .15."""
    rows, estimates = zip(*(fit_beside_exact(name, seed) for seed in (0, 1)), strict=True)
    for row in rows:
        assert row["trusted"]
        assert max(row["locations and sds"], row["correlations"]) < 0.1
        assert row["least ratio of sds"] > 0.95
        assert row["largest"] < 1.06
    assert (estimates[0] - estimates[1]).abs().max() < 0.15


def test_what_new_draws_would_change_is_that_of_the_draws_that_count():
    """One choice each: the search ends with few draws, the mode has more of another kind."""
    case = CASES["normal 5000 x 1, 2"]
    found = fit(case.load(), case.request, 0)[0].diagnostics_
    assert found["draws"] >= 128
    assert found["redraw_shift"] < 0.05


def test_no_false_alarm_in_the_published_design():
    est = MixedLogit(fixed=["f1", "f2", "f3"], random=["r1", "r2", "r3", "r4", "r5"], random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        est.fit(simulate_published_study(1_000, 10, 1).data)
    assert est.diagnostics_["trusted"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_eight_correlated_tastes(seed):
    """44 parameters, over which importance weights fail: standard deviations were .2 to .5 of their own too large."""
    row, _ = fit_beside_exact("eight normals", seed)
    assert row["trusted"]
    assert row["locations and sds"] < 0.2
    assert row["correlations"] < 0.3
    assert row["least ratio of sds"] > 0.85
    assert row["largest"] < 1.15


@pytest.mark.slow
def test_sums_agree_with_quadrature():
    """The two oracles of one normal taste: 500 people, one choice."""
    records = json.loads(REFERENCE.read_text())
    (record,) = [r for r in records if (r["people"], r["situations"], r["tastes"]) == (500, 1, 1)]
    found = OneTaste(first_people(500, 1, 1)[0], "normal", 10.0, 2.5)
    for place, label in enumerate(LABELS):
        assert found.mean[label] == pytest.approx(record["mean"][place], abs=0.02 * record["sd"][place])
        assert found.sd[label] == pytest.approx(record["sd"][place], rel=0.02)
