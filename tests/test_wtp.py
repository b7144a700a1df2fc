"""Willingness to pay against sums over draws, closed forms, and its own laws."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from mxlogit import MCMC, MSLE, VI, ConvergenceWarning, MixedLogit, SpecificationError
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import FAMILIES, Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.priors import Priors, resolve_priors
from mxlogit.results.willingness_to_pay import Ratio, _statistics, population_means
from mxlogit.simulate import simulate_choices

TRIL = torch.tensor([[0.5, 0.0], [0.24, 0.32]], dtype=torch.float64)


def model_of(attribute: str, cost: str) -> tuple[MixedLogitModel, PopulationParameters]:
    """Two correlated random coefficients beside a fixed one, and a population in which both keep away from zero."""
    space, mixing = ParameterSpace(("f",), ("a", "c"), ((0, 1),)), Mixing([attribute, cost])
    prior = resolve_priors(Priors(), mixing, 1, [1.0] * 3)
    model = MixedLogitModel(space, mixing, prior, torch.ones(3, dtype=torch.float64))
    location = torch.tensor([[0.7, -1.5]], dtype=torch.float64)
    return model, PopulationParameters(torch.full((1, 1), 0.8, dtype=torch.float64), location, TRIL[None])


def drawn_ratios(model: MixedLogitModel, population: PopulationParameters, attribute: str) -> torch.Tensor:
    """A million people's ratios, drawn without anything of the module."""
    normal = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    latent = population.location + normal @ TRIL.T
    tastes = model.mixing.tastes(latent, population.location, population.scale)
    above = population.fixed[0, 0] if attribute == "f" else tastes[:, 0]
    return -above / tastes[:, 1]


@pytest.mark.parametrize(
    ("attribute", "cost"),
    list(
        itertools.product(
            ["normal", "lognormal", "uniform", "johnson_sb", "truncated_normal", "censored_normal"],
            ["negative_lognormal", "lognormal", "johnson_sb", "uniform", "triangular"],
        )
    ),
)
def test_population_means_are_those_of_many_people(attribute, cost):
    model, population = model_of(attribute, cost)
    for label, place in (("a", 1), ("f", 0)):
        ratios = drawn_ratios(model, population, label)
        found = population_means(Ratio(model, label, "c", (place, 2)), population, 3)
        assert float(found) == pytest.approx(float(ratios.mean()), rel=0.015)


@pytest.mark.parametrize("cost", ["negative_lognormal", "normal", "censored_normal"])
def test_quantiles_and_the_share_below_zero_are_those_of_many_people(cost):
    """With a censored cost half of the people pay anything: infinite quantiles stay infinite."""
    model, population = model_of("normal", cost)
    if cost == "censored_normal":
        population = PopulationParameters(population.fixed, population.location * torch.tensor([1.0, 0.0]), TRIL[None])
    ratios = drawn_ratios(model, population, "a")
    found = _statistics(Ratio(model, "a", "c", (1, 2)), population, 3, [0.05, 0.5, 0.9])[0]
    expected = np.quantile(ratios.numpy(), [0.05, 0.5, 0.9], method="nearest")
    places = np.array([float((ratios <= value).double().mean()) for value in found[:3]])
    finite = np.isfinite(expected)
    assert np.isfinite(found[:3].numpy()).tolist() == finite.tolist()
    assert places[finite] == pytest.approx(np.array([0.05, 0.5, 0.9])[finite], abs=0.01)
    assert float(found[3]) == pytest.approx(float((ratios < 0).double().mean()), abs=0.01)


VERDICTS = {
    "normal": (False, "reaches zero"),
    "truncated_normal": (False, "reaches zero"),
    "censored_normal": (False, "infinite"),
    "lognormal": (True, "keeps away"),
    "negative_lognormal": (True, "keeps away"),
    "johnson_sb": (True, "keeps away"),
    "uniform": (True, "keeps away"),
    "triangular": (True, "keeps away"),
}


@pytest.mark.parametrize("cost", FAMILIES)
def test_the_verdict_follows_the_distribution_of_the_cost(cost):
    model, population = model_of("normal", cost)
    ratio = Ratio(model, "a", "c", (1, 2))
    exists, sentence = ratio.judge(population)
    assert exists is VERDICTS[cost][0]
    assert VERDICTS[cost][1] in sentence
    assert exists or "MixedLogit(scale='c')" in sentence
    # The same with the bounds of a uniform or triangular on either side of zero.
    wide = PopulationParameters(population.fixed, population.location, 5.0 * population.scale_tril)
    assert ratio.judge(wide)[0] is (VERDICTS[cost][0] and cost not in ("uniform", "triangular"))


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    random = {"time": (-0.8, 0.5), "cost": (-0.3, 0.4, "negative_lognormal")}
    return simulate_choices(300, 6, 3, fixed={"comfort": 0.6}, random=random, random_state=3)[0]


RANDOM = {"time": "normal", "cost": "negative_lognormal"}


def fitted(frame: pd.DataFrame, method: object, **options: object) -> MixedLogit:
    options = {"fixed": ["comfort"], "random": RANDOM, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MixedLogit(**options, method=method, random_state=0).fit(frame)


@pytest.fixture(scope="module")
def est(frame) -> MixedLogit:
    return fitted(frame, VI(correct=False))


@pytest.mark.parametrize(
    "method", [VI(correct=False), MSLE(n_draws=200), MCMC(warmup=200, samples=300)], ids=lambda m: type(m).__name__
)
def test_engines_know_what_an_hour_is_worth(frame, method):
    """Truth: -.8 minutes at a median cost coefficient of -exp(-.3); its mean by the moments of the lognormal."""
    table = fitted(frame, method).wtp("time", "cost")
    assert list(table.index) == ["mean", "5 %", "25 %", "50 %", "75 %", "95 %", "share below zero"]
    assert list(table.columns) == ["estimate", "lower", "upper"]
    assert (table["lower"] <= table["estimate"]).all()
    assert (table["estimate"] <= table["upper"]).all()
    mean = -0.8 * np.exp(0.3 + 0.5 * 0.4**2)
    assert table.loc["mean", "lower"] < mean < table.loc["mean", "upper"]
    assert table.loc["25 %", "estimate"] < table.loc["50 %", "estimate"] < table.loc["75 %", "estimate"]
    assert "finite" in table.attrs["verdict"]


def test_a_fixed_attribute_and_wider_intervals(est):
    table, wider = (
        est.wtp("comfort", "cost", quantiles=[0.5]),
        est.wtp("comfort", "cost", quantiles=[0.5], interval=0.99),
    )
    assert list(table.index) == ["mean", "50 %", "share below zero"]
    assert table.loc["50 %", "lower"] > wider.loc["50 %", "lower"]
    assert table.loc["share below zero", "estimate"] == 0.0


def test_units_of_the_cost_and_of_utility(frame):
    """Cost in hundredths: a hundred times the amount. The scale of utility has no effect on a ratio, by construction."""
    plain = fitted(frame, MSLE(n_draws=100)).wtp("time", "cost")["estimate"]
    cents = fitted(frame.assign(cost=100.0 * frame["cost"]), MSLE(n_draws=100)).wtp("time", "cost")["estimate"]
    assert (cents / plain)[["mean", "25 %", "50 %"]].to_numpy() == pytest.approx([100.0] * 3, rel=1e-3)


def test_both_spaces_agree_where_they_are_one_model(frame):
    """A fixed cost and one normal: amounts of money are normal as well, and the likelihoods are equal."""
    options = {"fixed": ["comfort", "cost"], "random": ["time"], "correlated": False}
    preference, money = (fitted(frame, MSLE(n_draws=300), **options, scale=s) for s in (None, "cost"))
    assert money.log_likelihood_ == pytest.approx(preference.log_likelihood_, abs=0.05)
    one, other = (e.wtp("time", "cost")["estimate"] for e in (preference, money))
    assert one.to_numpy() == pytest.approx(other.to_numpy(), abs=0.01)


def test_people_by_their_choices(est, frame):
    whole, some = est.wtp("time", "cost", people="fit"), est.wtp("time", "cost", people=frame[frame["id"].isin([4, 9])])
    assert list(some.index) == [4, 9]
    assert whole.index.name == "decision_maker"
    assert len(whole) == 300
    pd.testing.assert_frame_equal(some, whole.loc[[4, 9]], rtol=1e-5)
    assert (whole["lower"] < whole["upper"]).all()
    # The mean over people of means given choices is about that of the population.
    assert whole["estimate"].mean() == pytest.approx(est.wtp("time", "cost").loc["mean", "estimate"], abs=0.08)


def test_no_mean_with_a_normal_cost(frame):
    table = fitted(frame, VI(correct=False), random=["time", "cost"]).wtp("time", "cost")
    assert "mean" not in table.index
    assert "no mean" in table.attrs["verdict"]
    assert np.isfinite(table.to_numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tme", "cost"), "no coefficients of this model"),
        (("cost", "cost"), "both 'cost'"),
        (("sd.time", "cost"), "no coefficients of this model"),
        (("time", "cost", "all"), "people must be"),
    ],
)
def test_mistakes_get_one_sentence(est, arguments, sentence):
    with pytest.raises(SpecificationError, match=sentence):
        est.wtp(*arguments)


@pytest.mark.parametrize("quantiles", [0.5, "median", [2.0], [0.5, 1.0]])
def test_quantiles_that_are_none(est, quantiles):
    with pytest.raises(SpecificationError, match="quantiles must be"):
        est.wtp("time", "cost", quantiles=quantiles)


def test_a_cost_of_the_wrong_sign_is_no_denominator(frame):
    est = fitted(frame, VI(correct=False), random={"time": "normal", "cost": "lognormal"})
    assert est.diagnostics_["wrong_sign"] == ["cost"]
    with pytest.raises(SpecificationError, match="void"):
        est.wtp("time", "cost")


def test_what_is_the_same_for_everybody_has_no_people(frame):
    est = fitted(frame, MSLE(n_draws=50), fixed=["comfort", "cost"], random=["time"])
    with pytest.raises(SpecificationError, match="same for everybody"):
        est.wtp("comfort", "cost", people="fit")
    money = fitted(frame, MSLE(n_draws=50), fixed=["comfort", "cost"], random=["time"], scale="cost")
    with pytest.raises(SpecificationError, match="scale='cost'"):
        money.wtp("time", "comfort")
    assert money.wtp("time", "cost", people="fit").shape == (300, 3)
