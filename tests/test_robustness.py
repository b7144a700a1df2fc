"""The search converges from the default start, whatever the design; where the data leave something open, it says what.

Intervals of 4.5 posterior sds: over some 200 parameters a false alarm about once in 700 seeds.
"""

import warnings

import numpy as np
import pytest
from oracles import PARAMETERS

from mxlogit import VI, ConvergenceWarning, MixedLogit, Priors, datasets
from mxlogit.inference import budgets, task
from mxlogit.inference.vi import newton, route
from mxlogit.simulate import simulate_choices
from mxlogit.spec import MIXING_NAMES

# As in `test_recovery`, of some hundred errors.
WIDTH = 3.3


def fit(frame, **request):
    """A fit and the sentences it came with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        est = MixedLogit(random_state=0, **request).fit(frame)
    return est, " ".join(str(w.message) for w in caught)


def check(est, truth, skip=()):
    assert est.diagnostics_["converged"], est.diagnostics_["status"]
    table = est.summary().drop(index=list(skip))
    errors = (table["estimate"] - truth.coef.reindex(table.index).fillna(0.0)) / table["std_error"]
    assert (errors.abs() < WIDTH).all(), errors
    history = est.result_.history
    assert history[-1].passes > 0
    assert history[-1].seconds > 0
    assert all(np.isfinite(row.objective) for row in history)


def names(k):
    return [f"z{i}" for i in range(k)]


def tastes(k, seed):
    """Independent locations and standard deviations, and a random correlation matrix."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(k, 2 * k))
    scale = 1.0 / np.sqrt(np.diag(root @ root.T))
    return {z: (rng.normal(), rng.uniform(0.5, 1.2)) for z in names(k)}, scale[:, None] * (root @ root.T) * scale


@pytest.mark.parametrize(
    ("k", "n", "t"),
    [
        (1, 500, 10),
        (5, 800, 10),
        pytest.param(10, 1000, 12, marks=pytest.mark.slow),
        pytest.param(
            20,
            2000,
            15,
            marks=[
                pytest.mark.slow,
                pytest.mark.xfail(
                    reason="230 parameters are never corrected: standard errors are a tenth too small and draws leave "
                    "noise, of which Pareto k 9 warns; one correlation of 230 is 3.75 of them off, and not 3.3",
                    strict=False,
                ),
            ],
        ),
    ],
)
def test_number_of_random_coefficients(k, n, t):
    random, correlation = tastes(k, k)
    frame, truth = simulate_choices(n, t, 5, random=random, correlation=correlation, random_state=k)
    est, _ = fit(frame, random=names(k))
    check(est, truth)


@pytest.mark.slow
def test_twenty_independent_coefficients():
    frame, truth = simulate_choices(1000, 12, 5, random=tastes(20, 2)[0], random_state=2)
    est, _ = fit(frame, random=names(20), correlated=False)
    check(est, truth)


@pytest.mark.parametrize(
    ("t", "n"),
    [*(pytest.param(*size, marks=pytest.mark.slow) for size in ((1, 2000), (2, 1500), (30, 300))), (100, 80)],
)
def test_length_of_panels(t, n):
    frame, truth = simulate_choices(
        n, t, 4, fixed={"x": -0.7}, random={z: (0.5, 0.8) for z in names(3)}, correlation=0.3, random_state=t
    )
    est, sentences = fit(frame, fixed=["x"], random=names(3))
    check(est, truth)
    assert "is weakly identified" not in sentences


def test_open_standard_deviations_are_named():
    """One choice each of few people: where standard deviations stay open they are named, and where not, they are not."""
    frame, _ = simulate_choices(80, 1, 3, random={"z0": (0.5, 0.8), "z1": (0.2, 3.0)}, random_state=2)
    est, sentences = fit(frame, random=names(2), correlated=False)
    spread = np.log(est.posterior_samples()[["sd.z0", "sd.z1"]]).std()
    assert (spread > 0.5).any()
    for label in spread[spread > 0.5].index:
        name = label.removeprefix("sd.")
        told = (
            f"standard deviation of {name!r} is weakly identified",
            f"standard deviation of {name!r} is indistinguishable from zero",
        )
        assert any(words in sentences for words in told), sentences


def test_nearly_singular_covariance():
    frame, truth = simulate_choices(
        250, 10, 4, fixed={"x": -0.7}, random={z: (0.5, 0.8) for z in names(3)}, correlation=0.999, random_state=1
    )
    est, _ = fit(frame, fixed=["x"], random=names(3), method=VI(correct=False, flow=None))
    # Correlations at the edge have posteriors on one side of the truth.
    check(est, truth, skip=[label for label in est.coef_.index if label.startswith("cor.")])
    assert (est.coef_.filter(like="cor.") > 0.9).all()


@pytest.mark.slow
def test_a_taste_that_does_not_vary():
    random = {"z0": (0.5, 0.8), "z1": (0.5, 1e-8), "z2": (-0.5, 0.8)}
    frame, truth = simulate_choices(800, 10, 4, fixed={"x": -0.7}, random=random, random_state=1)
    est, sentences = fit(frame, fixed=["x"], random=names(3))
    vague = [label for label in est.coef_.index if "z1" in label and label != "z1"]
    check(est, truth, skip=vague)
    assert est.coef_["sd.z1"] < 0.25
    assert "standard deviation of 'z1' is indistinguishable from zero" in sentences
    assert "'z0'" not in sentences


@pytest.fixture
def small_subsamples(monkeypatch):
    """Subsamples and budgets so much smaller that 650 people are many, whom chains do not reach."""
    monkeypatch.setattr(route, "count_affordable", lambda task: 0)
    monkeypatch.setattr(task, "LARGEST_SAMPLE", 500)
    monkeypatch.setattr(newton, "STAGE_SIZES", (100, 500))
    monkeypatch.setattr(budgets, "MOST_PEOPLE", 250)
    monkeypatch.setattr(budgets, "MOST_SITUATIONS", 1_000)


@pytest.mark.parametrize("n", [500, 650, pytest.param(21_000, marks=pytest.mark.slow)])
def test_units_a_million_apart(n, request):
    """The same choices in other units: the same answer in those units. More people than the largest subsample, too."""
    if n == 650:
        request.getfixturevalue("small_subsamples")
    scales = {"x": 1e-6, "z0": 1e6, "z1": 1.0, "z2": 1e-3}
    plain = {"fixed": {"x": -0.7}, "random": {"z0": (0.5, 0.8), "z1": (0.5, 0.8), "z2": (-0.5, 0.8)}}
    if n == 650:
        # Two tastes take a quarter of the time of three.
        del plain["random"]["z2"]
    frame, truth = simulate_choices(n, 10 if n == 500 else 4, 4, **plain, random_state=1)
    scaled = frame.assign(**{column: frame[column] * scales[column] for column in ("x", *plain["random"])})
    asked = {"fixed": ["x"], "random": list(plain["random"]), "correlated": n != 650, "method": VI(n_samples=1000)}
    here, there = fit(frame, **asked)[0], fit(scaled, **asked)[0]
    check(here, truth)
    check(there, truth, skip=there.coef_.index)
    for label, value in here.coef_.items():
        scale = 1.0 if label.startswith("cor.") else scales[label.removeprefix("sd.")]
        assert there.coef_[label] * scale == pytest.approx(value, abs=0.05 * here.summary()["std_error"][label])


@pytest.mark.slow
@pytest.mark.parametrize("n", [3_000, 30_000])
def test_all_mixing_distributions_together(n):
    random = {f"z{i}": (*PARAMETERS[family], family) for i, family in enumerate(MIXING_NAMES)}
    frame, truth = simulate_choices(
        n, 6, 3, fixed={"x": -0.8}, random=random, scales={z: 1.5 for z in random}, random_state=3
    )
    request = {z: family for z, (_, _, family) in random.items()}
    est, _ = fit(frame, fixed=["x"], random=request, correlated=False)
    check(est, truth)


def check_family(family, n):
    random = {"z": (*PARAMETERS[family], family), "w": (0.5, 0.8)}
    frame, truth = simulate_choices(n, 5, 3, random=random, scales={"z": 1.5}, random_state=5)
    est, _ = fit(frame, random={"z": family, "w": "normal"}, correlated=False, method=VI(n_samples=1000))
    check(est, truth)


@pytest.mark.parametrize("family", ["normal", pytest.param("lognormal", marks=pytest.mark.slow)])
def test_more_people_than_the_largest_subsample(small_subsamples, family):
    """The route that corrects few draws."""
    check_family(family, 650)


@pytest.mark.slow
@pytest.mark.parametrize("family", MIXING_NAMES)
def test_many_people_of_each_mixing_distribution(family):
    """The same, at the size where users meet it."""
    check_family(family, 21_000)


@pytest.mark.parametrize(
    ("load", "request_"),
    [
        # By default in `test_reference.py`.
        pytest.param(datasets.load_electricity, {"random": ["pf", "cl", "loc", "wk", "tod", "seas"], "situation": "chid", "alternative": "alt"}, marks=pytest.mark.slow),
        # A minute and a half: it is corrected, with 4,096 draws a person.
        pytest.param(datasets.load_train, {"random": {"price": "negative_lognormal", "time": "normal", "change": "normal", "comfort": "normal"}}, marks=pytest.mark.slow),
        (datasets.load_swissmetro, {"random": ["time"], "fixed": ["cost"], "constants": True, "availability": "available"}),
    ],
    ids=["electricity", "train", "swissmetro"],
)  # fmt: skip
def test_every_data_set(load, request_):
    frame = load()
    if "time" in frame and "cost" in frame:
        frame = frame.assign(time=frame["time"] / 100.0, cost=frame["cost"] / 100.0)
    est, _ = fit(frame, **request_)
    assert est.diagnostics_["converged"], est.diagnostics_["status"]
    assert est.diagnostics_["newton_decrement"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("replication", [29, 40, 134])
def test_a_lognormal_twenty_times_too_wide(replication):
    """Choices all but deterministic: information from draws is far too large, but no posterior is narrower than known
    tastes would make it (150 people: .058 for a log standard deviation); chains have sds of .3 of it."""
    from mxlogit.study.calibration import Design, _Task

    est = MixedLogit(
        fixed=["x"],
        random={"z": "lognormal", "w": "normal"},
        priors=Priors(location_scale=1.0, sd_scale=0.5),
        random_state=replication,
    )
    truth, data, _ = _Task(est, Design(), 3).simulate(replication)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est.fit(data)
    log_sd = np.log(est.posterior_samples()["sd.z"])
    assert 0.15 < log_sd.std() < 0.6
    assert abs(log_sd.mean() - np.log(truth["sd.z"])) < 3 * log_sd.std()
    assert est.diagnostics_["corrected"]


@pytest.mark.slow
def test_a_lognormal_a_hundred_times_too_wide():
    """A data set simulated with a standard deviation of 88: no estimate to trust, but a fit that says so."""
    from mxlogit.study.calibration import Design, _Task

    est = MixedLogit(
        fixed=["x"],
        random={"z": "lognormal", "w": "normal"},
        priors=Priors(location_scale=1.0, sd_scale=0.5, standardize=False),
        random_state=49,
    )
    _, data, _ = _Task(est, Design(), 3).simulate(49)
    with pytest.warns(ConvergenceWarning):
        est.fit(data)
    assert np.isfinite(est.summary().to_numpy(dtype=float, na_value=0.0)).all()
    assert len(est.individual_coefficients(statistic=[0.05, 0.95])) == 150
