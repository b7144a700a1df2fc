"""Short chains keep the exact posterior, wherever the fit from which they begin ends; the default takes them where it fails."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from grid_oracle import LABELS, Choices, GridPosterior

from mxlogit import VI, ConvergenceWarning, MixedLogit, Priors, datasets
from mxlogit.diagnostics.error import Cause, ErrorEstimate, SquaredErrors
from mxlogit.execution.people import People
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.task import Task
from mxlogit.inference.vi import route, short_chains
from mxlogit.inference.vi.correction import gaussian_of
from mxlogit.integration.tastes import PeopleCheck
from mxlogit.sampling.taste_draws import TasteDraws
from mxlogit.simulate import simulate_choices

REFERENCE = Path(__file__).parent / "reference" / "chains_electricity_lognormal.json"
# Errors of chains as long as `long` makes them: .05 posterior sds of a mean, five per cent of a deviation.
FAR, RATIO = 0.15, 0.12


@pytest.fixture(scope="module")
def frame():
    random = {"z": (-0.3, 0.8, "lognormal")}
    return simulate_choices(80, 5, 3, fixed={"x": -0.7}, random=random, random_state=4)[0]


@pytest.fixture(scope="module")
def exact(frame):
    return GridPosterior(Choices.of_frame(frame), 2.0, 1.0, np.exp)


def fit(frame, **settings):
    priors = Priors(location_scale=2.0, sd_scale=1.0)
    est = MixedLogit(fixed=["x"], random={"z": "lognormal"}, priors=priors, random_state=0, method=VI(**settings))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return est.fit(frame), " ".join(str(warning.message) for warning in said)


@pytest.fixture(scope="module")
def gaussian(frame):
    return fit(frame, correct=False, flow=None, n_samples=500)[0]


def lengths(monkeypatch, **changes):
    """Chains of other lengths, whichever sampler they have."""
    for name in ("_PARTICLES", "_GIBBS"):
        monkeypatch.setattr(short_chains, name, replace(getattr(short_chains, name), **changes))


@pytest.fixture
def long(monkeypatch):
    """Chains that do not end before they are as long as the tolerances of these tests need."""
    lengths(monkeypatch, enough=math.inf, most=80)
    monkeypatch.setattr(short_chains, "_GIBBS", replace(short_chains._GIBBS, most=300))


@pytest.fixture
def short(monkeypatch):
    """The shortest chains, where it does not matter what they find."""
    lengths(monkeypatch, most=20, block=10)
    monkeypatch.setattr(short_chains, "_FEWEST_SETTLING", 6)
    monkeypatch.setattr(short_chains, "_ARRIVED", math.inf)
    for name, value in {"rhat": 1.1, "ess_bulk": 60.0, "ess_tail": 60.0}.items():
        monkeypatch.setattr(short_chains, name, lambda chains, value=value: torch.tensor([value]))


def fitted(gaussian):
    """The Gaussian with the moments of a fit's samples."""
    return gaussian_of(gaussian.result_.samples.unconstrained)


def begin(gaussian, weights=None):
    """A task on the data of a fit, with other weights."""
    panel = gaussian._fitted.panel
    if weights is not None:
        panel = panel.take(torch.arange(len(panel)))
        panel.weights[:] = weights
    return Task.begin(gaussian._fitted.model, People.gather(panel), torch.Generator().manual_seed(1), lambda text: None)


@pytest.mark.parametrize("particles", [True, False])
def test_chains_forget_a_fit_that_is_wrong(gaussian, exact, long, monkeypatch, particles):
    """A Gaussian three deviations off and half as wide: chains find means and deviations of the exact posterior."""
    monkeypatch.setattr(short_chains, "_uses_particles", lambda task: particles)
    vectors = gaussian.result_.samples.unconstrained
    fitted = gaussian_of(vectors)
    wrong = GaussianFactor(fitted.mean + 3.0 * vectors.std(0), 0.5 * fitted.tril)
    chains = short_chains.run_short_chains(begin(gaussian), wrong, 2_000)
    reported = chains.samples.reported.numpy()
    assert chains.samples.labels == LABELS
    assert reported.shape == (2_000, 3)
    assert chains.found.ess_bulk > (200 if particles else 100)
    assert (((reported.mean(0) - exact.mean) / exact.sd).abs() < FAR).all()
    np.testing.assert_allclose(reported.std(0) / exact.sd, 1.0, atol=RATIO)


def test_the_default_takes_chains_where_it_would_fail(frame, exact, long, monkeypatch):
    """Estimates, errors and tastes are those of the exact posterior; nothing is said of a Gaussian that is not there."""
    monkeypatch.setattr(route, "_needs_chains", lambda *arguments: True)
    est, said = fit(frame, n_samples=1_000)
    table, found = est.summary(), est.diagnostics_
    assert (((table["estimate"] - exact.mean) / exact.sd).abs() < FAR).all()
    np.testing.assert_allclose(table["std_error"] / exact.sd, 1.0, atol=RATIO)
    mean, sd = exact.tastes()
    people = est.individual_coefficients()["z"]
    assert float(((people["mean"] - mean) / sd).abs().max()) < FAR
    # A lognormal taste that choices do not bound from above has a deviation that few samples know.
    assert float((people["sd"] / sd - 1.0).abs().median()) < 0.05
    assert found["corrected"]
    assert found["iterations"] == 80
    assert found["rhat"] < 1.05
    assert "ess_population" not in found
    assert "approximate" not in said


@pytest.mark.parametrize(("flow", "expected"), [("auto", 0), ("affine", 1)])
def test_a_requested_flow_is_trained_beside_chains(frame, short, monkeypatch, flow, expected):
    """Tastes of people who are not in the fit have it."""
    trained = []
    monkeypatch.setattr(route, "_needs_chains", lambda *arguments: True)
    monkeypatch.setattr(route, "_train_flow", lambda *arguments: trained.append(arguments))
    est, _ = fit(frame, n_samples=100, flow=flow)
    assert est.diagnostics_["rhat"] == pytest.approx(1.1)
    assert len(trained) == expected


def test_same_seed_same_chains(gaussian, short):
    """A fit that is repeated has the same chains, although they are far from mixed."""
    first, second = (short_chains.run_short_chains(begin(gaussian), fitted(gaussian), 100).samples for _ in range(2))
    assert torch.equal(first.reported, second.reported)


def test_chains_that_are_too_short_are_said(frame, short, monkeypatch):
    """An effective sample size of 11 leaves a third of a posterior deviation, and the fit says so."""
    third = torch.full((3,), 0.09, dtype=torch.float64)
    monkeypatch.setattr(short_chains, "ess_bulk", lambda chains: torch.tensor([25.0]))
    monkeypatch.setattr(
        short_chains, "error_of_chains", lambda reported: SquaredErrors(Cause.CHAINS, third, 0.5 * third)
    )
    monkeypatch.setattr(route, "_needs_chains", lambda *arguments: True)
    est, said = fit(frame, n_samples=100)
    assert not est.diagnostics_["converged"]
    assert not est.diagnostics_["trusted"]
    assert est.diagnostics_["error"]["coefficients"] == pytest.approx(0.3, abs=0.01)
    assert "the chains are short" in said


def test_a_hasty_search_is_repeated_where_its_chains_fail(frame, monkeypatch):
    """The fit is then what it is without chains: a correction is tried, which chains would have made needless."""
    asked, find = [], route.find_posterior

    def find_gaussian(*arguments, wanted):
        asked.append(wanted)
        return find(*arguments, wanted=False)

    def no_chains(*arguments):
        asked.append("chains")

    monkeypatch.setattr(route, "find_posterior", find_gaussian)
    plain, _ = fit(frame, n_samples=100, flow=None)
    monkeypatch.setattr(route, "_needs_chains", lambda *arguments: True)
    monkeypatch.setattr(route, "run_short_chains", no_chains)
    est, _ = fit(frame, n_samples=100, flow=None)
    assert asked == ["auto", "chains", "auto", "chains"]
    np.testing.assert_allclose(est.coef_, plain.coef_, rtol=1e-3)
    assert "rhat" not in est.diagnostics_


@pytest.mark.parametrize("name", ["rhat", "ess_bulk"])
def test_chains_that_have_not_mixed_are_dropped(gaussian, short, monkeypatch, name):
    bad = {"rhat": 1.5, "ess_bulk": 5.0}[name]
    monkeypatch.setattr(short_chains, name, lambda chains: torch.tensor([bad]))
    assert short_chains.run_short_chains(begin(gaussian), fitted(gaussian), 100) is None


def test_chains_that_break_down_are_dropped(gaussian, short, monkeypatch):
    """Weights that are no numbers leave no covariance to fit: the fit goes on without chains, and without a traceback."""
    weights = TasteDraws.weights
    monkeypatch.setattr(TasteDraws, "weights", lambda draws, population: math.nan * weights(draws, population))
    assert short_chains.run_short_chains(begin(gaussian), fitted(gaussian), 100) is None


def test_chains_that_accept_nothing_begin_again_elsewhere():
    visited = torch.arange(12.0).view(3, 4, 1).repeat(1, 1, 2)
    visited[:, [1, 2]] = visited[0, [1, 2]]
    sources = short_chains._sources(visited)
    assert sources[[0, 3]].tolist() == [0, 3]
    assert set(sources[[1, 2]].tolist()) <= {0, 3}
    assert short_chains._sources(visited[:1].expand(3, -1, -1)).tolist() == [0, 1, 2, 3]


def test_where_chains_do_not_apply(gaussian, monkeypatch):
    """Not with weights, nor where few iterations are affordable."""
    assert short_chains.count_affordable(begin(gaussian)) > 0
    halves = torch.tensor([0.5, 1.5] * 40)
    assert short_chains.run_short_chains(begin(gaussian, halves), fitted(gaussian), 100) is None
    assert short_chains.count_affordable(begin(gaussian, 2.0)) == 0
    elsewhere = SimpleNamespace(team=SimpleNamespace(size=1), like=SimpleNamespace(device=torch.device("cuda")))
    assert short_chains.count_affordable(SimpleNamespace(people=elsewhere, model=begin(gaussian).model)) == 0
    lengths(monkeypatch, work=1e6)
    assert short_chains.count_affordable(begin(gaussian)) == 0


@pytest.mark.parametrize(("error", "expected"), [(0.1, 0), (0.3, 1)])
def test_chains_follow_a_large_error(frame, monkeypatch, error, expected):
    """Of the Gaussian or the weighted draws, as estimated; chains that do not mix leave them, and the fit says so."""
    tried, squares = [], torch.full((3,), error**2, dtype=torch.float64)
    estimate = ErrorEstimate(LABELS, (SquaredErrors(Cause.APPROXIMATION, squares, squares),))
    monkeypatch.setattr(route, "assess_posterior", lambda *arguments: estimate)
    monkeypatch.setattr(route, "run_short_chains", lambda *arguments: tried.append(arguments))
    est, said = fit(frame, n_samples=100, flow=None)
    assert len(tried) == expected
    assert est.diagnostics_["trusted"] == (not expected)
    assert ("Remedy: VI(correct=True)" in said) == bool(expected)


@pytest.mark.parametrize(("ess", "above", "expected"), [(0.4, 0.1, True), (0.4, 0.02, False), (0.9, 0.1, False)])
def test_which_people_need_chains(gaussian, monkeypatch, ess, above, expected):
    """A tenth of the people with uneven weights, and not a fiftieth."""
    shapes = torch.where(torch.arange(1_000) < 1_000 * above, 0.9, 0.1)
    monkeypatch.setattr(route, "check_people", lambda *arguments: PeopleCheck(shapes, shapes))
    evaluation = SimpleNamespace(detail=SimpleNamespace(value=SimpleNamespace(ess=ess)))
    plan = SimpleNamespace(correct="auto", is_spline=False, search=SimpleNamespace(degrees_of_freedom=8))
    assert route._needs_chains(begin(gaussian), plan, gaussian.result_.center, evaluation, 0) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"correct": False},
        pytest.param({"correct": True}, marks=pytest.mark.slow),
        pytest.param({"population_family": "spline"}, marks=pytest.mark.slow),
    ],
)
def test_other_settings_have_no_chains(frame, monkeypatch, settings):
    monkeypatch.setattr(ErrorEstimate, "is_small", False)
    est, _ = fit(frame, n_samples=100, flow=None, **settings)
    assert "rhat" not in est.diagnostics_


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lognormal_tastes_of_electricity(seed):
    """Three lognormals among six correlated tastes: without chains seeds differed by half a posterior deviation."""
    exact = json.loads(REFERENCE.read_text())["parameters"]
    random = {"pf": "normal", "cl": "normal", "loc": "normal", "wk": "lognormal"}
    random |= {"tod": "negative_lognormal", "seas": "negative_lognormal"}
    est = MixedLogit(random=random, situation="chid", alternative="alt", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        table = est.fit(datasets.load_electricity()).summary()
    for label, parameter in exact.items():
        assert abs(table.loc[label, "estimate"] - parameter["mean"]) < 0.25 * parameter["sd"], label
        assert 0.85 < table.loc[label, "std_error"] / parameter["sd"] < 1.15, label
