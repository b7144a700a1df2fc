"""Fits of populations of classes: one search, after which engines differ in what they report of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from mxlogit.diagnostics.error import (
    Cause,
    ErrorEstimate,
    error_of_chains,
    error_of_weighted,
    no_errors,
    unknown_errors,
)
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.diagnostics.thresholds import LARGEST_RHAT
from mxlogit.draws.generators import make_generator
from mxlogit.errors import SpecificationError
from mxlogit.execution.people import People
from mxlogit.fit import Fit, Samples, Status
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.classes.chains import ChainPlan, ClassChains, draw_until_mixed, run_chains
from mxlogit.inference.classes.conclusion import ClassFit
from mxlogit.inference.classes.empty_classes import LARGEST_SHARE, find_empty_classes
from mxlogit.inference.classes.objective import ClassObjective
from mxlogit.inference.classes.posterior import (
    ClassPosterior,
    Weighed,
    differentiated,
    evidence_around,
    laplace,
    weigh,
)
from mxlogit.inference.classes.search import STARTS_PER_CLASS, Starts, climb, recorder, search
from mxlogit.inference.clock import Clock
from mxlogit.inference.method import Callback
from mxlogit.inference.msle.covariance import EstimatorCovariance, draw_errors
from mxlogit.inference.report import draw_samples, report_samples
from mxlogit.inference.start import fit_multinomial_logit
from mxlogit.inference.vi.moment_matching import match_moments
from mxlogit.integration.mixture_likelihood import likelihood_of_classes
from mxlogit.model.class_prior import ClassPrior
from mxlogit.model.classes import ClassSpace
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels

# Effective sample size of all parameters that ends chains, and the one below which they say too little.
_ENOUGH, _FEWEST = 400.0, 50.0
# Most people of whom the search is made: from there it goes on with all.
_SEARCHED, _SEARCHED_OF_SPREAD = 5_000, 1_000
# Draws per person and class of a mixture of normals: in the search, and where it ends.
_SEARCH_DRAWS, _DRAWS = 32, 64
# Promised increase in nats that ends climbs on such draws, difference of optima that counts as noise, and increase in
# five steps that ends climbs.
_ROUGH, _SAME, _STALL = 0.02, 0.5, 0.1


class ClassSettings(Protocol):
    """Settings that all engines of classes share."""

    n_samples: int
    max_seconds: float | None


def refuse_settings(settings: Any, used: Sequence[str]) -> None:
    """Check that no setting of an engine has been changed that populations of classes do not use.

    Raises
    ------
    SpecificationError
        If some have.
    """
    usual = type(settings)().get_params(deep=False)
    changed = [name for name, value in settings.get_params(deep=False).items() if value != usual[name]]
    ignored = [name for name in changed if name not in used]
    if ignored:
        raise SpecificationError(
            f"{type(settings).__name__}: settings {ignored} have no effect with mixing=Mixture(...), which uses "
            f"{list(used)}; leave them out."
        )


def find_classes(
    model: MixedLogitModel,
    people: People,
    generator: torch.Generator,
    callback: Callback,
    max_seconds: float | None,
    *,
    with_prior: bool,
    starts: int | None = None,
) -> ClassFit:
    """Search for the classes that describe the data best.

    Raises
    ------
    SpecificationError
        If processes share the people.
    """
    panel, clock = people.require_single_process().by_appearance(), Clock(callback, max_seconds)
    people = People.gather(panel)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    space, prior = model.space, model.prior
    assert isinstance(space, ClassSpace)
    assert isinstance(prior, ClassPrior)
    logit = fit_multinomial_logit(people, prior.deviation if with_prior else torch.full_like(prior.deviation, math.inf))
    limits = (_ROUGH, _SAME, _STALL) if space.is_spread else (1e-6, 0.1, 0.0)

    def objective(some: Panels, draws: int) -> ClassObjective:
        return ClassObjective(
            likelihood_of_classes(model, some, seed, draws), space, prior if with_prior else None, *limits
        )

    most = _SEARCHED_OF_SPREAD if space.is_spread else _SEARCHED
    many = len(panel) > most
    sample = panel.take(people.draw(most, (seed, -3)).to(panel.like.device)) if many else panel
    count = starts or STARTS_PER_CLASS * space.n_classes // (2 if space.is_spread else 1)
    optimum = search(objective(sample, _SEARCH_DRAWS), Starts(model, logit, count, seed), clock)
    final, place = objective(panel, _DRAWS), optimum.place
    if many or space.is_spread:
        place = climb(final, place.vector, 100, recorder(clock, "all people"), clock.is_over)
    population = space.constrain(place.vector)
    ordered = space.ordered(population, population.mean_shares(panel.covariates, final.likelihood.weights))
    place = final.evaluate(space.unconstrain(ordered))
    converged = place.decrement() < (_SAME if space.is_spread else 10.0 * final.tolerance)
    clock.lap("search")
    return ClassFit(final, replace(optimum, place=place, converged=converged), people, logit, clock, seed)


def fit_class_posterior(
    model: MixedLogitModel,
    people: People,
    settings: ClassSettings,
    generator: torch.Generator,
    callback: Callback,
) -> Fit:
    """Posterior around its best mode: weighted draws; where too few of them count, chains, or a Gaussian."""
    refuse_settings(settings, ("n_samples", "max_seconds"))
    fit = find_classes(model, people, generator, callback, settings.max_seconds, with_prior=True)
    posterior, gaussian = _posterior(fit), _gaussian(fit)
    weighted = None if fit.clock.is_over() else weigh(posterior, gaussian, fit.seed)
    if weighted is not None:
        return _of_weighted(fit, weighted, settings.n_samples)
    if fit.space.is_spread or fit.clock.was_over:
        return _of_gaussian(fit, gaussian, settings.n_samples)
    chains = draw_until_mixed(posterior, gaussian, fit.seed, fit.clock, _is_enough)
    return _of_chains(fit, chains, settings.n_samples, keep=False)


def fit_class_chains(
    model: MixedLogitModel,
    people: People,
    plan: ChainPlan,
    max_seconds: float | None,
    generator: torch.Generator,
    callback: Callback,
) -> Fit:
    """Chains of the exact posterior around its best mode."""
    fit = find_classes(model, people, generator, callback, max_seconds, with_prior=True)
    chains = run_chains(_posterior(fit), _gaussian(fit), plan, fit.seed, fit.clock)
    return _of_chains(fit, chains, chains.vectors.shape[0] * chains.vectors.shape[1], keep=True)


def fit_class_maximum(
    model: MixedLogitModel,
    people: People,
    settings: ClassSettings,
    covariance: str,
    starts: int,
    generator: torch.Generator,
    callback: Callback,
) -> Fit:
    """Maximum likelihood, by EM and Newton steps."""
    refuse_settings(settings, ("covariance", "n_starts", "n_samples", "max_seconds"))
    assert isinstance(model.space, ClassSpace)
    count = 2 * starts * model.space.n_classes
    fit = find_classes(model, people, generator, callback, settings.max_seconds, with_prior=False, starts=count)
    place, space, unit = fit.optimum.place, fit.space, torch.ones_like(fit.optimum.place.vector)
    at, clusters = place.at, fit.likelihood.panel.clusters
    information = differentiated(fit.objective, laplace(place)) if space.is_spread else at.information
    spread = EstimatorCovariance(-information, at.scores, at.weights, unit, clusters)
    labels = tuple(space.labels)
    jacobian = torch.func.jacfwd(lambda vector: space.report(space.constrain(vector)))(place.vector)
    found = spread.covariance(covariance)
    vectors = place.vector + draw_errors(found, settings.n_samples, fit.seed)
    samples = Samples(vectors, space.report(space.constrain(vectors)), labels, kind="sampling distribution")
    reported = jacobian @ found @ jacobian.T
    unknown = (jacobian[:, spread.unbounded(covariance)] != 0).any(-1)
    reported[unknown] = reported[:, unknown] = math.nan
    warnings = spread.sentences(list(labels), covariance)
    diagnostics = Diagnostics(simulated_log_likelihood=at.value, unidentified=[labels[i] for i in spread.flat])
    error = None if space.is_spread else ErrorEstimate(labels, (no_errors(space.size),))
    center = space.constrain(place.vector)
    return fit.conclude(samples, center, Status.CONVERGED, diagnostics, error, warnings, reported)


def _posterior(fit: ClassFit) -> ClassPosterior:
    assert fit.objective.prior is not None
    return ClassPosterior(fit.likelihood, fit.objective.prior)


def _gaussian(fit: ClassFit) -> GaussianFactor:
    """Gaussian at the mode."""
    gaussian = laplace(fit.optimum.place)
    if not fit.space.is_spread:
        return gaussian
    found = replace(fit.optimum.place, curvature=differentiated(fit.objective, gaussian))
    # Away from the optimum the objective need not be concave.
    return gaussian if found.newton_step() is None else laplace(found)


def _log_evidence(fit: ClassFit, of_one_mode: float) -> float:
    """Log marginal likelihood: that of one labelling of exchangeable classes, times their number."""
    return of_one_mode + sum(math.lgamma(len(alike) + 1.0) for alike in fit.space.exchangeable)


def _is_enough(chains: ClassChains) -> bool:
    return min(chains.smallest_ess) >= _ENOUGH and chains.rhat <= LARGEST_RHAT


def _of_weighted(fit: ClassFit, weighed: Weighed, n_samples: int) -> Fit:
    """The fit of weighted draws of the posterior."""
    weighted = weighed.draws
    weights, generator = weighted.log_weights.exp(), make_generator(fit.seed, 37)
    vectors = match_moments(fit.space, weighted.resample(n_samples, generator), weighted.vectors, weights)
    samples = report_samples(fit.space, vectors)
    reported = fit.space.report(fit.space.constrain(weighted.vectors))
    mean = weights @ reported
    scores = (reported - mean) / (weights @ (reported - mean).square()).sqrt()
    error = ErrorEstimate(samples.labels, (error_of_weighted(scores, weights),))
    error = error.with_part(weighed.error_of_draws(scores, fit.seed))
    evidence = weighted.log_evidence
    if not fit.space.is_spread:
        empty = find_empty_classes(fit, weighed.density, weighted.vectors, weights)
        missing = empty.log_missing(evidence)
        evidence += math.log1p(math.exp(min(missing, 700.0)))
        if missing > math.log(LARGEST_SHARE):
            error = error.with_part(unknown_errors(Cause.EMPTY, fit.space.size))
    found = Diagnostics(
        pareto_k=weighted.pareto_k,
        ess_population=weighted.ess / len(weighted.vectors),
        corrected=True,
        rung="weighted draws",
        log_evidence=_log_evidence(fit, evidence),
    )
    return fit.conclude(samples, fit.space.from_report(mean), Status.CONVERGED, found, error, [])


def _of_gaussian(fit: ClassFit, gaussian: GaussianFactor, n_samples: int) -> Fit:
    """The fit of a Gaussian, of unknown error."""
    samples = draw_samples(fit.space, gaussian, n_samples, fit.seed)
    cause = Cause.TIME if fit.clock.was_over else Cause.WEIGHTS
    error = ErrorEstimate(samples.labels, (unknown_errors(cause, fit.space.size),))
    found = Diagnostics(corrected=False, rung="Gaussian")
    return fit.conclude(samples, fit.space.from_report(samples.mean), Status.CONVERGED, found, error, [])


def _of_chains(fit: ClassFit, chains: ClassChains, n_samples: int, *, keep: bool) -> Fit:
    """The fit of chains; ``keep`` if they are what was asked for."""
    space, flat = fit.space, chains.vectors.flatten(0, 1)
    picks = (torch.arange(n_samples, dtype=torch.float64) * (len(flat) / n_samples)).long()
    order = torch.randperm(n_samples, generator=make_generator(fit.seed, 37))
    samples = report_samples(space, flat[picks[order]])
    reported = space.report(space.constrain(chains.vectors))
    several = len(reported) > 1
    bulk, tail = chains.smallest_ess if several else (math.nan, math.nan)
    found = Diagnostics(
        rhat=chains.rhat if several else math.nan,
        ess_bulk=bulk,
        ess_tail=tail,
        iterations=reported.shape[1],
        acceptance_population=chains.acceptance,
        corrected=None if keep else True,
        rung=None if keep else "chains",
    )
    if not space.is_spread and not fit.clock.was_over:
        log_evidence = _log_evidence(fit, evidence_around(_posterior(fit), flat, fit.seed))
        found = replace(found, log_evidence=log_evidence)
    mixed = Status.MIXED if keep else Status.CONVERGED
    status = (mixed if chains.rhat <= LARGEST_RHAT else Status.NOT_MIXED) if several else Status.ONE_CHAIN
    warnings = []
    if bulk < _FEWEST:
        warnings.append(f"The smallest effective sample size is {bulk:.0f}: intervals are rough; take more samples.")
    if chains.relabelled:
        warnings.append(
            f"In {chains.relabelled} states of the chains classes had exchanged their labels, which were restored: "
            "classes are not well separated."
        )
    error = ErrorEstimate(samples.labels, (error_of_chains(reported),))
    center = space.from_report(reported.flatten(0, 1).mean(0))
    return fit.conclude(samples, center, status, found, error, warnings, chains=reported if keep else None)
