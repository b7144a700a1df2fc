"""Trust-region ascent and the natural-gradient posterior on problems with known answers."""

import numpy as np
import pytest
import torch
from scipy import optimize

from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.population_check import check_gaussian
from mxlogit.inference.vi.posterior import fit_gaussian
from mxlogit.optim.trust_region import Evaluation, NewtonAscent, Reason, newton_decrement, solve_step

SIZE = 6


@pytest.fixture
def matrix(generator):
    root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(SIZE, dtype=torch.float64)


def test_one_newton_step_is_exact_on_a_quadratic(matrix, generator):
    gradient = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    scale = torch.rand(SIZE, generator=generator, dtype=torch.float64) + 0.5
    step = solve_step(Evaluation(0.0, gradient, matrix), scale, radius=1e6)
    torch.testing.assert_close(step.step, torch.linalg.solve(matrix, gradient), atol=1e-9, rtol=0)
    decrement = 0.5 * float(gradient @ torch.linalg.solve(matrix, gradient))
    assert newton_decrement(Evaluation(0.0, gradient, matrix), scale) == pytest.approx(decrement)
    assert step.predicted == pytest.approx(decrement)


def test_steps_stay_inside_the_radius_and_ascend_under_negative_curvature(matrix, generator):
    gradient = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    indefinite = matrix - 3.0 * torch.eye(SIZE, dtype=torch.float64)
    assert torch.linalg.eigvalsh(indefinite).min() < 0
    for radius in (0.01, 0.3, 2.0):
        step = solve_step(Evaluation(0.0, gradient, indefinite), torch.ones(SIZE).double(), radius)
        assert float(step.step.abs().max()) <= radius * (1 + 1e-9)
        assert float(step.step @ gradient) > 0
        assert step.at_boundary


def test_steps_use_the_radius_under_strongly_negative_curvature():
    """The damping beyond what makes the model concave is the least of a doubling sequence, whatever the curvature."""
    curvature = torch.diag(torch.tensor([-1e4, 2.0, 5.0], dtype=torch.float64))
    for radius in (0.01, 0.3, 2.0):
        step = solve_step(Evaluation(0.0, torch.ones(3).double(), curvature), torch.ones(3).double(), radius)
        assert 0.4 * radius < float(step.step.abs().max()) <= radius


@pytest.mark.parametrize("start", [-1.2, 3.0])
def test_ascent_finds_the_top_of_a_curved_valley(start):
    """The Rosenbrock function, by its exact Hessian."""

    def evaluate(point):
        function = lambda x: -(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)  # noqa: E731
        x = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(x), x)
        hessian = torch.autograd.functional.hessian(function, point)
        return Evaluation(float(function(point)), gradient, -hessian)

    rows = []
    ascent = NewtonAscent(evaluate, torch.add, torch.ones(2).double(), 1e-12, 200, 1.0, rows.append)
    end = ascent.run(torch.tensor([start, 1.0], dtype=torch.float64))
    assert end.reason is Reason.CONVERGED
    torch.testing.assert_close(end.point, torch.ones(2).double(), atol=1e-5, rtol=0)
    accepted = [row.value for row in rows if row.accepted]
    assert accepted == sorted(accepted)


def test_an_objective_that_only_lies_is_given_up():
    def evaluate(point):
        return Evaluation(-float(point.abs().sum() > 0), torch.ones(2).double(), torch.eye(2).double())

    ascent = NewtonAscent(evaluate, torch.add, torch.ones(2).double(), 1e-9, 100, 1.0, lambda row: None)
    assert ascent.run(torch.zeros(2).double()).reason is Reason.STALLED


@pytest.mark.parametrize("ripple", [0.0, 1e-4])
def test_an_ascent_by_a_curvature_that_misses_ripples_ends_where_it_is_slow(ripple):
    """Ripples of amplitude 1e-4 and period 6e-3 have a slope of .1 and a curvature of 100; the parabola has 1."""

    def evaluate(point):
        value = -0.5 * point.square().sum() + ripple * (1e3 * point).sin().sum()
        gradient = -point + 1e3 * ripple * (1e3 * point).cos()
        return Evaluation(float(value), gradient, torch.eye(2).double())

    start, rows = torch.tensor([3.0, -2.0], dtype=torch.float64), []
    ascent = NewtonAscent(evaluate, torch.add, torch.ones(2).double(), 1e-12, 200, 1.0, rows.append, ends_if_slow=True)
    end = ascent.run(start)
    assert end.reason is (Reason.SLOW if ripple else Reason.CONVERGED)
    assert len(rows) < 15
    # Within the ripples' slope of the top of the parabola.
    assert float(end.point.abs().max()) < 3e3 * ripple + 1e-9


class Target:
    """A log density of two coordinates with known moments: Gaussian, or skewed along the first axis."""

    def __init__(self, precision, centre, skew=0.0):
        self.precision, self.centre, self.skew, self.factor = precision, centre, skew, 1.0

    def gradients(self, vectors):
        shift = vectors - self.centre
        cubic = torch.zeros_like(vectors)
        cubic[:, 0] = self.skew * (shift[:, 0].exp() - 1.0)
        return -shift @ self.precision - cubic


def test_gaussian_target_is_found_exactly(matrix, generator):
    centre = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    start = GaussianFactor(centre + 0.3, torch.eye(SIZE).double() * 0.5)
    q = start
    for _ in range(12):
        q = fit_gaussian(Target(matrix, centre), q).factor
    torch.testing.assert_close(q.mean, centre, atol=1e-3, rtol=0)
    torch.testing.assert_close(q.tril @ q.tril.T, torch.linalg.inv(matrix), atol=2e-2, rtol=0)


def test_gaussian_posterior_has_even_weights(matrix, generator):
    q = GaussianFactor(torch.zeros(SIZE).double(), torch.linalg.cholesky(torch.linalg.inv(matrix)))
    check = check_gaussian(Target(matrix, q.mean), q, 80, generator)
    assert check.ess == pytest.approx(1.0, abs=1e-9)
    assert check.pareto_k < 0


def nearest_gaussian(skew):
    """Mean and sd of the Gaussian whose expected gradient is zero and expected curvature its own precision.

    For exp(-x^2/2 - skew (e^x - 1 - x)) both are closed forms, by E e^x = exp(m + s^2 / 2).
    """

    def conditions(values):
        mean, log_sd = values
        grown = np.exp(mean + 0.5 * np.exp(2.0 * log_sd))
        return mean + skew * (grown - 1.0), np.exp(-2.0 * log_sd) - 1.0 - skew * grown

    found = optimize.fsolve(conditions, [-0.1, -0.7], xtol=1e-12)
    return found[0], np.exp(found[1])


@pytest.mark.parametrize("skew", [0.5, 3.0])
def test_mean_and_not_mode_of_a_skewed_posterior(skew, generator):
    """The density exp(-x^2/2 - skew (e^x - 1 - x)), whose mode is 0, against the Gaussian by closed forms."""
    target = Target(torch.eye(2).double(), torch.zeros(2).double(), skew=skew)
    mean, sd = nearest_gaussian(skew)
    start = GaussianFactor(torch.zeros(2).double(), torch.eye(2).double())
    q = start
    for _ in range(4):
        q = fit_gaussian(target, q).factor
    root = q.tril @ q.tril.T
    assert mean < -0.05
    assert float(q.mean[0]) == pytest.approx(mean, abs=0.05 * sd)
    assert float(root[0, 0]) ** 0.5 == pytest.approx(sd, rel=0.05)
    assert float(q.mean[1]) == pytest.approx(0.0, abs=1e-3)
    assert float(root[1, 1]) == pytest.approx(1.0, abs=0.05)
    assert check_gaussian(target, q, 80, generator).ess > check_gaussian(target, start, 80, generator).ess


def test_gaussian_factor_density_is_that_of_torch(matrix, generator):
    q = GaussianFactor(torch.arange(SIZE).double(), torch.linalg.cholesky(matrix))
    vectors, log_q = q.sample_and_log_prob(10, generator)
    expected = torch.distributions.MultivariateNormal(q.mean, scale_tril=q.tril).log_prob(vectors)
    torch.testing.assert_close(log_q, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(vectors.mean(0), q.mean, atol=1e-10, rtol=0)
