"""Moments of people's tastes over a posterior of the population, by weights: against draws under each population."""

from __future__ import annotations

import warnings

import pytest
import torch

from mxlogit import ConvergenceWarning, MixedLogit
from mxlogit.integration import tastes as module
from mxlogit.integration.averaged_tastes import Populations
from mxlogit.results.individual_coefficients import sampled_populations
from mxlogit.simulate import simulate_choices

# Numbers of people and choices, fixed coefficients, and the distribution of the only random one.
CASES = {
    "wide posterior": (10, 2, {}, "normal"),
    "one choice": (100, 1, {"p": -1.0}, "normal"),
    "heavy tail": (100, 3, {"p": -1.0}, "lognormal"),
    "narrow posterior": (400, 5, {"p": -1.0, "q": 0.5}, "normal"),
    "sign": (400, 5, {}, "negative_lognormal"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Name, sampler of tastes, panel, populations and their centre."""
    people, choices, fixed, family = CASES[request.param]
    truth = {"x": (0.0, 0.8) if family == "normal" else (0.0, 0.8, family)}
    frame = simulate_choices(people, choices, 3, fixed=fixed, random=truth, random_state=2)[0]
    with warnings.catch_warnings():
        # Standard deviations of few people are weakly identified.
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(fixed=list(fixed), random={"x": family}, random_state=0).fit(frame)
    fit, model = est.result_, est._fitted.model
    return request.param, fit.tastes, est._fitted.panel, sampled_populations(model, fit, 64), fit.center


def test_averages_are_those_of_draws_under_each_population(case):
    _, tastes, panel, populations, centre = case
    exact, deviation = tastes._one_by_one(panel, populations)
    mean, found = tastes.averaged_moments(panel, populations, centre)
    assert float(((mean - exact) / deviation).square().mean().sqrt()) < 0.04
    assert float((found / deviation).log().square().mean().sqrt()) < 0.05


def test_whom_draws_do_not_represent_has_draws_of_each(case, monkeypatch):
    """Most with a wide posterior of the population, hardly anybody with a narrow one."""
    name, tastes, panel, populations, centre = case
    alone, known = [], module.ImportanceTastes._one_by_one

    def counted(self, some, populations):
        alone.append(len(some))
        return known(self, some, populations)

    monkeypatch.setattr(module.ImportanceTastes, "_one_by_one", counted)
    tastes.averaged_moments(panel, populations, centre)
    if name == "wide posterior":
        assert sum(alone) > 5
    if name == "narrow posterior":
        assert sum(alone) <= 20


def test_averaged_weights_are_means_of_those_of_each_population(case):
    """By log densities of the draws under every population; with fixed coefficients, up to the expansion in them."""
    _, tastes, panel, populations, centre = case
    near, model = Populations.near(centre, populations[:5], panel.like), tastes.model
    part = panel.dense() if hasattr(panel, "dense") else panel
    for proposal, drawn in tastes._propose(tastes._marginal_alike(part), centre, 64, 0):
        weights, unevenness = near.average_weights(drawn, proposal.panel, model.mixing)
        expected = torch.zeros_like(weights)
        latents = centre.latent(drawn.xi.double())
        for population in populations[:5]:
            whitened = (latents - population.location[:, None]) / population.scale_tril[0, 0]
            changed = -0.5 * (whitened.square() - drawn.xi.double().square()).sum(1)
            log_weight = drawn.log_ratio.double() + changed
            expected += log_weight.softmax(1).to(weights) / 5.0
        torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
        assert bool((unevenness >= 1.0 - 1e-5).all())
        if len(centre.fixed) == 0:
            torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)
