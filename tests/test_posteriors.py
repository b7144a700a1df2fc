"""Every engine's posterior against the exact one of a small model, by grids: moments, quantiles, coverage, people."""

import warnings

import numpy as np
import pytest
import torch
from grid_oracle import LABELS, Choices, GridPosterior, TwoTastes

from mxlogit import MCMC, MSLE, VI, ChoiceData, ConvergenceWarning, MixedLogit, Priors
from mxlogit.inference.vi import correction
from mxlogit.simulate import simulate_choices

PRIORS = Priors(location_scale=2.0, sd_scale=1.0)


def make(method, **request):
    request = {"fixed": ["x"], "random": ["z"], "priors": PRIORS, "random_state": 0, **request}
    return MixedLogit(method=method, **request)


def fit(method, frame, **request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make(method, **request).fit(frame)


def simulate(seed, n=100, t=6, truth=(-0.7, 0.5, 0.8)):
    x, z, sd = truth
    return simulate_choices(n, t, 3, fixed={"x": x}, random={"z": (z, sd)}, unavailable=0.1, random_state=seed)[0]


@pytest.fixture(scope="module")
def frame():
    return simulate(4)


@pytest.fixture(scope="module")
def exact(frame):
    return GridPosterior(Choices.of_frame(frame), 2.0, 1.0)


@pytest.fixture(scope="module")
def vi(frame):
    return fit(VI(n_samples=150), frame)


def distances(est, exact):
    """Of means, in posterior sds, and ratios of sds."""
    table = est.summary()
    return ((table["estimate"] - exact.mean) / exact.sd).abs(), table["std_error"] / exact.sd


# Largest distance of a mean in exact posterior sds, and of a ratio of sds from one: what each engine leaves, doubled.
ENGINES = {
    "default": (VI(), 0.08, 0.08),
    "corrected": (VI(correct=True), 0.08, 0.08),
    "natural": (VI(optimizer="natural", correct=False), 0.08, 0.08),
    "mcmc": (MCMC(chains=6, warmup=80, samples=150), 0.15, 0.12),
}


@pytest.mark.parametrize("name", list(ENGINES))
def test_moments_are_the_exact_ones(name, frame, exact):
    method, mean, spread = ENGINES[name]
    est = fit(method, frame)
    far, ratio = distances(est, exact)
    assert list(far.index) == list(LABELS)
    assert far.max() < mean
    assert (ratio - 1.0).abs().max() < spread
    # One evaluator for all: the log likelihood is that of the estimate, to Monte Carlo error.
    error = max(0.02, 4.0 * est.log_likelihood_error_)
    assert est.log_likelihood_ == pytest.approx(exact.log_likelihood(*est.coef_), abs=error)
    assert est.log_likelihood_error_ < 0.15


def test_maximum_of_the_likelihood(frame, exact):
    """Without priors: the maximiser within a tenth of a standard error, errors by the Hessian, the maximum itself."""
    est = fit(MSLE(n_draws=500, covariance="hessian"), frame)
    best, error, maximum = exact.maximum_likelihood()
    assert ((est.coef_ - best) / error).abs().max() < 0.1
    np.testing.assert_allclose(est.summary()["std_error"] / error, 1.0, atol=0.08)
    assert est.diagnostics_["simulated_log_likelihood"] == pytest.approx(maximum, abs=0.1)


def test_people_have_the_exact_moments(vi, exact):
    found, (mean, sd) = vi.individual_coefficients()["z"], exact.tastes()
    assert float(((found["mean"] - mean) / sd).abs().max()) < 0.15
    np.testing.assert_allclose(found["sd"] / sd, 1.0, atol=0.12)


def test_few_people_under_priors_that_say_much():
    """Locations N(0, .2): half a posterior sd from where N(0, .3) would put them; people's sds include the population's."""
    few = simulate(4, n=25)
    exact = GridPosterior(Choices.of_frame(few), 0.2, 1.0)
    est = fit(VI(correct=True), few, priors=Priors(location_scale=0.2, sd_scale=1.0))
    far, ratio = distances(est, exact)
    assert far.max() < 0.06
    assert (ratio - 1.0).abs().max() < 0.06
    found, (mean, sd) = est.individual_coefficients()["z"], exact.tastes()
    assert float(((found["mean"] - mean) / sd).abs().mean()) < 0.04
    assert float((found["sd"] / sd).mean()) == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize("method", [VI(n_samples=150), MCMC(chains=4, warmup=80, samples=60)], ids=["vi", "mcmc"])
def test_people_never_seen_have_the_exact_moments(frame, method):
    seen, unseen = frame[frame["id"] <= 60], frame[frame["id"] > 60]
    mean, sd = GridPosterior(Choices.of_frame(seen), 2.0, 1.0).tastes(Choices.of_frame(unseen))
    found = fit(method, seen).individual_coefficients(unseen)["z"]
    assert float(((found["mean"] - mean) / sd).abs().max()) < 0.15
    np.testing.assert_allclose(found["sd"] / sd, 1.0, atol=0.12)


def test_leaving_one_out_is_exact(vi, exact):
    found = vi.loo().pointwise["elpd"]
    assert float((found - exact.leave_one_out()).abs().max()) < 0.1
    assert float((found - exact.leave_one_out()).mean()) == pytest.approx(0.0, abs=0.01)


def test_score_is_the_log_likelihood_per_choice_of_new_people(vi, frame):
    """People whom the fit has not seen, at its estimate."""
    others = simulate(5, n=50)
    exact = GridPosterior(Choices.of_frame(others), 2.0, 1.0)
    count = len(others[["id", "situation"]].drop_duplicates())
    assert vi.score(others) * count == pytest.approx(exact.log_likelihood(*vi.coef_), abs=0.05)


def test_weights_are_counts_of_people(frame):
    """Weights of one, two and three: the exact posterior under them."""
    people = sorted(frame["id"].unique())
    weight = {person: 1.0 + person % 3 for person in people}
    exact = GridPosterior(Choices.of_frame(frame, [weight[person] for person in people]), 2.0, 1.0)
    est = fit(VI(), frame.assign(w=frame["id"].map(weight)), weights="w")
    far, ratio = distances(est, exact)
    assert far.max() < 0.08
    assert (ratio - 1.0).abs().max() < 0.08
    assert est.log_likelihood_ == pytest.approx(exact.log_likelihood(*est.coef_), abs=0.1)


def test_panels_of_every_length(frame):
    """A fifth of all situations missing."""
    ragged = frame[(7 * frame["id"] + frame["situation"]) % 5 > 0]
    exact = GridPosterior(Choices.of_frame(ragged), 2.0, 1.0)
    far, ratio = distances(fit(VI(), ragged), exact)
    assert far.max() < 0.08
    assert (ratio - 1.0).abs().max() < 0.08


# Taste of a latent, location and standard deviation, and people: enough for moments that a grid sees whole.
MAPS = {
    "lognormal": (np.exp, (-0.2, 0.7), 100),
    "negative_lognormal": (lambda latent: -np.exp(latent), (-0.2, 0.7), 200),
    "censored_normal": (lambda latent: np.maximum(latent, 0.0), (0.5, 0.8), 200),
    "johnson_sb": (lambda latent: 1.0 / (1.0 + np.exp(-latent)), (0.3, 1.5), 300),
}


@pytest.mark.parametrize(
    "family",
    # The mirror image of a lognormal is one of its signs, which `test_mixing.py` knows by hand.
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "negative_lognormal")) for name in MAPS],
)
def test_tastes_that_are_not_normal(family, monkeypatch):
    # Of the thousand effective draws of a correction, what these tolerances need: errors of .05 sds, and of 3 % of an sd.
    monkeypatch.setattr(correction, "_REQUESTED_ESS", 400.0)
    taste, (location, sd), people = MAPS[family]
    random = {"z": (location, sd, family)}
    frame = simulate_choices(people, 6, 3, fixed={"x": -0.7}, random=random, scales={"z": 1.5}, random_state=3)[0]
    exact = GridPosterior(Choices.of_frame(frame), 2.0, 1.0, taste)
    est = fit(VI(), frame, random={"z": family})
    far, ratio = distances(est, exact)
    assert far.max() < 0.1
    assert (ratio - 1.0).abs().max() < 0.1
    error = est.log_likelihood_ - exact.log_likelihood(*est.coef_)
    assert abs(error) < 0.05 + 3.0 * est.log_likelihood_error_


@pytest.fixture(scope="module")
def pair():
    """Two tastes with a correlation of .6 in 100 people's eight choices."""
    rng = np.random.default_rng(8)
    attributes = rng.normal(size=(100, 8, 3, 2))
    root = np.array([[0.9, 0.0], [0.48, 0.64]])
    tastes = np.array([0.5, -0.4]) + rng.normal(size=(100, 2)) @ root.T
    utility = (attributes * tastes[:, None, None]).sum(-1) + rng.gumbel(size=(100, 8, 3))
    chosen = utility.argmax(-1)
    return ChoiceData.from_arrays(attributes, chosen, names=["z", "w"]), TwoTastes(attributes, chosen, 2.0, 1.0)


@pytest.mark.parametrize("method", [VI(), MCMC(chains=4, warmup=80, samples=130)], ids=["vi", "mcmc"])
def test_correlated_tastes_have_the_exact_moments(pair, method):
    data, exact = pair
    assert exact.ess > 1_000
    est = fit(method, data, fixed=[], random=["z", "w"])
    far, ratio = distances(est, exact)
    assert list(far.index) == list(exact.LABELS)
    assert far.max() < 0.2
    assert (ratio - 1.0).abs().max() < 0.15
    assert est.log_likelihood_ == pytest.approx(exact.log_likelihood(est.coef_.to_numpy()[None])[0], abs=0.15)


PROBABILITIES = np.array([0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975])


def test_intervals_cover_what_they_say():
    """Exact posterior probability of intervals on four data sets of other truths: each close, all together closer.

    Where truths come from the prior, the mean of these probabilities is the coverage, without the noise of counting.
    """
    rng = np.random.default_rng(12)
    below = {label: [] for label in LABELS}
    for seed in range(4):
        truth = rng.normal(0.0, 0.7), rng.normal(0.0, 0.7), rng.uniform(0.5, 1.3)
        frame = simulate(seed, n=80, t=4, truth=truth)
        exact, samples = GridPosterior(Choices.of_frame(frame), 2.0, 1.0), fit(VI(), frame).posterior_samples()
        for label in LABELS:
            below[label].append(exact.probability_below(label, samples[label].quantile(PROBABILITIES).to_numpy()))
    for label, found in below.items():
        found = np.array(found)
        assert np.abs(found - PROBABILITIES).max() < 0.06, label
        assert np.abs(found.mean(0) - PROBABILITIES).max() < 0.025, label
        inside = found[:, ::-1][:, :2] - found[:, :2]
        np.testing.assert_allclose(inside.mean(0), [0.95, 0.9], atol=0.02, err_msg=label)


def test_the_oracle_itself():
    """Without variance a logit by hand; one choice of two alternatives: the probability by quadrature over the taste."""
    rng = np.random.default_rng(1)
    attributes, chosen = rng.normal(size=(2, 1, 2, 2)), np.array([[0], [1]])
    data = Choices(attributes, chosen, np.ones((2, 1, 2), bool), np.ones(2))
    oracle = GridPosterior(data, 2.0, 1.0)
    nodes, masses = np.polynomial.hermite_e.hermegauss(60)
    masses = masses / masses.sum()
    total = 0.0
    for n, position in ((0, 0), (1, 1)):
        gap = attributes[n, 0, position] - attributes[n, 0, 1 - position]
        utility = 0.4 * gap[0] + (0.3 + 0.9 * nodes) * gap[1]
        total += np.log(masses @ (1.0 / (1.0 + np.exp(-utility))))
    assert oracle.log_likelihood(0.4, 0.3, 0.9) == pytest.approx(total, abs=1e-9)
    assert torch.tensor(oracle.axes.mass.sum()).item() == pytest.approx(1.0)
