"""Variational inference: the settings object and the default route from data to posterior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sklearn.base import BaseEstimator

from mxlogit.density import PanelModel
from mxlogit.draws import make_generator
from mxlogit.errors import SpecificationError, check_at_least, check_option
from mxlogit.fit import Fit
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.assess import draw_samples, evaluate_center, judge, report_samples
from mxlogit.inference.correction import WeightedVectors, correct
from mxlogit.inference.method import Callback
from mxlogit.inference.newton import STAGE_SIZES, Clock, NewtonSearch, NewtonSettings, Optimum
from mxlogit.inference.posterior import (
    EVEN_WEIGHTS,
    MOST_PEOPLE,
    AnchoredTarget,
    PopulationCheck,
    check_gaussian,
    fit_gaussian,
    laplace_factor,
    posterior_sweep,
)
from mxlogit.inference.start import MultinomialLogit, fit_multinomial_logit, start_population
from mxlogit.journal import FileJournal, Journal
from mxlogit.marginal import MarginalLikelihood
from mxlogit.parameters import Population
from mxlogit.people import People
from mxlogit.samples import Samples
from mxlogit.tastes import PolishedTastes

_CHECKED_PEOPLE = 2_000
_CHECK_POINTS, _FEW_CHECK_POINTS = 48, 30
# Skewness of the population posterior, along its worst axis, above which it is corrected unless told otherwise.
# Weights of some hundred parameters' draws are too uneven for so few.
_SKEWED, _MOST_CORRECTED = 0.6, 40
_TOLD_EVERY = 10
# Noise of sums over people shrinks with people times draws: draws of the information matrix and of the log likelihood
# at the estimate, given many people, are what keeps this product, and so many at least.
_INFORMATION_DRAWS, _FEWEST_INFORMATION_DRAWS, _INFORMATION_WORK = 64, 16, 640_000
_FEWEST_CENTER_DRAWS, _MOST_CENTER_DRAWS, _CENTER_WORK = 16, 1_024, 1_600_000


class VI(BaseEstimator):  # type: ignore[misc]
    r"""Variational inference with an amortized guide and importance weights.

    The guide is q(theta) q(tastes | theta): a full-covariance Gaussian over the unconstrained population
    vector, and for each person encoder -> polish -> importance weights in whitened coordinates.

    Parameters
    ----------
    population : {"newton", "adam"}
        How q(theta) is found. "newton" (default): trust-region Newton on the importance-sampled marginal
        likelihood, then natural-gradient steps. "adam": the classic route, encoder and q(theta) trained by
        stochastic backpropagation of Pyro's ELBO on mini-batches (Rodrigues 2022, arXiv 2004.05426).
    encoder : {"auto", None, "set", "rodrigues2022"}
        Network that proposes each person's factor. "auto" is None under "newton", where polishing from the
        last mode leaves a network nothing to win, and "set" under "adam"; "rodrigues2022" is the published
        network, for comparison.
    polish : "auto" or int
        Damped Newton steps per person and pass: "auto" is 2 under "newton" and 0 under "adam".
    flow : None
        The place of a conditional normalizing flow after the polish; none is trained.
    draws : int or None
        Importance draws per person, a multiple of 4, in the last passes. None: 16, quadrupled until new
        draws do not move the optimum; beyond 20,000 people what more draws would change is found on a subsample.
    tail : int or None
        Degrees of freedom (even, above 2) of the Student-t importance proposal; None for a normal.
    tolerance : float
        Newton decrement, in nats, at which the search stops; 0.5 beyond 20,000 people. The posterior begins with the
        step that remains.
    max_iterations : int
        Newton iterations per stage.
    correct : "auto" or bool
        Whether posterior samples of the population are importance-weighted, by the marginal likelihood itself, instead
        of those of the Gaussian ("newton" only): up to 1,600 more passes over the people. "auto": where up to 2,000
        people, and up to 40 parameters, leave the posterior skewed (by more than 0.6 along some axis of the Gaussian),
        as it is of standard deviations that a few hundred people hardly tell from zero, or the Gaussian fails its
        importance check.
    n_samples : int
        Posterior samples kept.
    steps : int
        Adam steps ("adam" only).
    batch_size : int
        Decision makers per mini-batch ("adam" only).
    learning_rate, guide_learning_rate : float
        First Adam rates of q(theta) and of the encoder; both follow a cosine ("adam" only).
    checkpoint : str, Path or None
        File in which every pass over the people is kept. A fit that was killed, started again with the same data,
        settings and ``random_state``, goes on from its last pass and ends at the same answer; the file is deleted when
        the fit is done ("newton" only).
    max_seconds : float or None
        Time limit of the Adam loop; the cosine then follows the clock ("adam" only).
    """

    def __init__(
        self,
        *,
        population: str = "newton",
        encoder: str | None = "auto",
        polish: str | int = "auto",
        flow: str | None = None,
        draws: int | None = None,
        tail: int | None = 8,
        tolerance: float = 0.005,
        max_iterations: int = 60,
        correct: str | bool = "auto",
        n_samples: int = 4000,
        steps: int = 2000,
        batch_size: int = 512,
        learning_rate: float = 0.02,
        guide_learning_rate: float = 0.002,
        max_seconds: float | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.population = population
        self.encoder = encoder
        self.polish = polish
        self.flow = flow
        self.draws = draws
        self.tail = tail
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.correct = correct
        self.n_samples = n_samples
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.guide_learning_rate = guide_learning_rate
        self.max_seconds = max_seconds
        self.checkpoint = checkpoint

    def check(self) -> None:
        """Raise unless the settings make sense together.

        Raises
        ------
        SpecificationError
            Naming the setting, what is allowed and what came.
        """
        check_option("VI(population=...)", self.population, ["newton", "adam"])
        encoders = ["auto", None] if self.population == "newton" else ["auto", "set", "rodrigues2022"]
        check_option(f"VI(encoder=...) with population={self.population!r}", self.encoder, encoders)
        check_option("VI(flow=...)", self.flow, [None])
        check_option("VI(correct=...)", self.correct, ["auto", True, False])
        if self.correct is True and self.population != "newton":
            raise SpecificationError("VI(correct=True) needs population='newton'.")
        if self.polish != "auto":
            check_at_least("VI(polish=...)", self.polish, 0)  # type: ignore[arg-type]
        if self.draws is not None and (not isinstance(self.draws, int) or self.draws < 4 or self.draws % 4):
            raise SpecificationError(
                f"VI(draws=...) must be a positive multiple of 4 (antithetic pairs in two halves); got {self.draws!r}."
            )
        if self.tail is not None and (not isinstance(self.tail, int) or self.tail < 4 or self.tail % 2):
            raise SpecificationError(f"VI(tail=...) must be None or an even number above 2; got {self.tail!r}.")
        for name, lowest in (("max_iterations", 1), ("n_samples", 2), ("steps", 1), ("batch_size", 1)):
            check_at_least(f"VI({name}=...)", getattr(self, name), lowest)
        for name in ("tolerance", "learning_rate", "guide_learning_rate"):
            check_at_least(f"VI({name}=...)", getattr(self, name), 1e-12)
        if self.checkpoint is not None and self.population != "newton":
            raise SpecificationError("VI(checkpoint=...) needs population='newton': training by Adam is not resumed.")
        if self.max_seconds is not None:
            check_at_least("VI(max_seconds=...)", self.max_seconds, 1e-3)

    def run(self, model: PanelModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Fit ``model`` to the choices of ``people``.

        Parameters
        ----------
        model : PanelModel
        people : People
        generator : torch.Generator
            The only source of randomness.
        callback : callable
            Receives a line of text whenever there is something to tell.

        Returns
        -------
        Fit

        Raises
        ------
        SpecificationError
            If a setting is wrong, or the model is in willingness-to-pay space.
        """
        self.check()
        if model.mixing.scale_position is not None:
            raise SpecificationError(
                "willingness-to-pay space (scale=...) needs method='msle'; VI estimates coefficients in utils."
            )
        seed = int(torch.randint(2**62, (1,), generator=generator))
        clock = Clock(callback)
        largest = STAGE_SIZES[-1]
        # Beyond so many people a random subsample says where to begin, and what bends slowly.
        sample = people.take(people.draw(largest, (seed, -3))) if len(people) > largest else people
        logit = fit_multinomial_logit(sample, model.prior.deviation)
        logit = replace(logit, information=logit.information * (people.weight / sample.weight))
        start = start_population(model, logit)
        if self.population == "adam":
            if model.space.n_random == 0:
                raise SpecificationError("VI(population='adam') needs random coefficients; use VI() for fixed ones.")
            # Imported here: the default route needs neither Pyro nor its import time.
            from mxlogit.inference.classic import run_classic

            return run_classic(self, model, people, logit, start, seed, clock)
        return self._run_newton(model, people, sample, logit, start, seed, clock)

    def _run_newton(
        self,
        model: PanelModel,
        people: People,
        sample: People,
        logit: MultinomialLogit,
        start: Population,
        seed: int,
        clock: Clock,
    ) -> Fit:
        polish = 2 if self.polish == "auto" else int(self.polish)
        settings = NewtonSettings(self.tolerance, self.max_iterations, self.draws, self.tail, polish)
        journal = self._journal(model, people, seed)
        marginal = MarginalLikelihood(people, model.space, model.mixing, seed, "all", journal)
        part = marginal
        if sample is not people:
            part = MarginalLikelihood(sample, model.space, model.mixing, seed, "sample", journal)
        optimum = NewtonSearch(model, marginal, part, settings, clock).run(start)
        posterior = find_posterior(model, part, people, optimum, seed, clock, wanted=self.correct)
        samples = posterior.sample(model, self.n_samples, seed)
        even = optimum.evaluation.detail.value.ess > EVEN_WEIGHTS
        tastes = PolishedTastes(model, seed, self.tail, vary=optimum.sweep.vary, even=even, seen=marginal)
        center = model.space.from_report(samples.mean)
        fit = Fit(samples, center, optimum.status, clock.history, tastes, {})
        draws = max(_FEWEST_CENTER_DRAWS, min(_MOST_CENTER_DRAWS, 4 * (_CENTER_WORK // (4 * len(people)))))
        fit.diagnostics.update(evaluate_center(marginal, center, draws, self.tail, optimum.sweep.vary))
        clock.passes += 1
        fit.diagnostics.update(_describe(fit, optimum, posterior, sample, seed, clock))
        fit = judge(fit, model, people, logit)
        journal.finish()
        return fit

    def _journal(self, model: PanelModel, people: People, seed: int) -> Journal:
        if self.checkpoint is None:
            return Journal()
        identity = f"{len(people)} people, {model.space.size} parameters, seed {seed}, {people.team.size} processes"
        return FileJournal(self.checkpoint, identity, people.team)


@dataclass(frozen=True)
class Posterior:
    """The population factor, how many natural-gradient steps it took, and its importance check or correction."""

    factor: GaussianFactor
    rounds: int
    check: PopulationCheck
    corrected: WeightedVectors | None = None

    def sample(self, model: PanelModel, n: int, seed: int) -> Samples:
        """N samples of the population parameters."""
        if self.corrected is None:
            return draw_samples(model.space, self.factor, n, seed)
        return report_samples(model.space, self.corrected.resample(n, make_generator(seed, 5)))


def find_posterior(
    model: PanelModel,
    sample: MarginalLikelihood,
    people: People,
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
    people : People
        Everybody.
    optimum : Optimum
    wanted : "auto" or bool
        Whether to correct.
    seed : int
    clock : Clock

    Returns
    -------
    Posterior
    """
    weight, many = people.weight, len(people) > len(sample.people)
    prior = model.log_prior_in_moves(optimum.population)
    gradient = optimum.evaluation.gradient - prior.gradient
    enough = max(_FEWEST_INFORMATION_DRAWS, 4 * (_INFORMATION_WORK // (4 * len(sample.people))))
    few = replace(optimum.sweep, draws=min(_INFORMATION_DRAWS, enough))
    information = sample.information(optimum.population, sample.propose(optimum.population, few))
    curvature = optimum.evaluation.curvature
    if information is not None:
        information = information * (weight / sample.people.weight)
        curvature = information - prior.hessian
    start = laplace_factor(model, optimum.population, curvature, optimum.evaluation.gradient)
    sweep = posterior_sweep(optimum.sweep, optimum.evaluation.detail.value.ess, len(sample.people))
    part, size = sample, MOST_PEOPLE // 2 if many else MOST_PEOPLE
    if len(sample.people) > size:
        part = sample.take(sample.people.draw(size, (seed, -2)))
    target = AnchoredTarget(model, part, weight, optimum.population, gradient, sweep)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if done % _TOLD_EVERY == 0:
            clock.tell(f"posterior: {done} points")

    fitted = fit_gaussian(target, start, tick)
    whole = len(part.people) == len(people)
    auto = wanted == "auto" and whole and model.space.size <= _MOST_CORRECTED
    corrected, check = None, None
    if not (wanted is True or (auto and fitted.skewness > _SKEWED)):
        points = _FEW_CHECK_POINTS if many else _CHECK_POINTS
        check = check_gaussian(target, fitted.factor, points, make_generator(seed, 3), tick)
    if check is None or (auto and check.is_poor):
        everybody = part if whole else MarginalLikelihood(people, model.space, model.mixing, seed)
        corrected, evaluations = correct(model, everybody, fitted.factor, sweep, seed, tick)
        clock.passes += evaluations
    if corrected is not None:
        check = PopulationCheck(corrected.pareto_k, corrected.ess / len(corrected.vectors))
    elif check is None:
        check = check_gaussian(target, fitted.factor, _CHECK_POINTS, make_generator(seed, 3), tick)
    clock.passes += (sample.people.weight + target.evaluations * part.people.weight) / weight
    return Posterior(fitted.factor, fitted.rounds, check, corrected)


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
        "guide": "polish + Student-t importance weights; no encoder and no flow (nothing to win under Newton)",
    }
