"""Pyro's No-U-Turn sampler on the Pyro program: slow, and independent of the other samplers."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro.infer import NUTS
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from mxlogit.diagnostics.record import Diagnostics
from mxlogit.draws.generators import make_generator
from mxlogit.fit import HistoryRow, Status
from mxlogit.inference.clock import Clock
from mxlogit.inference.mcmc.gibbs_run import FEWEST_KEPT, ChainSettings, Sampled
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.pyro_program import mixed_logit
from mxlogit.sampling.chains import State, loads_in_chains
from mxlogit.sampling.trace import Trace

# Sd of the initial states around the start, in relative coordinates; chosen by hand.
_START_SPREAD = 0.2
# Target acceptance probability; chosen by hand.
_TARGET_ACCEPTANCE = 0.85
# Iterations between progress messages; chosen by hand.
_SHOW_EVERY = 20


def run_nuts(
    settings: ChainSettings,
    model: MixedLogitModel,
    panel: Panels,
    start: PopulationParameters,
    seed: int,
    clock: Clock,
) -> Sampled:
    """Sample chain after chain; parameters as in `mxlogit.inference.mcmc.gibbs_run.run_gibbs`."""
    panel = panel.to(torch.float64)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():

        def sample(chain: int) -> tuple[dict[str, Tensor], int]:
            return _run_chain(settings, model, panel, start, (seed, chain), clock)

        return chain_after_chain(settings, model, panel, sample, clock)


def chain_after_chain(
    settings: ChainSettings,
    model: MixedLogitModel,
    panel: Panels,
    sample: Callable[[int], tuple[dict[str, Tensor], int]],
    clock: Clock,
) -> Sampled:
    """Run chains one after the other.

    An interrupt keeps the completed chains; after a time limit, all chains are cut to the shortest.

    Parameters
    ----------
    settings : ChainSettings
    model : MixedLogitModel
    panel : PanelDifferences or RaggedPanels
    sample : callable
        Function that runs the chain of a given number; returns kept iterations by site and the number of divergences.
    clock : Clock
    """
    chains: list[dict[str, Tensor]] = []
    divergences, ended_by = 0, None
    try:
        for chain in range(settings.chains):
            visited, count = sample(chain)
            chains.append(visited)
            divergences += count
    except KeyboardInterrupt:
        if not chains:
            raise
        ended_by = Status.INTERRUPTED
    shortest = min(len(next(iter(chain.values()))) for chain in chains)
    if shortest < settings.samples:
        ended_by = ended_by or Status.TIME
    chains = [{name: value[:shortest] for name, value in chain.items()} for chain in chains]
    trace = _collect(settings, model, panel, chains)
    return Sampled(trace, Diagnostics(divergences=float(divergences)), ended_by)


def is_over_for(chain: int, settings: ChainSettings, clock: Clock) -> bool:
    """Whether a chain has used up its share of the time limit."""
    over = clock.progress() >= (chain + 1) / settings.chains
    return over


def _run_chain(
    settings: ChainSettings,
    model: MixedLogitModel,
    panel: Panels,
    start: PopulationParameters,
    key: tuple[int, int],
    clock: Clock,
) -> tuple[dict[str, Tensor], int]:
    """Samples by site of one chain and its number of divergences; ``key`` is the seed and the chain's number."""
    generator = make_generator(*key, 41)
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    steps = _START_SPREAD * torch.randn(model.space.size, generator=generator, dtype=torch.float64)
    values = site_values(model, model.space.move(start, steps))
    values["xi"] = panel.values.new_zeros(len(panel), model.space.n_random)
    kernel = NUTS(mixed_logit, target_accept_prob=_TARGET_ACCEPTANCE, init_strategy=init_to_value(values=values))
    with pyro.validation_enabled(False):
        kernel.setup(settings.warmup, model, panel)
        at, kept = kernel.initial_params, []
        for iteration in range(-settings.warmup, settings.samples * settings.thin):
            at = kernel.sample(at)
            _show_progress(clock, key[1], iteration, settings.warmup)
            if iteration >= 0 and (iteration + 1) % settings.thin == 0:
                kept.append(at)
            if len(kept) >= FEWEST_KEPT and is_over_for(key[1], settings, clock):
                break
        diverged = len(kernel.diagnostics()["divergences"])
        found = {name: torch.stack([values[name] for values in kept]) for name in kept[0]}
        found = {name: kernel.transforms[name].inv(value) for name, value in found.items()}
        kernel.cleanup()
    return found, diverged


def _show_progress(clock: Clock, chain: int, iteration: int, warmup: int) -> None:
    """Report progress; iterations of the warm-up are negative."""
    done = iteration + 1 + (warmup if iteration < 0 else 0)
    if done % _SHOW_EVERY:
        return
    stage = f"chain {chain + 1}, {'warmup' if iteration < 0 else 'sample'}"
    clock.history.append(HistoryRow(stage, float("nan"), float("nan"), float(done), clock.seconds(), True))
    clock.show(f"{stage}: iteration {done}")


def site_values(model: MixedLogitModel, population: PopulationParameters) -> dict[str, Tensor]:
    """Values of the program's population sites, empty ones included."""
    scale = population.scale
    values = {"fixed": population.fixed, "location": population.location, "scale": scale}
    for i, block in enumerate(model.space.correlated_blocks):
        index = torch.tensor(block)
        values[f"correlation_{i}"] = population.scale_tril[index[:, None], index] / scale[index, None]
    return values


def _collect(settings: ChainSettings, model: MixedLogitModel, panel: Panels, chains: list[dict[str, Tensor]]) -> Trace:
    """Collect the samples of all chains, by site, in a trace."""
    sites = {name: torch.stack([chain[name] for chain in chains]).detach() for name in chains[0]}
    # The programs have no empty sites.
    length = next(iter(sites.values())).shape[1]
    none = torch.zeros(len(chains), length, 0, dtype=torch.float64)
    sites = {
        "fixed": none,
        "location": none,
        "scale": none,
        "xi": none[:, :, None].expand(-1, -1, len(panel), -1),
    } | sites
    factors = [sites[f"correlation_{i}"] for i in range(len(model.space.correlated_blocks))]
    population = model.space.assemble(sites["fixed"], sites["location"], sites["scale"], factors)
    trace: Trace | None = None
    for i in range(length):
        here = PopulationParameters(population.fixed[:, i], population.location[:, i], population.scale_tril[:, i])
        xi = sites["xi"][:, i]
        # A trace does not use log probabilities.
        state = State(here, xi.mT, xi.new_full(xi.shape[:2], float("nan")))
        if trace is None:
            trace = Trace(model, state.xi, length, settings.taste_bytes, loads_in_chains(model, panel))
        trace.add(state)
    assert trace is not None
    return trace
