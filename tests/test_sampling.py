"""Markov chains keep what they must: priors without data, detailed balance, joint distributions, NUTS and bayesm."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from small_models import PRIORS, SPACE, model_of, panel_of, prior_populations, summaries

from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.sampling.chains import ChainLikelihood, Noise, State
from mxlogit.sampling.covariance import InverseWishart, Scatter, draw_inverse_wishart, resolve_taste_prior
from mxlogit.sampling.gibbs import GibbsSampler
from mxlogit.sampling.person_step import Expansion, PersonProposal, independence_step, walk_step
from mxlogit.sampling.population_step import coordinates, population_of
from mxlogit.sampling.posterior_move import PosteriorMove


def test_inverse_wishart_draws(generator):
    """Their mean is S / (nu - k - 1), and diagonal entries are inverse gammas."""
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    products = root @ root.T + torch.eye(3)
    tril = draw_inverse_wishart(12.0, products.expand(6_000, 3, 3), Noise(3, 6_000))
    assert (tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert (tril.triu(1) == 0).all()
    draws = tril @ tril.mT
    error = draws.std(0) / 6_000**0.5
    assert float(((draws.mean(0) - products / 8.0) / error).abs().max()) < 4.0
    law = stats.invgamma(a=(12.0 - 2.0) / 2.0, scale=float(products[1, 1]) / 2.0)
    assert stats.kstest(draws[:, 1, 1].numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("settings", PRIORS, ids=["half-Cauchy and LKJ", "tied", "inverse Wishart", "Huang-Wand"])
def test_centred_draws_keep_the_joint_distribution(settings):
    """Latents from the prior, then locations and covariance given them: still the prior."""
    model, chains = model_of(), 8_000
    noise = Noise(5, chains)
    prior = resolve_taste_prior(model.space, model.prior, settings)
    population = prior_populations(model, settings, chains, noise)
    before = summaries(population)
    latents = population.location[..., None] + population.scale_tril @ noise.normal(2, 6, like=model.prior.mean)
    scatter = Scatter.of(latents)
    location = prior.draw_location(scatter, population.scale_tril, noise)
    tril = prior.draw_covariance(scatter, location, population.scale_tril, noise)
    after = summaries(PopulationParameters(population.fixed, location, tril))
    moved = (after - before).abs().mean(0)
    assert (moved[1:] > 0.05).all()
    for i in range(before.shape[1]):
        assert stats.ks_2samp(before[:, i].numpy(), after[:, i].numpy()).pvalue > 1e-3, i


@pytest.mark.parametrize("settings", PRIORS, ids=["half-Cauchy and LKJ", "tied", "inverse Wishart", "Huang-Wand"])
def test_without_information_the_posterior_is_the_prior(settings, generator):
    """Chains that begin at the prior stay there under all moves together, choices being certain to say nothing."""
    model, chains = model_of(), 1_500
    panel = replace(panel_of(4, 1, 1, SPACE, generator), unavailable=torch.ones(4, 1, dtype=torch.bool))
    sampler = GibbsSampler(model, panel, chains, 9, settings)
    population = prior_populations(model, settings, chains, sampler.noise)
    before = summaries(population)
    xi = sampler.noise.normal(2, 4, like=panel.values)
    state = State(population, xi, sampler.likelihood.log_prob(population, xi))
    middle = PopulationParameters(torch.zeros(1).double(), torch.zeros(2).double(), 0.5 * torch.eye(2).double())
    sampler.tune(few(state), None, middle)
    sampler.whitened.tril, sampler.whitened.step = 2.0 * torch.eye(6).double(), torch.full((chains,), 0.2).double()
    mean = torch.tensor([0.0, 0.0, 0.0, 0.6, 0.1, 0.6]).double()
    sampler.posterior = PosteriorMove(
        sampler._population_prior, mean, 0.7 * torch.eye(6).double(), torch.full((chains,), 0.3).double()
    )
    with torch.no_grad():
        for iteration in range(8):
            state, accepted = sampler.run(state, iteration, adapt=False)
    assert min(accepted.people, accepted.population, accepted.posterior) > 0.15
    after = summaries(state.population)
    for i in range(before.shape[1]):
        assert stats.ks_2samp(before[:, i].numpy(), after[:, i].numpy()).pvalue > 1e-3, i


def few(state, count=4):
    """The first chains of a state."""
    population = state.population
    parts = (population.fixed[:count], population.location[:count], population.scale_tril[:count])
    return State(PopulationParameters(*parts), state.xi[:count], state.log_prob[:count])


@pytest.fixture
def alike(generator):
    """One person, many times, with one taste: its posterior is known by quadrature."""
    space = ParameterSpace((), ("a",), ((0,),))
    one = panel_of(1, 4, 2, space, generator)
    many = one.take(torch.zeros(20_000, dtype=torch.int64))
    population = PopulationParameters(
        torch.zeros(1, 0).double(), torch.tensor([[0.4]]).double(), torch.tensor([[[1.5]]]).double()
    )
    likelihood = ChainLikelihood(model_of(space, ("lognormal",)), many)
    grid = torch.linspace(-7.0, 7.0, 20_000, dtype=torch.float64)
    log_density = likelihood.log_prob(population, grid[None, None])[0] - 0.5 * grid.square()
    weights = (log_density - log_density.amax()).exp()
    return likelihood, population, grid, weights / weights.sum()


def start_at_posterior(alike, noise):
    likelihood, population, grid, weights = alike
    places = torch.searchsorted(weights.cumsum(0), noise.uniform(20_000, like=grid).clamp(max=1.0 - 1e-12)[0])
    xi = grid[places][None, None]
    reference = PopulationParameters(
        torch.zeros(0).double(), torch.tensor([0.1]).double(), torch.tensor([[1.2]]).double()
    )
    proposal = PersonProposal.at(Expansion.around(likelihood, reference), population)
    return State(population, xi, likelihood.log_prob(population, xi)), proposal


@pytest.mark.parametrize("step", [independence_step, walk_step])
def test_detailed_balance_of_the_person_step(alike, step):
    """From the posterior, as many go from one bin to another as come back (Bowker 1948, JASA 43)."""
    noise = Noise(2, 1)
    state, proposal = start_at_posterior(alike, noise)
    after, accepted = step(state, alike[0], proposal, noise)
    assert 0.2 < float(accepted.double().mean()) < 0.99
    edges = torch.quantile(state.xi[0, 0], torch.linspace(0.0, 1.0, 9).double())[1:-1]
    here, there = torch.bucketize(state.xi[0, 0], edges), torch.bucketize(after.xi[0, 0], edges)
    flow = torch.zeros(8, 8).double().index_put((here, there), torch.ones(20_000).double(), accumulate=True)
    pairs = torch.triu_indices(8, 8, 1)
    out, back = flow[pairs[0], pairs[1]], flow.T[pairs[0], pairs[1]]
    used = out + back > 10
    statistic = float(((out - back).square() / (out + back))[used].sum())
    assert stats.chi2.sf(statistic, int(used.sum())) > 1e-3
    assert int(used.sum()) > 7


@pytest.mark.parametrize("step", [independence_step, walk_step])
def test_person_step_reaches_the_posterior(alike, step):
    """From far away, against quadrature."""
    noise = Noise(3, 1)
    state, proposal = start_at_posterior(alike, noise)
    xi = torch.full_like(state.xi, 2.5)
    state = State(state.population, xi, alike[0].log_prob(state.population, xi))
    for _ in range(40):
        state, _ = step(state, alike[0], proposal, noise)
    grid, cumulative = alike[2].numpy(), alike[3].cumsum(0).numpy()
    assert stats.kstest(state.xi[0, 0].numpy(), lambda x: np.interp(x, grid, cumulative)).pvalue > 1e-3


@pytest.mark.parametrize(
    "families", [("normal", "normal"), ("lognormal", "triangular"), ("uniform", "truncated_normal")]
)
def test_scores_of_chains(families, generator):
    """Against automatic differentiation of the log probability, every chain at its own population."""
    model, panel = model_of(families=families), panel_of(7, 3, 2, SPACE, generator)
    likelihood, noise = ChainLikelihood(model, panel), Noise(1, 3)
    population = prior_populations(model, InverseWishart(), 3, noise)
    xi = noise.normal(2, 7, like=panel.values)
    log_prob, score = likelihood.scores(population, xi)
    torch.testing.assert_close(log_prob, likelihood.log_prob(population, xi))
    for chain in range(3):
        one = PopulationParameters(population.fixed[chain], population.location[chain], population.scale_tril[chain])

        def total(vector, chain=chain):
            moved = population_of(SPACE, vector)
            people = model.coefficients(moved, xi[chain].T)
            from mxlogit.model.likelihood import panel_log_prob

            return panel_log_prob(people, panel).sum()

        at = coordinates(SPACE, one)
        torch.testing.assert_close(score[chain], torch.autograd.functional.jacobian(total, at), rtol=1e-6, atol=1e-8)
        if families == ("normal", "normal"):
            hessian = torch.autograd.functional.hessian(total, at)
            torch.testing.assert_close(likelihood.information(one, xi[chain]), -hessian, rtol=1e-6, atol=1e-8)


def test_prior_gradient_in_coordinates(model):
    """The density of a population in coordinates has the Jacobian of Omega's Cholesky factor: two blocks."""
    from mxlogit.sampling.population_step import PopulationPrior

    f = model.space.n_fixed
    taste = resolve_taste_prior(model.space, model.prior, None)
    prior = PopulationPrior(model.space, taste, model.prior.mean[:f], model.prior.deviation[:f])
    vectors = 0.5 * torch.randn(6, model.space.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def to_coordinates(vector):
        return coordinates(model.space, model.space.constrain(vector))

    jacobians = torch.stack([torch.autograd.functional.jacobian(to_coordinates, v) for v in vectors])
    expected = model.log_prior(vectors) - torch.linalg.slogdet(jacobians).logabsdet
    value, _ = prior.gradient(model.space.constrain(vectors))
    gap = value - expected
    torch.testing.assert_close(gap, gap[:1].expand(6))


def sampler_after(model, panel, chains, iterations=6):
    sampler = GibbsSampler(model, panel, chains, 3)
    middle = PopulationParameters(torch.zeros(1).double(), torch.zeros(2).double(), 0.7 * torch.eye(2).double())
    state = sampler.start(middle, 0.2)
    sampler.tune(few(state, 2), None, middle)
    sampler.whitened.step = torch.full((chains,), 0.5).double()
    for iteration in range(iterations):
        state, _ = sampler.run(state, iteration, adapt=False)
    return state


def test_chains_do_not_depend_on_each_other_or_on_chunks(generator, monkeypatch):
    model, panel = model_of(), panel_of(50, 3, 2, SPACE, generator)
    two, four = sampler_after(model, panel, 2), sampler_after(model, panel, 4)
    torch.testing.assert_close(two.xi, four.xi[:2])
    torch.testing.assert_close(two.population.scale_tril, four.population.scale_tril[:2])
    monkeypatch.setattr("mxlogit.choices.chunks._MOST_PEOPLE", {"cpu": 7})
    monkeypatch.setattr("mxlogit.choices.chunks._CELLS", {"cpu": 300})
    torch.testing.assert_close(sampler_after(model, panel, 2).xi, two.xi)
