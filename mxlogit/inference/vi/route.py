"""The default route: Newton search, Gaussian posterior, correction where that is not enough, flow where it pays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.execution.checkpoint import FileJournal, Journal
from mxlogit.execution.identity import identify_fit
from mxlogit.execution.people import People
from mxlogit.fit import Fit, Samples
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.assess import draw_samples, evaluate_center, judge, report_samples
from mxlogit.inference.start import MultinomialLogit
from mxlogit.inference.vi.correction import MOST_WORK, USUAL_WORK, WeightedVectors, correct
from mxlogit.inference.vi.information import FEW_PARAMETERS, PRECISE, ROUGH, observed_information, seldom_exceeded
from mxlogit.inference.vi.natural import NaturalSearch
from mxlogit.inference.vi.newton import (
    STAGE_SIZES,
    Clock,
    NewtonSearch,
    NewtonSettings,
    Optimum,
    step_from,
    step_scale,
    with_prior,
)
from mxlogit.inference.vi.posterior import (
    EVEN_ENOUGH,
    EVEN_WEIGHTS,
    AnchoredTarget,
    PopulationCheck,
    check_gaussian,
    fit_gaussian,
    laplace_factor,
    most_people,
    posterior_sweep,
    situations_of_some,
    widen_to_possible,
)
from mxlogit.inference.vi.surfaces import room_for_draws
from mxlogit.integration.laplace import Flow
from mxlogit.integration.marginal import MarginalLikelihood, Sweep
from mxlogit.integration.tastes import PolishedTastes
from mxlogit.model.mixed_logit import PanelModel
from mxlogit.model.parameters import Population
from mxlogit.optim.trust_region import newton_decrement

if TYPE_CHECKING:
    from mxlogit.inference.vi.engine import VI

_CHECKED_PEOPLE = 1_000
# People of a fit beyond which moments of even weights take few draws.
_MANY_PEOPLE = 5_000
# Effective sample size below which a flow is worth its training: .8 without the eighth of draws from the prior. With
# many tastes it gains little and takes long (20 normals: a factor of 1.2 in 21 s).
_WORTH_A_FLOW, _MOST_TASTES = 0.72, 12
# Populations at which it is trained, beside the posterior mean; the last one judges it.
_FLOW_POPULATIONS = 8
_CHECK_POINTS, _POINTS_PER_PARAMETER, _FEW_CHECK_POINTS = (48, 128), 3, 30
# Squared parameters for one of a part of the people, above which the check is of third derivatives alone: 23
# parameters and 1,000 people leave an effective size of .2 to a Gaussian without fault.
_BLURRED = 0.2
# Skewness of the population posterior, along its worst axis, above which it is corrected unless told otherwise: few
# people take little time and their standard deviations are known least (coverage of 90 % intervals, 150 people).
# Weights of some hundred parameters' draws are too uneven for so few.
_SKEWED, _LITTLE_SKEWED, _FEW_PEOPLE, _MOST_CORRECTED = 0.6, 0.2, 250, 40
_TOLD_EVERY = 10
# Draws that a correction begins with, where they can be kept: it then takes a second or less.
_FEWEST_KEPT = 64
# Effective sample size of the check below which it does so where people say little: standard deviations of the Gaussian
# are then some per cent too small (2,000 people, one choice each, two tastes: .93 to .98, .92).
_NEARLY_GAUSSIAN = 0.98
# Squared error of the optimum per parameter, in posterior sds, above which its score is taken from more draws; choice
# situations times draws of that.
_SHARP, _SHARP_WORK = 0.005, 16_000_000
# Nats that a Newton step with these would gain, above which it is taken: information a third of a posterior sd from the
# mode of one choice each of 20,001 people is that of a population whose standard deviation is known 4 % worse.
_FAR = 0.01
# Draws per person of the log likelihood at the estimate: fewest, most, and people times draws, with which the noise of
# a sum over people shrinks.
_FEWEST_CENTER_DRAWS, _MOST_CENTER_DRAWS, _CENTER_WORK = 16, 1_024, 400_000


def run_newton(
    settings: VI,
    model: PanelModel,
    people: People,
    sample: People,
    logit: MultinomialLogit,
    start: Population,
    seed: int,
    clock: Clock,
) -> Fit:
    """Find the population posterior by Newton steps on the marginal likelihood, and return its fit.

    Parameters
    ----------
    settings : VI
    model : PanelModel
    people : People
    sample : People
        Everybody again, or a random subsample.
    logit : MultinomialLogit
    start : Population
    seed : int
    clock : Clock

    Returns
    -------
    Fit
    """
    polish = 2 if settings.polish == "auto" else int(settings.polish)
    search = NewtonSettings(settings.tolerance, settings.max_iterations, settings.draws, settings.tail, polish)
    journal = _journal(settings, model, people, seed)
    marginal = MarginalLikelihood(people, model.space, model.mixing, seed, "all", journal)
    part = marginal
    if sample is not people:
        part = MarginalLikelihood(sample, model.space, model.mixing, seed, "sample", journal)
    if settings.population == "natural":
        optimum = NaturalSearch(model, marginal, search, clock).run(start)
    else:
        optimum = NewtonSearch(model, marginal, part, search, clock).run(start)
    spline = settings.population_family == "spline"
    posterior = find_posterior(model, part, marginal, optimum, seed, clock, wanted=True if spline else settings.correct)
    samples = posterior.sample(model, settings.n_samples, seed)
    gain = None
    if spline and posterior.corrected is not None:
        samples, gain = _spline_samples(model, posterior.corrected, settings.n_samples, seed)
    even = optimum.evaluation.detail.value.ess > EVEN_WEIGHTS and len(people) > _MANY_PEOPLE
    center = model.space.from_report(samples.mean)
    flow = marginal.flow = _train_flow(settings, model, part, [center, *_typical(model, samples)], optimum, seed, clock)
    tastes = PolishedTastes(model, seed, settings.tail, vary=optimum.sweep.vary, even=even, flow=flow)
    said = _uncorrected_sentences(settings, model, people, posterior)
    fit = Fit(samples, center, optimum.status, clock.history, tastes, {}, said)
    draws = max(_FEWEST_CENTER_DRAWS, min(_MOST_CENTER_DRAWS, 4 * (_CENTER_WORK // (4 * people.load))))
    fit.diagnostics.update(evaluate_center(marginal, center, draws, settings.tail, optimum.sweep.vary))
    clock.passes += 1
    fit.diagnostics.update(_describe(fit, optimum, posterior, sample, seed, clock))
    fit.diagnostics.update(guide=_describe_guide(flow, optimum), population_flow_gain=gain)
    fit = judge(fit, model, people, logit)
    journal.finish()
    return fit


def _uncorrected_sentences(settings: VI, model: PanelModel, people: People, posterior: Posterior) -> list[str]:
    """Say that samples are the Gaussian's where others were asked for."""
    asked = settings.correct is True or settings.population_family == "spline"
    if not asked or posterior.corrected is not None:
        return []
    wanted = "VI(correct=True)" if settings.correct is True else "VI(population_family='spline')"
    return [
        f"{wanted} could not correct the posterior of {model.space.size} parameters and {len(people)} people: too few "
        "weighted draws count, or they would take too many passes. Samples, estimates and errors are those of the "
        "Gaussian; method='mcmc' has no such limit."
    ]


def _spline_samples(model: PanelModel, weighted: WeightedVectors, n: int, seed: int) -> tuple[Samples, float]:
    """Samples of a spline flow fitted to weighted draws, and by how many nats it beats the Gaussian."""
    from mxlogit.inference.vi.population_flow import fit_population_flow

    factor = fit_population_flow(weighted, model.space, seed)
    return report_samples(model.space, factor.sample(n, make_generator(seed, 5))), factor.gain


def _typical(model: PanelModel, samples: Samples) -> list[Population]:
    """Some populations of the posterior."""
    return [model.space.constrain(vector) for vector in samples.unconstrained[:_FLOW_POPULATIONS]]


def _train_flow(
    settings: VI,
    model: PanelModel,
    marginal: MarginalLikelihood,
    populations: list[Population],
    optimum: Optimum,
    seed: int,
    clock: Clock,
) -> Flow | None:
    """Train the flow that was asked for, or, where that is left open, one where weights are uneven and it helps."""
    auto = settings.flow == "auto"
    even = optimum.evaluation.detail.value.ess >= _WORTH_A_FLOW
    many = model.space.n_random > _MOST_TASTES
    if settings.flow is None or model.space.n_random == 0 or (auto and (even or many)):
        return None
    # Imported here: without a flow nothing needs Pyro, nor its import time.
    from mxlogit.inference.vi.flow_training import FlowSettings, train_flow

    wanted = FlowSettings("spline" if auto else settings.flow, settings.flow_layers, vary=optimum.sweep.vary)
    flow, gain = train_flow(model, marginal, populations, wanted, seed, clock.tell)
    return None if auto and gain < 1.0 else flow


def _describe_guide(flow: Flow | None, optimum: Optimum) -> str:
    parts = ["polish", "variational steps"] if optimum.sweep.vary else ["polish"]
    parts.append("Student-t importance weights" if flow is None else "conditional flow, importance weights")
    why = "even" if optimum.evaluation.detail.value.ess >= _WORTH_A_FLOW else "uneven"
    return f"{' + '.join(parts)}; no encoder (nothing to win under Newton); weights before a flow were {why}"


def _journal(settings: VI, model: PanelModel, people: People, seed: int) -> Journal:
    if settings.checkpoint is None:
        return Journal()
    # Without the limit of other searches, which this one does not obey, all settings make the fit what it is.
    identity = identify_fit(model, people, settings, seed, engine="VI", without=("checkpoint", "max_seconds"))
    return FileJournal(settings.checkpoint, identity, people.team)


@dataclass(frozen=True)
class Posterior:
    """The population factor, how many natural-gradient steps it took, and its importance check or correction."""

    factor: GaussianFactor
    rounds: int
    check: PopulationCheck
    corrected: WeightedVectors | None = None

    def sample(self, model: PanelModel, n: int, seed: int) -> Samples:
        """Draw ``n`` samples of the population parameters."""
        if self.corrected is None:
            return draw_samples(model.space, self.factor, n, seed)
        return report_samples(model.space, self.corrected.resample(n, make_generator(seed, 5)))


def find_posterior(
    model: PanelModel,
    sample: MarginalLikelihood,
    everybody: MarginalLikelihood,
    optimum: Optimum,
    seed: int,
    clock: Clock,
    *,
    wanted: str | bool,
) -> Posterior:
    """Move from the mode to the Gaussian posterior of the population vector, and check or correct it.

    Parameters
    ----------
    model : PanelModel
    sample : MarginalLikelihood
        Of everybody, or of a subsample that gives the information and all differences around the mode.
    everybody : MarginalLikelihood
    optimum : Optimum
    seed : int
    clock : Clock
    wanted : "auto" or bool
        Whether to correct.

    Returns
    -------
    Posterior
    """
    people = everybody.people
    weight, many = people.weight, len(people) > len(sample.people)
    optimum = _sharpen(model, everybody, optimum, clock)
    start, gradient = _around_the_mode(model, sample, everybody, optimum)
    sweep = posterior_sweep(optimum.sweep, optimum.evaluation.detail.value.ess, len(sample.people))
    # Of many people half as many will do, but for few parameters, of which they cost little.
    part, size = sample, most_people(sample) // (2 if many and model.space.size > FEW_PARAMETERS else 1)
    if len(sample.people) > size:
        part = sample.take(sample.people.draw(size, (seed, -2)))
    tick = _teller(clock)
    target = AnchoredTarget(model, part, weight, optimum.population, gradient, sweep, start, tick)
    fitted = fit_gaussian(target, start)
    factor = widen_to_possible(model, fitted.factor, weight)
    whole = len(part.people) == len(people)
    auto = wanted == "auto" and whole and model.space.size <= _MOST_CORRECTED
    skewed = fitted.skewness > (_LITTLE_SKEWED if len(people) <= _FEW_PEOPLE else _SKEWED)

    def corrected_by(work: float) -> WeightedVectors | None:
        found, passes = correct(model, part if whole else everybody, factor, sweep, seed, tick, work)
        clock.passes += passes
        return found

    at_once = MOST_WORK if wanted is True else USUAL_WORK * (auto and skewed)
    corrected = corrected_by(at_once) if at_once else None
    if corrected is None:
        # What some people's curvature lacks is noise, which many parameters turn into uneven weights.
        blurred = not whole and model.space.size**2 > _BLURRED * len(part.people)
        points = _FEW_CHECK_POINTS if many else _CHECK_POINTS[0] if blurred else _check_points(model.space.size)
        judge_of_it = target if blurred else target.unmatched()
        check = check_gaussian(judge_of_it, factor, points, make_generator(seed, 3))
        target.evaluations = judge_of_it.evaluations
        easy = is_correction_easy(part, sweep, check)
        if auto and not at_once and (check.is_poor or easy):
            corrected = corrected_by(USUAL_WORK * check.is_poor)
    if corrected is not None:
        check = PopulationCheck(corrected.pareto_k, corrected.ess / len(corrected.vectors))
    clock.passes += (sample.people.weight + target.evaluations * part.people.weight) / weight
    return Posterior(factor, fitted.rounds, check, corrected)


def _check_points(size: int) -> int:
    """Number of check points for a model of ``size`` parameters: 48 of 27 parameters have a Pareto k from .3 to .9."""
    least, most = _CHECK_POINTS
    return max(least, min(most, 2 * (_POINTS_PER_PARAMETER * size // 2)))


def _sharpen(model: PanelModel, everybody: MarginalLikelihood, optimum: Optimum, clock: Clock) -> Optimum:
    """Evaluate the optimum with as many draws as its error asks for, where the search ended with fewer.

    Noise of the draws in the score does not shrink beside the information as people grow more.
    """
    people, sweep = len(everybody.people), optimum.sweep
    # On paths a pass costs little beside what follows; elsewhere it is taken where it halves the error.
    error, enough = (_likely_error(optimum, model), 1) if sweep.pathwise else (optimum.redraw, 2)
    wanted = 4 * math.ceil(0.25 * sweep.draws * error / _SHARP) if math.isfinite(error) else 0
    if wanted <= enough * sweep.draws or not (sweep.pathwise or people > STAGE_SIZES[-1]):
        return optimum
    draws = min(wanted, _MOST_CENTER_DRAWS, 4 * int(_SHARP_WORK / (4.0 * people * situations_of_some(everybody))))
    few = model.space.size <= FEW_PARAMETERS
    if draws <= sweep.draws or (draws < wanted and not (sweep.pathwise or few)):
        return optimum
    sharp = replace(sweep, draws=draws, key=sweep.key + 5)
    population = optimum.population
    evaluation = with_prior(model, population, everybody.sweep(population, sharp))
    clock.passes += 1
    if newton_decrement(evaluation, step_scale(model)) > _FAR:
        population = step_from(model, population, evaluation)
        evaluation = with_prior(model, population, everybody.sweep(population, sharp))
        clock.passes += 1
    return replace(optimum, population=population, evaluation=evaluation)


def _likely_error(optimum: Optimum, model: PanelModel) -> float:
    """Squared error per parameter of the optimum that is exceeded once in ten.

    One change of draws tells it, with as many degrees of freedom as parameters: of two, it may seem a tenth by chance.
    """
    return optimum.redraw * seldom_exceeded(model.space.size)


def is_correction_easy(part: MarginalLikelihood, sweep: Sweep, check: PopulationCheck) -> bool:
    """Return whether weighted draws could be better than the Gaussian, and fixed draws can weigh them."""
    enough = _NEARLY_GAUSSIAN if part.space.size <= FEW_PARAMETERS else EVEN_ENOUGH
    return check.ess < enough and room_for_draws(part, sweep)(_FEWEST_KEPT)


def _around_the_mode(
    model: PanelModel, sample: MarginalLikelihood, everybody: MarginalLikelihood, optimum: Optimum
) -> tuple[GaussianFactor, Tensor]:
    """Gaussian to begin with, and everybody's gradient of the log likelihood at the mode in relative coordinates."""
    population, evaluation = optimum.population, optimum.evaluation
    prior = model.log_prior_in_moves(population)
    start, weight = optimum.factor, everybody.people.weight
    if start is None:
        # Where people say little, their information differs much between them.
        part = everybody if optimum.sweep.pathwise else sample
        precision = PRECISE if len(everybody.people) > most_people(part) else ROUGH
        information = observed_information(
            model, part, weight, population, optimum.sweep, evaluation.curvature, precision
        )
        curvature = evaluation.curvature if information is None else information - prior.hessian
        start = laplace_factor(model, population, curvature, evaluation.gradient)
    return widen_to_possible(model, start, weight), evaluation.gradient - prior.gradient


def _teller(clock: Clock) -> Callable[[int], None]:
    """Return a callback that reports progress every ten points."""
    told = 0

    def tick(points: int) -> None:
        nonlocal told
        told += points
        if told % _TOLD_EVERY < points:
            clock.tell(f"posterior: {told} points")

    return tick


def _describe(
    fit: Fit,
    optimum: Optimum,
    posterior: Posterior,
    sample: People,
    seed: int,
    clock: Clock,
) -> dict[str, object]:
    checked = sample.take(sample.draw(_CHECKED_PEOPLE, (seed, 11)))
    assert isinstance(fit.tastes, PolishedTastes)
    check = fit.tastes.check(checked, fit.center)
    return {
        "status": optimum.status.value,
        "converged": optimum.status.converged,
        "ess_min": float(check.ess.min()),
        "pareto_k": posterior.check.pareto_k,
        "ess_population": posterior.check.ess,
        "pareto_k_people": float(check.pareto_k.max()),
        "people_above_k": float((check.pareto_k > 0.7).double().mean()),
        "newton_decrement": optimum.decrement,
        "redraw_shift": optimum.redraw**0.5,
        "draws": optimum.sweep.draws,
        "posterior_rounds": posterior.rounds,
        "corrected": posterior.corrected is not None,
        "passes": clock.passes,
        "seconds": clock.seconds(),
    }
