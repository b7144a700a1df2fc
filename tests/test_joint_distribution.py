"""Geweke (2004, Journal of the American Statistical Association 99): the joint-distribution test of every sampler.

Parameters given choices, by one transition of the sampler, and choices given parameters, simulated in turn, keep the
prior of the parameters.
"""

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import NUTS
from small_models import model_of, prior_populations, summaries

from mxlogit import ChoiceData
from mxlogit.inference.mcmc.numpyro_nuts import arrays, check_numpyro, program
from mxlogit.inference.mcmc.pyro_nuts import site_values
from mxlogit.model.differences import difference_panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.pyro_program import mixed_logit
from mxlogit.sampling.chains import Noise, State
from mxlogit.sampling.covariance import HuangWand, InverseWishart
from mxlogit.sampling.gibbs import GibbsSampler
from mxlogit.sampling.person_step import Expansion
from mxlogit.sampling.posterior_move import PosteriorMove

_STEP = 0.3


def choose(model, population, xi, attributes, generator):
    """Choice data with choices simulated given all people's tastes."""
    utility = torch.einsum("ntjk,nk->ntj", attributes, model.coefficients(first(population), xi[0].T))
    n, t, _ = utility.shape
    chosen = torch.multinomial(utility.softmax(-1).flatten(0, 1), 1, generator=generator).view(n, t)
    return ChoiceData.from_arrays(attributes, chosen, names=["f", "a", "b"])


def first(population):
    """The population of the first chain."""
    return PopulationParameters(population.fixed[0], population.location[0], population.scale_tril[0])


def assert_same_moments(known, found):
    """First and second moments of independent draws, and of a chain, whose error is that of the means of batches."""
    for power in (1, 2):
        there, here = known**power, found**power
        batches = here.view(30, -1, here.shape[1]).mean(1)
        error = (batches.var(0) / 30 + there.var(0) / len(there)).sqrt()
        z = (here.mean(0) - there.mean(0)) / error
        assert float(z.abs().max()) < 4.0, z


@pytest.mark.calibration
@pytest.mark.parametrize("settings", [None, InverseWishart(location_precision=0.5), HuangWand()])
@pytest.mark.parametrize("families", [("normal", "normal"), ("lognormal", "uniform")])
def test_joint_distribution(families, settings):
    """Geweke (2004, JASA 99): parameters and choices simulated in turn keep the prior of the parameters."""
    model, n, t, j = model_of(families=families), 5, 3, 3
    generator = torch.Generator().manual_seed(12)
    attributes = torch.randn(n, t, j, 3, generator=generator, dtype=torch.float64)
    middle = PopulationParameters(torch.zeros(1).double(), torch.zeros(2).double(), 0.5 * torch.eye(2).double())
    noise = Noise(31, 1)
    known = summaries(prior_populations(model, settings, 20_000, Noise(8, 20_000)))
    population, xi = prior_populations(model, settings, 1, noise), noise.normal(2, n, like=attributes)
    visited = []
    whitened, posterior = None, None
    for iteration in range(6_000):
        panel = difference_panels(choose(model, population, xi, attributes, generator))
        sampler = GibbsSampler(model, panel, 1, 1, settings)
        sampler.noise = noise
        state = State(population, xi, sampler.likelihood.log_prob(population, xi))
        if whitened is None:
            sampler.tune(state, None, middle)
            whitened = sampler.whitened
            whitened.tril, whitened.step = 2.0 * torch.eye(6).double(), torch.tensor([0.3]).double()
            mean = torch.tensor([0.0, 0.0, 0.0, 0.6, 0.1, 0.6]).double()
            posterior = PosteriorMove(
                sampler._population_prior, mean, 0.7 * torch.eye(6).double(), torch.tensor([0.3]).double()
            )
        sampler.expansion = Expansion.around(sampler.likelihood, middle)
        sampler.whitened, sampler.posterior = whitened, posterior
        state, _ = sampler.run(state, iteration, adapt=False)
        population, xi = state.population, state.xi
        visited.append(summaries(population))
    assert_same_moments(known, torch.cat(visited))


def pyro_transition(model, n):
    """One transition of Pyro's NUTS: values of the sites after it, by those before, data and a seed."""
    kernel = NUTS(mixed_logit, step_size=_STEP, adapt_step_size=False, adapt_mass_matrix=False)

    def move(sites, panel, seed):
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), pyro.validation_enabled(False):
            torch.manual_seed(seed)
            kernel.setup(0, model, panel)
            # The setup puts the kernel at a point of its own.
            kernel.clear_cache()
            free = {name: kernel.transforms[name](value) for name, value in sites.items()}
            return {name: kernel.transforms[name].inv(value) for name, value in kernel.sample(free).items()}

    return move


def numpyro_transition(model, n):
    """One transition of NumPyro's NUTS, likewise."""
    check_numpyro(model)
    import jax
    from numpyro.infer import NUTS as NumPyroNUTS
    from numpyro.infer.util import constrain_fn, unconstrain_fn

    code = program(model, n)
    kernel = NumPyroNUTS(code, step_size=_STEP, adapt_step_size=False, adapt_mass_matrix=False)

    @jax.jit
    def sample(sites, data, key):
        free = unconstrain_fn(code, (data,), {}, sites)
        # A state of its own for these data: energy and gradient of the last ones do not hold any more.
        state = kernel.init(key, 0, free, (data,), {})
        return constrain_fn(code, (data,), {}, kernel.sample(state, (data,), {}).z)

    def move(sites, panel, seed):
        with jax.enable_x64(True):
            known = {name: value.numpy() for name, value in sites.items()}
            after = sample(known, arrays(panel), jax.random.PRNGKey(seed))
        return {name: torch.from_numpy(np.array(value)) for name, value in after.items()}

    return move


@pytest.mark.calibration
@pytest.mark.parametrize(
    ("transition", "iterations"),
    [(pyro_transition, 4_500), (numpyro_transition, 45_000)],
)
@pytest.mark.parametrize("families", [("normal", "normal"), ("lognormal", "normal")])
def test_joint_distribution_of_nuts(families, transition, iterations):
    model, n = model_of(families=families), 4
    generator, noise = torch.Generator().manual_seed(14), Noise(33, 1)
    attributes = torch.randn(n, 3, 3, 3, generator=generator, dtype=torch.float64)
    known = summaries(prior_populations(model, None, 20_000, Noise(8, 20_000)))
    population, xi = prior_populations(model, None, 1, noise), noise.normal(2, n, like=attributes)
    move = transition(model, n)
    visited = []
    for i in range(iterations):
        panel = difference_panels(choose(model, population, xi, attributes, generator))
        sites = move({**site_values(model, first(population)), "xi": xi[0].T}, panel, i)
        moved = model.space.assemble(sites["fixed"], sites["location"], sites["scale"], [sites["correlation_0"]])
        population = PopulationParameters(moved.fixed[None], moved.location[None], moved.scale_tril[None])
        xi = sites["xi"].T[None]
        visited.append(summaries(population))
    assert_same_moments(known, torch.cat(visited))
