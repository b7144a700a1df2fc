"""Markov chain Monte Carlo: the reference sampler, on the same kernel, data, priors and results as other engines."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from mxlogit.diagnostics.convergence import ess_bulk, ess_tail, rhat
from mxlogit.diagnostics.error import ErrorEstimate, error_of_chains
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.diagnostics.thresholds import LARGEST_RHAT
from mxlogit.errors import Rule, SpecificationError, at_least, check_path, check_settings, one_of, whole
from mxlogit.execution.checkpoint import Checkpoint
from mxlogit.execution.identity import identify_fit
from mxlogit.execution.people import People
from mxlogit.fit import Fit, Outcome, Status, TasteStates
from mxlogit.inference.budgets import AFTER_CHAINS
from mxlogit.inference.checks import MAX_SECONDS
from mxlogit.inference.classes.chains import ChainPlan
from mxlogit.inference.classes.engine import fit_class_chains, refuse_settings
from mxlogit.inference.clock import Clock
from mxlogit.inference.mcmc.gibbs_run import ChainSettings, Sampled, run_gibbs
from mxlogit.inference.method import Callback
from mxlogit.inference.positive_deviations import mean_population
from mxlogit.inference.report import evaluate_center, report_fit
from mxlogit.inference.start import (
    MultinomialLogit,
    fit_multinomial_logit,
    held_in_logit,
    in_wtp_space,
    prior_of_logit,
    refuse_held,
    refuse_wtp_space,
    start_population,
)
from mxlogit.inference.vi.engine import VI
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.tastes import ImportanceTastes
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.sampling.covariance import HuangWand, InverseWishart
from mxlogit.sampling.trace import Trace

# Most decision makers that weights may add by repetition; chosen by hand.
_MOST_REPEATED = 10_000_000
# Distance from a whole number up to which a weight is rounded to it: more than the rounding error of scaled weights.
_ROUNDING = 1e-6
# Largest share of a time limit for a start by VI; chosen by hand.
_START_SHARE = 0.2

Sampler = Callable[[ChainSettings, MixedLogitModel, Panels, PopulationParameters, int, Clock], Sampled]


def _covariance_prior(argument: str, value: Any) -> None:
    if value is not None and not isinstance(value, (InverseWishart, HuangWand)):
        raise SpecificationError(f"{argument} must be None, InverseWishart() or HuangWand(); got {value!r}.")


# What each setting may be.
_RULES: dict[str, Rule] = {
    "chains": whole(1),
    "warmup": whole(10),
    "samples": whole(4),
    "thin": whole(1),
    "sampler": one_of("gibbs", "nuts", "numpyro"),
    "covariance_prior": _covariance_prior,
    "start": one_of("logit", "vi"),
    "taste_memory": at_least(0.0),
    "checkpoint": check_path,
    "max_seconds": MAX_SECONDS,
}


class MCMC(BaseEstimator):  # type: ignore[misc]
    r"""Markov chain Monte Carlo.

    Parameters
    ----------
    sampler : {"gibbs", "nuts", "numpyro"}
        Sampling algorithm. "gibbs": Metropolis within Gibbs, all decision makers and chains at once: population
        parameters at constant residuals of people's posteriors, independence steps of tastes, then population
        parameters given latent and given whitened tastes. "nuts": Pyro's No-U-Turn sampler on the Pyro program
        (`mxlogit.model.pyro_program`), chain after chain: slow, for an independent check of "gibbs". "numpyro": the
        same density in NumPyro (extra ``nuts``; normal and lognormal coefficients).
    chains : int
        Number of chains, at least two for R-hat.
    warmup, samples : int
        Numbers of adaptation iterations and of kept iterations per chain.
    thin : int
        Thinning interval; 1 keeps all iterations.
    start : {"logit", "vi"}
        Center of the overdispersed initial states: a multinomial logit, or the estimates of `VI`.
    covariance_prior : InverseWishart, HuangWand or None
        Prior of the covariance of tastes, to reproduce bayesm, RSGHB and others; None: half-Cauchy standard deviations
        and LKJ correlations.
    taste_memory : float
        Memory for states of people's tastes (quantiles, predictions), in megabytes. Two to four thousand are kept if
        they fit, otherwise fewer, evenly spaced; means and standard deviations always use all.
    max_seconds : float or None
        Time limit, in seconds: chains end with the iterations completed by then, at least four; the warm-up takes at
        most two fifths of it ("gibbs"). The status says so.
    checkpoint : str, Path or None
        File to which the chains are saved every 20 seconds ("gibbs" only). A run that was interrupted, or ended by
        ``max_seconds``, resumes from it when repeated with the same data, settings and ``random_state``, and gives the
        same samples (unless a limit shortened its warm-up); the file is deleted at the end of a run.

    Notes
    -----
    Weights are frequency weights and must be whole numbers. An interrupt (Ctrl-C) after the warm-up returns the samples
    so far.

    References
    ----------
    Train (2009), Discrete Choice Methods with Simulation, chapter 12. Yu and Meng (2011), Journal of Computational
    and Graphical Statistics 20. Vehtari et al. (2021), Bayesian Analysis 16.
    """

    def __init__(
        self,
        *,
        sampler: str = "gibbs",
        chains: int = 4,
        warmup: int = 500,
        samples: int = 3000,
        thin: int = 1,
        start: str = "logit",
        covariance_prior: InverseWishart | HuangWand | None = None,
        taste_memory: float = 256.0,
        max_seconds: float | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.sampler = sampler
        self.chains = chains
        self.warmup = warmup
        self.samples = samples
        self.thin = thin
        self.start = start
        self.covariance_prior = covariance_prior
        self.taste_memory = taste_memory
        self.max_seconds = max_seconds
        self.checkpoint = checkpoint

    def check(self) -> None:
        """Raise unless the settings are valid.

        Raises
        ------
        SpecificationError
            If a setting is invalid; the message names it, its allowed values and the value given.
        """
        check_settings(self, _RULES)
        if self.checkpoint is not None and self.sampler != "gibbs":
            raise SpecificationError("MCMC(checkpoint=...) needs sampler='gibbs'.")
        if self.covariance_prior is not None:
            self.covariance_prior.check()
        if self.covariance_prior is not None and self.sampler != "gibbs":
            raise SpecificationError("MCMC(covariance_prior=...) needs sampler='gibbs'.")

    @torch.no_grad()
    def run(self, model: MixedLogitModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Sample the posterior of ``model`` given the choices of ``people`` (parameters as in `VI.run`).

        Returns
        -------
        Fit
            With the chains.

        Raises
        ------
        SpecificationError
            If a setting is wrong, weights are not whole numbers, processes share the people, or the model is in
            willingness-to-pay space.
        """
        self.check()
        if model.has_classes:
            refuse_settings(self, ("chains", "warmup", "samples", "thin", "max_seconds"))
            plan = ChainPlan(self.chains, self.warmup, self.samples, self.thin)
            return fit_class_chains(model, people, plan, self.max_seconds, generator, callback)
        if self.sampler != "gibbs":
            refuse_wtp_space(model, f"MCMC(sampler={self.sampler!r})")
            refuse_held(model, f"MCMC(sampler={self.sampler!r})")
        clock = Clock(callback, self.max_seconds)
        panel = people.require_single_process()
        seed = int(torch.randint(2**62, (1,), generator=generator))
        found = fit_multinomial_logit(people, prior_of_logit(model), held=held_in_logit(model))
        model, logit = in_wtp_space(model, found)
        start = self._start(model, people, logit, generator, callback)
        settings = ChainSettings(
            self.chains,
            self.warmup,
            self.samples,
            self.thin,
            int(1e6 * self.taste_memory),
            self.covariance_prior,
            self._file(model, people, seed),
        )
        run_sampler = _SAMPLERS[self.sampler]()
        sampled = run_sampler(settings, model, repeated(panel), start, seed, clock)
        return report_fit(_conclude(model, sampled, panel, seed), model, people, logit, clock)

    def _file(self, model: MixedLogitModel, people: People, seed: int) -> Checkpoint | None:
        """The checkpoint file of the chains, if requested."""
        if self.checkpoint is None:
            return None
        identity = identify_fit(model, people, self, seed, engine="MCMC", without=("checkpoint", "max_seconds"))
        return Checkpoint(Path(self.checkpoint), identity)

    def _start(
        self,
        model: MixedLogitModel,
        people: People,
        logit: MultinomialLogit,
        generator: torch.Generator,
        callback: Callback,
    ) -> PopulationParameters:
        """Center of the chains' initial states."""
        if self.start == "vi":
            limit = None if self.max_seconds is None else _START_SHARE * self.max_seconds
            return (
                VI(n_samples=100, max_seconds=limit).run(model, people, generator=generator, callback=callback).center
            )
        return start_population(model, logit)


def _nuts() -> Sampler:
    # Imported here, because the default sampler does not need Pyro.
    from mxlogit.inference.mcmc.pyro_nuts import run_nuts

    return run_nuts


def _numpyro() -> Sampler:
    from mxlogit.inference.mcmc.numpyro_nuts import run_numpyro

    return run_numpyro


def _gibbs() -> Sampler:
    return run_gibbs


_SAMPLERS: dict[str, Callable[[], Sampler]] = {"gibbs": _gibbs, "nuts": _nuts, "numpyro": _numpyro}


def repeated(panel: Panels) -> Panels:
    """Repeat each decision maker as often as its weight, with weight one.

    Raises
    ------
    SpecificationError
        If weights are not whole numbers.
    """
    # Equal weights scaled to a mean of one may differ from one by rounding.
    whole = panel.weights.round()
    weights = torch.where((panel.weights - whole).abs() < _ROUNDING, whole, panel.weights)
    wrong = int((weights != whole).sum())
    if wrong:
        raise SpecificationError(
            f"MCMC needs whole-number weights (a weight is a number of like people); those of {wrong} people are not, "
            "perhaps since weights_sum='n' has scaled them. VI and MSLE take any."
        )
    if bool((weights == 1.0).all()):
        return replace(panel, weights=weights)
    total, most = float(weights.double().sum()), len(panel) + _MOST_REPEATED
    if not float(weights.amin()) > 0.0 or total > most:
        raise SpecificationError(
            f"MCMC lists every decision maker as often as the weight says: {total:.3g} times in all, {most:,} at most. "
            "weights_sum='n' scales weights to a mean of one."
        )
    people = torch.arange(len(panel), device=weights.device).repeat_interleave(weights.long())
    many = panel.take(people)
    return replace(many, weights=torch.ones_like(many.weights), appearance=None, clusters=None)


def _conclude(model: MixedLogitModel, sampled: Sampled, panel: Panels, seed: int) -> Outcome:
    """Samples of the chains, whether they have mixed, and the likelihood at their mean."""
    trace = sampled.trace
    samples = trace.samples(torch.Generator().manual_seed(seed))
    center = mean_population(model, samples)
    states, tastes = _of_people(trace, panel), ImportanceTastes(model, seed, degrees_of_freedom=8)
    reported = trace.reported()
    diagnostics, status, warnings = _mixing(reported, sampled.ended_by)
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, seed)
    at_center = evaluate_center(marginal, center, AFTER_CHAINS.draws(len(panel)), 8)
    found = at_center.join(diagnostics).join(sampled.figures)
    found = replace(found, iterations=trace.n_kept, taste_states=len(states.tastes))
    people = float((diagnostics.ess_bulk or math.nan) ** -0.5) if model.space.n_random else None
    error = ErrorEstimate(samples.labels, (error_of_chains(reported),), people)
    return Outcome(samples, center, status, tastes, found, warnings, chains=reported, states=states, error=error)


def _of_people(trace: Trace, panel: Panels) -> TasteStates:
    """Moments and states of each person, without the repetitions due to weights."""
    states = TasteStates(trace.moments.mean, trace.moments.deviation, *trace.states())
    if len(states.mean) == len(panel):
        return states
    return states.take(panel.weights.long().cumsum(0) - panel.weights.long())


def _mixing(reported: Tensor, ended_by: Status | None) -> tuple[Diagnostics, Status, list[str]]:
    """R-hat and effective sample sizes of chains (chains, kept, D), the status and sentences they call for."""
    if len(reported) < 2:
        sentence = "R-hat needs at least two chains: the convergence of this one was not assessed."
        return Diagnostics(rhat=math.nan), ended_by or Status.ONE_CHAIN, [sentence]
    worst = float(rhat(reported).nan_to_num(nan=1.0).amax())
    bulk, tail = float(ess_bulk(reported).amin()), float(ess_tail(reported).amin())
    status, sentences = Status.MIXED, []
    if worst > LARGEST_RHAT:
        status = Status.NOT_MIXED
        sentences = [f"R-hat reaches {worst:.3f} (above {LARGEST_RHAT}): the chains have not mixed; take more samples."]
    elif min(bulk, tail) < 100.0 * len(reported):
        sentences = [
            f"The smallest effective sample size is {min(bulk, tail):.0f}: intervals are rough; take more samples "
            f"for {100 * len(reported)}."
        ]
    return Diagnostics(rhat=worst, ess_bulk=bulk, ess_tail=tail), ended_by or status, sentences
