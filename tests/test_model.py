"""The Pyro program and its guide against the plain torch functions."""

import pyro
import pytest
import torch
from pyro import poutine
from small_models import rebuilt

from mxlogit.execution.people import People
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.encoder import PublishedEncoder, SetEncoder
from mxlogit.guide.population import GaussianFactor
from mxlogit.model.likelihood import panel_log_prob
from mxlogit.model.pyro_program import mixed_logit


@pytest.fixture(autouse=True)
def forked():
    """Pyro samples from the global generator: keep it as it was."""
    with torch.random.fork_rng(devices=[]), pyro.settings.context(module_local_params=True):
        torch.manual_seed(4)
        yield
    assert list(pyro.get_param_store().keys()) == []


@pytest.fixture
def guide(model, generator):
    start = GaussianFactor(
        0.3 * torch.randn(model.space.size, generator=generator, dtype=torch.float64),
        0.2 * torch.eye(model.space.size, dtype=torch.float64),
    )
    guide = AmortizedGuide(model, start, SetEncoder(3, model.mixing)).double()
    with torch.no_grad():
        guide.encoder.head.weight.normal_(0.0, 0.1)
    return guide


def sites_of(model, vector, xi):
    """Values of the program's sites at an unconstrained vector and whitened tastes."""
    fixed, location, log_scale, partial = model.space.split(vector)
    factors, _ = model.space.correlation_tril(partial)
    named = {f"correlation_{i}": factor for i, factor in enumerate(factors)}
    return {"fixed": fixed, "location": location, "scale": log_scale.exp(), "xi": xi, **named}


def log_jacobian(model, vector):
    _, _, log_scale, partial = model.space.split(vector)
    return log_scale.sum() + sum(model.space.correlation_tril(partial)[1])


@pytest.mark.parametrize("people", [None, torch.tensor([3, 1])])
def test_log_joint_of_the_trace_equals_torch(model, panel, generator, people):
    vector = 0.4 * torch.randn(model.space.size, generator=generator, dtype=torch.float64)
    part = panel if people is None else panel.take(people)
    xi = torch.randn(len(part), 3, generator=generator, dtype=torch.float64)
    program = poutine.condition(mixed_logit, sites_of(model, vector, xi))
    trace = poutine.trace(program).get_trace(model, panel, people)
    scale = len(panel) / len(part)
    local = model.log_joint(vector, xi, part) - model.log_prior(vector)
    expected = model.log_prior(vector) - log_jacobian(model, vector) + scale * local
    torch.testing.assert_close(trace.log_prob_sum(), expected, atol=1e-10, rtol=0)


def test_elbo_of_pyro_equals_torch_under_the_same_noise(model, panel, guide):
    traced = poutine.trace(guide).get_trace(panel)
    replayed = poutine.trace(poutine.replay(mixed_logit, traced)).get_trace(model, panel)
    vector, xi = traced.nodes["vector"]["value"], traced.nodes["xi"]["value"]
    population = model.space.constrain(vector)
    factor = guide.local_factor(population, panel)
    covariance = factor.covariance
    log_q = torch.distributions.MultivariateNormal(factor.mean, covariance).log_prob(xi)
    expected = model.log_joint(vector, xi, panel) - guide.population_factor().log_prob(vector)
    expected = expected - (log_q * panel.weights).sum()
    torch.testing.assert_close(replayed.log_prob_sum() - traced.log_prob_sum(), expected, atol=1e-9, rtol=0)


def test_scaled_batches_average_to_the_whole(model, panel, generator):
    """With fixed noise per person, the mean of the scaled batch log joints over a partition is the full one."""
    vector = 0.4 * torch.randn(model.space.size, generator=generator, dtype=torch.float64)
    xi = torch.randn(5, 3, generator=generator, dtype=torch.float64)

    def log_joint(people):
        program = poutine.condition(mixed_logit, sites_of(model, vector, xi[people]))
        return poutine.trace(program).get_trace(model, panel, people).log_prob_sum()

    parts = [log_joint(torch.tensor([i])) for i in range(5)]
    whole = log_joint(torch.arange(5))
    torch.testing.assert_close(torch.stack(parts).mean(), whole, atol=1e-10, rtol=0)


def test_prior_samples_run_through_the_program(model, panel):
    """At its own samples the program's log density is torch's."""
    trace = poutine.trace(mixed_logit).get_trace(model, panel)
    sites = {name: trace.nodes[name]["value"] for name in ("fixed", "location", "scale", "xi")}
    factors = [trace.nodes[f"correlation_{i}"]["value"] for i in range(len(model.space.correlated_blocks))]
    population = model.space.assemble(sites["fixed"], sites["location"], sites["scale"], factors)
    vector = model.space.unconstrain(population)
    expected = model.log_joint(vector, sites["xi"], panel) - log_jacobian(model, vector)
    torch.testing.assert_close(trace.log_prob_sum(), expected, atol=1e-8, rtol=0)
    assert trace.nodes["xi"]["value"].shape == (5, 3)


def test_encoder_starts_at_the_one_step_newton_solution(model, panel, generator):
    from mxlogit.integration.laplace import follow

    population = model.space.constrain(0.3 * torch.randn(model.space.size, generator=generator, dtype=torch.float64))
    factor = SetEncoder(3, model.mixing).double()(population, panel)
    newton = follow(torch.zeros(5, 3, dtype=torch.float64), population, panel, model.mixing)
    torch.testing.assert_close(factor.mean, newton.mean, atol=1e-9, rtol=0)
    torch.testing.assert_close(factor.covariance, newton.covariance, atol=1e-9, rtol=0)
    torch.testing.assert_close(factor.log_det, newton.log_det, atol=1e-9, rtol=0)


def rows(factor):
    return torch.cat([factor.mean, factor.covariance.flatten(1), factor.log_det[:, None]], 1)


def test_encoder_symmetries(model, data, panel, guide, generator):
    """Order of situations, of alternatives, of people, padding and batching do not matter."""
    from mxlogit.model.differences import difference_panels

    population = model.space.constrain(0.3 * torch.randn(model.space.size, generator=generator, dtype=torch.float64))
    encode = lambda panel: rows(guide.encoder(population, panel))  # noqa: E731
    expected = encode(panel)
    situations, alternatives = torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 2])
    people = torch.tensor([4, 2, 0, 1, 3])
    shuffled = {
        "attributes": data.attributes[:, situations],
        "available": data.available[:, situations],
        "observed": data.observed[:, situations],
        "chosen": data.chosen[:, situations],
    }
    relabelled = {
        "attributes": data.attributes[:, :, alternatives],
        "available": data.available[:, :, alternatives],
        "chosen": torch.argsort(alternatives)[data.chosen],
    }
    pad = lambda x: torch.cat([x, torch.zeros_like(x[:, :1])], 1)  # noqa: E731
    padded = {name: pad(getattr(data, name)) for name in ("attributes", "available", "observed", "chosen")}
    padded["available"][:, -1, 0] = True
    for change in (shuffled, relabelled, padded):
        torch.testing.assert_close(
            encode(difference_panels(rebuilt(data, **change)).dense()), expected, atol=1e-10, rtol=0
        )
    torch.testing.assert_close(encode(panel.take(people)), expected[people], atol=1e-10, rtol=0)
    split = torch.cat([encode(panel.take(slice(0, 2))), encode(panel.take(slice(2, 5)))])
    torch.testing.assert_close(split, expected, atol=1e-10, rtol=0)


def test_encoder_gradients_reach_every_weight(model, panel, guide):
    loss = pyro.infer.Trace_ELBO()(lambda data: mixed_logit(model, data), guide)
    loss(panel).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in guide.parameters())
    assert panel_log_prob(torch.zeros(5, 5).double(), panel).shape == (5,)


def test_polished_guide_trains_its_encoder_on_its_own_bound(model, panel, guide):
    """The final bound sends the encoder no gradient; its own bound does, and peaks at the exact posterior."""
    guide.newton_steps = 2
    loss = pyro.infer.Trace_ELBO()(lambda data: mixed_logit(model, data), guide)
    loss(panel).backward()
    assert all(p.grad is None for p in guide.encoder.parameters())
    population = model.space.constrain(guide.population_factor().mean.detach())
    guide.encoder_bound(population, panel).backward()
    assert all(bool((p.grad != 0).any()) for p in guide.encoder.parameters())


def test_encoder_bound_is_log_joint_less_log_density_of_torch(model, panel, guide):
    """One draw under known noise: log p(y, xi) - log q(xi) of all people, weighted."""
    population = model.space.constrain(guide.population_factor().mean.detach())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        found = guide.encoder_bound(population, panel)
        torch.manual_seed(7)
        factor = guide.encode(population, panel, None)
        xi = factor.mean + (factor.root @ torch.randn_like(factor.mean)[..., None])[..., 0]
        log_q = torch.distributions.MultivariateNormal(factor.mean, factor.covariance).log_prob(xi)
        log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(xi).sum(-1)
        log_prob = panel_log_prob(model.coefficients(population, xi), panel)
    expected = ((log_prob + log_prior - log_q) * panel.weights).sum()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_encoder_bound_is_below_the_marginal_likelihood(model, panel, guide):
    from mxlogit.integration.marginal import MarginalLikelihood
    from mxlogit.integration.settings import IntegrationSettings

    population = model.space.constrain(guide.population_factor().mean.detach())
    with torch.no_grad():
        bounds = torch.stack([guide.encoder_bound(population, panel) for _ in range(400)])
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, 1)
    value = marginal.score_pass(population, IntegrationSettings(4096, 8, 1, 30)).value.log_likelihood
    assert float(bounds.mean()) < value
    assert float(bounds.mean()) > value - 5.0


def test_published_encoder_whitens_its_factor(model, panel, generator):
    """Its factor of xi is that of latent tastes under the map eta = zeta + L xi."""
    encoder = PublishedEncoder(3, 3 * 6).double().eval()
    one = model.space.constrain(0.3 * torch.randn(model.space.size, generator=generator, dtype=torch.float64))
    other = model.space.constrain(0.3 * torch.randn(model.space.size, generator=generator, dtype=torch.float64))

    def latent(population):
        factor = encoder(population, panel)
        tril = population.scale_tril
        identity = factor.root @ factor.precision_tril.mT
        torch.testing.assert_close(identity, torch.eye(3).double().expand(5, 3, 3), atol=1e-9, rtol=0)
        return population.location + factor.mean @ tril.T, tril @ factor.covariance @ tril.T

    for a, b in zip(latent(one), latent(other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["gaussian", "diagonal", "blocks"])
def test_population_families_have_their_zeros(model, family):
    """Every free cell of the root moves q(theta); cells outside the blocks stay zero."""
    size, fixed, random = model.space.size, 2, 3
    root = torch.eye(size, dtype=torch.float64) + 0.1 * torch.ones(size, size, dtype=torch.float64).tril(-1)
    guide = AmortizedGuide(model, GaussianFactor(torch.zeros(size).double(), root), None, 2, family=family)
    with torch.no_grad():
        guide.below.fill_(0.3)
    covariance = (lambda q: q.tril @ q.tril.T)(guide.population_factor()).detach()
    linked = covariance.abs() > 1e-12
    expected = torch.eye(size, dtype=torch.bool)
    if family == "gaussian":
        expected[:] = True
    if family == "blocks":
        expected[:fixed, :fixed] = expected[fixed : fixed + random, fixed : fixed + random] = True
    assert torch.equal(linked, expected)
