"""Maximum simulated likelihood: published digits, covariances, checks, contracts."""

import json
import math
import warnings

import numpy as np
import pytest

from mxlogit import MSLE, VI, ConvergenceWarning, MixedLogit, Priors, SpecificationError, datasets
from mxlogit.sequences import SCHEMES
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
    from mxlogit.results.people import taste_moments
    from mxlogit.tastes import PolishedTastes

    fitted = est._fitted
    exact, _ = PolishedTastes(fitted.model, 1, 8, draws=2048).moments(fitted.panel, est.result_.center)
    simulated = taste_moments(fitted.model, est.result_, fitted.panel)
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
