"""Intervals of probabilities, utilities and shares, scenarios and histories: against sums by hand, and their laws."""

import warnings

import numpy as np
import pandas as pd
import pytest

from mxlogit import MCMC, MSLE, VI, ChoiceDataError, ConvergenceWarning, MixedLogit, SpecificationError
from mxlogit.simulate import simulate_choices

# Intervals are those of 256 of the samples, evenly spaced, with common tastes: a tenth of half their width.
NOISE = 0.1
# The number of tastes per situation in sums depends on the number of rows.
WINDOWS = 1e-4


@pytest.fixture(scope="module")
def frame():
    frame = simulate_choices(60, 5, 3, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, random_state=2)[0]
    return frame.assign(group=np.where(frame["id"] % 3 == 0, "a", "b"))


@pytest.fixture(scope="module")
def est(frame):
    return MixedLogit(fixed=["x"], random=["z"], method=VI(n_samples=256), random_state=1).fit(frame)


@pytest.fixture(scope="module")
def engines(frame, est):
    methods = {"msle": MSLE(n_draws=200, check_draws=False), "mcmc": MCMC(warmup=60, samples=150, chains=4)}
    made = {"vi": est}
    for name, method in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            made[name] = MixedLogit(fixed=["x"], random=["z"], method=method, random_state=1).fit(frame)
    return made


def shares_by_sample(est, frame, weights=None):
    """Shares (samples, alternatives) of every posterior sample by a grid over the taste."""
    samples, nodes = est.posterior_samples(), np.linspace(-5.0, 5.0, 61)
    mass = np.exp(-0.5 * nodes**2)
    mass /= mass.sum()
    x, z = (frame[name].to_numpy().reshape(-1, 3) for name in ("x", "z"))
    result = []
    for _, sample in samples.iterrows():
        utility = np.exp(sample["x"] * x[..., None] + (sample["z"] + sample["sd.z"] * nodes) * z[..., None])
        p = (utility / utility.sum(1, keepdims=True)) @ mass
        result.append(np.average(p, axis=0, weights=weights))
    return np.array(result)


def test_intervals_of_shares_are_quantiles_over_all_posterior_samples(est, frame):
    exact = shares_by_sample(est, frame)
    found = est.shares(frame, interval=0.9)
    np.testing.assert_allclose(found["estimate"], exact.mean(0), atol=5e-4)
    lower, upper = np.quantile(exact, [0.05, 0.95], axis=0)
    width = 0.5 * (upper - lower)
    # All of the fit's 256 samples are used: what is left is the noise of the tastes.
    np.testing.assert_allclose((found["lower"] - lower) / width, 0.0, atol=0.05)
    np.testing.assert_allclose((found["upper"] - upper) / width, 0.0, atol=0.05)
    assert found.attrs["interval"] == "90 % of the posterior"


def test_intervals_of_differences_are_those_of_the_same_samples(est, frame):
    changed = frame.assign(x=frame["x"] + 0.3 * (frame["alternative"] == "a1"))
    exact = shares_by_sample(est, changed) - shares_by_sample(est, frame)
    found = est.shares([frame, changed], interval=0.9)
    difference = found.loc["scenario - base"]
    lower, upper = np.quantile(exact, [0.05, 0.95], axis=0)
    np.testing.assert_allclose(difference["estimate"], exact.mean(0), atol=5e-4)
    np.testing.assert_allclose((difference["lower"] - lower) / (upper - lower), 0.0, atol=NOISE)
    alone = est.shares(changed, interval=0.9)
    pd.testing.assert_frame_equal(found.loc["scenario"], alone)


@pytest.mark.parametrize("name", ["vi", "msle", "mcmc"])
@pytest.mark.parametrize("tastes", ["population", "individual"])
def test_estimates_with_intervals_are_those_without(engines, frame, name, tastes):
    est, some = engines[name], frame[frame["id"] <= 12]
    for call in (est.predict_proba,) if tastes == "individual" else (est.predict_proba, est.utilities, est.shares):
        plain, table = call(some, tastes), call(some, tastes, interval=0.8)
        np.testing.assert_allclose(table["estimate"], plain, rtol=1e-12)
        assert table.index.equals(plain.index)
        assert (table["lower"] <= table["upper"]).all()
        estimated = {
            "population": "sampling distribution",
            "individual": "distribution of people's tastes at the estimate",
        }
        kind = estimated[tastes] if name == "msle" else "posterior"
        assert table.attrs["interval"] == f"80 % of the {kind}"


def test_wider_intervals_contain_narrower_ones(est, frame):
    narrow, wide = (est.predict_proba(frame, interval=level) for level in (0.8, 0.95))
    assert (wide["lower"] <= narrow["lower"]).all()
    assert (wide["upper"] >= narrow["upper"]).all()


def test_probabilities_of_a_situation_do_not_depend_on_other_rows(est, frame):
    whole = est.predict_proba(frame, interval=0.9)
    part = frame.sample(frac=1.0, random_state=3)
    part = part[part["id"] % 5 == 1]
    pd.testing.assert_frame_equal(est.predict_proba(part, interval=0.9), whole.loc[part.index], rtol=1e-9)
    repeated = pd.concat([frame[frame["id"] == 1].assign(id=name) for name in ("p", "q")])
    found = est.predict_proba(repeated, interval=0.9).to_numpy().reshape(2, -1, 3)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_utilities_are_coefficients_times_attributes(est, frame):
    mean = est.posterior_samples()[["x", "z"]].mean()
    np.testing.assert_allclose(est.utilities(frame), frame[["x", "z"]] @ mean, atol=0.01)


def test_shares_by_group_are_those_of_the_group(est, frame):
    found = est.shares(frame, interval=0.9, by="group")
    for name in ("a", "b"):
        alone = est.shares(frame[frame["group"] == name], interval=0.9)
        np.testing.assert_allclose(found.loc[name], alone, rtol=WINDOWS)
    both = est.shares([frame, frame], by=["group"])
    assert both.index.names == ["scenario", "group", "alternative"]


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_frames_of_other_libraries(est, frame, library):
    module = pytest.importorskip(library)
    make = module.from_pandas if library == "polars" else module.Table.from_pandas
    other, some = make(frame.reset_index(drop=True)), frame.reset_index(drop=True)
    pd.testing.assert_frame_equal(
        est.shares(other, interval=0.9, by="group"), est.shares(some, interval=0.9, by="group")
    )
    pd.testing.assert_frame_equal(est.elasticities(other, "x"), est.elasticities(some, "x"))
    pd.testing.assert_frame_equal(est.predict_proba(other, interval=0.9), est.predict_proba(some, interval=0.9))


def test_weighted_shares(est, frame):
    weights = np.where(frame["id"] % 2 == 0, 3.0, 1.0)
    est = MixedLogit(fixed=["x"], random=["z"], weights="w", weights_sum="given", random_state=1)
    est.fit(frame.assign(w=weights))
    exact = shares_by_sample(est, frame, weights[::3])
    np.testing.assert_allclose(est.shares(frame.assign(w=weights), interval=0.9)["estimate"], exact.mean(0), atol=1e-3)


def test_an_alternative_of_one_scenario(est, frame):
    fewer = frame[frame["alternative"] != "a3"]
    found = est.shares({"all": frame, "two": fewer})
    assert found["two"].index.tolist() == ["a1", "a2"]
    assert found["two - all"]["a3"] == pytest.approx(-found["all"]["a3"])
    closed = frame.assign(open=(frame["alternative"] != "a3").astype(int))
    with_column = MixedLogit(fixed=["x"], random=["z"], availability="open", random_state=1)
    with_column.fit(frame.assign(open=1))
    probability = with_column.predict_proba(closed, interval=0.9)
    assert (probability[frame["alternative"] == "a3"] == 0.0).all(axis=None)


@pytest.mark.parametrize("name", ["vi", "msle"])
def test_people_of_the_fit_by_their_history(engines, frame, name):
    """The same choices give the same tastes, in or outside of the fit."""
    est, some = engines[name], frame[frame["id"] <= 10]
    own = est.predict_proba(some, "individual")
    history = est.predict_proba(some, history=some)
    # Draws of new people are others.
    np.testing.assert_allclose(history, own, atol=0.03 if name == "msle" else 1e-6)


def test_people_never_seen_by_their_history(est, frame):
    """Choices that a person has made raise the probability of the next ones."""
    new = simulate_choices(60, 8, 3, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, random_state=5)[0]
    first, then = new[new["situation"] <= 6], new[new["situation"] > 6]
    chosen = then["choice"].to_numpy().astype(bool)
    known, anybody = est.predict_proba(then, history=first), est.predict_proba(then)
    assert np.log(known[chosen]).mean() > np.log(anybody[chosen]).mean() + 0.02


def test_samples_of_tastes_have_the_moments_of_people(est, frame):
    samples = est.sample_tastes(n=400)
    table = est.individual_coefficients()
    found = samples["z"].groupby("decision_maker")
    np.testing.assert_allclose(found.mean(), table["z", "mean"], atol=0.15)
    np.testing.assert_allclose(found.std(), table["z", "sd"], rtol=0.25)
    assert samples["x"].groupby("sample").nunique().eq(1).all()
    some = est.sample_tastes(frame[frame["id"] <= 3], n=5)
    assert some.shape == (15, 2)


def test_root_likelihood_is_the_geometric_mean_of_probabilities(est, frame):
    found = est.person_fit()
    samples = est.sample_tastes(n=400)
    rows = frame[frame["id"] == 7]
    x, z, chosen = (rows[name].to_numpy().reshape(-1, 3) for name in ("x", "z", "choice"))
    mine = samples.xs(7, level="decision_maker")
    utility = mine["x"].to_numpy()[:, None, None] * x + mine["z"].to_numpy()[:, None, None] * z
    log_prob = (utility - np.log(np.exp(utility).sum(-1, keepdims=True)))[:, chosen.astype(bool)]
    assert found.loc[7, "root_likelihood"] == pytest.approx(np.exp(log_prob.mean()), rel=0.01)
    assert found.loc[7, "percent_certainty"] == pytest.approx(1.0 + log_prob.mean() / np.log(3.0), abs=0.01)
    assert (found["choices"] == 5).all()
    part = est.person_fit(frame[frame["id"].isin([7, 9])])
    pd.testing.assert_frame_equal(part, found.loc[[7, 9]], rtol=0.02)


MISTAKES = {
    "interval": (lambda e, f: e.predict_proba(f, interval=90), SpecificationError, "interval must be a probability"),
    "shares": (lambda e, f: e.shares(f, interval="wide"), SpecificationError, "interval must be a probability"),
    "one scenario": (lambda e, f: e.shares([f]), SpecificationError, "at least two frames"),
    "by": (lambda e, f: e.shares(f, by="groups"), ChoiceDataError, "Did you mean 'group'"),
    "by an attribute": (lambda e, f: e.shares(f, by="x"), ChoiceDataError, "varies within 300 choice situations"),
    "history": (lambda e, f: e.predict_proba(f, history=f[f["id"] > 2]), ChoiceDataError, "2 decision makers of X"),
    "no choices": (lambda e, f: e.shares(f, history=f.drop(columns="choice")), ChoiceDataError, "no column 'choice'"),
    "no sample": (lambda e, f: e.sample_tastes(n=0), SpecificationError, "n must be"),
    "tastes": (lambda e, f: e.utilities(f, "mean"), SpecificationError, "tastes must be"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes_are_told_in_a_sentence(est, frame, mistake):
    call, error, words = MISTAKES[mistake]
    with pytest.raises(error, match=words):
        call(est, frame)
