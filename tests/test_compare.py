"""Engines side by side: the same data by construction, distances that mean what they say."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from grid_oracle import Choices, GridPosterior

from mxlogit import (
    MCMC,
    MSLE,
    VI,
    ChoiceDataError,
    Comparison,
    ConvergenceWarning,
    MixedLogit,
    Priors,
    SpecificationError,
    compare_methods,
    compare_with_mcmc,
    datasets,
)
from mxlogit.simulate import simulate_choices

QUICK = MCMC(chains=2, warmup=60, samples=60)
# Where it only matters whether chains are the same ones.
SHORTEST = MCMC(chains=2, warmup=20, samples=20)


@pytest.fixture(scope="module")
def frame():
    return simulate_choices(100, 6, 3, fixed={"x": -0.7}, random={"z": (0.5, 0.8)}, random_state=4)[0]


def make(**request):
    return MixedLogit(fixed=["x"], random=["z"], random_state=0, **request)


def quietly(call, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return call(*arguments)


@pytest.fixture(scope="module")
def three(frame):
    return quietly(compare_methods, make(), frame, (VI(n_samples=200), MSLE(n_draws=100, n_samples=200), QUICK))


def test_table_holds_the_summaries_and_their_distances(three):
    assert isinstance(three, Comparison)
    assert list(three.fits) == ["vi", "msle", "mcmc"]
    assert three.reference == "mcmc"
    judge, other = three.fits["mcmc"].summary(), three.fits["msle"].summary()
    for name, est in three.fits.items():
        np.testing.assert_array_equal(three.table[name]["estimate"], est.summary()["estimate"])
        np.testing.assert_array_equal(three.table[name]["sd"], est.summary()["std_error"])
    expected = (other["estimate"] - judge["estimate"]) / judge["std_error"]
    np.testing.assert_allclose(three.table["msle"]["difference"], expected)
    np.testing.assert_allclose(three.table["msle"]["sd_ratio"], other["std_error"] / judge["std_error"])
    # The distance of marginals is at least that of their means.
    gap = three.fits["vi"].posterior_samples().mean() - three.fits["mcmc"].posterior_samples().mean()
    assert (three.table["vi"]["wasserstein"] >= gap.abs() / judge["std_error"] - 1e-9).all()
    assert list(three.table["mcmc"].columns) == ["estimate", "sd"]


def test_people_and_engines(three):
    assert list(three.people.index) == [("vi", "z"), ("msle", "z")]
    assert (three.people["correlation"] > 0.9).all()
    assert three.people["sd_ratio"].between(0.7, 1.4).all()
    engines = three.engines
    assert list(engines.index) == ["vi", "msle", "mcmc"]
    assert engines.loc["mcmc", "predictive_distance"] == 0.0
    assert engines["predictive_distance"].between(0.0, 0.05).all()
    assert engines.loc["vi", "ess"] == 200
    np.testing.assert_allclose(engines["ess_per_second"], engines["ess"] / engines["seconds"])
    # One evaluator: the maximum of the likelihood is higher than posterior means, up to Monte Carlo error.
    assert engines.loc["msle", "log_likelihood"] > engines["log_likelihood"].max() - 0.1


def test_verdict(three):
    assert "vi" in three.verdict
    assert "posterior sds (" in three.verdict
    assert "Status of the reference, mcmc: " in three.verdict
    assert three.verdict in str(three)


@pytest.mark.parametrize(
    ("far", "ratio", "agrees"),
    [
        (0.24, 1.0, True),
        (-0.24, 1.19, True),
        (0.26, 1.0, False),
        (-0.26, 1.0, False),
        (0.0, 1.21, False),
        (0.0, 0.82, False),
    ],
)
def test_engines_agree_up_to_a_quarter_of_an_sd_and_a_fifth_of_its_size(three, far, ratio, agrees):
    """The sentence follows the table: one parameter that lies apart is enough, in either direction."""
    table = three.table.copy()
    table[("vi", "difference")] = [0.0, far, 0.0]
    table[("vi", "sd_ratio")] = [1.0, 1.0, ratio]
    sentence = replace(three, table=table)._sentence("vi")
    assert sentence.startswith("vi agrees with mcmc" if agrees else "vi does not agree with mcmc")


def test_names_of_two_settings_of_one_engine(frame):
    methods = (VI(n_samples=30, correct=False), VI(n_samples=30, correct=False, draws=32))
    found = quietly(compare_methods, make(), frame, methods)
    assert list(found.fits) == ["vi", "vi 2"]
    assert [est.method.draws for est in found.fits.values()] == [None, 32]


@pytest.mark.slow
def test_two_engines_against_the_exact_posterior(frame):
    """The table's distances are those of the exact posterior from itself: none; people and evaluator likewise.

    By default the engines have it in `test_posteriors.py`, and the table what they have in the tests above.
    """
    est = make(priors=Priors(location_scale=2.0, sd_scale=1.0))
    found = quietly(compare_methods, est, frame, (VI(n_samples=400), MCMC(chains=6, warmup=100, samples=170)))
    exact = GridPosterior(Choices.of_frame(frame), 2.0, 1.0)
    assert "vi agrees with mcmc" in found.verdict
    for name in ("vi", "mcmc"):
        table = found.table[name]
        assert float(((table["estimate"] - exact.mean) / exact.sd).abs().max()) < 0.15
        np.testing.assert_allclose(table["sd"] / exact.sd, 1.0, atol=0.12)
        value = exact.log_likelihood(*found.fits[name].coef_)
        assert found.engines.loc[name, "log_likelihood"] == pytest.approx(value, abs=0.1)
    mean, sd = exact.tastes()
    people = found.fits["mcmc"].individual_coefficients()["z"]
    assert float(((people["mean"] - mean) / sd).abs().mean()) < 0.06
    assert found.people.loc[("vi", "z"), "correlation"] > 0.99
    assert found.people.loc[("vi", "z"), "rmse"] < 0.06 * sd.mean()
    assert found.people.loc[("vi", "z"), "sd_ratio"] == pytest.approx(1.0, abs=0.05)


def test_compare_with_mcmc(frame):
    est = make(method=VI(n_samples=30)).fit(frame)
    before = est.coef_.copy()
    compared = quietly(compare_with_mcmc, est, frame, SHORTEST)
    assert compared.fits["vi"] is est
    assert (est.coef_ == before).all()
    unfitted = quietly(compare_with_mcmc, make(method=VI(n_samples=30)), frame, SHORTEST)
    np.testing.assert_allclose(unfitted.table["vi"]["estimate"], compared.table["vi"]["estimate"])
    np.testing.assert_allclose(unfitted.table["mcmc"]["estimate"], compared.table["mcmc"]["estimate"])


def test_log_likelihoods_are_weighted(frame):
    """By quadrature at each engine's estimate, people counted one to three times."""
    methods = (VI(n_samples=50, correct=False), MSLE(n_draws=50, n_samples=50, check_draws=False))
    weight = 1.0 + frame["id"] % 3
    found = quietly(compare_methods, make(weights="weight"), frame.assign(weight=weight), methods)
    exact = GridPosterior(Choices.of_frame(frame, weight.groupby(frame["id"]).first()), 2.0, 1.0)
    for name, est in found.fits.items():
        value = exact.log_likelihood(*est.coef_)
        assert found.engines.loc[name, "log_likelihood"] == pytest.approx(value, abs=0.15)


def test_other_choices_are_noticed(frame):
    est = make(method=VI(n_samples=30)).fit(frame[frame["id"] <= 60])
    with pytest.raises(ChoiceDataError, match="fitted on other choices"):
        quietly(compare_with_mcmc, est, frame, QUICK)
    weighted = make(method=VI(n_samples=30), weights="w").fit(frame.assign(w=1.0))
    with pytest.raises(ChoiceDataError, match="fitted on other choices"):
        quietly(compare_with_mcmc, weighted, frame.assign(w=1.0 + (frame["id"] == 3)), QUICK)
    for change, words in (({"random": {"z": "uniform"}}, "other random"), ({"priors": Priors()}, "other priors")):
        changed = make(method=VI(n_samples=30)).fit(frame).set_params(**change)
        with pytest.raises(SpecificationError, match=words):
            quietly(compare_with_mcmc, changed, frame, QUICK)


@pytest.mark.parametrize("methods", ["vi", ("vi",), ()])
def test_two_engines_are_needed(frame, methods):
    with pytest.raises(SpecificationError, match="at least two engines"):
        compare_methods(make(), frame, methods)


def test_wrong_mcmc(frame):
    with pytest.raises(SpecificationError, match="mcmc must be None or MCMC"):
        compare_with_mcmc(make(), frame, "gibbs")


def test_plot(three):
    pytest.importorskip("matplotlib").use("agg")
    axes = three.plot(["x", "sd.z"])
    assert [ax.get_xlabel() for ax in axes] == ["x", "sd.z"]
    texts = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert sorted(texts) == ["mcmc", "msle", "vi"]
    with pytest.raises(SpecificationError, match="unknown parameters"):
        three.plot(["nobody"])


@pytest.mark.slow
def test_vi_and_mcmc_on_swissmetro():
    """Half of these people always choose alike: their weights are uneven at parameters around the mode."""
    est = MixedLogit(fixed=["cost"], random=["time"], constants=True, availability="available", random_state=0)
    compared = compare_with_mcmc(est, datasets.load_swissmetro(), MCMC(samples=1500))
    assert compared.fits["mcmc"].diagnostics_["rhat"] < 1.01
    assert compared.table["vi", "difference"].abs().max() < 0.25
    assert compared.table["vi", "sd_ratio"].between(0.9, 1.1).all()
