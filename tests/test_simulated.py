"""The simulated likelihood: triple loop, finite differences, chunks, willingness-to-pay space."""

import math

import pytest
import torch

import mxlogit.integration.simulated_likelihood as simulated_module
from mxlogit.draws.simulation import PersonDraws
from mxlogit.integration.simulated_likelihood import SimulatedLikelihood
from mxlogit.model.likelihood import panel_log_prob
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import FAMILIES, Mixing
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import Priors, resolve_priors

FAMILIES_TRIED = [
    ["normal", "normal", "normal"],
    ["normal", "lognormal", "negative_lognormal"],
    ["uniform", "truncated_normal", "triangular"],
    ["johnson_sb", "censored_normal", "normal"],
]
BLOCKS = [((0, 2), (1,)), ((0, 1, 2),), ((0,), (1,), (2,))]
DRAWS = PersonDraws("halton", 7, 3, 0)


def make_model(families, blocks=BLOCKS[0], scale_position=None):
    space = ParameterSpace(("a", "b"), ("c", "d", "e"), blocks)
    mixing = Mixing(families, scale_position)
    return MixedLogitModel(space, mixing, resolve_priors(Priors(), mixing, 2, [1.0] * 5), torch.ones(5).double())


def make_vector(likelihood, generator):
    return 0.7 * torch.randn(likelihood.size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale_position", [None, 1, 3])
@pytest.mark.parametrize("families", FAMILIES_TRIED)
def test_value_equals_a_loop_over_people_and_draws(families, scale_position, panel, generator):
    likelihood = SimulatedLikelihood(make_model(families, scale_position=scale_position), panel, DRAWS)
    vector = make_vector(likelihood, generator)
    population, mixing = likelihood.population(vector), likelihood.model.mixing
    at, normals = likelihood.evaluate(vector), DRAWS.normals(0, 5)
    for n in range(5):
        total = 0.0
        for r in range(7):
            latent = population.location + population.scale_tril @ normals[n, :, r]
            taste = mixing.tastes(latent, population.location, population.scale)
            beta = torch.cat([population.fixed, taste])
            if scale_position is not None:
                scale = float(beta[scale_position])
                beta = torch.stack([b if i == scale_position else -scale * b for i, b in enumerate(beta)])
            total += math.exp(float(panel_log_prob(beta[None], panel.take(slice(n, n + 1)))))
        assert float(at.log_prob[n]) == pytest.approx(math.log(total / 7), abs=1e-10)


@pytest.mark.parametrize("scale_position", [None, 1, 3])
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("families", [*FAMILIES_TRIED[:3], ["johnson_sb", "lognormal", "normal"]])
def test_scores_and_exact_hessian_by_finite_differences(families, blocks, scale_position, panel, generator):
    likelihood = SimulatedLikelihood(make_model(families, blocks, scale_position), panel, DRAWS)
    vector, h = make_vector(likelihood, generator), 1e-5
    at = likelihood.evaluate(vector, curvature=True)
    scores, hessian = [], []
    for step in h * torch.eye(likelihood.size, dtype=torch.float64):
        up, down = likelihood.evaluate(vector + step), likelihood.evaluate(vector - step)
        scores.append((up.log_prob - down.log_prob) / (2 * h))
        hessian.append((up.scores - down.scores).T @ likelihood.weights / (2 * h))
    torch.testing.assert_close(at.scores, torch.stack(scores, -1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(at.hessian, torch.stack(hessian, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_bends_of_every_family_by_finite_differences(name):
    """Second derivatives of the maps, also far out and at large ratios."""
    family, h = FAMILIES[name], 1e-5
    latent = torch.tensor([-2.0, -0.3, 0.4, 3.0], dtype=torch.float64)
    location, scale = torch.full_like(latent, 0.3), torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=torch.float64)
    second = family.second_derivatives(latent, location, scale)
    assert all(bool(torch.isfinite(value).all()) for value in vars(second).values())

    def slope(x, a, b, which):
        value = getattr(family.map(x, a, b), which)
        return torch.zeros_like(x) if value is None else value

    def difference(which, moved):
        arguments = [latent, location, scale]
        up = slope(*[x + h * (i == moved) for i, x in enumerate(arguments)], which)
        down = slope(*[x - h * (i == moved) for i, x in enumerate(arguments)], which)
        return (up - down) / (2 * h)

    for entry, which, moved in (
        ("latent_latent", "slope", 0),
        ("latent_location", "slope", 1),
        ("latent_scale", "slope", 2),
        ("location_location", "by_location", 1),
        ("location_scale", "by_location", 2),
        ("scale_scale", "by_scale", 2),
    ):
        torch.testing.assert_close(getattr(second, entry), difference(which, moved), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("cells", [1, 25, 60])
@pytest.mark.parametrize("families", FAMILIES_TRIED[:3])
def test_chunks_of_people_and_blocks_of_draws_do_not_matter(families, cells, panel, generator, monkeypatch):
    likelihood = SimulatedLikelihood(make_model(families), panel, DRAWS)
    vector = make_vector(likelihood, generator)
    whole = likelihood.evaluate(vector, curvature=True)
    monkeypatch.setattr("mxlogit.choices.chunks._CELLS", {"cpu": 4 * cells})
    parts = likelihood.evaluate(vector, curvature=True)
    torch.testing.assert_close(parts.log_prob, whole.log_prob, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.scores, whole.scores, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.hessian, whole.hessian, atol=1e-11, rtol=0)


@pytest.mark.parametrize("scheme", ["halton", "sobol", "mlhs"])
def test_draws_made_anew_equal_draws_kept(scheme, panel, generator, monkeypatch):
    draws, model = PersonDraws(scheme, 8, 3, 4), make_model(FAMILIES_TRIED[0])
    kept = SimulatedLikelihood(model, panel, draws)
    vector = make_vector(kept, generator)
    monkeypatch.setattr(simulated_module, "_KEPT_BYTES", 0)
    monkeypatch.setattr("mxlogit.choices.chunks._CELLS", {"cpu": 800})
    anew = SimulatedLikelihood(model, panel, draws)
    assert anew._kept is None
    torch.testing.assert_close(anew.evaluate(vector).scores, kept.evaluate(vector).scores, atol=1e-12, rtol=0)


def test_two_threads_say_what_one_says(panel, generator):
    likelihood = SimulatedLikelihood(make_model(FAMILIES_TRIED[1]), panel, DRAWS)
    vector = make_vector(likelihood, generator)
    one = likelihood.evaluate(vector, curvature=True)
    torch.set_num_threads(2)
    try:
        two = likelihood.evaluate(vector, curvature=True)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(one.hessian, two.hessian, atol=1e-10, rtol=0)


def test_first_draws_are_those_of_a_smaller_likelihood(panel, generator):
    """Thinning takes the first draws of every person's block."""
    likelihood = SimulatedLikelihood(make_model(FAMILIES_TRIED[0]), panel, DRAWS)
    vector = make_vector(likelihood, generator)
    thinned = likelihood.thinned(3)
    normals, population = DRAWS.normals(0, 5)[..., :3], likelihood.population(vector)
    tastes = population.location + normals.mT @ population.scale_tril.mT
    beta = torch.cat([population.fixed.expand(5, 3, -1), tastes], -1).transpose(0, 1)
    expected = panel_log_prob(beta, panel).logsumexp(0) - math.log(3)
    torch.testing.assert_close(thinned.evaluate(vector).log_prob, expected, atol=1e-12, rtol=0)


def test_mirrored_columns_mirror_antithetic_draws(panel, generator):
    """Mirroring every column of L mirrors every draw: with antithetic draws nothing changes."""
    model = make_model(FAMILIES_TRIED[1])
    vector = make_vector(SimulatedLikelihood(model, panel, DRAWS), generator)
    mirrored = vector.clone()
    mirrored[2 + 3 :] *= -1.0
    for antithetic in (True, False):
        likelihood = SimulatedLikelihood(model, panel, PersonDraws("halton", 8, 3, 0, antithetic=antithetic))
        one, other = (likelihood.evaluate(v).log_prob for v in (vector, mirrored))
        assert (float((one - other).abs().max()) < 1e-9) is antithetic
