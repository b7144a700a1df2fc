"""The exact posterior of a model with one random coefficient of any distribution, by sums: shares no code with mxlogit.

Parameters are the location and the standard deviation of the latent normal, z and sd.z. The population is 400 equal
shares; the posterior is summed over a grid of log sd.z (up to 400) and location, narrowed to where its mass lies.
"""

import math

import numpy as np
import pandas as pd
from scipy import interpolate, special, stats

LABELS = ("z", "sd.z")
# Equal shares of the population, each at the middle of its quantiles.
_SHARES = (np.arange(400) + 0.5) / 400
# Points of an axis, coarse and fine, and of the spline through these; nats below the highest point beyond which a grid
# is cut, coarse and fine.
_POINTS, _CUTS, _FINE = (21, 21, 21, 41), (60.0, 40.0, 20.0), 500
# Logarithms of standard deviations, and locations in units of sqrt(1 + sd^2), that are searched.
_SIZES, _PLACES = (math.log(0.02), math.log(400.0)), (-10.0, 10.0)
# Odds held at once.
_CELLS = 1_000_000


def _triangular(location, size):
    lower = np.sqrt(2.0 * np.minimum(_SHARES, 1.0 - _SHARES))
    return location + size * np.where(_SHARES < 0.5, lower - 1.0, 1.0 - lower)


def _truncated(location, size):
    """Quantiles of a normal truncated at zero; beyond 8 standard deviations below, of the exponential it approaches."""
    bound = -location / size
    if bound > 8.0:
        return -size / bound * np.log1p(-_SHARES)
    return location - size * special.ndtri(special.ndtr(-bound) * (1.0 - _SHARES))


_NORMAL = special.ndtri(_SHARES)
QUANTILES = {
    "normal": lambda location, size: location + size * _NORMAL,
    "lognormal": lambda location, size: np.exp(np.minimum(location + size * _NORMAL, 40.0)),
    "censored_normal": lambda location, size: np.maximum(location + size * _NORMAL, 0.0),
    "johnson_sb": lambda location, size: special.expit(location + size * _NORMAL),
    "uniform": lambda location, size: location + size * (2.0 * _SHARES - 1.0),
    "triangular": _triangular,
    "truncated_normal": _truncated,
}


class OneTaste:
    """Posterior under a normal prior of the location and a half-Cauchy one of the standard deviation.

    Parameters
    ----------
    frame : DataFrame
        Of `mxlogit.simulate.simulate_choices`, equal panels and sets, with the one attribute z.
    family : str
        A key of `QUANTILES`.
    location_scale, sd_scale : float
        As of `Priors`.
    """

    def __init__(self, frame, family, location_scale, sd_scale):
        rows = frame.sort_values(["id", "situation", "alternative"])
        shape = frame["id"].nunique(), frame["situation"].nunique(), -1
        values, chosen = rows["z"].to_numpy().reshape(shape), rows["choice"].to_numpy(bool).reshape(shape)
        others = values[~chosen].reshape(*shape[:2], -1)
        self.gaps = (others - values[chosen].reshape(*shape[:2], 1)).astype(np.float32)
        self.quantiles, self.scales = QUANTILES[family], (location_scale, sd_scale)
        low, high = np.array([_SIZES[0], _PLACES[0]]), np.array([_SIZES[1], _PLACES[1]])
        for count, cut in zip(_POINTS, (*_CUTS, None), strict=True):
            axes = [np.linspace(a, b, count) for a, b in zip(low, high, strict=True)]
            log_mass = np.array([[self.log_density(u, v) for v in axes[1]] for u in axes[0]])
            if cut is None:
                break
            inside = np.argwhere(log_mass > log_mass.max() - cut)
            steps = (high - low) / (count - 1)
            low, high = low + (inside.min(0) - 1) * steps, low + (inside.max(0) + 1) * steps
        # Smooth in between: cells narrow enough for quantiles.
        spline = interpolate.RectBivariateSpline(*axes, log_mass)
        axes = [np.linspace(axis[0], axis[-1], _FINE) for axis in axes]
        mass = np.exp(spline(*axes) - log_mass.max())
        self.mass = mass / mass.sum()
        sizes = np.exp(axes[0])[:, None]
        self.values = {"z": axes[1] * np.sqrt(1.0 + sizes**2), "sd.z": np.broadcast_to(sizes, mass.shape)}
        self.mean = pd.Series({name: float((self.mass * self.values[name]).sum()) for name in LABELS})
        squares = {name: float((self.mass * (self.values[name] - self.mean[name]) ** 2).sum()) for name in LABELS}
        self.sd = pd.Series(squares) ** 0.5

    def log_density(self, log_size, place):
        """Log posterior density in log sd.z and the location over sqrt(1 + sd.z^2), up to a constant."""
        size = math.exp(log_size)
        stretch = math.hypot(1.0, size)
        location = place * stretch
        prior = stats.norm.logpdf(location, 0.0, self.scales[0]) + stats.halfcauchy.logpdf(size, 0.0, self.scales[1])
        return self.log_likelihood(location, size) + prior + log_size + math.log(stretch)

    def log_likelihood(self, location, size):
        tastes = self.quantiles(location, size).astype(np.float32)
        total, (people, situations, others) = 0.0, self.gaps.shape
        at_once = max(1, _CELLS // (situations * others * len(tastes)))
        for first in range(0, people, at_once):
            utility = self.gaps[first : first + at_once, ..., None] * tastes
            # The odds of others, bounded where a choice is impossible.
            odds = np.exp(np.minimum(utility, 80.0, out=utility), out=utility).sum(2)
            probability = np.exp(-np.log1p(odds).sum(1).astype(np.float64)).mean(1)
            total += float(np.log(np.maximum(probability, 1e-300)).sum())
        return total

    def quantile(self, name, share):
        """Quantile of a parameter, by linear interpolation of its distribution function."""
        if name == "sd.z":
            mass, values = self.mass.sum(1), self.values[name][:, 0]
        else:
            order = self.values[name].ravel().argsort()
            mass, values = self.mass.ravel()[order], self.values[name].ravel()[order]
        return float(np.interp(share, mass.cumsum() - 0.5 * mass, values))
