"""A run of Metropolis within Gibbs: warm-up that adapts, and sampling."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.fit import HistoryRow
from mxlogit.inference.method import Callback
from mxlogit.panels import PanelDifferences
from mxlogit.parameters import Population
from mxlogit.sampling.chains import State
from mxlogit.sampling.convergence import rhat
from mxlogit.sampling.covariance import HuangWand, InverseWishart
from mxlogit.sampling.gibbs import Acceptance, GibbsSampler
from mxlogit.sampling.trace import Trace

# Shares of the warm-up at which proposals are made anew, from the second half of what was seen so far.
_WINDOWS = (0.04, 0.12, 0.24, 0.5, 0.8)
_START_SPREAD = 0.3
_TOLD_EVERY = 50


@dataclass(frozen=True)
class ChainSettings:
    """What every sampler is asked for: numbers of chains, warm-up and kept iterations, thinning, bytes for tastes."""

    chains: int
    warmup: int
    samples: int
    thin: int
    taste_bytes: int
    covariance: InverseWishart | HuangWand | None


@dataclass(frozen=True)
class Sampled:
    """What a sampler returns: kept iterations, its own figures, the history, and whether an interrupt ended it."""

    trace: Trace
    figures: dict[str, float]
    history: list[HistoryRow]
    interrupted: bool


def run_gibbs(
    settings: ChainSettings,
    model: PanelModel,
    panel: PanelDifferences,
    start: Population,
    seed: int,
    callback: Callback,
) -> Sampled:
    """Sample from chains that begin apart from each other around ``start``; every person with weight one."""
    sampler = GibbsSampler(model, panel, settings.chains, seed, settings.covariance)
    state = sampler.start(start, _START_SPREAD)
    sampler.tune(state, None, start)
    run = _Run(settings, model, sampler, callback)
    run.warm_up(state)
    interrupted = run.sample()
    shares = {f"acceptance_{name}": share for name, share in vars(run.acceptances.mean()).items()}
    return Sampled(run.trace, shares, run.history, interrupted)


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
    """The state of a run, and what it says of itself."""

    def __init__(self, settings: ChainSettings, model: PanelModel, sampler: GibbsSampler, callback: Callback) -> None:
        self.settings, self.model, self.sampler, self.callback = settings, model, sampler, callback
        self.begin = time.perf_counter()
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
        self.trace = Trace(self.model, state, settings.samples, settings.taste_bytes)
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
