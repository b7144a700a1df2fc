"""Fixed draws of tastes: equal to a pass at the anchor, to exact integrals near it, and their derivatives."""

from __future__ import annotations

import pytest
import torch
from oracles import marginal_of

from mxlogit import VI, MixedLogit, datasets
from mxlogit.execution.people import People
from mxlogit.integration import fixed_taste_draws
from mxlogit.integration.expansion import Remainder, fixed_derivatives, index_pairs, slopes_at
from mxlogit.integration.fixed_taste_draws import FixedTasteDraws, supports_fixed_draws
from mxlogit.integration.laplace import polish
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tilts import log_tilted_integral
from mxlogit.model.differences import difference_panels
from mxlogit.model.likelihood import compute_odds
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.simulate import simulate_published_study

INTEGRATION = IntegrationSettings(draws=256, degrees_of_freedom=8, stream=3, newton_steps=8)
MODELS = {
    "mixed": (ParameterSpace(("a", "b"), ("c", "d", "e"), ((0, 2), (1,))), Mixing(["normal", "lognormal", "normal"])),
    "no maps": (ParameterSpace(("a", "b"), ("c", "d", "e"), ((0, 1, 2),)), Mixing(["normal"] * 3)),
    "no fixed ones": (ParameterSpace((), tuple("abcde"), ((0, 1, 2, 3, 4),)), Mixing(["normal"] * 5)),
    "money": (
        ParameterSpace(("a", "b"), ("c", "d", "e"), ((0, 1, 2),)),
        Mixing(["normal", "negative_lognormal", "normal"], scale_position=3),
    ),
}


@pytest.fixture(params=MODELS)
def case(request, panel, generator):
    """A marginal likelihood and the unconstrained vector of an anchor."""
    space, mixing = MODELS[request.param]
    vector = 0.3 * torch.randn(space.size, generator=generator, dtype=torch.float64)
    return MarginalLikelihood(People.gather(panel), space, mixing, seed=5), vector


def test_at_the_anchor_it_is_a_pass(case):
    marginal, vector = case
    population = marginal.space.constrain(vector)
    kept = FixedTasteDraws(marginal, population, INTEGRATION)
    expected = marginal.value_pass(population, INTEGRATION, remember=False).log_likelihood
    value, variance = kept.log_likelihood(vector[None])
    torch.testing.assert_close(float(value), expected, rtol=1e-10, atol=0.0)
    assert float(variance) < 1e-20


def test_nearby_it_is_as_exact_as_it_says(case, generator):
    """Against passes of 16,384 draws there."""
    marginal, vector = case
    kept = FixedTasteDraws(marginal, marginal.space.constrain(vector), INTEGRATION)
    vectors = vector + 0.15 * torch.randn(6, len(vector), generator=generator, dtype=torch.float64)
    value, variance = kept.log_likelihood(vectors)
    fine = IntegrationSettings(16_384, 8, 4, 8)
    exact = [marginal.value_pass(marginal.space.constrain(v), fine, remember=False).log_likelihood for v in vectors]
    at_anchor = marginal.value_pass(marginal.space.constrain(vector), fine, remember=False).log_likelihood
    change = value - kept.log_likelihood(vector[None])[0]
    errors = change - (torch.tensor(exact, dtype=torch.float64) - at_anchor)
    assert float(errors.square().mean()) < 3.0 * float(variance.mean()) + 1e-4
    assert float(variance.median()) < 0.05
    assert float(change.abs().mean()) > 0.2


def test_few_draws_have_no_bias_in_fixed_coefficients():
    """Train's data, the fixed coefficient moved by a posterior sd either way: against passes of 4,096 draws."""
    frame = datasets.load_train()
    frame = frame.assign(price=frame["price"] / 100.0, time=frame["time"] / 60.0)
    est = MixedLogit(fixed=["price"], random=["time", "change", "comfort"], random_state=0, method=VI(correct=False))
    marginal = marginal_of(est.fit(frame))
    center = est.result_.center
    vector = marginal.space.unconstrain(center)
    moves = 0.023 * torch.eye(len(vector), dtype=torch.float64)[0] * torch.tensor([[0.0], [1.0], [-1.0]]).double()
    fine = IntegrationSettings(4_096, 8, 4, 20, variational_steps=2)
    exact = [marginal.value_pass(marginal.space.constrain(vector + move), fine).log_likelihood for move in moves]
    for key in (1, 2, 3):
        kept = FixedTasteDraws(marginal, center, IntegrationSettings(64, 8, key, 20, variational_steps=2))
        value, _ = kept.log_likelihood(vector + moves)
        second_difference = float(value[1] + value[2] - 2.0 * value[0])
        assert second_difference == pytest.approx(exact[1] + exact[2] - 2.0 * exact[0], rel=0.1)


def test_gradients_are_those_of_the_values(case, generator):
    marginal, vector = case
    kept = FixedTasteDraws(marginal, marginal.space.constrain(vector), INTEGRATION)
    vectors = vector + 0.2 * torch.randn(3, len(vector), generator=generator, dtype=torch.float64)
    step = 1e-5
    moves = step * torch.eye(len(vector), dtype=torch.float64)
    for at, gradient in zip(vectors, kept.gradients(vectors), strict=True):
        above, below = kept.log_likelihood(at + moves)[0], kept.log_likelihood(at - moves)[0]
        torch.testing.assert_close(gradient, (above - below) / (2.0 * step), rtol=1e-5, atol=1e-6)


def test_far_away_nothing_overflows(case):
    marginal, vector = case
    kept = FixedTasteDraws(marginal, marginal.space.constrain(vector), INTEGRATION)
    far = vector + 40.0 * torch.eye(len(vector), dtype=torch.float64)[marginal.space.n_fixed :][:1]
    value, variance = kept.log_likelihood(far)
    assert bool(torch.isfinite(value).all())
    assert float(value) < float(kept.log_likelihood(vector[None])[0]) - 100.0
    assert float(variance) > 0.0


def test_where_draws_cannot_be_kept(panel):
    people = People.gather(panel)

    def marginal(space, mixing):
        return MarginalLikelihood(people, space, mixing, seed=5)

    space, mixing = MODELS["mixed"]
    assert supports_fixed_draws(marginal(space, mixing), 64)
    assert not supports_fixed_draws(marginal(space, mixing), 1_000_000)
    assert not supports_fixed_draws(marginal(ParameterSpace(tuple("abcde"), (), ()), Mixing([])), 64)
    assert not supports_fixed_draws(marginal(space, Mixing(["normal", "truncated_normal", "normal"])), 64)
    assert not supports_fixed_draws(marginal(space, Mixing(["normal"] * 3, scale_position=0)), 64)


def test_tilted_gaussian_against_dense_algebra(panel, generator):
    space, mixing = MODELS["mixed"]
    population = space.constrain(0.3 * torch.randn(space.size, generator=generator, dtype=torch.float64))
    factor = polish(torch.zeros(len(panel), 3, dtype=torch.float64), population, panel, mixing, 8)
    slope = torch.randn(len(panel), 3, 2, generator=generator, dtype=torch.float64)
    rows, columns = index_pairs(3)
    products = 0.1 * torch.randn(len(rows), 2, generator=generator, dtype=torch.float64)
    found = log_tilted_integral(factor, slope, products)
    for b in range(2):
        quadratic = torch.zeros(3, 3, dtype=torch.float64)
        quadratic[rows, columns] = products[:, b]
        quadratic = quadratic + quadratic.T
        precision = torch.linalg.inv(factor.covariance)
        tilted = precision - quadratic
        linear = torch.einsum("nkl,nl->nk", precision, factor.mean) + slope[..., b]
        mean = torch.linalg.solve(tilted, linear)
        expected = 0.5 * (torch.logdet(precision) - torch.logdet(tilted) + (linear * mean).sum(-1))
        expected -= 0.5 * torch.einsum("nk,nkl,nl->n", factor.mean, precision, factor.mean)
        torch.testing.assert_close(found[:, b], expected)
    assert bool(torch.isnan(log_tilted_integral(factor, slope, 50.0 + 0.0 * products)).all())


@pytest.fixture(params=["mixed", "no maps", "money"])
def fixed_case(request, panel, generator):
    """Population, mixing, whitened tastes (n, k, s), their shift, and log P as a function of fixed coefficients."""
    space, mixing = MODELS[request.param]
    population = space.constrain(0.3 * torch.randn(space.size, generator=generator, dtype=torch.float64))
    xi = torch.randn(len(panel), 3, 4, generator=generator, dtype=torch.float64)
    shift = 0.4 * torch.randn(len(panel), 3, 2, generator=generator, dtype=torch.float64)

    def log_prob(fixed):
        moved = PopulationParameters(fixed, population.location, population.scale_tril)
        latent = population.latent(xi + (shift @ (fixed - population.fixed))[..., None])
        tastes = mixing.tastes(latent.mT, population.location, population.scale).mT
        return compute_odds(PersonTastes(moved, mixing).utility(tastes, panel), panel).log_prob

    return population, mixing, xi, shift, log_prob


def test_derivatives_along_tastes_that_follow(fixed_case, panel):
    population, mixing, xi, shift, log_prob = fixed_case
    found = fixed_derivatives(xi, shift, population, panel, mixing)
    first = torch.autograd.functional.jacobian(log_prob, population.fixed)
    torch.testing.assert_close(found.first, first.permute(0, 2, 1))
    rows, columns = index_pairs(2)
    for n in range(len(panel)):
        for s in range(4):
            hessian = torch.autograd.functional.hessian(lambda a, n=n, s=s: log_prob(a)[n, s], population.fixed)
            torch.testing.assert_close(found.second[n, :, s], hessian[rows, columns])


def test_slopes_in_tastes(fixed_case, panel):
    population, mixing, xi, *_ = fixed_case
    found = slopes_at(xi[..., 0], population, panel, mixing)
    _same_slopes(found, xi[..., 0], population, panel, mixing)


def test_slopes_of_a_fixed_scale(panel, generator):
    space, mixing = MODELS["mixed"][0], Mixing(["normal", "lognormal", "normal"], scale_position=0)
    population = space.constrain(0.3 * torch.randn(space.size, generator=generator, dtype=torch.float64))
    xi = torch.randn(len(panel), 3, generator=generator, dtype=torch.float64)
    _same_slopes(slopes_at(xi, population, panel, mixing), xi, population, panel, mixing)


def _same_slopes(found, xi, population, panel, mixing):
    """Slopes are those of automatic differentiation, person after person."""

    def log_prob(both, n):
        moved = PopulationParameters(both[:2], population.location, population.scale_tril)
        tastes = mixing.tastes(population.latent(both[None, 2:, None]).mT, population.location, population.scale).mT
        one = panel.take(torch.tensor([n]))
        return compute_odds(PersonTastes(moved, mixing).utility(tastes, one), one).log_prob[0, 0]

    for n in range(len(panel)):
        both = torch.cat([population.fixed, xi[n]])
        first = torch.autograd.functional.jacobian(lambda x, n=n: log_prob(x, n), both)
        hessian = torch.autograd.functional.hessian(lambda x, n=n: log_prob(x, n), both)
        torch.testing.assert_close(found.first[n], first[:2])
        torch.testing.assert_close(found.by_taste[n], hessian[:2, 2:])


def test_expansion_and_remainder_are_exact_at_their_tastes(fixed_case, panel):
    population, mixing, xi, shift, log_prob = fixed_case
    at = fixed_derivatives(xi, shift, population, panel, mixing)
    moves = torch.tensor([[0.9, -0.4], [-1.2, 0.1]], dtype=torch.float64)
    rows, columns = index_pairs(2)
    pairs = moves[rows] * moves[columns] * (1.0 - 0.5 * (rows == columns).double())[:, None]
    remainder = Remainder(xi[..., 0], shift, population, panel, mixing)
    found = at.first[..., 0] @ moves + at.second[..., 0] @ pairs + remainder.at(moves, pairs)
    for b in range(2):
        exact = log_prob(population.fixed + moves[:, b]) - log_prob(population.fixed)
        torch.testing.assert_close(found[:, b], exact[:, 0])
    slope = torch.func.jacrev(lambda move: panel.weights @ remainder.at(move[:, None], _pairs_of(move))[:, 0])(
        moves[:, 0]
    )
    torch.testing.assert_close(remainder.slope(moves[:, :1])[:, 0], slope)


def _pairs_of(move):
    rows, columns = index_pairs(len(move))
    return (move[rows] * move[columns] * (1.0 - 0.5 * (rows == columns).double()))[:, None]


@pytest.fixture(scope="module")
def many():
    """The same fixed draws of 2,000 people in single and in double precision, and vectors near their anchor."""
    study = simulate_published_study(2_000, 10, 1)
    space = ParameterSpace(("f1", "f2", "f3"), ("r1", "r2", "r3", "r4", "r5"), ((0, 1, 2, 3, 4),))
    anchor = PopulationParameters(
        torch.tensor(study.fixed), torch.tensor(study.location), torch.linalg.cholesky(torch.tensor(study.covariance))
    )
    columns = [study.data.names.index(name) for name in (*space.fixed, *space.random)]
    people = People.gather(difference_panels(study.data, columns, torch.float32).dense())
    marginal, found = MarginalLikelihood(people, space, Mixing(["normal"] * 5), seed=5), []
    for few in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fixed_taste_draws, "_FEW_NUMBERS", few)
            found.append(FixedTasteDraws(marginal, anchor, IntegrationSettings(16, 8, 3, 20)))
    normal = torch.randn(200, space.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return found, space.unconstrain(anchor) + 0.05 * normal


def test_single_precision_suffices_near_the_anchor(many):
    """Differences between points in single and in double precision, on the same draws: some 1e-4 nats of 28,000."""
    (single, double), vectors = many
    apart = single.log_likelihood(vectors)[0] - double.log_likelihood(vectors)[0]
    assert float(apart.std()) < 5e-4


def test_values_by_twos_are_those_of_many(many):
    """Whatever fills up the columns of a matrix product."""
    (single, _), vectors = many
    whole = single.log_likelihood(vectors)
    for part in (slice(0, 2), slice(31, 48), slice(40, 40)):
        for found, expected in zip(single.log_likelihood(vectors[part]), whole, strict=True):
            torch.testing.assert_close(found, expected[part], rtol=1e-6, atol=1e-6)
    gradients = single.gradients(vectors[:40])
    torch.testing.assert_close(single.gradients(vectors[38:40]), gradients[38:], rtol=1e-3, atol=1e-2)
