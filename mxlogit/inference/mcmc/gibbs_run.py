"""A run of Metropolis within Gibbs: adaptive warm-up, then sampling."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.diagnostics.convergence import rhat
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.execution.checkpoint import Checkpoint
from mxlogit.fit import HistoryRow, Status
from mxlogit.inference.clock import Clock
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.sampling.chains import State
from mxlogit.sampling.covariance import HuangWand, InverseWishart
from mxlogit.sampling.gibbs import Acceptance, GibbsSampler
from mxlogit.sampling.trace import Trace

# Shares of the warm-up at which proposals are updated from the second half of the iterations so far; chosen by hand.
_WINDOWS = (0.04, 0.12, 0.24, 0.5, 0.8)
# Relative sd of the chains' initial states around their center; chosen by hand.
_START_SPREAD = 0.3
# Iterations between progress messages, and seconds between checkpoints; chosen by hand.
_SHOW_EVERY = 50
_SECONDS_BETWEEN_FILES = 20.0
# Fewest kept iterations for which R-hat is defined and an interrupted run returns a result.
FEWEST_KEPT = 4
# Largest share of a time limit for the warm-up; chosen by hand.
_WARM_UP_SHARE = 0.4


@dataclass(frozen=True)
class ChainSettings:
    """Settings of all samplers: numbers of chains, warm-up and kept iterations, thinning, bytes for tastes.

    ``checkpoint`` is the file to which the Gibbs sampler saves its state.
    """

    chains: int
    warmup: int
    samples: int
    thin: int
    taste_bytes: int
    covariance: InverseWishart | HuangWand | None
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Sampled:
    """Result of a sampler: kept iterations, its own diagnostics, and the reason of an early end, if any."""

    trace: Trace
    figures: Diagnostics
    ended_by: Status | None = None


def run_gibbs(
    settings: ChainSettings,
    model: MixedLogitModel,
    panel: Panels,
    start: PopulationParameters,
    seed: int,
    clock: Clock,
) -> Sampled:
    """Sample chains from overdispersed initial states around ``start``; every person has weight one."""
    sampler = GibbsSampler(model, panel, settings.chains, seed, settings.covariance)
    run = _Run(settings, model, sampler, _Tuning(sampler.start(start, _START_SPREAD), None, start), clock)
    file = settings.checkpoint
    found = None if file is None else file.read()
    if found is not None:
        run.restore(*found)
    ended_by = run.run(file)
    if file is not None and ended_by is None:
        file.delete()
    shares = run.acceptances.mean()
    figures = Diagnostics(
        acceptance_people=shares.people,
        acceptance_population=shares.population,
        acceptance_posterior=shares.posterior,
    )
    return Sampled(run.trace, figures, ended_by)


@dataclass
class _Acceptances:
    """Sums of acceptance rates since the start of sampling."""

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


@dataclass(frozen=True)
class _Tuning:
    """Arguments of the last `GibbsSampler.tune`, which reproduce its proposals."""

    state: State
    visited: Tensor | None
    reference: PopulationParameters


class _Run:
    """State of a run, with its progress messages and checkpoints."""

    def __init__(
        self, settings: ChainSettings, model: MixedLogitModel, sampler: GibbsSampler, tuning: _Tuning, clock: Clock
    ) -> None:
        self.settings, self.model, self.sampler, self.clock = settings, model, sampler, clock
        self.warmup, self._written = settings.warmup, time.perf_counter()
        self.acceptances = _Acceptances()
        self.iteration, self.state = 0, tuning.state
        self.visited: list[Tensor] = []
        self.trace = Trace(model, tuning.state.xi, settings.samples, settings.taste_bytes, sampler.likelihood.loads)
        self._tune(tuning)

    def run(self, file: Checkpoint | None) -> Status | None:
        """Warm up and sample from the current state; return the reason of an early end, if any."""
        settings = self.settings
        try:
            while self.iteration < self.warmup + settings.samples * settings.thin:
                if self.iteration < self.warmup:
                    self._warm_up()
                elif self.trace.n_kept >= FEWEST_KEPT and self.clock.is_over():
                    if file is not None:
                        self._save(file)
                    return Status.TIME
                else:
                    self._sample(self.iteration - self.warmup)
                self.iteration += 1
                if file is not None and time.perf_counter() - self._written > _SECONDS_BETWEEN_FILES:
                    self._save(file)
        except KeyboardInterrupt:
            if self.trace.n_kept < FEWEST_KEPT:
                raise
            return Status.INTERRUPTED
        return None

    def _tune(self, tuning: _Tuning) -> None:
        self._tuning = tuning
        self.sampler.tune(tuning.state, tuning.visited, tuning.reference)

    def _warm_up(self) -> None:
        """Run one adaptive iteration; proposals are updated at the ends of windows and of a shortened warm-up."""
        length = self.settings.warmup
        ends = {int(share * length) for share in _WINDOWS}
        if self.clock.progress() > _WARM_UP_SHARE and self.iteration > min(ends):
            self.warmup = self.iteration + 1
            ends.add(self.iteration)
        if self.iteration and self.iteration in ends:
            seen = torch.stack(self.visited[self.iteration // 2 :])
            self._tune(_Tuning(self.state, seen, self.sampler.population(seen.mean((0, 1)))))
        self.state, accepted = self.sampler.run(self.state, self.iteration, adapt=True)
        self.visited.append(self.sampler.coordinates(self.state))
        self._show_progress("warm-up", self.iteration, accepted)

    def _sample(self, iteration: int) -> None:
        self.state, accepted = self.sampler.run(self.state, self.iteration, adapt=False)
        self.acceptances.add(accepted)
        if (iteration + 1) % self.settings.thin == 0:
            self.trace.add(self.state)
        self._show_progress("sampling", iteration, self.acceptances.mean())

    def _show_progress(self, stage: str, iteration: int, accepted: Acceptance) -> None:
        if (iteration + 1) % _SHOW_EVERY:
            return
        value, seconds = float(self.state.log_prob.double().sum(-1).mean()), self.clock.seconds()
        self.clock.history.append(HistoryRow(stage, value, float("nan"), float(iteration + 1), seconds, True))
        text = f"{stage}: iteration {iteration + 1}, accepted people {accepted.people:.2f}, population "
        text += f"{accepted.population:.2f} and {accepted.posterior:.2f}"
        if stage == "sampling" and self.trace.n_kept >= FEWEST_KEPT and self.settings.chains > 1:
            text += f", R-hat {float(rhat(self.trace.reported()).nan_to_num(nan=1.0).amax()):.3f}"
        self.clock.show(text)

    def _save(self, file: Checkpoint) -> None:
        """Save the state of the run."""
        tuning, population = self._tuning, self._tuning.reference
        tensors = _prefixed("state", self.state.tensors()) | _prefixed("tuning", tuning.state.tensors())
        tensors |= _prefixed("trace", self.trace.tensors()) | _prefixed("steps", self.sampler.steps())
        tensors |= {"reference.fixed": population.fixed, "reference.location": population.location}
        tensors |= {"reference.scale_tril": population.scale_tril}
        if tuning.visited is not None:
            tensors["tuned on"] = tuning.visited
        if self.visited:
            tensors["visited"] = torch.stack(self.visited)
        facts = {
            "iteration": self.iteration,
            "warmup": self.warmup,
            "noise": self.sampler.noise.position(),
            **vars(self.acceptances),
        }
        file.write({key: value.cpu().contiguous().clone() for key, value in tensors.items()}, _as_words(facts))
        self._written = time.perf_counter()

    def restore(self, tensors: dict[str, Tensor], words: dict[str, str]) -> None:
        """Restore the state saved by another run."""
        like = self.state.xi
        facts = {key: json.loads(value) for key, value in words.items()}
        reference = PopulationParameters(
            *(tensors[f"reference.{part}"] for part in ("fixed", "location", "scale_tril"))
        )
        self._tune(_Tuning(State.of(_under("tuning", tensors), like), tensors.get("tuned on"), reference))
        self.sampler.set_steps(_under("steps", tensors))
        self.state = State.of(_under("state", tensors), like)
        self.trace.restore(_under("trace", tensors))
        self.visited = list(tensors["visited"]) if "visited" in tensors else []
        self.iteration, self.warmup = facts.pop("iteration"), facts.pop("warmup")
        self.sampler.noise.seek(facts.pop("noise"))
        self.acceptances = _Acceptances(**facts)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def _as_words(facts: dict[str, object]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in facts.items()}
