"""Covariates that shift latent normals: lognormal and other tastes, and the scale of willingness-to-pay space."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize

from mxlogit import MCMC, MSLE, ChoiceDataError, ConvergenceWarning, MixedLogit, SpecificationError
from mxlogit.execution.processes import Communicator
from mxlogit.integration.drawn_tastes import loads_of
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.simulated_block import evaluate_block, sum_scores
from mxlogit.model.mixing import FAMILIES
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.plots.tastes import population_quantiles
from mxlogit.results.population_nodes import taste_nodes
from mxlogit.sampling.chains import ChainLikelihood, loads_in_chains
from mxlogit.sampling.person_step import Expansion, PersonProposal
from mxlogit.simulate import simulate_choices
from mxlogit.spec.specification import LOCATION_FAMILIES

TRUTH = {"x:income": -0.4, "z:income": 0.3}


@pytest.fixture(scope="module")
def frame():
    """A lognormal cost and a normal taste, both of which depend on income, which is far from zero."""
    found, _ = simulate_choices(
        300,
        6,
        3,
        fixed={"w": 0.5},
        random={"x": (0.0, 0.6, "negative_lognormal"), "z": (0.7, 0.8)},
        mean_shifters={"x": {"income": TRUTH["x:income"]}, "z": {"income": TRUTH["z:income"]}},
        random_state=5,
    )
    return found.assign(income=found["income"] + 3.0)


def asked(**settings):
    shifters = {"x": ["income"], "z": ["income"]}
    random = {"x": "negative_lognormal", "z": "normal"}
    return MixedLogit(**{"fixed": ["w"], "random": random, "mean_shifters": shifters, "random_state": 0, **settings})


@pytest.fixture(scope="module")
def est(frame):
    return asked().fit(frame)


def prepared(est, frame):
    fitted, people, _ = est._prepare(frame, Communicator(), y=None, weights=None)
    return fitted.model, people


def small(families, scale=None, correlated=True):
    """A model of two random coefficients on few people, both shifted, with its panels in double precision."""
    frame, _ = simulate_choices(12, 3, 3, fixed={"w": 0.5}, random={"x": (0.5, 0.5), "z": (-0.7, 0.8)}, random_state=5)
    people = frame["id"].to_numpy()
    frame = frame.assign(income=np.sin(people), age=np.cos(3.0 * people))
    est = MixedLogit(
        fixed=["w"],
        random=dict(zip(("x", "z"), families, strict=True)),
        scale=scale,
        correlated=correlated,
        mean_shifters={"x": ["income", "age"], "z": ["income"]},
        dtype="float64",
    )
    model, people = prepared(est, frame)
    return model, people.panels


def by_hand(model, panel, vector, z):
    """Log probabilities (n, r) of the choices at coordinates (fixed coefficients, locations, cells of L)."""
    space, f, k = model.space, model.space.n_fixed, model.space.n_random
    fixed, location = vector[:f], vector[f : f + k]
    tril = space.triangle_matrix(vector[f + k :])
    shifts, names = model.mixing.shifts, space.fixed
    mean = location.expand(len(panel), -1).clone()
    for effect, taste, column in zip(shifts.effects, shifts.tastes, shifts.columns, strict=True):
        mean = mean + torch.eye(k, dtype=mean.dtype)[taste] * (fixed[effect] * panel.covariates[:, column])[:, None]
    latent = mean[..., None] + tril @ z
    scale = tril.square().sum(-1).sqrt()
    value = torch.stack(
        [
            family.map(latent[:, i], mean[:, i, None].expand_as(latent[:, i]), scale[i]).taste
            for i, family in enumerate(model.mixing.families)
        ],
        1,
    )
    moved = torch.tensor([0.0 if i in shifts.effects else 1.0 for i in range(f)], dtype=mean.dtype)
    parameters = torch.cat([(fixed * moved)[:, None].expand(len(panel), -1, z.shape[-1]), value], 1)
    if model.mixing.scale_position is not None:
        scale = parameters[:, model.mixing.scale_position, None]
        others = torch.tensor([i != model.mixing.scale_position for i in range(f + k)])[:, None]
        parameters = torch.where(others, -scale * parameters, parameters)
    utility = panel.values @ parameters
    odds = utility.exp().unflatten(1, (-1, 2)).sum(2)
    assert names[0] == "w"
    return -torch.log1p(odds).sum(1)


def vector_of(model):
    generator = torch.Generator().manual_seed(1)
    vector = 0.4 * torch.randn(model.space.size, generator=generator, dtype=torch.float64)
    rows, columns = model.space.triangle
    start = model.space.n_fixed + model.space.n_random
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        vector[start + i] = 0.7 if row == column else 0.3
    return vector


def population_of(model, vector):
    space = model.space
    start = space.n_means
    from mxlogit.model.parameters import PopulationParameters

    return PopulationParameters(*space.insert_held(vector[:start]), space.triangle_matrix(vector[start:]))


CASES = [
    (("negative_lognormal", "normal"), None),
    (("lognormal", "truncated_normal"), None),
    (("censored_normal", "johnson_sb"), None),
    (("triangular", "lognormal"), None),
    (("negative_lognormal", "normal"), "x"),
    (("normal", "lognormal"), "x"),
]


@pytest.mark.parametrize(("families", "scale"), CASES)
def test_blocks_are_those_of_automatic_differentiation(families, scale):
    model, panel = small(families, scale)
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(len(panel), 2, 16, generator=generator, dtype=torch.float64)
    vector = vector_of(model)

    def simulated(at):
        return by_hand(model, panel, at, z).logsumexp(-1)

    block = evaluate_block(model, population_of(model, vector), panel, z, curvature=True)
    torch.testing.assert_close(block.log_sum, simulated(vector), rtol=1e-9, atol=1e-9)
    score = torch.autograd.functional.jacobian(simulated, vector)
    torch.testing.assert_close(block.score, score, rtol=1e-8, atol=1e-9)
    if not model.mixing.is_kinked:
        hessian = torch.autograd.functional.hessian(lambda at: simulated(at).sum(), vector)
        found = block.second.sum(0) - block.score.T @ block.score
        torch.testing.assert_close(found, hessian, rtol=1e-7, atol=1e-8)
    scores = sum_scores(model, population_of(model, vector), panel, z, lambda log_prob: log_prob.softmax(-1))
    torch.testing.assert_close(scores, score, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("families", "scale"), CASES)
def test_chains_are_those_of_automatic_differentiation(families, scale):
    model, panel = small(families, scale)
    generator = torch.Generator().manual_seed(3)
    xi = torch.randn(2, 2, len(panel), generator=generator, dtype=torch.float64)
    vectors = torch.stack([vector_of(model), 0.8 * vector_of(model)])
    populations = [population_of(model, vector) for vector in vectors]
    stacked = type(populations[0])(
        *(torch.stack([getattr(x, name) for x in populations]) for name in ("fixed", "location", "scale_tril"))
    )
    log_prob, score = ChainLikelihood(model, panel).scores(stacked, xi)
    for chain, vector in enumerate(vectors):
        tastes = xi[chain].T[..., None]
        torch.testing.assert_close(log_prob[chain], by_hand(model, panel, vector, tastes)[:, 0], rtol=1e-9, atol=1e-9)
        wanted = torch.autograd.functional.jacobian(
            lambda at, tastes=tastes: by_hand(model, panel, at, tastes).sum(), vector
        )
        torch.testing.assert_close(score[chain], wanted, rtol=1e-8, atol=1e-9)
    assert loads_in_chains(model, panel).shape == (1, len(model.mixing.shifts.effects), len(panel))


def test_proposals_of_chains_are_where_people_are():
    """The expansion around the population itself proposes people's modes, with their covariates."""
    model, panel = small(("negative_lognormal", "normal"))
    population = population_of(model, vector_of(model))
    likelihood = ChainLikelihood(model, panel)
    stacked = population.map(lambda x: x[None])
    proposal = PersonProposal.at(Expansion.around(likelihood, population), stacked)
    xi = proposal.mean[0].T.clone().requires_grad_()
    log_target = by_hand(model, panel, vector_of(model), xi[..., None]).sum() - 0.5 * xi.square().sum()
    (gradient,) = torch.autograd.grad(log_target, xi)
    assert float(gradient.abs().max()) < 0.02


@pytest.mark.parametrize("pathwise", [False, True])
@pytest.mark.parametrize(("families", "scale"), [CASES[0], CASES[1], CASES[4]])
def test_scores_and_information_are_those_of_many_draws(families, scale, pathwise):
    """Importance sampling around modes gives the derivatives of the likelihood on very many draws."""
    model, panel = small(families, scale)
    vector = vector_of(model)
    z = torch.distributions.Normal(0.0, 1.0).icdf(
        torch.quasirandom.SobolEngine(2, scramble=True, seed=3).draw(2**15, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    )
    z = z.T.expand(len(panel), -1, -1)

    def log_likelihood(at):
        return (by_hand(model, panel, at, z).logsumexp(-1) - math.log(z.shape[-1])).sum()

    from mxlogit.execution.people import People

    population = population_of(model, vector)
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, 1)
    integration = IntegrationSettings(2**15, 8, 1, 30, pathwise=pathwise)
    found = marginal.score_pass(population, integration)
    at = vector.clone().requires_grad_()
    value = log_likelihood(at)
    (gradient,) = torch.autograd.grad(value, at)
    assert found.value.log_likelihood == pytest.approx(float(value.detach()), abs=0.02)
    step = torch.zeros(model.space.size, dtype=torch.float64)

    def moved(step):
        there = model.space.move(population, step)
        rows, columns = model.space.triangle
        return torch.cat([there.fixed, there.location, there.scale_tril[rows, columns]])

    jacobian = torch.autograd.functional.jacobian(moved, step)
    torch.testing.assert_close(found.score, jacobian.T @ gradient, rtol=0.0, atol=0.025)
    information = marginal.information(model, population, IntegrationSettings(2048, 8, 2, 30, pathwise=True))
    few = z[..., : 2**12]

    def rough(step):
        return (by_hand(model, panel, moved(step), few).logsumexp(-1)).sum()

    wanted = -torch.autograd.functional.hessian(rough, step)
    torch.testing.assert_close(information, wanted, rtol=0.02, atol=0.15)


def test_families_that_move_with_their_location():
    """Only these have tastes that a shift of the location moves by as much."""
    latent, location, scale = torch.tensor([0.3, -0.4]).double(), torch.tensor(0.2).double(), torch.tensor(0.7).double()
    for name, family in FAMILIES.items():
        moved = family.taste(latent + 0.5, location + 0.5, scale) - family.taste(latent, location, scale)
        assert bool(((moved - 0.5).abs() < 1e-9).all()) == (name in LOCATION_FAMILIES), name


def test_effects_of_zero_are_the_plain_model():
    """Log probabilities without the effects are those of the model without covariates, to the last bit."""
    model, panel = small(("negative_lognormal", "normal"))
    vector = vector_of(model)
    vector[list(model.mixing.shifts.effects)] = 0.0
    population = population_of(model, vector)
    xi = torch.randn(len(panel), 2, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shifted = PersonTastes.of(population, model.mixing, panel)
    assert torch.equal(shifted.tastes(xi), PersonTastes(population, model.mixing).tastes(xi))
    assert loads_of(model, panel).shape == (len(panel), 2, 1)


def quadrature(frame, vector, nodes=64):
    """Log likelihood of one lognormal cost with an effect of income, and a fixed taste, by Gauss-Hermite."""
    w, effect, location, log_scale = vector
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    rows = frame.sort_values(["id", "situation", "alternative"])
    x, other, income = (rows[name].to_numpy().reshape(-1, 6, 3) for name in ("x", "w", "income"))
    chosen = rows["choice"].to_numpy(bool).reshape(-1, 6, 3)
    latent = location + effect * income[:, 0, 0][:, None] + math.exp(min(log_scale, 3.0)) * points
    utility = -np.exp(np.minimum(latent, 5.0))[:, None, None] * x[..., None] + w * other[..., None]
    utility -= utility[chosen].reshape(-1, 6, 1, nodes)
    log_prob = -np.log(np.exp(utility).sum(2)).sum(1)
    return float(np.log(np.exp(log_prob) @ (weights / weights.sum())).sum())


def test_maximum_is_that_of_quadrature(frame):
    est = MixedLogit(
        fixed=["w"],
        random={"x": "negative_lognormal"},
        mean_shifters={"x": ["income"]},
        method=MSLE(n_draws=512),
        random_state=0,
    ).fit(frame)
    wanted = optimize.minimize(lambda at: -quadrature(frame, at), [0.5, -0.3, 1.0, -0.5], method="BFGS")
    found, error = est.coef_[["w", "x:income", "x", "sd.x"]], est.summary()["std_error"]
    truth = [*wanted.x[:3], math.exp(wanted.x[3])]
    assert np.abs((found - truth) / error[found.index]).max() < 0.03
    assert est.log_likelihood_ == pytest.approx(-wanted.fun, abs=0.2)
    inverse = np.sqrt(np.diag(wanted.hess_inv))
    assert error["x:income"] == pytest.approx(inverse[1], rel=0.25)


def test_estimates_are_near_the_truth(est):
    summary = est.summary()
    for label, value in TRUTH.items():
        assert abs(summary.loc[label, "estimate"] - value) < 3.0 * summary.loc[label, "std_error"]
    assert est.diagnostics_["trusted"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mxlogit.errors.ConvergenceWarning")
@pytest.mark.parametrize("sampler", ["gibbs", "nuts"])
def test_engines_agree(frame, est, sampler):
    some = frame if sampler == "gibbs" else frame[frame["id"] <= 100]
    fit = est if sampler == "gibbs" else asked().fit(some)
    length = {"gibbs": {}, "nuts": {"samples": 400, "warmup": 200, "chains": 2}}[sampler]
    chains = asked(method=MCMC(sampler=sampler, **length)).fit(some)
    summary = chains.summary()
    apart = (fit.coef_ - chains.coef_) / summary["std_error"]
    noise = 3.0 / summary["ess"] ** 0.5
    assert (apart.abs() < 0.1 + noise).all()
    assert np.abs(np.log(fit.summary()["std_error"] / summary["std_error"])).max() < (
        0.1 if sampler == "gibbs" else 0.2
    )
    one, other = (each.individual_coefficients() for each in (fit, chains))
    spread = other.xs("sd", axis=1, level=1)
    assert float(((one - other).xs("mean", axis=1, level=1) / spread).abs().mean(axis=None)) < 0.15


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mxlogit.errors.ConvergenceWarning")
def test_stochastic_variational_inference_agrees(frame, est):
    """As far as it says: half a standard deviation of standard deviations, a quarter of coefficients."""
    fit = asked(method="svi").fit(frame)
    apart = ((fit.coef_ - est.coef_) / est.summary()["std_error"]).abs()
    assert apart[["w", "x:income", "z:income"]].max() < 0.3
    assert apart.max() < 0.8


def sampled_tastes(est, income, count=400_000):
    """Tastes of people with one income, drawn by hand: one of each posterior sample in turn."""
    samples = est.posterior_samples()
    rows = samples.iloc[np.arange(count) % len(samples)]
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, count))
    correlation = rows["cor.x:z"].to_numpy()
    other = correlation * one + np.sqrt(1.0 - correlation**2) * other
    income = np.broadcast_to(income, count)
    x = -np.exp(rows["x"] + rows["x:income"] * income + rows["sd.x"] * one)
    z = rows["z"] + rows["z:income"] * income + rows["sd.z"] * other
    return x.to_numpy(), z.to_numpy(), rows["w"].to_numpy()


def test_predictions_are_those_of_people_with_their_covariates(est, frame):
    situation = frame[(frame["id"] == 4) & (frame["situation"] == 1)]
    for income in (situation["income"].iloc[0], 5.0):
        x, z, w = sampled_tastes(est, income)
        utility = np.stack([x * row.x + z * row.z + w * row.w for row in situation.itertuples()])
        odds = np.exp(utility - utility.max(0))
        wanted = (odds / odds.sum(0)).mean(1)
        found = est.predict_proba(situation.assign(income=income))
        np.testing.assert_allclose(found, wanted, atol=4e-3)
        table = est.predict_proba(situation.assign(income=income), interval=0.9)
        np.testing.assert_allclose(
            table["probability"] if "probability" in table else table.iloc[:, 0], wanted, atol=6e-3
        )


def test_answers_do_not_depend_on_other_rows(est, frame):
    some = frame[frame["id"] <= 20]
    np.testing.assert_allclose(est.predict_proba(some), est.predict_proba(frame)[some.index], rtol=1e-9)


def test_tables_of_tastes_average_over_people(est, frame):
    income = frame.groupby("id")["income"].first().to_numpy()
    at_one = est.taste_distribution({"income": 4.0})
    x, z, _ = sampled_tastes(est, 4.0)
    assert at_one.loc["x", "mean"] == pytest.approx(x.mean(), rel=0.02)
    assert at_one.loc["z", "mean"] == pytest.approx(z.mean(), rel=0.02)
    everybody = est.taste_distribution()
    draws = np.concatenate([sampled_tastes(est, value, 4_000)[0] for value in income])
    assert everybody.loc["x", "mean"] == pytest.approx(draws.mean(), rel=0.03)
    assert everybody.loc["x", "sd"] == pytest.approx(draws.std(), rel=0.1)
    quantiles = population_quantiles(est)[..., list(est._state().model.space.random).index("x")]
    assert quantiles.mean() == pytest.approx(draws.mean(), rel=0.04)


def test_willingness_to_pay_is_that_of_samples(est):
    table = est.wtp("z", "x", covariates={"income": 4.0})
    x, z, _ = sampled_tastes(est, 4.0)
    ratio = -z / x
    for share, label in ((0.25, "25 %"), (0.5, "50 %"), (0.75, "75 %")):
        assert table.loc[label, "estimate"] == pytest.approx(np.quantile(ratio, share), rel=0.05, abs=0.02)
    assert table.loc["mean", "estimate"] == pytest.approx(ratio.mean(), rel=0.06)
    everybody = est.wtp("z", "x")
    assert everybody.loc["mean", "lower"] < everybody.loc["mean", "estimate"] < everybody.loc["mean", "upper"]


def test_elasticities_are_differences_of_probabilities(est, frame):
    some = frame[frame["id"] <= 10]
    table = est.marginal_effects(some, "x", aggregate=True)
    up, down = (
        est.predict_proba(some.assign(x=some["x"] + step * (some["alternative"] == "a1"))) for step in (0.01, -0.01)
    )
    slope = ((up - down) / 0.02).groupby(some["alternative"]).mean()
    for name in ("a1", "a2", "a3"):
        assert table.loc[("a1", name), "estimate"] == pytest.approx(slope[name], rel=0.03)


def test_surplus_and_individual_tastes_keep_covariates(est, frame):
    some = frame[frame["id"] <= 10]
    cheaper = some.assign(x=some["x"] - 1.0)
    table = est.surplus(some, cheaper, "x")
    assert table.loc["mean", "estimate"] == pytest.approx(1.0, abs=1e-9)
    richer = some.assign(income=some["income"] + 1.0)
    with pytest.raises(ChoiceDataError, match="People keep their covariates"):
        est.surplus(some, richer, "x")
    with pytest.raises(ChoiceDataError, match=r"differ for 10 decision makers .* tastes='population'"):
        est.predict_proba(richer, tastes="individual")
    assert (
        est.predict_proba(some, tastes="individual").groupby([some["id"], some["situation"]]).sum().sub(1.0).abs().max()
        < 1e-6
    )


@pytest.mark.slow
def test_people_in_other_data_have_the_tastes_of_the_fit(est, frame):
    people = est.individual_coefficients(frame[frame["id"] <= 30])
    np.testing.assert_allclose(people, est.individual_coefficients().loc[people.index], atol=0.1)


def test_effects_are_seen_in_people(est, frame):
    """People with higher incomes have smaller costs, by as much as the effect says."""
    people = est.individual_coefficients()[("x", "mean")]
    income = frame.groupby("id")["income"].first()
    slope = np.polyfit(income, np.log(-people), 1)[0]
    assert slope == pytest.approx(est.coef_["x:income"], abs=0.08)


def test_saved_models_give_the_same_answers(est, frame, tmp_path):
    est.save(tmp_path / "model")
    other = MixedLogit.load(tmp_path / "model")
    some = frame[frame["id"] <= 5]
    assert (other.predict_proba(some) == est.predict_proba(some)).all()
    assert other.score(some) == est.score(some)
    pd.testing.assert_frame_equal(other.taste_distribution(), est.taste_distribution())


def test_scale_of_money_depends_on_groups():
    """Two groups whose choices differ in noise only: the effect on the scale, and none on what things are worth."""
    frame, _ = simulate_choices(600, 6, 3, fixed={"w": 0.5, "x": 0.0, "z": 0.0}, random_state=0)
    rng = np.random.default_rng(10)
    urban = (frame["id"] % 2).to_numpy().astype(float)
    worth = 0.8 + 0.6 * rng.standard_normal(601)
    scale = np.exp(0.1 + 0.6 * urban + 0.6 * rng.standard_normal(601)[frame["id"]])
    value = scale * (worth[frame["id"]] * frame["z"] - frame["x"] + 0.5 * frame["w"]) + rng.gumbel(size=len(frame))
    chosen = value.groupby([frame["id"], frame["situation"]]).transform("max") == value
    made = frame.assign(choice=chosen, urban=urban)
    est = MixedLogit(
        fixed=["w"],
        random={"x": "negative_lognormal", "z": "normal"},
        scale="x",
        correlated=False,
        mean_shifters={"x": ["urban"]},
        method="msle",
        random_state=0,
    ).fit(made)
    summary = est.summary()
    assert abs(summary.loc["x:urban", "estimate"] - 0.6) < 3.0 * summary.loc["x:urban", "std_error"]
    assert abs(summary.loc["z", "estimate"] - 0.8) < 3.0 * summary.loc["z", "std_error"]
    assert not any("weakly" in sentence for sentence in est.result_.warnings)
    some = made[made["id"] <= 40]
    by_group = est.predict_proba(some.assign(urban=1.0)) - est.predict_proba(some.assign(urban=0.0))
    assert by_group[some["choice"]].mean() > 0.02


@pytest.mark.parametrize("family", ["uniform", "triangular"])
def test_families_that_move_are_products(frame, family):
    """Effects on uniform and triangular tastes are those of interactions by hand."""
    settings = {"method": MSLE(n_draws=64), "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one = MixedLogit(fixed=["w"], random={"z": family}, mean_shifters={"z": ["income"]}, **settings).fit(frame)
        made = frame.assign(**{"z:income": frame["z"] * frame["income"]})
        other = MixedLogit(fixed=["w", "z:income"], random={"z": family}, **settings).fit(made)
    np.testing.assert_allclose(one.coef_, other.coef_, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["censored_normal", "truncated_normal", "johnson_sb"])
def test_other_families_are_fitted(family):
    location = {"johnson_sb": 0.3}.get(family, 1.0)
    made, _ = simulate_choices(
        400,
        6,
        3,
        random={"z": (location, 0.8, family)},
        mean_shifters={"z": {"income": 0.5}},
        scales={"z": 2.0},
        random_state=1,
    )
    est = MixedLogit(random={"z": family}, mean_shifters={"z": ["income"]}, method=MSLE(n_draws=128), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est.fit(made)
    row = est.summary().loc["z:income"]
    assert abs(row["estimate"] - 0.5) < 3.0 * row["std_error"]


def test_nodes_without_covariates_are_those_of_plain_models(est):
    model = est._state().model
    population = model.space.constrain(est.result_.samples.unconstrained[:3])
    nodes = taste_nodes(model, population, 16, 1)
    none = torch.zeros(1, 1, 1, dtype=torch.float64)
    assert torch.equal(nodes.latents.parameters(none), nodes.parameters)
    window = nodes.latents.window(slice(4, 8)).parameters(none)
    assert torch.equal(window, nodes.parameters[:, 4:8])


def test_a_taste_of_the_wrong_sign_has_nothing_to_shift(frame):
    wrong = asked(random={"x": "lognormal", "z": "normal"})
    with pytest.raises(SpecificationError, match=r"mean_shifters: the effects of \['x'\] have the other sign"):
        wrong.fit(frame)


def test_numpyro_refuses(frame):
    from mxlogit.inference.mcmc.numpyro_nuts import check_numpyro

    model, _ = prepared(asked(), frame)
    with pytest.raises(SpecificationError, match="sampler='gibbs' or 'nuts'"):
        check_numpyro(model)


@pytest.mark.parametrize("names", [["level"], ["income", "twice"], ["here", "there"]])
def test_covariates_that_cannot_be_told_apart(frame, names):
    """A constant, a multiple of another, and shares that add up to one, as with normal tastes."""
    some = frame[frame["id"] <= 40]
    here = (some["id"] % 2).astype(float)
    some = some.assign(level=1.0, twice=2.0 * some["income"], here=here, there=1.0 - here)
    with pytest.raises(SpecificationError, match="not identified"):
        asked(mean_shifters={"x": names}).fit(some)
