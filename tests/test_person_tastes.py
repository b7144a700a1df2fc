"""From whitened tastes to utility: every step against formulas written out person by person."""

from __future__ import annotations

import pytest
import torch

from mxlogit.model.likelihood import Scratch
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes

FAMILIES = {
    "normal": (["normal"] * 3, None),
    "signed": (["lognormal", "negative_lognormal", "normal"], None),
    "bounded": (["uniform", "truncated_normal", "johnson_sb"], None),
    "money": (["normal", "negative_lognormal", "normal"], 3),
}


@pytest.fixture(params=FAMILIES)
def mixing(request):
    names, position = FAMILIES[request.param]
    return Mixing(names, position)


def populations(count, generator):
    """Populations with a leading axis, of two fixed coefficients and three tastes."""
    tril = torch.randn(count, 3, 3, generator=generator, dtype=torch.float64).tril()
    tril.diagonal(dim1=-2, dim2=-1).abs_().add_(0.3)
    fixed, location = (torch.randn(count, k, generator=generator, dtype=torch.float64) for k in (2, 3))
    return PopulationParameters(fixed, location, tril)


def by_hand(xi, fixed, location, tril, mixing):
    """Coefficients (f + k,) of one draw (k,) of one person."""
    taste = mixing.tastes((location + tril @ xi)[None], location, tril.square().sum(-1).sqrt())[0]
    return mixing.coefficients(fixed, taste)


def test_utility_of_draws(mixing, panel, generator):
    one = populations(1, generator)
    shared = PopulationParameters(one.fixed[0], one.location[0], one.scale_tril[0])
    people = PersonTastes(shared, mixing)
    xi = torch.randn(len(panel), 3, 5, generator=generator, dtype=torch.float64)
    utility = people.utility(people.tastes(xi), panel)
    for n in range(len(panel)):
        for s in range(5):
            wanted = by_hand(xi[n, :, s], shared.fixed, shared.location, shared.scale_tril, mixing)
            torch.testing.assert_close(utility[n, :, s], panel.values[n] @ wanted)
    torch.testing.assert_close(people.whitened_utility(xi, panel), utility)
    assert torch.equal(people.utility(people.tastes(xi), panel, Scratch()), utility)
    torch.testing.assert_close(people.values(xi).taste, people.tastes(xi))
    torch.testing.assert_close(people.values_of_each(xi[..., 0]).taste, people.tastes(xi)[..., 0])


def test_a_population_for_each_person(mixing, panel, generator):
    each = populations(len(panel), generator)
    people = PersonTastes(each, mixing)
    xi = torch.randn(len(panel), 3, 4, generator=generator, dtype=torch.float64)
    coefficients = people.coefficients(people.tastes(xi))
    for n in range(len(panel)):
        for s in range(4):
            wanted = by_hand(xi[n, :, s], each.fixed[n], each.location[n], each.scale_tril[n], mixing)
            torch.testing.assert_close(coefficients[n, :, s], wanted)


def test_slopes_and_curvature(mixing, generator):
    one = populations(1, generator)
    people = PersonTastes(PopulationParameters(one.fixed[0], one.location[0], one.scale_tril[0]), mixing)
    xi, step = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64), 1e-5
    latents = people.latents(xi)
    if people.mapped(latents) is None:
        assert mixing.is_identity
        assert torch.equal(people.tastes_at(latents), latents)
        return
    above, below = people.mapped(latents + step), people.mapped(latents - step)
    slope = people.mapped(latents).slope
    torch.testing.assert_close((above.taste - below.taste) / (2.0 * step), slope, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close((above.slope - below.slope) / (2.0 * step), people.curvature(xi), rtol=1e-5, atol=1e-7)
