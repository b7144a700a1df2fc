"""Moments of tastes against numerical integrals, over wide ranges of the latent normal's parameters."""

import math
import warnings
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from mxlogit import MSLE, ConvergenceWarning, MixedLogit
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace
from mxlogit.results.frames import taste_frame
from mxlogit.simulate import simulate_choices
from mxlogit.spec import MIXING_NAMES

# Relative. Closed forms cancel up to nine digits of sixteen where a normal lies 50 deviations below zero.
TOLERANCE = 1e-7
LOCATIONS = (-5.0, -1.3, 0.0, 0.4, 5.0)
SCALES = (0.01, 0.11, 0.7, 2.0, 4.0, 5.0, 6.0, 8.0)


_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def integrate(function, lower, upper, pieces=200):
    """Integral by Gauss-Legendre rules on equal pieces."""
    edges = np.linspace(lower, upper, pieces + 1)
    half, middle = 0.5 * np.diff(edges)[:, None], 0.5 * (edges[1:] + edges[:-1])[:, None]
    return float((half * _WEIGHTS * function(middle + half * _POINTS)).sum())


def of_density(value, weight, lower, upper, *, atom=0.0):
    """Mean and sd of value(x) under a density proportional to weight(x), beside zero with mass ``atom``."""
    share = (1.0 - atom) / integrate(weight, lower, upper)
    mean = share * integrate(lambda x: value(x) * weight(x), lower, upper)
    square = share * integrate(lambda x: (value(x) - mean) ** 2 * weight(x), lower, upper)
    return mean, np.sqrt(square + atom * mean**2)


def exact(name, m, s):
    """Mean and sd by integration; of lognormals by numbers of fifty digits."""
    if "lognormal" in name:
        with mpmath.workdps(50):
            m, s = mpmath.mpf(m), mpmath.mpf(s)
            mean = mpmath.exp(m + s**2 / 2)
            sd = mean * mpmath.sqrt(mpmath.exp(s**2) - 1)
        return (-1.0 if name.startswith("negative") else 1.0) * float(mean), float(sd)
    identity = lambda x: x  # noqa: E731
    if name == "uniform":
        return of_density(identity, np.ones_like, m - s, m + s)
    if name == "triangular":
        return of_density(identity, lambda x: s - np.abs(x - m), m - s, m + s)
    if name == "johnson_sb":
        return of_density(lambda z: 1.0 / (1.0 + np.exp(-m - s * z)), stats.norm.pdf, -12.0, 12.0)
    if name == "normal":
        return m, s
    # The normal above zero, relative to its density at its highest point there; below zero it falls off within s^2 / |m|.
    top = max(m, 0.0)
    weight = lambda x: np.exp(-0.5 * ((x - m) ** 2 - (top - m) ** 2) / s**2)  # noqa: E731
    reach = 12.0 * s if m > -s else 40.0 * s * s / -m
    atom = stats.norm.cdf(-m / s) if name == "censored_normal" else 0.0
    lower = max(0.0, top - reach)
    if atom > 0.999:
        # Too little is above zero to be one less what is not.
        above = stats.norm.sf(-m / s)
        mean, sd = of_density(identity, weight, lower, top + reach)
        return above * mean, np.sqrt(above * (sd**2 + mean**2) - (above * mean) ** 2)
    return of_density(identity, weight, lower, top + reach, atom=atom)


@pytest.mark.parametrize("name", MIXING_NAMES)
def test_moments_equal_integrals(name):
    for m in LOCATIONS:
        for s in SCALES:
            if name == "censored_normal" and m / s < -30:
                continue  # nobody is above zero: both moments are below the smallest double
            mean, sd = Mixing([name]).moments(*torch.tensor([[m], [s]], dtype=torch.float64))
            known = exact(name, m, s)
            np.testing.assert_allclose(
                [float(mean), float(sd)], known, rtol=TOLERANCE, atol=1e-15 * s, err_msg=f"{name} {m} {s}"
            )


def test_moments_of_several_families_keep_their_columns():
    location = torch.tensor([[0.5, -0.2], [1.0, 0.3]], dtype=torch.float64)
    scale = torch.tensor([[1.5, 4.0], [0.2, 0.1]], dtype=torch.float64)
    mean, sd = Mixing(["uniform", "lognormal"]).moments(location, scale)
    for row in range(2):
        for column, name in enumerate(["uniform", "lognormal"]):
            known = exact(name, float(location[row, column]), float(scale[row, column]))
            np.testing.assert_allclose([float(mean[row, column]), float(sd[row, column])], known, rtol=TOLERANCE)


def test_an_estimators_moments_are_those_at_its_estimate():
    frame, _ = simulate_choices(150, 6, 3, random={"z": (0.0, 0.6, "lognormal")}, random_state=1)
    est = MixedLogit(random={"z": "lognormal"}, method=MSLE(n_draws=100, check_draws=False), random_state=0).fit(frame)
    table = est.taste_distribution().loc["z"]
    known = exact("lognormal", est.coef_["z"], est.coef_["sd.z"])
    np.testing.assert_allclose([table["mean"], table["sd"]], known, rtol=1e-9)
    assert table["mean_error"] > 0
    fixed = MixedLogit(fixed=["z"], method=MSLE(), random_state=0).fit(frame)
    assert fixed.taste_distribution().empty


@pytest.mark.parametrize(
    ("latent", "mean", "sd"),
    [(0.3, True, True), (4.0, True, True), (30.0, True, False), (400.0, False, False)],
    ids=["usual", "wide", "squares beyond all numbers", "beyond all numbers"],
)
def test_moments_of_wide_lognormals_are_medians_and_said(latent, mean, sd):
    """Nothing but one sentence is said, where moments have no finite mean; which of them are finite themselves."""
    space = ParameterSpace((), ("z",), ((0,),))
    vectors = torch.zeros(400, 2, dtype=torch.float64)
    vectors[:, 1] = torch.linspace(-0.5, 0.5, 400, dtype=torch.float64) + math.log(latent)
    samples = SimpleNamespace(kind="posterior", unconstrained=vectors)
    fit = SimpleNamespace(samples=samples, center=space.constrain(vectors.mean(0)), void=())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        row = taste_frame(SimpleNamespace(space=space, mixing=Mixing(["lognormal"]), varying=[0]), fit).loc["z"]
    assert [warning.category for warning in said] == [ConvergenceWarning] * (latent > 1.0)
    assert math.isfinite(row["mean"]) == mean
    assert math.isfinite(row["sd"]) == sd
    assert not mean or math.log(row["mean"]) == pytest.approx(0.5 * latent**2, rel=0.02, abs=0.01)
