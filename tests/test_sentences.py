"""Sentences about a fit are true: each is said where it holds, and not where it does not."""

from dataclasses import replace

import pytest
import torch
from small_models import model_of

from mxlogit import VI, ConvergenceWarning, MixedLogit
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.fit import Fit, Samples, Status
from mxlogit.inference.report import _quality_sentences, boundary_sentences
from mxlogit.inference.vi import posterior_stage as default
from mxlogit.model.parameters import ParameterSpace
from mxlogit.simulate import simulate_choices


@pytest.fixture(scope="module")
def frame():
    return simulate_choices(60, 4, 3, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, random_state=2)[0]


def test_modes_are_said_of_the_mode_only():
    poor = {"posterior_rounds": 0, "ess_population": 0.3, "pareto_k": 0.2}
    assert "around its mode" in _quality_sentences(Diagnostics(**poor, corrected=False))[0]
    assert _quality_sentences(Diagnostics(**poor, corrected=True)) == []


def test_a_heavy_tail_of_weighted_draws_is_not_called_far_from_gaussian():
    poor = {"ess_population": 0.3, "pareto_k": 0.9}
    (of_draws,) = _quality_sentences(Diagnostics(**poor, corrected=True))
    (of_gaussian,) = _quality_sentences(Diagnostics(**poor, corrected=False))
    assert "not close to Gaussian" in of_gaussian
    assert "not close to Gaussian" not in of_draws


@pytest.mark.parametrize("setting", [{"correct": True}, {"population_family": "spline"}])
def test_a_correction_that_was_asked_for_and_did_not_happen_is_said(frame, monkeypatch, setting):
    monkeypatch.setattr(default, "correct", lambda *arguments: (None, 0.0))
    with pytest.warns(ConvergenceWarning, match="could not correct"):
        est = MixedLogit(fixed=["x"], random=["z"], method=VI(**setting, n_samples=200), random_state=0).fit(frame)
    assert est.diagnostics_["corrected"] is False


def test_a_correction_that_happened_is_not_called_missing(frame):
    est = MixedLogit(fixed=["x"], random=["z"], method=VI(correct=True, n_samples=200), random_state=0).fit(frame)
    assert est.diagnostics_["corrected"] is True
    assert not any("could not correct" in sentence for sentence in est.result_.warnings)


@pytest.mark.parametrize(
    ("sd", "width", "said"), [(0.01, 0.8, True), (0.01, 0.05, False), (0.2, 0.8, True), (0.2, 0.1, False)]
)
def test_zero_is_said_only_of_deviations_that_cannot_be_told_from_it(sd, width, said):
    """A small one that is known to a twentieth of itself is not zero."""
    space = ParameterSpace((), ("a",), ((0,),))
    model = model_of(space, ("normal",))
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(400, 2, generator=generator, dtype=torch.float64) * torch.tensor([0.1, width]).double()
    vectors[:, 1] += torch.tensor(sd).double().log()
    center = space.constrain(vectors.mean(0))
    samples = Samples(vectors, space.report(space.constrain(vectors)), tuple(space.labels))
    fit = Fit(samples, center, Status.CONVERGED, None)
    assert bool(boundary_sentences(model, fit)) is said
    still = replace(fit, samples=replace(samples, unconstrained=vectors.mean(0).expand(400, -1)))
    assert bool(boundary_sentences(model, still)) is (sd < 0.02)


def test_partial_separation_is_not_called_perfect(frame):
    """An alternative that is never chosen separates in part: other choices are as uncertain as before."""
    never = frame.assign(never=(frame["alternative"] == "a3").astype(float))
    chosen = never[never["choice"] == 1]
    keys = chosen.loc[chosen["never"] == 0, ["id", "situation"]]
    kept = never.merge(keys)
    with pytest.warns(ConvergenceWarning) as caught:
        MixedLogit(fixed=["x", "never"], random=[], random_state=0).fit(kept)
    sentences = [str(w.message) for w in caught]
    assert any("Separation" in s and "'never'" in s for s in sentences)
    assert not any("predict choices perfectly" in s for s in sentences)
