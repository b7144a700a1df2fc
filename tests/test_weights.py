"""Weights: counts of like decision makers, said where they are not, and asked for where they are used only."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from mxlogit import MCMC, MSLE, VI, ConvergenceWarning, MixedLogit, SpecificationError, pack_choices
from mxlogit.choices import read_frame
from mxlogit.simulate import simulate_choices

ENGINES = {
    "vi": VI(n_samples=4_000),
    "msle": MSLE(covariance="hessian"),
    # Chains of this length have Monte Carlo errors of standard deviations of about 5 %.
    "mcmc": MCMC(samples=300, warmup=100, chains=4),
}
# VI: 4,000 samples, and a posterior that is not quite Gaussian.
ROOM = {"vi": 0.06, "msle": 1e-4, "mcmc": 0.2}
# Fewer than twenty people: a mean is not a mode, and the prior has its say.
FEW = 0.3


@pytest.fixture(scope="module")
def frame():
    frame, _ = simulate_choices(150, 4, 3, fixed={"x": 1.0, "z": -0.5}, random_state=4)
    rng = np.random.default_rng(0)
    return frame.assign(w=np.repeat(rng.choice([1.0, 2.0, 3.0], 150), 12))


def fit(data, **options):
    return MixedLogit(**{"fixed": ["x", "z"], "random_state": 0, "method": ENGINES["vi"], **options}).fit(data)


def information(frame, weight):
    """Inverse of the information matrix of a weighted multinomial logit, at its maximum by Newton steps."""
    x = frame[["x", "z"]].to_numpy().reshape(-1, 3, 2)
    chosen = frame["choice"].to_numpy().reshape(-1, 3)
    w = np.asarray(weight, float).reshape(-1, 3)[:, 0]
    beta = np.zeros(2)
    for _ in range(30):
        utility = x @ beta
        prob = np.exp(utility) / np.exp(utility).sum(1, keepdims=True)
        centred = x - (prob[..., None] * x).sum(1, keepdims=True)
        hessian = np.einsum("s,sj,sja,sjb->ab", w, prob, centred, centred)
        beta = beta + np.linalg.solve(hessian, np.einsum("s,sj,sja->a", w, chosen - prob, x))
    return beta, np.sqrt(np.diag(np.linalg.inv(hessian)))


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
@pytest.mark.parametrize(
    ("engine", "factor"), [("vi", 1 / 20), ("vi", 1), ("vi", 40), ("msle", 1 / 20), ("msle", 40), ("mcmc", 3)]
)
def test_a_weight_is_a_count(frame, engine, factor):
    """Estimates and errors of a weighted fit are those of the weighted likelihood."""
    beta, error = information(frame, factor * frame["w"])
    est = fit(frame.assign(w=factor * frame["w"]), weights="w", weights_sum="given", method=ENGINES[engine])
    few = FEW if factor < 1 and engine != "msle" else 0.0
    table = est.summary()
    np.testing.assert_allclose(table["std_error"], error, rtol=ROOM[engine] + few)
    assert ((table["estimate"] - beta).abs() < (ROOM[engine] + few) * error).all()


def test_sandwich_errors_know_no_unit_of_weights(frame):
    one, said = caught(lambda: fit(frame, weights="w", method=MSLE()))
    assert said == []
    for size in (1e-3, 1e3):
        other, said = caught(lambda size=size: fit(frame.assign(w=size * frame["w"]), weights="w", method=MSLE()))
        assert said == []
        np.testing.assert_allclose(other.summary()["std_error"], one.summary()["std_error"], rtol=1e-5)


@pytest.mark.parametrize("engine", ["vi", "msle"])
def test_weights_that_sum_to_the_number_of_people(frame, engine):
    """Whatever their unit, and however they come."""
    method = ENGINES[engine]
    right = fit(frame.assign(w=frame["w"] / frame["w"].mean()), weights="w", method=method).summary()
    for size in (1e-6, 1e5):
        scaled = fit(frame.assign(w=size * frame["w"]), weights="w", weights_sum="n", method=method)
        np.testing.assert_allclose(scaled.summary(), right, rtol=2e-4)
    given = MixedLogit(fixed=["x", "z"], random_state=0, weights_sum="n", method=method)
    given.fit(frame.drop(columns="w"), sample_weight=1e4 * frame["w"])
    np.testing.assert_allclose(given.summary(), right, rtol=2e-4)


def test_weights_of_choice_data_and_packs_are_scaled(frame, tmp_path):
    est = MixedLogit(weights="w", fixed=["x", "z"])
    data = read_frame(frame.assign(w=500 * frame["w"]), est._columns(), ["x", "z"]).data
    right = fit(frame.assign(w=frame["w"] / frame["w"].mean()), weights="w")
    before = data.weights.clone()
    for kept in (data, pack_choices(data, tmp_path / "pack", dtype=torch.float64)):
        np.testing.assert_allclose(fit(kept, weights_sum="n").coef_, right.coef_, rtol=1e-5)
    assert torch.equal(data.weights, before)


def caught(call):
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        est = call()
    return est, [str(m.message) for m in messages if issubclass(m.category, ConvergenceWarning)]


@pytest.mark.parametrize("mean", [1 / 150, 0.3, 2.5, 1_000.0])
def test_weights_far_from_one_are_said(frame, mean):
    scaled, method = frame.assign(w=mean), VI(correct=False, n_samples=100)
    est, said = caught(lambda: fit(scaled, weights="w", method=method))
    words = "The weights of 150 decision makers have a mean of .*intervals are those of .* people.*weights_sum='n'"
    assert re.match(words, said[0])
    assert f"a mean of {mean:.3g}:" in said[0]
    assert est.result_.warnings[0] == said[0]
    assert not any(
        "weights" in sentence
        for sentence in caught(lambda: fit(scaled, weights="w", weights_sum="given", method=method))[1]
    )
    assert caught(lambda: fit(scaled, weights="w", weights_sum="n", method=method))[1] == []


@pytest.mark.parametrize("mean", [0.6, 1.0, 1.9])
def test_weights_near_one_are_not(frame, mean):
    assert caught(lambda: fit(frame.assign(w=mean), weights="w"))[1] == []


def test_an_unknown_sum_is_explained(frame):
    for sum_ in ("N", 1, "one"):
        with pytest.raises(SpecificationError, match=r"weights_sum must be one of None, 'given', 'n'"):
            fit(frame, weights="w", weights_sum=sum_)


def test_only_what_is_used_is_asked_for(frame):
    """Predictions need neither weights nor choices, tastes no weights, scores and shares those there are."""
    frame = frame[frame["id"] <= 30]
    est = MixedLogit(
        fixed=["x"],
        random=["z"],
        weights="w",
        random_state=0,
        weights_sum="given",
        method=VI(draws=16, correct=False, n_samples=16),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est.fit(frame)
    bare = frame.drop(columns=["w", "choice"])
    for tastes in ("population", "individual"):
        pd.testing.assert_series_equal(est.predict_proba(bare, tastes), est.predict_proba(frame, tastes))
        pd.testing.assert_series_equal(est.predict(bare, tastes), est.predict(frame, tastes))
    unweighted = frame.drop(columns="w")
    pd.testing.assert_frame_equal(est.individual_coefficients(unweighted), est.individual_coefficients(frame))
    # Weights that are wrong are not looked at, either.
    wrong = frame.assign(w=np.nan)
    pd.testing.assert_series_equal(est.predict_proba(wrong), est.predict_proba(frame))
    pd.testing.assert_frame_equal(est.individual_coefficients(wrong), est.individual_coefficients(frame))
    probability = est.predict_proba(frame)
    mean = probability.groupby(frame["alternative"]).mean() * 3
    np.testing.assert_allclose(est.shares(bare), mean / mean.sum(), rtol=1e-9)
    weighted = (probability * frame["w"]).groupby(frame["alternative"]).sum()
    np.testing.assert_allclose(est.shares(frame), weighted / weighted.sum(), rtol=1e-9)
    with pytest.raises(ValueError, match=r"no column 'w' \(weights\)"):
        est.score(unweighted)
    with pytest.raises(ValueError, match=r"no column 'choice' \(choice\)"):
        est.individual_coefficients(bare)


def test_the_order_of_y_and_weights_is_that_of_the_rows(frame):
    """A Series with the index of X in another order is one misaligned column; any other index is ignored."""
    mixed = frame.sample(frac=1.0, random_state=0)
    y, w = frame["choice"], frame["w"]
    right = fit(frame, weights="w", weights_sum="given")
    X = mixed.drop(columns=["choice", "w"])
    for options in ({"y": y, "sample_weight": w.loc[X.index]}, {"y": y.loc[X.index], "sample_weight": w}):
        with pytest.raises(ValueError, match=r"index of X in another order.*loc\[X.index\]"):
            MixedLogit(fixed=["x", "z"]).fit(X, **options)
    est = MixedLogit(fixed=["x", "z"], random_state=0, weights_sum="given", method=ENGINES["vi"])
    np.testing.assert_allclose(est.fit(X, y.loc[X.index], w.loc[X.index]).coef_, right.coef_, rtol=1e-6)
    reset = y.loc[X.index].set_axis(np.arange(len(X)) + 10_000)
    np.testing.assert_allclose(est.fit(X, reset, w.loc[X.index].to_numpy()).coef_, right.coef_, rtol=1e-6)
