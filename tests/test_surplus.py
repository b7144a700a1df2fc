"""Consumer surplus against the closed form of the logit, quadrature over tastes, and its laws."""

import numpy as np
import pandas as pd
import pytest
import torch

from mxlogit import VI, ChoiceDataError, MixedLogit, SpecificationError
from mxlogit.model.parameters import PopulationParameters
from mxlogit.simulate import simulate_choices

# Share of tastes so extreme that the change is below rounding.
NO_CHANGE = 1e-3
# Sixty people say little of spreads.
pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.errors.ConvergenceWarning")


@pytest.fixture(scope="module")
def frame():
    random = {"cost": (-0.5, 0.5, "negative_lognormal"), "z": (0.5, 0.8)}
    return simulate_choices(60, 4, 3, fixed={"x": -0.6}, random=random, random_state=2)[0]


@pytest.fixture(scope="module")
def logit(frame):
    return MixedLogit(fixed=["cost", "x", "z"], method="msle", random_state=1).fit(frame)


@pytest.fixture(scope="module")
def est(frame):
    random = {"cost": "negative_lognormal", "z": "normal"}
    return MixedLogit(fixed=["x"], random=random, correlated=False, random_state=1, method=VI(n_samples=300)).fit(frame)


def log_sums(frame, names, coefficients):
    """Log-sums (situations, draws) of coefficients (draws, k), by hand."""
    utility = np.exp(frame[names].to_numpy() @ coefficients.T)
    return np.log(
        pd.DataFrame(utility).groupby([frame["id"].to_numpy(), frame["situation"].to_numpy()]).sum().to_numpy()
    )


def test_the_closed_form_of_the_logit(frame, logit):
    changed = frame.assign(cost=frame["cost"] - 0.3 * (frame["alternative"] == frame["alternative"].min()))
    names, b = ["cost", "x", "z"], logit.coef_.to_numpy()[None]
    exact = (log_sums(changed, names, b) - log_sums(frame, names, b))[:, 0] / -b[0, 0]
    found = logit.surplus(frame, changed, "cost", each=True)
    np.testing.assert_allclose(found["estimate"], exact, rtol=1e-9)
    whole = logit.surplus(frame, changed, "cost", quantiles=[0.5])
    assert whole.loc["mean", "estimate"] == pytest.approx(exact.mean(), rel=1e-9)
    assert whole.loc["50 %", "estimate"] == pytest.approx(np.quantile(exact, 0.5, method="inverted_cdf"), rel=1e-9)
    assert whole.loc["share of winners", "estimate"] == 1.0


def test_quadrature_with_a_lognormal_cost(frame, est):
    """At one value of the population: nodes over both tastes."""
    fitted = est._state()
    changed = frame.assign(x=frame["x"] - 0.5 * (frame["alternative"] == frame["alternative"].min()))
    names, center = ["x", "cost", "z"], est.result_.center
    nodes = np.linspace(-6.0, 6.0, 121)
    weights = np.exp(-0.5 * nodes**2)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    first, second = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
    location, scale = center.location.numpy(), center.scale.numpy()
    cost, z = -np.exp(location[0] + scale[0] * first), location[1] + scale[1] * second
    coefficients = np.stack([np.full_like(cost, float(center.fixed[0])), cost, z], 1)
    exact = ((log_sums(changed, names, coefficients) - log_sums(frame, names, coefficients)) / -cost) @ weights
    from mxlogit.results.coefficient_sources import PopulationSource
    from mxlogit.results.population_nodes import taste_nodes
    from mxlogit.results.prediction import Coefficients
    from mxlogit.results.substitution import Attribute
    from mxlogit.results.surplus import Change, _means, situation_table

    stacked = PopulationParameters(center.fixed[None], center.location[None], center.scale_tril[None])
    parameters = taste_nodes(fitted.model, stacked, 4_096, 3).parameters
    source = PopulationSource(fitted.model.mixing.coefficients(parameters[..., :1], parameters[..., 1:]), "posterior")
    used = Coefficients(source, source)
    rows, after = est._rows(frame), est._rows(changed)
    change = Change.of(rows, after, fitted.columns(rows.data), Attribute(1))
    found = situation_table(change, rows, used, 0.9, ("id", "situation"))
    np.testing.assert_allclose(found["estimate"], exact, rtol=0.01)
    assert float(_means(change, source, torch.ones(len(exact)).double())) == pytest.approx(exact.mean(), rel=0.01)


def test_a_lower_cost_of_everything_is_worth_itself(frame, est):
    found = est.surplus(frame, frame.assign(cost=frame["cost"] - 0.25), "cost")
    statistics = found.drop(index=["share of winners", "share of losers"])
    np.testing.assert_allclose(statistics, 0.25, rtol=1e-9)


def test_an_alternative_that_goes_is_a_loss_and_one_that_comes_a_gain(frame, est):
    fewer = frame[frame["alternative"] != frame["alternative"].max()]
    loss, gain = est.surplus(frame, fewer, "cost", each=True), est.surplus(fewer, frame, "cost", each=True)
    assert (loss["upper"] < 0.0).all()
    np.testing.assert_allclose(loss["estimate"], -gain["estimate"], rtol=1e-9)
    assert est.surplus(frame, fewer, "cost").loc["share of losers", "estimate"] > 1.0 - NO_CHANGE


def test_part_of_a_frame_is_the_whole_and_order_has_no_effect(frame, est):
    changed = frame.assign(x=frame["x"] - 0.5 * (frame["alternative"] == frame["alternative"].min()))
    whole = est.surplus(frame, changed, "cost", each=True)
    shuffled = changed.sample(frac=1.0, random_state=1)
    pd.testing.assert_frame_equal(est.surplus(frame, shuffled, "cost", each=True), whole, rtol=1e-9)
    part = frame[frame["id"] <= 7]
    pd.testing.assert_frame_equal(
        est.surplus(part, changed[changed["id"] <= 7], "cost", each=True), whole.loc[:7], rtol=1e-9
    )


def test_winners_and_losers_add_up(frame, est):
    """A dearer first alternative with less of what people dislike."""
    first = frame["alternative"] == frame["alternative"].min()
    found = est.surplus(frame, frame.assign(cost=frame["cost"] + 0.5 * first, x=frame["x"] - 1.0 * first), "cost")
    assert found.loc["share of winners", "estimate"] + found.loc["share of losers", "estimate"] > 1.0 - NO_CHANGE
    assert 0.02 < found.loc["share of losers", "estimate"] < 0.98


def test_willingness_to_pay_space_knows_its_cost(frame):
    random = {"x": "normal", "cost": "negative_lognormal"}
    est = MixedLogit(random=random, correlated=False, scale="cost", method="msle", random_state=1).fit(frame)
    found = est.surplus(frame, frame.assign(cost=frame["cost"] - 0.25))
    assert found.loc["mean", "estimate"] == pytest.approx(0.25, rel=1e-9)


def test_what_has_no_mean_is_refused(frame):
    est = MixedLogit(fixed=["x"], random=["cost"], random_state=1).fit(frame)
    with pytest.raises(SpecificationError, match="no mean"):
        est.surplus(frame, frame, "cost")


def test_a_cost_that_people_like_is_refused(frame, logit):
    est = MixedLogit(fixed=["saved", "x"], method="msle", random_state=1).fit(frame.assign(saved=-frame["cost"]))
    some = frame.assign(saved=-frame["cost"])
    with pytest.raises(SpecificationError, match="is positive"):
        est.surplus(some, some, "saved")


def test_a_new_alternative_without_a_constant_is_refused(frame):
    """Its surplus would be that of the base's constant, whichever alternative that is."""
    est = MixedLogit(fixed=["cost", "x"], constants=True, method="msle", random_state=1).fit(frame)
    new = frame[frame["alternative"] == "a1"].assign(alternative="a4")
    with pytest.raises(ChoiceDataError, match=r"'a4'.* were not in the data of the fit"):
        est.surplus(frame, pd.concat([frame, new]), "cost")
    free = MixedLogit(fixed=["cost", "x"], method="msle", random_state=1).fit(frame)
    gain = free.surplus(frame, pd.concat([frame, new]), "cost")
    assert gain.loc["share of winners", "estimate"] == 1.0


MISTAKES = {
    "no cost": (lambda e, f: e.surplus(f, f), SpecificationError, "needs the column of the cost"),
    "unknown cost": (lambda e, f: e.surplus(f, f, "costs"), SpecificationError, "Did you mean 'cost'"),
    "other situations": (lambda e, f: e.surplus(f, f[f["id"] > 3], "cost"), ChoiceDataError, "12 choice situations"),
    "quantiles": (lambda e, f: e.surplus(f, f, "cost", quantiles=0.5), SpecificationError, "list of probabilities"),
    "interval": (lambda e, f: e.surplus(f, f, "cost", interval=2), SpecificationError, "interval must be"),
    "no scenario column": (lambda e, f: e.surplus(f, f.drop(columns="x"), "cost"), ChoiceDataError, "no column 'x'"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes_are_told_in_a_sentence(frame, logit, mistake):
    call, error, words = MISTAKES[mistake]
    with pytest.raises(error, match=words):
        call(logit, frame)
