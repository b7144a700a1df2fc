"""Short chains of the exact posterior, begun from a fit: where weights of the population or of people fail.

Chains keep the exact posterior wherever they begin; a fit that is wrong costs iterations, and is not inherited. What a
fit knows spares them a long warm-up. Particle Gibbs (`mxlogit.sampling.particle_gibbs`) needs some dozen iterations;
where a mixing map depends on the population parameters, Metropolis within Gibbs (`mxlogit.sampling.gibbs`) takes
hundreds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.diagnostics.convergence import ess_bulk, ess_tail, rhat
from mxlogit.diagnostics.error import ErrorEstimate, error_of_chains
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.draws.generators import make_generator
from mxlogit.fit import Samples, Status, TasteStates
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.report import report_samples
from mxlogit.inference.task import Task
from mxlogit.inference.vi.moment_matching import match_moments
from mxlogit.inference.vi.surfaces import typical_situations
from mxlogit.sampling.chains import State, loads_in_chains
from mxlogit.sampling.gibbs import GibbsSampler
from mxlogit.sampling.particle_gibbs import DrawMoments, ParticleGibbs, ParticleState
from mxlogit.sampling.population_step import coordinates
from mxlogit.sampling.trace import Trace

# Constants without a stated reason are chosen by hand.
# Number of chains. An iteration of many costs less per chain (electricity, Gibbs: 2.0 ms with 12, 3.3 with 4).
_CHAINS = 8
# Draws per person and chain. 32 to 128 give the same effective sample size per second (388 people, four lognormals).
_DRAWS = 64


# Iterations of particle Gibbs after which proposals are fitted for the first time, and every so many thereafter.
_FIRST_FITS, _FIT_EVERY = (3,), 6
# Fewest and most iterations in which it adapts.
_FEWEST_SETTLING, _MOST_SETTLING = 18, 90
# Change of the mean state from one adaptation to the next (root mean square over parameters, in sds of the states)
# below which chains have arrived: six iterations of all leave .3 by chance.
_ARRIVED = 0.45
# Spread of the first states, in that of the Gaussian.
_SPREAD = 0.5
# Work of an iteration that is proportional to people, in rows of data: exponentials of the population's steps.
_ROWS_OF_A_PERSON = 16
# Iterations in which a Gibbs sampler adapts, and the one after which its proposals are fitted again.
_GIBBS_SETTLING, _GIBBS_FIT = 100, 50


@dataclass(frozen=True)
class _Plan:
    """Lengths of the chains of a sampler.

    Attributes
    ----------
    settling : int
        Expected number of iterations in which proposals adapt and tastes forget where they began.
    block, most : int
        Kept iterations between two looks at the effective sample size, and most of them.
    fewest : int
        Fewest kept iterations that the work must allow.
    enough : float
        Smallest effective sample size of any parameter that ends the sampling.
    work : float
        Most rows of data x chains x draws x iterations: about a minute of one core.
    draws : int
        Draws per person and chain.
    """

    settling: int
    block: int
    most: int
    fewest: int
    enough: float
    work: float
    draws: int = 1

    def affordable(self, rows: int) -> int:
        """Kept iterations that the work allows on a number of rows of data; zero if too few."""
        kept = int(self.work / (_CHAINS * self.draws * rows)) - self.settling
        return min(self.most, kept // self.block * self.block) if kept >= self.fewest else 0


# 250 effective samples leave errors of .06 posterior sds of a mean and of 4.5 % of a standard deviation; 100, which a
# Gibbs sampler of skewed tastes reaches in a minute, .1 and 7 %.
_PARTICLES = _Plan(_FEWEST_SETTLING, 10, 400, 40, 250.0, 4e9, _DRAWS)
_GIBBS = _Plan(_GIBBS_SETTLING, 100, 1_000, 200, 100.0, 200e6)
# Effective sample size of chains that have converged: means err by less than a seventh of a posterior sd.
_CONVERGED = 50.0
# The one below which chains say less than the Gaussian they would replace: a quarter of a posterior sd.
_FEWEST = 16.0
# Largest R-hat, of chains much shorter than those of `mxlogit.MCMC`: a third of a posterior sd between them.
_LARGEST_RHAT = 1.3
# Effective sample size of the tails that suffices, as a share of that of the bulk; chosen by hand.
_TAIL = 0.6
# Typical number of choice situations per person below which short chains are not trusted (5,000 people, one choice, one
# taste: a mean .34 posterior sds off with an effective sample size of 280).
_FEWEST_SITUATIONS = 2.5
# Samples of the Gaussian per chain to which the first proposals of a Gibbs sampler are fitted.
_FITTED = 64
# Memory of people's states, in bytes.
_TASTE_BYTES = 64_000_000


@dataclass(frozen=True)
class ShortChains:
    """Posterior samples by short chains, with people's tastes and the chains' own diagnostics."""

    samples: Samples
    states: TasteStates
    found: Diagnostics
    error: ErrorEstimate

    @property
    def status(self) -> Status:
        """Whether they are long enough for means that err by less than a seventh of a posterior standard deviation."""
        return Status.CONVERGED if (self.found.ess_bulk or 0.0) >= _CONVERGED else Status.ITERATIONS


def count_affordable(task: Task) -> int:
    """Kept iterations that the work allows; zero where chains do not apply.

    They need all people in this process and on the CPU, each of weight one, random coefficients, work for enough
    iterations, and more than a few choices a person: of fewer, they mix more slowly than they seem to.
    """
    people, space = task.people, task.model.space
    here = people.team.size == 1 and people.like.device.type == "cpu"
    if not here or space.n_random == 0 or people.weight != len(people):
        return 0
    if typical_situations(people) < _FEWEST_SITUATIONS:
        return 0
    rows = people.rows + _ROWS_OF_A_PERSON * len(people) if _uses_particles(task) else people.rows
    return _plan_of(task).affordable(rows)


def _uses_particles(task: Task) -> bool:
    """Whether tastes depend on the population through their latents only, and utility is linear in all coefficients."""
    return not task.model.mixing.is_direct and task.model.mixing.scale_position is None


def _plan_of(task: Task) -> _Plan:
    return _PARTICLES if _uses_particles(task) else _GIBBS


def run_short_chains(task: Task, gaussian: GaussianFactor, n_samples: int) -> ShortChains | None:
    """Sample the exact posterior from where a fit ends.

    Parameters
    ----------
    task : Task
    gaussian : GaussianFactor
        Gaussian approximation of the posterior, however rough.
    n_samples : int
        Number of samples to report.

    Returns
    -------
    ShortChains or None
        None where chains do not apply, have not mixed or broke down, or time is over.
    """
    most = count_affordable(task)
    if not most or not bool((task.people.panels.weights == 1.0).all()):
        return None
    plan = _plan_of(task)
    try:
        trace, rates = _sample(task, plan, gaussian, most)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # A covariance of states or of somebody's draws is singular, or not a number.
        task.clock.show("chains: no proposals can be fitted")
        return None
    # An iteration of all chains costs about what a pass with a few dozen draws costs.
    task.clock.passes += plan.settling + trace.n_kept
    if trace.n_kept < plan.block:
        return None
    found = _diagnose(trace, rates)
    if not (found.rhat < _LARGEST_RHAT and found.ess_bulk >= _FEWEST):  # type: ignore[operator]
        return None
    states = TasteStates(trace.moments.mean, trace.moments.deviation, *trace.states())
    error = ErrorEstimate(tuple(task.model.space.labels), (error_of_chains(trace.reported()),))
    return ShortChains(_select(task, trace, n_samples), states, found, error)


@torch.no_grad()
def _sample(task: Task, plan: _Plan, gaussian: GaussianFactor, most: int) -> tuple[Trace, list[dict[str, float]]]:
    """Kept iterations of all chains, and their acceptance rates."""
    xi = task.people.like.new_empty(_CHAINS, task.model.space.n_random, len(task.people))
    loads = loads_in_chains(task.model, task.people.local_panels())
    trace, rates = Trace(task.model, xi, most, _TASTE_BYTES, loads), list[dict[str, float]]()
    states = (_particle_states if _uses_particles(task) else _gibbs_states)(task, gaussian)
    for state, accepted in states:
        trace.add(state)
        rates.append(accepted)
        if trace.n_kept == most or (trace.n_kept % plan.block == 0 and _is_enough(task, plan, trace)):
            break
    return trace, rates


def _is_enough(task: Task, plan: _Plan, trace: Trace) -> bool:
    """Whether effective sample sizes suffice, of the tails as well: states that alternate say little of these."""
    reported = trace.reported()
    ess = float(torch.minimum(ess_bulk(reported), ess_tail(reported) / _TAIL).amin())
    task.clock.show(f"chains: {trace.n_kept} iterations, smallest effective sample size {ess:.0f}")
    return ess >= plan.enough


def _particle_states(task: Task, gaussian: GaussianFactor) -> Iterator[tuple[State, dict[str, float]]]:
    """States of particle Gibbs once it has arrived, iteration by iteration, until time is over."""
    sampler = ParticleGibbs(task.model, task.people.require_single_process(), _CHAINS, _DRAWS, task.seed, gaussian)
    state = _settle(task, sampler, sampler.start(_first(gaussian, task.seed)))
    iteration = 0
    while not task.clock.is_over():
        state, share = sampler.run(state, iteration, adapt=False)
        iteration += 1
        yield sampler.state(state), {"acceptance_posterior": share}


def _first(gaussian: GaussianFactor, seed: int) -> Tensor:
    """Vectors (chains, D) where chains begin: closer to the mean than samples, which may be impossible."""
    return gaussian.mean + _SPREAD * (gaussian.sample(_CHAINS, make_generator(seed, 31)) - gaussian.mean)


def _settle(task: Task, sampler: ParticleGibbs, state: ParticleState) -> ParticleState:
    """Adapt proposals and step size until chains have arrived."""
    moments, recent, before = DrawMoments(), list[Tensor](), None
    for iteration in range(1, _MOST_SETTLING + 1):
        if task.clock.is_over():
            break
        state, _ = sampler.run(state, iteration, adapt=True, moments=moments)
        recent.append(state.vectors)
        if iteration not in _FIRST_FITS and iteration % _FIT_EVERY:
            continue
        visited, last = torch.stack(recent), before
        before = visited.mean((0, 1))
        if iteration >= _FEWEST_SETTLING and last is not None and _distance(visited, last) < _ARRIVED:
            break
        state = sampler.tune(state.restarted(_sources(visited)), moments, visited)
        moments, recent = DrawMoments(), []
        task.clock.show(f"chains: {iteration} iterations to adapt")
    return state


def _sources(visited: Tensor) -> Tensor:
    """Chain (chains,) that each chain is to continue: itself, or another one if it has accepted nothing.

    A rough fit has samples that are impossible beside the proposals of people's tastes, from which no step leads away.
    """
    chains = torch.arange(visited.shape[1])
    moved = (visited != visited[0]).any(2).any(0)
    alive = chains[moved] if bool(moved.any()) else chains
    return torch.where(moved, chains, alive[chains % len(alive)])


def _distance(visited: Tensor, mean: Tensor) -> float:
    """Distance of the mean of states (iterations, chains, D) from another, in their sds (root mean square)."""
    flat = visited.flatten(0, 1)
    return float(((flat.mean(0) - mean) / flat.std(0)).square().mean().sqrt())


def _gibbs_states(task: Task, gaussian: GaussianFactor) -> Iterator[tuple[State, dict[str, float]]]:
    """States of Metropolis within Gibbs once it has adapted, iteration by iteration, until time is over."""
    space = task.model.space
    sampler = GibbsSampler(task.model, task.people.require_single_process(), _CHAINS, task.seed)
    populations = space.constrain(gaussian.sample((_FITTED + 1) * _CHAINS, make_generator(task.seed, 31)))
    here = coordinates(space, populations)
    first, fitted = here[:_CHAINS], here[_CHAINS:].view(_FITTED, _CHAINS, -1)
    center = space.constrain(gaussian.mean)
    state = sampler.start_at(sampler.population(first), center)
    sampler.tune(state, fitted, center)
    iteration = 0
    while not task.clock.is_over():
        adapts = iteration < _GIBBS_SETTLING
        state, accepted = sampler.run(state, iteration, adapt=adapts)
        if iteration == _GIBBS_FIT:
            here = sampler.coordinates(state)
            sampler.tune(state, torch.cat([fitted, here[None]]), sampler.population(here.mean(0)))
        iteration += 1
        if not adapts:
            yield (
                state,
                {f"acceptance_{name}": getattr(accepted, name) for name in ("people", "population", "posterior")},
            )


def _diagnose(trace: Trace, rates: list[dict[str, float]]) -> Diagnostics:
    """Numbers that the chains report about themselves."""
    reported = trace.reported()
    return Diagnostics(
        rhat=float(rhat(reported).nan_to_num(nan=1.0).amax()),
        ess_bulk=float(ess_bulk(reported).amin()),
        ess_tail=float(ess_tail(reported).amin()),
        iterations=trace.n_kept,
        taste_states=len(trace.states()[1]),
        **{name: sum(rate[name] for rate in rates) / len(rates) for name in rates[0]},  # type: ignore[arg-type]
    )


def _select(task: Task, trace: Trace, n: int) -> Samples:
    """Select ``n`` samples in random order, evenly from all iterations, with the moments of all."""
    space = task.model.space
    everything = trace.vectors().reshape(-1, space.size)
    picks = (torch.arange(n, dtype=torch.float64) * (len(everything) / n)).long()
    selected = everything[picks[torch.randperm(n, generator=make_generator(task.seed, 37))]]
    weights = everything.new_full((len(everything),), 1.0 / len(everything))
    return report_samples(space, match_moments(space, selected, everything, weights))
