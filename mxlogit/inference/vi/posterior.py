r"""Gaussian approximation of the posterior of the population parameters, starting from the mode.

Natural-gradient steps move the Gaussian factor. Their expectations (Bonnet's and Price's identities, Opper and
Archambeau 2009, Neural Computation 21) are computed at sigma points one posterior sd on either side of the mean along
each axis (Julier and Uhlmann 2004, Proceedings of the IEEE 92), exact to third order, so that the Gaussian matches
means, not modes. Its quality is then measured by importance weights.

For many people the target is *anchored*: gradient and curvature at the mode are computed from all people, differences
from them on a subsample (control variates after Quiroz et al. 2019, Journal of the American Statistical Association
114), so the cost of this stage does not depend on the number of people.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference import budgets
from mxlogit.inference.budgets import ALLOWED_ERROR, AROUND_THE_MODE, draws_for
from mxlogit.inference.vi.surfaces import mean_situations
from mxlogit.integration.fixed_taste_draws import FixedTasteDraws, supports_fixed_draws
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.path_draws import PathDraws, supports_fixed_paths
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.triangles import inverse_of_lower, lower_of
from mxlogit.optim.identities import natural_update

# Constants without a stated reason are chosen by hand.
_COUNTED_PEOPLE = 200  # people on whom the mean number of choice situations is estimated
_ONE_ROUND_FACTOR = 3.0  # weight of all people relative to the subsample above which one round suffices
_SHORT_DISTANCE = 0.1  # sds from the mean, for curvature at the mean itself
_MOST_ROUNDS = 3  # two if the first round moves the mean by less than _LARGE_MOVE (whitened length per root D)
_LARGE_MOVE = 0.3
_RATE = 0.7  # step size: full steps overshoot skewed posteriors (measured, study design, 500 and 2,000 people)
# The last round: a full step would move the mean by less than this (whitened length per root D), variances by less
# than this factor.
_SMALL_MOVE = 0.1
_SMALL_STRETCH = 1.3
_WIDEST_LOG_SD = 1.5  # bounds on initial posterior sds, of log standard deviations
_WIDEST_PARTIAL = 1.0  # and of partial correlations
# Ratio to the least possible variance below which a variance is an artefact of draws; replacement, in least possible
# sds: importance sampling does better from too wide a proposal than from too narrow a one.
_MIN_VARIANCE_RATIO = 0.5
_FALLBACK_SD_RATIO = 4.0
_TYPICAL = 12  # points at which the variance of the log likelihood on fixed draws is checked
_MAX_VARIANCE_NATS2 = 1.0  # largest such variance at which fixed draws are used
# Factor of the number of fixed draws where that is exceeded: they still cost a tenth of draws that follow modes
# (electricity in amounts of money: variances of 1.3 and .3, the posterior in 3 s, not 18).
_MORE_FIXED_DRAWS = 4
_LONGEST_MOVE = 0.6  # longest step of a round, in posterior sds per parameter (root mean square)


# Key of the base draws of this stage, the same whatever the search before used: its path changes with one person more,
# and other draws move standard deviations by one per cent.
POSTERIOR_STREAM = 50


class Target(Protocol):
    """A log density to which a Gaussian factor is fitted."""

    @property
    def factor(self) -> float:
        """Weight of all people relative to the subsample."""
        ...

    def gradients(self, vectors: Tensor) -> Tensor:
        """Gradients (n, D) of the log density at vectors (n, D)."""
        ...

    def match(self, q: GaussianFactor, precision: Tensor) -> None:
        """Set the curvature to the precision of q (see `AnchoredTarget.match`)."""
        ...


@dataclass(frozen=True)
class Anchor:
    """The mode or a nearby population value, with the gradient (D,) of the log likelihood of all people.

    The gradient is in relative coordinates; ``weight`` is the sum of all people's weights.
    """

    population: PopulationParameters
    gradient: Tensor
    weight: float


class AnchoredTarget:
    """Gradient of the log posterior of the unconstrained vector, with fixed base draws.

    The likelihood part is the scaled likelihood of a subsample, plus a linear term that corrects its gradient at the
    anchor to the gradient of all people, and the quadratic term of `match`.

    Parameters
    ----------
    model : MixedLogitModel
    marginal : MarginalLikelihood
        Marginal likelihood of all people or of a subsample, with modes at the anchor.
    anchor : Anchor
    integration : IntegrationSettings
    near : GaussianFactor
        Approximate posterior, which indicates the range of vectors.
    tick : callable, optional
        Callback that receives the number of vectors at which gradients were computed.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        marginal: MarginalLikelihood,
        anchor: Anchor,
        integration: IntegrationSettings,
        near: GaussianFactor,
        tick: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.part = model, marginal
        self._anchor, self._integration, self._near, self._tick = anchor, integration, near, tick
        self.factor, population = anchor.weight / marginal.people.weight, anchor.population
        self.evaluations = 1
        self._score = _score_function(model, marginal, population, integration, near)
        self._centre, jacobian = model.space.unconstrain(population), model.space.relative_jacobian(population)
        here = self._score(self._centre[None])[0]
        self._linear = torch.linalg.solve(jacobian.T, anchor.gradient) - self.factor * here
        self._quadratic = torch.zeros_like(jacobian)
        self._unmatched = self._linear

    def gradients(self, vectors: Tensor) -> Tensor:
        """Gradients (n, D) of the log posterior at vectors (n, D)."""
        self.evaluations += len(vectors)
        correction = self._linear - (vectors - self._centre) @ self._quadratic
        slope, _ = self.model.prior.derivatives(self.model.space, vectors)
        result = self.factor * self._score(vectors) + correction + slope
        if self._tick is not None:
            self._tick(len(vectors))
        return result

    def unmatched(self, integration: IntegrationSettings) -> AnchoredTarget:
        """Return the target before any match, which does not depend on q, on the draws of other settings."""
        if integration != self._integration:
            target = AnchoredTarget(self.model, self.part, self._anchor, integration, self._near, self._tick)
            target.evaluations += self.evaluations
            return target
        target = copy(self)
        target._linear, target._quadratic = self._unmatched, torch.zeros_like(self._quadratic)
        return target

    def match(self, q: GaussianFactor, precision: Tensor) -> None:
        """Correct the curvature, given in whitened coordinates (D, D), to the precision of q.

        The gradient at q.mean does not change. The covariance of q is based on all people, and the curvature of a
        subsample is far from theirs.
        """
        identity = torch.eye(len(q.mean), dtype=precision.dtype)
        inverse = inverse_of_lower(q.tril)
        self._linear = self._linear + self._quadratic @ (self._centre - q.mean)
        self._quadratic, self._centre = self._quadratic + inverse.T @ (identity - precision) @ inverse, q.mean


def _score_function(
    model: MixedLogitModel,
    marginal: MarginalLikelihood,
    anchor: PopulationParameters,
    integration: IntegrationSettings,
    near: GaussianFactor,
) -> Callable[[Tensor], Tensor]:
    """Smooth function from unconstrained vectors (n, D) to scores (n, D), on fixed draws or draws that follow modes.

    Fixed draws cost a hundredth, and are used if they cover the posterior.
    """
    typical, _ = near.sample_and_log_prob(_TYPICAL, make_generator(marginal.seed, 29))
    if integration.pathwise and supports_fixed_paths(marginal, integration.draws):
        return PathDraws(model, marginal, anchor, integration, typical).gradients
    for times in (1, _MORE_FIXED_DRAWS):
        draws = times * integration.draws
        if not integration.pathwise and supports_fixed_draws(marginal, draws):
            fixed_draws = FixedTasteDraws(marginal, anchor, replace(integration, draws=draws))
            if float(fixed_draws.log_likelihood(typical)[1].nan_to_num(nan=math.inf).amax()) < _MAX_VARIANCE_NATS2:
                return fixed_draws.gradients
    proposals, space = list(marginal.propose(anchor, integration, remember=False)), marginal.space

    def score(vector: Tensor) -> Tensor:
        population = space.constrain(vector)
        moves = marginal.score(population, marginal.follow(population, proposals)).score
        return torch.linalg.solve(space.relative_jacobian(population).T, moves)

    return lambda vectors: torch.stack([score(vector) for vector in vectors])


@dataclass(frozen=True)
class Expectations:
    """Expected gradient (D,) and expected negative Hessian (D, D) under q, in whitened coordinates.

    ``skewness`` is the largest third derivative along an axis: the skewness of the posterior if it is close to q.
    """

    gradient: Tensor
    precision: Tensor
    skewness: float


def expect(target: Target, q: GaussianFactor, distance: float = 1.0) -> Expectations:
    """Expectations from points ``distance`` sds on either side of the mean; derivatives at the mean if it is short."""
    moves = distance * q.tril.T
    centre, above, below = target.gradients(torch.cat([q.mean[None], q.mean + moves, q.mean - moves])).split(
        [1, len(moves), len(moves)]
    )
    precision = (below - above) @ q.tril / (2.0 * distance)
    hessian_change = (above + below - 2.0 * centre) / distance**2
    total = centre[0] + 0.5 * hessian_change.sum(0)
    third = (hessian_change * q.tril.T).sum(1).abs()
    return Expectations(q.tril.T @ total, 0.5 * (precision + precision.T), float(third.amax()))


def natural_step(q: GaussianFactor, at: Expectations, rate: float) -> GaussianFactor:
    """One natural-gradient step, of bounded length."""
    step, tril = natural_update(q.tril, at.gradient, at.precision, rate)
    return GaussianFactor(q.mean + q.tril @ _shorten(step), tril)


@dataclass(frozen=True)
class GaussianFit:
    """A Gaussian factor, its number of rounds, and the largest skewness along an axis (infinite: unknown)."""

    factor: GaussianFactor
    rounds: int
    skewness: float


def fit_gaussian(target: Target, start: GaussianFactor) -> GaussianFit:
    """Move the Gaussian factor to the posterior.

    If the steps grow instead of shrinking, or sigma points leave the support, the posterior is far from Gaussian: the
    factor at the mode is returned, with 0 rounds, and fails the importance check.
    """
    if target.factor > _ONE_ROUND_FACTOR:
        # The posterior of many people is nearly Gaussian: its covariance is known, its mean is close to its mode.
        at = expect(target, start)
        target.match(start, at.precision)
        factor = GaussianFactor(start.mean + start.tril @ _shorten(at.gradient), start.tril)
        return GaussianFit(factor, 1, at.skewness)
    if target.factor > 1.0:
        target.match(start, expect(target, start, _SHORT_DISTANCE).precision)
    q, first = start, 0.0
    for rounds in range(1, _MOST_ROUNDS + 1):
        at = expect(target, q)
        if not bool(torch.isfinite(at.gradient).all() & torch.isfinite(at.precision).all()):
            return GaussianFit(start, 0, math.inf)
        move = float(at.gradient.norm()) / len(q.mean) ** 0.5
        first = first or move
        if move > max(1.5 * first, 1.0):
            return GaussianFit(start, 0, math.inf)
        values = torch.linalg.eigvalsh(at.precision)
        try:
            q = natural_step(q, at, _RATE)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # The variances differ too much in size for a numerically positive definite covariance.
            return GaussianFit(start, 0, math.inf)
        stretch = max(float(values.amax()), 1.0 / max(float(values.amin()), 1e-3))
        settled = move < _SMALL_MOVE and stretch < _SMALL_STRETCH
        if settled or (rounds == _MOST_ROUNDS - 1 and first < _LARGE_MOVE):
            return GaussianFit(q, rounds, at.skewness)
    return GaussianFit(q, _MOST_ROUNDS, at.skewness)


def laplace_factor(
    model: MixedLogitModel, population: PopulationParameters, curvature: Tensor, gradient: Tensor
) -> GaussianFactor:
    """Return the initial Gaussian: one Newton step from ``population``, in relative coordinates.

    Its precision is made positive definite, and its sds are bounded by about the prior's: with few people the
    likelihood is flat in some directions, and sigma points farther out are uninformative.
    """
    jacobian = model.space.relative_jacobian(population)
    scale = curvature.diagonal().abs().clamp(min=1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * curvature * scale)
    root = values.clamp(min=1e-6).sqrt()[:, None] * (vectors.T / scale) @ torch.linalg.inv(jacobian)
    # Cholesky factor of P = root' root + diag(width^-2) by QR, because forming P would square the condition number.
    stacked = torch.cat([root, torch.diag(1.0 / _widest(model))])
    upper = torch.linalg.qr(stacked, mode="r").R
    inverse = torch.linalg.solve_triangular(upper, torch.eye(len(upper), dtype=upper.dtype), upper=True)
    tril = lower_of(inverse)
    step = tril.T @ torch.linalg.solve(jacobian.T, gradient)
    return GaussianFactor(model.space.unconstrain(population) + tril @ _shorten(step), tril)


def widen_to_possible(model: MixedLogitModel, factor: GaussianFactor, weight: float) -> GaussianFactor:
    """Bound the posterior precision by the complete-data information: the precision if all tastes were observed.

    Observed information is complete-data information less missing information (Louis 1982, Journal of the Royal
    Statistical Society B 44). The complete data are whitened tastes; per person, their information is one for relative
    moves of locations and of off-diagonal entries, two for diagonal entries. Estimates from draws exceed it if
    importance weights are uneven (simulated standard deviation of 20 of a lognormal: a posterior sd of .001 where
    chains have 7).

    Parameters
    ----------
    model : MixedLogitModel
    factor : GaussianFactor
        Gaussian of the unconstrained vector.
    weight : float
        Sum of all people's weights.

    Returns
    -------
    GaussianFactor
        Widened factor; unchanged if it meets the bound, or if the mixing map depends on the population parameters.
    """
    space, f = model.space, model.space.n_free
    if model.mixing.is_direct or space.n_random == 0:
        return factor
    population = space.constrain(factor.mean)
    jacobian = space.relative_jacobian(population)
    diagonal = [1.0 + (row == column) for row, column in zip(*space.triangle, strict=True)]
    complete = weight * jacobian.new_tensor([1.0] * (space.n_means - f) + diagonal)
    prior = model.log_prior_in_moves(population).hessian[f:, f:]
    known = torch.linalg.cholesky(torch.diag(complete) - prior)
    moves = torch.linalg.solve(jacobian, factor.tril)
    left, sizes, _ = torch.linalg.svd(known.T @ moves[f:], full_matrices=False)
    stretch = torch.where(sizes.square() < _MIN_VARIANCE_RATIO, _FALLBACK_SD_RATIO / sizes.clamp(min=1e-150), 1.0)
    if bool((stretch == 1.0).all()):
        return factor
    inside = left.T @ known.T @ moves[f:]
    moves[f:] = torch.linalg.solve_triangular(known.T, left @ (stretch[:, None] * inside), upper=True)
    return GaussianFactor(factor.mean, lower_of(jacobian @ moves))


def _shorten(step: Tensor) -> Tensor:
    """Step in posterior sds, shortened to `_LONGEST_MOVE` per parameter."""
    return step * min(1.0, _LONGEST_MOVE * len(step) ** 0.5 / max(float(step.norm()), 1e-300))


def _widest(model: MixedLogitModel) -> Tensor:
    """Bounds on posterior sds: the prior's for coefficients, constants for log sds and partial correlations."""
    space = model.space
    sizes = ((space.n_random, _WIDEST_LOG_SD), (len(space.pairs), _WIDEST_PARTIAL))
    return torch.cat(
        [space.drop_held(model.prior.deviation), *(model.prior.deviation.new_full((n,), w) for n, w in sizes)]
    )


def most_people(marginal: MarginalLikelihood) -> int:
    """Number of people in the subsample for differences around the mode: more if each has few choice situations."""
    return max(budgets.MOST_PEOPLE, int(budgets.MOST_SITUATIONS / estimated_situations(marginal)))


def estimated_situations(marginal: MarginalLikelihood) -> float:
    """Mean number of choice situations, estimated on a few people who fit in memory."""
    if len(marginal.people) <= _COUNTED_PEOPLE:
        return mean_situations(marginal)
    return mean_situations(marginal.take(marginal.people.draw(_COUNTED_PEOPLE, (marginal.seed, -7))))


def posterior_integration(integration: IntegrationSettings, ess: float, n_people: int) -> IntegrationSettings:
    """Return the settings of this stage: differences around the mode need fewer draws than the mode itself."""
    draws = draws_for(ALLOWED_ERROR, ess, min(n_people, budgets.MOST_PEOPLE), AROUND_THE_MODE)
    return replace(integration, draws=draws, stream=POSTERIOR_STREAM)
