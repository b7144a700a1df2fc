"""The marginal likelihood against quadrature, finite differences and the laws of panels."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import rebuilt

from mxlogit import VI, ConvergenceWarning, MixedLogit
from mxlogit.choices import ChoiceData
from mxlogit.datasets import load_swissmetro
from mxlogit.draws.generators import make_generator
from mxlogit.draws.importance import DrawScheme
from mxlogit.draws.jackknife import Jackknife
from mxlogit.execution.people import People
from mxlogit.inference.vi.log_posterior import without_noise
from mxlogit.integration.importance import WeightedDraws
from mxlogit.integration.laplace import follow, polish, whitened_log_prob
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.variational import refine_gaussian
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.differences import difference_panels
from mxlogit.model.likelihood import panel_log_prob
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import FAMILIES, Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.priors import Priors, resolve_priors

# Importance noise of 262,144 draws on five people (about five standard errors of the worst family).
NOISE = 2.5e-3


def population_of(space, generator, size=0.4):
    return space.constrain(size * torch.randn(space.size, generator=generator, dtype=torch.float64))


def marginal_of(panel, space, families, scale_position=None):
    return MarginalLikelihood(People.gather(panel), space, Mixing(families, scale_position), seed=3)


def value(marginal, population, integration):
    return marginal.log_prob_people(population, marginal.propose(population, integration))


@pytest.mark.parametrize("family", FAMILIES)
def test_quadrature_of_one_random_coefficient(panel, family):
    """One random coefficient: the integral by a 4,001-point rule on the latent normal."""
    space = ParameterSpace(("a", "b", "c", "d"), ("e",), ((0,),))
    fixed = torch.tensor([0.5, -0.4, 0.2, 0.1], dtype=torch.float64)
    population = PopulationParameters(fixed, torch.tensor([0.6]).double(), torch.tensor([[0.9]]).double())
    mixing = Mixing([family])
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    latent = (0.6 + 0.9 * z)[:, None]
    taste = mixing.tastes(latent, torch.full_like(latent, 0.6), torch.full_like(latent, 0.9))
    beta = torch.cat([fixed.expand(4001, 4), taste], 1)[:, None].expand(4001, 5, 5)
    log_weight = (-0.5 * z.square()).log_softmax(0)
    expected = (panel_log_prob(beta, panel) + log_weight[:, None]).logsumexp(0)
    got = value(marginal_of(panel, space, [family]), population, IntegrationSettings(262_144, 8, 1, 30))
    torch.testing.assert_close(got, expected, atol=NOISE, rtol=0)


@pytest.mark.parametrize(
    "families",
    [
        ["normal", "normal", "normal"],
        ["lognormal", "uniform", "triangular"],
        ["truncated_normal", "censored_normal", "johnson_sb"],
        ["negative_lognormal", "normal", "uniform"],
    ],
)
@pytest.mark.parametrize("scale_position", [None, 0, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pathwise", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_score_by_finite_differences(panel, space, families, generator, pathwise, scale_position):
    """The score of the marginal likelihood equals differences of its value along relative moves, in both spaces."""
    # Amounts are multiplied by a random scale, here of both signs: importance weights are less even.
    draws = 524_288 if scale_position == 3 else 32_768
    marginal, population = marginal_of(panel, space, families, scale_position), population_of(space, generator)
    integration, h = IntegrationSettings(draws, 8, 1, 30, newton_tolerance=1e-12, pathwise=pathwise), 1e-2
    score = marginal.score_pass(population, integration).score
    for i, step in enumerate(h * torch.eye(space.size, dtype=torch.float64)):
        up, down = (
            float(value(marginal, space.move(population, s), integration) @ panel.weights) for s in (step, -step)
        )
        assert float(score[i]) == pytest.approx((up - down) / (2 * h), abs=0.02)


@pytest.mark.parametrize(
    ("families", "pathwise", "scale_position"),
    [
        (["normal", "lognormal", "normal"], False, None),
        (["normal", "lognormal", "normal"], True, None),
        (["uniform", "truncated_normal", "normal"], True, None),
        (["normal", "lognormal", "normal"], True, 1),
        (["normal", "lognormal", "normal"], False, 3),
        pytest.param(["uniform", "lognormal", "normal"], True, 3, marks=pytest.mark.slow),
    ],
)
def test_information_by_finite_differences(panel, space, generator, families, pathwise, scale_position):
    """The identities themselves, with enough draws that none matters; with the engine's: test_posterior_sds."""
    marginal, population = marginal_of(panel, space, families, scale_position), population_of(space, generator)
    mixing = Mixing(families, scale_position)
    prior = resolve_priors(Priors(), mixing, space.n_fixed, [1.0] * 5)
    model = MixedLogitModel(space, mixing, prior, torch.ones(5, dtype=torch.float64))
    draws = 524_288 if scale_position == 3 and pathwise else 65_536
    integration, h = IntegrationSettings(draws, 8, 1, 30, pathwise=pathwise), 0.1
    information = marginal.information(model, population, integration)
    centre = float(value(marginal, population, integration) @ panel.weights)
    for direction in torch.randn(6, space.size, generator=generator, dtype=torch.float64):
        unit = direction / direction.norm()
        up, down = (
            float(value(marginal, space.move(population, s * h * unit), integration) @ panel.weights) for s in (1, -1)
        )
        expected = -(up + down - 2 * centre) / h**2
        assert float(unit @ information @ unit) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("families", [["normal", "lognormal", "normal"], ["uniform", "normal", "johnson_sb"]])
def test_draws_from_the_population_integrate_to_the_same(panel, space, generator, families):
    marginal, population = marginal_of(panel, space, families), population_of(space, generator)
    around = IntegrationSettings(65_536, 8, 1, 30, pathwise=True)
    nets = replace(around, from_population=True)
    expected, found = (marginal.score_pass(population, settings) for settings in (around, nets))
    assert found.value.log_likelihood == pytest.approx(expected.value.log_likelihood, abs=0.01)
    torch.testing.assert_close(found.score, expected.score, atol=0.03, rtol=0)
    modes = marginal.modes.clone()
    marginal.score_pass(population, nets)
    assert torch.equal(marginal.modes, modes), "draws from the population leave modes alone"


def test_draws_from_the_population_do_not_depend_on_chunks(panel, space, generator):
    marginal, population = marginal_of(panel, space, ["normal"] * 3), population_of(space, generator)
    settings = IntegrationSettings(64, 8, 1, 2, pathwise=True, from_population=True)
    whole, parts = (
        marginal.log_prob_people(population, marginal.propose(population, settings, size=size)) for size in (None, 2)
    )
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    followed = marginal.follow(population, marginal.propose(population, settings))
    assert torch.equal(marginal.log_prob_people(population, followed), whole)


def test_nets_from_the_population_have_a_tenth_of_the_noise():
    """One choice each: of scores along paths, at equal numbers of draws."""
    attributes = torch.randn(300, 1, 3, 2, generator=make_generator(1))
    chosen = torch.randint(3, (300, 1), generator=make_generator(2))
    data = ChoiceData.from_arrays(attributes, chosen, names=["z", "w"])
    space = ParameterSpace((), ("z", "w"), ((0, 1),))
    marginal = marginal_of(difference_panels(data, dtype=torch.float64), space, ["normal"] * 2)
    population = PopulationParameters(torch.zeros(0), torch.tensor([0.5, -0.4]), torch.diag(torch.tensor([1.0, 0.8])))
    population = population.to(torch.zeros(1, dtype=torch.float64))
    settings = IntegrationSettings(128, 8, 1, 8, pathwise=True)
    around, nets = (
        marginal.effect_of_draws(population, replace(settings, from_population=given), 2).noise.diagonal()
        for given in (False, True)
    )
    assert (nets < 0.1 * around).all(), nets / around


def test_zero_variance_equals_the_multinomial_logit(panel, space, generator):
    population = population_of(space, generator)
    tiny = PopulationParameters(population.fixed, population.location, 1e-7 * population.scale_tril)
    marginal = marginal_of(panel, space, ["normal"] * 3)
    beta = torch.cat([tiny.fixed, tiny.location]).expand(5, 5)
    torch.testing.assert_close(
        value(marginal, tiny, IntegrationSettings(64, 8, 1, 5)), panel_log_prob(beta, panel), atol=1e-5, rtol=0
    )


def test_singular_covariance_cannot_break_the_polish(panel, space, generator):
    population = population_of(space, generator)
    tril = population.scale_tril.clone()
    tril[2, 2] = 0.0
    tril *= 1e4
    singular = PopulationParameters(population.fixed, population.location, tril)
    factor = polish(torch.zeros(5, 3, dtype=torch.float64), singular, panel, Mixing(["normal"] * 3), 50)
    assert torch.isfinite(factor.mean).all()
    assert torch.isfinite(factor.log_det).all()


def test_polish_ends_at_the_mode(panel, space, generator):
    """The gradient of the local log posterior by autograd vanishes at the polished point."""
    population, mixing = population_of(space, generator), Mixing(["normal", "lognormal", "normal"])
    factor = polish(torch.zeros(5, 3, dtype=torch.float64), population, panel, mixing, 60, tolerance=1e-16)
    xi = factor.mean.clone().requires_grad_()
    latent = population.location + xi @ population.scale_tril.T
    tastes = mixing.tastes(latent, population.location.expand_as(latent), population.scale.expand_as(latent))
    beta = torch.cat([population.fixed.expand(5, -1), tastes], 1)
    (panel_log_prob(beta, panel) - 0.5 * xi.square().sum(1)).sum().backward()
    assert float(xi.grad.abs().max()) < 1e-6


def test_undamped_steps_are_tamed(panel, space, generator):
    """From a far start every iteration still improves all people's target."""
    population, mixing = population_of(space, generator), Mixing(["normal"] * 3)
    far = 30.0 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    near = polish(torch.zeros(5, 3, dtype=torch.float64), population, panel, mixing, 60)
    torch.testing.assert_close(polish(far, population, panel, mixing, 200).mean, near.mean, atol=1e-3, rtol=0)


def test_following_a_mode_is_a_newton_step(panel, space, generator):
    population, mixing = population_of(space, generator), Mixing(["normal"] * 3)
    factor = polish(torch.zeros(5, 3, dtype=torch.float64), population, panel, mixing, 60, 1e-12)
    moved = space.move(population, 1e-3 * torch.ones(space.size, dtype=torch.float64))
    exact = polish(factor.mean, moved, panel, mixing, 60, tolerance=1e-16)
    torch.testing.assert_close(follow(factor.mean, moved, panel, mixing).mean, exact.mean, atol=1e-5, rtol=0)


def test_weight_two_equals_the_person_twice(data, space, generator):
    """With the same draws the weighted sums are equal: here draws are exact (zero variance of tastes)."""

    population = population_of(space, generator)
    tiny = PopulationParameters(population.fixed, population.location, 1e-7 * population.scale_tril)
    twice = data.take(torch.tensor([0, 1, 1, 2, 3, 4]))
    weights = data.weights.clone()
    weights[1] = 1.0
    once = marginal_of(difference_panels(data), space, ["normal"] * 3).score_pass(
        tiny, IntegrationSettings(16, 8, 1, 5)
    )
    listed = difference_panels(twice)
    listed = replace(listed, weights=weights[[0, 1, 1, 2, 3, 4]])
    doubled = marginal_of(listed, space, ["normal"] * 3).score_pass(tiny, IntegrationSettings(16, 8, 1, 5))
    assert once.value.log_likelihood == pytest.approx(doubled.value.log_likelihood, abs=1e-6)
    torch.testing.assert_close(once.score, doubled.score, atol=1e-4, rtol=0)


@pytest.mark.parametrize("largest", [1, 2, 3])
def test_chunks_do_not_matter(panel, space, generator, monkeypatch, largest):
    """A person's draws depend on its place alone."""
    population, integration = population_of(space, generator), IntegrationSettings(16, 8, 1, 30)
    whole = marginal_of(panel, space, ["normal"] * 3).score_pass(population, integration)
    monkeypatch.setattr("mxlogit.choices.chunks._MOST_PEOPLE", {"cpu": largest})
    parts = marginal_of(panel, space, ["normal"] * 3).score_pass(population, integration)
    torch.testing.assert_close(parts.score, whole.score, atol=1e-10, rtol=0)
    torch.testing.assert_close(parts.outer, whole.outer, atol=1e-10, rtol=0)
    assert parts.value.log_likelihood == pytest.approx(whole.value.log_likelihood, abs=1e-10)


def test_same_key_same_draws(panel, space, generator):
    population = population_of(space, generator)
    marginal = marginal_of(panel, space, ["normal"] * 3)
    one, two, other = (
        value(marginal, population, IntegrationSettings(16, 8, key, 30, newton_tolerance=1e-20)) for key in (1, 1, 2)
    )
    torch.testing.assert_close(one, two, atol=1e-9, rtol=0)
    assert float((one - other).abs().max()) > 1e-6


@pytest.mark.parametrize("defensive", [True, False])
@pytest.mark.parametrize("tail", [8, None])
def test_base_points_have_the_moments_and_symmetry_they_claim(tail, defensive):
    like = torch.zeros(1, dtype=torch.float64)
    base = DrawScheme((1, 2), 64, 3, tail, defensive).points(0, 4000, like)
    for half in base.points.chunk(2, dim=-1):
        torch.testing.assert_close(half.sum(-1), torch.zeros(4000, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    local = base.points.unflatten(-1, (4, -1))[..., : 16 - base.n_prior]
    assert base.prior_share == (0.125 if defensive else 0.0)
    expected = 1.0 if tail is None else tail / (tail - 2)
    assert float(local.var()) == pytest.approx(expected, rel=0.03)
    assert float(base.prior_part(base.points).var()) == pytest.approx(1.0, rel=0.03) if defensive else True
    radius = torch.linspace(0, 40, 40_001, dtype=torch.float64)
    density = base.log_local(radius.square(), 1).exp()
    assert 2 * float(torch.trapezoid(density, radius)) == pytest.approx(1.0, abs=1e-4)


def test_jackknife_weights_are_the_gradient_of_the_jackknifed_mean(generator):
    log_values = torch.randn(5, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    Jackknife(log_values).log_mean.sum().backward()
    torch.testing.assert_close(Jackknife(log_values.detach()).weights, log_values.grad, atol=1e-12, rtol=0)
    torch.testing.assert_close(Jackknife(log_values.detach()).plain_weights, log_values.detach().softmax(-1))


def test_jackknife_removes_the_first_order_bias(generator):
    """E log(mean of exp(N(0, .5))) over 16 draws: bias -Var/2S without, far less with the jackknife."""
    log_values = 0.7 * torch.randn(200_000, 16, generator=generator, dtype=torch.float64)
    truth = 0.5 * 0.7**2
    plain = float((log_values.logsumexp(-1) - math.log(16)).mean()) - truth
    jackknifed = float(Jackknife(log_values).log_mean.mean()) - truth
    assert plain < -0.015
    assert abs(jackknifed) < 0.003


def test_control_variates_make_a_gaussian_posterior_exact(space, generator):
    """Where people have no observed choice the posterior is the prior, and the factor is exact: no noise at all."""
    from mxlogit.model.dense_panels import PanelDifferences

    values = torch.zeros(5, 4, 5, dtype=torch.float64)
    panel = PanelDifferences.regular(values, 1)
    result = marginal_of(panel, space, ["normal"] * 3).score_pass(
        population_of(space, generator), IntegrationSettings(16, 8, 1, 2)
    )
    assert result.value.log_likelihood == pytest.approx(5 * 4 * math.log(0.5), abs=1e-10)
    np.testing.assert_allclose(result.score.numpy(), 0.0, atol=1e-10)


def test_two_newton_steps_leave_hardly_a_gap_on_the_published_design():
    """At the true population parameters, two Newton steps from xi = 0: mean ESS fraction of the normal factor above .98."""
    from mxlogit.simulate import simulate_published_study

    study = simulate_published_study(500, 10, 1)
    space = ParameterSpace(("f1", "f2", "f3"), ("r1", "r2", "r3", "r4", "r5"), (tuple(range(5)),))
    tril = torch.linalg.cholesky(torch.from_numpy(study.covariance))
    truth = PopulationParameters(torch.from_numpy(study.fixed), torch.from_numpy(study.location), tril)
    marginal = MarginalLikelihood(People.gather(difference_panels(study.data)), space, Mixing(["normal"] * 5), seed=1)
    two = marginal.score_pass(truth, IntegrationSettings(64, None, 1, 2, defensive=False), remember=False)
    many = marginal.score_pass(truth, IntegrationSettings(64, None, 1, 30, defensive=False), remember=False)
    assert two.value.ess > 0.98
    assert many.value.elbo - two.value.elbo < 0.001 * 500


def test_variational_steps_find_the_best_gaussian(panel, space, generator):
    """At the end the mean gradient of the log target vanishes and the precision is the mean information."""
    population, mixing = population_of(space, generator, 0.8), Mixing(["normal"] * 3)
    start = polish(torch.zeros(5, 3, dtype=torch.float64), population, panel, mixing, 60)
    points = DrawScheme((5,), 65_536, 3, None, defensive=False).points(0, 5, start.mean).points
    factor = refine_gaussian(start, points, population, panel, mixing, 60)
    xi = (factor.mean[..., None] + factor.root @ points).mT.contiguous().requires_grad_()
    latent = population.location + xi @ population.scale_tril.T
    beta = torch.cat([population.fixed.expand(*latent.shape[:2], -1), latent], -1).transpose(0, 1)
    target = panel_log_prob(beta, panel).T - 0.5 * xi.square().sum(-1)
    (gradient,) = torch.autograd.grad(target.sum(), xi)
    assert float(gradient.mean(1).abs().max()) < 1e-6
    # Price: the mean Hessian is the mean of gradient times standardised point.
    standard = points.mT @ torch.linalg.inv(factor.root)
    hessian = -torch.einsum("nsk,nsl->nkl", gradient, standard) / points.shape[-1]
    precision = factor.precision_tril @ factor.precision_tril.mT
    torch.testing.assert_close(hessian, precision, atol=0.06, rtol=0)


def test_variational_steps_even_out_weights():
    """Twelve tastes and four situations: the mode is far from the mean."""
    from mxlogit.model.dense_panels import PanelDifferences

    generator = torch.Generator().manual_seed(3)
    values = 1.5 * torch.randn(200, 12, 12, generator=generator, dtype=torch.float64)
    panel = PanelDifferences.regular(values, 3)
    space = ParameterSpace((), tuple(f"z{i}" for i in range(12)), (tuple(range(12)),))
    population = PopulationParameters(values.new_zeros(0), values.new_zeros(12), torch.eye(12).double())
    marginal = marginal_of(panel, space, ["normal"] * 12)
    plain = marginal.value_pass(population, IntegrationSettings(1024, 8, 1, 30))
    varied = marginal.value_pass(population, IntegrationSettings(1024, 8, 1, 30, variational_steps=2))
    assert varied.ess > 1.3 * plain.ess
    assert varied.elbo > plain.elbo + 10.0
    assert varied.log_likelihood == pytest.approx(plain.log_likelihood, abs=4 * plain.variance**0.5)


@pytest.mark.parametrize("families", [["normal"] * 3, ["lognormal", "censored_normal", "johnson_sb"]])
def test_effect_of_draws(panel, space, generator, families):
    """Its mean is the difference of scores with few and with many draws; its noise that of scores with few."""
    population = population_of(space, generator)
    marginal = marginal_of(replace(panel, weights=torch.ones(5).double()), space, families)
    count = 120
    few = [marginal.score_pass(population, IntegrationSettings(16, 8, 1000 + key, 30)) for key in range(count)]
    many = [marginal.score_pass(population, IntegrationSettings(64, 8, 5000 + key, 30)) for key in range(count)]
    effects = [
        marginal.effect_of_draws(population, IntegrationSettings(16, 8, 9000 + 10 * key, 30), 4) for key in range(count)
    ]
    found = torch.stack([e.score for e in effects])
    gap = torch.stack([r.score for r in many]) - torch.stack([r.score for r in few])
    error = (gap.var(0) / count + found.var(0) / count).sqrt()
    assert float(((gap.mean(0) - found.mean(0)) / error).abs().max()) < 4.5
    # People's draws are independent: with weights of one their noise adds up to the variance of the score.
    noise = torch.stack([e.noise for e in effects]).mean(0).diagonal()
    variance = torch.stack([r.score for r in few]).var(0)
    torch.testing.assert_close(noise, variance, rtol=0.35, atol=0)


def test_noise_is_taken_out_of_curvature_and_never_all_of_it(generator):
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    curvature = root @ root.T + torch.eye(4)
    torch.testing.assert_close(without_noise(curvature, 0.3 * curvature), 0.7 * curvature)
    left = torch.linalg.eigvalsh(without_noise(curvature, 5.0 * curvature))
    assert float(left.amin()) > 0.0
    torch.testing.assert_close(without_noise(curvature, torch.zeros(4, 4).double()), curvature)


def test_padding_does_not_matter(generator, monkeypatch):
    """People in pieces of like length, situations left out in the middle: what the padded panels say."""
    from mxlogit.simulate import simulate_published_study

    data = simulate_published_study(600, 12, 1).data
    length = torch.randint(1, 13, (600, 1), generator=generator)
    observed = (torch.arange(12) < length) & ((torch.rand(600, 12, generator=generator) < 0.7) | (torch.arange(12) < 1))
    panel = difference_panels(rebuilt(data, observed=observed), dtype=torch.float64)
    padded_panel = panel.dense()
    monkeypatch.setattr("mxlogit.model.layouts._WORTH_A_PIECE", 0.001)
    pieces = list(panel.pieces(10_000, 150))
    assert len(pieces) >= 4
    assert sorted(torch.cat([place for place, _ in pieces]).tolist()) == list(range(600))
    assert sum(piece.values.numel() for _, piece in pieces) < 0.7 * padded_panel.values.numel()
    space = ParameterSpace(("f1", "f2", "f3"), ("r1", "r2", "r3", "r4", "r5"), (tuple(range(5)),))
    population = population_of(space, generator)
    integration = IntegrationSettings(16, 8, 1, 30, variational_steps=1)
    found = marginal_of(panel, space, ["normal"] * 5)
    whole = marginal_of(padded_panel, space, ["normal"] * 5)
    monkeypatch.setattr("mxlogit.choices.chunks._MOST_PEOPLE", {"cpu": 150})
    in_pieces = found.score_pass(population, integration), found.effect_of_draws(population, integration, 2)
    padded = whole.score_pass(population, integration), whole.effect_of_draws(population, integration, 2)
    torch.testing.assert_close(in_pieces[0].score, padded[0].score, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(in_pieces[0].outer, padded[0].outer, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(in_pieces[1].score, padded[1].score, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.modes, whole.modes)


def test_full_panels_stay_in_order(data):

    panel = difference_panels(data).dense()
    (first, second) = panel.pieces(10_000, 3)
    assert (first[0], second[0]) == (slice(0, 3), slice(3, 5))
    assert first[1].values.data_ptr() == panel.values.data_ptr()


def test_variational_steps_end_where_slopes_leave_the_numbers(generator):
    """A lognormal with a standard deviation of 150 and choices to match, in single precision: factors stay finite."""
    n, mixing, like = 100, Mixing(["lognormal", "normal"]), torch.zeros(1)
    wide = PopulationParameters(torch.zeros(0), torch.tensor([0.8, -0.7]), torch.tensor([[150.0, 0.0], [0.5, 0.8]]))
    attributes = torch.randn(n, 6, 3, 2, generator=generator, dtype=torch.float64)
    latent = wide.location + torch.randn(n, 2, generator=generator) @ wide.scale_tril.T
    tastes = torch.stack([latent[:, 0].double().exp(), latent[:, 1].double()], 1)
    chosen = torch.einsum("ntjk,nk->ntj", attributes, tastes).argmax(-1)
    panel = difference_panels(ChoiceData.from_arrays(attributes, chosen, names=["a", "b"])).to(torch.float32)
    points = DrawScheme((5,), 64, 2, None, defensive=False).points(0, n, like).points
    factor = refine_gaussian(polish(torch.zeros(n, 2), wide, panel, mixing, 30), points, wide, panel, mixing, 4)
    assert bool(torch.isfinite(factor.mean).all() & torch.isfinite(factor.root).all())
    assert bool(torch.isfinite(factor.log_det).all() & torch.isfinite(factor.precision_tril).all())


class TestFarModes:
    """A person who would always give up hours for nothing: the first Newton step goes fifteen times too far."""

    # Swissmetro, rows train and car beside the chosen Swissmetro: cost, time, dummies of car and train.
    PANEL = PanelDifferences.regular(
        torch.tensor(
            [[-0.1, -5.85, 1.0, 0.0], [-0.1, 2.37, 0.0, 1.0], [-0.2, -6.36, 1.0, 0.0], [-0.2, 2.26, 0.0, 1.0]] * 4
        )[None],
        2,
    )
    POPULATION = PopulationParameters(
        torch.tensor([-1.08]), torch.tensor([-1.28, -0.15, -0.70]), torch.diag(torch.tensor([0.99, 1.13, 1.05]))
    )

    def test_steps_that_go_too_far_are_halved_until_one_is_accepted(self):
        start, mixing = torch.zeros(1, 3), Mixing(["normal"] * 3)
        few, many = (polish(start, self.POPULATION, self.PANEL, mixing, steps) for steps in (2, 30))
        value = [whitened_log_prob(x.mean[..., None], self.POPULATION, self.PANEL, mixing) for x in (few, many)]
        nothing = whitened_log_prob(start[..., None], self.POPULATION, self.PANEL, mixing)
        assert float(value[0]) > 0.5 * float(nothing)
        assert float(value[1]) > float(value[0]) - 5.0

    def test_one_weight_beside_none_is_no_impossible_choice(self):
        """Halves that differ by forty nats: the jackknife would say that the choices have a probability above one."""
        log_ratio = torch.full((1, 16), -60.0)
        log_ratio[0, :8], log_ratio[0, 15] = -45.0, -2.0
        drawn = WeightedDraws(torch.zeros(1, 3, 16), log_ratio, torch.zeros(1, 16))
        assert float(Jackknife(log_ratio).log_mean) > 3.0
        assert float(drawn.log_marginal) == pytest.approx(-2.0 - math.log(16.0), abs=1e-5)
        # No draw says that a probability above one is possible: what it has lost are digits.
        assert float(replace(drawn, log_ratio=log_ratio + 20.0).log_marginal) == -math.inf

    def test_swissmetro_with_error_components(self):
        """The search began where this person had no finite likelihood, and the fit was refused."""
        data = load_swissmetro()
        data = data.assign(car=data["alternative"] == "CAR", train=data["alternative"] == "TRAIN")
        est = MixedLogit(
            fixed=["cost"],
            random=["time", "car", "train"],
            correlated=False,
            availability="available",
            method=VI(max_seconds=0.5),
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            assert math.isfinite(est.fit(data).log_likelihood_)
