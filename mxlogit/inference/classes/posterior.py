"""Posterior of the parameters of classes around their best optimum: a Gaussian, and weighted draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.diagnostics.error import Cause, SquaredErrors, error_of_reweighting
from mxlogit.diagnostics.thresholds import largest_pareto_k
from mxlogit.draws.generators import make_generator
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.classes.labels import of_one_labelling, relabel
from mxlogit.inference.classes.objective import ClassObjective, Likelihood, Place
from mxlogit.inference.vi.student import StudentFactor
from mxlogit.inference.vi.weighted_draws import PosteriorSampler, WeightedVectors
from mxlogit.integration.class_likelihood import ClassLikelihood
from mxlogit.integration.fixed_mixture_draws import FixedMixtureDraws
from mxlogit.integration.mixture_likelihood import MixtureLikelihood
from mxlogit.model.class_prior import ClassPrior
from mxlogit.model.classes import ClassSpace
from mxlogit.model.triangles import inverse_of_lower

# Effective draws that suffice, and most draws; rows x classes x draws at most: about a minute of one core.
_ENOUGH, _MOST_DRAWS, _MOST_WORK = 1_000.0, 16_384, 6e9
# Draws after which fewer effective ones than parameters end the attempt.
_PATIENCE = 4_096
# Most draws of a mixture of normals.
_MOST_OF_SPREAD = 8_192
# Weighted draws whose values are compared with those on other draws of tastes.
_COMPARED = 24
# Degrees of freedom of the proposal around states of chains.
_FREEDOM = 8.0
# Fewest effective draws per parameter.
_PER_PARAMETER = 3.0
# Distance of gradients, in standard deviations, from whose differences a Hessian is taken.
_DISTANCE = 0.5
# Fewest draws that say something.
_FEWEST_DRAWS = 1_024
# Smallest eigenvalue of a curvature whose diagonal is one, below which a direction is taken as flat as this.
_FLATTEST = 1e-4


def laplace(place: Place) -> GaussianFactor:
    """Gaussian with the curvature of the log posterior at its mode; flat directions are made curved."""
    scale = place.curvature.diagonal().clamp(min=1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * place.curvature * scale)
    root = vectors * values.clamp(min=_FLATTEST).rsqrt() * scale[:, None]
    return GaussianFactor(place.vector, torch.linalg.cholesky(root @ root.T))


def differentiated(objective: ClassObjective, gaussian: GaussianFactor) -> Tensor:
    """Minus the Hessian (D, D) of an objective at a Gaussian's mean, by differences of gradients along its axes."""
    moves = _DISTANCE * gaussian.tril.T
    above, below = (
        torch.stack([objective.evaluate(gaussian.mean + sign * move).gradient for move in moves])
        for sign in (1.0, -1.0)
    )
    whitened = (below - above) @ gaussian.tril / (2.0 * _DISTANCE)
    inverse = inverse_of_lower(gaussian.tril)
    return inverse.T @ (0.5 * (whitened + whitened.T)) @ inverse


@dataclass(frozen=True)
class ClassPosterior:
    """Log posterior density of the unconstrained vector.

    Attributes
    ----------
    likelihood : Likelihood
    prior : ClassPrior
    """

    likelihood: Likelihood | FixedMixtureDraws
    prior: ClassPrior

    @property
    def space(self) -> ClassSpace:
        """Layout of the parameters."""
        return self.likelihood.space

    def log_prob(self, points: Tensor) -> Tensor:
        """Values (n,) at vectors (n, D)."""
        population = self.space.constrain(points)
        values = self.likelihood.log_prob_people(population) @ self.likelihood.weights
        return values + self.prior.log_prob(self.space, points)

    def gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n,) and gradients (n, D) at vectors (n, D), of a latent class model."""
        assert isinstance(self.likelihood, ClassLikelihood)
        value, gradient = self.likelihood.gradients(points)
        prior, slopes = self.prior.value_and_slope(self.space, points)
        return value + prior, gradient + slopes


@dataclass(frozen=True)
class Weighed:
    """Weighted draws, and the density by which they were weighed."""

    draws: WeightedVectors
    density: ClassPosterior

    def error_of_draws(self, scores: Tensor, seed: int) -> SquaredErrors | None:
        """Errors that draws of tastes leave, from values on other draws; None where the likelihood is exact.

        ``scores`` (n, D) are standardised reported parameters of all draws.
        """
        fixed = self.density.likelihood
        if not isinstance(fixed, FixedMixtureDraws):
            return None
        assert self.draws.values is not None
        other = ClassPosterior(fixed.likelihood.redrawn(fixed.other_draws()), self.density.prior)
        places = self.draws.pick(_COMPARED, make_generator(seed, 19))
        ratio = other.log_prob(self.draws.vectors[places]) - self.draws.values[places]
        return error_of_reweighting(Cause.DRAWS, scores[places], ratio)


def weigh(posterior: ClassPosterior, gaussian: GaussianFactor, seed: int) -> Weighed | None:
    """Weighted draws of the posterior around a Gaussian; None where too few of them count."""
    likelihood = posterior.likelihood
    work = float(likelihood.space.n_classes * len(likelihood.panel) * max(1, likelihood.panel.n_rows))
    enough, most = _ENOUGH, min(_MOST_DRAWS, int(_MOST_WORK / work))
    if isinstance(likelihood, MixtureLikelihood):
        fixed = FixedMixtureDraws.around(likelihood, likelihood.space.constrain(gaussian.mean))
        work *= fixed.cost / max(1, likelihood.panel.n_rows)
        posterior, most = ClassPosterior(fixed, posterior.prior), min(_MOST_OF_SPREAD, int(_MOST_WORK / work))
    if most < _FEWEST_DRAWS:
        return None
    sampler = PosteriorSampler(posterior, gaussian, make_generator(seed, 17))
    found = sampler.run(min(most, _PATIENCE), enough)
    if found is not None and found.ess > len(gaussian.mean):
        found = sampler.run(most, enough)
    if found is None or found.ess < _PER_PARAMETER * len(gaussian.mean):
        return None
    wide = sampler.widen(found, most, enough)
    # Draws of tastes may not cover what lies far out.
    kept = [some for some in (wide, found) if some.pareto_k < largest_pareto_k(len(some.vectors))]
    return Weighed(of_one_labelling(likelihood.space, kept[0], gaussian), posterior) if kept else None


def evidence_around(posterior: ClassPosterior, vectors: Tensor, seed: int) -> float:
    """Log integral of the posterior density of one labelling, by importance sampling around states (n, D) of it."""
    mean, deviations = vectors.mean(0), vectors - vectors.mean(0)
    covariance = deviations.T @ deviations / len(vectors)
    covariance.diagonal().mul_(1.0 + 1e-9)
    gaussian = GaussianFactor(mean, torch.linalg.cholesky(covariance))
    proposal = StudentFactor(gaussian, _FREEDOM)
    drawn = proposal.sample(_PATIENCE, make_generator(seed, 41))
    ratio = posterior.log_prob(drawn) - proposal.log_prob(drawn)
    own = (relabel(posterior.space, drawn, gaussian)[0] == drawn).all(1)
    ratio = ratio.masked_fill(~own, -math.inf)
    return float(ratio.logsumexp(0)) - math.log(len(drawn))
