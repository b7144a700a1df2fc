"""Networks of covariates that shift means of tastes, and average effects of covariates."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mxlogit import MCMC, ChoiceDataError, ConvergenceWarning, MixedLogit, Network, SpecificationError
from mxlogit.choices.hidden_units import activate
from mxlogit.simulate import simulate_choices
from mxlogit.spec import HiddenUnits


def made(shape, people=500, seed=0):
    """Choices of people whose mean taste for z is a function of income and urban; income is far from zero."""
    frame, _ = simulate_choices(people, 8, 3, fixed={"x": 0.0, "z": 0.0}, random_state=seed)
    rng = np.random.default_rng(seed + 1)
    income, urban = rng.standard_normal(people), rng.integers(0, 2, people).astype(float)
    taste = shape(income) + 0.5 * urban + 0.5 * rng.standard_normal(people)
    place = frame["id"].to_numpy() - 1
    utility = taste[place] * frame["z"] - frame["x"] + rng.gumbel(size=len(frame))
    chosen = utility.groupby([frame["id"], frame["situation"]]).transform("max") == utility
    return frame.assign(income=30.0 + 2.0 * income[place], urban=urban[place], choice=chosen)


def wave(income):
    return -1.0 + 1.2 * np.sin(1.5 * income)


@pytest.fixture(scope="module")
def frame():
    return made(wave)


def asked(**settings):
    given = {"fixed": ["x"], "random": ["z"], "mean_shifters": {"z": Network(["income", "urban"])}, "random_state": 0}
    return MixedLogit(**{**given, **settings})


@pytest.fixture(scope="module")
def est(frame):
    return asked().fit(frame)


@pytest.fixture(scope="module")
def linear(frame):
    return asked(mean_shifters={"z": ["income", "urban"]}).fit(frame)


def means(est, places, urban=0.0):
    return np.array(
        [est.taste_distribution({"income": 30.0 + 2.0 * x, "urban": urban}).loc["z", "mean"] for x in places]
    )


def test_a_bent_effect_is_found(est, linear):
    places = np.linspace(-1.6, 1.6, 9)
    assert np.abs(means(est, places) - wave(places)).mean() < 0.2
    assert np.abs(means(linear, places) - wave(places)).mean() > 0.3
    assert est.log_likelihood_ > linear.log_likelihood_ + 50.0
    assert est.coef_["sd.z"] == pytest.approx(0.5, abs=0.12)
    assert not any("weakly" in sentence for sentence in est.result_.warnings)


def test_a_straight_effect_stays_straight():
    """Average effects of a network are those of the linear model where that is true."""
    frame = made(lambda income: -1.0 + 0.6 * income, people=300, seed=3)
    table = asked().fit(frame).covariate_effects()
    straight = asked(mean_shifters={"z": ["income", "urban"]}).fit(frame)
    error = straight.summary()["std_error"]
    for name in ("income", "urban"):
        apart = table.loc[("z", name), "estimate"] - straight.coef_[f"z:{name}"]
        assert abs(apart) < 1.0 * error[f"z:{name}"]
        assert table.loc[("z", name), "lower"] < straight.coef_[f"z:{name}"] < table.loc[("z", name), "upper"]


def test_linear_effects_are_coefficients(linear):
    table, summary = linear.covariate_effects(interval=0.9), linear.summary(0.9)
    assert list(table.index) == [("z", "income"), ("z", "urban")]
    for name in ("income", "urban"):
        assert table.loc[("z", name), "estimate"] == pytest.approx(summary.loc[f"z:{name}", "estimate"], abs=1e-6)
        assert table.loc[("z", name), "lower"] == pytest.approx(summary.loc[f"z:{name}", "lower"], rel=0.02)


def test_average_effects_are_differences_of_means(est, frame):
    """Over all people of the fit, by moving their covariates."""
    people = frame.groupby("id")[["income", "urban"]].first()
    some = people.sample(40, random_state=1)
    by_hand = {"income": [], "urban": []}
    for row in some.itertuples():
        mean = {
            step: est.taste_distribution({"income": row.income + step, "urban": row.urban}).loc["z", "mean"]
            for step in (0.01, -0.01)
        }
        by_hand["income"].append((mean[0.01] - mean[-0.01]) / 0.02)
    units = est._state().specification.networks[0]
    values = torch.from_numpy(some.to_numpy())
    bent = (
        activate(units, values + torch.tensor([0.01, 0.0])) - activate(units, values - torch.tensor([0.01, 0.0]))
    ) / 0.02
    effects = est.coef_[[f"z:{name}" for name in units.features]].to_numpy()
    wanted = est.coef_["z:income"] + (bent.numpy() @ effects).mean()
    assert np.mean(by_hand["income"]) == pytest.approx(wanted, abs=1e-3)
    everybody = torch.from_numpy(people.to_numpy())
    low, high = everybody.clone(), everybody.clone()
    low[:, 1], high[:, 1] = 0.0, 1.0
    jump = (activate(units, high) - activate(units, low)).mean(0).numpy() @ effects + est.coef_["z:urban"]
    assert est.covariate_effects().loc[("z", "urban"), "estimate"] == pytest.approx(jump, abs=1e-4)


def test_predictions_follow_covariates(est, frame):
    rows = frame[(frame["id"] == 1) & (frame["situation"] == 1)]
    for x in (-1.0, 1.0):
        here = rows.assign(income=30.0 + 2.0 * x, urban=1.0)
        samples = est.posterior_samples()
        units = est._state().specification.networks[0]
        bent = activate(units, torch.tensor([[30.0 + 2.0 * x, 1.0]], dtype=torch.float64))[0].numpy()
        mean = samples["z"] + samples["z:income"] * (30.0 + 2.0 * x) + samples["z:urban"]
        mean = mean + samples[[f"z:{name}" for name in units.features]].to_numpy() @ bent
        draws = np.random.default_rng(0).standard_normal((len(samples), 60))
        taste = mean.to_numpy()[:, None] + samples["sd.z"].to_numpy()[:, None] * draws
        utility = np.stack([taste * row.z + samples["x"].to_numpy()[:, None] * row.x for row in here.itertuples()])
        odds = np.exp(utility - utility.max(0))
        np.testing.assert_allclose(est.predict_proba(here), (odds / odds.sum(0)).mean((1, 2)), atol=4e-3)


def test_hidden_units_are_the_same_in_other_data(est, frame, tmp_path):
    some = frame[frame["id"] <= 10]
    np.testing.assert_allclose(est.predict_proba(some), est.predict_proba(frame)[some.index], rtol=1e-9)
    est.save(tmp_path / "model")
    other = MixedLogit.load(tmp_path / "model")
    assert (other.predict_proba(some) == est.predict_proba(some)).all()
    assert other.mean_shifters == est.mean_shifters
    pd.testing.assert_frame_equal(other.covariate_effects(), est.covariate_effects())


def test_hidden_units_far_from_zero():
    """Seconds since 1970 bend as seconds since noon do."""
    near = HiddenUnits("z", ("t",), (5, 3), 2**70, (0.0,), (3.0,))
    far = replace(near, centre=(1.7e9 + 50.0,))
    values = torch.linspace(-6.0, 6.0, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(activate(far, values + 1.7e9 + 50.0), activate(near, values), rtol=0.0, atol=1e-6)
    assert float(activate(near, values).std(0).amin()) > 0.01


@pytest.mark.slow
def test_networks_of_lognormal_tastes(frame):
    """Hidden units shift latent normals like other covariates, beside a network of another shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = asked(
            fixed=[],
            random={"x": "negative_lognormal", "z": "normal"},
            mean_shifters={"x": Network(["income"], hidden=(4, 3), seed=2), "z": Network(["income"], hidden=[5])},
        ).fit(frame[frame["id"] <= 200])
    assert est.coef_.index.str.startswith("x:hidden").sum() == 3
    assert est.coef_.index.str.startswith("z:hidden").sum() == 5
    table = est.covariate_effects()
    assert list(table.index) == [("x", "income"), ("z", "income")]
    assert table.loc[("x", "income"), "lower"] < 0.0 < table.loc[("x", "income"), "upper"]


@pytest.mark.slow
def test_chains_agree(frame, est):
    chains = asked(method=MCMC(samples=1000)).fit(frame)
    places = np.linspace(-1.5, 1.5, 7)
    assert np.abs(means(est, places) - means(chains, places)).max() < 0.1
    one, other = est.covariate_effects(), chains.covariate_effects()
    assert np.abs(one - other).to_numpy().max() < 0.03


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mean_shifters": {"z": Network("income")}}, r"write \['income'\]"),
        ({"mean_shifters": {"z": Network([])}}, "names no covariate"),
        ({"mean_shifters": {"z": Network(["income"], hidden=16)}}, "must list numbers of units"),
        ({"mean_shifters": {"z": Network(["income"], hidden=(0,))}}, "hidden"),
        ({"mean_shifters": {"z": Network(["income"], seed=-1)}}, "seed"),
        ({"mean_shifters": {"z": Network(["z"])}}, "covariate of its own coefficient"),
        ({"method": "msle"}, "hidden units of a Network have priors"),
    ],
)
def test_bad_requests(frame, settings, sentence):
    with pytest.raises(SpecificationError, match=sentence):
        asked(**settings).fit(frame)


def test_bad_data(est, frame):
    with pytest.raises(ChoiceDataError, match="are the same for all decision makers"):
        asked().fit(frame.assign(urban=1.0))
    wrong = frame.assign(income=frame["income"].where(frame["situation"] > 1, 9.0))
    with pytest.raises(ChoiceDataError, match="'income' varies within 500 of 500"):
        asked().fit(wrong)
    with pytest.raises(SpecificationError, match=r"covariates must give .* \['income', 'urban'\]"):
        est.taste_distribution({"income": 30.0})
    plain = MixedLogit(fixed=["x", "z"], random_state=0).fit(frame[frame["id"] <= 20])
    with pytest.raises(SpecificationError, match="fit it with mean_shifters"):
        plain.covariate_effects()
