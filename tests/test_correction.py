"""Adaptive importance sampling of the population posterior: its pieces against closed forms, and VI against quadrature."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from mxlogit import VI, ChoiceData, ConvergenceWarning, MixedLogit, Priors, SpecificationError
from mxlogit.draws.generators import make_generator
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.posterior import widen_to_possible
from mxlogit.inference.vi.student import StudentFactor
from mxlogit.inference.vi.weighted_draws import WeightedVectors, sample_posterior
from mxlogit.model.coordinates import RelativeCholeskyCoordinates
from mxlogit.model.parameters import ParameterSpace

TRIL = torch.tensor([[1.5, 0.0], [-0.4, 0.3]], dtype=torch.float64)
MEAN = torch.tensor([0.5, -2.0], dtype=torch.float64)


def weighted_share(found, where):
    return float(found.log_weights.exp()[where].sum())


def test_student_density_is_that_of_scipy():
    points = torch.randn(7, 2, generator=make_generator(1), dtype=torch.float64)
    expected = stats.multivariate_t(MEAN.numpy(), (TRIL @ TRIL.T).numpy(), df=6.0).logpdf(points.numpy())
    factor = StudentFactor(GaussianFactor(MEAN, TRIL), 6.0)
    np.testing.assert_allclose(factor.log_prob(points).numpy(), expected, rtol=1e-12)


def test_student_draws_have_the_t_distribution():
    factor = StudentFactor(GaussianFactor(MEAN, TRIL), 5.0)
    drawn = factor.gaussian.whitened(factor.sample(4_000, make_generator(2)))
    for column in drawn.T:
        assert stats.kstest(column.numpy(), stats.t(5.0).cdf).pvalue > 1e-3
    radius = (drawn.square().sum(-1) / 2.0).numpy()
    assert stats.kstest(radius, stats.f(2, 5.0).cdf).pvalue > 1e-3


def test_points_without_random_coefficients():
    space = ParameterSpace(("f", "g"), (), ())
    coordinates = RelativeCholeskyCoordinates(space, torch.empty(0, 0, dtype=torch.float64))
    vectors = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    assert torch.equal(coordinates.to_unconstrained(coordinates.from_unconstrained(vectors)), vectors)
    assert coordinates.log_jacobian(vectors).tolist() == [0.0]


@pytest.mark.parametrize("blocks", [((0, 1, 2, 3),), ((0, 2), (1,), (3,))])
def test_cholesky_points_and_back(blocks, generator):
    """There and back, the derivative against autograd, and the edge."""
    space = ParameterSpace(("f",), ("a", "b", "c", "d"), blocks)
    vectors = 0.5 * torch.randn(4, space.size, generator=generator, dtype=torch.float64)
    coordinates = RelativeCholeskyCoordinates(space, space.constrain(vectors[3]).scale_tril)
    points = coordinates.from_unconstrained(vectors)
    torch.testing.assert_close(coordinates.to_unconstrained(points), vectors)
    exact = [
        torch.linalg.slogdet(torch.autograd.functional.jacobian(coordinates.to_unconstrained, point))[1]
        for point in points
    ]
    constant = torch.stack(exact) - coordinates.log_jacobian(points)
    torch.testing.assert_close(constant, constant[:1].expand(4))
    nowhere = points.clone()
    nowhere[0, 5] = -0.1
    assert torch.isinf(coordinates.log_jacobian(nowhere)).tolist() == [True, False, False, False]


class Skewed:
    """exp(-x^2/2 - 3 (e^x - 1 - x)) times an exponential density of rate one on y > 0, of which y = 0 is the edge."""

    evaluations = 0

    def log_prob(self, points):
        self.evaluations += len(points)
        x, y = points.T
        return torch.where(y > 0, -0.5 * x**2 - 3.0 * (x.exp() - 1.0 - x) - y, -math.inf)


def test_skewed_density_with_an_edge():
    target = Skewed()
    start = GaussianFactor(torch.tensor([0.3, 1.5], dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    found = sample_posterior(target, start, 20_000, make_generator(3), 400.0)
    assert found.ess >= 400
    assert target.evaluations <= 2_000
    x, y = found.vectors.T
    grid = torch.linspace(-6, 4, 20_001, dtype=torch.float64)
    weight = (-0.5 * grid**2 - 3.0 * (grid.exp() - 1.0 - grid)).softmax(0)
    for at in (-1.0, -0.3, 0.2):
        assert weighted_share(found, x < at) == pytest.approx(float(weight[grid < at].sum()), abs=0.07)
    for at in (0.05, 0.5, 3.0):
        assert weighted_share(found, y < at) == pytest.approx(1.0 - math.exp(-at), abs=0.07)


def test_adaptation_finds_what_the_first_proposal_missed():
    """A normal ten sds away from a first proposal of a tenth of its size."""

    class Far:
        def log_prob(self, points):
            return -0.5 * (points - 5.0).square().sum(-1)

    start = GaussianFactor(torch.zeros(2, dtype=torch.float64), 0.5 * torch.eye(2, dtype=torch.float64))
    found = sample_posterior(Far(), start, 3_000, make_generator(4), 400.0)
    factor = found.gaussian(0.0)
    torch.testing.assert_close(factor.mean, torch.full((2,), 5.0, dtype=torch.float64), atol=0.2, rtol=0)
    torch.testing.assert_close(factor.tril.diagonal(), torch.ones(2, dtype=torch.float64), atol=0.15, rtol=0)


def test_a_target_without_support_is_told():
    class Nowhere:
        def log_prob(self, points):
            return torch.full((len(points),), -math.inf)

    start = GaussianFactor(MEAN, TRIL)
    assert sample_posterior(Nowhere(), start, 400, make_generator(5)) is None


def test_resampling_repeats_by_weight_in_random_order():
    weights = torch.tensor([0.5, 0.125, 0.375, 0.0], dtype=torch.float64)
    vectors = torch.arange(4, dtype=torch.float64)[:, None]
    found = WeightedVectors(vectors, weights.log(), 0.0)
    drawn = found.resample(800, make_generator(6))[:, 0]
    assert torch.bincount(drawn.long(), minlength=4).tolist() == [400, 100, 300, 0]
    assert float((drawn[:400] == 0).double().mean()) == pytest.approx(0.5, abs=0.1)


N, T, PRIORS = 40, 4, Priors(location_scale=2.0, sd_scale=0.5, standardize=False)


@pytest.fixture(scope="module")
def binary():
    """Binary choices between an attribute x and nothing, whose taste varies little."""
    generator = make_generator(7)
    x = torch.randn(N, T, generator=generator, dtype=torch.float64)
    taste = 0.8 + 0.3 * torch.randn(N, 1, generator=generator, dtype=torch.float64)
    chosen = (torch.rand(N, T, generator=generator, dtype=torch.float64) < torch.sigmoid(taste * x)).long()
    attributes = torch.stack([torch.zeros_like(x), x], -1)[..., None]
    return ChoiceData.from_arrays(attributes, chosen, names=["x"]), x.numpy(), chosen.numpy()


@pytest.fixture(scope="module")
def posterior_of_sd(binary):
    """Grid of the sd and its posterior distribution function, by quadrature over tastes and a grid of parameters."""
    _, x, chosen = binary
    sign = 2.0 * chosen - 1.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    location, sd = np.linspace(-0.5, 2.5, 61), np.linspace(0.005, 4.0, 400)
    log_posterior = np.empty((len(location), len(sd)))
    for j, size in enumerate(sd):
        taste = location[:, None] + size * nodes
        odds = np.exp(-(sign * x)[:, :, None, None] * taste)
        log_posterior[:, j] = np.log((1.0 / (1.0 + odds)).prod(1) @ (weights / weights.sum())).sum(0)
    log_posterior += stats.norm(0, 2.0).logpdf(location)[:, None] + stats.halfcauchy(scale=0.5).logpdf(sd)
    density = np.exp(log_posterior - log_posterior.max()).sum(0)
    return sd, density.cumsum() / density.sum()


def probability_errors(est, posterior_of_sd, probabilities=(0.05, 0.25, 0.5, 0.75, 0.95)):
    sd, cumulative = posterior_of_sd
    quantiles = est.posterior_samples()["sd.x"].quantile(list(probabilities)).to_numpy()
    return np.abs(np.interp(quantiles, sd, cumulative) - probabilities).max()


def fit_binary(data, **settings):
    est = MixedLogit(random=["x"], priors=PRIORS, method=VI(**settings), random_state=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return est.fit(data)


def test_vi_against_quadrature_where_the_sd_is_close_to_zero(binary, posterior_of_sd):
    data, *_ = binary
    corrected, gaussian = fit_binary(data), fit_binary(data, correct=False)
    assert corrected.diagnostics_["corrected"] is True
    assert gaussian.diagnostics_["corrected"] is False
    assert probability_errors(corrected, posterior_of_sd) < 0.05
    assert probability_errors(gaussian, posterior_of_sd) > 0.05
    assert corrected.diagnostics_["pareto_k"] < 0.7


def test_the_same_seed_gives_the_same_samples(binary):
    data, *_ = binary
    here, there = fit_binary(data), fit_binary(data)
    assert torch.equal(here.result_.samples.unconstrained, there.result_.samples.unconstrained)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"correct": "yes"}, "correct"),
        ({"correct": False, "population_family": "spline"}, "weighted draws"),
    ],
)
def test_wrong_settings(binary, options, words):
    data, *_ = binary
    with pytest.raises(SpecificationError, match=words):
        MixedLogit(random=["x"], method=VI(**options)).fit(data)


def test_spline_flow_fits_weighted_draws_of_a_skewed_density(generator):
    """A log gamma and a normal that leans on it: moments, skewness and density; half-normals leave nothing to gain."""
    from mxlogit.inference.vi.population_flow import fit_population_flow

    count, space = 2_000, ParameterSpace((), ("a",), ((0,),))
    first = torch.distributions.Gamma(torch.tensor(1.5).double(), torch.tensor(1.0).double())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        skewed = first.sample((count,)).log()
        noise = torch.randn(count, dtype=torch.float64)
    vectors = torch.stack([0.5 * skewed + noise, skewed], 1)
    even = torch.zeros(count, dtype=torch.float64).log_softmax(0)
    factor = fit_population_flow(WeightedVectors(vectors, even, 0.0), space, 1)
    # One draw so far out that it has no normal counterpart, of hardly any weight, changes nothing.
    far = torch.cat([vectors, torch.tensor([[0.0, 9.0]]).double()])
    log_weights = torch.cat([even, torch.tensor([-60.0]).double()])
    torch.testing.assert_close(
        fit_population_flow(WeightedVectors(far, log_weights, 0.0), space, 1).gaussian.tril, factor.gaussian.tril
    )
    samples = factor.sample(20_000, generator)
    z = (samples[:, 1] - samples[:, 1].mean()) / samples[:, 1].std()
    assert float(z.pow(3).mean()) < -0.5
    assert stats.wasserstein_distance(samples[:, 0], vectors[:, 0]) < 0.1
    assert stats.wasserstein_distance(samples[:, 1], skewed) < 0.1
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-12.0, 8.0, 300).double()] * 2, indexing="ij"), -1).view(-1, 2)

    total = float(factor.log_prob(grid).exp().nan_to_num().sum()) * (20.0 / 299.0) ** 2
    assert total == pytest.approx(1.0, abs=0.01)
    half_normal = torch.stack([noise, noise.roll(1).abs().log()], 1)
    normal = fit_population_flow(WeightedVectors(half_normal, even, 0.0), space, 1)
    assert normal.gain < 0.02


def test_coordinates_of_standard_deviations(generator):
    """There and back, the derivative, and a half-normal that becomes normal."""
    from mxlogit.inference.vi.population_flow import NormalScales

    coordinates = NormalScales(1, torch.tensor([0.5, 2.0]).double())
    vectors = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    points = coordinates.from_unconstrained(vectors)
    torch.testing.assert_close(coordinates.to_unconstrained(points), vectors)
    jacobians = torch.func.vmap(torch.func.jacfwd(lambda v: coordinates.from_unconstrained(v[None])[0]))(vectors[:20])
    torch.testing.assert_close(torch.linalg.slogdet(jacobians).logabsdet, coordinates.log_jacobian(vectors[:20]))
    half = torch.randn(4_000, generator=generator, dtype=torch.float64).abs().log()
    image = NormalScales(0, torch.ones(1).double()).from_unconstrained(half[:, None])[:, 0]
    assert stats.kstest(image.numpy(), "norm").pvalue > 1e-3


PEOPLE = 150


@pytest.fixture
def place(model, generator):
    """A population away from the origin, and the information of known tastes about relative moves from there."""
    vector = 0.4 * torch.randn(model.space.size, generator=generator, dtype=torch.float64)
    population = model.space.constrain(vector)
    fixed, diagonal = model.space.n_fixed, [i == j for i, j in zip(*model.space.triangle, strict=True)]
    complete = torch.tensor([1.0] * model.space.n_random + [2.0 if same else 1.0 for same in diagonal]).double()
    return vector, population, complete, fixed


def test_information_of_known_tastes(model, place, generator):
    """What the bound rests on: minus the mean second derivatives of the log density of latents, by autograd."""
    _, population, complete, fixed = place
    space = model.space
    xi = torch.randn(40_000, space.n_random, generator=generator, dtype=torch.float64)
    latent = population.location + xi @ population.scale_tril.mT

    def log_density(step):
        moved = space.move(population, torch.cat([step.new_zeros(fixed), step]))
        family = torch.distributions.MultivariateNormal(moved.location, scale_tril=moved.scale_tril)
        return family.log_prob(latent).mean()

    zero = torch.zeros(len(complete), dtype=torch.float64)
    information = -torch.autograd.functional.hessian(log_density, zero)
    torch.testing.assert_close(information, torch.diag(complete), atol=0.05, rtol=0)


def factor_of(model, place, shares):
    """A Gaussian whose variances along relative moves of random parameters are these shares of the least possible."""
    vector, population, complete, fixed = place
    prior = -model.log_prior_in_moves(population).hessian[fixed:, fixed:]
    least = torch.linalg.inv(PEOPLE * torch.diag(complete) + prior)
    size = torch.full((model.space.size,), 0.01, dtype=torch.float64)
    covariance = torch.diag(size)
    least_root = torch.linalg.cholesky(least)
    covariance[fixed:, fixed:] = least_root * shares @ least_root.T
    jacobian = model.space.relative_jacobian(population)
    factor = GaussianFactor(vector, torch.linalg.cholesky(jacobian @ covariance @ jacobian.T))
    return factor, jacobian, covariance, least_root


def test_a_gaussian_that_is_possible_stays(model, place):
    shares = torch.linspace(0.8, 30.0, len(place[2])).double()
    factor = factor_of(model, place, shares)[0]
    assert widen_to_possible(model, factor, PEOPLE) is factor


def test_a_gaussian_narrower_than_known_tastes_would_make_it_is_widened(model, place):
    """Four least possible sds along what was impossible; nothing else moves."""
    shares = torch.full((len(place[2]),), 5.0, dtype=torch.float64)
    shares[-1] = 1e-4
    factor, jacobian, before, least_root = factor_of(model, place, shares)
    found = widen_to_possible(model, factor, PEOPLE)
    inverse = torch.linalg.inv(jacobian)
    after = inverse @ found.tril @ found.tril.T @ inverse.T
    torch.testing.assert_close(found.mean, factor.mean, atol=0, rtol=0)
    assert bool((found.tril.triu(1) == 0).all() & (found.tril.diagonal() > 0).all())
    # The last axis of a lower-triangular root is the last move alone.
    expected = before.clone()
    expected[-1, -1] += (4.0**2 - 1e-4) * least_root[-1, -1] ** 2
    torch.testing.assert_close(after, expected, rtol=1e-8, atol=1e-12)
