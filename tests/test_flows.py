"""Conditional flows: laws of transforms, densities of mixtures, training, and what they see."""

import math
import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from oracles import marginal_of
from sklearn.base import clone

from mxlogit import SVI, VI, ConvergenceWarning, MixedLogit, SpecificationError, Training
from mxlogit.draws.importance import DrawScheme
from mxlogit.execution.people import People
from mxlogit.guide import objectives
from mxlogit.guide.context import context_size, probe
from mxlogit.guide.flows import LocalFlow
from mxlogit.inference.vi import flow_training
from mxlogit.inference.vi.flow_training import FlowSettings, train_flow
from mxlogit.integration.importance import weigh_draws
from mxlogit.integration.laplace import LocalFactor, polish
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.likelihood import panel_log_prob
from mxlogit.simulate import simulate_choices

with_zuko = pytest.mark.skipif(find_spec("zuko") is None, reason="needs the extra flows")
KINDS = [
    ("affine", 1),
    ("spline", 1),
    ("spline", 2),
    ("spline", 3),
    pytest.param("autoregressive", 1, marks=with_zuko),
    pytest.param("autoregressive", 2, marks=with_zuko),
]


def make_flow(k, kind, layers, noise=0.3):
    torch.manual_seed(3)
    flow = LocalFlow(k, kind, layers).double()
    with torch.no_grad():
        for parameter in flow.layers.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return flow


@pytest.fixture(autouse=True)
def forked():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def population(model, generator):
    return model.space.constrain(0.4 * torch.randn(model.space.size, generator=generator, dtype=torch.float64))


@pytest.fixture
def factor(model, panel, population):
    return polish(torch.zeros(len(panel), 3, dtype=torch.float64), population, panel, model.mixing, 30)


@pytest.mark.parametrize(("kind", "layers"), KINDS)
@pytest.mark.parametrize("k", [1, 3])
def test_inverse_and_log_determinant(kind, layers, k, generator):
    """Points go there and back, far ones too; the log determinant is that of autograd's Jacobian."""
    flow = make_flow(k, kind, layers)
    context = torch.randn(4, context_size(k), generator=generator, dtype=torch.float64)
    points = 3.0 * torch.randn(4, 7, k, generator=generator, dtype=torch.float64)
    image, log_det = flow(points, context)
    back, inverse_det = flow(image, context, inverse=True)
    torch.testing.assert_close(back, points, atol=1e-8, rtol=0)
    torch.testing.assert_close(inverse_det, -log_det, atol=1e-8, rtol=0)
    for n in range(4):
        for s in range(7):
            jacobian = torch.autograd.functional.jacobian(
                lambda x, n=n: flow(x[None, None], context[n : n + 1])[0][0, 0], points[n, s]
            )
            torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[n, s], atol=1e-9, rtol=0)


@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_untrained_flow_is_the_identity(kind, layers, generator):
    flow = LocalFlow(3, kind, layers).double()
    context = torch.randn(4, context_size(3), generator=generator, dtype=torch.float64)
    points = 2.0 * torch.randn(4, 50, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        image, log_det = flow(points, context)
    # Pyro's end slopes are .999.
    torch.testing.assert_close(image, points, atol=2e-3, rtol=0)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), atol=1e-2, rtol=0)
    assert float(log_det.abs().median()) < 1e-3


@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_density_integrates_to_one(kind, layers):
    """Density of a flow of one taste from normal base points, through its inverse, on a grid."""
    flow = make_flow(1, kind, layers)
    grid = torch.linspace(-12.0, 12.0, 20_001, dtype=torch.float64)
    context = torch.zeros(1, context_size(1), dtype=torch.float64)
    points, log_det = flow(grid[None, :, None], context, inverse=True)
    log_prob = -0.5 * points[0, :, 0].square() - 0.5 * math.log(2.0 * math.pi) + log_det[0]
    assert float(torch.trapezoid(log_prob.exp().detach(), grid)) == pytest.approx(1.0, abs=1e-4)


def test_nothing_is_stale_after_an_optimiser_step(generator):
    """Densities of old points after a step are those of a flow rebuilt from the saved weights."""
    flow = make_flow(3, "spline", 2)
    context = torch.randn(4, context_size(3), generator=generator, dtype=torch.float64)
    points = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD(flow.parameters(), lr=0.1)
    image, log_det = flow(points, context)
    (image.square().sum() - log_det.sum()).backward()
    optimizer.step()
    rebuilt = LocalFlow(3, "spline", 2).double()
    rebuilt.load_state_dict(flow.state_dict())
    for mine, theirs in zip(
        flow(image.detach(), context, inverse=True),
        rebuilt(image.detach(), context, inverse=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    assert not torch.allclose(flow(points, context)[0], image)


def test_gradients_of_a_flow_agree_with_differences(generator):
    flow = make_flow(2, "spline", 2)
    context = torch.randn(2, context_size(2), generator=generator, dtype=torch.float64)
    points = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    weight = flow.layers[1].spline.net[0].weight

    def value():
        image, log_det = flow(points, context)
        return image.square().sum() + log_det.sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    for place in ((0, 0), (20, 5), (44, 63)):
        with torch.no_grad():
            weight[place] += 1e-6
            above = value()
            weight[place] -= 2e-6
            below = value()
            weight[place] += 1e-6
        assert float(gradient[place]) == pytest.approx(float((above - below).detach()) / 2e-6, abs=1e-6, rel=1e-4)


def test_mixture_density_of_draws_of_both_kinds(model, panel, population, factor):
    """Log q of every draw, from the flow or from the prior, is the mixture's density at that point."""
    flow = make_flow(3, "spline", 2)
    warped = LocalFactor(*_parts(factor), flow.attach(factor, population, panel, model.mixing))
    base = DrawScheme((1, 2), 64, 3, flow.degrees_of_freedom, defensive=True).points(0, len(panel), factor.mean)
    assert base.prior_share > 0
    drawn = weigh_draws(warped, base, population, panel, model.mixing)
    standard = factor.precision_tril.mT @ (drawn.xi - factor.mean[..., None])
    points, stretch = warped.warp.inverse(standard)
    log_flow = base.log_local(points.square().sum(1), 3) - stretch - factor.log_det[:, None]
    log_prior = -0.5 * drawn.xi.square().sum(1) - 1.5 * math.log(2.0 * math.pi)
    share = base.prior_share
    log_q = torch.logaddexp(log_flow + math.log1p(-share), log_prior + math.log(share))
    coefficients = torch.stack([model.coefficients(population, xi) for xi in drawn.xi.permute(2, 0, 1)])
    log_target = panel_log_prob(coefficients, panel).T
    torch.testing.assert_close(drawn.log_ratio, log_target + log_prior - log_q, atol=1e-8, rtol=0)


def _parts(factor):
    return factor.mean, factor.root, factor.precision_tril, factor.log_det


def test_any_flow_leaves_the_marginal_likelihood_as_it_is(model, panel, population):
    """A flow that is wrong, being a proposal only, changes no estimate but its noise."""
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, 1)
    exact = marginal.value_pass(population, IntegrationSettings(16_384, 8, 1, 30))
    marginal.flow = make_flow(3, "spline", 2, noise=0.1)
    marginal.flow.defensive = True
    flowed = marginal.value_pass(population, IntegrationSettings(16_384, 8, 2, 30))
    error = (exact.variance + flowed.variance) ** 0.5
    assert abs(exact.log_likelihood - flowed.log_likelihood) < 4.0 * error
    assert error < 0.05
    assert abs(exact.elbo - flowed.elbo) < 0.1


def test_context_is_zero_for_a_normal_and_blind_to_order(model, panel, population, factor):
    """Reordered people have reordered contexts, and splitting the batch changes nothing."""
    axes, context = probe(factor, population, panel, model.mixing)
    identity = torch.eye(3, dtype=torch.float64).expand(len(panel), 3, 3)
    torch.testing.assert_close(axes @ axes.mT, identity, atol=1e-10, rtol=0)
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = LocalFactor(*(part[order] for part in _parts(factor)))
    other_axes, other = probe(shuffled, population, panel.take(order), model.mixing)
    torch.testing.assert_close(other, context[order], atol=1e-10, rtol=0)
    torch.testing.assert_close(other_axes, axes[order], atol=1e-10, rtol=0)
    # With attributes of zero the posterior is the prior: nothing departs from the normal.
    empty = replace(panel, values=0.0 * panel.values)
    prior = polish(torch.zeros(len(panel), 3, dtype=torch.float64), population, empty, model.mixing, 5)
    _, nothing = probe(prior, population, empty, model.mixing)
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), atol=1e-9, rtol=0)


def test_probe_without_pairs_for_many_tastes():
    assert context_size(8) == 8 * 6 + 4 * 28
    assert context_size(9) == 9 * 6


@pytest.mark.parametrize("objective", list(objectives.OBJECTIVES))
def test_values_of_objectives(objective, generator):
    log_weights = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    weights = log_weights.exp()
    expected = {
        "elbo": log_weights.mean(-1),
        "iwae": weights.mean(-1).log(),
        "ess": (weights.mean(-1).square() / weights.square().mean(-1)).log(),
    }[objective]
    torch.testing.assert_close(objectives.value(log_weights, objective), expected)


def test_estimators_of_gradients(generator):
    """Target N(.4, .8^2), q = N(m, s^2): by quadrature all gradients of one bound have the same mean; at q = p sticking
    the landing has no variance while the standard one has."""
    nodes, masses = _hermite(40)

    def log_weights(m, log_s, points, *, frozen):
        z = m + log_s.exp() * points
        of_m, of_s = (m.detach(), log_s.detach()) if frozen else (m, log_s)
        log_q = -0.5 * ((z - of_m) / of_s.exp()).square() - of_s
        return -0.5 * ((z - 0.4) / 0.8).square() - math.log(0.8) - log_q

    def gradients(m, log_s, objective, gradient, draws):
        grid = torch.cartesian_prod(*[nodes] * draws).view(-1, draws)
        mass = torch.cartesian_prod(*[masses] * draws).view(-1, draws).prod(1)
        # A pair of parameters for every row of the grid: gradients of all rows at once.
        m, log_s = (torch.full((len(grid), 1), x, dtype=torch.float64, requires_grad=True) for x in (m, log_s))
        each = objectives.surrogate(log_weights(m, log_s, grid, frozen=gradient != "standard"), objective, gradient)
        rows = torch.cat(torch.autograd.grad(each.sum(), (m, log_s)), 1)
        mean = mass @ rows
        return mean, mass @ (rows - mean).square()

    for objective, gradient, draws in (("elbo", "stl", 1), ("iwae", "dreg", 2), ("iwae", "dreg", 1)):
        standard, _ = gradients(0.1, -0.1, objective, "standard", draws)
        other, _ = gradients(0.1, -0.1, objective, gradient, draws)
        torch.testing.assert_close(standard, other, atol=1e-6, rtol=0)
    _, none = gradients(0.4, math.log(0.8), "elbo", "stl", 1)
    _, some = gradients(0.4, math.log(0.8), "elbo", "standard", 1)
    assert float(none.max()) < 1e-20
    assert float(some.min()) > 0.1


def _hermite(n):
    nodes, masses = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(nodes), torch.tensor(masses / masses.sum())


def test_biased_estimators_are_refused():
    with pytest.raises(SpecificationError, match="biased for objective='iwae'"):
        objectives.check_objective("iwae", "stl")
    with pytest.raises(SpecificationError, match="objective"):
        objectives.check_objective("renyi", "standard")


@pytest.fixture(scope="module")
def wide():
    """Three wide tastes, few choices: a local posterior that is far from normal."""
    return simulate_choices(
        fixed={"x": 0.5},
        random={"z": (0.5, 4.0), "w": (-0.5, 4.0), "v": (0.0, 4.0)},
        n_decision_makers=100,
        n_situations=4,
        n_alternatives=3,
        random_state=3,
    )


@pytest.fixture(scope="module")
def without_flow(wide):
    """The default with a Gaussian guide."""
    method = VI(correct=False, flow=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MixedLogit(fixed=["x"], random=["z", "w", "v"], random_state=1, method=method).fit(wide[0])


@pytest.fixture(scope="module")
def gap(wide, without_flow):
    """In log likelihood between the multinomial logit, where training begins, and the default."""
    plain = MixedLogit(fixed=["x", "z", "w", "v"], random_state=1).fit(wide[0])
    return without_flow.log_likelihood_ - plain.log_likelihood_


@pytest.fixture(scope="module")
def seen_and_unseen(wide):
    """A fit of some people, and one of the others."""
    est = MixedLogit(fixed=["x"], random=["z", "w", "v"], random_state=1, method=VI(flow=None, correct=False))
    some = wide[0]["id"] <= 70
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return est.fit(wide[0][some]), clone(est).fit(wide[0][~some])


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_training_raises_effective_sizes_of_seen_and_unseen(seen_and_unseen, kind):
    est, others = seen_and_unseen
    tastes, seen = est.result_.tastes, marginal_of(est)
    centers = [tastes.model.space.constrain(v) for v in est.result_.samples.unconstrained[:4]]
    flow, gain = train_flow(tastes.model, seen, centers, FlowSettings(kind, steps=60, seed=1), lambda line: None)
    assert gain > 1.02
    assert not any(parameter.requires_grad for parameter in flow.parameters())
    unseen = marginal_of(others)
    sizes = []
    for unseen.flow in (None, flow):
        proposals = unseen.propose(
            centers[0], IntegrationSettings(256, 8, 3, 30, variational_steps=2, defensive=unseen.flow is None)
        )
        sizes.append(float(torch.cat([drawn.ess_fraction for _, drawn in unseen.weigh(centers[0], proposals)]).mean()))
    assert len(unseen.people) == 30
    assert sizes[1] > 1.05 * sizes[0]


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_auto_trains_a_flow_where_weights_are_uneven_only(wide, monkeypatch):
    monkeypatch.setattr(flow_training, "_MANY_STEPS", 100)
    data = wide[0][wide[0]["id"] <= 50]
    est = MixedLogit(fixed=["x"], random=["z", "w", "v"], random_state=1, method=VI(correct=False, n_samples=60))
    flowed = est.fit(data)
    assert flowed.result_.tastes.flow is not None
    assert "conditional flow" in flowed.diagnostics_["guide"]
    plain = MixedLogit(
        fixed=["x"], random=["z", "w", "v"], random_state=1, method=VI(correct=False, flow=None, n_samples=60)
    )
    plain.fit(data)
    assert flowed.diagnostics_["ess"] > plain.diagnostics_["ess"]
    assert flowed.coef_.equals(plain.coef_)
    error = math.hypot(flowed.log_likelihood_error_, plain.log_likelihood_error_)
    assert abs(flowed.log_likelihood_ - plain.log_likelihood_) < 4.0 * error
    people = [est.individual_coefficients(data) for est in (flowed, plain)]
    means, sds = (people[1].xs(kind, axis=1, level="statistic") for kind in ("mean", "sd"))
    apart = (people[0].xs("mean", axis=1, level="statistic") - means).abs() / sds
    # Weights of the Gaussian are uneven here: both have noise.
    assert float(apart.mean().max()) < 0.117
    again = MixedLogit(fixed=["x"], random=["z", "w", "v"], random_state=1, method=VI(correct=False, n_samples=60)).fit(
        data
    )
    assert again.log_likelihood_ == flowed.log_likelihood_


def test_wrong_settings_are_named():
    with pytest.raises(SpecificationError, match=r"flow=.*'planar'"):
        VI(flow="planar").check()
    with pytest.raises(SpecificationError, match="flow_layers"):
        VI(flow_layers=0).check()


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
@pytest.mark.parametrize(
    "method",
    [
        SVI(training=Training(steps=60), n_samples=12),
        SVI.rodrigues2022(steps=120, n_samples=12),
        SVI(flow="spline", training=Training(steps=50), n_samples=12),
    ],
)
def test_ready_made_routes_train_and_predict(wide, without_flow, gap, method):
    """They close a part of the gap in log likelihood between the multinomial logit they begin at and the default."""
    request = {"fixed": ["x"], "random": ["z", "w", "v"], "random_state": 1}
    est = MixedLogit(method=method, **request).fit(wide[0])
    assert gap > 5.0
    assert without_flow.log_likelihood_ - est.log_likelihood_ < 0.8 * gap
    assert est.result_.history
    assert len(est.individual_coefficients()) == 100


def test_flow_distribution_of_the_pyro_guide(model, panel, population, factor):
    """Its log density at its own draws, through the inverse, is that of the forward pass."""
    from mxlogit.guide.amortized import FlowDistribution

    flow = make_flow(3, "spline", 2, noise=0.1)
    family = FlowDistribution(LocalFactor(*_parts(factor), flow.attach(factor, population, panel, model.mixing)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        xi = family.rsample(torch.Size([4]))
        torch.manual_seed(1)
        points = torch.randn(len(panel), 3, 4, dtype=torch.float64)
    images, stretch = family.factor.warp.forward(points)
    expected = -0.5 * points.square().sum(1) - 1.5 * math.log(2.0 * math.pi) - stretch - factor.log_det[:, None]
    assert xi.shape == (4, len(panel), 3)
    torch.testing.assert_close(xi, (factor.mean[..., None] + factor.root @ images).permute(2, 0, 1), atol=1e-10, rtol=0)
    torch.testing.assert_close(family.log_prob(xi), expected.T, atol=1e-8, rtol=0)
