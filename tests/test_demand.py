"""Elasticities, marginal effects and diversion against finite differences and closed forms, and their laws."""

import numpy as np
import pandas as pd
import pytest

from mxlogit import MSLE, VI, MixedLogit, SpecificationError
from mxlogit.simulate import simulate_choices

# Windows of nodes are not those of `shares`, which integrates over the posterior as well.
INTEGRATION = 0.01


@pytest.fixture(scope="module")
def frame():
    frame = simulate_choices(80, 4, 3, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, random_state=2)[0]
    frame["x"] = frame["x"] + 3.0
    frame["d"] = (frame["z"] > 0.5).astype(int)
    # The third alternative is not there for every fourth person.
    return frame[~((frame["id"] % 4 == 0) & (frame["alternative"] == frame["alternative"].max()))]


@pytest.fixture(scope="module")
def usable(frame):
    return frame[frame.groupby(["id", "situation"])["choice"].transform("sum") == 1]


@pytest.fixture(scope="module")
def est(usable):
    return MixedLogit(fixed=["x"], random=["z"], method=VI(n_samples=400), random_state=1).fit(usable)


@pytest.fixture(scope="module")
def logit(usable):
    return MixedLogit(fixed=["x", "z"], method="msle", random_state=1).fit(usable)


def logit_probabilities(frame, coefficients):
    """Softmax by hand."""
    utility = np.exp(frame[["x", "z"]].to_numpy() @ coefficients)
    situations = [frame["id"].to_numpy(), frame["situation"].to_numpy()]
    return utility / pd.Series(utility).groupby(situations).transform("sum").to_numpy()


def test_point_elasticities_are_those_of_predicted_shares(est, usable):
    """Of 1 per cent up and down, by changes of the attribute of one alternative everywhere."""
    found = est.elasticities(usable, "x")
    for changed in usable["alternative"].unique():
        mine = usable["alternative"] == changed
        up, down = (usable.assign(x=np.where(mine, factor, 1.0) * usable["x"]) for factor in (1.01, 0.99))
        slope = (est.shares(up) - est.shares(down)) / 0.02 / est.shares(usable)
        # Cross elasticities of pairs refer to situations in which both are there; own ones to all.
        assert found.loc[(changed, changed), "estimate"] == pytest.approx(slope[changed], rel=INTEGRATION)
    assert (found["lower"] < found["estimate"]).all()
    assert (found["estimate"] < found["upper"]).all()


def test_marginal_effects_are_slopes_of_predicted_shares(est, usable):
    found = est.marginal_effects(usable, "z", discrete=False)["estimate"]
    whole = usable[usable["id"] % 4 != 0]
    everywhere = est.marginal_effects(whole, "z", discrete=False)["estimate"]
    for changed in usable["alternative"].unique():
        mine = whole["alternative"] == changed
        up, down = (whole.assign(z=whole["z"] + step * mine) for step in (0.01, -0.01))
        slope = (est.shares(up) - est.shares(down)) / 0.02
        np.testing.assert_allclose(everywhere[changed], slope, rtol=3 * INTEGRATION)
        assert everywhere[changed].sum() == pytest.approx(0.0, abs=1e-12)
    assert np.isfinite(found).all()


def test_elasticities_of_each_situation_in_closed_form(logit, usable):
    found = logit.elasticities(usable, "x", aggregate=None)
    p = logit_probabilities(usable, logit.coef_.to_numpy())
    table = usable.assign(p=p).set_index(["id", "situation", "alternative"])
    pairs = found.reset_index()
    changed = table.loc[list(zip(pairs["id"], pairs["situation"], pairs["changed"], strict=True))]
    own = (pairs["changed"] == pairs["alternative"]).to_numpy()
    exact = logit.coef_["x"] * changed["x"].to_numpy() * (own - changed["p"].to_numpy())
    np.testing.assert_allclose(pairs["estimate"], exact, rtol=1e-9)
    assert len(pairs) == usable.groupby(["id", "situation"]).size().pow(2).sum()


def test_aggregated_elasticities_are_weighted_means_of_those_of_situations(logit, usable):
    each = logit.elasticities(usable, "x", aggregate=None)["estimate"].rename("elasticity").reset_index()
    p = usable.assign(p=logit_probabilities(usable, logit.coef_.to_numpy()))[["id", "situation", "alternative", "p"]]
    each = each.merge(p)
    pairs = each.groupby(["changed", "alternative"])
    weighted = pairs.apply(lambda some: np.average(some["elasticity"], weights=some["p"]))
    np.testing.assert_allclose(logit.elasticities(usable, "x")["estimate"], weighted, rtol=1e-9)
    sample = logit.elasticities(usable, "x", aggregate="sample")["estimate"]
    np.testing.assert_allclose(sample, pairs["elasticity"].mean(), rtol=1e-9)


def test_weights_are_people_more_than_once(logit, usable):
    twice = pd.concat([usable, usable[usable["id"] == 3].assign(id=1_003)])
    weighted = MixedLogit(fixed=["x", "z"], weights="w", weights_sum="given", method="msle", random_state=1)
    weighted.fit(usable.assign(w=np.where(usable["id"] == 3, 2.0, 1.0)))
    one, two = weighted, MixedLogit(fixed=["x", "z"], method="msle", random_state=1).fit(twice)
    for aggregate in ("probability", "sample"):
        left = one.elasticities(usable.assign(w=np.where(usable["id"] == 3, 2.0, 1.0)), "x", aggregate=aggregate)
        right = two.elasticities(twice, "x", aggregate=aggregate)
        np.testing.assert_allclose(left["estimate"], right["estimate"], rtol=1e-6)


def test_arc_elasticities_are_relative_to_the_middle(est, usable):
    found = est.elasticities(usable, "x", kind="arc", change=-0.2)["estimate"]
    changed = usable["alternative"].iloc[0]
    after = usable.assign(x=np.where(usable["alternative"] == changed, 0.8, 1.0) * usable["x"])
    one, two = est.shares(usable)[changed], est.shares(after)[changed]
    assert found[changed, changed] == pytest.approx((two - one) / (0.5 * (one + two)) / (-0.2 / 0.9), rel=INTEGRATION)


def test_small_arcs_are_points(est, usable):
    arc = est.elasticities(usable, "x", kind="arc", change=1e-5)
    np.testing.assert_allclose(arc, est.elasticities(usable, "x"), rtol=1e-4)


def test_dummies_change_from_zero_to_one(usable):
    est = MixedLogit(fixed=["x", "d"], method="msle", random_state=1).fit(usable)
    whole = usable[usable["id"] % 4 != 0]
    found = est.marginal_effects(whole, "d")["estimate"]
    changed = whole["alternative"].iloc[0]
    on, off = (whole.assign(d=np.where(whole["alternative"] == changed, value, whole["d"])) for value in (1, 0))
    np.testing.assert_allclose(found[changed], est.shares(on) - est.shares(off), rtol=1e-9)
    slopes = est.marginal_effects(whole, "d", discrete=False)["estimate"]
    assert not np.allclose(found, slopes, rtol=1e-3)


def test_diversion_of_the_logit_is_in_proportion_to_probabilities(logit, usable):
    one = usable[(usable["id"] == 1) & (usable["situation"] == usable["situation"].iloc[0])]
    p = pd.Series(logit_probabilities(one, logit.coef_.to_numpy()), one["alternative"])
    for attribute in (None, "x"):
        found = logit.diversion(one, attribute)["estimate"]
        for changed in p.index:
            others = p.drop(changed)
            np.testing.assert_allclose(found[changed][others.index], others / (1.0 - p[changed]), rtol=1e-9)


def test_second_choices_of_a_mixed_logit_are_shares_without_the_first(est, usable):
    """People's tastes decide: the share of j among those of i is that of the frame without i, less what others chose."""
    whole = usable[usable["id"] % 4 != 0]
    changed, *others = sorted(whole["alternative"].unique())
    found = est.diversion(whole)["estimate"]
    before, after = est.shares(whole), est.shares(whole[whole["alternative"] != changed])
    gained = (after - before.drop(changed)) / before[changed]
    np.testing.assert_allclose(found[changed][others], gained[others], rtol=INTEGRATION)
    assert found.groupby("changed").sum().to_numpy() == pytest.approx(1.0)


def test_an_alternative_that_almost_everybody_chooses_has_second_choices(usable):
    """Probabilities next to one have complements below rounding."""
    est = MixedLogit(fixed=["x", "z"], method="msle", random_state=1).fit(usable)
    one = usable[(usable["id"] == 1) & (usable["situation"] == usable["situation"].iloc[0])]
    certain = one.assign(x=one["x"] + np.array([-1e3, 0.0, 0.5]))
    found = est.diversion(certain)["estimate"]
    assert np.isfinite(found).all()
    assert found.groupby("changed").sum().to_numpy() == pytest.approx(1.0)


def test_captives_do_not_divert(est, usable):
    """A situation with one alternative: nothing is chosen instead, and the others' ratios are as without it."""
    first = usable[(usable["id"] == 1) & (usable["situation"] == usable["situation"].iloc[0])].index
    captive = usable.drop(first[1:])
    for attribute in (None, "x"):
        found = est.diversion(captive, attribute)
        np.testing.assert_allclose(found, est.diversion(usable.drop(first), attribute), rtol=1e-3)
        assert found["estimate"].groupby("changed").sum().to_numpy() == pytest.approx(1.0)
    assert np.isfinite(est.elasticities(captive, "x", aggregate="sample")).all(axis=None)


def test_maximum_likelihood_is_labelled_as_such(logit, usable):
    assert logit.elasticities(usable, "x", interval=0.9).attrs["interval"] == "90 % of the sampling distribution"


def test_people_of_the_fit_have_their_own_elasticities(est, usable):
    some = usable[usable["id"] <= 5]
    own = est.elasticities(some, "z", tastes="individual")
    history = est.elasticities(some, "z", history=usable[usable["id"] <= 9])
    np.testing.assert_allclose(own, history, atol=1e-6)
    assert not np.allclose(own["estimate"], est.elasticities(some, "z")["estimate"], rtol=0.02)


MISTAKES = {
    "unknown": (lambda e, f: e.elasticities(f, "y"), "'y' is no coefficient"),
    "kind": (lambda e, f: e.elasticities(f, "x", kind="line"), "kind must be"),
    "aggregate": (lambda e, f: e.elasticities(f, "x", aggregate="mean"), "aggregate must be"),
    "change": (lambda e, f: e.elasticities(f, "x", kind="arc", change=0), "change must be"),
    "interval": (lambda e, f: e.marginal_effects(f, "x", interval=95), "interval must be a probability"),
    "discrete": (lambda e, f: e.marginal_effects(f, "x", discrete="yes"), "discrete"),
    "tastes": (lambda e, f: e.diversion(f, tastes="mean"), "tastes must be"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes_are_told_in_a_sentence(est, usable, mistake):
    call, words = MISTAKES[mistake]
    with pytest.raises(SpecificationError, match=words):
        call(est, usable)


def test_simulated_likelihood_with_random_tastes(usable):
    est = MixedLogit(fixed=["x"], random=["z"], method=MSLE(n_draws=100, check_draws=False), random_state=1).fit(usable)
    found = est.elasticities(usable, "x")
    mine = usable["alternative"] == usable["alternative"].iloc[0]
    up, down = (usable.assign(x=np.where(mine, factor, 1.0) * usable["x"]) for factor in (1.01, 0.99))
    changed = usable["alternative"].iloc[0]
    slope = (est.shares(up) - est.shares(down)) / 0.02 / est.shares(usable)
    assert found.loc[(changed, changed), "estimate"] == pytest.approx(slope[changed], rel=INTEGRATION)
