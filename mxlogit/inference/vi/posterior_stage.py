"""Posterior of the population parameters from their mode: Gaussian fit, importance check, correction by weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from mxlogit.diagnostics.thresholds import EVEN_ENOUGH
from mxlogit.draws.generators import make_generator
from mxlogit.fit import Samples
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.clock import TimeIsOverError
from mxlogit.inference.report import draw_samples, report_samples
from mxlogit.inference.task import Task
from mxlogit.inference.vi.correction import (
    DEFAULT_WORK,
    REQUESTED_WORK,
    Correction,
    correct,
    correct_by_gradients,
    is_precise,
)
from mxlogit.inference.vi.information import FEW_PARAMETERS, PRECISE, ROUGH, observed_information
from mxlogit.inference.vi.moment_matching import match_moments
from mxlogit.inference.vi.newton import Optimum
from mxlogit.inference.vi.population_check import PopulationCheck, check_gaussian
from mxlogit.inference.vi.posterior import (
    POSTERIOR_STREAM,
    Anchor,
    AnchoredTarget,
    fit_gaussian,
    laplace_factor,
    most_people,
    posterior_integration,
    widen_to_possible,
)
from mxlogit.inference.vi.response_surface import points_of_surface
from mxlogit.inference.vi.sharpening import sharpen
from mxlogit.inference.vi.surfaces import supported_draws
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixed_logit import MixedLogitModel

# Constants without a stated reason are chosen by hand.
# Fewest and most points of the importance check, points per parameter between these, and points for a sampled task.
# With the mean they fill up products of 16 columns (see `mxlogit.integration.fixed_taste_draws`).
_CHECK_POINTS = (46, 126)
_CHECK_BLOCK = 16
_POINTS_PER_PARAMETER = 3
_FEW_CHECK_POINTS = 30
# Squared number of parameters per person of a subsample above which the check covers third derivatives only: with 23
# parameters and 1,000 people the noise of the subsample reduces the effective sample size of an exact Gaussian to .2.
_BLURRED = 0.2
# Skewness of the population posterior along its worst axis above which it is corrected by default. The bound is lower
# for up to _FEW_PEOPLE people, whose fits are fast and whose standard deviations are least precise (by the coverage of
# 90 % intervals, 150 people).
_SKEWED = 0.6
_LITTLE_SKEWED = 0.2
_FEW_PEOPLE = 250
# Largest number of parameters of a default correction: with hundreds, importance weights are too uneven.
_MOST_CORRECTED = 40
# Fixed draws per person that must fit in memory for an easy correction, which then takes a second or less.
_FEWEST_FIXED_DRAWS = 64
# Effective sample size fraction of the check below which a posterior with few parameters is corrected, if that is easy.
# The Gaussian's standard deviations are then some per cent too small (2,000 people, one choice each, two tastes: ratios
# of .93 to .98 at an effective sample size of .92).
_NEARLY_GAUSSIAN = 0.98
# The same where only some hundred weighted draws could be taken, whose standard deviations err by three per cent
# (20,000 people, one choice, three tastes: a correlation's by six at .96, the Gaussian's by three).
_LESS_NEARLY_GAUSSIAN = 0.94
# Largest factor of the number of draws for the steps from the mode with few parameters. With twice the draws, the
# standard deviation of a correlation varies by .6 % over seeds instead of 1.6 (20,000 people, one choice, two tastes).
_MORE_STEP_DRAWS = 8
# The same for the importance check, whose noise looks like a posterior that is not Gaussian.
_MORE_CHECK_DRAWS = 2
# Step to the random stream of the check's draws: those to which the Gaussian is fitted would hide their own noise.
_OTHER_STREAM = 3

# Check of a posterior whose time limit was over before the check.
_UNCHECKED = PopulationCheck(math.nan, math.nan)


@dataclass(frozen=True)
class Posterior:
    """The population factor, its number of natural-gradient steps, and its importance check or correction.

    ``noise`` (D,) are squared errors of its standard deviations, relative to these, by the draws of the information,
    where this is what they come from.
    """

    factor: GaussianFactor
    rounds: int
    check: PopulationCheck
    skewness: float = math.nan
    corrected: Correction | None = None
    mode: Optimum | None = None
    noise: Tensor | None = None

    @classmethod
    def at_the_mode(cls, task: Task, optimum: Optimum) -> Posterior:
        """Gaussian with the curvature of the search at its mode, unchecked: where chains begin, or time ends."""
        model, evaluation = task.model, optimum.evaluation
        rough = optimum.factor or laplace_factor(model, optimum.population, evaluation.curvature, evaluation.gradient)
        return cls(widen_to_possible(model, rough, task.people.weight), 0, _UNCHECKED, mode=optimum)

    def sample(self, model: MixedLogitModel, n: int, seed: int) -> Samples:
        """Draw ``n`` samples of the population parameters."""
        if self.corrected is None:
            return draw_samples(model.space, self.factor, n, seed)
        weighted = self.corrected.weighted
        selected = weighted.resample(n, make_generator(seed, 5))
        matched = match_moments(model.space, selected, weighted.vectors, weighted.log_weights.exp())
        return report_samples(model.space, matched)


def find_posterior(
    task: Task, sample: MarginalLikelihood, all_people: MarginalLikelihood, optimum: Optimum, *, wanted: str | bool
) -> Posterior:
    """Move from the mode to the Gaussian posterior of the population vector, and check or correct it.

    Parameters
    ----------
    task : Task
    sample : MarginalLikelihood
        Likelihood of all people, or of a subsample that gives the information and all differences around the mode.
    all_people : MarginalLikelihood
        Likelihood of all people.
    optimum : Optimum
    wanted : "auto" or bool
        Whether to correct the Gaussian by importance weights.

    Returns
    -------
    Posterior
        Checked or corrected posterior; the last Gaussian found, unchecked, if the time limit is over.
    """
    model, weight = task.model, all_people.people.weight
    if task.clock.is_over():
        return Posterior.at_the_mode(task, optimum)
    optimum = sharpen(task, all_people, optimum)
    start, gradient, noise = _around_the_mode(model, sample, all_people, optimum)
    task.clock.passes += sample.people.weight / weight
    integration = posterior_integration(optimum.integration, optimum.evaluation.detail.value.ess, len(sample.people))
    # For many people half the subsample suffices, but few parameters keep all of it at little cost.
    part, size = sample, most_people(sample) // (2 if task.is_sampled and model.space.size > FEW_PARAMETERS else 1)
    if len(sample.people) > size:
        part = sample.take(sample.people.draw(size, (task.seed, -2)))
    anchor = Anchor(optimum.population, gradient, weight)
    found = Posterior(start, 0, _UNCHECKED, mode=optimum)
    try:
        if wanted == "auto" and integration.from_population and len(part.people) == len(all_people.people):
            smooth = _by_surface(task, part, anchor, found, integration)
            if smooth is not None:
                return smooth
        target = AnchoredTarget(
            model, part, anchor, _with_more_draws(part, integration, _MORE_STEP_DRAWS), start, task.clock.counter()
        )
        fitted = fit_gaussian(target, start)
        factor = widen_to_possible(model, fitted.factor, weight)
        noise = noise if target.factor > 1.0 else None
        found = replace(found, factor=factor, rounds=fitted.rounds, skewness=fitted.skewness, noise=noise)
        found = _check_or_correct(task, all_people, target, found, wanted=wanted, integration=integration)
        task.clock.passes += target.evaluations * part.people.weight / weight
    except TimeIsOverError:
        task.clock.show("time is over: the posterior is the last Gaussian")
    return found


def _by_surface(
    task: Task, part: MarginalLikelihood, anchor: Anchor, found: Posterior, integration: IntegrationSettings
) -> Posterior | None:
    """Weighted draws on a surface through gradients around the mode; None where that does not fit.

    Draws from the population give these so little noise that nothing needs to be found out about the Gaussian first.
    """
    model, seed = task.model, task.seed
    size = model.space.size
    if size > FEW_PARAMETERS:
        return None
    draws = _with_more_draws(part, integration, _MORE_CHECK_DRAWS)
    target = AnchoredTarget(model, part, anchor, draws, found.factor, task.clock.counter())
    check = check_gaussian(target, found.factor, points_of_surface(size), make_generator(seed, 3))
    task.clock.passes += target.evaluations
    correction = correct_by_gradients(check, found.factor, seed)
    return None if correction is None else _corrected(found, correction)


def _check_or_correct(
    task: Task,
    all_people: MarginalLikelihood,
    target: AnchoredTarget,
    found: Posterior,
    *,
    wanted: str | bool,
    integration: IntegrationSettings,
) -> Posterior:
    """Replace a Gaussian by weighted draws if requested or necessary; otherwise check it."""
    model, part, count = task.model, target.part, len(all_people.people)
    whole = len(part.people) == count
    auto = wanted == "auto" and whole and model.space.size <= _MOST_CORRECTED
    skewed = found.skewness > (_LITTLE_SKEWED if count <= _FEW_PEOPLE else _SKEWED)

    def corrected_by(work: float) -> Posterior | None:
        task.clock.lap("Gaussian")
        corrected, passes = correct(task, part if whole else all_people, found.factor, integration, work)
        task.clock.passes += passes
        task.clock.lap("weighted draws")
        if corrected is None:
            return None
        return _corrected(found, corrected)

    at_once = REQUESTED_WORK if wanted is True else DEFAULT_WORK * (auto and skewed)
    corrected = corrected_by(at_once) if at_once else None
    if corrected is not None:
        return corrected
    check = _check(task, target, found.factor, integration, whole=whole)
    easy = is_correction_easy(part, integration, check)
    if auto and not at_once and (check.is_poor or easy):
        corrected = corrected_by(DEFAULT_WORK * check.is_poor)
    return corrected or replace(found, check=check)


def _corrected(found: Posterior, correction: Correction) -> Posterior:
    """The weighted draws of a correction in place of the Gaussian."""
    weighted = correction.weighted
    check = PopulationCheck(weighted.pareto_k, weighted.ess / len(weighted.vectors))
    return replace(found, check=check, corrected=correction)


def _check(
    task: Task, target: AnchoredTarget, factor: GaussianFactor, integration: IntegrationSettings, *, whole: bool
) -> PopulationCheck:
    """Check a Gaussian on draws of its own.

    Sampling noise in the curvature of a subsample makes weights uneven if there are many parameters: third derivatives
    only are checked then, on the draws that the Gaussian is matched to.
    """
    size, part = task.model.space.size, target.part
    blurred = not whole and size**2 > _BLURRED * len(part.people)
    points = _CHECK_POINTS[0] if blurred else check_points(size)
    others = replace(_with_more_draws(part, integration, _MORE_CHECK_DRAWS), stream=integration.stream + _OTHER_STREAM)
    check_target = target if blurred else target.unmatched(others)
    points = _FEW_CHECK_POINTS if task.is_sampled else points
    check = check_gaussian(check_target, factor, points, make_generator(task.seed, 3))
    target.evaluations = check_target.evaluations
    return check


def _with_more_draws(part: MarginalLikelihood, integration: IntegrationSettings, most: int) -> IntegrationSettings:
    """Settings with up to ``most`` times the draws for few parameters, which cost little, if these can be fixed."""
    draws, is_supported = integration.draws, supported_draws(part, integration)
    if part.space.size <= FEW_PARAMETERS:
        while draws < most * integration.draws and is_supported(2 * draws):
            draws *= 2
    return replace(integration, draws=draws)


def check_points(size: int) -> int:
    """Number of check points for ``size`` parameters: 48 points with 27 parameters give a Pareto k from .3 to .9."""
    least, most = _CHECK_POINTS
    return max(least, min(most, _POINTS_PER_PARAMETER * size // _CHECK_BLOCK * _CHECK_BLOCK - 2))


def is_correction_easy(part: MarginalLikelihood, integration: IntegrationSettings, check: PopulationCheck) -> bool:
    """Return whether weighted draws would improve on the Gaussian and can be weighted on fixed draws."""
    enough = EVEN_ENOUGH
    if part.space.size <= FEW_PARAMETERS:
        enough = _NEARLY_GAUSSIAN if is_precise(part, integration) else _LESS_NEARLY_GAUSSIAN
    return check.ess < enough and supported_draws(part, integration)(_FEWEST_FIXED_DRAWS)


def _around_the_mode(
    model: MixedLogitModel, sample: MarginalLikelihood, all_people: MarginalLikelihood, optimum: Optimum
) -> tuple[GaussianFactor, Tensor, Tensor | None]:
    """Initial Gaussian, gradient of all people's log likelihood at the mode in relative coordinates, and noise.

    The noise are squared errors (D,) of the Gaussian's standard deviations.
    """
    population, evaluation = optimum.population, optimum.evaluation
    prior = model.log_prior_in_moves(population)
    start, weight, noise = optimum.factor, all_people.people.weight, None
    if start is None:
        # With uninformative panels, information varies much between people.
        part = all_people if optimum.integration.pathwise else sample
        few = model.space.size <= FEW_PARAMETERS
        precision = PRECISE if few or len(all_people.people) > most_people(part) else ROUGH
        integration = replace(optimum.integration, stream=POSTERIOR_STREAM)
        scale = weight / part.people.weight
        found = observed_information(model, part, population, integration, evaluation.curvature / scale, precision)
        curvature = evaluation.curvature
        if found is not None:
            curvature = scale * found.matrix - prior.hessian
            noise = found.squared_errors(model.space.relative_jacobian(population))
        start = laplace_factor(model, population, curvature, evaluation.gradient)
    return widen_to_possible(model, start, weight), evaluation.gradient - prior.gradient, noise
