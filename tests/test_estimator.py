"""The estimator's contract: scikit-learn habits, predictions, people, reproducibility."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from grid_oracle import Choices, log_likelihood, probability_table
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score

from mxlogit import (
    SVI,
    VI,
    ChoiceData,
    ChoiceDataError,
    ConvergenceWarning,
    MixedLogit,
    NotFittedError,
    SpecificationError,
    Training,
)
from mxlogit.simulate import simulate_choices

FAST = {"max_iterations": 30, "draws": 16, "n_samples": 80}


def make(**options):
    return MixedLogit(**{"fixed": ["x"], "random": ["z"], "method": VI(**FAST), "random_state": 7, **options})


@pytest.fixture(scope="module")
def simulated():
    return simulate_choices(150, (3, 6), 4, fixed={"x": 1.0}, random={"z": (0.5, 1.0)}, unavailable=0.2, random_state=2)


@pytest.fixture(scope="module")
def frame(simulated):
    return simulated[0]


@pytest.fixture(scope="module")
def est(frame):
    return make().fit(frame)


def test_fit_returns_self_and_sets_the_contract(est, frame):
    assert est.n_decision_makers_ == 150
    assert est.n_situations_ == len(frame[["id", "situation"]].drop_duplicates())
    assert list(est.coef_.index) == ["x", "z", "sd.z"]
    assert est.log_likelihood_ < 0 < est.log_likelihood_error_
    needed = {"pareto_k", "ess", "converged", "seconds", "passes", "status", "elbo", "newton_decrement"}
    assert needed <= set(est.diagnostics_)
    assert est.diagnostics_["converged"] is True
    assert est.diagnostics_["elbo"] <= est.log_likelihood_


def test_summary_begins_with_the_four_columns(est):
    table = est.summary()
    assert list(table.columns[:4]) == ["estimate", "std_error", "lower", "upper"]
    assert (table["lower"] < table["estimate"]).all()
    assert (table["estimate"] < table["upper"]).all()
    narrow = est.summary(level=0.5)
    assert (narrow["upper"] - narrow["lower"] < table["upper"] - table["lower"]).all()
    with pytest.raises(SpecificationError, match="level must be a probability"):
        est.summary(level=95)


def test_samples_have_the_moments_of_the_summary(est):
    samples = est.posterior_samples()
    np.testing.assert_allclose(samples.mean(), est.coef_, rtol=1e-6)
    np.testing.assert_allclose(samples.std(), est.summary()["std_error"], rtol=1e-6)
    assert len(est.posterior_samples(10)) == 10
    with pytest.raises(SpecificationError, match="between 1 and 80"):
        est.posterior_samples(81)


def test_clone_and_parameters(est):
    copy = clone(est)
    assert not hasattr(copy, "coef_")
    assert copy.get_params()["method__draws"] == 16
    assert copy.set_params(method__draws=32).method.draws == 32
    assert est.method.draws == 16


def test_pickle_round_trip(est, frame):
    again = pickle.loads(pickle.dumps(est))
    pd.testing.assert_series_equal(again.coef_, est.coef_)
    pd.testing.assert_series_equal(again.predict_proba(frame), est.predict_proba(frame))


def test_same_seed_same_result_and_other_seed_other_draws(est, frame):
    """And the frame is not changed."""
    before = frame.copy(deep=True)
    pd.testing.assert_series_equal(make().fit(frame).coef_, est.coef_)
    pd.testing.assert_frame_equal(frame, before)
    other = make(random_state=8).fit(frame).coef_
    assert not other.equals(est.coef_)
    assert ((other - est.coef_).abs() < 0.5 * est.summary()["std_error"]).all()


def test_row_order_and_people_order_do_not_matter(est, frame):
    shuffled = make().fit(frame.sample(frac=1.0, random_state=1))
    pd.testing.assert_series_equal(shuffled.coef_, est.coef_)


def test_refit_replaces_everything(est, frame):
    est = pickle.loads(pickle.dumps(est))
    half = frame[frame["id"] <= 75]
    est.fit(half)
    pd.testing.assert_series_equal(est.coef_, make().fit(half).coef_)
    assert est.n_decision_makers_ == 75


def test_unfitted_calls_say_so(frame):
    for call in (lambda e: e.summary(), lambda e: e.predict_proba(frame), lambda e: e.individual_coefficients()):
        with pytest.raises(NotFittedError, match="call fit first"):
            call(make())


def test_y_replaces_the_choice_column(est, frame):
    fitted = make().fit(frame.drop(columns="choice"), frame["choice"])
    pd.testing.assert_series_equal(fitted.coef_, est.coef_)


def test_weight_two_equals_the_people_twice(frame):
    """Fixed coefficients only: no draws, so equality is exact up to rounding."""
    double = frame["id"] <= 50
    twice = pd.concat([frame, frame[double].assign(id=lambda d: d["id"] + 1000)], ignore_index=True)
    options = {"fixed": ["x", "z"], "random": [], "dtype": "float64"}
    listed = make(**options).fit(twice)
    weighted = make(**options).fit(frame, sample_weight=1.0 + double)
    column = make(weights="w", **options).fit(frame.assign(w=1.0 + double))
    np.testing.assert_allclose(weighted.coef_, listed.coef_, rtol=1e-6)
    np.testing.assert_allclose(column.summary(), weighted.summary(), rtol=1e-6)
    assert weighted.log_likelihood_ == pytest.approx(listed.log_likelihood_, rel=1e-8)


def test_weights_of_random_tastes(frame):
    double = frame["id"] <= 50
    twice = pd.concat([frame, frame[double].assign(id=lambda d: d["id"] + 1000)], ignore_index=True)
    listed = make(method=VI(draws=256, n_samples=80)).fit(twice)
    weighted = make(method=VI(draws=256, n_samples=80)).fit(frame, sample_weight=1.0 + double)
    assert ((weighted.coef_ - listed.coef_).abs() < 0.1 * listed.summary()["std_error"]).all()


def test_units_do_not_matter(est, frame):
    """An attribute in units a million times smaller: coefficients a million times larger, all else equal."""
    scaled = make().fit(frame.assign(x=frame["x"] * 1e-3, z=frame["z"] * 1e6))
    factor = pd.Series({"x": 1e-3, "z": 1e6, "sd.z": 1e6})
    assert ((scaled.coef_ * factor - est.coef_).abs() < 0.1 * est.summary()["std_error"]).all()
    assert scaled.log_likelihood_ == pytest.approx(est.log_likelihood_, abs=0.2)


def test_choice_data_equals_the_frame(est, frame):
    from mxlogit.choices import read_frame

    data = read_frame(frame, make()._columns(), ["x", "z"]).data
    assert isinstance(data, ChoiceData)
    fitted = make().fit(data)
    pd.testing.assert_series_equal(fitted.coef_, est.coef_)
    assert fitted.score(data) == pytest.approx(est.score(frame), abs=1e-6)
    with pytest.raises(ChoiceDataError, match="long frame"):
        fitted.predict_proba(data)


def test_probabilities_sum_to_one_on_the_frames_index(est, frame):
    shuffled = frame.drop(columns="choice").sample(frac=1.0, random_state=1)
    probability = est.predict_proba(shuffled)
    assert (probability.index == shuffled.index).all()
    total = probability.groupby([shuffled["id"], shuffled["situation"]]).sum()
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_predict_is_the_most_likely_alternative(est, frame):
    table = frame.assign(p=est.predict_proba(frame))
    best = table.loc[table.groupby(["id", "situation"])["p"].idxmax()].set_index(["id", "situation"])["alternative"]
    predicted = est.predict(frame)
    assert (predicted.to_numpy() == best.loc[predicted.index].to_numpy()).all()


def test_individual_tastes_predict_their_people_better(est, frame):
    some = frame[frame["id"] <= 60]
    chosen = some["choice"].to_numpy()
    own, anyone = (np.log(est.predict_proba(some, tastes=t)[chosen]).mean() for t in ("individual", "population"))
    assert own > anyone
    with pytest.raises(ChoiceDataError, match="1 decision makers were not in the fit"):
        est.predict_proba(frame.assign(id=frame["id"].replace(3, 9999)), tastes="individual")
    with pytest.raises(SpecificationError, match="tastes must be one of"):
        est.predict_proba(frame, tastes="mean")


def test_shares_are_mean_probabilities(est, frame):
    table = frame.assign(p=est.predict_proba(frame))
    expected = table.groupby("alternative")["p"].sum() / table["p"].sum()
    np.testing.assert_allclose(est.shares(frame), expected, rtol=1e-9)


def test_score_is_the_marginal_log_likelihood_per_situation(est, frame):
    """Both by quadrature over the taste."""
    exact = log_likelihood(Choices.of_frame(frame), *est.coef_)
    assert est.score(frame) * est.n_situations_ == pytest.approx(exact, abs=0.1)
    assert est.log_likelihood_ == pytest.approx(exact, abs=0.1)


def test_people_seen_and_never_seen(est, frame, simulated):
    seen = est.individual_coefficients()
    assert list(seen.index) == sorted(frame["id"].unique())
    assert list(seen.columns) == [("z", "mean"), ("z", "sd")]
    strangers = frame[frame["id"] <= 5].assign(id=lambda d: d["id"] + 5000)
    new = est.individual_coefficients(strangers)
    np.testing.assert_allclose(new.to_numpy(), seen.loc[:5].to_numpy(), atol=0.15)
    truth = simulated[1].tastes["z"]
    error = (seen[("z", "mean")] - truth.loc[seen.index]) / seen[("z", "sd")]
    assert 0.8 < float(np.sqrt((error**2).mean())) < 1.2


def test_quantiles_of_people(est, frame):
    table = est.individual_coefficients(frame[frame["id"] <= 40], statistic=["mean", 0.05, 0.95])
    assert (table[("z", 0.05)] < table[("z", "mean")]).all()
    assert (table[("z", "mean")] < table[("z", 0.95)]).all()
    with pytest.raises(SpecificationError, match="statistic must be a list"):
        est.individual_coefficients(statistic=["median"])


def test_group_k_fold_by_person_works(frame):
    """Each fold's score is that of a fit to the other people, and beats equal probabilities of what was available."""
    split = GroupKFold(2)
    folds = cross_val_score(make(), frame, groups=frame["id"], cv=split, error_score="raise")
    for found, (train, test) in zip(folds, split.split(frame, groups=frame["id"]), strict=True):
        others, held = frame.iloc[train], frame.iloc[test]
        sizes = held.groupby(["id", "situation"]).size()
        exact = log_likelihood(Choices.of_frame(held), *make().fit(others).coef_) / len(sizes)
        assert found == pytest.approx(exact, abs=1e-3)
        assert found > -np.log(sizes).mean() + 0.1


def test_only_fixed_coefficients_is_a_multinomial_logit(frame):
    est = make(fixed=["x", "z"], random=[]).fit(frame)
    assert list(est.coef_.index) == ["x", "z"]
    assert est.individual_coefficients().shape == (150, 0)
    data = Choices.of_frame(frame)
    exact = np.log(probability_table(data, est.coef_[["x"]].to_numpy(), est.coef_[["z"]].to_numpy())).sum()
    assert est.score(frame) * est.n_situations_ == pytest.approx(exact, abs=1e-3)
    assert est.log_likelihood_ == pytest.approx(exact, abs=1e-3)


# Others against a grid in `test_second_order.py`.
SEARCHES = {
    "natural": VI(optimizer="natural", n_samples=2000),
    "hessian_free": SVI(optimizer="hessian_free", n_samples=2000),
}


@pytest.mark.parametrize("method", SEARCHES.values(), ids=SEARCHES)
def test_every_search_fits_fixed_coefficients_alone(frame, method):
    """Nothing to integrate: the multinomial logit's estimate within a fifth of its error."""
    est = make(fixed=["x", "z"], random=[], method=method).fit(frame)
    newton = make(fixed=["x", "z"], random=[]).fit(frame)
    assert ((est.coef_ - newton.coef_).abs() < 0.2 * newton.summary()["std_error"]).all()


def test_constants_and_availability(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        method = VI(**FAST, correct=False, flow=None)
        est = make(random=["z", "asc.a2"], constants=True, correlated=False, method=method).fit(frame)
    assert list(est.coef_.index) == ["x", "asc.a3", "asc.a4", "z", "asc.a2", "sd.z", "sd.asc.a2"]
    one = frame[(frame["id"] == 1) & (frame["alternative"] != "a4")].drop(columns="choice")
    total = est.predict_proba(one).groupby([one["id"], one["situation"]]).sum()
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    with pytest.raises(ChoiceDataError, match="were not in the data of the fit"):
        est.predict_proba(one.assign(alternative=one["alternative"].replace("a2", "a9")))


def test_choice_data_bring_their_choices(frame):
    from mxlogit.choices import read_frame

    data = read_frame(frame, make()._columns(), ["x"]).data
    est = make(fixed=["x"], random=[]).fit(data)
    for call in (est.fit, est.score):
        with pytest.raises(ChoiceDataError, match="y and sample_weight must be None"):
            call(data, frame["choice"])


def test_separation_is_said(frame):
    best = frame.groupby(["id", "situation"])["x"].transform("max").eq(frame["x"])
    with pytest.warns(ConvergenceWarning) as caught:
        est = make(fixed=["x"], random=[]).fit(frame.assign(choice=best))
    assert any("Separation" in str(w.message) and "'x'" in str(w.message) for w in caught)
    assert est.diagnostics_["converged"] is False


def test_separation_among_many_people(generator):
    """A direction proposed by some people holds for all, or one person of many speaks against it."""
    from mxlogit.execution.people import People
    from mxlogit.inference.start import is_separated
    from mxlogit.model.dense_panels import PanelDifferences

    rows = torch.randn(6_000, 8, 3, generator=generator)
    apart = torch.where((rows @ torch.tensor([1.0, -2.0, 0.5]))[..., None] > 0, -rows, rows)
    panel = PanelDifferences.regular(apart, 2)
    assert is_separated(People.gather(panel))
    panel.values[4_321, 5] *= -1
    assert not is_separated(People.gather(panel))


def test_zero_variance_is_said():
    frame, _ = simulate_choices(400, 8, 3, fixed={"x": 1.0, "z": 0.5}, random_state=3)
    with pytest.warns(ConvergenceWarning, match="standard deviation of 'z' is indistinguishable from zero"):
        est = make(method=VI(draws=16)).fit(frame)
    assert est.diagnostics_["converged"] is True
    assert est.coef_["sd.z"] < 0.25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "newtown"}, "Did you mean 'newton'"),
        ({"flow": "planar"}, "flow"),
        ({"draws": 10}, "multiple of 4"),
        ({"tail": 3}, "even number"),
        ({"polish": -1}, "polish"),
        ({"tolerance": 0}, "tolerance"),
        ({"n_samples": "many"}, "n_samples"),
        ({"max_seconds": -1.0}, "max_seconds"),
    ],
)
def test_bad_settings_are_explained(frame, options, words):
    with pytest.raises(SpecificationError, match=words):
        make(method=VI(**options)).fit(frame)


# Training of a few dozen steps ends far from the posterior, which the fit says.
UNFINISHED = pytest.mark.filterwarnings("ignore:The estimated error:mxlogit.errors.ConvergenceWarning")


@UNFINISHED
def test_the_classic_route_runs_on_the_same_functions(frame, est):
    """A short Adam run on Pyro's ELBO ends near the default route's posterior and leaves no trace."""
    import pyro

    classic = make(
        method=SVI(polish=0, flow=None, n_samples=80, training=Training(steps=320, batch_size=150, learning_rate=0.05))
    ).fit(frame)
    exact = make(method=VI()).fit(frame)
    assert ((classic.coef_ - exact.coef_).abs() < 1.5 * exact.summary()["std_error"]).all()
    assert classic.diagnostics_["ess_encoder"] > 0.8
    assert classic.log_likelihood_ == pytest.approx(log_likelihood(Choices.of_frame(frame), *classic.coef_), abs=0.3)
    assert est.log_likelihood_ - 2.0 < classic.log_likelihood_ < est.log_likelihood_ + 1.0
    assert classic.individual_coefficients().shape == (150, 2)
    assert list(pyro.get_param_store().keys()) == []


SHORT = Training(steps=60, batch_size=100)


@UNFINISHED
@pytest.mark.parametrize("options", [{"encoder": "rodrigues2022"}, {"polish": 1}])
def test_variants_of_the_classic_route_learn(frame, est, options):
    """Sixty steps close most of the gap in log likelihood between the multinomial logit they begin at and the fit."""
    classic = make(method=SVI(**{"polish": 0, "flow": None, "training": SHORT, "n_samples": 80, **options})).fit(frame)
    plain = make(fixed=["x", "z"], random=[]).fit(frame)
    gap = est.log_likelihood_ - plain.log_likelihood_
    assert gap > 20.0
    assert est.log_likelihood_ - classic.log_likelihood_ < 0.5 * gap
    assert 0.5 < classic.diagnostics_["ess_encoder"] <= 1.0


@pytest.mark.slow
def test_the_classic_route_finds_the_same_posterior(frame, est):
    """A long Adam run: means within two thirds of a posterior sd, sds within a third."""
    classic = make(
        method=SVI(polish=0, flow=None, training=Training(steps=4000, batch_size=150, learning_rate=0.05))
    ).fit(frame)
    assert ((classic.coef_ - est.coef_).abs() < 0.67 * est.summary()["std_error"]).all()
    ratio = classic.summary()["std_error"] / est.summary()["std_error"]
    assert ratio.between(0.67, 1.5).all()


def test_verbose_tells_every_pass(frame, capsys):
    est = make(verbose=1).fit(frame)
    told = capsys.readouterr().err.splitlines()
    assert sum("log posterior" in line for line in told) == len(est.result_.history) > 3
    assert any(line.startswith("posterior: ") for line in told)
    make(verbose=0).fit(frame)
    assert capsys.readouterr().err == ""


def test_import_is_light_and_may_begin_with_errors():
    """Neither it nor a step of Adam, which torch's class would take after its import, loads the compiler."""
    code = """
import sys, mxlogit.errors, mxlogit, sklearn.exceptions as s
print(issubclass(mxlogit.errors.NotFittedError, s.NotFittedError))
import torch
from mxlogit.optim.adam import Adam
parameter = torch.ones(2, requires_grad=True)
parameter.grad = torch.ones(2)
Adam([parameter]).step(0.1)
print([m for m in ('matplotlib', 'arviz', 'jax', 'pyro', 'polars', 'torch._dynamo') if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["True", "[]", ""]
