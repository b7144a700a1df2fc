"""Maximum simulated likelihood: draws, oracle, published digits, contracts."""

import json
import math

import numpy as np
import pytest
import torch

from mxlogit import MSLE, VI, MixedLogit, Priors, SpecificationError, datasets
from mxlogit.density import PanelModel
from mxlogit.likelihood import panel_log_prob
from mxlogit.mixing import Mixing
from mxlogit.priors import resolve_priors
from mxlogit.sequences import SCHEMES, draw_normals
from mxlogit.simulate import simulate_choices
from mxlogit.simulated import SimulatedLikelihood

ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]


def radical_inverse(i, base):
    value, factor = 0.0, 1.0 / base
    while i:
        value, i, factor = value + factor * (i % base), i // base, factor / base
    return value


def test_halton_by_hand():
    """Primes in order, element 0 counted among the 100 dropped, consecutive blocks per person."""
    draws = draw_normals("halton", 3, 5, 4, seed=0)
    for n in range(3):
        for r in range(5):
            for k, prime in enumerate((2, 3, 5, 7)):
                u = radical_inverse(100 + 5 * n + r, prime)
                assert float(torch.special.ndtr(draws[n, r, k])) == pytest.approx(u, abs=1e-12)
    assert float(draws[0, 0, 0]) == pytest.approx(-1.0432, abs=1e-4)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_draws_are_standard_normal_and_differ_between_people(scheme, antithetic):
    draws = draw_normals(scheme, 50, 64, 3, seed=1, antithetic=antithetic)
    assert draws.shape == (50, 64, 3)
    assert torch.isfinite(draws).all()
    assert float(draws.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(draws.var()) == pytest.approx(1.0, abs=0.04)
    assert float((draws[0] - draws[1]).abs().max()) > 0.1
    torch.testing.assert_close(draws, draw_normals(scheme, 50, 64, 3, seed=1, antithetic=antithetic), atol=0, rtol=0)
    if antithetic:
        torch.testing.assert_close(draws[:, :32], -draws[:, 32:], atol=0, rtol=0)
    if scheme != "halton":
        assert float((draws - draw_normals(scheme, 50, 64, 3, seed=2, antithetic=antithetic)).abs().max()) > 0.1


@pytest.fixture(params=[["normal", "lognormal", "normal"], ["uniform", "truncated_normal", "triangular"]])
def simulated(request, panel, space):
    mixing = Mixing(request.param)
    model = PanelModel(space, mixing, resolve_priors(Priors(), mixing, 2, [1.0] * 5), torch.ones(5).double())
    return SimulatedLikelihood(model, panel, draw_normals("halton", 5, 7, 3, 0))


@pytest.fixture
def vector(simulated, generator):
    return 0.7 * torch.randn(simulated.size, generator=generator, dtype=torch.float64)


def test_value_equals_a_loop_over_people_and_draws(simulated, panel, vector):
    population, mixing = simulated.population(vector), simulated.model.mixing
    at = simulated.evaluate(vector)
    for n in range(5):
        total = 0.0
        for r in range(7):
            latent = population.location + population.scale_tril @ simulated.draws[n, r]
            taste = mixing.tastes(latent, population.location, population.scale)
            beta = torch.cat([population.fixed, taste])[None]
            total += math.exp(float(panel_log_prob(beta, panel.take(slice(n, n + 1)))))
        assert float(at.log_prob[n]) == pytest.approx(math.log(total / 7), abs=1e-10)


def test_scores_by_finite_differences(simulated, vector):
    at, h = simulated.evaluate(vector), 1e-6
    for i, step in enumerate(h * torch.eye(simulated.size, dtype=torch.float64)):
        up, down = (simulated.evaluate(vector + s).log_prob for s in (step, -step))
        torch.testing.assert_close(at.scores[:, i], (up - down) / (2 * h), atol=1e-7, rtol=1e-6)


def test_hessian_by_second_differences(simulated, vector, generator):
    hessian = simulated.hessian(vector, torch.full((simulated.size,), 1e-4, dtype=torch.float64))
    direction, h = torch.randn(simulated.size, generator=generator, dtype=torch.float64), 1e-3
    up, centre, down = (simulated.value_and_gradient(vector + s * h * direction)[0] for s in (1, 0, -1))
    expected = (up - 2 * centre + down) / h**2
    assert float(direction @ hessian @ direction) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_chunks_do_not_matter(simulated, vector, monkeypatch):
    import mxlogit.simulated as module

    whole = simulated.evaluate(vector)
    monkeypatch.setattr(module, "_CELLS_PER_CHUNK", 1)
    parts = simulated.evaluate(vector)
    torch.testing.assert_close(parts.log_prob, whole.log_prob, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.scores, whole.scores, atol=1e-12, rtol=0)


def fit_electricity(**options):
    method = MSLE(**{"n_starts": 1, "covariance": "hessian", "n_samples": 50, **options})
    est = MixedLogit(
        random=ELECTRICITY, correlated=False, situation="chid", alternative="alt", method=method, random_state=0
    )
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


def test_antithetic_draws_do_not_care_about_the_sign_of_all(simulated, vector):
    """Mirroring every column of L mirrors every draw: with antithetic draws nothing changes."""
    normals = draw_normals("halton", 5, 8, 3, 0, antithetic=True)
    mirrored = vector.clone()
    mirrored[2 + 3 :] *= -1.0
    for draws, same in ((normals, True), (draw_normals("halton", 5, 8, 3, 0), False)):
        likelihood = SimulatedLikelihood(simulated.model, simulated.panel, draws)
        one, other = (likelihood.evaluate(v).log_prob for v in (vector, mirrored))
        assert (float((one - other).abs().max()) < 1e-9) is same


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


@pytest.mark.parametrize("optimizer", ["bfgs", "l-bfgs"])
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
        ({"optimizer": "newton"}, "optimizer"),
        ({"covariance": "hc3"}, "covariance"),
        ({"antithetic": True, "n_draws": 201}, "even n_draws"),
    ],
)
def test_bad_settings_are_explained(frame, options, words):
    with pytest.raises(SpecificationError, match=words):
        make(**options).fit(frame)
