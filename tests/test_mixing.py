"""Mixing distributions against scipy's distributions and finite differences."""

import numpy as np
import pytest
import torch
from scipy import stats

from mxlogit.model.mixing import FAMILIES, Mixing
from mxlogit.spec import MIXING_NAMES

LOCATION, SCALE = 0.7, 1.3

QUANTILES = {
    "normal": stats.norm(LOCATION, SCALE).ppf,
    "lognormal": stats.lognorm(SCALE, scale=np.exp(LOCATION)).ppf,
    "negative_lognormal": lambda u: -stats.lognorm(SCALE, scale=np.exp(LOCATION)).ppf(u),
    "truncated_normal": stats.truncnorm(-LOCATION / SCALE, np.inf, LOCATION, SCALE).ppf,
    "censored_normal": lambda u: np.maximum(stats.norm(LOCATION, SCALE).ppf(u), 0.0),
    "uniform": stats.uniform(LOCATION - SCALE, 2 * SCALE).ppf,
    "triangular": stats.triang(0.5, LOCATION - SCALE, 2 * SCALE).ppf,
    "johnson_sb": lambda u: 1.0 / (1.0 + np.exp(-stats.norm(LOCATION, SCALE).ppf(u))),
}


def constants(like):
    return torch.full_like(like, LOCATION), torch.full_like(like, SCALE)


def test_the_specification_knows_exactly_the_families():
    assert set(MIXING_NAMES) == set(FAMILIES) == set(QUANTILES)


@pytest.mark.parametrize("name", MIXING_NAMES)
def test_quantiles_equal_scipy(name):
    u = np.linspace(0.001, 0.999, 41)
    latent = torch.from_numpy(LOCATION + SCALE * stats.norm.ppf(u))
    taste = FAMILIES[name].map(latent, *constants(latent)).taste
    np.testing.assert_allclose(taste.numpy(), QUANTILES[name](u), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MIXING_NAMES)
def test_derivatives_by_finite_differences(name):
    latent = torch.linspace(-2.0, 3.0, 40, dtype=torch.float64)
    location, scale = constants(latent)
    family, h = FAMILIES[name], 1e-6
    at = family.map(latent, location, scale)

    def difference(up, down):
        return (family.map(*up).taste - family.map(*down).taste) / (2 * h)

    torch.testing.assert_close(
        at.slope, difference((latent + h, location, scale), (latent - h, location, scale)), atol=1e-7, rtol=1e-7
    )
    by_location = difference((latent, location + h, scale), (latent, location - h, scale))
    by_scale = difference((latent, location, scale + h), (latent, location, scale - h))
    if family.direct:
        torch.testing.assert_close(at.by_location, by_location, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(at.by_scale, by_scale, atol=1e-7, rtol=1e-7)
    else:
        assert by_location.abs().max() == 0
        assert by_scale.abs().max() == 0


# The exponential of an extreme latent is infinite, rightly.
BOUNDED = [name for name in MIXING_NAMES if "lognormal" not in name]


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_latents_stay_finite(name, dtype):
    for location in (-8.0, 0.0, 8.0):
        latent = torch.linspace(location - 12.0, location + 12.0, 101, dtype=dtype)
        at = FAMILIES[name].map(latent, torch.full_like(latent, location), torch.ones_like(latent))
        assert torch.isfinite(at.taste).all()
        assert torch.isfinite(at.slope).all()
        assert (at.taste.diff() >= -1e-6).all()


def test_moments_by_quadrature():
    mixing = Mixing(["normal", "lognormal", "uniform", "truncated_normal", "censored_normal"])
    location = torch.full((5,), LOCATION, dtype=torch.float64)
    scale = torch.full((5,), SCALE, dtype=torch.float64)
    mean, deviation = mixing.moments(location, scale)
    lognormal = stats.lognorm(SCALE, scale=np.exp(LOCATION))
    truncated = stats.truncnorm(-LOCATION / SCALE, np.inf, LOCATION, SCALE)
    a = LOCATION / SCALE
    censored = LOCATION * stats.norm.cdf(a) + SCALE * stats.norm.pdf(a)
    expected = [LOCATION, lognormal.mean(), LOCATION, truncated.mean(), censored]
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        deviation[:4].numpy(), [SCALE, lognormal.std(), SCALE / np.sqrt(3), truncated.std()], rtol=1e-4
    )
