"""A fixed coefficient beside random ones: given its tastes, a person says a hundred times more about it than alone.

Electricity with a fixed price beside five tastes. Draws that follow the coefficients do not turn that into noise.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import marginal_of
from small_models import panel_of

from mxlogit import VI, MixedLogit, datasets
from mxlogit.execution.people import People
from mxlogit.integration.fixed_taste_draws import FixedTasteDraws
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters

FEW = IntegrationSettings(draws=64, degrees_of_freedom=8, stream=3, newton_steps=20)
REFERENCE = Path(__file__).parent / "reference" / "chains_electricity_fixed_price.json"
NORMAL = ["cl", "loc", "wk", "tod", "seas"]
SIGNED = {"cl": "normal", "loc": "normal", "wk": "lognormal", "tod": "negative_lognormal", "seas": "negative_lognormal"}


def fitted(random, seed=0, **settings):
    est = MixedLogit(
        fixed=["pf"],
        random=random,
        decision_maker="id",
        situation="chid",
        alternative="alt",
        choice="choice",
        random_state=seed,
        **settings,
    )
    return est.fit(datasets.load_electricity())


@pytest.fixture(scope="module", params=[NORMAL, pytest.param(SIGNED, marks=pytest.mark.slow)], ids=["normal", "signed"])
def at_the_mode(request):
    """Marginal likelihood, model, population and posterior covariance (D, D) in relative coordinates."""
    est = fitted(request.param, method=VI(correct=False))
    marginal, population = marginal_of(est), est.result_.center
    marginal.score_pass(population, FEW)
    many = replace(FEW, draws=4_096, stream=9)
    return (
        marginal,
        est._fitted.model,
        population,
        torch.linalg.inv(marginal.information(est._fitted.model, population, many)),
    )


def test_score_has_the_noise_of_tastes(at_the_mode):
    """In posterior sds, from 64 draws: .25; .7 to 1.1 without the shift. Its expectation is that of many draws."""
    marginal, _, population, covariance = at_the_mode
    scores = torch.stack([marginal.score_pass(population, replace(FEW, stream=s)).score for s in range(12)])
    shifts = scores @ covariance[:, 0] / covariance[0, 0].sqrt()
    assert float(shifts.std()) < 0.4
    exact = marginal.score_pass(population, replace(FEW, draws=8_192, stream=50)).score @ covariance[:, 0]
    assert abs(float(shifts.mean() - exact / covariance[0, 0].sqrt())) < 3.0 * float(shifts.std()) / 12**0.5


def test_draws_from_the_population_do_not_follow(generator):
    """Away from modes the shift would be noise: 2.4 instead of .4 here, where tastes vary much."""
    space = ParameterSpace(("p",), ("x", "y"), ((0, 1),))
    panel = panel_of(600, 1, 2, space, generator)
    marginal = MarginalLikelihood(People.gather(panel), space, Mixing(["normal"] * 2), seed=5)
    tril = torch.diag(torch.tensor([4.0, 3.0], dtype=torch.float64))
    population = PopulationParameters(*(torch.tensor(x, dtype=torch.float64) for x in ([-1.0], [1.0, 0.0])), tril)
    nets = replace(FEW, pathwise=True, from_population=True)
    scores = torch.stack([marginal.score_pass(population, replace(nets, stream=s)).score[0] for s in range(12)])
    assert float(scores.std()) < 1.0


def test_information_has_little_noise(at_the_mode):
    """The sd of the price from 64 draws: to some per cent, as from 4,096; by 30 per cent too small without controls."""
    marginal, model, population, covariance = at_the_mode
    for stream in range(3):
        found = torch.linalg.inv(marginal.information(model, population, replace(FEW, stream=stream)))
        assert float(found[0, 0] / covariance[0, 0]) ** 0.5 == pytest.approx(1.0, abs=0.2)


def test_fixed_draws_follow(at_the_mode):
    """Curvature along the posterior's axis of the price: one, to 2 per cent from 128 draws, not to 10."""
    marginal, _, population, covariance = at_the_mode
    centre, jacobian = marginal.space.unconstrain(population), marginal.space.relative_jacobian(population)
    axis = jacobian @ covariance[:, 0] / covariance[0, 0].sqrt()
    found = []
    for stream in range(3):
        kept = FixedTasteDraws(marginal, population, replace(FEW, draws=128, stream=stream))
        above, below = kept.gradients(torch.stack([centre + axis, centre - axis]))
        found.append(float((below - above) @ axis) / 2.0)
    assert found == pytest.approx([1.0] * 3, abs=0.06)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_the_posterior_is_that_of_chains(seed):
    """Means within .2 posterior sds and sds within a tenth, the price's within .1 and 6 per cent, from every seed."""
    exact = json.loads(REFERENCE.read_text())["parameters"]
    table = fitted(NORMAL, seed).summary()
    shift = {name: (table.loc[name, "estimate"] - at["mean"]) / at["sd"] for name, at in exact.items()}
    ratio = {name: table.loc[name, "std_error"] / at["sd"] for name, at in exact.items()}
    assert max(abs(value) for value in shift.values()) < 0.2
    assert list(ratio.values()) == pytest.approx([1.0] * len(ratio), abs=0.1)
    assert abs(shift["pf"]) < 0.1
    assert ratio["pf"] == pytest.approx(1.0, abs=0.06)
