"""Pyro's No-U-Turn sampler on the Pyro program: slow, and independent of the samplers it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.fit import HistoryRow
from mxlogit.inference.mcmc.gibbs_run import ChainSettings, Sampled
from mxlogit.inference.method import Callback
from mxlogit.model.mixed_logit import PanelModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import Population
from mxlogit.model.pyro_program import mixed_logit
from mxlogit.sampling.chains import State
from mxlogit.sampling.trace import Trace

_START_SPREAD = 0.2
_TARGET_ACCEPTANCE = 0.85
_TOLD_EVERY = 20


def run_nuts(
    settings: ChainSettings,
    model: PanelModel,
    panel: Panels,
    start: Population,
    seed: int,
    callback: Callback,
) -> Sampled:
    """Sample chain after chain; parameters as in `mxlogit.inference.mcmc.gibbs_run.run_gibbs`."""
    panel, history = panel.to(torch.float64), list[HistoryRow]()
    begin = time.perf_counter()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():

        def sample(chain: int) -> tuple[dict[str, Tensor], int]:
            return _run_chain(settings, model, panel, start, (seed, chain), _Teller(callback, chain, begin, history))

        return chain_after_chain(settings, model, len(panel), sample, history)


def chain_after_chain(
    settings: ChainSettings,
    model: PanelModel,
    n_people: int,
    sample: Callable[[int], tuple[dict[str, Tensor], int]],
    history: list[HistoryRow],
) -> Sampled:
    """Run chains, of which an interrupt leaves those that are done.

    Parameters
    ----------
    settings : ChainSettings
    model : PanelModel
    n_people : int
    sample : callable
        Runs the chain of a number: kept iterations by site, and how many transitions diverged.
    history : list of HistoryRow
        Which ``sample`` adds to.
    """
    chains: list[dict[str, Tensor]] = []
    divergences, interrupted = 0, False
    try:
        for chain in range(settings.chains):
            visited, count = sample(chain)
            chains.append(visited)
            divergences += count
    except KeyboardInterrupt:
        if not chains:
            raise
        interrupted = True
    trace = _collect(settings, model, n_people, chains)
    return Sampled(trace, {"divergences": float(divergences)}, history, interrupted)


class _Teller:
    """Pyro's hook: reports progress."""

    def __init__(self, callback: Callback, chain: int, begin: float, history: list[HistoryRow]) -> None:
        self.callback, self.chain, self.begin, self.history = callback, chain, begin, history

    def __call__(self, kernel: Any, params: dict[str, Tensor], stage: str, iteration: int) -> None:
        if (iteration + 1) % _TOLD_EVERY:
            return
        seconds = time.perf_counter() - self.begin
        stage = f"chain {self.chain + 1}, {stage.lower()}"
        self.history.append(HistoryRow(stage, float("nan"), float("nan"), float(iteration + 1), seconds, True))
        self.callback(f"{stage}: iteration {iteration + 1}")


def _run_chain(
    settings: ChainSettings,
    model: PanelModel,
    panel: Panels,
    start: Population,
    key: tuple[int, int],
    tell: _Teller,
) -> tuple[dict[str, Tensor], int]:
    """Samples by site of one chain, and how many transitions diverged."""
    generator = make_generator(*key, 41)
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    steps = _START_SPREAD * torch.randn(model.space.size, generator=generator, dtype=torch.float64)
    values = site_values(model, model.space.move(start, steps))
    values["xi"] = panel.values.new_zeros(len(panel), model.space.n_random)
    kernel = NUTS(mixed_logit, target_accept_prob=_TARGET_ACCEPTANCE, init_strategy=init_to_value(values=values))
    run = PyroMCMC(
        kernel,
        num_samples=settings.samples * settings.thin,
        warmup_steps=settings.warmup,
        disable_progbar=True,
        hook_fn=tell,
    )
    with pyro.validation_enabled(False):
        run.run(model, panel)
    diverged = run.diagnostics()["divergences"]["chain 0"]
    return {name: value[settings.thin - 1 :: settings.thin] for name, value in run.get_samples().items()}, len(diverged)


def site_values(model: PanelModel, population: Population) -> dict[str, Tensor]:
    """Values of the program's population sites, those without elements among them."""
    scale = population.scale
    values = {"fixed": population.fixed, "location": population.location, "scale": scale}
    for i, block in enumerate(model.space.correlated_blocks):
        index = torch.tensor(block)
        values[f"correlation_{i}"] = population.scale_tril[index[:, None], index] / scale[index, None]
    return values


def _collect(settings: ChainSettings, model: PanelModel, n_people: int, chains: list[dict[str, Tensor]]) -> Trace:
    """Put the samples of all chains, by site, into a trace, iteration after iteration."""
    sites = {name: torch.stack([chain[name] for chain in chains]).detach() for name in chains[0]}
    # The programs have no sites without elements.
    none = torch.zeros(len(chains), settings.samples, 0, dtype=torch.float64)
    sites = {
        "fixed": none,
        "location": none,
        "scale": none,
        "xi": none[:, :, None].expand(-1, -1, n_people, -1),
    } | sites
    factors = [sites[f"correlation_{i}"] for i in range(len(model.space.correlated_blocks))]
    population = model.space.assemble(sites["fixed"], sites["location"], sites["scale"], factors)
    trace: Trace | None = None
    for i in range(settings.samples):
        here = Population(population.fixed[:, i], population.location[:, i], population.scale_tril[:, i])
        xi = sites["xi"][:, i]
        # A trace asks for no log probabilities.
        state = State(here, xi.mT, xi.new_full(xi.shape[:2], float("nan")))
        if trace is None:
            trace = Trace(model, state, settings.samples, settings.taste_bytes)
        trace.add(state)
    assert trace is not None
    return trace
