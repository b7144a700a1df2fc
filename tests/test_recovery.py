"""The truth lies inside the intervals, for each mixing distribution and for hard designs."""

import warnings

import numpy as np
import pytest
from oracles import PARAMETERS

from mxlogit import VI, ConvergenceWarning, MixedLogit
from mxlogit.simulate import simulate_choices
from mxlogit.spec import MIXING_NAMES

# Of an interval, in posterior sds: largest of the 45 errors of these fits, whose expectation is 2.3. How wide posteriors
# are is tested against grids and quadrature (`test_posteriors`, `test_posterior_sds`).
WIDTH = 3.0


def standardised_errors(est, truth):
    table = est.summary()
    return (table["estimate"] - truth.coef[table.index]) / table["std_error"]


# A truncated normal's posterior is wide here, and takes half a minute; `test_mcmc.py` has a narrower one, and triangular
# tastes beside uniform ones; `test_posteriors.py` has the exact posteriors of the other four.
ELSEWHERE = ("truncated_normal", "triangular", "censored_normal", "johnson_sb", "lognormal", "normal")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name in ELSEWHERE)) for name in MIXING_NAMES]
)
def test_truth_is_recovered(family):
    frame, truth = simulate_choices(
        400,
        10,
        3,
        fixed={"x": -0.8},
        random={"z": (*PARAMETERS[family], family), "w": (0.5, 0.8)},
        correlation=0.5,
        scales={"z": 1.5},
        random_state=11,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(fixed=["x"], random={"z": family, "w": "normal"}, random_state=0).fit(frame)
    assert est.diagnostics_["converged"]
    errors = standardised_errors(est, truth)
    assert (errors.abs() < WIDTH).all(), errors
    tastes = est.individual_coefficients(frame[frame["id"] <= 60])[("z", "mean")]
    assert np.corrcoef(tastes, truth.tastes["z"].loc[tastes.index])[0, 1] > 0.5


def test_blocks_weights_and_ragged_panels():
    frame, truth = simulate_choices(
        300,
        (1, 12),
        5,
        fixed={"x": 1.0},
        random={"a": (0.5, 1.0), "b": (-0.5, 1.0), "c": (0.3, 0.7)},
        constants=[0.5, -0.5, 0.2, 0.0],
        unavailable=0.3,
        random_state=5,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(
            fixed=["x"], random=["a", "b", "c"], correlated=[["a", "c"]], constants=True, random_state=0
        ).fit(frame)
    truth.coef["cor.a:c"] = 0.0
    assert (standardised_errors(est, truth).abs() < WIDTH).all()


@pytest.mark.parametrize(
    ("people", "situations", "names"),
    [
        (10, 1, "ab"),
        *(pytest.param(*few, "abcd", marks=pytest.mark.slow) for few in ((10, 1), (3, 2), (20, 2), (50, 3))),
    ],
)
def test_too_few_people_give_vague_answers_and_warnings(people, situations, names):
    """Never an error of linear algebra: finite estimates, wide intervals, and a sentence that says so."""
    frame, _ = simulate_choices(
        people, situations, 4, fixed={"x": 1.0}, random={k: (0.5, 1.0) for k in names}, random_state=people
    )
    method = VI(n_samples=64)
    with pytest.warns(ConvergenceWarning):
        est = MixedLogit(fixed=["x"], random=list(names), method=method, random_state=0).fit(frame)
    assert np.isfinite(est.summary()).all().all()
    assert est.summary()["std_error"]["a"] > 0.2
    assert np.isfinite(est.individual_coefficients()).all().all()


@pytest.mark.slow
@pytest.mark.calibration
def test_intervals_of_the_published_design_are_calibrated():
    """12 data sets of 500 people: 50 % and 90 % intervals inside binomial bands (99.9 %) over 276 parameters.

    Parameters of one fit are correlated, so the band is that of a third as many independent ones.
    """
    from scipy.stats import binom

    from mxlogit.simulate import simulate_published_study

    names = ["f1", "f2", "f3"], [f"r{i}" for i in range(1, 6)]
    inside = {0.5: 0, 0.9: 0}
    total = 0
    for run in range(1, 13):
        study = simulate_published_study(500, 10, run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            est = MixedLogit(fixed=names[0], random=names[1], random_state=run).fit(study.data)
        truth = np.concatenate([study.fixed, study.location, np.ones(5), np.full(10, 0.8)])
        total += len(truth)
        for level in inside:
            table = est.summary(level=level)
            inside[level] += int(((table["lower"] < truth) & (truth < table["upper"])).sum())
    for level, count in inside.items():
        low, high = binom.interval(0.999, total // 3, level)
        assert low / (total // 3) < count / total < high / (total // 3), (level, count / total)
