"""The report of an engine: samples, the value at the point estimate, and the fit with plain sentences about it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.diagnostics.record import Diagnostics
from mxlogit.diagnostics.thresholds import EVEN_ENOUGH, MANY_PEOPLE
from mxlogit.draws.generators import make_generator
from mxlogit.execution.people import People
from mxlogit.fit import Fit, Outcome, Samples, Status
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.clock import Clock
from mxlogit.inference.start import (
    MultinomialLogit,
    evidence_of_logit,
    is_logit,
    is_separated,
    unknown_to_logit,
    weakly_identified,
)
from mxlogit.inference.vi.population_check import PopulationCheck
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import ParameterSpace, PopulationParameters

_SMALL_EIGENVALUE = 1e-4
# Size of a standard deviation between situations, in its standard errors, below which it may be zero.
_FEWEST_ERRORS = 2.0
# Standard deviations in utils, for an attribute's typical difference: negligible; and modest, which is called
# zero only if the posterior of its logarithm is this wide.
_SMALL_DEVIATION = 0.02
_MODEST_DEVIATION = 0.3
_INTERVAL = torch.tensor([0.025, 0.975], dtype=torch.float64)
_VAGUE_LOG_DEVIATION = 0.5
# Posterior deviation of the logarithm of a standard deviation below which zero is five of its own errors away.
_KNOWN_LOG_DEVIATION = 0.2
_ROUNDING = 1e-12
# Mean of a taste between 0 and 1 above which nearly all tastes are at the upper end.
_UPPER_END = 0.97


def draw_samples(space: ParameterSpace, factor: GaussianFactor, n: int, seed: int) -> Samples:
    """Draw posterior samples from the population factor."""
    return report_samples(space, factor.sample(n, make_generator(seed, 5)))


def report_samples(space: ParameterSpace, vectors: Tensor) -> Samples:
    """Samples given as unconstrained vectors (n, D)."""
    return Samples(vectors, space.report(space.constrain(vectors)), tuple(space.labels))


def evaluate_center(
    marginal: MarginalLikelihood,
    center: PopulationParameters,
    draws: int,
    degrees_of_freedom: int | None,
    variational_steps: int = 0,
) -> Diagnostics:
    """Return the log likelihood at the point estimate, its Monte Carlo error, the mean ESS fraction and the ELBO."""
    final = marginal.value_pass(
        center,
        IntegrationSettings(draws, degrees_of_freedom, stream=7, newton_steps=10, variational_steps=variational_steps),
        remember=False,
    )
    return Diagnostics(
        log_likelihood=final.log_likelihood,
        log_likelihood_error=final.variance**0.5,
        elbo=final.elbo,
        ess=final.ess,
    )


def report_fit(outcome: Outcome, model: MixedLogitModel, people: People, logit: MultinomialLogit, clock: Clock) -> Fit:
    """Build the fit of an engine: its outcome, seconds and passes, and the warnings that poor diagnostics call for.

    Parameters
    ----------
    outcome : Outcome
    model : MixedLogitModel
        Model that was fitted.
    people : People
    logit : MultinomialLogit
        Logit of the same people, which shows separation and weak identification.
    clock : Clock
        Clock of the fit, with its history.

    Returns
    -------
    Fit
        With one sentence per poor diagnostic, and the status that follows from them.
    """
    passes = outcome.diagnostics.passes or clock.passes or None
    diagnostics = replace(_with_error(outcome), passes=passes, seconds=clock.seconds())
    value = diagnostics.log_likelihood
    if outcome.samples.kind == "posterior" and is_logit(model) and value is not None:
        evidence = evidence_of_logit(model, outcome.center.fixed, value, logit)
        diagnostics = replace(diagnostics, log_evidence=evidence)
    return _assess(with_history(replace(outcome, diagnostics=diagnostics), clock), model, people, logit)


def with_history(outcome: Outcome, clock: Clock) -> Fit:
    """The fit of an outcome whose diagnostics have been assessed."""
    return Fit(**vars(outcome), history=clock.history)


def _with_error(outcome: Outcome) -> Diagnostics:
    """Diagnostics with the estimated error, and whether the fit is trusted."""
    error = outcome.error
    if error is None:
        return replace(outcome.diagnostics, trusted=False, trust="The error of this fit was not estimated.")
    return replace(outcome.diagnostics, error=error.by_group(), trusted=error.is_small, trust=error.sentence())


def _assess(fit: Fit, model: MixedLogitModel, people: People, logit: MultinomialLogit) -> Fit:
    """Turn poor diagnostics into sentences and into the status."""
    warnings, status = list(fit.warnings), fit.status
    names = (*model.space.fixed, *model.space.random)
    estimated = [place for place in model.space.means if place not in unknown_to_logit(model)]
    weak = [names[i] for i in weakly_identified(logit, model.prior.deviation, estimated).tolist()]
    posterior = fit.samples.kind == "posterior"
    if weak and is_separated(people):
        status = Status.SEPARATION
        bound = "only the prior bounds" if posterior else "the likelihood does not bound"
        warnings.append(
            f"Separation (complete or in part): along some combination of {weak} no choice ever becomes less likely "
            f"and some become certain; {bound} their coefficients."
        )
        fit = _without_errors(fit, weak, model.space)
    elif weak and posterior:
        warnings.append(
            f"The coefficients of {weak} are weakly identified: along some combination of them the likelihood of a "
            "multinomial logit leaves more than 18 % of the prior's standard deviation."
        )
    edge = boundary_sentences(model, fit)
    fit = _without_errors(fit, small_deviations(model, fit), model.space)
    if edge and status is Status.CONVERGED:
        status = Status.BOUNDARY
    warnings += edge + (_vague_sentences(model, fit) if posterior else []) + _quality_sentences(fit.diagnostics)
    if not status.converged:
        warnings.insert(0, status.value)
    return replace(fit, status=status, warnings=warnings)


def _without_errors(fit: Fit, names: list[str], space: ParameterSpace) -> Fit:
    """Void the errors of coefficients that diverge where they are those of an estimator: a posterior has its prior."""
    if fit.covariance is None:
        return fit
    covariance = fit.covariance.clone()
    running = {*names, *(f"sd.{name}" for name in names if name in space.random)}
    void = [label for label in fit.samples.labels if label in running]
    for label in void:
        i = fit.samples.labels.index(label)
        covariance[i] = covariance[:, i] = math.nan
    return replace(fit, covariance=covariance, void=(*fit.void, *void))


def boundary_sentences(model: MixedLogitModel, fit: Fit) -> list[str]:
    """Say which standard deviations or correlations lie at the edge of the parameter space."""
    sentences = []
    center, space = fit.center, model.space
    scale = center.scale
    _, _, log_scales, _ = space.split(fit.samples.unconstrained)
    for i, name in enumerate(space.random):
        linear = model.mixing.families[i].units == "linear"
        unit = float(model.attribute_scale[space.n_fixed + i]) if linear else 1.0
        size, width = float(scale[i]) * unit, float(log_scales[:, i].std())
        # Samples that vary by rounding alone are those of an estimator whose error is unknown.
        known = _ROUNDING < width < _KNOWN_LOG_DEVIATION
        if (size < _SMALL_DEVIATION and not known) or (size < _MODEST_DEVIATION and width > _VAGUE_LOG_DEVIATION):
            sentences.append(
                f"The standard deviation of {name!r} is indistinguishable from zero (the boundary of the parameter "
                "space): the taste may be homogeneous."
            )
    sentences += _deviation_sentences(model, fit) + _upper_end_sentences(model, fit)
    correlation = center.scale_tril / scale[:, None]
    if len(scale) and float(torch.linalg.eigvalsh(correlation @ correlation.T).amin()) < _SMALL_EIGENVALUE:
        sentences.append("The correlation matrix of the random tastes is close to singular (the boundary).")
    return sentences


def _deviation_sentences(model: MixedLogitModel, fit: Fit) -> list[str]:
    """Say which coefficients may not vary between situations: as likely with a deviation of zero or of either sign."""
    return [
        f"The standard deviation of {label.removeprefix('sd.within.')!r} between the situations of a person is "
        "indistinguishable from zero (the boundary of the parameter space): its taste may not vary within."
        for label in small_deviations(model, fit)
    ]


def small_deviations(model: MixedLogitModel, fit: Fit) -> list[str]:
    """Labels of standard deviations between situations that may be zero, where errors of an estimator mean nothing."""
    varying = model.mixing.varying
    if varying is None:
        return []
    found = []
    for place in varying.deviations:
        samples = fit.samples.reported[:, model.space.means.index(place)]
        if float(fit.center.fixed[place].abs()) < _FEWEST_ERRORS * float(samples.std()):
            found.append(model.space.fixed[place])
    return found


def _upper_end_sentences(model: MixedLogitModel, fit: Fit) -> list[str]:
    """Say which tastes of a bounded family lie at its upper end for all decision makers."""
    families = model.mixing.families
    if not any(family.name == "johnson_sb" for family in families):
        return []
    mean, _ = model.mixing.moments(fit.center.location, fit.center.scale)
    return [
        f"The taste of {name!r} lies at 1, the upper end of 'johnson_sb', for nearly all decision makers: its "
        "effect is larger than that distribution, whose tastes lie between 0 and 1, allows. Multiply the column by a "
        "number, or take another distribution."
        for name, family, value in zip(model.space.random, families, mean.tolist(), strict=True)
        if family.name == "johnson_sb" and value > _UPPER_END
    ]


def _vague_sentences(model: MixedLogitModel, fit: Fit) -> list[str]:
    """Say which standard deviations are weakly identified, far from the boundary."""
    _, _, log_scales, _ = model.space.split(fit.samples.unconstrained)
    sentences = []
    for i, name in enumerate(model.space.random):
        linear = model.mixing.families[i].units == "linear"
        size = float(fit.center.scale[i]) * (float(model.attribute_scale[model.space.n_fixed + i]) if linear else 1.0)
        if float(log_scales[:, i].std()) < _VAGUE_LOG_DEVIATION or size < _MODEST_DEVIATION:
            continue
        low, high = log_scales[:, i].exp().quantile(_INTERVAL.to(log_scales)).tolist()
        sentences.append(
            f"The standard deviation of {name!r} is weakly identified: 95 % of its posterior lies between "
            f"{low:.3g} and {high:.3g}. More data, above all more choices per person, would narrow it."
        )
    return sentences


def _quality_sentences(found: Diagnostics) -> list[str]:
    """Say that the error is large, or, where it was not estimated, that weights are uneven."""
    sentences = _posterior_sentences(found) if found.error is None else []
    # Simulated draws have a verdict of their own.
    if found.error is not None and found.trust is not None and not found.trusted and found.draws_enough is None:
        sentences.append(found.trust)
    above = found.people_above_k
    if above is not None and above > MANY_PEOPLE:
        rough = "tastes and the log likelihood" if found.rhat is None else "the log likelihood and tastes of new people"
        sentences.append(
            f"Pareto k exceeds 0.7 for {above:.0%} of the decision makers that were checked: {rough} are approximate."
        )
    return sentences


def _posterior_sentences(found: Diagnostics) -> list[str]:
    """Say that weights of the population posterior are uneven."""
    sentences, ess = [], found.ess_population
    uneven = ess is not None and ess < EVEN_ENOUGH
    if ess is not None and PopulationCheck(found.pareto_k, ess).is_poor:
        reason = "its weighted draws miss some of its tail" if found.corrected else "it is not close to Gaussian"
        sentences.append(
            f"Pareto k of the population posterior is {found.pareto_k:.2f} (above 0.7): {reason}, so tails and "
            "intervals are approximate; method='mcmc' has no such limit."
        )
    if found.posterior_rounds == 0 and uneven and not found.corrected and not sentences:
        sentences.append(
            "The population posterior is too far from Gaussian to find its means: samples are those of a Gaussian "
            "around its mode, and estimates and intervals are approximate."
        )
    return sentences
