"""Sampling uncertainty of maximum simulated likelihood: covariances, delta method, samples, information criteria."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mxlogit.choices.chunks import PEOPLE_AT_ONCE
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.draws.generators import make_generator
from mxlogit.fit import Samples
from mxlogit.integration.simulated_likelihood import SimulatedLikelihood
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters

COVARIANCES = ("robust", "hessian", "bhhh", "clustered")
# Ratio of curvature to the largest, in coordinates scaled to unit curvature, below which a direction is flat: the
# rounding error of a singular Hessian summed in single precision.
_FLAT = 3e-6
# Smallest absolute entry of a coordinate in a flat eigenvector for which it is reported as unidentified; by hand.
_LEADING = 0.3


class EstimatorCovariance:
    """Covariances of the estimates from the Hessian and the people's scores.

    Parameters
    ----------
    hessian : Tensor, shape (D, D)
        Hessian of the simulated log likelihood at its maximum.
    scores : Tensor, shape (n, D)
        Score of each person, without case weights.
    weights : Tensor, shape (n,)
    sizes : Tensor, shape (D,)
        Natural size of each coordinate, the unit of coordinates without negative curvature.
    clusters : Tensor or None, int64, shape (n,)
        Cluster of each person.

    Attributes
    ----------
    flat : list of int
        Indices of unidentified coordinates: they dominate directions without curvature.
    not_a_maximum : bool
        Whether the Hessian has a positive eigenvalue.
    """

    def __init__(
        self, hessian: Tensor, scores: Tensor, weights: Tensor, sizes: Tensor, clusters: Tensor | None = None
    ) -> None:
        diagonal = -hessian.diagonal()
        self.scales = torch.where(diagonal > 0, diagonal.clamp(min=1e-300).rsqrt(), sizes)
        self.scores = weights[:, None] * scores * self.scales
        self.weights = weights
        self.clusters = None if clusters is None else clusters.cpu().unique(return_inverse=True)[1]
        values, vectors = torch.linalg.eigh(-self.scales[:, None] * hessian * self.scales)
        largest = float(values.abs().max()) if len(values) else 1.0
        good = values > _FLAT * largest
        inverse = torch.where(good, 1.0 / torch.where(good, values, 1.0), 0.0)
        self.not_a_maximum = bool((values < -_FLAT * largest).any())
        self.flat = torch.nonzero((vectors[:, ~good].abs() > _LEADING).any(-1))[:, 0].tolist()
        self.inverse_hessian = (vectors * inverse) @ vectors.T

    def covariance(self, kind: str) -> Tensor:
        """Covariance matrix (D, D) of the coordinates.

        Parameters
        ----------
        kind : {"robust", "hessian", "bhhh", "clustered"}
            Estimator; "clustered" is the sandwich over G clusters times G / (G - 1).
        """
        if kind == "hessian":
            scaled = self.inverse_hessian
        elif kind == "bhhh":
            inverse_weights = 1.0 / self.weights[:, None]
            scaled = torch.linalg.pinv((inverse_weights * self.scores).T @ self.scores, hermitian=True)
        else:
            scores, factor = self.scores, 1.0
            if kind == "clustered":
                assert self.clusters is not None
                count = self.units(kind)
                scores = scores.new_zeros(count, scores.shape[1]).index_add_(0, self.clusters, scores)
                factor = count / max(1, count - 1)
            scaled = factor * self.inverse_hessian @ (scores.T @ scores) @ self.inverse_hessian
        return self.scales[:, None] * scaled * self.scales

    def units(self, kind: str) -> int:
        """Number of independent units of a covariance: people, or clusters."""
        return int(self.clusters.max()) + 1 if kind == "clustered" and self.clusters is not None else len(self.scores)

    def unbounded(self, kind: str) -> list[int]:
        """Indices of coordinates without valid standard errors: flat ones, or all if there are too few units."""
        size = len(self.scales)
        if kind != "hessian" and self.units(kind) <= (size if kind == "bhhh" else 1):
            return list(range(size))
        return [] if kind == "bhhh" else self.flat

    def sentences(self, names: list[str], kind: str) -> list[str]:
        """Warnings about a covariance, given the coordinates' names."""
        sentences, units = [], self.units(kind)
        if kind != "hessian" and units <= len(self.scales):
            what = "clusters" if kind == "clustered" else "decision makers"
            effect = "are missing" if len(self.unbounded(kind)) == len(self.scales) else "are too small"
            sentences.append(
                f"{units} {what} are too few for the '{kind}' covariance of {len(self.scales)} parameters: its "
                f"standard errors {effect}. Use covariance='hessian'."
            )
        return sentences + self._flat_sentences(names)

    def _flat_sentences(self, names: list[str]) -> list[str]:
        if not self.flat:
            return []
        listed = [names[i] for i in self.flat]
        reason = "not negative definite" if self.not_a_maximum else "singular"
        return [
            f"The Hessian is {reason} at the estimate: {listed} are not identified on these draws; their standard "
            "errors are missing. Fix or drop one of them, or use more draws."
        ]


def coordinate_names(simulated: SimulatedLikelihood) -> list[str]:
    """Names of the likelihood's coordinates: coefficients, locations, ``sd.x`` and ``chol.x:y``."""
    space = simulated.model.space
    cells = zip(*space.triangle, strict=True)
    names = [f"sd.{space.random[i]}" if i == j else f"chol.{space.random[j]}:{space.random[i]}" for i, j in cells]
    coefficients = [*space.fixed, *space.random]
    return [*(coefficients[i] for i in space.means), *names]


def column_signs(scale_tril: Tensor) -> Tensor:
    """Signs (*s, k) that make the diagonal of L (*s, k, k) positive."""
    return torch.where(scale_tril.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(scale_tril)


def positive_diagonal(population: PopulationParameters) -> PopulationParameters:
    """Return the same distribution with a positive diagonal of L, by sign changes of its columns."""
    tril = population.scale_tril
    return PopulationParameters(population.fixed, population.location, tril * column_signs(tril)[..., None, :])


def sampling_distribution(
    simulated: SimulatedLikelihood, vector: Tensor, covariance: Tensor, n: int, seed: int
) -> Samples:
    """Sample the asymptotic normal distribution of the coordinates, as population parameters."""
    space = simulated.model.space
    population = positive_diagonal(simulated.population(vector + draw_errors(covariance, n, seed)))
    unconstrained, reported = space.unconstrain(population), space.report(population)
    return Samples(unconstrained, reported, tuple(space.labels), kind="sampling distribution")


def draw_errors(covariance: Tensor, n: int, seed: int) -> Tensor:
    """Draws (n, D) of a normal with mean zero and a covariance (D, D), in antithetic pairs."""
    # Scaled to unit variances first: a coefficient's variance may be 1e-16 of the largest eigenvalue.
    deviation = covariance.diagonal().clamp(min=0.0).sqrt()
    unit = torch.where(deviation > 0, deviation, 1.0)
    values, vectors = torch.linalg.eigh(covariance / torch.outer(unit, unit))
    half = torch.randn((n + 1) // 2, len(unit), generator=make_generator(seed, 5), dtype=torch.float64)
    return deviation * (torch.cat([half, -half])[:n] @ (vectors * values.clamp(min=0.0).sqrt()).T)


def report_jacobian(simulated: SimulatedLikelihood, vector: Tensor, sizes: Tensor) -> Tensor:
    """Jacobian (D, D) of reported parameters with respect to coordinates, for the delta method."""
    space, steps = simulated.model.space, 1e-6 * sizes

    def report(points: Tensor) -> Tensor:
        return space.report(simulated.population(points))

    moves = torch.diag(steps)
    return ((report(vector + moves) - report(vector - moves)) / (2.0 * steps[:, None])).T


def information_criteria(value: float, size: int, panel: Panels) -> Diagnostics:
    """Information criteria and McFadden's rho-squared against equal probabilities."""
    null = 0.0
    for _, part in panel.chunks(PEOPLE_AT_ONCE):
        available = part.available_rows()
        null -= float(
            available.sizes.double().log1p() @ part.weights.double().repeat_interleave(available.n_situations)
        )
    situations = float(panel.n_situations.double() @ panel.weights.double())
    return Diagnostics(
        aic=2.0 * size - 2.0 * value,
        bic=math.log(situations) * size - 2.0 * value,
        null_log_likelihood=null,
        rho_squared=1.0 - value / null,
        adjusted_rho_squared=1.0 - (value - size) / null,
        n_parameters=size,
    )
