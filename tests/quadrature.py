"""Posteriors of mixed logits with normal tastes by Gauss-Hermite quadrature: what engines must agree with.

Nothing of an engine is used: utilities, integral, prior and Jacobian are written out, and the posterior is weighed on
quasi-random points (for the largest sizes, an engine's posterior says where these are). Run as a program, it writes the posterior means and standard deviations of `tests/reference/
posterior_sds.json`: an hour of one thread. Coordinates are locations, log standard deviations and inverse hyperbolic tangents of partial
correlations, of which a correlation matrix is made row by row; the prior is that of ``Priors()``.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, stats
from scipy.stats import qmc

LOCATION_SCALE, SD_SCALE = 10.0, 2.5
# Nodes per taste, by their number, for standard deviations of tastes of about one. Of 14 nodes with 1.5 to 2 and one
# choice each of 800 people, differences of the log likelihood err by .4 nats, of 40 by .03. Of 11 nodes with three tastes,
# five choices of 500 people, differences of 9.8 err by .5, of 14 by .2, of 18 by .05.
NODES = {1: 32, 2: 14, 3: 18}
DEGREES_OF_FREEDOM = 5
# Odds held at once, two megabytes: within a processor's cache.
CELLS_AT_ONCE = 500_000
# Of single precision: exp(88) does not overflow, exp(-87) is not zero.
LARGEST_EXPONENT = 85.0


@dataclass(frozen=True)
class Moments:
    """Posterior means and standard deviations of locations, standard deviations and correlations."""

    mean: np.ndarray
    sd: np.ndarray


class Quadrature:
    """Log posterior of up to three correlated normal tastes from a frame of equal panels and sets."""

    def __init__(self, frame: pd.DataFrame, names: list[str], nodes: int | None = None) -> None:
        people, situations = frame["id"].nunique(), frame["situation"].nunique()
        shape = people, situations, -1
        values, chosen = frame[names].to_numpy().reshape(*shape, len(names)), frame["choice"].to_numpy().reshape(shape)
        others = values[~chosen].reshape(people, situations, -1, len(names))
        self.differences = (others - values[chosen].reshape(people, situations, 1, -1)).astype(np.float32)
        self.k = len(names)
        # Fewer utilities than tastes have a normal distribution of their own, and need no more dimensions.
        self.by_utilities = situations * self.differences.shape[2] < self.k
        dimensions = situations * self.differences.shape[2] if self.by_utilities else self.k
        places, weights = np.polynomial.hermite_e.hermegauss(nodes or NODES[dimensions])
        self.places, self.weights = places.astype(np.float32), weights / weights.sum()
        for _ in range(dimensions - 1):
            self.weights = np.multiply.outer(self.weights, weights / weights.sum())
        self.weights = self.weights.ravel()

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
        point = np.asarray(point)
        scale_tril = np.exp(point[self.k : 2 * self.k])[:, None] * self.correlation_tril(point)[0]
        total = 0.0
        cells = self.differences[..., 0].size * len(self.weights)
        for part in np.array_split(self.differences, math.ceil(cells / CELLS_AT_ONCE)):
            inverse = self.inverse_probabilities(part, point[: self.k], scale_tril)
            total += float(np.log((1.0 / inverse) @ self.weights).sum())
        return total

    def inverse_probabilities(self, part: np.ndarray, location: np.ndarray, scale_tril: np.ndarray) -> np.ndarray:
        """Inverse probabilities of some people's choices (people, nodes)."""
        level, slopes = self.utilities(part, location, scale_tril)
        # Nodes at which a choice is all but impossible overflow to a probability of zero.
        with np.errstate(over="ignore"):
            return (1.0 + self.odds(level, slopes).sum(2)).prod(1)

    def utilities(
        self, part: np.ndarray, location: np.ndarray, scale_tril: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Levels and slopes in standard normals of utilities of the others beside the chosen alternative."""
        flat = part.reshape(len(part), -1, self.k).astype(np.float64)
        level, slopes = flat @ location, flat @ scale_tril
        if self.by_utilities:
            # Alternatives of equal attributes have equal utilities: a variance of a millionth keeps the factor real.
            slopes = np.linalg.cholesky(slopes @ slopes.transpose(0, 2, 1) + 1e-6 * np.eye(flat.shape[1]))
        return level.reshape(part.shape[:3]), slopes.reshape(*part.shape[:3], -1)

    def odds(self, level: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Exponentials of utilities (people, situations, others, nodes).

        Each is a product over dimensions, so that exponentials are taken of nodes per dimension only, within what
        single precision holds: beyond, a probability is zero or one.
        """
        odds = np.exp(level, dtype=np.float32)[..., None]
        for slope in np.moveaxis(slopes, -1, 0):
            exponent = np.multiply.outer(slope.astype(np.float32), self.places)
            factor = np.exp(exponent.clip(-LARGEST_EXPONENT, LARGEST_EXPONENT))
            odds = (odds[..., :, None] * factor[..., None, :]).reshape(*level.shape, -1)
        return odds

    def log_prior(self, point: np.ndarray) -> float:
        """Normal locations, half-Cauchy standard deviations, uniform correlations.

        Densities of locations, standard deviations and the coordinates of correlations.
        """
        location, sd = point[: self.k], np.exp(point[self.k : 2 * self.k])
        value = -0.5 * np.square(location / LOCATION_SCALE).sum() - np.log1p(np.square(sd / SD_SCALE)).sum()
        return float(value + self.correlation_tril(point)[1])

    def bent(self, point: np.ndarray) -> np.ndarray:
        """Coordinates (..., D) with asinh(sd / 2), of those with log standard deviations."""
        bent = point.copy()
        bent[..., self.k : 2 * self.k] = np.arcsinh(0.5 * np.exp(point[..., self.k : 2 * self.k]))
        return bent

    def unbent(self, bent: np.ndarray) -> np.ndarray:
        """Coordinates with log standard deviations, of those with asinh(sd / 2).

        These are linear in small standard deviations, of which zero is an edge that has its part of the posterior, and
        logarithmic in large ones.
        """
        point = bent.copy()
        point[self.k : 2 * self.k] = np.log(2.0 * np.sinh(np.abs(bent[self.k : 2 * self.k])) + 1e-12)
        return point

    def __call__(self, bent: np.ndarray) -> float:
        """Log posterior density of bent coordinates; the same for either sign of a standard deviation."""
        point, jacobian = self.unbent(bent), np.log(np.cosh(bent[self.k : 2 * self.k])).sum()
        return self.log_likelihood(point) + self.log_prior(point) + float(jacobian)

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
        """Posterior moments by importance weights on quasi-random points of a Student-t.

        Its centre and shape are the mode's for a quarter as many points, whose moments it has for the rest.
        """
        centre, covariance = self.laplace(self.bent(start))
        drawn, weights = self.weigh(centre, covariance, points // 4, seed)
        centre = weights @ drawn
        covariance = (drawn - centre).T @ (weights[:, None] * (drawn - centre))
        return self.moments_around(centre, covariance, points, seed + 1)

    def moments_around(self, centre: np.ndarray, covariance: np.ndarray, points: int, seed: int = 0) -> Moments:
        """Posterior moments by importance weights on quasi-random points of one Student-t."""
        drawn, weights = self.weigh(centre, covariance, points, seed)
        assert 1.0 / np.square(weights).sum() > 0.3 * points, "the Student-t is too far from the posterior"
        reported = np.array([self.report(self.unbent(point)) for point in drawn])
        mean = weights @ reported
        return Moments(mean, np.sqrt(weights @ np.square(reported - mean)))

    def weigh(
        self, centre: np.ndarray, covariance: np.ndarray, points: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points of a Student-t and their weights."""
        uniform = qmc.Sobol(len(centre) + 1, rng=seed).random(points).clip(1e-9, 1.0 - 1e-9)
        stretch = np.sqrt(DEGREES_OF_FREEDOM / stats.chi2.ppf(uniform[:, -1:], DEGREES_OF_FREEDOM))
        drawn = centre + stretch * stats.norm.ppf(uniform[:, :-1]) @ np.linalg.cholesky(covariance).T
        inside = (drawn[:, self.k : 2 * self.k] > 0.0).all(1)
        log_weights = np.array([self(point) if real else -np.inf for point, real in zip(drawn, inside, strict=True)])
        log_weights -= stats.multivariate_t(centre, covariance, DEGREES_OF_FREEDOM).logpdf(drawn)
        weights = np.exp(log_weights - log_weights.max())
        return drawn, weights / weights.sum()


class LognormalQuadrature(Quadrature):
    """The same with a lognormal first taste: utilities are exponentials of nothing simple, and taken at every node."""

    def inverse_probabilities(self, part: np.ndarray, location: np.ndarray, scale_tril: np.ndarray) -> np.ndarray:
        nodes = np.stack(np.meshgrid(*[self.places] * self.k, indexing="ij")).reshape(self.k, -1)
        tastes = location[:, None] + scale_tril @ nodes
        tastes[0] = np.exp(np.minimum(tastes[0], LARGEST_EXPONENT))
        exponent = (part @ tastes.astype(np.float32)).clip(-LARGEST_EXPONENT, LARGEST_EXPONENT)
        with np.errstate(over="ignore"):
            return (1.0 + np.exp(exponent, out=exponent).sum(2)).prod(1)


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


REFERENCE = Path(__file__).parent / "reference" / "posterior_sds.json"
# Populations of the reference, and the seed of `simulate_choices`, which gives 30,001 people; the first of them are taken, as many as needed.
TASTES, SEED, N_SIMULATED = {"z": (0.5, 1.0), "w": (-0.5, 1.0), "v": (0.3, 0.8)}, 8, 30_001
# Few choices of 100 people do not tell standard deviations of several tastes from infinite ones: posteriors have the
# prior's tail there, without moments to compare (one choice), or with moments of which a fifth is far out (two, three tastes).
CASES = [
    *((people, situations, 1) for situations in (1, 2, 5) for people in (100, 500, 2_000, 5_000, 20_000, 30_000)),
    *((people, situations, 2) for situations in (1, 2) for people in (500, 2_000, 5_000)),
    *((people, 5, 2) for people in (100, 500, 2_000)),
    (100, 2, 2),
    (501, 1, 1),
    (501, 2, 2),
    (500, 5, 3),
    *((people, 1, 3) for people in (2_000, 5_000, 20_000, 30_000)),
    *((people, 2, 3) for people in (500, 2_000, 5_000)),
    *((people, 1, 2) for people in (20_000, 30_000)),
    *((people, 5, 2) for people in (5_000, 20_000)),
    (20_000, 2, 2),
    *((people, 5, 3) for people in (100, 2_000, 5_000)),
    (30_000, 5, 2),
    (20_000, 2, 3),
    (20_000, 5, 3),
    (30_000, 2, 3),
]

# Sizes at which one value takes over a second, so that no mode is searched.
PLACED = [(20_000, 5, 3), (30_000, 2, 3)]


def first_people(people: int, situations: int, tastes: int) -> tuple[pd.DataFrame, list[str]]:
    """Choices of the first people of a population of the reference, and the names of its tastes."""
    from mxlogit.simulate import simulate_choices

    names = list(TASTES)[:tastes]
    random = {name: TASTES[name] for name in names}
    frame, _ = simulate_choices(N_SIMULATED, situations, 3, random=random, random_state=SEED)
    return frame[frame["id"] <= people], names


def place_of_fit(quadrature: Quadrature, frame: pd.DataFrame, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, in bent coordinates, of the default engine's posterior: where points are, not what they weigh."""
    from mxlogit import MixedLogit

    samples = MixedLogit(random=names, random_state=0).fit(frame).posterior_samples().to_numpy()
    k = quadrature.k
    correlation = np.eye(k) * np.ones((len(samples), 1, 1))
    rows, columns = np.triu_indices(k, 1)
    correlation[:, rows, columns] = correlation[:, columns, rows] = samples[:, 2 * k :]
    tril, partial = np.linalg.cholesky(correlation), []
    for i in range(1, k):
        for j in range(i):
            partial.append(np.arctanh(tril[:, i, j] / np.sqrt(1.0 - np.square(tril[:, i, :j]).sum(1))))
    points = quadrature.bent(np.column_stack([samples[:, :k], np.log(samples[:, k : 2 * k]), *partial]))
    return points.mean(0), np.cov(points.T)


def write_reference() -> None:
    """Add to the reference what it lacks, case by case."""
    found = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else []
    for people, situations, tastes in CASES:
        if any((r["people"], r["situations"], r["tastes"]) == (people, situations, tastes) for r in found):
            continue
        frame, names = first_people(people, situations, tastes)
        # Few choices of few people leave wide standard deviations possible, whose integrals need more nodes.
        wide = people <= 501 and situations <= 2
        dimensions = min(tastes, 2 * situations)
        nodes = {1: 64 if people <= 5_000 else 32, 2: 40 if wide else 16, 3: 18}[dimensions]
        cheap = (people <= 501 and tastes < 3) or (people <= 20_000 and dimensions < tastes)
        few = people > 5_000 or tastes == 1 or (people, situations, tastes) == (5_000, 5, 3)
        points = 4_096 if cheap else 1_024 if few else 2_048
        quadrature = Quadrature(frame, names, nodes)
        if (people, situations, tastes) in PLACED:
            moments = quadrature.moments_around(*place_of_fit(quadrature, frame, names), points)
        else:
            start = starting_point(*([TASTES[name][i] for name in names] for i in (0, 1)))
            moments = quadrature.moments(start, points)
        record = {"people": people, "situations": situations, "tastes": tastes, "nodes": nodes, "points": points}
        found.append({**record, "mean": moments.mean.round(5).tolist(), "sd": moments.sd.round(5).tolist()})
        REFERENCE.write_text("[\n" + ",\n".join(json.dumps(r) for r in found) + "\n]\n")
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)


if __name__ == "__main__":
    write_reference()
