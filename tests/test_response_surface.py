"""Surfaces through weighted draws, nets and samples: what takes noise out of corrected posteriors."""

import math
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
from quadrature import Quadrature
from scipy import stats

from mxlogit import VI, ConvergenceWarning, MixedLogit
from mxlogit.draws.generators import make_generator
from mxlogit.draws.importance import shifted_net
from mxlogit.execution.people import People
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.correction import correct_by_gradients
from mxlogit.inference.vi.population_check import check_gaussian
from mxlogit.inference.vi.response_surface import ResponseSurface, count_terms, points_of_surface
from mxlogit.inference.vi.weighted_draws import PosteriorSampler
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.path_draws import LatentDraws, PathDraws, WhitenedDraws
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.simulate import simulate_choices


def standard(size: int) -> GaussianFactor:
    return GaussianFactor(torch.zeros(size).double(), torch.eye(size).double())


def cubic(points):
    x, y = points.T
    return 0.3 - x + 0.5 * y**2 - 0.2 * x**2 * y + 0.1 * y**3 + 2.0 * x * y


def test_a_cubic_is_found_as_it_is():
    gaussian = GaussianFactor(torch.tensor([1.0, -2.0]).double(), torch.tensor([[2.0, 0.0], [0.5, 0.3]]).double())
    points = gaussian.at(torch.randn(60, 2, generator=make_generator(1), dtype=torch.float64))
    surface = ResponseSurface.fit(gaussian, points, cubic(points), torch.full((60,), 1.0 / 60.0).double())
    inside = gaussian.at(torch.tensor([[0.1, -0.4], [1.0, 1.0]]).double())
    torch.testing.assert_close(surface.at(inside), cubic(inside), atol=1e-9, rtol=0)
    assert surface.error < 1e-9
    assert float(surface.at(gaussian.at(torch.tensor([[9.0, 9.0]]).double()))) == -math.inf
    assert len(surface.coefficients) == count_terms(2) == 10


def test_error_is_that_of_points_left_out():
    points = torch.randn(40, 1, generator=make_generator(2), dtype=torch.float64)
    values, weights = points[:, 0].sin(), torch.rand(40, generator=make_generator(3), dtype=torch.float64)
    weights /= weights.sum()
    surface = ResponseSurface.fit(standard(1), points, values, weights)
    left_out = []
    for i in range(40):
        others = torch.arange(40) != i
        fitted = ResponseSurface.fit(standard(1), points[others], values[others], weights[others])
        # The point left out may lie farther out than the others.
        x = points[i] ** torch.arange(4)
        left_out.append(values[i] - x @ fitted.coefficients)
    assert surface.error == pytest.approx(float((weights @ torch.stack(left_out).square()).sqrt()), rel=1e-6)


def slopes_of_cubic(points):
    x, y = points.T
    return torch.stack([-1.0 - 0.4 * x * y + 2.0 * y, y - 0.2 * x**2 + 0.3 * y**2 + 2.0 * x], 1)


def test_a_cubic_is_found_from_its_gradients():
    gaussian = GaussianFactor(torch.tensor([1.0, -2.0]).double(), torch.tensor([[2.0, 0.0], [0.5, 0.3]]).double())
    points = gaussian.at(torch.randn(points_of_surface(2), 2, generator=make_generator(1), dtype=torch.float64))
    surface = ResponseSurface.fit_gradients(gaussian, points, slopes_of_cubic(points))
    inside = gaussian.at(torch.tensor([[0.1, -0.4], [1.0, 1.0], [0.0, 0.0]]).double())
    differences = surface.at(inside) - surface.at(inside[2:])
    torch.testing.assert_close(differences, cubic(inside) - cubic(inside[2:]), atol=1e-9, rtol=0)
    assert surface.error < 1e-9
    assert float(surface.at(gaussian.at(torch.tensor([[20.0, 9.0]]).double()))) == -math.inf


def test_error_of_gradients_is_that_of_points_left_out():
    points = torch.randn(20, 2, generator=make_generator(2), dtype=torch.float64)
    gradients = torch.stack([points[:, 0].cos() * points[:, 1], points[:, 0].sin()], 1)
    surface, errors = ResponseSurface.fit_gradients(standard(2), points, gradients), []
    for i in range(20):
        others = torch.arange(20) != i
        fitted = ResponseSurface.fit_gradients(standard(2), points[others], gradients[others])
        here = points[i].clone().requires_grad_()
        # The point left out may lie farther out than the others.
        replace(fitted, reach=math.inf).at(here[None]).sum().backward()
        errors.append(0.5 * (gradients[i] - here.grad) @ points[i])
    assert surface.error == pytest.approx(float(torch.stack(errors).square().mean().sqrt()), rel=1e-6)


class LogGamma:
    """Two independent logarithms of gamma variables: skewed, with moments in closed form."""

    factor = 1.0

    def __init__(self, shape: float) -> None:
        self.shape, self.evaluations = shape, 0

    def gradients(self, points):
        return self.shape - points.exp()

    def known(self, points):
        return self.shape * points.sum(1)

    def log_prob(self, points):
        self.evaluations += len(points)
        return self.known(points) - points.exp().sum(1)


@pytest.mark.parametrize("seed", range(6))
def test_standard_deviations_of_a_skewed_density_have_little_noise(seed):
    """256 draws alone err by five per cent; on the surface by one."""
    target = LogGamma(40.0)
    exact = float(torch.special.polygamma(1, torch.tensor(40.0))) ** 0.5
    start = GaussianFactor(torch.full((2,), math.log(40.0)).double(), 0.15 * torch.eye(2).double())
    sampler = PosteriorSampler(target, start, make_generator(seed))
    found = sampler.run(256, 1e9, 1)
    smooth = sampler.smoothed(found, target.known, 0.06)
    assert target.evaluations == 256
    weights = smooth.log_weights.exp()
    mean = weights @ smooth.vectors
    sd = (weights @ (smooth.vectors - mean).square()).sqrt()
    assert sd.tolist() == pytest.approx([exact, exact], rel=0.01)
    assert mean.tolist() == pytest.approx([float(torch.digamma(torch.tensor(40.0)))] * 2, abs=0.01 * exact)


@pytest.mark.parametrize("shape", [20.0, 40.0, 1_000.0])
def test_sixteen_gradients_correct_a_gaussian(shape):
    """Moments of skewed densities (-.23, -.16 and -.03) within one per cent; the Gaussian's mean is .11 sds off at most."""
    target, exact = LogGamma(shape), float(torch.special.polygamma(1, torch.tensor(shape))) ** 0.5
    start = GaussianFactor(torch.full((2,), math.log(shape)).double(), shape**-0.5 * torch.eye(2).double())
    check = check_gaussian(target, start, points_of_surface(2), make_generator(3))
    found = correct_by_gradients(check, start, 0).weighted
    mean = found.log_weights.exp() @ found.vectors
    sd = (found.log_weights.exp() @ (found.vectors - mean).square()).sqrt()
    assert mean.tolist() == pytest.approx([float(torch.digamma(torch.tensor(shape)))] * 2, abs=0.01 * exact)
    assert sd.tolist() == pytest.approx([exact, exact], rel=0.015)


def test_gradients_of_no_cubic_correct_nothing():
    class Cornered(LogGamma):
        def gradients(self, points):
            return -8.0 * points.sign()

    start = GaussianFactor(torch.zeros(2).double(), 0.2 * torch.eye(2).double())
    check = check_gaussian(Cornered(1.0), start, points_of_surface(2), make_generator(3))
    assert correct_by_gradients(check, start, 0) is None
    outside = replace(check, gradients=check.gradients * math.nan)
    assert correct_by_gradients(outside, start, 0) is None


def test_gradients_of_a_skewed_density_correct_nothing():
    """A skewness of -.53: on the cubic, means would be right and standard deviations 3 % wrong."""
    start = GaussianFactor(torch.full((2,), math.log(4.0)).double(), 0.5 * torch.eye(2).double())
    check = check_gaussian(LogGamma(4.0), start, points_of_surface(2), make_generator(3))
    assert correct_by_gradients(check, start, 0) is None


@pytest.mark.parametrize("shape", [2.0, 6.0])
def test_draws_that_are_wanting_come_in_one_block(shape):
    """Stages of different sizes are weighed as one mixture: standard deviations within one per cent, twelve seeds."""
    target, exact = LogGamma(shape), float(torch.special.polygamma(1, torch.tensor(shape))) ** 0.5
    start = GaussianFactor(torch.full((2,), math.log(shape)).double(), 0.8 * exact * torch.eye(2).double())
    errors, before = [], target.evaluations
    for seed in range(12):
        found = PosteriorSampler(target, start, make_generator(seed)).run(4_096, 1_000.0)
        assert found.ess > 1_000.0 or len(found.vectors) > 2_048
        errors.append(found.gaussian(0.0).tril.norm(dim=1) / exact - 1.0)
    noise = float(torch.stack(errors).square().mean().sqrt())
    # Two of 256, and one of 512 or 1,024.
    assert 1_024 <= (target.evaluations - before) / 12 <= 2_048
    assert noise < 0.009, noise


def test_a_density_that_is_no_cubic_has_no_surface():
    class Cornered(LogGamma):
        def log_prob(self, points):
            return -8.0 * points.abs().sum(1)

        def known(self, points):
            return torch.zeros(len(points)).double()

    sampler = PosteriorSampler(
        Cornered(1.0), GaussianFactor(torch.zeros(2).double(), 0.2 * torch.eye(2).double()), make_generator(1)
    )
    assert sampler.smoothed(sampler.run(512, 1e9, 2), Cornered(1.0).known, 0.2) is None


def test_samples_of_a_gaussian_have_its_moments():
    """Random ones have errors of two per cent, since antithetic pairs are one sample of a variance."""
    factor = GaussianFactor(torch.arange(6).double(), torch.randn(6, 6, generator=make_generator(4)).double().tril())
    samples = factor.sample(4_000, make_generator(5))
    sd = (factor.tril @ factor.tril.T).diagonal().sqrt()
    assert ((samples.mean(0) - factor.mean).abs() / sd < 0.003).all()
    assert (samples.std(0) / sd).tolist() == pytest.approx([1.0] * 6, abs=0.003)
    # In random order: neighbours have nothing to do with each other.
    whitened = (samples - factor.mean) / sd
    assert float((whitened[:-1] * whitened[1:]).mean(0).abs().amax()) < 0.06


def test_samples_of_more_parameters_than_nets_have(monkeypatch):
    monkeypatch.setattr(torch.quasirandom.SobolEngine, "MAXDIM", 3)
    factor = GaussianFactor(torch.arange(4).double(), torch.eye(4).double())
    samples = factor.sample(4_000, make_generator(6))
    assert samples.mean(0).tolist() == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=1e-9)
    assert samples.std(0).tolist() == pytest.approx([1.0] * 4, abs=0.06)


def test_every_person_has_a_net():
    """Each quarter of each axis holds a quarter of a person's points, and no two people have the same."""
    net = shifted_net((1, 2), torch.tensor([5, 9, 5]), 3, 64)
    assert torch.equal(net[0], net[2])
    assert not torch.equal(net[0], net[1])
    assert (torch.histc(net[1][0], 4, 0.0, 1.0) == 16).all()
    for axes in ((0, 1), (1, 2)):
        cells = (net[1][list(axes)] * 4).long()
        assert (torch.bincount(4 * cells[0] + cells[1], minlength=16) > 0).all()
    many = shifted_net((3,), torch.arange(4_000), 1, 1)[:, 0, 0]
    assert stats.kstest(many.numpy(), "uniform").pvalue > 0.001


def fitted(frame, **options) -> MixedLogit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MixedLogit(method=VI(correct=False), random_state=0, **options).fit(frame)


@pytest.fixture(scope="module")
def one_choice():
    frame, _ = simulate_choices(800, 1, 3, random={"z": (0.5, 1.0), "w": (-0.5, 1.0)}, random_state=8)
    est = fitted(frame, random=["z", "w"])
    model: MixedLogitModel = est._fitted.model
    marginal = MarginalLikelihood(People.gather(est._fitted.panel), model.space, model.mixing, 3)
    return model, marginal, est.result_.center, Quadrature(frame, ["z", "w"], nodes=40)


def quadrature_point(population):
    sd = population.scale
    correlation = float((population.scale_tril @ population.scale_tril.T)[1, 0] / sd.prod())
    return [*population.location.tolist(), *sd.log().tolist(), math.atanh(correlation)]


def kind(name, model, marginal, anchor, key, draws=128):
    """Draws of one kind of all people, in the order of people."""
    integration = IntegrationSettings(draws, 8, key, 4)
    for proposal in marginal.propose(anchor, integration, remember=False):
        made = {
            "population": lambda p: WhitenedDraws.from_population(marginal, p, key),
            "modes": lambda p: WhitenedDraws.around_modes(marginal, p),
            "tastes": lambda p: LatentDraws.around_modes(model, marginal, p, anchor.to(marginal.people.like)),
        }
        yield made[name](proposal)


def differences(chunks, model, marginal, anchor, vectors):
    """Log likelihoods less the anchor's, and their variances."""
    here, found = anchor.to(marginal.people.like), []
    for chunk in chunks:
        first = chunk.halves(model, here)
        apart = first.diff(dim=1)[:, 0]
        rows = []
        for vector in vectors:
            halves = chunk.halves(model, model.space.constrain(vector).to(marginal.people.like))
            change = chunk.panel.weights.double() @ (chunk.log_mean(halves) - chunk.log_mean(first))
            rows.append(torch.stack([change, chunk.noise(halves, apart)]))
        found.append(torch.stack(rows))
    return torch.stack(found).sum(0).T


def test_nets_from_the_population_are_quadrature_with_known_noise(one_choice):
    """Differences of the log likelihood between populations, with 128 draws a person, and what is said of them."""
    model, marginal, anchor, quadrature = one_choice
    vector = model.space.unconstrain(anchor)
    vectors = vector + torch.tensor([[0.1, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.3, -0.2, 0.0], [0.0, 0.1, 0.0, 0.2, 0.3]])
    first, *others = (quadrature.log_likelihood(quadrature_point(model.space.constrain(v))) for v in (vector, *vectors))
    exact = torch.tensor(others, dtype=torch.float64) - first
    found = [
        differences(kind("population", model, marginal, anchor, key), model, marginal, anchor, vectors)
        for key in range(6)
    ]
    error = float(torch.stack([value - exact for value, _ in found]).square().mean() ** 0.5)
    claimed = float(torch.stack([variance for _, variance in found]).mean() ** 0.5)
    # A thousand random draws around modes have as much.
    assert error < 0.2
    assert 0.5 < claimed / error < 2.0


@pytest.mark.parametrize("name", ["population", "modes", "tastes"])
@pytest.mark.parametrize("family", ["normal", "lognormal"])
def test_gradients_of_every_kind_are_those_of_the_values(name, family):
    frame, _ = simulate_choices(60, 4, 3, fixed={"x": 0.4}, random={"z": (-0.5, 0.5), "w": (-0.5, 1.0)}, random_state=3)
    est = fitted(frame, fixed=["x"], random={"z": family, "w": "normal"}, dtype="float64")
    model, anchor = est._fitted.model, est.result_.center
    marginal = MarginalLikelihood(People.gather(est._fitted.panel), model.space, model.mixing, 3)
    chunks = list(kind(name, model, marginal, anchor, 1, 16))
    space, vector = model.space, model.space.unconstrain(anchor) + 0.05

    def value(v):
        return sum(c.panel.weights @ c.log_mean(c.halves(model, space.constrain(v))) for c in chunks)

    inputs = vector.clone().requires_grad_()
    population = space.constrain(inputs)
    rows, columns = space.triangle
    moves = torch.cat([population.fixed, population.location, population.scale_tril[rows, columns]])
    pull = sum(c.pull(model, space.constrain(vector)) for c in chunks)
    (gradient,) = torch.autograd.grad(moves @ pull, inputs)
    for axis in torch.eye(space.size).double():
        numeric = (value(vector + 1e-5 * axis) - value(vector - 1e-5 * axis)) / 2e-5
        assert float(gradient @ axis) == pytest.approx(float(numeric), rel=1e-6, abs=2e-5)


def test_of_three_kinds_of_draws_each_person_gets_the_one_with_least_noise():
    """Whitened tastes of who chose twice, tastes of who chose a thousand times: either alone would not do."""
    random = {"x": (-1.0, 0.6), "z": (0.5, 0.7)}
    few, many = (simulate_choices(*size, 3, random=random, random_state=1)[0] for size in ((60, 2), (4, 1_000)))
    frame = pd.concat([few, many.assign(id=many["id"] + 100)], ignore_index=True)
    est = fitted(frame, random=list(random))
    model, anchor = est._fitted.model, est.result_.center
    marginal = MarginalLikelihood(People.gather(est._fitted.panel), model.space, model.mixing, 3)
    vector = model.space.unconstrain(anchor)
    near = vector + 0.2 * torch.randn(8, 5, generator=make_generator(7), dtype=torch.float64)
    integration = IntegrationSettings(128, 8, 1, 4, pathwise=True)
    together = float(PathDraws(model, marginal, anchor, integration, near).log_likelihood(near)[1].median())
    alone = {
        name: float(differences(kind(name, model, marginal, anchor, 1), model, marginal, anchor, near)[1].median())
        for name in ("population", "modes", "tastes")
    }
    assert together < 0.5 * min(alone.values())
    assert together < 0.05
