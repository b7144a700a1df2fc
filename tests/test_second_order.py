"""Hessian-vector products, conjugate gradients, Gaussian identities, fixed draws, and the engines made of them."""

import math

import numpy as np
import pytest
import torch
from grid_oracle import Choices, GridPosterior, probability_table

from mxlogit import DADVI, SVI, VI, MixedLogit, Priors, SpecificationError, Training
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.encoder import Encoder, SetEncoder
from mxlogit.guide.flows import LocalFlow
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.svi.fixed_draws import linear_response
from mxlogit.inference.svi.guide_objective import GuideObjective, ObjectiveSettings
from mxlogit.optim.adam import Adam
from mxlogit.optim.curvature import Smooth, steihaug
from mxlogit.optim.identities import derivatives, natural_update, second_derivative
from mxlogit.optim.stochastic import Batches, Progress, adam, apply_inverse, hessian_free, improves, lbfgs, settled
from mxlogit.simulate import simulate_choices

SIZE = 6


@pytest.fixture
def matrix(generator):
    root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(SIZE, dtype=torch.float64)


@pytest.fixture(params=["population", "flow", "encoder and flow"])
def objective(request, model, panel):
    """The bound of a guide: of q(theta) alone, with a flow, and with all weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        start = GaussianFactor(
            torch.zeros(model.space.size, dtype=torch.float64), 0.3 * torch.eye(model.space.size, dtype=torch.float64)
        )
        encoder = SetEncoder(3, model.mixing, Encoder(width=4)).double() if "encoder" in request.param else None
        guide = AmortizedGuide(model, start, encoder, 0 if encoder else 10)
        if "flow" in request.param:
            guide.flow = LocalFlow(3, "spline", 1, width=4).double()
        for name, parameter in guide.named_parameters():
            if "." in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return GuideObjective(guide, panel, ObjectiveSettings("iwae", 8, 4, 100), 1)


def test_products_equal_the_dense_hessian_and_differences(objective, generator):
    vector = objective.vector()
    smooth = objective.freeze(3, vector)
    multiply = smooth.curvature(vector)
    v, w = (torch.randn(len(vector), generator=generator, dtype=torch.float64) for _ in range(2))
    of_v, of_w = multiply(v), multiply(w)
    scale = float(of_v.norm())
    torch.testing.assert_close(smooth.product(vector, v), of_v, atol=1e-10 * scale, rtol=0)
    assert float(w @ of_v) == pytest.approx(float(v @ of_w), abs=1e-9 * scale)
    torch.testing.assert_close(multiply(2.0 * v - w), 2.0 * of_v - of_w, atol=1e-9 * scale, rtol=0)
    if objective.guide.flow is not None:
        # Polish and context stop gradients, so differences see more than derivatives do: move the flow's weights only.
        names = [(name, p.numel()) for name, p in objective.guide.named_parameters()]
        v = v * torch.cat([torch.full((count,), float(name.startswith("flow"))) for name, count in names]).double()
        of_v = multiply(v)
    step = 1e-5
    differences = (smooth.gradient(vector + step * v)[1] - smooth.gradient(vector - step * v)[1]) / (2.0 * step)
    torch.testing.assert_close(differences, of_v, atol=1e-6 * scale, rtol=1e-5)


def test_products_equal_autograd_hessian_of_the_population_bound(model, panel, generator):
    start = GaussianFactor(torch.zeros(model.space.size).double(), 0.3 * torch.eye(model.space.size).double())
    guide = AmortizedGuide(model, start, None, 10, family="diagonal")
    objective = GuideObjective(guide, panel, ObjectiveSettings("iwae", 8, 4, 100), 1)
    vector = objective.vector()
    smooth = objective.freeze(3, vector)
    dense = torch.autograd.functional.hessian(lambda x: smooth.function(x).mean(), vector)
    torch.testing.assert_close(smooth.hessian(vector), dense, atol=1e-10 * float(dense.abs().max()), rtol=0)


def test_same_key_same_noise_and_other_keys_other(objective):
    vector = objective.vector()
    values = [objective.freeze(key, vector).values(vector) for key in (3, 3, 4)]
    torch.testing.assert_close(values[0], values[1], atol=0, rtol=0)
    assert not torch.allclose(values[0], values[2])
    assert objective.freeze(3, vector).gradient(vector)[0] == pytest.approx(float(values[0].mean()), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("bound", "gradient"), [("elbo", "stl"), ("iwae", "dreg")])
def test_gradient_estimators_of_guides_agree(objective, bound, gradient):
    """Sticking the landing and doubly reparameterised gradients: the same means over noise, and the same values."""
    vector, found = objective.vector(), {}
    for kind in ("standard", gradient):
        settings = ObjectiveSettings(bound, 4, 2, 100, gradient=kind, noise="independent")
        each = GuideObjective(objective.guide, objective.panel, settings, 1)
        found[kind] = [each.freeze(key, vector).gradient(vector) for key in range(400)]
    values = {kind: [value for value, _ in rows] for kind, rows in found.items()}
    assert values["standard"] == pytest.approx(values[gradient], rel=1e-6)
    first, second = (torch.stack([row for _, row in rows]) for rows in found.values())
    moved = first.std(0) > 1e-12
    difference = (first - second)[:, moved]
    error = difference.std(0) / len(difference) ** 0.5 + 1e-12
    z = difference.mean(0) / error
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) < 2.0


def test_sobol_noise_has_less_variance(objective):
    vector, spread = objective.vector(), {}
    for noise in ("independent", "sobol"):
        settings = ObjectiveSettings("iwae", 32, 2, 100, noise=noise)
        each = GuideObjective(objective.guide, objective.panel, settings, 1)
        half = each._noise(torch.Generator().manual_seed(1))
        each._noise = lambda generator, half=half: half
        values = torch.tensor([float(each.freeze(key, vector).values(vector).mean()) for key in range(40)])
        spread[noise] = float(values.std())
    assert spread["sobol"] < 0.8 * spread["independent"]


def test_bound_of_the_population_tends_to_the_marginal_posterior(model, panel):
    """With a q(theta) that is almost a point, the bound is the log posterior there plus its own entropy."""
    from mxlogit.execution.people import People
    from mxlogit.integration.marginal import MarginalLikelihood
    from mxlogit.integration.settings import IntegrationSettings

    mean = torch.linspace(-0.3, 0.3, model.space.size, dtype=torch.float64)
    tiny = GaussianFactor(mean, 1e-6 * torch.eye(len(mean), dtype=torch.float64))
    guide = AmortizedGuide(model, tiny, None, 30)
    objective = GuideObjective(guide, panel, ObjectiveSettings("iwae", 8_192, 2, 100), 1)
    bound = -float(objective.freeze(1, objective.vector()).values(objective.vector()).mean())
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, 1)
    population = model.space.constrain(mean)
    expected = marginal.value_pass(population, IntegrationSettings(8_192, 8, 1, 30)).log_likelihood + float(
        model.log_prior(mean)
    )
    entropy = len(mean) * (0.5 * math.log(2.0 * math.pi) + math.log(1e-6))
    assert bound - entropy - 0.5 * len(mean) == pytest.approx(expected, abs=0.1)


def test_cg_solves_a_positive_system(matrix, generator):
    gradient = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    found = steihaug(lambda v: matrix @ v, gradient, math.inf, most=50, tolerance=1e-12)
    torch.testing.assert_close(found.step, -torch.linalg.solve(matrix, gradient), atol=1e-8, rtol=0)
    assert found.predicted == pytest.approx(0.5 * float(gradient @ torch.linalg.solve(matrix, gradient)))
    warm = steihaug(lambda v: matrix @ v, gradient, math.inf, most=50, tolerance=1e-12, start=found.step)
    assert warm.iterations == 0
    bad = steihaug(lambda v: matrix @ v, gradient, math.inf, most=50, tolerance=1e-12, start=-found.step)
    torch.testing.assert_close(bad.step, found.step, atol=1e-8, rtol=0)


@pytest.mark.parametrize("radius", [0.01, 0.5, 3.0])
def test_steihaug_on_an_indefinite_problem(matrix, generator, radius):
    """A planted negative eigenvalue is followed to the boundary; the model decreases."""
    values, vectors = torch.linalg.eigh(matrix)
    values[0] = -2.0
    indefinite = vectors @ torch.diag(values) @ vectors.T
    gradient = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    found = steihaug(lambda v: indefinite @ v, gradient, radius, most=50, tolerance=1e-12)
    assert found.at_boundary
    assert float(found.step.norm()) == pytest.approx(radius)
    model = float(gradient @ found.step + 0.5 * found.step @ indefinite @ found.step)
    assert found.predicted == pytest.approx(-model)
    cauchy = -radius * gradient / gradient.norm()
    assert model <= float(gradient @ cauchy + 0.5 * cauchy @ indefinite @ cauchy) + 1e-12
    assert model < 0.0


class Noisy:
    """A function whose frozen versions are shifted by noise of their key."""

    def __init__(self, function, noise, size=2):
        self.function, self.noise, self.size, self.frozen = function, noise, size, []

    def freeze(self, key, around):
        self.frozen.append(key)
        shift = self.noise * torch.randn(
            8, self.size, generator=torch.Generator().manual_seed(key), dtype=torch.float64
        )
        return Smooth(lambda x: torch.stack([self.function(x - s) for s in shift]))


def rosenbrock(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


MINIMISERS = {
    "trust": lambda o, *a: hessian_free([Batches(o)], *a),
    "damping": lambda o, *a: hessian_free([Batches(o)], *a, safeguard="damping"),
    "lbfgs": lambda *a: lbfgs(*a),
    "lbfgs hvp": lambda *a: lbfgs(*a, pairs="hvp"),
}


@pytest.mark.parametrize("name", list(MINIMISERS))
def test_minimisers_cross_a_curved_valley_where_hessians_are_indefinite(name):
    start, rows = torch.tensor([-1.2, 1.0], dtype=torch.float64), []
    tell = lambda *row: rows.append(row) or True  # noqa: E731
    end = MINIMISERS[name](Noisy(rosenbrock, 0.0), start, 150, Progress(tell))
    torch.testing.assert_close(end, torch.ones(2).double(), atol=1e-3, rtol=0)
    gradients = [row[2] for row in rows]
    assert gradients == sorted(gradients)


class Slopes:
    """Nothing but noise: slopes that every key draws anew, and a little curvature."""

    def __init__(self):
        self.frozen = []

    def freeze(self, key, around):
        self.frozen.append(key)
        generator = torch.Generator().manual_seed(key)
        slopes = torch.randn(8, 2, generator=generator, dtype=torch.float64)
        return Smooth(lambda x: slopes @ x + 0.05 * x.square().sum())


def test_steps_that_fit_their_own_noise_are_rejected_and_leave_no_trace():
    """A step's own draws promise a decrease every time; independent ones see none, and the point stays."""
    objective, rows = Slopes(), []
    point = torch.zeros(2, dtype=torch.float64)
    progress = Progress(lambda *row: rows.append(row) or True)
    end = hessian_free([Batches(objective)], point, 12, progress)
    assert objective.frozen == list(range(24))
    assert progress.rejected >= 10
    kept = sum(row[3] for row in rows)
    assert kept == 12 - progress.rejected
    if kept == 0:
        torch.testing.assert_close(end, point, atol=0, rtol=0)
    promised = objective.freeze(0, point)
    assert float(promised.gradient(point)[1].norm()) > 0.1


def test_rejected_steps_call_for_more_people():
    """One batch after the other, each with its own version for curvature; the last one stays."""
    sizes = [Batches(Slopes(), Slopes(), cost, 0.1 * cost) for cost in (1.0, 2.0, 4.0)]
    rows: list[tuple] = []
    hessian_free(sizes, torch.zeros(2, dtype=torch.float64), 12, Progress(lambda *row: rows.append(row) or True))
    rejected = [place for place, row in enumerate(rows) if not row[3]]
    last = [rejected[0], rejected[1], len(rows) - 1]
    used = [sorted({key // 2 for key in batch.objective.frozen}) for batch in sizes]
    assert [places[-1] for places in used] == last
    assert [place for places in used for place in places] == list(range(12))
    assert [sorted({key // 2 for key in batch.curvature.frozen}) for batch in sizes] == used
    work = torch.tensor([row[2] for row in rows]).diff(prepend=torch.zeros(1))
    assert float(work[last[1] + 1 :].min()) > 4.0 * (1.0 + 1.0 / 3.0) > 4.0 / 3.0 * float(work[0])


class Tilted:
    """A bowl of 20 dimensions that every key tilts: its own lowest point lies at a distance of 4.5 from zero."""

    def __init__(self, first):
        self.first = first

    def freeze(self, key, around):
        tilt = torch.randn(20, generator=torch.Generator().manual_seed(self.first + key), dtype=torch.float64)
        return Smooth(lambda x: (0.5 * x.square().sum() + tilt @ x).reshape(1))


def test_ends_of_noisy_steps_are_averaged():
    start = torch.full((20,), 10.0, dtype=torch.float64)
    ends = [hessian_free([Batches(Tilted(1_000 * n))], start, 60, Progress(lambda *row: True)) for n in range(10)]
    # 3.9 without.
    assert float(torch.stack(ends).norm(dim=1).median()) < 1.3


def test_pairs_of_points_have_people_of_their_own(model, panel):
    """Batches are in proportion to their pairs, nobody is in two, and the bound is that of all people on average."""
    size = model.space.size
    start = GaussianFactor(torch.zeros(size).double(), 0.1 * torch.eye(size).double())
    guide = AmortizedGuide(model, start, None, 10)
    panel = panel.take(torch.arange(len(panel)).repeat(12))
    batch = len(panel) // 4
    dealt = GuideObjective(guide, panel, ObjectiveSettings("marginal", 8, 2 * size, batch), 1)
    places = dealt._deal(torch.Generator().manual_seed(1))
    assert dealt.batches() == len(places) == 4
    together = torch.cat(places)
    assert len(together) == len(together.unique()) == 4 * batch
    pairs = torch.tensor([sum(p * 4 // size == b for p in range(size)) for b in range(4)])
    torch.testing.assert_close(torch.tensor([len(p) for p in places]) / (4 * batch), pairs / size, atol=0.02, rtol=0)
    whole = GuideObjective(guide, panel, ObjectiveSettings("marginal", 8, 2 * size, len(panel)), 1)
    assert whole.batches() == 1
    vector, found = whole.vector(), []
    for objective in (dealt, whole):
        rows = [objective.freeze(key, vector).gradient(vector) for key in range(24)]
        found.append((torch.tensor([row[0] for row in rows]), torch.stack([row[1] for row in rows])))
    (few, of_few), (all_, of_all) = found
    error = float((few.var() + all_.var()).sqrt()) / 24**0.5
    assert float(few.mean() - all_.mean()) == pytest.approx(0.0, abs=4.0 * error)
    z = (of_few.mean(0) - of_all.mean(0)) / ((of_few.var(0) + of_all.var(0)) / 24 + 1e-12).sqrt()
    assert float(z.abs().max()) < 4.5


def test_acceptance_needs_a_standard_error():
    before = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert improves(before, before - 0.1)
    assert not improves(before, before + torch.tensor([0.5, -0.6, 0.5, -0.6]).double())
    assert not improves(before, before * math.nan)


def test_pairs_of_lbfgs_compare_the_same_draws():
    """Two gradients under one key; with other draws at the other end the pair would carry their difference."""
    objective = Noisy(lambda x: (x * torch.tensor([1.0, 30.0]).double()).square().sum(), 0.3)
    end = lbfgs(objective, torch.tensor([5.0, 5.0]).double(), 30, Progress(lambda *row: True))
    assert len(objective.frozen) == len(set(objective.frozen))
    assert float(end.norm()) < 0.5


def test_two_loops_equal_the_dense_update(generator):
    steps = [torch.randn(SIZE, generator=generator, dtype=torch.float64) for _ in range(3)]
    matrix = torch.diag(torch.arange(1.0, SIZE + 1.0, dtype=torch.float64))
    memory = [(s, matrix @ s) for s in steps]
    gradient = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    step, change = memory[-1]
    inverse = torch.eye(SIZE).double() * (step @ change) / change.square().sum()
    for step, change in memory:
        rho, identity = 1.0 / (step @ change), torch.eye(SIZE).double()
        left = identity - rho * torch.outer(step, change)
        inverse = left @ inverse @ left.T + rho * torch.outer(step, step)
    torch.testing.assert_close(apply_inverse(memory, gradient), inverse @ gradient, atol=1e-10, rtol=0)


def moved_by(optimizers, dtype, generator):
    """Parameters after 20 steps at changing rates; the second has a gradient in every other step only."""
    parameters = [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in (3, (2, 4))]
    step, zero_grad = optimizers(parameters)
    for number in range(20):
        zero_grad()
        for parameter in parameters[: 1 + number % 2]:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=dtype)
        step(0.1 / (1 + number))
    return [parameter.detach() for parameter in parameters]


def test_adam_moves_by_the_published_rule(generator):
    """Algorithm 1 of Kingma and Ba (2015)."""

    def by_hand(parameters):
        state = [[0.0, 0.0, 0] for _ in parameters]

        def step(rate):
            for parameter, row in zip(parameters, state, strict=True):
                if parameter.grad is not None:
                    first, second, count = row
                    row[:] = 0.9 * first + 0.1 * parameter.grad, 0.99 * second + 0.01 * parameter.grad**2, count + 1
                    mean, square = row[0] / (1.0 - 0.9 ** row[2]), row[1] / (1.0 - 0.99 ** row[2])
                    parameter.data = parameter.data - rate * mean / (square.sqrt() + 1e-8)

        return step, lambda: [setattr(parameter, "grad", None) for parameter in parameters]

    def of_ours(parameters):
        optimizer = Adam(parameters, betas=(0.9, 0.99))
        return optimizer.step, optimizer.zero_grad

    ours = moved_by(of_ours, torch.float64, generator)
    theirs = moved_by(by_hand, torch.float64, generator.manual_seed(20))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_has_the_digits_of_torch(dtype, generator):
    """Slow: the first optimizer of a process imports the compiler."""

    def of_torch(parameters):
        optimizer = torch.optim.Adam(parameters)

        def step(rate):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()

        return step, optimizer.zero_grad

    def of_ours(parameters):
        optimizer = Adam(parameters)
        return optimizer.step, optimizer.zero_grad

    ours = moved_by(of_ours, dtype, generator)
    for mine, other in zip(ours, moved_by(of_torch, dtype, generator.manual_seed(20)), strict=True):
        torch.testing.assert_close(mine, other, atol=0, rtol=0)


def test_adam_averages_noise_away():
    objective = Noisy(lambda x: (x - 1.0).square().sum(), 0.5)
    end = adam(objective, torch.zeros(2).double(), 400, Progress(lambda *row: True), rate=0.1)
    torch.testing.assert_close(end, torch.ones(2).double(), atol=0.1, rtol=0)


def test_settling_needs_two_windows_that_agree():
    falling = [100.0 - i for i in range(40)]
    assert not settled(falling)
    noisy = torch.randn(40, generator=torch.Generator().manual_seed(1)).tolist()
    assert settled(noisy)
    assert not settled(noisy[:19])


def hermite(size):
    """Product Gauss-Hermite nodes (m, 2) and weights."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(size)
    nodes, masses = torch.tensor(nodes), torch.tensor(masses / masses.sum())
    return torch.cartesian_prod(nodes, nodes), torch.outer(masses, masses).flatten()


def test_identities_of_bonnet_and_price_in_closed_form():
    """E exp(a'x) = exp(a'mu + a'Ca/2), and a quartic by its moments."""
    a = torch.tensor([0.4, -0.3], dtype=torch.float64)
    mean = torch.tensor([0.2, 0.5], dtype=torch.float64)
    root = torch.tensor([[0.8, 0.0], [0.3, 0.6]], dtype=torch.float64)
    noise, weights = hermite(40)
    found = derivatives(lambda x: (a @ x).exp(), mean, root, noise, weights)
    value = (a @ mean + 0.5 * a @ (root @ root.T) @ a).exp()
    torch.testing.assert_close(found.by_mean, a * value, atol=1e-8, rtol=0)
    torch.testing.assert_close(found.by_covariance, 0.5 * torch.outer(a, a) * value, atol=1e-8, rtol=0)
    torch.testing.assert_close(found.by_root, 2.0 * found.by_covariance @ root, atol=1e-8, rtol=0)

    def expected(mean, root):
        variance = (root @ root.T).diagonal()
        return (mean**4 + 6.0 * mean.square() * variance + 3.0 * variance.square()).sum()

    quartic = derivatives(lambda x: (x**4).sum(), mean, root, noise, weights)
    by_mean, by_root = torch.autograd.functional.jacobian(expected, (mean, root))
    torch.testing.assert_close(quartic.by_mean, by_mean, atol=1e-8, rtol=0)
    torch.testing.assert_close(quartic.by_root, by_root, atol=1e-8, rtol=0)
    direction = torch.tensor([0.7, -0.2]).double(), torch.tensor([[0.1, 0.0], [-0.4, 0.3]]).double()
    along = lambda t: expected(mean + t * direction[0], root + t * direction[1])  # noqa: E731
    exact = torch.autograd.functional.hessian(along, torch.zeros((), dtype=torch.float64))
    second = second_derivative(lambda x: (x**4).sum(), mean, root, noise, direction, weights)
    torch.testing.assert_close(second, exact, atol=1e-8, rtol=0)


def test_natural_update_is_exact_for_a_gaussian_and_always_positive(matrix, generator):
    """One whole step reaches a Gaussian target; a thousand random curvatures leave the precision positive."""
    tril = 0.5 * torch.eye(SIZE, dtype=torch.float64)
    mean, centre = torch.zeros(SIZE).double(), torch.ones(SIZE).double()
    step, new = natural_update(tril, tril.T @ (matrix @ (centre - mean)), tril.T @ matrix @ tril, 1.0)
    torch.testing.assert_close(mean + tril @ step, centre, atol=1e-10, rtol=0)
    torch.testing.assert_close(new @ new.T, torch.linalg.inv(matrix), atol=1e-10, rtol=0)
    for _ in range(1000):
        root = 3.0 * torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        _, new = natural_update(tril, mean, 0.5 * (root + root.T), 1.0)
        assert int(torch.linalg.cholesky_ex(new @ new.T).info) == 0
        assert bool((new.diagonal().abs() > 0).all())


def test_linear_response_is_exact_for_a_gaussian_target(matrix, generator):
    """Where the diagonal factor is far too narrow, the corrected covariance is the target's; its error is honest."""
    centre = torch.randn(SIZE, generator=generator, dtype=torch.float64)

    def fixed(key, draws):
        noise = torch.randn(draws, SIZE, generator=torch.Generator().manual_seed(key), dtype=torch.float64)

        def function(vector):
            mean, log_sd = vector[:SIZE], vector[SIZE:]
            points = mean + log_sd.exp() * noise - centre
            return 0.5 * (points @ matrix * points).sum(-1) - log_sd.sum()

        return Smooth(function)

    def optimum(smooth, vector):
        for _ in range(25):
            step = torch.linalg.solve(smooth.hessian(vector), smooth.gradient(vector)[1])
            vector = vector - step * min(1.0, 0.5 / float(step.norm()))
            if float(step.norm()) < 1e-9:
                break
        return vector

    exact = fixed(0, 5_000)
    vector = optimum(exact, torch.zeros(2 * SIZE, dtype=torch.float64))
    covariance, _ = linear_response(exact, vector)
    inverse = torch.linalg.inv(matrix)
    torch.testing.assert_close(covariance[:SIZE, :SIZE], inverse, atol=0.06 * float(inverse.abs().max()), rtol=0)
    assert float((vector[SIZE:].exp() / inverse.diagonal().sqrt()).min()) < 0.8
    scores = []
    for key in range(24):
        smooth = fixed(key, 30)
        found = optimum(smooth, vector)
        _, error = linear_response(smooth, found)
        scores.append((found[:SIZE] - centre) / error[:SIZE])
    spread = torch.stack(scores).std(0)
    assert 0.85 < float(spread.mean()) < 1.15


@pytest.fixture(scope="module")
def small():
    return simulate_choices(
        fixed={"x": 0.5}, random={"z": (0.5, 1.0)}, n_decision_makers=100, n_situations=6, random_state=2
    )[0]


@pytest.fixture(scope="module")
def exact(small):
    return GridPosterior(Choices.of_frame(small), 2.0, 1.0)


def fit(data, method):
    priors = Priors(location_scale=2.0, sd_scale=1.0)
    return MixedLogit(fixed=["x"], random=["z"], random_state=1, priors=priors, method=method).fit(data)


# Largest distance of a mean from the exact posterior's, in its sds, and of a ratio of sds from one (.22 and .11 seen).
FAR, SPREAD = 0.3, 0.15
ENGINES = [
    SVI(optimizer="lbfgs"),
    SVI(optimizer="hessian_free"),
    pytest.param(SVI(optimizer="hessian_free", training=Training(safeguard="damping")), marks=pytest.mark.slow),
    pytest.param(DADVI(draws=64), marks=pytest.mark.slow),
    SVI(encoder=None, training=Training(steps=300, learning_rate=0.05)),
]


@pytest.mark.parametrize("method", ENGINES, ids=str)
@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_engines_find_the_exact_posterior(small, exact, method):
    """By a grid over the fixed coefficient, the location and the standard deviation."""
    found = fit(small, method)
    table = found.summary()
    assert float(((table["estimate"] - exact.mean) / exact.sd).abs().max()) < FAR
    assert float((table["std_error"] / exact.sd).sub(1.0).abs().max()) < SPREAD
    assert len(found.result_.history) > 3


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_engines_repeat_themselves(small, optimizer):
    method = SVI(optimizer=optimizer, encoder=None, training=Training(steps=20))
    first, second = (fit(small, method) for _ in range(2))
    assert first.coef_.equals(second.coef_)


def test_settings_that_make_no_sense_are_refused():
    for method, words in (
        (VI(optimizer="newtn"), "optimizer"),
        (SVI(optimizer="newton"), "optimizer"),
        (SVI(encoder="sets"), "encoder"),
        (SVI(optimizer="hessian_free", training=Training(safeguard="none")), "safeguard"),
        (SVI(objective="renyi"), "objective"),
        (DADVI(objective="renyi"), "objective"),
        (SVI(population_family="full"), "population_family"),
        (SVI(training=Training(steps=0)), "steps"),
        (SVI(training={"steps": 5}), "Training"),
    ):
        with pytest.raises(SpecificationError, match=words):
            method.check()


def logit_posterior(frame):
    """Mean and sd (2,) of two fixed coefficients under N(0, 2) priors, by a grid around the maximum."""
    data = Choices.of_frame(frame)
    axes = [np.linspace(-0.5, 1.5, 161), np.linspace(-0.5, 1.5, 161)]
    log_mass = np.log(probability_table(data, *axes)).sum(0) - 0.125 * (axes[0][:, None] ** 2 + axes[1] ** 2)
    mass = np.exp(log_mass - log_mass.max())
    marginals = [mass.sum(1) / mass.sum(), mass.sum(0) / mass.sum()]
    assert all(max(marginal[0], marginal[-1]) < 1e-12 for marginal in marginals)
    mean = np.array([marginal @ axis for marginal, axis in zip(marginals, axes, strict=True)])
    square = [marginal @ axis**2 for marginal, axis in zip(marginals, axes, strict=True)]
    return mean, np.sqrt(square - mean**2)


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
@pytest.mark.parametrize(
    "method",
    [
        VI(),
        SVI(optimizer="lbfgs", flow="affine"),
        SVI(training=Training(steps=300, learning_rate=0.05)),
        DADVI(),
    ],
)
def test_fixed_coefficients_alone(small, method):
    """Logistic regression: nothing to encode and nothing to bend, whatever was asked for; by a grid over both."""
    mean, sd = logit_posterior(small)
    priors = Priors(location_scale=2.0)
    found = MixedLogit(fixed=["x", "z"], random_state=1, method=method, priors=priors).fit(small).summary()
    assert float(((found["estimate"] - mean) / sd).abs().max()) < 0.03
    assert float((found["std_error"] / sd).sub(1.0).abs().max()) < 0.08


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lbfgs", "objective": "iwae", "training": Training(gradient="dreg")}, "for optimizer='adam'"),
        ({"training": Training(gradient="stl")}, "needs objective"),
        ({"objective": "iwae", "training": Training(gradient="stl")}, "biased"),
        ({"objective": "iwae", "polish": 1}, "polish"),
        ({"noise": "pseudo"}, "noise"),
    ],
)
def test_estimators_where_they_are_not_valid(settings, message):
    with pytest.raises(SpecificationError, match=message):
        SVI(**settings).check()


# Training of a few dozen steps ends far from the posterior, which the fit says.
@pytest.mark.filterwarnings("ignore:The estimated error:mxlogit.ConvergenceWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "elbo", "gradient": "stl"},
        {"objective": "iwae", "gradient": "dreg", "encoder": None, "flow": "affine"},
        {"objective": "iwae", "noise": "sobol"},
    ],
)
def test_adam_on_bounds_of_ones_own(settings):
    """An encoder, or a flow, learns: the bound rises."""
    frame, _ = simulate_choices(
        fixed={"x": 0.5}, random={"z": (0.5, 1.0)}, n_decision_makers=60, n_situations=6, random_state=3
    )
    gradient = settings.pop("gradient", "standard")
    method = SVI(draws=8, training=Training(steps=60, batch_size=60, gradient=gradient), **settings)
    est = MixedLogit(fixed=["x"], random=["z"], method=method, random_state=1).fit(frame)
    bounds = [row.objective for row in est.result_.history]
    assert np.mean(bounds[-15:]) > np.mean(bounds[:15]) + 1.0
