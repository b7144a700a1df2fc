"""Synthetic decision makers, simulated choices, and checks of models by them."""

import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from mxlogit import (
    MSLE,
    ChoiceDataError,
    ConvergenceWarning,
    MixedLogit,
    Mixture,
    SpecificationError,
    plots,
)
from mxlogit.simulate import simulate_choices


@pytest.fixture(scope="module")
def frame():
    found, _ = simulate_choices(
        400,
        8,
        3,
        fixed={"w": 0.5},
        random={"x": (-0.3, 0.6, "negative_lognormal"), "z": (0.7, 1.0)},
        correlation=0.4,
        constants=[0.4, -0.2],
        mean_shifters={"x": {"income": -0.4}, "z": {"income": 0.3}},
        unavailable=0.2,
        random_state=3,
    )
    return found


@pytest.fixture(scope="module")
def est(frame):
    return MixedLogit(
        fixed=["w"],
        random={"x": "negative_lognormal", "z": "normal"},
        constants=True,
        mean_shifters={"x": ["income"], "z": ["income"]},
        random_state=0,
    ).fit(frame)


def test_people_have_the_moments_of_the_population(est):
    people, table = est.sample_population(40_000), est.taste_distribution()
    assert list(people.columns) == ["w", "asc.a2", "asc.a3", "x", "z", "income"]
    for name in ("x", "z"):
        assert people[name].mean() == pytest.approx(table.loc[name, "mean"], rel=0.03)
        assert people[name].std() == pytest.approx(table.loc[name, "sd"], rel=0.08)
    rich = est.sample_population(40_000, {"income": 1.0})
    at_one = est.taste_distribution({"income": 1.0})
    assert (rich["income"] == 1.0).all()
    assert rich["x"].mean() == pytest.approx(at_one.loc["x", "mean"], rel=0.03)
    assert rich["z"].mean() == pytest.approx(at_one.loc["z", "mean"], rel=0.03)
    latent = pd.DataFrame({"x": np.log(-rich["x"]), "z": rich["z"]})
    assert latent.corr().loc["x", "z"] == pytest.approx(est.coef_["cor.x:z"], abs=0.03)


def test_simulated_choices_have_the_predicted_probabilities(est, frame):
    some = frame[frame["id"] <= 10]
    for tastes in ("population", "individual"):
        shares = est.simulate(some, 250, tastes).mean(axis=1)
        wanted = est.predict_proba(some, tastes=tastes)
        assert np.abs(shares - wanted).max() < 0.16
        assert np.abs(shares - wanted).mean() < 0.025
        assert (est.simulate(some, 3, tastes).groupby([some["id"], some["situation"]]).sum() == 1).all(axis=None)


def test_a_person_keeps_its_tastes(est, frame):
    """Choices of a person go together more than those of different people with the same probabilities."""
    one = frame[(frame["id"] == 1) & (frame["situation"] == 1)]
    twice = pd.concat([one, one.assign(situation=2)], ignore_index=True)
    chosen = est.simulate(twice, 4_000).to_numpy().reshape(2, len(one), -1)
    same = (chosen[0] & chosen[1]).any(0).mean()
    probability = est.predict_proba(one).to_numpy()
    assert same > (probability**2).sum() + 0.02
    samples = est.sample_population(20_000, {"income": one["income"].iloc[0]})
    constants = {"a1": 0.0, "a2": samples["asc.a2"], "a3": samples["asc.a3"]}
    utility = np.stack(
        [
            samples["w"] * r.w + samples["x"] * r.x + samples["z"] * r.z + constants[r.alternative]
            for r in one.itertuples()
        ]
    )
    odds = np.exp(utility - utility.max(0))
    assert same == pytest.approx(((odds / odds.sum(0)) ** 2).sum(0).mean(), abs=0.025)


def test_seeds_repeat_and_differ(est, frame):
    some = frame[frame["id"] <= 10]
    pd.testing.assert_frame_equal(est.simulate(some, 5), est.simulate(some, 5))
    assert (est.simulate(some, 5, random_state=1) != est.simulate(some, 5)).any(axis=None)
    pd.testing.assert_frame_equal(est.sample_population(20), est.sample_population(20))
    assert (est.sample_population(20, random_state=1) != est.sample_population(20)).any(axis=None)


def test_a_true_model_is_not_rejected(est, frame):
    table = est.predictive_check(frame, 100)
    assert list(table.index) == [
        *(("share", f"a{i}") for i in (1, 2, 3)),
        ("switching", ""),
        ("entropy", ""),
        ("loyal", ""),
    ]
    assert (table["p"] > 0.01).all()
    chosen = frame[frame["choice"]]
    assert table.loc[("share", "a2"), "observed"] == pytest.approx((chosen["alternative"] == "a2").mean())
    ordered = chosen.sort_values(["id", "situation"]).groupby("id")["alternative"]
    changes = ordered.apply(lambda x: (x.to_numpy()[1:] != x.to_numpy()[:-1]).sum()).sum()
    assert table.loc[("switching", ""), "observed"] == pytest.approx(changes / (400 * 7))
    assert table.loc[("loyal", ""), "observed"] == pytest.approx((ordered.nunique() == 1).mean())
    counts = ordered.value_counts(normalize=True)
    entropy = (-counts * np.log(counts)).groupby(level=0).sum().mean()
    assert table.loc[("entropy", ""), "observed"] == pytest.approx(entropy)


def test_a_model_without_tastes_is_rejected():
    """People who differ in constants switch less than a multinomial logit says."""
    found, _ = simulate_choices(300, 8, 3, fixed={"x": -0.5}, constants=[0.0, 0.0], random_state=1)
    rng = np.random.default_rng(1)
    liking = 1.5 * rng.standard_normal((301, 3))[found["id"], found["alternative"].str[1].astype(int) - 1]
    utility = liking - 0.5 * found["x"] + rng.gumbel(size=len(found))
    made = found.assign(choice=utility.groupby([found["id"], found["situation"]]).transform("max") == utility)
    poor = MixedLogit(fixed=["x"], constants=True, random_state=0).fit(made).predictive_check(made, 100)
    assert poor.loc[("switching", ""), "p"] < 0.05
    assert poor.loc[("switching", ""), "observed"] < poor.loc[("switching", ""), "lower"]
    assert (poor.loc["share", "p"] > 0.05).all()
    right = MixedLogit(fixed=["x"], random=["asc.a2", "asc.a3"], constants=True, method="msle", random_state=0)
    assert right.fit(made).predictive_check(made, 100).loc[("switching", ""), "p"] > 0.05


def test_classes(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(
            random=["w", "z"], mixing=Mixture(classes=2, spread=0, membership=["income"]), method="msle", random_state=0
        ).fit(frame)
    people = est.sample_population(20_000, {"income": 1.0})
    shares = est.class_tastes({"income": 1.0}).xs("share", level="statistic")["estimate"]
    tastes = people[["w", "z"]].drop_duplicates()
    assert len(tastes) == 2
    first = np.isclose(people["w"], est.coef_["class1.w"])
    assert first.mean() == pytest.approx(shares.iloc[0], abs=0.015)
    some = frame[frame["id"] <= 10]
    shares = est.simulate(some, 400).mean(axis=1)
    assert np.abs(shares - est.predict_proba(some)).mean() < 0.03


def test_tastes_that_vary_between_situations():
    frame, _ = simulate_choices(
        200, 8, 3, fixed={"w": 0.5}, random={"z": (0.7, 0.6)}, within={"z": 1.5}, random_state=2
    )
    est = MixedLogit(fixed=["w"], random=["z"], within={"z": "normal"}, method=MSLE(n_draws=64), random_state=0)
    est.fit(frame)
    some = frame[frame["id"] <= 10]
    assert list(est.sample_population(5).columns) == ["w", "z"]
    shares = est.simulate(some, 400).mean(axis=1)
    assert np.abs(shares - est.predict_proba(some)).mean() < 0.025
    shares = est.simulate(some, 400, "individual").mean(axis=1)
    assert np.abs(shares - est.predict_proba(some, tastes="individual")).mean() < 0.025


def test_unavailable_rows_are_not_chosen(est, frame):
    some = frame[frame["id"] <= 5].assign(there=1)
    some.loc[some.index[0], "there"] = 0
    other = MixedLogit(fixed=["w"], random=["z"], availability="there", method="msle", random_state=0)
    other.fit(frame.assign(there=1))
    assert not other.simulate(some, 50).iloc[0].any()


def test_history_conditions(est, frame):
    """Simulated choices of people outside the fit, given what they chose before."""
    some = frame[frame["id"] <= 5].assign(id=lambda x: x["id"] + 10_000)
    before, after = some[some["situation"] <= 4], some[some["situation"] > 4]
    shares = est.simulate(after, 200, history=before).mean(axis=1)
    assert np.abs(shares - est.predict_proba(after, history=before)).mean() < 0.04


def test_picture(est, frame, tmp_path):
    mpl.use("Agg")
    ax = plots.plot_predictive_check(est.predictive_check(frame[frame["id"] <= 100], 40))
    ax.figure.savefig(tmp_path / "check.png")
    assert ax.get_xlabel()
    assert len(ax.get_yticklabels()) == 6
    with pytest.raises(SpecificationError, match="needs the table"):
        plots.plot_predictive_check(frame)


def test_bad_requests(est, frame):
    with pytest.raises(SpecificationError, match="n must"):
        est.sample_population(0)
    with pytest.raises(SpecificationError, match="covariates must"):
        est.sample_population(5, {"age": 1.0})
    with pytest.raises(SpecificationError, match="tastes"):
        est.simulate(frame, tastes="everyone")
    with pytest.raises(SpecificationError, match="random_state"):
        est.simulate(frame, random_state="x")
    with pytest.raises(ChoiceDataError, match="not in the fit"):
        est.simulate(frame.assign(id=frame["id"] + 9_999), tastes="individual")
    with pytest.raises(ChoiceDataError, match="choice"):
        est.predictive_check(frame.drop(columns="choice"))
