"""Particle Gibbs: the estimated likelihood, its gradient, which draws are kept, and the exact posterior with few draws."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from grid_oracle import Choices, GridPosterior

from mxlogit import VI, MixedLogit, Priors
from mxlogit.draws.generators import make_generator
from mxlogit.inference.vi.correction import gaussian_of
from mxlogit.integration.laplace import drawn_log_prob
from mxlogit.sampling.hamiltonian_move import HamiltonianMove, accept
from mxlogit.sampling.particle_gibbs import DrawMoments, ParticleGibbs
from mxlogit.sampling.taste_draws import Whitening
from mxlogit.simulate import simulate_choices

PRIORS = Priors(location_scale=2.0, sd_scale=1.0)
CHAINS, DRAWS = 3, 16


def frame_of(people, *, ragged=False):
    random = {"z": (-0.3, 0.8, "lognormal"), "w": (0.2, 0.7, "normal")}
    frame = simulate_choices(people, 5, 3, fixed={"x": -0.7}, random=random, random_state=4)[0]
    if ragged:
        # Person i has one to five choices, and some sets have two alternatives.
        keep = (frame["situation"] <= 1 + frame["id"] % 5) | (frame["situation"] == 1)
        frame = frame[keep & ~((frame["alternative"] == "a3") & ~frame["choice"] & (frame["id"] % 3 == 0))]
    return frame


def fit(frame, fixed=("x",), random=None):
    random = {"z": "lognormal", "w": "normal"} if random is None else random
    method = VI(correct=False, flow=None, n_samples=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MixedLogit(fixed=list(fixed), random=random, priors=PRIORS, random_state=0, method=method).fit(frame)


def begin(est, chains=CHAINS, draws=DRAWS):
    """A sampler on the data of a fit, and vectors at which its chains begin."""
    gaussian = gaussian_of(est.result_.samples.unconstrained)
    sampler = ParticleGibbs(est._fitted.model, est._fitted.panel, chains, draws, 5, gaussian)
    return sampler, gaussian.sample(chains, make_generator(7))


@pytest.fixture(scope="module", params=["fixed", "random only", "ragged"])
def case(request):
    fixed = () if request.param == "random only" else ("x",)
    sampler, vectors = begin(fit(frame_of(30, ragged=request.param == "ragged"), fixed))
    state, _ = sampler.run(sampler.start(vectors), 0, adapt=False)
    return SimpleNamespace(sampler=sampler, state=state, model=sampler.model)


def log_prob(sampler, vector, latents):
    """Log P (n, s) of latents (k, n, s) at a vector by the model itself, in double precision."""
    model = sampler.model
    population, panel = model.space.constrain(vector), sampler.panel.to(torch.float64)
    tastes = model.mixing.tastes(latents.permute(1, 2, 0), population.location, population.scale).mT
    return drawn_log_prob(tastes, population, panel, model.mixing)


def estimate(case, chain, vector):
    """Log likelihood of one chain's draws at a vector, by its definition, as a function that has derivatives."""
    sampler, draws = case.sampler, case.state.draws
    whitened, whitening = draws.whitened[chain].double(), draws.whitening
    population = case.model.space.constrain(vector)
    latents = whitening.location[:, None, None] + torch.einsum("kl,lns->kns", whitening.tril, whitened)
    # The proposal's density from the log ratio at the chain's own fixed coefficients.
    own = case.state.vectors[chain]
    log_q = log_prob(sampler, own, latents) - draws.log_ratio[chain].double()
    normal = torch.distributions.MultivariateNormal(population.location, scale_tril=population.scale_tril)
    # Densities of latents, where the proposal's are those of whitened latents.
    log_p = normal.log_prob(latents.permute(1, 2, 0)) + whitening.tril.diagonal().log().sum()
    ratio = log_prob(sampler, vector, latents) + log_p - log_q
    return (ratio.logsumexp(1) - math.log(ratio.shape[1])).sum()


def test_log_likelihood_and_gradient_by_definition(case):
    """At fixed coefficients of the expansion both are exact."""
    draws, space = case.state.draws, case.model.space
    vectors = case.state.vectors + 0.1
    if draws.expansion is not None:
        vectors[:, : space.n_fixed] = draws.expansion.fixed
    value, gradient = draws.approximate(space, vectors)
    for chain, vector in enumerate(vectors):
        inputs = vector.clone().requires_grad_()
        exact = estimate(case, chain, inputs)
        (slope,) = torch.autograd.grad(exact, inputs)
        assert float(value[chain]) == pytest.approx(exact.item(), abs=2e-3)
        torch.testing.assert_close(gradient[chain], slope, rtol=2e-3, atol=2e-2)


def test_acceptance_is_of_the_exact_likelihood(case):
    """The error of the expansion is what lacks to the likelihood by definition."""
    draws, space, vectors = case.state.draws, case.model.space, case.state.vectors
    total = draws.approximate(space, vectors)[0] + draws.error_of_expansion(space, vectors)
    for chain, vector in enumerate(vectors):
        assert float(total[chain]) == pytest.approx(float(estimate(case, chain, vector)), abs=2e-3)


def test_held_tastes_are_among_the_draws_with_their_partners(case):
    """In their places, with the mirror image in the place of the antithetic partner, and with proper densities."""
    state, proposals = case.state, case.sampler.proposals
    held, quarter = state.held, DRAWS // 4
    place = held.place
    partner = place + torch.where(place // quarter % 2 == 0, quarter, -quarter)

    def at(places):
        index = places[:, None, :, None].expand(*state.draws.whitened.shape[:3], 1)
        return state.draws.whitened.gather(3, index)[..., 0]

    torch.testing.assert_close(at(place), held.whitened)
    centre = proposals.factor.mean.T.expand_as(held.whitened)
    from_prior = (place % quarter == quarter - 1)[:, None]
    torch.testing.assert_close(at(partner), torch.where(from_prior, 0.0, 2.0 * centre) - held.whitened)


def test_draws_are_new_and_differ_between_chains(case):
    again, _ = case.sampler.run(case.state, 1, adapt=False)
    same = again.draws.whitened == case.state.draws.whitened
    assert float(same.double().mean()) < 2.5 / DRAWS
    assert not torch.equal(again.draws.whitened[0], again.draws.whitened[1])


def test_tuning_changes_coordinates_only():
    """Held tastes are the same latents under the new reference, and the estimated likelihoods are those by definition."""
    sampler, vectors = begin(fit(frame_of(30), ("x",)))
    state, moments = sampler.start(vectors), DrawMoments()
    visited = []
    for iteration in range(3):
        state, _ = sampler.run(state, iteration, adapt=True, moments=moments)
        visited.append(state.vectors)
    tuned = sampler.tune(state, moments, torch.stack(visited))
    for before, after in zip(state.held.whitened, tuned.held.whitened, strict=True):
        torch.testing.assert_close(
            state.draws.whitening.latents(before), tuned.draws.whitening.latents(after), rtol=1e-4, atol=1e-4
        )
    there = SimpleNamespace(sampler=sampler, state=tuned, model=sampler.model)
    total = tuned.draws.approximate(sampler.model.space, tuned.vectors)[0]
    total = total + tuned.draws.error_of_expansion(sampler.model.space, tuned.vectors)
    assert float(total[0]) == pytest.approx(float(estimate(there, 0, tuned.vectors[0])), abs=2e-3)


def test_moments_of_weighted_draws():
    generator = torch.Generator().manual_seed(0)
    whitened = torch.randn(2, 3, 4, 5, generator=generator)
    weights = torch.rand(2, 4, 5, generator=generator).softmax(2)
    moments = DrawMoments()
    moments.add(whitened, weights)
    mean, covariance = moments.mean_and_covariance()
    for person in range(4):
        values = whitened[:, :, person].permute(0, 2, 1).reshape(-1, 3)
        found = np.cov(values.T, aweights=weights[:, person].flatten() / 2.0, bias=True)
        np.testing.assert_allclose(covariance[person], found, atol=1e-5)
        np.testing.assert_allclose(mean[person], (weights[:, person].flatten() / 2.0) @ values, atol=1e-6)


def test_rewhitening_is_a_change_of_coordinates():
    tril = torch.tensor([[0.5, 0.0], [0.3, 2.0]], dtype=torch.float64)
    first = Whitening(torch.tensor([1.0, -2.0], dtype=torch.float64), tril)
    second = Whitening(torch.tensor([0.0, 3.0], dtype=torch.float64), 3.0 * tril)
    points = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(second.latents(second.rewhiten(first, points)), first.latents(points))


def test_trajectories_are_reversible():
    """From its end, with the momentum turned round, a trajectory leads back: the noise is replaced by given numbers."""
    gaussian = gaussian_of(torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))

    def target(vectors):
        return -vectors.square().square().sum(1), -4.0 * vectors**3

    class Given:
        def __init__(self, momentum):
            self.momentum = momentum

        def normal(self, *shape, like):
            return self.momentum

        def uniform(self, *shape, like):
            return torch.full((len(like), *shape), 0.5, dtype=torch.float64)

    start, momentum = torch.tensor([[0.3, -0.6]], dtype=torch.float64), torch.tensor([[0.7, 0.2]], dtype=torch.float64)
    move = HamiltonianMove(gaussian, 0.2)
    there = move.propose(start, target, 0, Given(momentum))
    # The gain tells the kinetic energy at the end; the momentum itself from one step less is not kept, so search for it.
    energy = 0.5 * momentum.square().sum() - (there.gain - (target(there.vectors)[0] - target(start)[0]))
    angles = torch.linspace(0.0, 2.0 * math.pi, 20_001, dtype=torch.float64)
    back = (2.0 * energy).sqrt() * torch.stack([angles.cos(), angles.sin()], 1)
    ends = move.propose(there.vectors.expand(len(back), -1), target, 0, Given(back))
    distance = (ends.vectors - start).norm(dim=1)
    assert float(distance.min()) < 1e-3
    assert float(ends.gain[distance.argmin()] + there.gain) == pytest.approx(0.0, abs=1e-3)


def test_a_gain_that_is_not_a_number_is_rejected():
    noise = SimpleNamespace(uniform=lambda like: torch.full_like(like, 1e-9))
    accepted, share = accept(torch.tensor([math.nan, 1.0, -math.inf]).double(), noise)
    assert accepted.tolist() == [False, True, False]
    assert share.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.slow
def test_the_exact_posterior_with_four_draws():
    """Chains keep the exact posterior, however few draws a person has; more only shorten the way."""
    frame = simulate_choices(60, 4, 3, fixed={"x": -0.7}, random={"z": (-0.3, 0.8, "lognormal")}, random_state=4)[0]
    exact = GridPosterior(Choices.of_frame(frame), 2.0, 1.0, np.exp)
    sampler, vectors = begin(fit(frame, ("x",), {"z": "lognormal"}), 24, 4)
    state, kept = sampler.start(vectors), []
    for iteration in range(650):
        state, _ = sampler.run(state, iteration, adapt=iteration < 50)
        if iteration >= 50:
            kept.append(state.vectors)
    space = sampler.model.space
    reported = space.report(space.constrain(torch.stack(kept).flatten(0, 1))).numpy()
    error = torch.stack(kept).mean(0).std(0) / 24**0.5
    assert float((error / torch.stack(kept).flatten(0, 1).std(0)).max()) < 0.07
    assert (((reported.mean(0) - exact.mean) / exact.sd).abs() < 0.2).all()
    np.testing.assert_allclose(reported.std(0) / exact.sd, 1.0, atol=0.1)


def test_same_seed_same_states():
    est = fit(frame_of(20))
    found = []
    for _ in range(2):
        sampler, vectors = begin(est)
        state, _ = sampler.run(sampler.start(vectors), 0, adapt=True)
        found.append(state)
    assert torch.equal(found[0].vectors, found[1].vectors)
    assert torch.equal(found[0].draws.log_ratio, found[1].draws.log_ratio)
