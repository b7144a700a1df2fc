"""Willingness-to-pay space under variational inference and chains, beside preference space and simulated likelihood."""

import warnings

import numpy as np
import pandas as pd
import pytest

from mxlogit import MCMC, MSLE, ConvergenceWarning, MixedLogit, Priors, SpecificationError, wide_to_long
from mxlogit.simulate import simulate_choices

# A random scale and amounts of money, of both kinds, whose posteriors are compared with those of long chains.
RANDOM = {"z": "normal", "cost": "negative_lognormal"}


@pytest.fixture(scope="module")
def priced():
    """Cost coefficient -1 for all people; valuations of z and w vary, x is worth 0.7."""
    random = {"z": (1.5, 0.8), "w": (-0.5, 0.6)}
    return simulate_choices(250, 8, 3, fixed={"x": 0.7, "cost": -1.0}, random=random, random_state=4)[0]


@pytest.fixture(scope="module")
def uneven():
    """A random cost coefficient, and amounts of money of which those of z vary."""
    rng = np.random.default_rng(8)
    n, t, j = 250, 8, 3
    x, z, cost = (rng.normal(size=(n, t, j)) for _ in range(3))
    scale, worth = np.exp(rng.normal(0.2, 0.4, size=(n, 1, 1))), rng.normal(1.2, 0.5, size=(n, 1, 1))
    chosen = (scale * (worth * z + 0.7 * x - cost) + rng.gumbel(size=(n, t, j))).argmax(-1)
    person, situation, alternative = np.meshgrid(*map(np.arange, (n, t, j)), indexing="ij")
    columns = {"id": person, "situation": situation, "alternative": alternative, "x": x, "z": z, "cost": cost}
    frame = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
    return frame.assign(choice=(alternative == chosen[..., None]).ravel())


def fit(frame, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MixedLogit(**{"random_state": 1, **options}).fit(frame)


@pytest.fixture(scope="module")
def money(uneven):
    return fit(uneven, fixed=["x"], random=RANDOM, scale="cost")


def test_with_a_fixed_scale_both_spaces_have_one_posterior(priced):
    """Amounts are ratios of samples of the other space; priors are so wide that they do not matter."""
    flat = Priors(location_scale=1e3, sd_scale=1e3)
    request = {"fixed": ["x", "cost"], "random": ["z", "w"], "correlated": False, "priors": flat}
    utils, amounts = fit(priced, **request), fit(priced, scale="cost", **request)
    ratios = utils.posterior_samples().drop(columns="cost").div(-utils.posterior_samples()["cost"], axis=0)
    table = amounts.summary()
    for label in ("x", "z", "w", "sd.z", "sd.w"):
        assert table.loc[label, "estimate"] == pytest.approx(ratios[label].mean(), abs=0.15 * ratios[label].std())
        assert table.loc[label, "std_error"] == pytest.approx(ratios[label].std(), rel=0.12)
    assert amounts.log_likelihood_ == pytest.approx(utils.log_likelihood_, abs=0.5)
    for label in ("x", "z"):
        one, other = (est.wtp(label, "cost") for est in (utils, amounts))
        width = (one["upper"] - one["lower"]).clip(lower=1e-9)
        assert ((one["estimate"] - other["estimate"]).abs() < 0.15 * width + 0.002).all()
    np.testing.assert_allclose(amounts.predict_proba(priced), utils.predict_proba(priced), atol=0.01)


def test_a_random_scale_against_chains(uneven, money):
    chains = fit(uneven, fixed=["x"], random=RANDOM, scale="cost", method=MCMC(warmup=400, samples=700))
    here, there = money.summary(), chains.summary()
    noise = there["std_error"] * (0.2 + 3.0 / there["ess"] ** 0.5)
    assert ((here["estimate"] - there["estimate"]).abs() < noise).all()
    assert (here["std_error"] / there["std_error"]).between(0.85, 1.15).all()
    assert money.log_likelihood_ == pytest.approx(chains.log_likelihood_, abs=0.7)
    people, others = (est.individual_coefficients()["z"] for est in (money, chains))
    assert ((people["mean"] - others["mean"]).abs() / others["sd"]).quantile(0.95) < 0.2
    assert chains.wtp("x", "cost").loc["mean", "estimate"] == pytest.approx(chains.coef_["x"], abs=0.02)


def test_a_random_scale_is_near_simulated_likelihood_and_the_truth(uneven, money):
    simulated = fit(uneven, fixed=["x"], random=RANDOM, scale="cost", method=MSLE(n_draws=256, draws="sobol"))
    table = money.summary()
    assert ((table["estimate"] - simulated.coef_).abs() < 0.5 * table["std_error"]).all()
    truth = pd.Series({"x": 0.7, "z": 1.2, "cost": 0.2, "sd.z": 0.5, "sd.cost": 0.4})
    assert ((table["estimate"] - truth).abs()[truth.index] < 3.0 * table["std_error"][truth.index]).all()


def test_default_priors_do_not_depend_on_the_units_of_money(uneven, money):
    """In cents instead of francs, amounts are a hundred times as large, and nothing else changes."""
    cents = fit(uneven.assign(cost=100.0 * uneven["cost"]), fixed=["x"], random=RANDOM, scale="cost")
    for label in ("x", "z", "sd.z"):
        assert cents.coef_[label] == pytest.approx(100.0 * money.coef_[label], rel=0.01)
    assert cents.coef_["sd.cost"] == pytest.approx(money.coef_["sd.cost"], rel=0.01)
    assert cents.log_likelihood_ == pytest.approx(money.log_likelihood_, abs=0.1)


def test_amounts_have_surplus_and_a_verdict(uneven, money):
    found = money.wtp("z", "cost")
    assert "Amounts of money" in found.attrs["verdict"]
    cheaper = money.surplus(uneven, uneven.assign(cost=uneven["cost"] - 0.5))
    assert cheaper.loc["mean", "estimate"] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.slow
@pytest.mark.reference
def test_yogurt_in_both_spaces(reference):
    """One model, since the scale is fixed: one log likelihood. Published by 500 draws: -1243.5 in utils, -1241.2 in money."""
    wide, brands = pd.read_csv(reference / "yogurt.csv.gz"), ["dannon", "hiland", "weight", "yoplait"]
    columns = {name: {brand: f"{name}.{brand}" for brand in brands} for name in ("price", "feat")}
    frame = wide_to_long(wide, columns, choice="choice", decision_maker="id")
    for brand in brands[1:]:
        frame[brand] = (frame["alternative"] == brand) * 1.0
    request = {"fixed": ["price"], "random": ["feat", *brands[1:]], "correlated": False}
    utils, amounts = fit(frame, **request), fit(frame, scale="price", **request)
    assert utils.log_likelihood_ == pytest.approx(amounts.log_likelihood_, abs=0.7)
    assert utils.log_likelihood_ == pytest.approx(-1243.548, abs=4.0)
    for brand in brands[1:]:
        one, other = (est.wtp(brand, "price").loc["50 %"] for est in (utils, amounts))
        assert abs(one["estimate"] - other["estimate"]) < 0.3 * (one["upper"] - one["lower"])


@pytest.mark.parametrize("method", ["svi", MCMC(sampler="nuts")])
def test_engines_that_know_utils_only_say_so(uneven, method):
    with pytest.raises(SpecificationError, match="needs method='vi', 'mcmc' or 'msle'"):
        MixedLogit(fixed=["x"], random=RANDOM, scale="cost", method=method, random_state=1).fit(uneven)
