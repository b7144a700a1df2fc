"""Short chains of the exact posterior, begun from a fit: where weights of the population or of people fail.

Metropolis within Gibbs (`mxlogit.sampling`) needs neither even weights nor a posterior that is nearly Gaussian. A fit
spares it its long warm-up: chains begin at posterior samples of the population with tastes drawn given these, and
proposals are fitted to the Gaussian. Chains keep the exact posterior wherever they begin; a fit that is wrong costs
iterations, and is not inherited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mxlogit.diagnostics.convergence import ess_bulk, ess_tail, rhat
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.draws.generators import make_generator
from mxlogit.fit import Samples, Status, TasteStates
from mxlogit.inference.report import report_samples
from mxlogit.inference.task import Task
from mxlogit.inference.vi.moment_matching import match_moments
from mxlogit.sampling.gibbs import Acceptance, GibbsSampler
from mxlogit.sampling.population_step import coordinates
from mxlogit.sampling.trace import Trace

# Constants without a stated reason are chosen by hand.
# Number of chains. An iteration of many costs less per chain (electricity: 2.0 ms with 12, 3.3 with 4).
_CHAINS = 12
# Iterations in which step sizes adapt and tastes forget where they began, and the one after which proposals are fitted
# again.
_SETTLING, _REFIT = 100, 50
# Posterior samples per chain to which the first proposals are fitted.
_FITTED = 64
# Kept iterations between two looks at the effective sample size, and most of them.
_BLOCK, _MOST = 100, 1_000
# Smallest bulk effective sample size of any parameter that ends the sampling: errors of a mean are a tenth of a
# posterior sd then, of a standard deviation seven per cent.
_ENOUGH = 100.0
# The same below which chains say less than the Gaussian they would replace: a quarter of a posterior sd.
_FEWEST = 16.0
# Largest R-hat, of chains much shorter than those of `mxlogit.MCMC`: a third of a posterior sd between them.
_LARGEST_RHAT = 1.3
# Most rows of data x chains x iterations: about a minute of one core.
_WORK = 200e6
# Fewest kept iterations that the work must allow.
_FEWEST_KEPT = 200
# Memory of people's states, in bytes.
_TASTE_BYTES = 64_000_000


@dataclass(frozen=True)
class ShortChains:
    """Posterior samples by short chains, with people's tastes and the chains' own diagnostics."""

    samples: Samples
    states: TasteStates
    found: Diagnostics

    @property
    def status(self) -> Status:
        """Whether they are long enough for means that err by less than a seventh of a posterior standard deviation."""
        return Status.CONVERGED if (self.found.ess_bulk or 0.0) >= 0.5 * _ENOUGH else Status.ITERATIONS

    def sentences(self) -> list[str]:
        """Say how far means may be off, if that is more than a tenth of a posterior standard deviation."""
        ess = self.found.ess_bulk
        if ess is None or ess >= _ENOUGH:
            return []
        return [
            f"The smallest effective sample size of the short chains of the posterior is {ess:.0f}: an estimate may be "
            f"off by {ess**-0.5:.2f} posterior standard deviations; method='mcmc' takes longer chains."
        ]


def count_affordable(task: Task) -> int:
    """Kept iterations that the work allows; zero where chains do not apply.

    They need all people in this process, each of weight one, random coefficients, and work for a few hundred
    iterations.
    """
    people, space = task.people, task.model.space
    if people.team.size > 1 or space.n_random == 0 or people.weight != len(people):
        return 0
    kept = int(_WORK / (_CHAINS * people.rows)) - _SETTLING
    return min(_MOST, kept // _BLOCK * _BLOCK) if kept >= _FEWEST_KEPT else 0


def run_short_chains(task: Task, samples: Samples, n_samples: int) -> ShortChains | None:
    """Sample the exact posterior from where a fit ends.

    Parameters
    ----------
    task : Task
    samples : Samples
        Posterior samples of the fit.
    n_samples : int
        Number of samples to report.

    Returns
    -------
    ShortChains or None
        None where chains do not apply, have not mixed, or time is over.
    """
    most = count_affordable(task)
    if not most or not bool((task.people.panels.weights == 1.0).all()):
        return None
    trace, acceptance = _sample(task, samples, most)
    # An iteration of all chains costs about what a pass with a few dozen draws costs.
    task.clock.passes += _SETTLING + trace.n_kept
    if trace.n_kept < _BLOCK:
        return None
    found = _diagnose(trace, acceptance)
    if not (found.rhat < _LARGEST_RHAT and found.ess_bulk >= _FEWEST):  # type: ignore[operator]
        return None
    states = TasteStates(trace.moments.mean, trace.moments.deviation, *trace.states())
    return ShortChains(_select(task, trace, n_samples), states, found)


@torch.no_grad()
def _sample(task: Task, samples: Samples, most: int) -> tuple[Trace, list[Acceptance]]:
    """Kept iterations of all chains, and their acceptance rates."""
    model = task.model
    sampler = GibbsSampler(model, task.people.require_single_process(), _CHAINS, task.seed)
    vectors = samples.unconstrained
    picks = torch.randint(len(vectors), ((_FITTED + 1) * _CHAINS,), generator=make_generator(task.seed, 31))
    populations = model.space.constrain(vectors[picks])
    fitted = coordinates(model.space, populations)[_CHAINS:].view(_FITTED, _CHAINS, -1)
    center = model.space.from_report(samples.mean)
    state = sampler.start_at(model.space.constrain(vectors[picks[:_CHAINS]]), center)
    sampler.tune(state, fitted, center)
    trace, rates = Trace(model, state, most, _TASTE_BYTES), list[Acceptance]()
    for iteration in _iterations(task, trace, most):
        settling = iteration < _SETTLING
        state, accepted = sampler.run(state, iteration, adapt=settling)
        if iteration == _REFIT:
            here = sampler.coordinates(state)
            sampler.tune(state, torch.cat([fitted, here[None]]), sampler.population(here.mean(0)))
        if not settling:
            trace.add(state)
            rates.append(accepted)
    return trace, rates


def _iterations(task: Task, trace: Trace, most: int) -> Iterator[int]:
    """Numbers of iterations, until enough are effective, ``most`` are kept, or time is over."""
    for iteration in range(_SETTLING + most):
        if iteration >= _SETTLING and (iteration - _SETTLING) % _BLOCK == 0:
            ess = float(ess_bulk(trace.reported()).amin()) if trace.n_kept else 0.0
            task.clock.show(f"chains: {trace.n_kept} iterations, smallest effective sample size {ess:.0f}")
            if ess >= _ENOUGH:
                return
        if task.clock.is_over():
            return
        yield iteration


def _diagnose(trace: Trace, rates: list[Acceptance]) -> Diagnostics:
    """Numbers that the chains report about themselves."""
    reported = trace.reported()
    people, population, posterior = (
        sum(getattr(rate, name) for rate in rates) / len(rates) for name in ("people", "population", "posterior")
    )
    return Diagnostics(
        rhat=float(rhat(reported).nan_to_num(nan=1.0).amax()),
        ess_bulk=float(ess_bulk(reported).amin()),
        ess_tail=float(ess_tail(reported).amin()),
        iterations=trace.n_kept,
        taste_states=len(trace.states()[1]),
        acceptance_people=people,
        acceptance_population=population,
        acceptance_posterior=posterior,
    )


def _select(task: Task, trace: Trace, n: int) -> Samples:
    """Select ``n`` samples in random order, evenly from all iterations, with the moments of all."""
    space = task.model.space
    everything = trace.vectors().reshape(-1, space.size)
    picks = (torch.arange(n, dtype=torch.float64) * (len(everything) / n)).long()
    selected = everything[picks[torch.randperm(n, generator=make_generator(task.seed, 37))]]
    weights = everything.new_full((len(everything),), 1.0 / len(everything))
    return report_samples(space, match_moments(space, selected, everything, weights))
