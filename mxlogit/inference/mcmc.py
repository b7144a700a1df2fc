"""Markov chain Monte Carlo: the judge of every other engine, on the same kernel, data, priors and results."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.errors import SpecificationError, check_at_least, check_option, check_whole
from mxlogit.fit import Fit, HistoryRow, Status
from mxlogit.inference.assess import evaluate_center, judge
from mxlogit.inference.method import Callback
from mxlogit.inference.start import fit_multinomial_logit, start_population
from mxlogit.marginal import MarginalLikelihood
from mxlogit.panels import PanelDifferences
from mxlogit.people import People
from mxlogit.sampling.chains import State
from mxlogit.sampling.convergence import ess_bulk, ess_tail, rhat
from mxlogit.sampling.covariance import HuangWand, InverseWishart
from mxlogit.sampling.gibbs import Acceptance, GibbsSampler
from mxlogit.sampling.trace import SampledTastes, Trace
from mxlogit.tastes import PolishedTastes

# Shares of the warm-up at which proposals are made anew, from the second half of what was seen so far.
_WINDOWS = (0.04, 0.12, 0.24, 0.5, 0.8)
_START_SPREAD = 0.3
_WORST_RHAT = 1.01
_TOLD_EVERY = 50
_CENTER_WORK = 20_000_000


class MCMC(BaseEstimator):  # type: ignore[misc]
    r"""Markov chain Monte Carlo.

    Parameters
    ----------
    sampler : {"gibbs"}
        Metropolis within Gibbs, all decision makers at once: independence steps of tastes, then the population given
        latents and given whitened tastes.
    chains : int
        Two at least for R-hat.
    warmup, samples : int
        Iterations of each chain that adapt, and that are kept.
    thin : int
        Keep every so many iterations; 1 keeps all.
    start : {"logit", "vi"}
        Where chains begin: apart from each other around a multinomial logit, or at samples of a variational posterior.
    covariance_prior : InverseWishart, HuangWand or None
        Instead of half-Cauchy standard deviations and LKJ correlations, to reproduce bayesm, RSGHB and others.
    taste_memory : float
        Megabytes for states of people's tastes (quantiles, predictions). Every iteration's are kept where they fit,
        else evenly spaced ones; means and standard deviations always come from all.

    Notes
    -----
    A weight counts a decision maker so many times and must be a whole number. An interrupt (Ctrl-C) after the warm-up
    returns what was sampled.

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
    ) -> None:
        self.sampler = sampler
        self.chains = chains
        self.warmup = warmup
        self.samples = samples
        self.thin = thin
        self.start = start
        self.covariance_prior = covariance_prior
        self.taste_memory = taste_memory

    def check(self) -> None:
        """Raise unless the settings make sense.

        Raises
        ------
        SpecificationError
            Naming the setting, what is allowed and what came.
        """
        check_option("MCMC(sampler=...)", self.sampler, ["gibbs"])
        check_option("MCMC(start=...)", self.start, ["logit", "vi"])
        for name, lowest in (("chains", 1), ("warmup", 10), ("samples", 4), ("thin", 1)):
            check_whole(f"MCMC({name}=...)", getattr(self, name), lowest)
        check_at_least("MCMC(taste_memory=...)", self.taste_memory, 0.0)
        prior = self.covariance_prior
        if prior is None:
            return
        if not isinstance(prior, (InverseWishart, HuangWand)):
            raise SpecificationError(
                f"MCMC(covariance_prior=...) must be None, InverseWishart() or HuangWand(); got {prior!r}."
            )
        prior.check()

    @torch.no_grad()
    def run(self, model: PanelModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Sample the posterior of ``model`` given the choices of ``people`` (parameters as in `VI.run`).

        Returns
        -------
        Fit
            With the chains.

        Raises
        ------
        SpecificationError
            If a setting is wrong, weights are not whole numbers, or processes share the people.
        """
        self.check()
        begin = time.perf_counter()
        panel = people.alone()
        seed = int(torch.randint(2**62, (1,), generator=generator))
        logit = fit_multinomial_logit(people, model.prior.deviation)
        sampler = GibbsSampler(model, repeated(panel), self.chains, seed, self.covariance_prior)
        reference = start_population(model, logit)
        state = sampler.start(reference, _START_SPREAD)
        sampler.tune(state, None, reference)
        run = _Run(self, model, sampler, callback, begin)
        run.warm_up(state)
        interrupted = run.sample()
        fit = run.package(panel, seed, interrupted=interrupted)
        return judge(fit, model, people, logit)


def repeated(panel: PanelDifferences) -> PanelDifferences:
    """Everybody as often as the weight says, each with weight one.

    Raises
    ------
    SpecificationError
        If weights are not whole numbers.
    """
    weights = panel.weights
    wrong = int((weights != weights.round()).sum())
    if wrong:
        raise SpecificationError(
            f"MCMC needs whole-number weights (a weight is a number of like people); those of {wrong} people are not. "
            "VI and MSLE take any."
        )
    if bool((weights == 1.0).all()):
        return panel
    people = torch.arange(len(panel), device=weights.device).repeat_interleave(weights.long())
    many = panel.take(people)
    return PanelDifferences(many.values, many.closed, many.n_others, torch.ones_like(many.weights), many.n_situations)


@dataclass
class _Acceptances:
    """Sums of shares accepted since sampling began."""

    count: int = 0
    population: float = 0.0
    people: float = 0.0
    posterior: float = 0.0

    def add(self, accepted: Acceptance) -> None:
        self.count += 1
        self.population += accepted.population
        self.people += accepted.people
        self.posterior += accepted.posterior

    def mean(self) -> Acceptance:
        count = max(1, self.count)
        return Acceptance(self.population / count, self.people / count, self.posterior / count)


class _Run:
    """One run: warm-up, sampling, and what it says of itself."""

    def __init__(
        self, settings: MCMC, model: PanelModel, sampler: GibbsSampler, callback: Callback, begin: float
    ) -> None:
        self.settings, self.model, self.sampler, self.callback, self.begin = settings, model, sampler, callback, begin
        self.history: list[HistoryRow] = []
        self.acceptances = _Acceptances()

    def warm_up(self, state: State) -> None:
        """Adapt for so many iterations; proposals are made anew at the ends of windows."""
        length = self.settings.warmup
        visited: list[Tensor] = []
        ends = {int(share * length) for share in _WINDOWS}
        for iteration in range(length):
            if iteration in ends and iteration:
                seen = torch.stack(visited[iteration // 2 :])
                self.sampler.tune(state, seen, self.sampler.population(seen.mean((0, 1))))
            state, accepted = self.sampler.run(state, iteration, adapt=True)
            visited.append(self.sampler.coordinates(state))
            self._tell("warm-up", iteration, state, accepted)
        self.state = state

    def sample(self) -> bool:
        """Keep iterations; says whether an interrupt ended it."""
        settings, state = self.settings, self.state
        self.trace = Trace(self.model, state, settings.samples, int(1e6 * settings.taste_memory))
        try:
            for iteration in range(settings.samples * settings.thin):
                state, accepted = self.sampler.run(state, settings.warmup + iteration, adapt=False)
                self.acceptances.add(accepted)
                if (iteration + 1) % settings.thin == 0:
                    self.trace.add(state)
                self._tell("sampling", iteration, state, self.acceptances.mean())
        except KeyboardInterrupt:
            if self.trace.kept < 4:
                raise
            return True
        return False

    def _tell(self, stage: str, iteration: int, state: State, accepted: Acceptance) -> None:
        if (iteration + 1) % _TOLD_EVERY:
            return
        value = float(state.log_prob.double().sum(-1).mean())
        seconds = time.perf_counter() - self.begin
        self.history.append(HistoryRow(stage, value, float("nan"), float(iteration + 1), seconds, True))
        text = f"{stage}: iteration {iteration + 1}, accepted people {accepted.people:.2f}, population "
        text += f"{accepted.population:.2f} and {accepted.posterior:.2f}"
        if stage == "sampling" and self.trace.kept >= 4 and self.settings.chains > 1:
            text += f", R-hat {float(rhat(self.trace.reported()).nan_to_num(nan=1.0).amax()):.3f}"
        self.callback(text)

    def package(self, panel: PanelDifferences, seed: int, *, interrupted: bool) -> Fit:
        """The result, with its diagnostics."""
        model, trace = self.model, self.trace
        samples = trace.samples(torch.Generator().manual_seed(seed))
        center = model.space.from_report(samples.mean)
        others = PolishedTastes(model, seed, tail=8)
        mean, deviation, states = self._of_people(panel)
        tastes = SampledTastes(panel, mean, deviation, states, others)
        reported = trace.reported()
        diagnostics, status, warnings = _mixing(reported, interrupted=interrupted)
        marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, seed)
        draws = max(64, min(1024, 4 * (_CENTER_WORK // (4 * max(1, len(panel))))))
        diagnostics.update(evaluate_center(marginal, center, draws, 8))
        diagnostics.update(
            **{f"acceptance_{name}": share for name, share in vars(self.acceptances.mean()).items()},
            iterations=trace.kept,
            taste_states=len(states),
            seconds=time.perf_counter() - self.begin,
        )
        return Fit(samples, center, status, self.history, tastes, diagnostics, warnings, chains=reported)

    def _of_people(self, panel: PanelDifferences) -> tuple[Tensor, Tensor, Tensor]:
        """Moments and states of each person, once, however often weights repeat it."""
        moments, states = self.trace.moments, self.trace.states()
        if len(moments.mean) == len(panel):
            return moments.mean, moments.deviation, states
        first = panel.weights.long().cumsum(0) - panel.weights.long()
        return moments.mean[first], moments.deviation[first], states[:, first]


def _mixing(reported: Tensor, *, interrupted: bool) -> tuple[dict[str, object], Status, list[str]]:
    """R-hat and effective sample sizes of chains (chains, kept, D), the status and sentences they call for."""
    if len(reported) < 2:
        sentence = "R-hat needs at least two chains: whether this one has converged cannot be told."
        return {"rhat": float("nan")}, Status.INTERRUPTED if interrupted else Status.ONE_CHAIN, [sentence]
    worst = float(rhat(reported).nan_to_num(nan=1.0).amax())
    sizes = {"ess_bulk": float(ess_bulk(reported).amin()), "ess_tail": float(ess_tail(reported).amin())}
    status, sentences = Status.MIXED, []
    if worst > _WORST_RHAT:
        status = Status.NOT_MIXED
        sentences = [f"R-hat reaches {worst:.3f} (above {_WORST_RHAT}): the chains have not mixed; take more samples."]
    elif min(sizes.values()) < 100.0 * len(reported):
        sentences = [
            f"The smallest effective sample size is {min(sizes.values()):.0f}: intervals are rough; take more samples "
            f"for {100 * len(reported)}."
        ]
    if interrupted:
        status = Status.INTERRUPTED
    return {"rhat": worst, **sizes}, status, sentences
