"""Predictions against grids over tastes, and the laws that they obey whoever else is in the frame."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from mxlogit import MCMC, MSLE, VI, ConvergenceWarning, MixedLogit
from mxlogit.simulate import simulate_choices

# Largest error of a probability that the docstring of `predict_proba` promises with one or two random coefficients.
PROMISED = 0.005
# Single precision of the draws' weights, in sums over a few thousand.
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def frame():
    return simulate_choices(60, 5, 3, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, random_state=2)[0]


@pytest.fixture(scope="module")
def fits(frame):
    """One fit of each engine."""
    methods = {
        # Tables average over these samples, all of which the quadratures below go through.
        "vi": VI(n_samples=24),
        "msle": MSLE(n_draws=200, check_draws=False),
        "mcmc": MCMC(warmup=60, samples=70, chains=4),
        "short chains": MCMC(warmup=50, samples=15, chains=2),
    }
    made = {}
    for name, method in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            made[name] = MixedLogit(fixed=["x"], random=["z"], method=method, random_state=1).fit(frame)
    return made


def grid(size=400, width=6.0):
    """Standard normal nodes and weights."""
    nodes = np.linspace(-width, width, size)
    weights = np.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()


def utilities(rows, names, coefficients):
    """Softmax by hand of one situation's rows (j, k) for coefficients (..., k)."""
    utility = coefficients @ rows[names].to_numpy().T
    utility = np.exp(utility - utility.max(-1, keepdims=True))
    return utility / utility.sum(-1, keepdims=True)


def situations(frame, count):
    keys = frame[["id", "situation"]].drop_duplicates().iloc[:: max(1, len(frame) // 3 // count)]
    return [frame[(frame["id"] == i) & (frame["situation"] == s)] for i, s in keys.itertuples(index=False)]


@pytest.mark.parametrize("name", ["vi", "msle", "mcmc"])
def test_one_taste_by_quadrature_over_every_posterior_sample(fits, frame, name):
    est = fits[name]
    samples = est.posterior_samples() if name != "msle" else est.coef_.to_frame().T
    nodes, weights = grid()
    tastes = samples["z"].to_numpy()[:, None] + samples["sd.z"].to_numpy()[:, None] * nodes
    coefficients = np.stack([np.broadcast_to(samples["x"].to_numpy()[:, None], tastes.shape), tastes], -1)
    found = est.predict_proba(frame)
    for rows in situations(frame, 10):
        exact = (utilities(rows, ["x", "z"], coefficients) * weights[:, None]).sum(1).mean(0)
        np.testing.assert_allclose(found[rows.index], exact, atol=PROMISED)


def test_two_correlated_tastes_by_a_grid():
    frame = simulate_choices(150, 5, 3, random={"z": (0.5, 1.2), "w": (-0.8, 0.6)}, random_state=5)[0]
    est = MixedLogit(random=["z", "w"], method=MSLE(n_draws=200, check_draws=False), random_state=1).fit(frame)
    c, (nodes, weights) = est.coef_, grid(200)
    one, two = np.meshgrid(nodes, nodes, indexing="ij")
    r = c["cor.z:w"]
    tastes = np.stack([c["z"] + c["sd.z"] * one, c["w"] + c["sd.w"] * (r * one + np.sqrt(1 - r * r) * two)], -1)
    found = est.predict_proba(frame)
    for rows in situations(frame, 12):
        exact = np.einsum("abj,a,b->j", utilities(rows, ["z", "w"], tastes), weights, weights)
        np.testing.assert_allclose(found[rows.index], exact, atol=PROMISED)


def test_two_tastes_of_few_people_by_a_grid_over_every_posterior_sample():
    """Fifteen people, whose population is known to half a unit: the nodes' noise must not grow with that."""
    frame = simulate_choices(15, 4, 3, random={"z": (0.5, 1.2), "w": (-0.8, 0.6)}, random_state=1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(random=["z", "w"], method=VI(n_samples=1_000), random_state=1).fit(frame)
    s, (nodes, weights) = est.posterior_samples(), grid(24, 5.0)
    assert s["z"].std() > 0.4
    one, two = (part.ravel() for part in np.meshgrid(nodes, nodes, indexing="ij"))
    z, w, sd_z, sd_w, r = (s[name].to_numpy()[:, None] for name in ("z", "w", "sd.z", "sd.w", "cor.z:w"))
    tastes = np.stack([z + sd_z * one, w + sd_w * (r * one + np.sqrt(1.0 - r * r) * two)], -1)
    found, weight = est.predict_proba(frame), np.outer(weights, weights).ravel()
    for rows in situations(frame, 6):
        exact = (utilities(rows, ["z", "w"], tastes) * weight[:, None]).sum(1).mean(0)
        np.testing.assert_allclose(found[rows.index], exact, atol=0.003)


@pytest.mark.parametrize("people", ["many", "few"])
def test_individual_tastes_by_quadrature_over_posterior_samples(fits, frame, people):
    """Posterior of a person's taste on a grid, for every posterior sample of the population, which is wide for few."""
    est, persons = fits["vi"], (3, 25, 58)
    if people == "few":
        frame = simulate_choices(25, 3, 3, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, random_state=5)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            est = MixedLogit(fixed=["x"], random=["z"], method=VI(n_samples=60), random_state=1).fit(frame)
        persons = range(1, 26)
    samples, (nodes, weights) = est.posterior_samples(), grid(200)
    tastes = samples["z"].to_numpy()[:, None] + samples["sd.z"].to_numpy()[:, None] * nodes
    coefficients = np.stack([np.broadcast_to(samples["x"].to_numpy()[:, None], tastes.shape), tastes], -1)
    found = est.predict_proba(frame, tastes="individual")
    for person in persons:
        mine = frame[frame["id"] == person]
        parts = [rows for _, rows in mine.groupby("situation")]
        probability = [utilities(rows, ["x", "z"], coefficients) for rows in parts]
        likelihood = np.prod(
            [p[..., rows["choice"].to_numpy().argmax()] for p, rows in zip(probability, parts, strict=True)], 0
        )
        posterior = weights * likelihood
        posterior /= posterior.sum(1, keepdims=True)
        for p, rows in zip(probability, parts, strict=True):
            exact = (posterior[..., None] * p).sum(1).mean(0)
            np.testing.assert_allclose(found[rows.index], exact, atol=PROMISED)


@pytest.mark.parametrize("name", ["vi", "msle", "mcmc"])
def test_equal_rows_have_equal_probabilities(fits, frame, name):
    """The same situation for people new and seen, of any label, at any place."""
    one = frame[(frame["id"] == 7) & (frame["situation"] == 2)].drop(columns="choice")
    many = pd.concat([one.assign(id=label) for label in (1, 7, 60, 5_000, 99_999)], ignore_index=True)
    values = fits[name].predict_proba(many).to_numpy().reshape(5, -1)
    np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), atol=1e-12)


@pytest.mark.parametrize("tastes", ["population", "individual"])
@pytest.mark.parametrize("name", ["vi", "msle", "short chains"])
def test_company_and_order_do_not_matter(fits, frame, name, tastes):
    est = fits[name]
    whole = est.predict_proba(frame, tastes=tastes)
    some = frame[frame["id"].isin([2, 16, 17, 45, 59])]
    np.testing.assert_allclose(est.predict_proba(some, tastes=tastes), whole[some.index], atol=ROUNDING)
    mixed = frame.sample(frac=1.0, random_state=3)
    np.testing.assert_allclose(est.predict_proba(mixed, tastes=tastes), whole[mixed.index], atol=ROUNDING)


@pytest.mark.parametrize("name", ["vi", "msle", "short chains"])
def test_individual_tables_do_not_depend_on_company(fits, frame, name):
    est, statistic = fits[name], ["mean", "sd", 0.1, 0.9]
    some = frame[frame["id"].isin([2, 16, 45])]
    whole = est.individual_coefficients(frame, statistic)
    np.testing.assert_allclose(est.individual_coefficients(some, statistic), whole.loc[[2, 16, 45]], atol=1e-5)
    new = some.assign(id=some["id"] + 1_000)
    company = pd.concat([frame[frame["id"] > 40].assign(id=lambda f: f["id"] + 2_000), new], ignore_index=True)
    alone = est.individual_coefficients(new, statistic)
    np.testing.assert_allclose(est.individual_coefficients(company, statistic).loc[alone.index], alone, atol=1e-5)


def test_equal_choices_give_equal_tastes(fits, frame):
    """People never seen, alike in all but their label."""
    one = frame[frame["id"] == 40]
    alike = pd.concat([one.assign(id=label) for label in (1_001, 1_002, "x")], ignore_index=True)
    table = fits["vi"].individual_coefficients(alike, ["mean", "sd", 0.25]).to_numpy()
    np.testing.assert_allclose(table, np.broadcast_to(table[0], table.shape), rtol=1e-6)


def test_the_score_of_a_frame_is_the_mean_of_its_parts(fits, frame):
    for est in fits.values():
        first, second = (frame[frame["id"].isin(part)] for part in (range(1, 21), range(21, 61)))
        parts = (20 * est.score(first) + 40 * est.score(second)) / 60
        assert est.score(frame) == pytest.approx(parts, abs=1e-6)
        assert est.score(frame.sample(frac=1.0, random_state=4)) == pytest.approx(est.score(frame), abs=1e-6)


@pytest.mark.parametrize("shift", [4e6, 8e6, 1.7e9])
@pytest.mark.parametrize("tastes", ["population", "individual"])
def test_a_constant_added_to_a_column_changes_no_probability(fits, frame, shift, tastes):
    """Whole numbers, so that double precision holds them exactly at any of these sizes."""
    some = frame[frame["id"] <= 20]
    whole = some.assign(x=(some["x"] * 20).round(), z=some["z"].round())
    plain = fits["vi"].predict_proba(whole, tastes=tastes)
    moved = whole.assign(x=whole["x"] + shift, z=whole["z"] - shift)
    np.testing.assert_allclose(fits["vi"].predict_proba(moved, tastes=tastes), plain, atol=1e-6)


def test_chains_and_importance_weights_know_the_same_tastes(fits, frame):
    """Individual predictions from states of chains agree with those of VI."""
    gap = fits["mcmc"].predict_proba(frame, tastes="individual") - fits["vi"].predict_proba(frame, tastes="individual")
    assert gap.abs().mean() < 0.01


def test_tastes_follow_the_population_they_are_given(fits):
    """Samples given another population move with it, for every engine."""
    for name, est in fits.items():
        fitted, result = est._fitted, est.result_
        vector = fitted.model.space.unconstrain(result.center)
        moved = fitted.model.space.constrain(vector + torch.tensor([0.0, 5.0, 0.0], dtype=torch.float64))
        plain, other = (result.tastes.sample(fitted.panel, p, 200, 0) for p in (result.center, moved))
        assert float(other.mean() - plain.mean()) > 1.0, name


def test_memory_of_predictions_does_not_grow_with_people(fits, monkeypatch):
    """No tensor of the kernel holds more than the stated cells, however many people and situations there are."""
    from mxlogit.results import choice_blocks

    sizes = []
    kernel = choice_blocks.choice_probabilities

    def watched(*arguments):
        result = kernel(*arguments)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(choice_blocks, "choice_probabilities", watched)
    large = simulate_choices(1_000, 6, 3, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, random_state=9)[0]
    fits["vi"].predict_proba(large)
    fits["vi"].predict_proba(large[large["id"] <= 60], tastes="individual")
    assert max(sizes) <= choice_blocks._CELLS
