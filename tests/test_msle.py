"""Maximum simulated likelihood: published digits, covariances, checks, contracts."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import fit_error_components, fit_normal_time, importance_sampled_maximum

from mxlogit import (
    MCMC,
    MSLE,
    VI,
    ChoiceData,
    ChoiceDataError,
    ConvergenceWarning,
    MixedLogit,
    Priors,
    SpecificationError,
    datasets,
    parameter_function,
    wald_test,
)
from mxlogit.draws.simulation import SCHEMES
from mxlogit.inference.msle import engine as msle_module
from mxlogit.integration.simulated_likelihood import SimulatedLikelihood
from mxlogit.model.parameters import PopulationParameters
from mxlogit.simulate import simulate_choices

ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]


def fit_electricity(**options):
    method = MSLE(**{"n_starts": 1, "covariance": "hessian", "n_samples": 50, **options})
    est = MixedLogit(
        random=ELECTRICITY, correlated=False, situation="chid", alternative="alt", method=method, random_state=0
    )
    with warnings.catch_warnings():
        # A hundred draws are few, and the fit says so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return est.fit(datasets.load_electricity())


@pytest.mark.reference
@pytest.mark.parametrize("n_draws", [100, 600, pytest.param(1000, marks=pytest.mark.slow)])
def test_published_digits_of_electricity(reference, n_draws):
    """Log likelihood to 1e-3, estimates to 5e-4, Hessian standard errors to 2 % (mlogit, xlogit)."""
    expected = json.loads((reference / "msle_electricity.json").read_text())["six_independent_normals"]
    est = fit_electricity(n_draws=n_draws)
    ladder = {rung["R"]: rung["loglik"] for rung in expected["ladder"]}
    assert est.diagnostics_["simulated_log_likelihood"] == pytest.approx(ladder[n_draws], abs=1e-3)
    if n_draws == 1000:
        return
    for label, value in expected["estimates"][str(n_draws)]["values"].items():
        assert est.coef_[label] == pytest.approx(value, abs=5e-4), label
    for label, error in expected["standard_errors"]["numerical_hessian"][str(n_draws)].items():
        assert est.summary().loc[label, "std_error"] == pytest.approx(error, rel=0.02), label


@pytest.mark.reference
def test_published_person_bhhh_errors(reference):
    expected = json.loads((reference / "msle_electricity.json").read_text())["six_independent_normals"]
    est = fit_electricity(n_draws=100, covariance="bhhh")
    for label, error in expected["standard_errors"]["person_bhhh"]["100"].items():
        assert est.summary().loc[label, "std_error"] == pytest.approx(error, rel=0.02), label


def test_other_signs_can_win_and_are_named():
    one, several = fit_electricity(n_draws=100), fit_electricity(n_draws=100, n_starts=3)
    first, best = (e.diagnostics_["simulated_log_likelihood"] for e in (one, several))
    assert best > first + 5.0
    assert "flipped" in several.diagnostics_["start"]
    assert (several.coef_[[f"sd.{name}" for name in ELECTRICITY]] > 0).all()


@pytest.fixture(scope="module")
def frame():
    made, _ = simulate_choices(
        400, 8, 3, fixed={"x": 1.0}, random={"z": (0.5, 1.0), "w": (0.3, 0.8)}, correlation=0.4, random_state=9
    )
    return made


def make(**options):
    method = MSLE(**{"n_draws": 200, "n_samples": 400, "n_starts": 1, **options})
    return MixedLogit(fixed=["x"], random=["z", "w"], method=method, random_state=3)


@pytest.fixture(scope="module")
def est(frame):
    return make(n_draws=500).fit(frame)


def test_estimates_agree_with_variational_inference(est, frame):
    """Maximiser against posterior mean: within half a standard error on 400 people; errors within a fifth."""
    vi = MixedLogit(fixed=["x"], random=["z", "w"], method=VI(), random_state=3, priors=Priors(standardize=True)).fit(
        frame
    )
    error = vi.summary()["std_error"]
    assert ((est.coef_ - vi.coef_).abs() < 0.5 * error).all()
    assert (est.summary()["std_error"] / error).between(0.8, 1.2).all()
    assert est.log_likelihood_ == pytest.approx(vi.log_likelihood_, abs=2.0)


def test_contract_of_the_result(est, frame):
    table = est.summary()
    assert list(table.columns) == ["estimate", "std_error", "lower", "upper", "z", "p"]
    assert est.result_.samples.kind == "sampling distribution"
    np.testing.assert_allclose(est.posterior_samples().std(), table["std_error"], rtol=0.15)
    d = est.diagnostics_
    assert d["aic"] == pytest.approx(2 * 6 - 2 * d["simulated_log_likelihood"])
    assert d["null_log_likelihood"] == pytest.approx(-400 * 8 * math.log(3), rel=1e-6)
    assert 0 < d["rho_squared"] < 1
    assert d["redraw_shift"] < 1.0
    assert d["converged"] is True
    np.testing.assert_allclose(
        est.predict_proba(frame).groupby([frame["id"], frame["situation"]]).sum(), 1.0, atol=1e-9
    )


def test_conditional_tastes_agree_with_importance_weights(est):
    from mxlogit.integration.tastes import ImportanceTastes
    from mxlogit.results.individual_coefficients import taste_moments

    fitted = est._fitted
    exact, _ = ImportanceTastes(fitted.model, 1, 8, draws=2048).moments(fitted.panel, est.result_.center)
    simulated = taste_moments(fitted.model, est.result_, fitted.fitted_people(fitted.decision_makers))
    scale = simulated.deviation.mean()
    assert float((simulated.mean - exact).square().mean().sqrt()) < 0.15 * float(scale)


def test_the_three_covariances_are_close_on_well_specified_data(frame):
    errors = [make(covariance=kind).fit(frame).summary()["std_error"] for kind in ("robust", "hessian", "bhhh")]
    for other in errors[1:]:
        assert (other / errors[0]).between(0.7, 1.4).all()


@pytest.mark.parametrize("optimizer", ["newton", "bfgs"])
@pytest.mark.parametrize("draws", SCHEMES)
def test_every_scheme_and_optimiser_reaches_the_neighbourhood(est, frame, draws, optimizer):
    other = make(draws=draws, optimizer=optimizer, n_draws=256).fit(frame)
    assert other.diagnostics_["converged"]
    assert ((other.coef_ - est.coef_).abs() < 0.6 * est.summary()["std_error"]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_draws": 0}, "n_draws"),
        ({"draws": "haltn"}, "Did you mean 'halton'"),
        ({"optimizer": "newtn"}, "Did you mean 'newton'"),
        ({"covariance": "hc3"}, "covariance"),
        ({"antithetic": True, "n_draws": 201}, "even n_draws"),
    ],
)
def test_bad_settings_are_explained(frame, options, words):
    with pytest.raises(SpecificationError, match=words):
        make(**options).fit(frame)


# -- draws, starts and order ------------------------------------------------------------------------


def test_blocks_of_draws_go_to_people_in_order_of_first_appearance(frame):
    """Renaming people changes nothing when rows keep their order; the tables are still sorted by name."""
    renamed = frame.assign(id=1_000 - frame["id"])
    one, other = make(n_draws=30, check_draws=False).fit(frame), make(n_draws=30, check_draws=False).fit(renamed)
    pd.testing.assert_series_equal(one.coef_, other.coef_, rtol=1e-7)
    tastes, mirrored = one.individual_coefficients(), other.individual_coefficients()
    assert mirrored.index.is_monotonic_increasing
    np.testing.assert_allclose(tastes.to_numpy(), mirrored.sort_index(ascending=False).to_numpy(), rtol=1e-6)


def test_with_antithetic_draws_mirrored_starts_end_at_one_answer(frame, monkeypatch):
    plain = make(antithetic=True, n_draws=100).fit(frame)
    original = msle_module.start_population

    def mirrored(model, logit):
        start = original(model, logit)
        return PopulationParameters(start.fixed, start.location, -start.scale_tril)

    monkeypatch.setattr(msle_module, "start_population", mirrored)
    other = make(antithetic=True, n_draws=100).fit(frame)
    pd.testing.assert_series_equal(plain.coef_, other.coef_, rtol=1e-5)
    # Hessians are taken up to 0.02 standard errors from the optimum.
    np.testing.assert_allclose(plain.summary()["std_error"], other.summary()["std_error"], rtol=1e-3)
    np.testing.assert_allclose(plain.individual_coefficients(), other.individual_coefficients(), atol=1e-6)


@pytest.mark.parametrize("optimizer", ["bfgs", "l-bfgs", "trust-region"])
def test_all_routes_agree_in_every_reported_digit(frame, optimizer):
    newton, other = make(n_draws=100).fit(frame), make(n_draws=100, optimizer=optimizer).fit(frame)
    error = newton.summary()["std_error"]
    assert ((newton.coef_ - other.coef_).abs() < 1e-3 * error).all()
    np.testing.assert_allclose(other.summary()["std_error"], error, rtol=3e-3)
    value = newton.diagnostics_["simulated_log_likelihood"]
    assert other.diagnostics_["simulated_log_likelihood"] == pytest.approx(value, abs=1e-6)


def test_float32_data_give_the_same_digits(frame):
    double, single = make(n_draws=100).fit(frame), make(n_draws=100)
    single.dtype = "float32"
    single.fit(frame)
    assert ((double.coef_ - single.coef_).abs() < 0.01 * double.summary()["std_error"]).all()


@pytest.mark.slow
def test_many_draws_reach_the_importance_sampled_maximum(frame):
    """MSLE with 20,000 draws = maximum of the importance-sampled likelihood, to a tenth of a standard error."""
    est = make(n_draws=20_000, check_draws=False).fit(frame)
    population, value, _ = importance_sampled_maximum(est, draws=2048)
    reported = est._fitted.model.space.report(population).numpy()
    assert (np.abs(est.coef_ - reported) < 0.1 * est.summary()["std_error"]).all()
    assert est.diagnostics_["simulated_log_likelihood"] == pytest.approx(value, abs=0.3)


@pytest.mark.reference
@pytest.mark.slow
def test_normal_time_of_swissmetro(reference):
    """Every situation its own draws (b05): the accurate log likelihood within 0.1 at 10,000 draws."""
    expected = json.loads((reference / "msle_swissmetro.json").read_text())["models"]["b05b"]["converged"]["loglik"]
    est = fit_normal_time(MSLE(n_draws=10_000, n_starts=1, check_draws=False))
    assert est.diagnostics_["simulated_log_likelihood"] == pytest.approx(expected, abs=0.1)


@pytest.mark.reference
@pytest.mark.slow
def test_error_components_of_swissmetro(reference):
    """Panel with four normals (b12) by importance sampling and at 5,000 antithetic draws."""
    expected = json.loads((reference / "msle_swissmetro.json").read_text())["models"]["b12"]
    with pytest.warns(ConvergenceWarning, match="not enough"):
        est = fit_error_components(MSLE(n_draws=5_000, draws="pseudo", antithetic=True, n_starts=1))
    value = est.diagnostics_["simulated_log_likelihood"]
    assert value == pytest.approx(expected["loglik"], abs=expected["tolerance"]["published_loglik_abs"])
    population, maximum, error = importance_sampled_maximum(est, draws=2048)
    assert maximum == pytest.approx(expected["converged"]["loglik"], abs=1.0)
    assert error < 0.5
    covariance = population.scale_tril @ population.scale_tril.T
    shared = float(covariance[1, 2])
    estimates = {
        "b_cost": float(population.fixed[0]),
        "b_time": float(population.location[0]),
        "b_time_s": math.sqrt(float(covariance[0, 0])),
        "asc_car_s": math.sqrt(float(covariance[2, 2]) - shared),
    }
    for name, estimate in estimates.items():
        assert estimate == pytest.approx(expected["converged"]["estimates"][name], abs=0.1), name
    for name, estimate in (("asc_train_s", float(covariance[1, 1]) - shared), ("asc_sm_s", shared)):
        assert math.sqrt(estimate) == pytest.approx(expected["converged"]["estimates"][name], abs=0.3), name


@pytest.mark.reference
@pytest.mark.parametrize("optimizer", ["newton", "bfgs", "trust-region"])
def test_without_random_tastes_it_is_the_multinomial_logit(reference, optimizer):
    expected = json.loads((reference / "msle_electricity.json").read_text())["mnl"]
    method = MSLE(optimizer=optimizer, antithetic=True, draws="sobol")
    est = MixedLogit(fixed=ELECTRICITY, situation="chid", alternative="alt", method=method, random_state=0)
    est.fit(datasets.load_electricity())
    assert est.diagnostics_["simulated_log_likelihood"] == pytest.approx(expected["loglik"], abs=1e-4)
    assert est.log_likelihood_ == pytest.approx(expected["loglik"], abs=1e-4)
    for name, value in expected["estimates"].items():
        assert est.coef_[name] == pytest.approx(value, abs=1e-5)
    assert est.individual_coefficients().shape == (361, 0)


# -- covariances and identification -----------------------------------------------------------------


def test_clustered_by_person_is_robust_and_by_twins_is_not(frame):
    robust = make(n_draws=50, check_draws=False).fit(frame).summary()["std_error"]
    own = make(n_draws=50, check_draws=False, covariance="clustered")
    own.set_params(cluster="id").fit(frame)
    np.testing.assert_allclose(own.summary()["std_error"], robust * math.sqrt(400 / 399), rtol=1e-9)
    doubled = pd.concat([frame, frame.assign(id=frame["id"] + 1_000)], ignore_index=True)
    doubled["twins"] = doubled["id"] % 1_000
    draws = {"n_draws": 1_000, "check_draws": False}
    naive = make(**draws).fit(doubled).summary()["std_error"]
    twins = make(covariance="clustered", **draws).set_params(cluster="twins").fit(doubled).summary()["std_error"]
    # Every person twice: clustering undoes the false gain of a factor sqrt(2), up to the draws' noise.
    np.testing.assert_allclose(twins / naive, math.sqrt(2.0), rtol=0.03)


def test_clusters_that_split_people_or_are_missing_are_explained(frame):
    est = make(covariance="clustered")
    with pytest.raises(SpecificationError, match="cluster="):
        est.fit(frame)
    with pytest.raises(ChoiceDataError, match="differs within"):
        est.set_params(cluster="situation").fit(frame)
    with pytest.raises(ChoiceDataError, match="no column 'towm'"):
        est.set_params(cluster="towm").fit(frame)


def test_arrays_with_clusters_fit_like_the_frame(frame):
    fitted = make(n_draws=50, check_draws=False, covariance="clustered").set_params(cluster="id").fit(frame)
    made, _ = simulate_choices(
        400, 8, 3, fixed={"x": 1.0}, random={"z": (0.5, 1.0), "w": (0.3, 0.8)}, correlation=0.4, random_state=9
    )
    order = ["x", "z", "w"]
    attributes = made[order].to_numpy().reshape(400, 8, 3, 3)
    chosen = made["choice"].to_numpy().reshape(400, 8, 3).argmax(-1)
    data = ChoiceData.from_arrays(attributes, chosen, names=order, clusters=[f"town {i}" for i in range(400)])
    other = make(n_draws=50, check_draws=False, covariance="clustered").fit(data)
    pd.testing.assert_frame_equal(fitted.summary(), other.summary(), rtol=1e-7)
    with pytest.raises(ChoiceDataError, match="clusters must have length 400"):
        ChoiceData.from_arrays(attributes, chosen, names=order, clusters=[1, 2])


def test_a_singular_hessian_names_its_parameters(frame):
    """With one draw, and an attribute that only one person meets, location and scale are one number."""
    lonely = frame.assign(rare=np.where(frame["id"] == frame["id"].iloc[0], frame["z"] * np.cos(frame.index), 0.0))
    est = MixedLogit(
        fixed=["x"],
        random=["rare"],
        method=MSLE(n_draws=1, n_starts=1, covariance="hessian", check_draws=False),
        random_state=0,
    )
    with pytest.warns(ConvergenceWarning, match=r"Hessian is .*\['rare', 'sd.rare'\] are not identified"):
        est.fit(lonely)
    table = est.summary()
    assert table.loc[["rare", "sd.rare"], "std_error"].isna().all()
    alone = make().set_params(random=[], method=MSLE(covariance="hessian")).fit(frame)
    assert table.loc["x", "std_error"] == pytest.approx(alone.summary().loc["x", "std_error"], rel=0.02)
    assert est.diagnostics_["unidentified"] == ["rare", "sd.rare"]


def test_a_search_cut_short_says_so(frame):
    est = make(max_iterations=1)
    with pytest.warns(ConvergenceWarning, match="iteration limit"):
        est.fit(frame)
    assert est.diagnostics_["converged"] is False


def test_sobol_wants_powers_of_two(frame):
    with pytest.warns(ConvergenceWarning, match="powers of two; 100 per person is none: use 128"):
        make(draws="sobol", n_draws=100).fit(frame)


def test_the_check_of_the_draws_tells_few_from_many(frame, est):
    assert est.diagnostics_["draws_enough"] is True
    with pytest.warns(ConvergenceWarning, match="5 draws were not enough"):
        few = make(n_draws=5).fit(frame)
    assert few.diagnostics_["redraw_shift"] > 3 * est.diagnostics_["redraw_shift"]
    # Twice the draws is the mean over both sets, so its likelihood is that of all ten draws.
    values = [few.diagnostics_[f"simulated_log_likelihood{end}"] for end in ("", "_other_draws", "_twice_the_draws")]
    assert values[2] > min(values[:2])


# -- willingness-to-pay space -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def priced():
    """Cost coefficient -1 for all people; valuations of z and w vary, x is worth 0.7."""
    made, _ = simulate_choices(
        600, 8, 3, fixed={"x": 0.7, "cost": -1.0}, random={"z": (1.5, 0.8), "w": (-0.5, 0.6)}, random_state=4
    )
    return made


def in_space(scale, random=("z", "w"), **options):
    method = MSLE(**{"n_draws": 200, "n_starts": 1, "check_draws": False, **options})
    fixed = [name for name in ("x", "cost") if name not in random]
    return MixedLogit(fixed=fixed, random=random, correlated=False, scale=scale, method=method, random_state=1)


def test_with_a_fixed_scale_both_spaces_are_one_model(priced):
    utils, money = in_space(None).fit(priced), in_space("cost").fit(priced)
    value = utils.diagnostics_["simulated_log_likelihood"]
    assert money.diagnostics_["simulated_log_likelihood"] == pytest.approx(value, abs=1e-5)
    assert money.log_likelihood_ == pytest.approx(utils.log_likelihood_, abs=0.5)
    labels = ["x", "z", "w", "sd.z", "sd.w"]
    ratio = parameter_function(utils, lambda b: {name: b[name] / abs(b["cost"]) for name in labels})
    table = money.summary().loc[labels]
    np.testing.assert_allclose(table["estimate"], ratio["estimate"], rtol=1e-4)
    np.testing.assert_allclose(table["std_error"], ratio["std_error"], rtol=0.01)
    assert money.coef_["cost"] == pytest.approx(utils.coef_["cost"], rel=1e-4)
    np.testing.assert_allclose(money.predict_proba(priced), utils.predict_proba(priced), atol=2e-3)
    assert money.score(priced) == pytest.approx(utils.score(priced), abs=1e-4)
    tastes = money.individual_coefficients()["z"]["mean"]
    expected = utils.individual_coefficients()["z"]["mean"] / abs(utils.coef_["cost"])
    np.testing.assert_allclose(tastes, expected, atol=1e-3)


def test_a_random_scale_is_recovered():
    """Log-normal cost sensitivity with normal valuations, simulated by hand; three standard errors."""
    rng = np.random.default_rng(8)
    n, t, j = 1_500, 8, 3
    x, cost = rng.normal(size=(n, t, j)), rng.uniform(0.5, 3.0, size=(n, t, j))
    scale = np.exp(rng.normal(0.2, 0.4, size=(n, 1, 1)))
    worth = rng.normal(1.2, 0.5, size=(n, 1, 1))
    chosen = (scale * (worth * x - cost) + rng.gumbel(size=(n, t, j))).argmax(-1)
    data = ChoiceData.from_arrays(np.stack([x, cost], -1), chosen, names=["x", "cost"])
    method = MSLE(n_draws=256, draws="sobol", n_starts=1)
    est = MixedLogit(
        random={"x": "normal", "cost": "negative_lognormal"},
        correlated=False,
        scale="cost",
        method=method,
        random_state=2,
    ).fit(data)
    truth = pd.Series({"x": 1.2, "cost": 0.2, "sd.x": 0.5, "sd.cost": 0.4})
    table = est.summary()
    assert ((table["estimate"] - truth).abs() < 3 * table["std_error"]).all()
    assert est.diagnostics_["converged"]
    assert est.diagnostics_["simulated_log_likelihood"] == pytest.approx(est.log_likelihood_, abs=6.0)


def test_bad_scales_are_explained(priced):
    with pytest.raises(SpecificationError, match="Did you mean 'cost'"):
        in_space("cots").fit(priced)
    with pytest.raises(SpecificationError, match="needs method='vi', 'mcmc' or 'msle'"):
        MixedLogit(fixed=["x", "cost"], random=["z"], scale="cost", method="svi", random_state=0).fit(priced)
    noise = np.random.default_rng(0).permutation(priced["cost"])
    flat = priced.assign(cost=1e-4 * noise + 0 * priced["cost"])
    with pytest.raises(SpecificationError, match="nothing can be valued"):
        in_space("cost").fit(flat.assign(cost=flat["cost"].where(flat.index % 2 == 0, flat["cost"] * 1.0)))


# -- sign-restricted tastes -------------------------------------------------------------------------

NEGATIVE = "negative_lognormal"


def simulate_negative(n, location, deviation, seed, situations=8, alternatives=2):
    """Two correlated negative lognormal tastes."""
    random = dict.fromkeys(["x", "y"], (location, deviation, NEGATIVE))
    made, _ = simulate_choices(n, situations, alternatives, random=random, correlation=0.5, random_state=seed)
    return made


def fit_two(frame, family, **options):
    method = MSLE(**{"n_draws": 200, "check_draws": False, **options})
    return MixedLogit(random=dict.fromkeys(["x", "y"], family), method=method, random_state=0).fit(frame)


def test_sign_restricted_tastes_take_about_as_many_passes_as_normal_ones():
    """Choices are all but certain on many draws: searches by outer products of scores once took hundreds of passes."""
    rough = simulate_negative(150, 2.0, 1.5, seed=1)
    normal, negative = (fit_two(rough, family).diagnostics_ for family in ("normal", NEGATIVE))
    assert negative["converged"]
    assert negative["newton_decrement"] < 5e-7
    assert negative["passes"] < 2.0 * normal["passes"]
    # The maximum that 633 passes found.
    assert negative["simulated_log_likelihood"] > -282.5037 - 1e-3


def test_maximum_with_sign_restricted_tastes_is_that_of_a_reference_optimiser():
    """Where the simulated likelihood is smooth it has one maximum."""
    smooth = simulate_negative(200, -0.5, 0.7, seed=2, alternatives=3)
    options = {"n_starts": 1, "n_draws": 400}
    found, reference = (fit_two(smooth, NEGATIVE, optimizer=name, **options) for name in ("newton", "bfgs"))
    value = reference.diagnostics_["simulated_log_likelihood"]
    assert found.diagnostics_["simulated_log_likelihood"] == pytest.approx(value, abs=1e-5)
    assert ((found.coef_ - reference.coef_).abs() < 1e-3 * reference.summary()["std_error"]).all()


@pytest.mark.slow
def test_standard_errors_of_a_lognormal_are_posterior_sds_under_flat_priors():
    """On 2,000 people the posterior is normal around the maximum: errors agree to 6 % with sds of long chains.

    Their sds have Monte Carlo errors of 1 to 2 %; robust errors vary by another 2 %.
    """
    random = {"z": (0.5, 0.8), "cost": (-0.3, 0.6, NEGATIVE)}
    made, _ = simulate_choices(2_000, 8, 3, fixed={"x": 1.0}, random=random, random_state=5)
    request = {"fixed": ["x"], "random": {"z": "normal", "cost": NEGATIVE}, "correlated": False, "random_state": 1}
    flat = Priors(location_scale=100.0, sd_scale=100.0)
    chains = MixedLogit(**request, method=MCMC(start="vi", warmup=200, samples=1_000), priors=flat).fit(made).summary()
    for covariance in ("robust", "hessian"):
        method = MSLE(n_draws=1_024, draws="sobol", covariance=covariance, n_starts=1, check_draws=False)
        table = MixedLogit(**request, method=method).fit(made).summary()
        assert (table["std_error"] / chains["std_error"]).between(0.94, 1.06).all()
        assert ((table["estimate"] - chains["estimate"]).abs() < 0.2 * table["std_error"]).all()


# -- found in review --------------------------------------------------------------------------------


def test_censored_tastes_have_standard_errors():
    made, _ = simulate_choices(200, 8, 3, fixed={"x": 1.0}, random={"z": (0.3, 1.0, "censored_normal")}, random_state=1)
    errors = []
    for n_draws in (200, 4_000):
        method = MSLE(n_draws=n_draws, n_starts=1, covariance="hessian", check_draws=False)
        est = MixedLogit(fixed=["x"], random={"z": "censored_normal"}, method=method, random_state=0).fit(made)
        assert est.diagnostics_["converged"]
        errors.append(est.summary()["std_error"])
    np.testing.assert_allclose(errors[0], errors[1], rtol=0.1)
    # The mean over many draws is smooth: a polynomial through its values has the curvature of the Hessian, part of
    # which no single draw has.
    fitted = est._fitted
    likelihood = SimulatedLikelihood(fitted.model, fitted.panel, est.result_.tastes.draws)
    vector = likelihood.coordinates(est.result_.center)
    steps = torch.linspace(-0.3, 0.3, 13, dtype=torch.float64)
    z = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    values = torch.tensor([likelihood.value(vector + h * z) for h in steps], dtype=torch.float64)
    quartic = torch.linalg.lstsq(torch.stack([steps**i for i in range(5)], -1), values[:, None]).solution[:, 0]
    curvature = float(likelihood.evaluate(vector, curvature=True).hessian[1, 1])
    assert curvature == pytest.approx(2.0 * float(quartic[2]), rel=0.05)


def warned(est, frame):
    """Fit and return all that was warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        est.fit(frame)
    return " ".join(str(warning.message) for warning in caught)


def test_too_few_clusters_or_people_give_no_tiny_errors(frame):
    one = make(covariance="clustered", n_draws=50, check_draws=False).set_params(cluster="town")
    assert "1 clusters are too few" in warned(one, frame.assign(town=1))
    assert one.summary()["std_error"].isna().all()
    assert "2 clusters are too few" in warned(one, frame.assign(town=frame["id"] % 2))
    few = make(covariance="bhhh", n_draws=50, check_draws=False)
    assert "decision makers are too few" in warned(few, frame[frame["id"] <= 5])
    assert few.summary()["std_error"].isna().all()


def test_separated_coefficients_have_no_standard_error(frame):
    est = make(n_draws=50, check_draws=False).set_params(fixed=["x", "sure"])
    assert "Separation" in warned(est, frame.assign(sure=frame["choice"].astype(float)))
    assert np.isnan(est.summary().loc["sure", "std_error"])


def test_a_column_with_the_label_of_another_ones_deviation_keeps_its_error(frame):
    never = frame.assign(never=(frame["alternative"] == "a3").astype(float)).rename(columns={"x": "sd.never"})
    a3 = never.loc[never["choice"] & (never["never"] == 1), ["id", "situation"]]
    others = never.merge(a3.assign(a3=True), how="left")
    est = make(n_draws=50, check_draws=False).set_params(fixed=["sd.never", "never"])
    assert "Separation" in warned(est, others[others["a3"].isna()])
    errors = est.summary()["std_error"]
    assert np.isnan(errors["never"])
    assert 0.0 < errors["sd.never"] < 0.5


def test_samples_and_tests_do_not_depend_on_units(frame):
    plain = make(n_draws=100, check_draws=False).fit(frame)
    scaled = make(n_draws=100, check_draws=False).fit(frame.assign(x=frame["x"] * 1e8, z=frame["z"] * 1e-8))
    np.testing.assert_allclose(scaled.posterior_samples().std(), scaled.summary()["std_error"], rtol=0.15)
    labels = ["x", "z"]
    assert wald_test(scaled, labels).statistic == pytest.approx(wald_test(plain, labels).statistic, rel=1e-3)


def test_individual_tastes_do_not_depend_on_company(frame, est):
    """A part of the people of the fit meets the same draws as in the whole."""
    tastes = est.individual_coefficients()
    part = est._fitted.panel.take(slice(100, 200))
    mean, _ = est.result_.tastes.moments(part, est.result_.center)
    np.testing.assert_allclose(mean, tastes.xs("mean", axis=1, level=1).to_numpy()[100:200], rtol=1e-9)


def test_numpy_numbers_are_numbers_and_halves_are_not(frame):
    make(n_draws=np.int64(200), n_starts=np.int64(1), check_draws=False).fit(frame)
    with pytest.raises(SpecificationError, match="whole number"):
        make(n_draws=20.5).fit(frame)
