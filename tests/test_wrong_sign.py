"""Sign-restricted tastes of columns with the other sign: said, held at zero, errors void; and no false alarms."""

import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import model_of

from mxlogit import MCMC, MSLE, VI, ConvergenceWarning, MixedLogit, SpecificationError
from mxlogit.execution.people import People
from mxlogit.execution.processes import Communicator
from mxlogit.fit import Status
from mxlogit.inference import wrong_sign
from mxlogit.inference.without_columns import Reduction
from mxlogit.inference.wrong_sign import Signs, _members, best_gain, determine_signs
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixing import FAMILIES
from mxlogit.model.parameters import ParameterSpace
from mxlogit.postestimation.hypotheses import likelihood_ratio_test, parameter_function
from mxlogit.simulate import simulate_choices

RESTRICTED = [family for family in FAMILIES.values() if family.sign]
METHODS = {
    "vi": VI(n_samples=30),
    "msle": MSLE(n_draws=100, check_draws=False),
    "mcmc": MCMC(warmup=30, samples=30, chains=2),
}
# Log likelihoods of two searches, each within its tolerance of the same optimum and its Monte Carlo error.
SAME = 0.15


def simulate(mean, sd=0.3, n=80, seed=2, **more):
    return simulate_choices(n, 6, 3, fixed={"x": -0.6, **more}, random={"z": (mean, sd)}, random_state=seed)[0]


def of_both_signs():
    """A third of the people have a positive effect, strongly."""
    first, second = simulate(2.5, 0.2, n=30, seed=1), simulate(-2.5, 0.2, n=60, seed=4)
    return pd.concat([first, second.assign(id=second["id"] + 30)], ignore_index=True)


@pytest.fixture(scope="module")
def frames():
    """Data with a positive and with a negative effect."""
    return {1: simulate(0.8), -1: simulate(-0.8)}


def quietly(frame, **request):
    """A fit, and what it said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        est = MixedLogit(**{"fixed": ["x"], "random_state": 0, **request}).fit(frame)
    return est, [str(w.message) for w in caught]


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("family", RESTRICTED, ids=lambda family: family.name)
def test_the_other_sign_is_said_and_voids_errors(frames, family, method):
    frame = frames[-family.sign]
    est, said = quietly(frame, random={"z": family.name}, method=METHODS[method])
    (sentence,) = [s for s in said if "'z'" in s]
    assert "as good without the column" in sentence
    assert ("'lognormal'" if family.sign < 0 else "'negative_lognormal'") in sentence
    assert est.diagnostics_["status"] == Status.WRONG_SIGN.value
    assert est.diagnostics_["converged"] is False
    table = est.summary()
    assert table.loc[["z", "sd.z"], "std_error"].isna().all()
    assert table.loc["x"].notna().all()
    assert np.isfinite(est.coef_).all()
    taste = est.taste_distribution().loc["z"]
    assert abs(taste["mean"]) < 1e-6
    assert np.isnan(taste["mean_error"])


@pytest.mark.parametrize("method", list(METHODS))
def test_the_rest_is_the_fit_without_the_column(frames, method):
    """Same coefficients, errors, log likelihood and predictions as the model that leaves it out."""
    est, _ = quietly(frames[-1], random={"z": "lognormal"}, method=METHODS[method])
    plain, _ = quietly(frames[-1], random=[], method=METHODS[method])
    np.testing.assert_allclose(est.summary().loc["x"], plain.summary().loc["x"], rtol=1e-9)
    assert est.log_likelihood_ == pytest.approx(plain.log_likelihood_, abs=1e-6)
    for tastes in ("population", "individual"):
        gap = est.predict_proba(frames[-1], tastes=tastes) - plain.predict_proba(frames[-1], tastes=tastes)
        assert gap.abs().max() < 1e-4
    assert (est.individual_coefficients(statistic=["mean", "sd", 0.5]).abs() < 1e-6).all(axis=None)
    assert est.score(frames[-1]) == pytest.approx(plain.score(frames[-1]), abs=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_model_of_that_column_alone(frames, method):
    """Nothing is left but equal probabilities."""
    est, said = quietly(frames[-1], fixed=[], random={"z": "lognormal"}, method=METHODS[method])
    assert sum("as good without" in s for s in said) == 1
    assert est.log_likelihood_ == pytest.approx(-80 * 6 * np.log(3.0), abs=1e-3)
    np.testing.assert_allclose(est.predict_proba(frames[-1]), 1.0 / 3.0, atol=1e-6)
    assert est.summary()["std_error"].isna().all()


def test_one_of_two_columns_beside_correlated_tastes():
    """Only the wrong one is named; correlations with it are void, those among the others are estimated."""
    random = {"z": (-0.8, 0.2), "w": (0.2, 0.4, "lognormal"), "v": (0.5, 0.7)}
    frame = simulate_choices(100, 6, 3, random=random, random_state=3)[0]
    families = {"z": "truncated_normal", "w": "lognormal", "v": "normal"}
    est, said = quietly(frame, fixed=[], random=families, method=VI(correct=False, flow=None))
    assert est.diagnostics_["wrong_sign"] == ["z"]
    assert not any("'w'" in s and "as good without" in s for s in said)
    error = est.summary()["std_error"]
    void = {"z", "sd.z", "cor.z:w", "cor.z:v"}
    assert set(error.index[error.isna()]) == void
    assert est.posterior_samples(50).shape == (50, 9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mean", [0.12, 0.3, 0.8])
def test_no_alarm_where_the_sign_is_right(mean, seed):
    """Whenever a logit that may have any sign finds the allowed one, however weakly."""
    frame = simulate(mean, 0.1, seed=seed)
    free, _ = quietly(frame, fixed=["x", "z"], random=[], method=METHODS["msle"])
    for family in RESTRICTED:
        model, people = question(frame, family.name)
        alarmed = bool(determine_signs(model, people, lambda line: None).wrong)
        assert alarmed == (family.sign * free.coef_["z"] < 0)


def question(frame, family):
    """Model and people as a fit would have them."""
    est = MixedLogit(fixed=["x"], random={"z": family}, method="vi", random_state=0)
    fitted, people, _ = est._prepare(frame, Communicator(), y=None, weights=None)
    return fitted.model, people


def test_people_of_both_signs_are_fitted():
    """A third have the allowed sign, strongly: the likelihood is far better with them, and is asked for it."""
    frame = of_both_signs()
    model, people = question(frame, "lognormal")
    signs = determine_signs(model, people, lambda line: None)
    assert (signs.wrong, signs.contrary) == ((), (0,))
    est, said = quietly(frame, random={"z": "lognormal"}, method=VI(correct=False, flow=None))
    assert est.log_likelihood_ > signs.log_likelihood + 3.0
    assert any("on average the effect has the other sign" in s for s in said)
    assert est.summary()["std_error"].notna().all()


def test_an_engine_that_ends_at_the_boundary_is_not_believed(monkeypatch):
    """Gains exist, but the search did not find them: what it found is no better than no column."""
    frame = of_both_signs()
    method = METHODS["msle"]
    run = MSLE.run

    def astray(self, model, people, **tools):
        fit = run(self, model, people, **tools)
        if model.space.n_random:
            return replace(fit, diagnostics=replace(fit.diagnostics, log_likelihood=-1e6))
        return fit

    monkeypatch.setattr(MSLE, "run", astray)
    est, _ = quietly(frame, random={"z": "lognormal"}, method=method)
    assert est.diagnostics_["wrong_sign"] == ["z"]
    assert np.isnan(est.summary().loc["z", "std_error"])


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_a_second_run_has_a_file_of_its_own(monkeypatch, tmp_path):
    """Which the first run of a fit that is begun again does not meet; and none is made where time was over."""
    frame = of_both_signs()
    frame["x"] = np.random.default_rng(0).normal(size=len(frame))
    request = {"fixed": ["x"], "random": {"z": "lognormal"}, "random_state": 0}
    run, files = VI.run, []

    def astray(self, model, people, **tools):
        files.append(self.checkpoint)
        fit = run(self, model, people, **tools)
        if model.space.n_random:
            return replace(fit, diagnostics=replace(fit.diagnostics, log_likelihood=-1e6))
        return fit

    monkeypatch.setattr(VI, "run", astray)
    path = tmp_path / "fit"
    MixedLogit(method=VI(correct=False, flow=None, checkpoint=path), **request).fit(frame)
    assert [str(file) for file in files] == [str(path), f"{path}.second"]
    files.clear()
    hurried = VI(correct=False, max_seconds=1e-3)
    est = MixedLogit(method=hurried, **request).fit(frame)
    assert len(files) == 1
    assert est.result_.status is Status.TIME


def test_the_gain_of_a_distribution_by_its_definition(generator):
    """Tastes of three people, likelihoods by hand: the log of a mean over quantiles."""
    tastes = torch.tensor([0.0, 1.0, 2.0]).double()
    ratios = torch.tensor([[1.0, 3.0, 0.5], [1.0, 0.2, 0.1], [1.0, 1.0, 4.0]]).double()
    panel = PanelDifferences(torch.zeros(3, 1, 1), None, 1, torch.tensor([1.0, 2.0, 1.0]), torch.ones(3))
    members = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.5, 9.0]]).double()
    by_hand = [0.0, np.log(1.75) + 2 * np.log(0.15) + np.log(2.5), np.log(1.25) + 2 * np.log(0.35) + np.log(2.5)]
    people, logs = People.gather(panel), ratios.log()
    assert best_gain(people, logs, tastes, members) == pytest.approx(max(by_hand))
    assert best_gain(people, logs, tastes, members[1:]) == pytest.approx(max(by_hand[1:]))
    # A person of thousands of choices, whose ratios overflow: the mean of one at a taste of 1 and one at 2.
    logs[0] = torch.tensor([0.0, 800.0, -900.0])
    many = 800.0 - np.log(2.0) + 2 * np.log(0.15) + np.log(2.5)
    assert best_gain(people, logs, tastes, members[:2]) == pytest.approx(many)
    # One who would rather have the other sign, by as much, does not hide that.
    logs[0] = torch.tensor([0.0, -800.0, -900.0])
    assert best_gain(people, logs, tastes, members[:2]) == pytest.approx(0.0)


def test_what_was_contrary_once_is_not_forgotten(monkeypatch):
    """A column that gains beside another, which is asked about again by itself."""
    frame = simulate_choices(60, 5, 3, random={"z": (-0.8, 0.2), "w": (-0.4, 0.4)}, random_state=3)[0]
    est = MixedLogit(random={"z": "lognormal", "w": "lognormal"}, random_state=0)
    fitted, people, _ = est._prepare(frame, Communicator(), y=None, weights=None)
    answers = [Signs((0,), (1,), -1.0), Signs((0,), (), -2.0)]
    monkeypatch.setattr(wrong_sign._SignTest, "classify", lambda question: answers.pop(0))
    monkeypatch.setattr(wrong_sign._SignTest, "log_likelihood", lambda question: -10.0 - len(question.doubtful))
    assert determine_signs(fitted.model, people, lambda line: None) == Signs((0,), (1,), -12.0)


@pytest.mark.parametrize("gain", [True, False])
def test_wrong_and_contrary_columns_of_one_model(gain, monkeypatch):
    """The first is held at zero; the second is warned of, or held as well where the engine found no gain."""
    frame = simulate_choices(60, 5, 3, random={"z": (-0.8, 0.2), "w": (-0.4, 0.4)}, random_state=3)[0]
    monkeypatch.setattr(wrong_sign, "determine_signs", lambda *given: Signs((0,), (1,), -1e4 if gain else 0.0))
    est, said = quietly(frame, fixed=[], random={"z": "lognormal", "w": "lognormal"}, method=METHODS["msle"])
    assert est.diagnostics_["wrong_sign"] == (["z"] if gain else ["z", "w"])
    assert any("'w'" in s and "on average" in s for s in said) is gain
    assert est.diagnostics_["seconds"] > 0.0


@pytest.mark.parametrize("method", ["vi", "msle"])
def test_tables_and_tests_of_a_model_of_nothing(frames, method):
    """Seconds, criteria and the likelihood ratio of equal probabilities, which another column improves."""
    est, _ = quietly(frames[-1], fixed=[], random={"z": "lognormal"}, method=METHODS[method])
    assert est.diagnostics_["seconds"] > 0.0
    assert est.diagnostics_["passes"] > 0.0
    if method == "msle":
        full, _ = quietly(frames[-1], fixed=["x"], random={"z": "lognormal"}, method=METHODS[method])
        gain = 2.0 * (full.log_likelihood_ + 80 * 6 * np.log(3.0))
        assert likelihood_ratio_test(est, full).statistic == pytest.approx(gain, rel=1e-3)


def test_chains_of_a_part_keep_what_they_reported():
    """Also correlations of one, which no factor with a positive diagonal has."""
    model = model_of(ParameterSpace(("x",), ("z", "w", "v"), ((0, 1, 2),)), ("lognormal", "normal", "normal"))
    reduction = Reduction(model, (0,))
    labels = tuple(reduction.model.space.labels)
    reported = torch.arange(2.0 * 5 * len(labels)).view(2, 5, -1).double()
    reported[..., labels.index("cor.w:v")] = 1.0
    full = reduction._embed_report(reported, labels)
    assert full.shape == (2, 5, model.space.size)
    for i, label in enumerate(labels):
        torch.testing.assert_close(full[..., model.space.labels.index(label)], reported[..., i])
    assert float(full[..., model.space.labels.index("cor.z:w")].abs().max()) == 0.0


@pytest.mark.parametrize("family", RESTRICTED, ids=lambda family: family.name)
def test_distributions_that_are_tried_reach_from_nothing_to_much(family):
    members = _members(family, 0.5)
    assert float(members.mean(1).amin()) < 0.01
    assert float(members.mean(1).amax()) > 0.4
    assert (members >= 0).all()


def test_money_needs_a_scale_of_its_sign():
    frame = simulate(-0.8, z2=0.4)
    request = {"fixed": ["z2"], "random": {"x": "lognormal"}, "scale": "x", "method": METHODS["msle"]}
    with pytest.raises(SpecificationError, match="scale column 'x'"):
        quietly(frame, **request)


def test_the_likelihood_is_as_good_without(frames):
    """The claim itself: an unguarded search over the whole model comes no higher."""
    est, _ = quietly(frames[-1], random={"z": "censored_normal"}, method=METHODS["msle"])
    model, people = question(frames[-1], "censored_normal")
    generator = torch.Generator().manual_seed(1)
    unguarded = METHODS["msle"].run(model, people, generator=generator, callback=lambda line: None)
    assert unguarded.diagnostics.log_likelihood < est.log_likelihood_ + SAME


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
@pytest.mark.parametrize(
    "method", [VI(n_samples=200, correct=False), MSLE(n_draws=50, check_draws=False)], ids=["vi", "msle"]
)
def test_functions_of_what_is_held_have_no_error(frames, method):
    """By samples as by the delta method: NaN where a function depends on a void parameter, and only there."""
    frame = simulate_choices(150, 5, 3, random={"x": (-1.0, 0.4), "z": (0.6, 0.5)}, random_state=0)[0]
    est = MixedLogit(random={"x": "lognormal", "z": "normal"}, method=method, random_state=0).fit(frame)
    table = parameter_function(
        est, lambda b: {"ratio": b["z"] / np.exp(b["x"]), "alone": 2.0 * b["z"]}, method="samples"
    )
    assert table.loc["ratio", ["std_error", "lower", "upper"]].isna().all()
    assert np.isfinite(table.loc["alone"]).all()


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_a_taste_beyond_the_upper_end_of_its_family_is_said():
    frame, _ = simulate_choices(150, 5, 3, random={"x": (2.0, 0.4), "z": (0.6, 0.5)}, random_state=0)
    est = MixedLogit(random={"x": "johnson_sb", "z": "normal"}, random_state=0, method=VI(correct=False))
    with pytest.warns(ConvergenceWarning, match="taste of 'x' lies at 1, the upper end of 'johnson_sb'"):
        est.fit(frame)


def test_moments_that_do_not_exist_are_said():
    """A lognormal whose standard deviation is hardly known: medians, and a warning; none where it is known."""
    frame, _ = simulate_choices(150, 4, 3, random={"z": (0.6, 0.5)}, fixed={"x": 0.0}, random_state=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        est = MixedLogit(
            random={"x": "lognormal", "z": "normal"}, correlated=False, random_state=3, method=VI(correct=False)
        ).fit(frame)
    with pytest.warns(ConvergenceWarning, match=r"\['x'\] have posteriors without a finite mean"):
        table = est.taste_distribution()
    assert table.loc["x", "mean"] < 1.0
    assert table.loc["z", "mean"] == pytest.approx(est.coef_["z"])


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_questions_about_signs_count_as_seconds_of_the_fit(monkeypatch):
    """The engine has what they leave of the limit, and the user's settings stay as they are."""
    frame, limits, run = simulate(0.3, 0.2, n=60, seed=1), [], VI.run

    def watched(self, model, people, **tools):
        limits.append(self.max_seconds)
        return run(self, model, people, **tools)

    def slowly(*arguments):
        time.sleep(0.3)
        return determine_signs(*arguments)

    monkeypatch.setattr(VI, "run", watched)
    monkeypatch.setattr(wrong_sign, "determine_signs", slowly)
    for limit in (100.0, 0.2, None):
        method = VI(correct=False, flow=None, max_seconds=limit)
        est = MixedLogit(random={"z": "lognormal"}, method=method, random_state=0).fit(frame)
        assert method.max_seconds == limit
        assert (est.result_.status is Status.TIME) == (limit == 0.2)
    assert 90.0 < limits[0] < 99.7
    assert limits[1] < 0.01
    assert limits[2] is None


@pytest.mark.parametrize("limit", [-1.0, 0, "5", True, float("nan")])
def test_a_limit_that_is_none_is_refused_after_the_questions(limit):
    with pytest.raises(SpecificationError, match="max_seconds"):
        MixedLogit(random={"z": "lognormal"}, method=VI(max_seconds=limit)).fit(simulate(1.0, n=20))
