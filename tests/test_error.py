"""Estimated errors of a fit: each estimator against what repetitions show, and the fit's own words."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from one_taste import OneTaste
from oracles import marginal_of
from small_models import SPACE, model_of, panel_of
from trust_cases import all_cases

from mxlogit import MCMC, MSLE, SVI, VI, ConvergenceWarning, MixedLogit, Priors
from mxlogit.diagnostics.error import (
    Cause,
    ErrorEstimate,
    SquaredErrors,
    error_of_chains,
    error_of_reweighting,
    error_of_weighted,
    shrunk_squares,
    unknown_errors,
)
from mxlogit.draws.generators import make_generator
from mxlogit.execution.people import People
from mxlogit.inference.error_estimate import Standardised, error_of_draws
from mxlogit.inference.vi.far_tail import error_of_far_tails
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.parameters import PopulationParameters
from mxlogit.simulate import simulate_choices


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=make_generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
def test_squares_of_noisy_estimates(spread):
    """On average they are the squares of what was estimated, the noise taken out."""
    noise = 0.01 * (1.0 + torch.arange(40, dtype=torch.float64) / 20.0)
    found, exact = [], []
    for seed in range(200):
        truth = spread * normal(40, seed=seed)
        estimates = truth + noise.sqrt() * normal(40, seed=1_000 + seed)
        found.append(shrunk_squares(estimates, noise).mean())
        exact.append(truth.square().mean())
    assert float(torch.stack(found).mean()) == pytest.approx(float(torch.stack(exact).mean()), rel=0.1, abs=0.002)


def test_weighted_draws_err_as_they_say():
    """Means and standard deviations of a normal by weighted draws of a wider t distribution, over repetitions."""
    proposal = torch.distributions.StudentT(torch.tensor(5.0, dtype=torch.float64), 0.0, 1.4)
    errors, estimated = [], []
    for seed in range(400):
        # A t variable is a normal one over the root of a chi square one per degree of freedom.
        points = 1.4 * normal(500, 1, seed=seed) / (normal(500, 5, seed=9_000 + seed).square().mean(1, True)).sqrt()
        weights = (-0.5 * points[:, 0].square() - proposal.log_prob(points[:, 0])).softmax(0)
        mean = weights @ points
        deviation = (weights @ (points - mean).square()).sqrt()
        found = error_of_weighted((points - mean) / deviation, weights)
        errors.append(torch.cat([mean, deviation - 1.0]).square())
        estimated.append(torch.cat([found.mean, found.deviation]))
    ratio = torch.stack(estimated).mean(0) / torch.stack(errors).mean(0)
    assert ratio.tolist() == pytest.approx([1.0, 1.0], rel=0.25)


@pytest.mark.parametrize("antithetic", [False, True])
def test_weights_reveal_a_shift_and_a_stretch(antithetic):
    """The first coordinate is at .3 with a standard deviation of 1.2, the others as the sample has them."""
    half = normal(2_000, 4)
    points = torch.cat([half, -half]) if antithetic else normal(4_000, 4)
    x = points[:, 0]
    log_weights = -0.5 * ((x - 0.3) / 1.2).square() + 0.5 * x.square()
    found = error_of_reweighting(Cause.APPROXIMATION, points, log_weights, antithetic=antithetic)
    assert float(found.mean[0].sqrt()) == pytest.approx(0.3, abs=0.06)
    # Half the change of the variance.
    assert float(found.deviation[0].sqrt()) == pytest.approx(0.22, abs=0.06)
    assert float(found.mean[1:].amax().sqrt()) < 0.06
    assert float(found.deviation[1:].amax().sqrt()) < 0.06


def test_weights_of_one_point_say_nothing():
    """An estimate from a single point is all noise, which is not small."""
    points = normal(60, 5)
    log_weights = torch.zeros(60, dtype=torch.float64)
    log_weights[7] = 30.0
    found = error_of_reweighting(Cause.APPROXIMATION, points, log_weights)
    assert float(torch.cat([found.mean, found.deviation]).amin().sqrt()) > 0.9
    log_weights[:] = -math.inf
    nowhere = error_of_reweighting(Cause.APPROXIMATION, points, log_weights)
    assert not ErrorEstimate(("a", "b", "c", "d", "e"), (nowhere,)).is_small


def test_chains_err_as_they_say():
    """Autoregressive chains, whose means have a known variance."""
    rho, chains, kept = 0.6, 8, 400
    errors, estimated = [], []
    for seed in range(60):
        noise = normal(kept, chains, 1, seed=seed)
        states = [noise[0]]
        for step in noise[1:]:
            states.append(rho * states[-1] + (1.0 - rho**2) ** 0.5 * step)
        reported = torch.stack(states, 1)
        found = error_of_chains(reported)
        errors.append(torch.stack([reported.mean(), reported.std() - 1.0]).square())
        estimated.append(torch.cat([found.mean, found.deviation]))
    exact = (1.0 + rho) / (1.0 - rho) / (chains * kept)
    assert float(torch.stack(estimated).mean(0)[0]) == pytest.approx(exact, rel=0.15)
    ratio = torch.stack(estimated).mean(0) / torch.stack(errors).mean(0)
    assert ratio.tolist() == pytest.approx([1.0, 1.0], rel=0.4)
    assert bool(torch.isinf(error_of_chains(reported[:1]).mean).all())


def test_draws_move_the_mean_as_they_say(generator):
    """Against the variance of Newton steps from scores under many other draws."""
    panel = panel_of(60, 4, 3, SPACE, generator)
    model = model_of()
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, 1)
    zeros = torch.zeros(2, dtype=torch.float64)
    population = PopulationParameters(zeros[:1], zeros, 0.8 * torch.eye(2, dtype=torch.float64))
    center = model.space.unconstrain(population)
    posterior = Standardised(model.space, center + 0.1 * normal(4_000, model.space.size))
    few = IntegrationSettings(16, 8, 300, 30)
    scores = torch.stack(
        [marginal.score_pass(population, IntegrationSettings(16, 8, 1_000 + key, 30)).score for key in range(150)]
    )
    moves = scores @ posterior.response(population).T
    estimated = torch.stack(
        [
            error_of_draws(marginal, population, IntegrationSettings(16, 8, 5_000 + 20 * key, 30), posterior, 60.0).mean
            for key in range(20)
        ]
    ).mean(0)
    torch.testing.assert_close(estimated, moves.var(0), rtol=0.4, atol=0)
    more = error_of_draws(marginal, population, IntegrationSettings(64, 8, 300, 30), posterior, 60.0).mean
    assert float((more / error_of_draws(marginal, population, few, posterior, 60.0).mean).median()) < 0.5


def test_noise_of_draws_counts_by_squares_of_weights(generator):
    """Three times the weight is three times the change of the score: nine times the squared error."""
    panel = panel_of(60, 4, 3, SPACE, generator)
    model = model_of()
    zeros = torch.zeros(2, dtype=torch.float64)
    population = PopulationParameters(zeros[:1], zeros, 0.8 * torch.eye(2, dtype=torch.float64))
    posterior = Standardised(model.space, model.space.unconstrain(population) + 0.1 * normal(1_000, model.space.size))
    squares = []
    for weight in (1.0, 3.0):
        weighted = replace(panel, weights=torch.full_like(panel.weights, weight))
        marginal = MarginalLikelihood(People.gather(weighted), model.space, model.mixing, 1)
        found = error_of_draws(marginal, population, IntegrationSettings(16, 8, 300, 30), posterior, 60.0 * weight)
        squares.append(found.mean)
    torch.testing.assert_close(squares[1], 9.0 * squares[0], rtol=1e-6, atol=0)


def test_response_of_means_is_that_of_tilted_samples(generator):
    """A gradient added to the log density moves the reported means of samples as weights by its exponential do."""
    model = model_of()
    population = PopulationParameters(
        torch.tensor([0.4]).double(),
        torch.tensor([0.2, -0.3]).double(),
        torch.tensor([[0.9, 0.0], [0.3, 0.6]]).double(),
    )
    center = model.space.unconstrain(population)
    vectors = center + 0.05 * normal(20_000, model.space.size)
    posterior = Standardised(model.space, vectors)
    gradient = torch.randn(model.space.size, generator=generator, dtype=torch.float64)
    slope = torch.linalg.solve(model.space.relative_jacobian(population).T, gradient)
    weights = ((vectors - center) @ slope).softmax(0)
    exact = weights @ posterior.scores()
    torch.testing.assert_close(posterior.response(population) @ gradient, exact, rtol=0.1, atol=0.03)


def estimate_of(mean, deviation=None, people=None, cause=Cause.DRAWS):
    labels = ("price", "time", "sd.time", "cor.time:price")
    mean = torch.tensor(mean).double().square()
    deviation = torch.zeros(4).double() if deviation is None else torch.tensor(deviation).double().square()
    return ErrorEstimate(labels, (SquaredErrors(cause, mean, deviation),), people)


def test_groups_and_words():
    fine = estimate_of([0.05, 0.02, 0.1, 0.15], [0.0, 0.0, 0.12, 0.0], people=0.03)
    assert fine.by_group() == pytest.approx(
        {"coefficients": 0.05, "standard deviations": 0.12, "correlations": 0.15, "people": 0.03}
    )
    assert fine.is_small
    assert "within 0.15 posterior" in fine.sentence()
    poor = estimate_of([0.05, 0.02, 0.1, 0.45], people=0.03)
    assert not poor.is_small
    assert "correlations (0.45): the noise of the draws of tastes. Remedy: more draws" in poor.sentence()
    tastes = estimate_of([0.05, 0.02, 0.1, 0.1], people=0.4)
    assert "people (0.40): uneven weights" in tastes.sentence()
    unknown = ErrorEstimate(poor.labels, (*poor.parts, unknown_errors(Cause.TIME, 4)))
    assert not unknown.is_small
    assert "unknown): time was over" in unknown.sentence()
    assert math.isinf(unknown.of_population)


def test_independent_causes_add_up():
    one, other = estimate_of([0.1] * 4).parts[0], estimate_of([0.2] * 4, cause=Cause.CHAINS).parts[0]
    both = ErrorEstimate(("a", "b", "sd.a", "sd.b"), (one, other))
    assert both.by_parameter.tolist() == pytest.approx([0.05**0.5] * 4)
    assert not both.is_small
    assert Cause.CHAINS.words in both.sentence()


@pytest.fixture(scope="module")
def choices():
    frame, _ = simulate_choices(120, 6, 3, fixed={"f": -0.5}, random={"a": (0.4, 0.8)}, random_state=3)
    return frame


@pytest.mark.parametrize(
    "method",
    [
        VI(n_samples=200),
        VI(n_samples=200, correct=True),
        VI(n_samples=200, optimizer="natural"),
        MSLE(n_draws=256),
        MCMC(samples=60, warmup=60, chains=2),
        SVI.rodrigues2022(steps=50),
        SVI(optimizer="hessian_free", encoder=None),
    ],
    ids=str,
)
def test_every_engine_estimates_its_error(choices, method):
    est = MixedLogit(fixed=["f"], random={"a": "normal"}, method=method, random_state=1)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", ConvergenceWarning)
        est.fit(choices)
    found = est.diagnostics_
    assert {"coefficients", "standard deviations"} <= set(found["error"])
    assert all(error >= 0.0 for error in found["error"].values())
    assert found["trusted"] == (max(found["error"].values()) <= 0.2)
    told = any(found["trust"] in str(w.message) for w in raised)
    assert told == (not found["trusted"] and not isinstance(method, MSLE))


@pytest.mark.parametrize(("correct", "rung"), [(False, "Gaussian"), (True, "weighted draws")])
def test_rungs_and_what_they_cost(choices, correct, rung):
    est = MixedLogit(fixed=["f"], random={"a": "normal"}, method=VI(n_samples=200, correct=correct), random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = est.fit(choices).diagnostics_
    assert found["rung"] == rung
    assert set(found["rung_seconds"]) == {"search", "Gaussian", "report"} | ({"weighted draws"} if correct else set())
    assert sum(found["rung_seconds"].values()) == pytest.approx(found["seconds"], rel=0.05)


def test_training_that_has_not_arrived_is_not_trusted(choices):
    """A few steps of the classic route leave a q(theta) far from the posterior."""
    est = MixedLogit(fixed=["f"], random={"a": "normal"}, method=SVI.rodrigues2022(steps=3))
    with pytest.warns(ConvergenceWarning, match="estimated error"):
        est.fit(choices)
    assert est.diagnostics_["trusted"] is False


@pytest.mark.slow
@pytest.mark.parametrize(("people", "seed", "has_moments"), [(60, 2, True), (60, 5, True), (30, 4, False)])
def test_what_lies_beyond_all_samples(people, seed, has_moments):
    """A Johnson SB taste of few people: its spread has a tail that its prior alone bounds, and is told where it counts."""
    random, scales = {"z": (0.3, 1.5, "johnson_sb")}, {"z": 3.0}
    frame, _ = simulate_choices(people, 6, 3, random=random, scales=scales, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(random={"z": "johnson_sb"}, priors=Priors(location_scale=2.0, sd_scale=1.0), random_state=0)
        est.fit(frame)
    exact = OneTaste(frame, "johnson_sb", 2.0, 1.0)
    estimated, error = est.summary().loc["sd.z", ["estimate", "std_error"]]
    told = est.diagnostics_["error"]["standard deviations"]
    wrong = max(abs(estimated - exact.mean["sd.z"]) / exact.sd["sd.z"], abs(error / exact.sd["sd.z"] - 1.0))
    assert (wrong < 0.1) == has_moments
    assert est.diagnostics_["trusted"] == has_moments
    assert told < 0.1 or not has_moments


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_a_ridge_that_samples_miss_is_told():
    """Samples of a truncated taste without those of low locations: what they miss of the exact mean and sd is told."""
    name = "truncated_normal 60"
    case = next(case for case in all_cases(None) if case.name == name)
    est = MixedLogit(**case.request, random_state=0).fit(case.load())
    model, marginal, everything = est._fitted.model, marginal_of(est), est.result_.samples
    for lowest in (-math.inf, -3.0):
        kept = everything.reported[:, 0] > lowest
        part = replace(everything, unconstrained=everything.unconstrained[kept], reported=everything.reported[kept])
        found = error_of_far_tails(model, marginal, part)
        location = part.reported[:, 0]
        mean, deviation = (float(squares[0].sqrt()) for squares in (found.mean, found.deviation))
        if lowest == -math.inf:
            assert mean < 0.1
            assert deviation < 0.1
        else:
            missing = (float(location.mean()) - case.exact["z"][0]) / float(location.std())
            assert missing > 1.0
            assert mean == pytest.approx(missing, rel=0.6)
            assert deviation > 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "exact"), [(2, (0.99, 0.57)), (4, (1.57, 1.15)), (5, (4.66, 11.6))])
def test_a_spread_whose_prior_bounds_its_tail_beside_a_fixed_coefficient(seed, exact):
    """Mean and sd of sd.z by a sum over both coefficients and sds up to 400: a fit errs by less than .3 or says so."""
    frame, _ = simulate_choices(
        120, 6, 3, fixed={"x": -0.5}, random={"z": (0.3, 1.5, "johnson_sb")}, scales={"z": 1.5}, random_state=seed
    )
    priors = Priors(location_scale=2.0, sd_scale=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(fixed=["x"], random={"z": "johnson_sb"}, priors=priors, random_state=0).fit(frame)
    estimated, error = est.summary().loc["sd.z", ["estimate", "std_error"]]
    wrong = max(abs(estimated - exact[0]) / exact[1], abs(error / exact[1] - 1.0))
    assert (wrong < 0.3) == est.diagnostics_["trusted"]


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_tastes_that_overflow_have_no_likelihood():
    """Lognormal tastes of exp(60): utilities have no digits left, and weights gave a log likelihood of 1e18."""
    random = {"z": (0.7, 0.1, "lognormal"), "w": (-0.9, 0.4)}
    frame, _ = simulate_choices(60, 6, 3, fixed={"x": 0.5}, random=random, random_state=0)
    method = VI(correct=False, n_samples=16)
    est = MixedLogit(fixed=["x"], random={"z": "lognormal", "w": "normal"}, method=method, random_state=0).fit(frame)
    marginal, space = marginal_of(est), est._fitted.model.space
    vector = est.result_.samples.mean.clone()
    for location, size in ((60.0, 10.0), (60.0, 20.0)):
        vector[1], vector[3] = location, size
        found = marginal.value_pass(space.from_report(vector), IntegrationSettings(64, 8, 23, 30), remember=False)
        assert found.log_likelihood == -math.inf


def test_a_logit_by_maximum_likelihood_has_no_error(choices):
    """There is nothing to simulate."""
    est = MixedLogit(fixed=["f", "a"], random=[], method=MSLE(), random_state=1).fit(choices)
    assert est.diagnostics_["error"] == {"coefficients": 0.0}
    assert est.diagnostics_["trusted"]
