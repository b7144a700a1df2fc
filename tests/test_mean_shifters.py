"""Covariates that shift the means of tastes: in every engine hand-made interactions, and in tables the tastes of people."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from mxlogit import (
    MCMC,
    MSLE,
    ChoiceData,
    ChoiceDataError,
    ConvergenceWarning,
    MixedLogit,
    SpecificationError,
)
from mxlogit.choices import pack_choices
from mxlogit.simulate import simulate_choices

SHIFTERS = {"z": ["income", "age"], "x": ["income"]}
PRODUCTS = ["z:income", "z:age", "x:income"]


@pytest.fixture(scope="module")
def frame():
    """People with two covariates, which shift a normal taste and a fixed cost that stays negative."""
    found, _ = simulate_choices(
        300, 5, 3, fixed={"x": -1.0}, random={"z": (0.7, 0.9), "w": (-0.5, 0.5)}, random_state=3
    )
    rng = np.random.default_rng(1)
    covariates = pd.DataFrame({"income": rng.uniform(-1.0, 1.0, 300), "age": rng.integers(0, 2, 300)})
    found = found.join(covariates, on=found["id"] - 1).drop(columns=["choice", "key_0"])
    coefficient = 0.9 * rng.standard_normal(300) + 0.7 + 0.5 * covariates["income"] - 0.4 * covariates["age"]
    person = found["id"].to_numpy() - 1
    utility = found["z"] * coefficient.to_numpy()[person] + found["x"] * (-1.0 + 0.3 * found["income"])
    utility += found["w"] * (-0.5 + 0.8 * rng.standard_normal(300))[person]
    utility = (utility + rng.gumbel(size=len(found))).to_numpy().reshape(-1, 3)
    found["choice"] = (utility.argmax(1)[:, None] == np.arange(3)).ravel()
    return found


@pytest.fixture(scope="module")
def by_hand(frame):
    return frame.assign(
        **{"z:income": frame.z * frame.income, "z:age": frame.z * frame.age, "x:income": frame.x * frame.income}
    )


@pytest.fixture(scope="module")
def few(frame):
    return frame[frame["id"] <= 60]


def shifted(**settings):
    return MixedLogit(fixed=["x"], random=["z", "w"], mean_shifters=SHIFTERS, random_state=0, **settings)


def interacted(**settings):
    return MixedLogit(fixed=["x", *PRODUCTS], random=["z", "w"], random_state=0, **settings)


@pytest.fixture(scope="module")
def est(frame):
    return shifted().fit(frame)


@pytest.fixture(scope="module")
def simulated(frame):
    return shifted(method=MSLE(n_draws=64)).fit(frame)


def people_of(frame):
    return frame.groupby("id")[["income", "age"]].first()


@pytest.mark.parametrize(
    "method", ["vi", MSLE(n_draws=32), pytest.param(MCMC(samples=60, warmup=60, chains=2), marks=pytest.mark.slow)]
)
def test_effects_are_those_of_interactions(frame, by_hand, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, other = shifted(method=method).fit(frame), interacted(method=method).fit(by_hand)
    assert list(one.coef_.index) == list(other.coef_.index)
    if isinstance(method, MSLE):
        np.testing.assert_allclose(one.coef_, other.coef_, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.summary()["std_error"], other.summary()["std_error"], rtol=1e-3)
        np.testing.assert_allclose(one.predict_proba(frame), other.predict_proba(by_hand), atol=1e-5)
    else:
        # Priors are of means at average covariates.
        apart = (one.coef_ - other.coef_) / one.summary()["std_error"]
        assert abs(apart).max() < (0.05 if method == "vi" else 0.5)


@pytest.mark.parametrize("method", ["vi", MSLE(n_draws=32)])
def test_covariates_may_be_far_from_zero(frame, method):
    """Years of birth have the effect of years since 1975, whatever the prior of the mean in the year zero."""
    years = 14.0 * frame["income"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        asked = {"fixed": ["x"], "random": ["z", "w"], "mean_shifters": {"z": ["year"]}, "random_state": 0}
        far = MixedLogit(**asked, method=method).fit(frame.assign(year=years + 1975.0))
        near = MixedLogit(**asked, method=method).fit(frame.assign(year=years))
    error = near.summary()["std_error"]
    assert far.coef_["z:year"] == pytest.approx(near.coef_["z:year"], abs=0.1 * error["z:year"])
    assert far.coef_["sd.z"] == pytest.approx(near.coef_["sd.z"], abs=0.1 * error["sd.z"])
    mean = [est.taste_distribution().loc["z", "mean"] for est in (far, near)]
    assert mean[0] == pytest.approx(mean[1], abs=0.1 * error["z"])


def test_effects_of_zero_are_the_plain_model(frame):
    """The simulated likelihood without the effects is that of the model without covariates."""
    plain = MixedLogit(fixed=["x"], random=["z", "w"], method=MSLE(n_draws=64), random_state=0).fit(frame)
    state, effects = shifted(method=MSLE(n_draws=64)).fit(frame), plain.coef_.copy()
    vector = effects.reindex(state.coef_.index).fillna(0.0)
    from mxlogit.draws.simulation import PersonDraws
    from mxlogit.integration.simulated_likelihood import SimulatedLikelihood

    values = []
    for each, coefficients in ((plain, effects), (state, vector)):
        model, draws = each._fitted.model, PersonDraws("sobol", 64, 2, 0)
        likelihood = SimulatedLikelihood(model, each._fitted.panel, draws)
        population = model.space.from_report(torch.tensor(coefficients.to_numpy()))
        values.append(likelihood.value(likelihood.coordinates(population)))
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_taste_distribution_is_that_of_the_people(simulated, frame):
    """Moments over the fitted people at the estimate: mean and variance of what covariates add, plus the random part."""
    coef, people = simulated.coef_, people_of(frame)
    added = coef["z:income"] * people.income + coef["z:age"] * people.age
    table = simulated.taste_distribution()
    assert table.loc["z", "mean"] == pytest.approx(coef["z"] + added.mean(), rel=1e-9)
    assert table.loc["z", "sd"] == pytest.approx(np.hypot(coef["sd.z"], added.std(ddof=0)), rel=1e-9)
    assert table.loc["w", "mean"] == pytest.approx(coef["w"], rel=1e-12)
    cost = coef["x"] + coef["x:income"] * people.income
    assert table.loc["x", ["mean", "sd"]].tolist() == pytest.approx([cost.mean(), cost.std(ddof=0)], rel=1e-9)
    assert table.loc["x", "distribution"] == "fixed"
    given = simulated.taste_distribution(covariates={"income": 0.5, "age": 1})
    assert given.loc["z", "mean"] == pytest.approx(coef["z"] + 0.5 * coef["z:income"] + coef["z:age"], rel=1e-9)
    assert given.loc["z", "sd"] == pytest.approx(coef["sd.z"], rel=1e-12)


def test_willingness_to_pay_is_that_of_the_people(simulated, frame):
    """By simulation of the fitted people's tastes at the estimate, and in closed form at given covariates."""
    coef, people = simulated.coef_, people_of(frame)
    rng = np.random.default_rng(0)
    some = people.sample(200_000, replace=True, random_state=1)
    taste = coef["z"] + coef["z:income"] * some.income + coef["z:age"] * some.age
    taste = taste + coef["sd.z"] * rng.standard_normal(len(some))
    ratio = -taste / (coef["x"] + coef["x:income"] * some.income)
    found = simulated.wtp("z", "x")["estimate"]
    assert found["mean"] == pytest.approx(ratio.mean(), abs=0.03)
    for p in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert found[f"{100 * p:g} %"] == pytest.approx(ratio.quantile(p), abs=0.06)
    assert found["share below zero"] == pytest.approx((ratio < 0).mean(), abs=0.01)
    given = simulated.wtp("z", "x", covariates={"income": -0.5, "age": 0})["estimate"]
    cost = coef["x"] - 0.5 * coef["x:income"]
    assert given["mean"] == pytest.approx(-(coef["z"] - 0.5 * coef["z:income"]) / cost, rel=2e-3)


def test_a_cost_that_reaches_zero_for_some_people_has_no_mean():
    far, _ = simulate_choices(
        300, 5, 3, fixed={"x": -0.5, "z": 1.0}, mean_shifters={"x": {"income": 0.5}}, random_state=1
    )
    est = MixedLogit(fixed=["x", "z"], mean_shifters={"x": ["income"]}, method="msle", random_state=0).fit(far)
    table = est.wtp("z", "x")
    assert "mean" not in table.index
    assert "some covariates" in table.attrs["verdict"]
    assert "mean" in est.wtp("z", "x", covariates={"income": -1.0}).index
    with pytest.raises(SpecificationError, match="no mean over people"):
        est.surplus(far, far.assign(x=far.x - 0.1), "x")


def test_tastes_of_people_include_their_covariates(est, frame):
    """Mean and sd agree with joint samples, and unseen people with the same choices have the same tastes."""
    found = est.individual_coefficients()
    samples = est.sample_tastes(n=1_000)
    assert list(samples.columns) == ["x", "z", "w"]
    by_person = samples["z"].groupby("decision_maker")
    np.testing.assert_allclose(by_person.mean(), found[("z", "mean")], atol=0.12)
    assert abs(np.log(by_person.std() / found[("z", "sd")])).mean() < 0.06
    median = est.individual_coefficients(statistic=[0.5])[("z", 0.5)]
    np.testing.assert_allclose(median, found[("z", "mean")], atol=0.25)
    again = est.individual_coefficients(frame[frame["id"].isin([5, 9])])
    np.testing.assert_allclose(again.to_numpy(), found.loc[[5, 9]].to_numpy(), atol=1e-5)
    cost = samples["x"].groupby("decision_maker")
    np.testing.assert_allclose(cost.mean(), found[("x", "mean")], atol=0.01)
    np.testing.assert_allclose(cost.std(), found[("x", "sd")], rtol=0.15)
    # What covariates add is in the means of people: their regression on the covariate has its slope, less shrinkage.
    slope = np.polyfit(people_of(frame)["income"], found[("z", "mean")], 1)[0]
    assert slope == pytest.approx(est.coef_["z:income"], abs=0.15)


@pytest.mark.slow
def test_tastes_of_people_agree_with_chains(est, frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        chains = shifted(method=MCMC(samples=1_000, warmup=300)).fit(frame)
    one, other = est.individual_coefficients()["z"], chains.individual_coefficients()["z"]
    assert float(np.sqrt((((one["mean"] - other["mean"]) / other["sd"]) ** 2).mean())) < 0.08
    assert float(abs(np.log(one["sd"] / other["sd"])).mean()) < 0.06


@pytest.mark.parametrize("attribute", ["z", "x"])
def test_elasticities_are_finite_differences_of_shares(est, few, attribute):
    step, mine = 1e-4, few["alternative"] == "a2"
    before = est.shares(few)
    after = est.shares(few.assign(**{attribute: few[attribute].where(~mine, few[attribute] * (1.0 + step))}))
    found = est.elasticities(few, attribute).loc["a2", "estimate"]
    np.testing.assert_allclose(found, (after - before) / before / step, atol=5e-4)
    arc = est.elasticities(few, attribute, kind="arc", change=0.5).loc["a2", "estimate"]
    after = est.shares(few.assign(**{attribute: few[attribute].where(~mine, few[attribute] * 1.5)}))
    expected = (after - before) / (0.5 * (after + before)) / (0.5 / 1.25)
    np.testing.assert_allclose(arc, expected, atol=2e-3)


def test_marginal_effects_are_finite_differences(est, few):
    step, mine = 1e-4, few["alternative"] == "a2"
    before, after = est.shares(few), est.shares(few.assign(z=few["z"] + step * mine))
    found = est.marginal_effects(few, "z").loc["a2", "estimate"]
    np.testing.assert_allclose(found, (after - before) / step, atol=5e-4)
    dummy = few.assign(z=(few["z"] > 0).astype(float))
    on, off = (est.shares(dummy.assign(z=dummy["z"].where(~mine, value))) for value in (1.0, 0.0))
    np.testing.assert_allclose(est.marginal_effects(dummy, "z").loc["a2", "estimate"], on - off, atol=2e-3)


def test_surplus_is_the_log_sum_over_the_cost_of_each_person(frame):
    """Fixed coefficients only, in closed form: the cost's coefficient is that of the person's income."""
    est = MixedLogit(fixed=["x", "z"], mean_shifters={"x": ["income"]}, method="msle", random_state=0).fit(frame)
    after = frame.assign(z=frame["z"] + (frame["alternative"] == "a1"))
    cost = est.coef_["x"] + est.coef_["x:income"] * frame["income"]

    def log_sum(data):
        utility = cost * data["x"] + est.coef_["z"] * data["z"]
        return np.log(np.exp(utility.to_numpy()).reshape(-1, 3).sum(1))

    expected = (log_sum(after) - log_sum(frame)) / -cost.to_numpy()[::3]
    found = est.surplus(frame, after, "x", each=True)["estimate"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert est.surplus(frame, after, "x").loc["mean", "estimate"] == pytest.approx(expected.mean(), rel=1e-6)


def test_constants_can_be_shifted(frame):
    dummy = (frame["alternative"] == "a2") * frame["income"]
    asked = {"constants": True, "method": "msle", "random_state": 0}
    one = MixedLogit(fixed=["x"], mean_shifters={"asc.a2": ["income"]}, **asked).fit(frame)
    other = MixedLogit(fixed=["x", "effect"], **asked).fit(frame.assign(effect=dummy))
    assert one.coef_["asc.a2:income"] == pytest.approx(other.coef_["effect"], abs=1e-6)


def test_choice_data_hold_covariates_as_attributes(frame, simulated):
    names = ["x", "z", "w", "income", "age"]
    attributes = frame[names].to_numpy().reshape(300, 5, 3, 5)
    chosen = frame["choice"].to_numpy().reshape(300, 5, 3).argmax(-1)
    data = ChoiceData.from_arrays(attributes, chosen, names=names)
    est = shifted(method=MSLE(n_draws=64)).fit(data)
    np.testing.assert_allclose(est.coef_, simulated.coef_, rtol=1e-8)


def test_saved_models_keep_covariates(est, few, tmp_path):
    est.save(tmp_path / "model")
    loaded = MixedLogit.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.taste_distribution(), est.taste_distribution())
    pd.testing.assert_frame_equal(loaded.individual_coefficients(few), est.individual_coefficients(few))
    pd.testing.assert_frame_equal(loaded.elasticities(few, "z"), est.elasticities(few, "z"))
    assert clone(est).get_params()["mean_shifters"] == SHIFTERS


def test_pictures_show_the_tastes_of_the_people(est, frame):
    pytest.importorskip("matplotlib")
    from mxlogit.plots.tastes import population_quantiles

    found, table = population_quantiles(est)[..., 0], est.taste_distribution()
    only_fixed = MixedLogit(fixed=["x", "z"], mean_shifters={"x": ["income"]}, method="msle").fit(frame)
    assert list(only_fixed.individual_coefficients(statistic=["mean", 0.5])["x"].columns) == ["mean", 0.5]
    assert found.mean() == pytest.approx(table.loc["z", "mean"], abs=0.03)
    assert found.std(1).mean() == pytest.approx(table.loc["z", "sd"], abs=0.03)


def test_weights_count_people(frame):
    """A person of weight two is two people, in averages over covariates as well."""
    weights = np.where(frame["id"] <= 100, 2.0, 1.0)
    twice = pd.concat([frame, frame[frame["id"] <= 100].assign(id=lambda x: x["id"] + 1_000)])
    one = shifted(method=MSLE(n_draws=64)).fit(frame, sample_weight=weights)
    other = shifted(method=MSLE(n_draws=64)).fit(twice)
    people = people_of(twice)
    for each in (one, other):
        added = each.coef_["z:income"] * people.income + each.coef_["z:age"] * people.age
        assert each.taste_distribution().loc["z", "mean"] == pytest.approx(each.coef_["z"] + added.mean(), rel=1e-9)


def test_simulated_effects_are_found():
    truth = {"z": {"income": 0.6}, "x": {"income": -0.3}}
    data, true = simulate_choices(
        800, 6, 3, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, mean_shifters=truth, random_state=2
    )
    table = MixedLogit(fixed=["x"], random=["z"], mean_shifters={"z": ["income"], "x": ["income"]}).fit(data).summary()
    assert (abs(table["estimate"] - true.coef[table.index]) < 3.5 * table["std_error"]).all()
    by_person = data.groupby("id")["income"].first()
    assert np.polyfit(by_person, true.tastes["z"], 1)[0] == pytest.approx(0.6, abs=0.12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"income": lambda f: f["w"]}, "'income' varies within 300 of 300 decision makers"),
        ({"income": lambda f: f["income"].where(f["id"] != 7, np.nan)}, "'income' has 15 missing"),
        ({"income": 4.0}, "cannot be told from the mean itself"),
        ({"income": lambda f: 1.0 - f["age"]}, "cannot be told from the mean itself"),
        ({"income": "high"}, "column 'income'"),
        ({"income": 0.0}, "cannot be told from the mean itself"),
        ({"z:income": 1.0}, None),
    ],
)
def test_bad_covariates(frame, change, sentence):
    made = {name: value(frame) if callable(value) else value for name, value in change.items()}
    est = MixedLogit(fixed=["x"], random=["z"], mean_shifters={"z": ["income", "age"]}, method="msle")
    if sentence is None:
        # A column that nobody asked for is not read.
        est.fit(frame.assign(**made))
        return
    with pytest.raises((ChoiceDataError, SpecificationError), match=sentence):
        est.fit(frame.assign(**made))


def test_one_person_with_two_values_is_named(frame):
    wrong = frame.assign(income=frame["income"].where((frame["id"] != 7) | (frame["situation"] > 2), 9.0))
    with pytest.raises(ChoiceDataError, match=r"varies within 1 of 300 decision makers \(first: 7\)"):
        shifted().fit(wrong)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mean_shifters": ["income"]}, "must map columns to lists"),
        ({"mean_shifters": {"z": "income"}}, r"write \['income'\]"),
        ({"mean_shifters": {"q": ["income"]}}, "'q' is no column in fixed or random"),
        ({"mean_shifters": {"z": ["z"]}}, "covariate of its own coefficient"),
        ({"mean_shifters": {"asc.a2": ["income"]}}, "no column in fixed or random"),
        ({"mean_shifters": {"w": ["income"]}, "random": {"w": "lognormal"}}, r"\['w'\] have the other sign"),
        (
            {"mean_shifters": {"x": ["income"]}, "scale": "x"},
            "the scale of willingness-to-pay space, 'x', if it is random",
        ),
        ({"mean_shifters": {"z": ["income"]}, "fixed": ["x", "z:income"]}, "choose one"),
    ],
)
def test_bad_requests(frame, settings, sentence):
    with pytest.raises(SpecificationError, match=sentence):
        MixedLogit(**{"fixed": ["x"], "random": ["z", "w"], **settings}).fit(frame)


def test_bad_questions(est, frame):
    with pytest.raises(SpecificationError, match="effect of 'income' on the coefficient of 'z'"):
        est.elasticities(frame, "z:income")
    for given in ({"income": 1.0}, {"income": 1.0, "age": "old"}, {"income": 1.0, "age": np.nan}, [1.0, 2.0]):
        with pytest.raises(SpecificationError, match="covariates must"):
            est.taste_distribution(covariates=given)
    plain = MixedLogit(fixed=["x"], method="msle").fit(frame)
    with pytest.raises(SpecificationError, match="covariates must"):
        plain.wtp("x", "z", covariates={"income": 1.0}) if "z" in plain.coef_ else plain.taste_distribution(
            {"income": 1}
        )
    with pytest.raises(ChoiceDataError, match="income"):
        est.predict_proba(frame.drop(columns="income"))


def test_money_is_judged_by_the_people_asked_for(frame):
    """A cost that is negative for the people of the fit and positive for others."""
    est = MixedLogit(fixed=["x", "z"], mean_shifters={"x": ["income"]}, method="msle", random_state=0).fit(frame)
    rich = frame.assign(income=frame["income"] + 10.0)
    assert est.coef_["x"] + 9.0 * est.coef_["x:income"] > 0.0
    with pytest.raises(SpecificationError, match="positive"):
        est.surplus(rich, rich.assign(z=rich["z"] + 1.0), "x")
    mixed = frame.assign(income=frame["income"] * 10.0)
    with pytest.raises(SpecificationError, match="may be zero for some covariates"):
        est.surplus(mixed, mixed.assign(z=mixed["z"] + 1.0), "x")
    assert "may be zero" in est.wtp("z", "x", mixed).attrs["verdict"]
    with pytest.raises(ChoiceDataError, match="differ between the frames in 1500 choice situations"):
        est.surplus(frame, frame.assign(income=frame["income"] + 0.1), "x")
    with pytest.raises(SpecificationError, match="leave out people or covariates"):
        est.wtp("z", "x", "fit", covariates={"income": 0.0})
    unsure = est.wtp("z", "x", covariates={"income": -est.coef_["x"] / est.coef_["x:income"]})
    assert "its sign is not known" in unsure.attrs["verdict"]
    with pytest.raises(SpecificationError, match="no cost"):
        est.wtp("z", "x:income")


def test_predictions_of_a_person_with_other_covariates(est, frame):
    """Covariates may differ between situations to be predicted, not between alternatives."""
    later = frame[frame["id"] == 1].assign(age=lambda x: x["situation"] % 2)
    for age in (0, 1):
        mine = later[later["age"] == age]
        np.testing.assert_allclose(
            est.predict_proba(later).loc[mine.index], est.predict_proba(mine.assign(age=age)), rtol=1e-6
        )
    with pytest.raises(ChoiceDataError, match="vary between the alternatives"):
        est.predict_proba(frame.assign(income=frame["x"]))


@pytest.mark.parametrize(
    "effects", [{"x": ["inc"]}, {"asc.a2": {"inc": 0.5}}, {"x": {"y": 0.5}}, {"x": {"choice": 0.5}}]
)
def test_bad_effects_to_simulate(effects):
    with pytest.raises(SpecificationError, match="mean_shifters"):
        simulate_choices(10, 2, 3, fixed={"x": 1.0, "y": 0.5}, mean_shifters=effects)


def test_packs_are_refused(frame, tmp_path):
    packed = pack_choices(frame, tmp_path / "pack", names=["x", "z", "w", "income", "age"])
    with pytest.raises(ChoiceDataError, match="covariates of people are lost"):
        shifted().fit(packed)
