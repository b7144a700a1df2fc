"""Tastes that vary between the choice situations of a person."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize, stats

from mxlogit import (
    MCMC,
    MSLE,
    SVI,
    ChoiceDataError,
    ConvergenceWarning,
    MixedLogit,
    Mixture,
    SpecificationError,
    likelihood_ratio_test,
)
from mxlogit.choices import pack_choices
from mxlogit.execution.people import People
from mxlogit.execution.processes import Communicator
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.simulated_block import evaluate_block
from mxlogit.model.likelihood import compute_odds, panel_derivatives
from mxlogit.model.panels import RaggedPanels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.situation_deviations import SituationDeviations
from mxlogit.results.individual_coefficients import weigh_coefficients
from mxlogit.sampling.chains import ChainLikelihood
from mxlogit.simulate import simulate_choices

LABEL = "sd.within.z"


def with_choices(frame, deviation, seed=0, spread=0.7):
    """Choices of people whose normal taste for z varies between people and between their situations."""
    rng = np.random.default_rng(seed)
    person = frame["id"].to_numpy()
    situation = frame.groupby(["id", "situation"]).ngroup().to_numpy()
    taste = 1.0 + spread * rng.standard_normal(person.max() + 1)[person]
    taste = taste + deviation * rng.standard_normal(situation.max() + 1)[situation]
    utility = taste * frame["z"] - frame["x"] + rng.gumbel(size=len(frame))
    return frame.assign(choice=utility.groupby(situation).transform("max") == utility)


@pytest.fixture(scope="module")
def frame():
    found, _ = simulate_choices(300, 8, 3, fixed={"x": 0.0, "z": 0.0}, random_state=2)
    return with_choices(found, 1.2)


@pytest.fixture(scope="module")
def ragged():
    """Panels and choice sets of different sizes."""
    found, _ = simulate_choices(40, (1, 9), 5, fixed={"x": 0.0, "z": 0.0}, unavailable=0.4, random_state=3)
    return with_choices(found, 1.0)


def asked(**settings):
    given = {"fixed": ["x"], "random": ["z"], "within": {"z": "normal"}, "random_state": 0, **settings}
    return MixedLogit(**given)


@pytest.fixture(scope="module")
def est(frame):
    return asked(method=MSLE(n_draws=128)).fit(frame)


def prepared(est, frame):
    fitted, people, n_situations = est._prepare(frame, Communicator(), y=None, weights=None)
    return fitted.model, people, n_situations


def by_rows(frame, fixed, location, sd, z, nodes, weights, deviation):
    """Log probabilities (people, draws) of the choices, situation by situation, by numbers."""
    result = []
    for _, panel in frame.groupby("id", sort=True):
        total = np.zeros(z.shape[-1])
        for _, rows in panel.groupby("situation", sort=True):
            chosen = rows["choice"].to_numpy(bool)
            taste = (location + sd * z)[:, None] + deviation * nodes
            utility = rows["z"].to_numpy()[:, None, None] * taste + fixed * rows["x"].to_numpy()[:, None, None]
            odds = np.exp(utility - utility[chosen][0])
            total += np.log((1.0 / odds.sum(0)) @ weights)
        result.append(total)
    return np.stack(result)


@pytest.mark.parametrize("data", ["frame", "ragged"])
def test_probabilities_are_averages_over_nodes(data, request):
    frame = request.getfixturevalue(data)
    frame = frame[frame["id"] <= 25]
    model, people, _ = prepared(asked(dtype="float64", method="msle"), frame)
    panel = people.panels
    assert isinstance(panel, RaggedPanels) == (data == "ragged")
    grid, log_weights = model.mixing.varying.nodes()
    z = np.array([-1.0, 0.3, 2.0])
    names = list(model.space.fixed)
    fixed = torch.zeros(len(names), dtype=torch.float64)
    fixed[names.index("x")], fixed[names.index(LABEL)] = -0.8, 0.9
    population = PopulationParameters(fixed, torch.tensor([0.4]).double(), torch.tensor([[0.7]]).double())
    wanted = by_rows(frame, -0.8, 0.4, 0.7, z, grid[:, 0].numpy(), log_weights.exp().numpy(), 0.9)
    order = panel.appearance.argsort() if panel.appearance is not None else torch.arange(len(panel))
    for place, piece in panel.pieces(200, 10):
        tastes = torch.from_numpy(z).expand(len(piece), 1, -1)
        block = ChainLikelihood(model, piece).log_prob(
            population.map(lambda x: x[None]), tastes[..., :1].permute(2, 1, 0)
        )
        labels = np.arange(len(panel))[place if isinstance(place, slice) else place.numpy()]
        people_of = np.sort(frame["id"].unique())
        assert len(people_of) == len(order)
        np.testing.assert_allclose(block[0], wanted[labels, 0], rtol=1e-6)
    assert float(panel.n_situations.sum()) == frame.groupby(["id", "situation"]).ngroups


def vector_population(model, vector):
    start = model.space.n_means
    return PopulationParameters(*model.space.insert_held(vector[:start]), model.space.triangle_matrix(vector[start:]))


@pytest.mark.parametrize("data", ["frame", "ragged"])
@pytest.mark.parametrize("within", [{"z": "normal"}, {"z": "normal", "x": "normal"}])
def test_blocks_are_those_of_automatic_differentiation(data, within, request):
    frame = request.getfixturevalue(data)
    model, people, _ = prepared(asked(dtype="float64", method="msle", within=within), frame[frame["id"] <= 8])
    panel = people.panels.dense()
    z = torch.randn(len(panel), 1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vector = torch.linspace(-0.6, 0.9, model.space.size, dtype=torch.float64)
    f, count = model.space.n_fixed, panel.n_nodes
    log_weights = model.mixing.varying.nodes()[1]

    def simulated(at):
        tastes = at[f] + at[f + 1] * z
        utility = panel.values @ torch.cat([at[:f, None].expand(len(panel), -1, 6), tastes], 1)
        if panel.unavailable is not None:
            utility = utility.masked_fill(panel.unavailable[..., None], -math.inf)
        parts = [part.exp().sum(2) for part in panel.by_section(utility)]
        of_nodes = torch.cat([-torch.log1p(part) for part in parts], 1).unflatten(1, (-1, count))
        return (of_nodes + log_weights[:, None]).logsumexp(2).sum(1).logsumexp(-1)

    block = evaluate_block(model, vector_population(model, vector), panel, z, curvature=True)
    torch.testing.assert_close(block.log_sum, simulated(vector), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(block.score, torch.autograd.functional.jacobian(simulated, vector), rtol=1e-9, atol=1e-9)
    hessian = torch.autograd.functional.hessian(lambda at: simulated(at).sum(), vector)
    found = block.second.sum(0) - block.score.T @ block.score
    torch.testing.assert_close(found, hessian, rtol=1e-8, atol=1e-8)


def test_gradients_of_the_kernel(frame):
    """Probabilities weighted by the shares of nodes give gradients; weighted sums over draws are the same."""
    model, people, _ = prepared(asked(dtype="float64", method="msle"), frame[frame["id"] <= 5])
    panel = people.panels
    beta = torch.tensor([-0.8, 0.9, 0.5], dtype=torch.float64, requires_grad=True)
    value = compute_odds((panel.values @ beta)[..., None], panel).log_prob.sum()
    (gradient,) = torch.autograd.grad(value, beta)
    at = panel_derivatives(panel.values @ beta.detach(), panel)
    torch.testing.assert_close(at.gradient.sum(0), gradient, rtol=1e-10, atol=1e-10)
    odds = compute_odds((panel.values @ beta.detach())[..., None].repeat(1, 1, 2), panel)
    weights = torch.ones(len(panel), 2, 1, dtype=torch.float64)
    summed = odds.weigh_probabilities(weights)
    torch.testing.assert_close(summed[..., 0], odds.probabilities().sum(-1), rtol=1e-10, atol=1e-12)
    assert float(torch.linalg.eigvalsh(at.information).amin()) > -1e-9
    assert model.mixing.varying == SituationDeviations((1,), (2,))


def test_a_deviation_of_zero_is_the_plain_model(frame):
    some = frame[frame["id"] <= 30]
    values = []
    for within in ({"z": "normal"}, None):
        model, people, _ = prepared(asked(dtype="float64", within=within), some)
        fixed = torch.zeros(model.space.n_fixed, dtype=torch.float64)
        fixed[0] = -0.8
        population = PopulationParameters(fixed, torch.tensor([0.4]).double(), torch.tensor([[0.7]]).double())
        marginal = MarginalLikelihood(People.gather(people.panels), model.space, model.mixing, 1)
        values.append(marginal.value_pass(population, IntegrationSettings(64, 8, 1, 30)).log_likelihood)
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def test_signs_do_not_matter(frame):
    model, people, _ = prepared(asked(dtype="float64"), frame[frame["id"] <= 30])
    values = []
    for sign in (1.0, -1.0):
        fixed = torch.tensor([-0.8, sign * 0.9], dtype=torch.float64)
        population = PopulationParameters(fixed, torch.tensor([0.4]).double(), torch.tensor([[0.7]]).double())
        marginal = MarginalLikelihood(People.gather(people.panels), model.space, model.mixing, 1)
        values.append(marginal.value_pass(population, IntegrationSettings(64, 8, 1, 30)).log_likelihood)
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_nodes_are_accurate():
    """Log probabilities of .002 and more err by less than a hundredth with deviations of up to four utils."""
    points, weights = np.polynomial.hermite_e.hermegauss(151)
    means = np.linspace(-6.0, 6.0, 101)[:, None]
    grid, log_weights = SituationDeviations((0,), (1,)).nodes()
    assert torch.equal(grid, -grid.flip(0))
    for size in (0.5, 1.0, 2.0, 3.0, 4.0):
        wanted = np.log((1.0 / (1.0 + np.exp(-means - size * points))) @ (weights / weights.sum()))
        found = np.log((1.0 / (1.0 + np.exp(-means - size * grid[:, 0].numpy()))) @ log_weights.exp().numpy())
        assert np.abs(found - wanted).max() < (2e-4 if size < 4.0 else 2e-3)


def independent(frame, vector):
    """Log likelihood of people whose taste for z varies between situations only, by 60 Gauss-Hermite nodes."""
    x, deviation, z = vector
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    rows = frame.sort_values(["id", "situation", "alternative"])
    values = {name: rows[name].to_numpy().reshape(-1, 3) for name in ("x", "z")}
    chosen = rows["choice"].to_numpy(bool).reshape(-1, 3)
    utility = values["z"][..., None] * (z + deviation * points) + x * values["x"][..., None]
    odds = np.exp(utility - utility[chosen][:, None])
    return float(np.log((1.0 / odds.sum(1)) @ (weights / weights.sum())).sum())


def test_maximum_is_that_of_an_independent_likelihood(frame):
    """Fixed coefficients that vary between situations only: people are as many as situations."""
    est = MixedLogit(fixed=["x", "z"], within={"z": "normal"}, method="msle", random_state=0).fit(frame)
    wanted = optimize.minimize(lambda at: -independent(frame, at), [-1.0, 1.0, 1.0], method="BFGS")
    error = est.summary()["std_error"]
    assert ((est.coef_[["x", LABEL, "z"]] - wanted.x) / error).abs().max() < 0.03
    assert est.log_likelihood_ == pytest.approx(-wanted.fun, abs=0.01)
    steps = 0.02 * np.eye(3)
    curvature = [
        [
            sum(a * b * independent(frame, wanted.x + a * one + b * other) for a in (1, -1) for b in (1, -1)) / 1.6e-3
            for one in steps
        ]
        for other in steps
    ]
    np.testing.assert_allclose(
        error[["x", LABEL, "z"]], np.sqrt(np.diag(np.linalg.inv(-np.array(curvature)))), rtol=0.1
    )
    posterior = MixedLogit(fixed=["x", "z"], within={"z": "normal"}, random_state=0).fit(frame)
    assert ((posterior.coef_ - est.coef_) / error).abs().max() < 0.3


def test_estimates_are_near_the_truth(est):
    row = est.summary().loc[LABEL]
    assert abs(row["estimate"] - 1.2) < 3.0 * row["std_error"]
    row = est.summary().loc["sd.z"]
    assert abs(row["estimate"] - 0.7) < 3.0 * row["std_error"]


@pytest.mark.slow
def test_variational_inference_agrees_with_maximum_likelihood(frame, est):
    fit = asked().fit(frame)
    assert fit.diagnostics_["trusted"]
    assert ((fit.coef_ - est.coef_) / est.summary()["std_error"]).abs().max() < 0.4
    assert np.abs(np.log(fit.summary()["std_error"] / est.summary()["std_error"])).max() < 0.25
    assert fit.log_likelihood_ == pytest.approx(est.log_likelihood_, abs=1.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mxlogit.errors.ConvergenceWarning")
@pytest.mark.parametrize("sampler", ["gibbs", "nuts"])
def test_variational_inference_agrees_with_chains(frame, sampler):
    some = frame if sampler == "gibbs" else frame[frame["id"] <= 80]
    fit = asked().fit(some)
    length = {"gibbs": {}, "nuts": {"samples": 400, "warmup": 200, "chains": 2}}[sampler]
    chains = asked(method=MCMC(sampler=sampler, **length)).fit(some)
    summary = chains.summary()
    noise = 3.0 / summary["ess"] ** 0.5
    assert (((fit.coef_ - chains.coef_) / summary["std_error"]).abs() < 0.15 + noise).all()
    assert np.abs(np.log(fit.summary()["std_error"] / summary["std_error"])).max() < (
        0.15 if sampler == "gibbs" else 0.3
    )
    people = [each.individual_coefficients().xs("mean", axis=1, level=1) for each in (fit, chains)]
    assert float((people[0] - people[1]).abs().mean(axis=None)) < 0.1


def drawn(est, count=400_000, deviation=True):
    """Coefficients (x, z) of single situations of new people at the estimates."""
    z = np.random.default_rng(0).standard_normal((2, count))
    c = est.coef_
    return c["x"], c["z"] + c["sd.z"] * z[0] + (c[LABEL] * z[1] if deviation else 0.0)


def test_predictions_are_of_single_situations(est, frame):
    rows = frame[(frame["id"] == 3) & (frame["situation"] == 2)]
    x, z = drawn(est)
    odds = np.exp(np.stack([x * row.x + z * row.z for row in rows.itertuples()]))
    wanted = (odds / odds.sum(0)).mean(1)
    np.testing.assert_allclose(est.predict_proba(rows), wanted, atol=2e-3)
    table = est.predict_proba(rows, interval=0.9)
    assert ((table["lower"] < wanted) & (wanted < table["upper"])).all()


def test_individual_predictions_average_over_situations(est, frame):
    """Weighted draws of people's tastes, each with what varies between situations."""
    state = est._state()
    people = state.decision_makers[:4]
    rows = frame[frame["id"].isin(people)]
    group = state.fitted_people(people)
    found = est.predict_proba(rows, tastes="individual")
    grid, log_weights = state.model.mixing.varying.nodes()
    total = {person: [] for person in people}
    for part in weigh_coefficients(state.model, est.result_, group):
        indices = np.arange(len(people))[part.part if isinstance(part.part, slice) else part.part.numpy()]
        for i, weights, coefficients in zip(indices, part.weights, part.coefficients, strict=True):
            total[people[i]].append((weights.numpy(), coefficients.numpy()))
    for person in people:
        mine = rows[(rows["id"] == person) & (rows["situation"] == 1)]
        wanted = np.zeros(len(mine))
        for weights, coefficients in total[person]:
            taste = coefficients[:, 2, None] + coefficients[:, 1, None] * grid[:, 0].numpy()
            utility = (
                mine["z"].to_numpy()[:, None, None] * taste
                + mine["x"].to_numpy()[:, None, None] * coefficients[:, 0, None]
            )
            odds = np.exp(utility)
            wanted += ((odds / odds.sum(0)) @ log_weights.exp().numpy()) @ weights
        np.testing.assert_allclose(found[mine.index], wanted, atol=1e-5)


def test_tables_are_of_people(est):
    """Tastes, willingness to pay and individual tastes are of people: what varies between situations has its own row."""
    table = est.taste_distribution()
    assert list(table.index) == ["z"]
    assert table.loc["z", "sd"] == pytest.approx(est.coef_["sd.z"], rel=1e-6)
    x, z = drawn(est, deviation=False)
    worth = est.wtp("z", "x")
    assert worth.loc["25 %", "estimate"] == pytest.approx(np.quantile(-z / x, 0.25), abs=0.05)
    assert list(est.individual_coefficients().columns.get_level_values(0).unique()) == ["z"]


def test_marginal_effects_are_differences(est, frame):
    some = frame[frame["id"] <= 8]
    table = est.marginal_effects(some, "z")
    up, down = (est.predict_proba(some.assign(z=some["z"] + h * (some["alternative"] == "a1"))) for h in (0.01, -0.01))
    slope = ((up - down) / 0.02).groupby(some["alternative"]).mean()
    assert table.loc[("a1", "a1"), "estimate"] == pytest.approx(slope["a1"], rel=0.02)
    moved = est.surplus(some, some.assign(x=some["x"] - 1.0), "x")
    assert moved.loc["mean", "estimate"] == pytest.approx(1.0, abs=1e-9)


def test_surplus_of_people_weighs_what_varies(est, frame):
    """Quantiles over people and situations, given their choices, by hand."""
    some = frame[frame["id"] <= 40]
    after = some.assign(z=some["z"] - 0.8 * (some["alternative"] == "a1"))
    table = est.surplus(some, after, "x", tastes="individual")
    samples = est.sample_tastes(some, 400)
    grid, log_weights = est._state().model.mixing.varying.nodes()
    values, weights = [], []
    for (person, _), rows in some.groupby(["id", "situation"]):
        own = samples.xs(person, level="decision_maker")
        taste = own["z"].to_numpy()[:, None] + est.coef_[LABEL] * grid[:, 0].numpy()
        both = [
            np.log(np.exp(taste * z[:, None, None] + est.coef_["x"] * rows["x"].to_numpy()[:, None, None]).sum(0))
            for z in (rows["z"].to_numpy(), after.loc[rows.index, "z"].to_numpy())
        ]
        gain = (both[1] - both[0]) / -est.coef_["x"]
        values.append(gain.ravel())
        weights.append(np.broadcast_to(log_weights.exp().numpy(), gain.shape).ravel())
    values, weights = np.concatenate(values), np.concatenate(weights)
    order = values.argsort()
    below = weights[order].cumsum() / weights.sum()
    for share, label in ((0.05, "5 %"), (0.25, "25 %"), (0.75, "75 %"), (0.95, "95 %")):
        wanted = values[order][np.searchsorted(below, share)]
        assert table.loc[label, "estimate"] == pytest.approx(wanted, abs=0.06)
    assert table.loc["share of winners", "estimate"] == pytest.approx(
        (weights @ (values > 0)) / weights.sum(), abs=0.03
    )
    assert table.loc["mean", "estimate"] == pytest.approx((weights @ values) / weights.sum(), abs=0.02)


def test_money_that_varies_within_people_has_no_surplus(frame):
    est = asked(within={"x": "normal"}, method=MSLE(n_draws=32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est.fit(frame)
    with pytest.raises(SpecificationError, match="no mean over choice situations"):
        est.surplus(frame, frame, "x")


def test_likelihood_ratio_of_variation_within_people(est, frame):
    plain = asked(within=None, method=MSLE(n_draws=128)).fit(frame)
    test = likelihood_ratio_test(plain, est)
    assert test.degrees_of_freedom == 1
    assert test.p_value < 1e-3
    assert "boundary" in test.sentence


@pytest.mark.slow
def test_likelihood_ratio_of_one_and_two_columns(est, frame):
    both = asked(within={"z": "normal", "x": "normal"}, method=MSLE(n_draws=128))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        more = likelihood_ratio_test(est, both.fit(frame))
    assert more.degrees_of_freedom == 1
    assert more.p_value > 1e-4


def test_scores_and_criteria_count_situations_once(est, frame):
    assert est.n_situations_ == frame.groupby(["id", "situation"]).ngroups
    assert est.score(frame) * est.n_situations_ == pytest.approx(est.log_likelihood_, abs=1.0)
    found = est.diagnostics_
    assert found["null_log_likelihood"] == pytest.approx(-est.n_situations_ * math.log(3.0))
    assert found["bic"] - found["aic"] == pytest.approx(len(est.coef_) * (math.log(est.n_situations_) - 2.0))


def test_panels_of_different_sizes(ragged):
    """The likelihood of ragged panels is that of one person at a time."""
    model, people, _ = prepared(asked(dtype="float64", method="msle"), ragged)
    assert isinstance(people.panels, RaggedPanels)
    alone = [people.panels.take(torch.tensor([i])) for i in range(len(people.panels))]
    population = PopulationParameters(
        torch.tensor([-0.8, 0.9]).double(), torch.tensor([0.4]).double(), torch.tensor([[0.7]]).double()
    )
    xi = torch.full((1, 1, len(alone)), 0.3, dtype=torch.float64)
    stacked = population.map(lambda x: x[None])
    together = ChainLikelihood(model, people.panels).log_prob(stacked, xi)[0]
    one_by_one = [float(ChainLikelihood(model, panel).log_prob(stacked, xi[..., :1])) for panel in alone]
    torch.testing.assert_close(together, torch.tensor(one_by_one, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    counted = people.panels.available_rows()
    assert int(counted.n_situations.sum()) == ragged.groupby(["id", "situation"]).ngroups
    assert len(counted.values) == len(ragged) - ragged.groupby(["id", "situation"]).ngroups
    dense = people.panels.dense().available_rows()
    torch.testing.assert_close(dense.n_rows, counted.n_rows)


def test_what_does_not_vary_is_said():
    found, _ = simulate_choices(150, 5, 3, fixed={"x": 0.0, "z": 0.0}, random_state=4)
    with pytest.warns(
        ConvergenceWarning, match=r"'z' between the situations of a person is indistinguishable from zero"
    ):
        est = asked(method=MSLE(n_draws=64)).fit(with_choices(found, 0.0, seed=1))
    assert est.coef_[LABEL] >= 0.0
    # Robust errors of a standard deviation vanish with it.
    assert np.isnan(est.summary().loc[LABEL, "std_error"])
    assert est.summary().drop(index=LABEL)["std_error"].notna().all()


@pytest.mark.slow
def test_samples_of_what_does_not_vary_are_positive():
    found, _ = simulate_choices(150, 5, 3, fixed={"x": 0.0, "z": 0.0}, random_state=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior = asked().fit(with_choices(found, 0.0, seed=1))
    assert (posterior.posterior_samples()[LABEL] >= 0.0).all()
    assert posterior.summary().loc[LABEL, "lower"] >= 0.0
    assert posterior.score(with_choices(found, 0.0, seed=1)) * posterior.n_situations_ == pytest.approx(
        posterior.log_likelihood_, abs=0.05
    )


def test_covariates_and_deviations_together(frame):
    """A lognormal taste with an effect of a covariate beside a taste that varies between situations."""
    income = stats.norm.ppf(stats.qmc.Sobol(1, seed=1).random(512)[:, 0])[frame["id"]]
    cost = np.exp(-0.3 * income + 0.6 * np.random.default_rng(1).standard_normal(301)[frame["id"]])
    rng = np.random.default_rng(7)
    situation = frame.groupby(["id", "situation"]).ngroup()
    taste = 1.0 + 1.2 * rng.standard_normal(situation.max() + 1)[situation]
    utility = taste * frame["z"] - cost * frame["x"] + rng.gumbel(size=len(frame))
    made = frame.assign(income=income, choice=utility.groupby(situation).transform("max") == utility)
    est = MixedLogit(
        fixed=["z"],
        random={"x": "negative_lognormal"},
        within={"z": "normal"},
        mean_shifters={"x": ["income"]},
        method=MSLE(n_draws=64),
        random_state=0,
    ).fit(made)
    summary = est.summary()
    assert abs(summary.loc["x:income", "estimate"] + 0.3) < 3.0 * summary.loc["x:income", "std_error"]
    assert abs(summary.loc[LABEL, "estimate"] - 1.2) < 3.0 * summary.loc[LABEL, "std_error"]
    some = made[made["id"] <= 3]
    probability = est.predict_proba(some)
    assert probability.groupby([some["id"], some["situation"]]).sum().to_numpy() == pytest.approx(1.0)


def test_saved_models_give_the_same_answers(est, frame, tmp_path):
    est.save(tmp_path / "model")
    other = MixedLogit.load(tmp_path / "model")
    some = frame[frame["id"] <= 5]
    assert (other.predict_proba(some) == est.predict_proba(some)).all()
    assert other.score(some) == est.score(some)
    pd.testing.assert_series_equal(other.coef_, est.coef_)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"within": ["z"]}, "must map columns to 'normal'"),
        ({"within": {"zz": "normal"}}, r"\['zz'\] are no columns .* Did you mean 'z'"),
        ({"within": {"z": "lognormal"}}, "normal deviations between situations"),
        ({"random": {"z": "lognormal"}}, "normal deviations between situations"),
        ({"scale": "x"}, "leave out scale"),
        ({"fixed": ["x", "w", "v"], "within": {"x": "normal", "w": "normal", "v": "normal"}}, "at most 2"),
        ({"fixed": ["x", LABEL]}, "choose one"),
        ({"within": {"z": np.array(["normal", "z"])}}, "normal deviations between situations"),
        ({"mixing": Mixture(classes=2)}, r"mixing cannot be combined with \['within'\]"),
        ({"method": SVI()}, "knows no tastes that vary between situations"),
        ({"method": MCMC(sampler="numpyro")}, "sampler='gibbs' or 'nuts'"),
    ],
)
def test_bad_requests(frame, settings, sentence):
    with pytest.raises(SpecificationError, match=sentence):
        asked(**settings).fit(frame.assign(w=frame["x"] * frame["z"], v=frame["x"] ** 2))


def test_bad_data(frame, tmp_path):
    packed = pack_choices(
        frame[["id", "situation", "alternative", "choice", "x", "z"]], tmp_path / "packed", names=["x", "z"]
    )
    with pytest.raises(ChoiceDataError, match="packs have no nodes"):
        asked().fit(packed)
    with pytest.raises(ChoiceDataError, match=r"within: there are no constants \['asc.a1'\]: the base alternative"):
        asked(within={"asc.a1": "normal"}, constants=True).fit(frame)
    with pytest.raises(SpecificationError, match="'z' is not identified"):
        asked().fit(frame.assign(z=1.0))


def test_simulated_choices_have_deviations():
    """Their truth has the label, and an estimate finds it."""
    made, truth = simulate_choices(
        400, 8, 3, fixed={"x": -0.8}, random={"z": (0.7, 0.6)}, within={"z": 1.0}, random_state=1
    )
    row = asked(method=MSLE(n_draws=64)).fit(made).summary().loc[LABEL]
    assert truth.coef[LABEL] == 1.0
    assert abs(row["estimate"] - 1.0) < 3.0 * row["std_error"]
    same, _ = simulate_choices(400, 8, 3, fixed={"x": -0.8}, random={"z": (0.7, 0.6)}, random_state=1)
    assert (same["z"] == made["z"]).all()
