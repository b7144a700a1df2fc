"""Posteriors of mixed logits with normal tastes by Gauss-Hermite quadrature: what engines must agree with.

Nothing of an engine is used: utilities, integral, prior and Jacobian are written out, and the posterior is weighed on
quasi-random points. Coordinates are locations, log standard deviations and inverse hyperbolic tangents of partial
correlations, of which a correlation matrix is made row by row; the prior is that of ``Priors()``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats
from scipy.stats import qmc

LOCATION_SCALE, SD_SCALE = 10.0, 2.5
# Nodes per taste, by their number: twice as many change posterior sds by less than a thousandth.
NODES = {1: 32, 2: 14, 3: 11}
DEGREES_OF_FREEDOM = 5


@dataclass(frozen=True)
class Moments:
    """Posterior means and standard deviations of locations, standard deviations and correlations."""

    mean: np.ndarray
    sd: np.ndarray


class Quadrature:
    """Log posterior of up to three correlated normal tastes from a frame of equal panels and sets."""

    def __init__(self, frame: pd.DataFrame, names: list[str]) -> None:
        people, situations = frame["id"].nunique(), frame["situation"].nunique()
        shape = people, situations, -1
        values, chosen = frame[names].to_numpy().reshape(*shape, len(names)), frame["choice"].to_numpy().reshape(shape)
        others = values[~chosen].reshape(people, situations, -1, len(names))
        self.differences = (others - values[chosen].reshape(people, situations, 1, -1)).astype(np.float32)
        self.k = len(names)
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES[self.k])
        self.nodes = np.stack(np.meshgrid(*[nodes] * self.k, indexing="ij"), -1).reshape(-1, self.k)
        self.log_weights = sum(np.meshgrid(*[np.log(weights / weights.sum())] * self.k, indexing="ij")).ravel()

    def correlation_tril(self, point: np.ndarray) -> tuple[np.ndarray, float]:
        """Cholesky factor of the correlation matrix, and the log density of its coordinates.

        Uniform over matrices: given the rows above, and the partial correlations before it in its row, a partial
        correlation p has a density as (1 - p^2) to half the number of tastes that come after the pair's first one and
        are not its second (Lewandowski, Kurowicka and Joe 2009, Journal of Multivariate Analysis 100).
        """
        tril, log_density, partial = np.eye(self.k), 0.0, iter(np.tanh(point[2 * self.k :]))
        for i in range(1, self.k):
            left = 1.0
            for j in range(i):
                p = next(partial)
                tril[i, j] = p * math.sqrt(left)
                left *= 1.0 - p * p
                # One power more is the derivative of the hyperbolic tangent.
                log_density += (1.0 + 0.5 * (self.k - 2 - j)) * math.log1p(-p * p)
            tril[i, i] = math.sqrt(left)
        return tril, log_density

    def log_likelihood(self, point: np.ndarray) -> float:
        sd = np.exp(point[self.k : 2 * self.k])
        tastes = point[: self.k] + self.nodes @ (sd[:, None] * self.correlation_tril(point)[0]).T
        total = 0.0
        for part in np.array_split(self.differences, max(1, len(self.differences) // 1_000)):
            # Nodes at which a choice is all but impossible overflow to a probability of zero.
            with np.errstate(over="ignore"):
                odds = np.exp(part @ tastes.T.astype(np.float32)).sum(2)
            joint = self.log_weights - np.log1p(odds).sum(1, dtype=np.float64)
            top = joint.max(1)
            total += float((top + np.log(np.exp(joint - top[:, None]).sum(1))).sum())
        return total

    def log_prior(self, point: np.ndarray) -> float:
        """Normal locations, half-Cauchy standard deviations, uniform correlations; with Jacobians."""
        location, log_sd = point[: self.k], point[self.k : 2 * self.k]
        value = -0.5 * np.square(location / LOCATION_SCALE).sum()
        value += (log_sd - np.log1p(np.square(np.exp(log_sd) / SD_SCALE))).sum()
        return float(value + self.correlation_tril(point)[1])

    def __call__(self, point: np.ndarray) -> float:
        return self.log_likelihood(point) + self.log_prior(point)

    def report(self, point: np.ndarray) -> np.ndarray:
        """Locations, standard deviations, correlations."""
        tril, _ = self.correlation_tril(point)
        below = (tril @ tril.T)[np.tril_indices(self.k, -1)]
        return np.concatenate([point[: self.k], np.exp(point[self.k : 2 * self.k]), below])

    def laplace(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mode and inverse of minus the Hessian there, by differences as wide as the posterior."""
        steps = np.full(len(start), 0.05)
        mode = start
        for _ in range(3):
            mode = (
                optimize.minimize(
                    lambda z, m=mode, s=steps: -self(m + s * z),
                    np.zeros(len(start)),
                    options={"eps": 0.1, "gtol": 0.02},
                ).x
                * steps
                + mode
            )
            covariance = np.linalg.inv(minus_hessian(self, mode, steps))
            steps = np.sqrt(np.diag(covariance))
        return mode, covariance

    def moments(self, start: np.ndarray, points: int, seed: int = 0) -> Moments:
        """Posterior moments by importance weights on quasi-random points of a Student-t at the mode."""
        mode, covariance = self.laplace(start)
        uniform = qmc.Sobol(len(mode) + 1, rng=seed).random(points).clip(1e-9, 1.0 - 1e-9)
        stretch = np.sqrt(DEGREES_OF_FREEDOM / stats.chi2.ppf(uniform[:, -1:], DEGREES_OF_FREEDOM))
        drawn = mode + stretch * stats.norm.ppf(uniform[:, :-1]) @ np.linalg.cholesky(covariance).T
        log_weights = np.array([self(point) for point in drawn])
        log_weights -= stats.multivariate_t(mode, covariance, DEGREES_OF_FREEDOM).logpdf(drawn)
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        assert 1.0 / np.square(weights).sum() > 0.3 * points, "the Student-t is too far from the posterior"
        reported = np.array([self.report(point) for point in drawn])
        mean = weights @ reported
        return Moments(mean, np.sqrt(weights @ np.square(reported - mean)))


def minus_hessian(function: Callable[[np.ndarray], float], point: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Minus the second derivatives (D, D) by differences over half a step."""
    moves, centre = np.diag(0.5 * steps), function(point)
    ends = np.array([[function(point + sign * move) for sign in (1, -1)] for move in moves])
    result = np.diag(2.0 * centre - ends.sum(1))
    for i in range(len(moves)):
        for j in range(i):
            both = function(point + moves[i] + moves[j]) + function(point - moves[i] - moves[j])
            result[i, j] = result[j, i] = -0.5 * (both + 2.0 * centre - ends[i].sum() - ends[j].sum())
    return result / np.outer(0.5 * steps, 0.5 * steps)


def starting_point(locations: list[float], sds: list[float]) -> np.ndarray:
    """Coordinates of independent tastes."""
    return np.array([*locations, *(math.log(sd) for sd in sds), *[0.0] * (len(sds) * (len(sds) - 1) // 2)])
