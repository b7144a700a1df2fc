"""The exact posterior of a model with one fixed coefficient and one random one, by grids: shares no code with mxlogit.

The table of P(choices of n | fixed coefficient, latent) is made once, by a softmax written here; everything else is
sums over it. Parameters are (x, z, sd.z): fixed coefficient, location and standard deviation of the latent normal.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

LABELS = ("x", "z", "sd.z")
# Points of each axis: coarse to find where the posterior lies, then fine within some sds of its mean.
_COARSE, _FINE, _WIDTH = (15, 15, 15), (25, 25, 31), 4.5
# Latents: trapezoids between these, exact to many digits while they are narrower than the standard deviation.
_LATENTS = np.linspace(-9.0, 11.0, 401)


@dataclass(frozen=True)
class Choices:
    """Panels of equal length: attributes (n, t, j, 2) in the order x, z; chosen positions and masks (n, t)."""

    attributes: np.ndarray
    chosen: np.ndarray
    available: np.ndarray
    weights: np.ndarray

    @classmethod
    def of_frame(cls, frame, weights=None):
        """From a long frame of `simulate_choices`, with any alternatives unavailable and any situations missing."""
        people, labels = sorted(frame["id"].unique()), sorted(frame["alternative"].unique())
        table = frame.set_index(["id", "situation", "alternative"])[["x", "z", "choice"]].astype(float)
        situations = sorted(frame["situation"].unique())
        full = pd.MultiIndex.from_product([people, situations, labels])
        cells = table.reindex(full).to_numpy().reshape(len(people), len(situations), len(labels), 3)
        available = ~np.isnan(cells[..., 2])
        cells = np.nan_to_num(cells)
        weight = np.ones(len(people)) if weights is None else np.asarray(weights, dtype=float)
        return cls(cells[..., :2], cells[..., 2].argmax(-1), available, weight)


def probability_table(data, fixed, tastes):
    """Probability of all people's choices (n, f, b) at fixed coefficients (f,) and tastes (b,)."""
    result = np.ones((len(data.chosen), len(fixed), len(tastes)))
    for t in range(data.chosen.shape[1]):
        # Situations that a person does not have say nothing.
        real = data.available[:, t].any(-1)
        attributes = data.attributes[real, t]
        gaps = attributes - np.take_along_axis(attributes, data.chosen[real, t, None, None], 1)
        total = np.zeros((len(gaps), *result.shape[1:]))
        for j in range(gaps.shape[1]):
            x, z = gaps[:, j].T
            utility = x[:, None, None] * fixed[:, None] + z[:, None, None] * tastes
            # Odds that overflow are those of choices that are not made.
            with np.errstate(over="ignore"):
                total += np.where(data.available[real, t, j, None, None], np.exp(utility), 0.0)
        result[real] /= total
    return result


def densities(locations, sds):
    """Masses (b, l * s) of normal latents at the table's points."""
    step = _LATENTS[1] - _LATENTS[0]
    z = (_LATENTS[:, None, None] - locations[:, None]) / sds
    return (np.exp(-0.5 * z**2) * step / (sds * np.sqrt(2.0 * np.pi))).reshape(len(_LATENTS), -1)


def log_likelihood(data, x, z, sd, taste=lambda latent: latent):
    """Weighted log likelihood at one value of the parameters."""
    table = probability_table(data, np.array([x]), taste(_LATENTS))[:, 0]
    return float(data.weights @ np.log(table @ densities(np.array([z]), np.array([sd]))[:, 0]))


@dataclass(frozen=True)
class Axes:
    """Points of the three axes, and the mass (f, l, s) of the posterior at them."""

    points: tuple
    mass: np.ndarray

    def moments(self):
        """Means and standard deviations (3,)."""
        found = []
        for axis, points in enumerate(self.points):
            marginal = self.mass.sum(tuple(other for other in range(3) if other != axis))
            mean = marginal @ points
            found.append((mean, np.sqrt(marginal @ (points - mean) ** 2)))
        return np.array(found).T


class GridPosterior:
    """Posterior under normal priors of x and z and a half-Cauchy of the standard deviation, in the user's units.

    Parameters
    ----------
    data : Choices
    location_scale, sd_scale : float
        As of `Priors`.
    taste : callable
        From latents to tastes: the identity for a normal coefficient, `numpy.exp` for a lognormal one.
    around : pair of arrays (3,)
        Where to look first: centre and half-width of each axis.
    """

    def __init__(self, data, location_scale, sd_scale, taste=lambda latent: latent, around=((0, 0, 1.5), (4, 4, 1.45))):
        self.data, self.taste = data, taste
        self.scales = location_scale, sd_scale
        centre, half = (np.asarray(part, dtype=float) for part in around)
        axes = self._evaluate(centre - half, centre + half, _COARSE)
        # Trapezoids are exact to many digits where their width is half a standard deviation.
        while True:
            mean, sd = axes.moments()
            step = np.array([points[1] - points[0] for points in axes.points])
            if (step < 0.5 * sd).all():
                break
            wide = _WIDTH * np.maximum(sd, step)
            low = mean - wide
            low[2] = max(low[2], _LATENTS[1] - _LATENTS[0])
            axes = self._evaluate(low, mean + wide, _FINE)
        self.axes = axes
        mean, sd = axes.moments()
        self.mean, self.sd = pd.Series(mean, LABELS), pd.Series(sd, LABELS)

    def log_people(self, fixed, locations, sds):
        """Log marginal probability of all people's choices, (n, f, l, s)."""
        table = probability_table(self.data, fixed, self.taste(_LATENTS))
        n, f, b = table.shape
        product = table.reshape(n * f, b) @ densities(locations, sds)
        return np.log(product).reshape(n, f, len(locations), len(sds))

    def log_likelihood(self, x, z, sd):
        """Weighted log likelihood at one value of the parameters."""
        return log_likelihood(self.data, x, z, sd, self.taste)

    def _evaluate(self, low, high, counts):
        points = tuple(np.linspace(a, b, count) for a, b, count in zip(low, high, counts, strict=True))
        x, z, sd = points
        log_mass = np.einsum("n,nfls->fls", self.data.weights, self.log_people(x, z, sd))
        location_scale, sd_scale = self.scales
        log_mass += stats.norm(0.0, location_scale).logpdf(x)[:, None, None]
        log_mass += stats.norm(0.0, location_scale).logpdf(z)[:, None]
        log_mass += stats.halfcauchy(scale=sd_scale).logpdf(sd)
        mass = np.exp(log_mass - log_mass.max())
        return Axes(points, mass / mass.sum())

    def probability_below(self, label, values):
        """Posterior probability that a parameter is below each of some values."""
        axis = LABELS.index(label)
        points = self.axes.points[axis]
        marginal = self.axes.mass.sum(tuple(other for other in range(3) if other != axis))
        edges = np.concatenate([points - 0.5 * (points[1] - points[0]), [points[-1] + 0.5 * (points[1] - points[0])]])
        return np.interp(values, edges, np.concatenate([[0.0], marginal.cumsum()]))

    def tastes(self, data=None):
        """Posterior means and standard deviations (n,) of people's tastes, seen or not, over that of the parameters."""
        x, z, sd = self.axes.points
        table = probability_table(self.data if data is None else data, x, self.taste(_LATENTS))
        n, f, b = table.shape
        masses, taste = densities(z, sd), self.taste(_LATENTS)
        moments = [(table * taste**power).reshape(n * f, b) @ masses for power in range(3)]
        mass = self.axes.mass.reshape(f, -1)
        first, second = (((m / moments[0]).reshape(n, f, -1) * mass).sum((1, 2)) for m in moments[1:])
        return first, np.sqrt(second - first**2)

    def leave_one_out(self):
        """Log predictive density (n,) of every person's choices given the choices of all others."""
        each = self.log_people(*self.axes.points)
        return -np.log((self.axes.mass * np.exp(-each)).sum((1, 2, 3)))

    def maximum_likelihood(self):
        """Maximiser, standard errors by the inverse Hessian (central differences) and the maximum, by scipy."""
        start = [*self.mean[:2], np.log(self.mean["sd.z"])]
        found = optimize.minimize(lambda v: -self.log_likelihood(v[0], v[1], np.exp(v[2])), start)
        best = np.array([found.x[0], found.x[1], np.exp(found.x[2])])
        steps = 0.02 * np.diag(self.sd.to_numpy())
        value = lambda v: self.log_likelihood(*v)  # noqa: E731

        def second(a, b):
            difference = value(best + a + b) - value(best + a - b) - value(best - a + b) + value(best - a - b)
            return difference / (4.0 * a.max() * b.max())

        hessian = np.array([[second(a, b) for b in steps] for a in steps])
        return pd.Series(best, LABELS), pd.Series(np.sqrt(np.diag(np.linalg.inv(-hessian))), LABELS), -found.fun


class TwoTastes:
    """Posterior of two correlated normal coefficients: likelihood by a grid over both, moments by importance sampling.

    Parameters are (z, w, sd.z, sd.w, cor.z:w), under normal, half-Cauchy and uniform priors. Draws of a Student-t at the
    maximum are weighted by the exact posterior: errors of a few hundredths of a posterior sd.

    Parameters
    ----------
    attributes : ndarray, shape (n, t, j, 2)
    chosen : ndarray, shape (n, t)
    location_scale, sd_scale : float
    """

    LABELS = ("z", "w", "sd.z", "sd.w", "cor.z:w")
    _POINTS = np.linspace(-7.0, 7.0, 71)
    _DRAWS, _FREEDOM, _AT_ONCE = 4_000, 5.0, 250

    def __init__(self, attributes, chosen, location_scale, sd_scale):
        self.scales = location_scale, sd_scale
        first, second = (axis.ravel() for axis in np.meshgrid(self._POINTS, self._POINTS, indexing="ij"))
        self.grid = np.stack([first, second])
        self.table = np.ones((len(chosen), self.grid.shape[1]))
        for t in range(chosen.shape[1]):
            odds = np.exp(attributes[:, t] @ self.grid)
            self.table *= np.take_along_axis(odds, chosen[:, t, None, None], 1)[:, 0] / odds.sum(1)
        start = optimize.minimize(lambda v: -self.log_posterior(v[None])[0], np.zeros(5), method="BFGS").x
        root = np.linalg.cholesky(np.linalg.inv(self._curvature(start)))
        rng = np.random.default_rng(5)
        normal = rng.standard_normal((self._DRAWS, 5))
        stretch = np.sqrt(self._FREEDOM / rng.chisquare(self._FREEDOM, (self._DRAWS, 1)))
        vectors = start + (normal * stretch) @ root.T
        family = stats.multivariate_t(start, root @ root.T, df=self._FREEDOM)
        log_weights = self.log_posterior(vectors) - family.logpdf(vectors)
        weights = np.exp(log_weights - log_weights.max())
        self.weights = weights / weights.sum()
        self.values = self.natural(vectors)
        mean = self.weights @ self.values
        self.mean = pd.Series(mean, self.LABELS)
        self.sd = pd.Series(np.sqrt(self.weights @ (self.values - mean) ** 2), self.LABELS)
        self.ess = 1.0 / (self.weights**2).sum()

    @staticmethod
    def natural(vectors):
        """Parameters (m, 5) of unconstrained vectors: logs of sds, inverse hyperbolic tangent of the correlation."""
        return np.concatenate([vectors[:, :2], np.exp(vectors[:, 2:4]), np.tanh(vectors[:, 4:])], 1)

    def log_likelihood(self, values):
        """Log likelihood (m,) at parameters (m, 5)."""
        parts = []
        for z, w, a, b, r in (block.T for block in np.array_split(values, -(-len(values) // self._AT_ONCE))):
            u = (self.grid[0][:, None] - z) / a
            v = ((self.grid[1][:, None] - w) / b - r * u) / np.sqrt(1.0 - r**2)
            cell = (self._POINTS[1] - self._POINTS[0]) ** 2
            density = np.exp(-0.5 * (u**2 + v**2)) * cell / (2.0 * np.pi * a * b * np.sqrt(1.0 - r**2))
            parts.append(np.log(self.table @ density).sum(0))
        return np.concatenate(parts)

    def log_posterior(self, vectors):
        """Log density (m,) of unconstrained vectors (m, 5), Jacobians included."""
        values = self.natural(vectors)
        location_scale, sd_scale = self.scales
        prior = stats.norm(0.0, location_scale).logpdf(values[:, :2]).sum(1)
        prior += (stats.halfcauchy(scale=sd_scale).logpdf(values[:, 2:4]) + vectors[:, 2:4]).sum(1)
        return self.log_likelihood(values) + prior + np.log1p(-(values[:, 4] ** 2))

    def _curvature(self, at, step=0.02):
        """Minus the Hessian (5, 5) by central differences."""
        moves = step * np.eye(5)
        pairs = [(a, b) for a in moves for b in moves]
        points = np.array([at + s * a + t * b for a, b in pairs for s, t in ((1, 1), (1, -1), (-1, 1), (-1, -1))])
        values = self.log_posterior(points).reshape(5, 5, 4)
        return -(values @ np.array([1.0, -1.0, -1.0, 1.0])) / (4.0 * step**2)
