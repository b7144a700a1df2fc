"""The default route: Newton search, Gaussian posterior, correction by weights if necessary, flow if worthwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from mxlogit.diagnostics.error import ErrorEstimate, SquaredErrors
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.diagnostics.thresholds import EVEN_WEIGHTS, LARGEST_PARETO_K, MANY_PEOPLE
from mxlogit.draws.generators import make_generator
from mxlogit.execution.checkpoint import Journal
from mxlogit.fit import Fit, Outcome, Samples, Status
from mxlogit.inference.budgets import AT_THE_ESTIMATE
from mxlogit.inference.error_estimate import error_of_people
from mxlogit.inference.positive_deviations import mean_population
from mxlogit.inference.report import evaluate_center, report_fit, report_samples
from mxlogit.inference.task import Task
from mxlogit.inference.vi.assessment import assess_posterior, check_people
from mxlogit.inference.vi.far_tail import error_of_far_tails
from mxlogit.inference.vi.natural import NaturalSearch
from mxlogit.inference.vi.newton import NewtonSearch, NewtonSettings, Optimum
from mxlogit.inference.vi.posterior_stage import Posterior, find_posterior
from mxlogit.inference.vi.short_chains import ShortChains, count_affordable, run_short_chains
from mxlogit.inference.vi.weighted_draws import WeightedVectors
from mxlogit.integration.laplace import Flow
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.tastes import ImportanceTastes, PeopleCheck
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.optim.trust_region import Evaluation

# Number of people of a fit above which tastes with even weights get few draws for their moments; chosen by hand.
_MANY_PEOPLE = 5_000
# Effective sample size fraction below which a flow is trained: .8 without the eighth of draws from the prior.
_WORTH_A_FLOW = 0.72
# Largest number of tastes for a flow by default: with more it gains little and takes long (20 normals: a factor of 1.2
# in 21 s).
_MOST_TASTES = 12
# Posterior samples of the population used in training, beside the posterior mean; the last one is for validation.
_FLOW_POPULATIONS = 8


@dataclass(frozen=True)
class NewtonPlan:
    """Settings of `mxlogit.VI` for its route, under the names of its parameters.

    Attributes
    ----------
    optimizer : {"newton", "natural"}
    search : NewtonSettings
    correct : "auto" or bool
    population_family : {"gaussian", "spline"}
    flow : {"auto", "affine", "spline", "autoregressive", None}
    flow_layers : int
    n_samples : int
    journal : Journal
        Record of the passes over the people.
    """

    optimizer: str
    search: NewtonSettings
    correct: str | bool
    population_family: str
    flow: str | None
    flow_layers: int
    n_samples: int
    journal: Journal

    @property
    def is_spline(self) -> bool:
        """Whether samples come from a spline flow."""
        return self.population_family == "spline"


@dataclass(frozen=True)
class _Sampled:
    """Posterior samples of the population: of a Gaussian, weighted draws or splines on them, or short chains.

    ``gain`` is that of the splines in log density over the Gaussian, in nats. ``chains_failed``: chains were tried, and
    have not mixed.
    """

    posterior: Posterior
    samples: Samples
    error: ErrorEstimate
    gain: float | None = None
    chains: ShortChains | None = None
    chains_failed: bool = False


def run_newton(task: Task, plan: NewtonPlan) -> Fit:
    """Find the population posterior by Newton steps on the marginal likelihood, and return its fit."""
    model, people, clock = task.model, task.people, task.clock
    clock.on_over = plan.journal.pause
    marginal = MarginalLikelihood(people, model.space, model.mixing, task.seed, "all", plan.journal)
    part = marginal
    if task.is_sampled:
        part = MarginalLikelihood(task.sample, model.space, model.mixing, task.seed, "sample", plan.journal)
    optimum, sampled = _find_posterior(task, plan, marginal, part)
    samples, chains = sampled.samples, sampled.chains
    center = mean_population(model, samples)
    # By default no flow is trained for tastes that are states of chains.
    if chains is None or plan.flow != "auto":
        marginal.flow = _train_flow(plan, task, part, [center, *_typical(model, samples)], optimum)
    even = optimum.evaluation.detail.value.ess > EVEN_WEIGHTS and len(people) > _MANY_PEOPLE
    tastes = _tastes_around(plan, task, optimum.integration.variational_steps, even_weights=even, flow=marginal.flow)
    draws = AT_THE_ESTIMATE.least if clock.was_over else AT_THE_ESTIMATE.draws(people.load)
    at_center = evaluate_center(marginal, center, draws, tastes.degrees_of_freedom, tastes.variational_steps)
    clock.passes += 1
    check = check_people(task, tastes, center)
    found = _of_people(check, _diagnose(optimum, sampled, at_center))
    found = replace(found, guide=_describe_guide(marginal.flow, optimum))
    error = sampled.error.with_part(_error_of_tails(task, marginal, samples))
    error = replace(error, people=_error_of_people(sampled, check, tastes))
    clock.lap("report")
    found = replace(found, rung=_rung_of(sampled), rung_seconds=dict(clock.laps))
    status = optimum.status if chains is None else chains.status
    status = Status.TIME if clock.was_over else status
    said = _uncorrected_sentences(plan, task, sampled.posterior) if chains is None else []
    states = None if chains is None else chains.states
    fit = report_fit(
        Outcome(samples, center, status, tastes, found, said, states=states, error=error),
        model,
        people,
        task.logit,
        clock,
    )
    plan.journal.finish()
    return fit


def _find_posterior(
    task: Task, plan: NewtonPlan, marginal: MarginalLikelihood, part: MarginalLikelihood
) -> tuple[Optimum, _Sampled]:
    """Find the mode and sample the posterior around it; anew, with more draws, if chains have not mixed."""
    model, clock = task.model, task.clock
    if plan.optimizer == "natural":
        optimum = NaturalSearch(model, marginal, plan.search, clock).run(task.start)
        return optimum, _sample(task, plan, marginal, part, optimum, hasty=False)
    is_enough = partial(_needs_chains, task, plan)
    optimum = NewtonSearch(model, marginal, part, plan.search, clock, is_enough).run(task.start)
    sampled = _sample(task, plan, marginal, part, optimum, hasty=True)
    if sampled.chains_failed and not clock.is_over():
        optimum = NewtonSearch(model, marginal, part, plan.search, clock).run(task.start)
        sampled = _sample(task, plan, marginal, part, optimum, hasty=False)
    return optimum, sampled


def _sample(
    task: Task,
    plan: NewtonPlan,
    marginal: MarginalLikelihood,
    part: MarginalLikelihood,
    optimum: Optimum,
    *,
    hasty: bool,
) -> _Sampled:
    """Sample the population posterior: by chains where many people's weights are uneven, or the Gaussian fails."""
    task.clock.lap("search")
    uneven = _needs_chains(task, plan, optimum.population, optimum.evaluation, optimum.integration.variational_steps)
    if uneven and hasty:
        posterior = Posterior.at_the_mode(task, optimum)
    else:
        posterior = find_posterior(task, part, marginal, optimum, wanted=plan.is_spline or plan.correct)
    samples = posterior.sample(task.model, plan.n_samples, task.seed)
    sampled = _Sampled(posterior, samples, assess_posterior(task, part, posterior, samples))
    task.clock.lap("Gaussian")
    if uneven or (_may_have_chains(task, plan) and not sampled.error.is_small):
        chains = run_short_chains(task, posterior.factor, plan.n_samples)
        task.clock.lap("chains")
        if chains is None or not (uneven or chains.error.of_population < sampled.error.of_population):
            return replace(sampled, chains_failed=uneven and hasty)
        return replace(sampled, samples=chains.samples, chains=chains, error=chains.error)
    if plan.is_spline and posterior.corrected is not None:
        samples, gain = _spline_samples(task.model, posterior.corrected.weighted, plan.n_samples, task.seed)
        return replace(sampled, samples=samples, gain=gain)
    return sampled


def _rung_of(sampled: _Sampled) -> str:
    """Name of the rung that gave the samples."""
    if sampled.chains is not None:
        return "chains"
    return "Gaussian" if sampled.posterior.corrected is None else "weighted draws"


def _may_have_chains(task: Task, plan: NewtonPlan) -> bool:
    return plan.correct == "auto" and not plan.is_spline and not task.clock.is_over() and count_affordable(task) > 0


def _needs_chains(
    task: Task, plan: NewtonPlan, population: PopulationParameters, evaluation: Evaluation, variational_steps: int
) -> bool:
    """Whether more than a few people have uneven weights, so that neither more draws nor a correction is a remedy.

    Under maps with a kink weights have steps, which look like a heavy tail and are none.
    """
    if evaluation.detail.value.ess >= _WORTH_A_FLOW or not _may_have_chains(task, plan) or task.model.mixing.is_kinked:
        return False
    tastes = _tastes_around(plan, task, variational_steps)
    return _share_above_k(check_people(task, tastes, population)) > MANY_PEOPLE


def _tastes_around(
    plan: NewtonPlan, task: Task, variational_steps: int, *, even_weights: bool = False, flow: Flow | None = None
) -> ImportanceTastes:
    """Tastes of people by the local factors of the search."""
    return ImportanceTastes(
        task.model,
        task.seed,
        plan.search.degrees_of_freedom,
        variational_steps=variational_steps,
        even_weights=even_weights,
        flow=flow,
    )


def _uncorrected_sentences(plan: NewtonPlan, task: Task, posterior: Posterior) -> list[str]:
    """Warning that samples come from the Gaussian although a correction was requested."""
    asked = plan.correct is True or plan.is_spline
    if not asked or posterior.corrected is not None:
        return []
    wanted = "VI(correct=True)" if plan.correct is True else "VI(population_family='spline')"
    cause = "too few weighted draws count, or they would take too many passes"
    if task.clock.was_over:
        cause = "time was over"
    return [
        f"{wanted} could not correct the posterior of {task.model.space.size} parameters and {len(task.people)} "
        f"people: {cause}. Samples, estimates and errors are those of the Gaussian; method='mcmc' has no such limit."
    ]


def _spline_samples(model: MixedLogitModel, weighted: WeightedVectors, n: int, seed: int) -> tuple[Samples, float]:
    """Samples of a spline flow fitted to weighted draws, and its gain in log density over the Gaussian, in nats."""
    from mxlogit.inference.vi.population_flow import fit_population_flow

    factor = fit_population_flow(weighted, model.space, seed)
    return report_samples(model.space, factor.sample(n, make_generator(seed, 5))), factor.gain


def _typical(model: MixedLogitModel, samples: Samples) -> list[PopulationParameters]:
    """Posterior samples of the population parameters."""
    return model.space.constrain_each(samples.unconstrained[:_FLOW_POPULATIONS])


def _train_flow(
    plan: NewtonPlan,
    task: Task,
    marginal: MarginalLikelihood,
    populations: list[PopulationParameters],
    optimum: Optimum,
) -> Flow | None:
    """Train the requested flow; by default train one if weights are uneven, and keep it if it helps."""
    model, auto = task.model, plan.flow == "auto"
    even = optimum.evaluation.detail.value.ess >= _WORTH_A_FLOW
    many = model.space.n_random > _MOST_TASTES
    if plan.flow is None or model.space.n_random == 0 or (auto and (even or many)) or task.clock.is_over():
        return None
    # Imported here, because only flows need Pyro.
    from mxlogit.inference.vi.flow_training import FlowSettings, train_flow

    wanted = FlowSettings(
        "spline" if auto else plan.flow,
        plan.flow_layers,
        variational_steps=optimum.integration.variational_steps,
        seed=task.seed,
    )
    flow, gain = train_flow(model, marginal, populations, wanted, task.clock.show)
    return None if auto and gain < 1.0 else flow


def _describe_guide(flow: Flow | None, optimum: Optimum) -> str:
    parts = ["polish", "variational steps"] if optimum.integration.variational_steps else ["polish"]
    parts.append("Student-t importance weights" if flow is None else "conditional flow, importance weights")
    why = "even" if optimum.evaluation.detail.value.ess >= _WORTH_A_FLOW else "uneven"
    return f"{' + '.join(parts)}; no encoder (no gain under Newton); weights before a flow were {why}"


def _diagnose(optimum: Optimum, sampled: _Sampled, at_center: Diagnostics) -> Diagnostics:
    """Add the figures of the search and of the population posterior."""
    posterior, chains = sampled.posterior, sampled.chains
    mode = posterior.mode or optimum
    found = replace(
        at_center,
        pareto_k=posterior.check.pareto_k,
        ess_population=posterior.check.ess,
        posterior_rounds=posterior.rounds,
        corrected=posterior.corrected is not None,
        newton_decrement=optimum.decrement,
        redraw_shift=mode.redraw**0.5,
        draws=mode.integration.draws,
        population_flow_gain=sampled.gain,
    )
    if chains is None:
        return found
    # Nothing of the Gaussian is reported, so neither is its check.
    return replace(found.join(chains.found), corrected=True, pareto_k=math.nan, ess_population=None)


def _share_above_k(check: PeopleCheck) -> float:
    return float((check.pareto_k > LARGEST_PARETO_K).double().mean())


def _error_of_tails(task: Task, marginal: MarginalLikelihood, samples: Samples) -> SquaredErrors | None:
    """Errors by what lies beyond all samples; None where that is not asked: in a sample of people, or late."""
    if task.is_sampled or task.clock.is_over():
        return None
    return error_of_far_tails(task.model, marginal, samples)


def _error_of_people(sampled: _Sampled, check: PeopleCheck, tastes: ImportanceTastes) -> float | None:
    """Error of people's mean tastes, as states of chains or by importance draws; None without random coefficients."""
    if tastes.model.space.n_random == 0:
        return None
    if sampled.chains is not None:
        return float((sampled.chains.found.ess_bulk or math.nan) ** -0.5)
    return error_of_people(check, tastes.draws_of_moments)


def _of_people(check: PeopleCheck, found: Diagnostics) -> Diagnostics:
    """Add how even the importance weights of a random part of the people are."""
    return replace(
        found,
        ess_min=float(check.ess.min()),
        pareto_k_people=float(check.pareto_k.max()),
        people_above_k=_share_above_k(check),
    )
