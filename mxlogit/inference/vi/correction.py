"""Correction of the population posterior where it is not Gaussian: weighted draws instead of the Gaussian.

With few people the posterior of standard deviations is skewed towards zero and intervals of a Gaussian of their
logarithms are too short.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.task import Task
from mxlogit.inference.vi.population_check import PopulationCheck
from mxlogit.inference.vi.response_surface import ResponseSurface, count_terms
from mxlogit.inference.vi.surfaces import (
    FixedDrawsPosterior,
    ReintegratedPosterior,
    fixed_draws_posterior,
    uses_path_draws,
)
from mxlogit.inference.vi.tail_proposal import is_zero_near
from mxlogit.inference.vi.weighted_draws import (
    DRAWS_PER_PARAMETER,
    FEWEST_STAGES,
    PER_TERM,
    STAGE,
    TARGET_ESS,
    PosteriorSampler,
    WeightedVectors,
    sample_posterior,
    weigh_by_surface,
)
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.path_draws import PathDraws, path_cells
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.coordinates import RelativeCholeskyCoordinates
from mxlogit.model.parameters import ParameterSpace

# Most stages if every value costs a pass, or a sum over fixed draws.
_MOST_STAGES = 6
# Sufficient number of effective draws, and most stages, of a requested correction on fixed draws.
_REQUESTED_ESS = 1_000.0
_REQUESTED_STAGES = 16
# Errors of a surface (nats, root mean square) below which it is taken, by number of stages: with .17 after two and .03
# after one, standard deviations (one choice, two tastes, 2,000 and 5,000 people) differ by 1 % between seeds.
_SURFACE_ERRORS = ((1, 0.06), (2, 0.2))
# The same of a surface through gradients at points of the Gaussian.
_ERROR_BY_GRADIENTS = 0.2
# Largest Pareto k of draws weighed by it, shift of a mean, in standard deviations, and change of the logarithm of one:
# what a cubic adds is taken where it is little, since it errs by up to half of that (100 people, two choices, one
# taste: .13 added, 6 % too much; 2,000 people, one choice, two tastes: .17 added, 8 % too little).
_LARGEST_K_BY_GRADIENTS, _LARGEST_SHIFT, _LARGEST_STRETCH = 0.5, 0.25, 0.1
# Effective share of the draws below which tails matter that a cubic does not fit (100 people, one choice: a standard
# deviation 10 % too large on a surface where it is .78).
_EVEN_ESS = 0.84
# Most rows x draws x points with fixed whitened draws, of effective points and of all: six nanoseconds each.
_PATH_WORK = 0.8e9
_MOST_PATH_WORK = 2.4e9
# Most people x draws x evaluations of a correction, by default and on request: one and five minutes on electricity.
DEFAULT_WORK = 130e6
REQUESTED_WORK = 650e6
# Most stages from the region where a standard deviation is close to zero.
_TAIL_STAGES = 3
# Points of the first Gaussian at which the number of draws is chosen, and points that give its moments.
_PILOT_POINTS = 12
_MOMENT_SAMPLES = 2_000
# Weighted points at which values are compared with other draws of tastes, and the step to their random stream.
_COMPARED = 24
_OTHER_STREAM = 9
# Largest share of points with non-negligible density that fixed draws do not cover.
_MOST_UNKNOWN = 0.02


@dataclass(frozen=True)
class Correction:
    """Weighted draws of the posterior, and how they compare with draws of tastes of their own.

    Attributes
    ----------
    weighted : WeightedVectors
        Unconstrained vectors.
    compared : Tensor, shape (m, D)
        Some of them, drawn by weight.
    log_ratio : Tensor, shape (m,)
        Log posterior there by independent draws of tastes, less the one by which they were weighed, up to a constant.
    is_surface : bool
        Whether they were weighed by a surface through the score at the mode and gradients around it. Its log posterior
        is compared with integrals of those gradients, and has the noise of that score.
    """

    weighted: WeightedVectors
    compared: Tensor
    log_ratio: Tensor
    is_surface: bool = False


def correct_by_gradients(check: PopulationCheck, start: GaussianFactor, seed: int) -> Correction | None:
    """Correct a Gaussian that is nearly the posterior by a surface through the gradients of its check.

    None where the log posterior is not cubic.
    """
    if check.vectors is None or check.log_weights is None or check.gradients is None:
        return None
    if not bool(torch.isfinite(check.gradients).all()):
        return None
    points = torch.cat([start.mean[None], check.vectors])
    surface = ResponseSurface.fit_gradients(start, points, check.gradients)
    if not surface.error < _ERROR_BY_GRADIENTS:
        return None
    weighted = weigh_by_surface(surface, make_generator(seed, 17))
    if weighted is None or weighted.pareto_k > _LARGEST_K_BY_GRADIENTS or not _is_near(weighted, start):
        return None
    integrals = check.log_weights + start.log_prob(check.vectors)
    return Correction(weighted, check.vectors, integrals - surface.at(check.vectors), is_surface=True)


def _is_near(weighted: WeightedVectors, start: GaussianFactor) -> bool:
    """Whether weighted draws have nearly the moments of a Gaussian."""
    found, unit = weighted.gaussian(0.0), start.tril.norm(dim=1)
    shift, stretch = (found.mean - start.mean) / unit, (found.tril.norm(dim=1) / unit).log()
    return bool((shift.abs() < _LARGEST_SHIFT).all() & (stretch.abs() < _LARGEST_STRETCH).all())


def correct(
    task: Task,
    marginal: MarginalLikelihood,
    start: GaussianFactor,
    integration: IntegrationSettings,
    work: float = REQUESTED_WORK,
) -> tuple[Correction | None, float]:
    """Correct a Gaussian posterior by weighted draws.

    Parameters
    ----------
    task : Task
    marginal : MarginalLikelihood
        Marginal likelihood of all people.
    start : GaussianFactor
        The first proposal.
    integration : IntegrationSettings
        All but the number of draws.
    work : float
        People times draws times evaluations at most, where every evaluation is a pass.

    Returns
    -------
    tuple of (Correction or None, float)
        None where too few draws count or too much work would be needed, and how many passes over the people it took.
    """
    model, generator, tick = task.model, make_generator(task.seed, 17), task.clock.counter()
    coordinates = RelativeCholeskyCoordinates(
        model.space, model.space.constrain(_one_deviation_wider(model.space, start)).scale_tril
    )
    vectors, _ = start.sample_and_log_prob(_MOMENT_SAMPLES, generator)
    points = coordinates.from_unconstrained(vectors)
    first, passes = gaussian_of(points), 0.0
    fixed = fixed_draws_posterior(model, marginal, coordinates, points, integration, tick)
    if fixed is not None:
        found, passes = _sample_on_fixed_draws(fixed, first, generator, asked=work >= REQUESTED_WORK), fixed.passes
        if fixed.share_unknown < _MOST_UNKNOWN and found is not None and _is_enough(found, start):
            corrected = _compare(
                ReintegratedPosterior(model, marginal, coordinates, integration, tick), found, generator
            )
            return corrected, passes + _COMPARED
    if work == 0.0:
        return None, passes
    reintegrated = ReintegratedPosterior(model, marginal, coordinates, integration, tick)
    reintegrated.sharpen(points[:_PILOT_POINTS])
    stages = min(_MOST_STAGES, int(work / (STAGE * reintegrated.integration.draws * marginal.people.load)))
    if stages < FEWEST_STAGES:
        return None, passes + reintegrated.passes
    found = sample_posterior(reintegrated, first, STAGE * stages, generator)
    passes += reintegrated.passes
    if found is None or not _is_enough(found, start):
        return None, passes
    return _compare(reintegrated, found, generator), passes + _COMPARED


def _sample_on_fixed_draws(
    density: FixedDrawsPosterior, first: GaussianFactor, generator: torch.Generator, *, asked: bool
) -> WeightedVectors | None:
    """Weighted draws on fixed draws of tastes: many on a surface through few, or as many as time allows."""
    sampler, needed = PosteriorSampler(density, first, generator), PER_TERM * count_terms(len(first.mean))
    most, enough = STAGE * _MOST_STAGES, TARGET_ESS
    if asked:
        most, enough = STAGE * _REQUESTED_STAGES, _REQUESTED_ESS
    elif isinstance(density.fixed_draws, PathDraws):
        most, enough = _on_paths(density.fixed_draws.cells)
    for stages, error in _SURFACE_ERRORS if needed <= enough else ():
        found = sampler.run(most, needed, stages)
        if found is None or found.ess < max(needed, _EVEN_ESS * len(found.vectors)):
            continue
        if is_zero_near(density.coordinates, found.vectors, found.log_weights.exp()):
            break
        smoothed = sampler.smoothed(found, density.known, error)
        if smoothed is not None:
            return smoothed
    found = sampler.run(min(most, STAGE * _MOST_STAGES), TARGET_ESS)
    if found is None:
        return None
    if found.ess < _EVEN_ESS * len(found.vectors):
        found = sampler.widen(found, most, enough)
    else:
        found = sampler.run(most, enough) or found
    return sampler.cover(found, density.coordinates, _TAIL_STAGES)


def _on_paths(cells: int) -> tuple[int, float]:
    """Most points, and enough effective ones, for a number of rows times draws at each.

    Standard deviations from a thousand effective points err by two per cent, from 250 by four.
    """
    stages = max(_MOST_STAGES, min(_REQUESTED_STAGES, int(_MOST_PATH_WORK / (STAGE * cells))))
    return STAGE * stages, max(TARGET_ESS, min(_REQUESTED_ESS, _PATH_WORK / cells))


def is_precise(marginal: MarginalLikelihood, integration: IntegrationSettings) -> bool:
    """Return whether a correction on fixed draws errs less than a Gaussian that is nearly the posterior.

    It does on a surface, which few parameters have, or with a thousand effective draws.
    """
    if PER_TERM * count_terms(marginal.space.size) <= TARGET_ESS:
        return True
    return (
        uses_path_draws(marginal, integration)
        and _on_paths(path_cells(marginal, integration.draws))[1] >= _REQUESTED_ESS
    )


def _is_enough(found: WeightedVectors, start: GaussianFactor) -> bool:
    """Whether enough draws count."""
    return found.ess >= DRAWS_PER_PARAMETER * len(start.mean)


def _compare(density: ReintegratedPosterior, found: WeightedVectors, generator: torch.Generator) -> Correction:
    """Compare weighted points, some drawn by weight, with a density on draws of tastes not used so far."""
    assert found.values is not None
    other = density.on_other_draws(_OTHER_STREAM)
    places = found.pick(_COMPARED, generator)
    points = found.vectors[places]
    values = torch.tensor([value for value, _ in other.evaluate(points)], dtype=torch.float64)
    vectors = density.coordinates.to_unconstrained(found.vectors)
    return Correction(replace(found, vectors=vectors), vectors[places], values - found.values[places])


def gaussian_of(points: Tensor) -> GaussianFactor:
    """Gaussian with the moments of points (n, D)."""
    covariance = torch.cov(points.T).reshape(points.shape[1], -1)
    return GaussianFactor(points.mean(0), torch.linalg.cholesky(covariance))


def _one_deviation_wider(space: ParameterSpace, start: GaussianFactor) -> Tensor:
    """The start's mean with standard deviations one posterior deviation larger: where they end rather than begin."""
    wider = start.mean.clone()
    scales = space.scales
    wider[scales] += start.tril[scales].norm(dim=1)
    return wider
