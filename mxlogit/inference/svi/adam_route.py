"""The classic route: encoder and q(theta) trained by stochastic backpropagation of Pyro's ELBO.

After Rodrigues (2022, arXiv 2004.05426): mini-batches of decision makers, one reparametrised draw, Adam. It has the
same start as the default route, a cosine schedule of the learning rates, and reports the average of the last quarter of
the iterates.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from mxlogit.execution.processes import Communicator
from mxlogit.fit import Fit, HistoryRow, Outcome, Samples, Status
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.clock import Clock
from mxlogit.inference.report import draw_samples, evaluate_center, report_fit
from mxlogit.inference.svi.guides import encoder_quality, make_guide
from mxlogit.inference.svi.keep_control import EVERY, KeepControl
from mxlogit.inference.svi.plan import GuidePlan
from mxlogit.inference.svi.training import Training
from mxlogit.inference.task import Task
from mxlogit.inference.vi.assessment import assess_gaussian, assess_people
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tastes import ImportanceTastes
from mxlogit.model.panels import Panels
from mxlogit.model.pyro_program import mixed_logit
from mxlogit.optim.adam import Adam

# Steps between rows of the history; chosen by hand.
_RECORD_EVERY = 50
# Steps between tests of a constant rate, and tests without an increase of the bound after which it stops.
_TEST_EVERY = 100
_PATIENCE = 5
# Bound on the norm of the gradient of q(theta), per person; chosen by hand.
_CLIP = 10.0
# Share of the run after which q(theta) is averaged; chosen by hand.
_AVERAGED_FROM = 0.75
# Pyro's handlers and torch's global generator are shared by all threads, so concurrent fits take turns.
_PYRO = threading.Lock()
# Default number of steps without a time limit; chosen by hand.
_STEPS = 2_000


@dataclass(frozen=True)
class AdamPlan:
    """Settings of `mxlogit.SVI` for the classic route.

    Attributes
    ----------
    guide : GuidePlan
        Plan with an encoder.
    training : Training
    degrees_of_freedom : int or None
    n_samples : int
    """

    guide: GuidePlan
    training: Training
    degrees_of_freedom: int | None
    n_samples: int


def run_classic(task: Task, plan: AdamPlan) -> Fit:
    """Train the amortized guide, its q(theta) centred at the task's start at first, and return its fit."""
    people, seed = task.people, task.seed
    panel = people.local_panels()
    devices = [panel.values.device] if panel.values.is_cuda else []
    # Pyro and torch.distributions know only the global generator: fork it, seed the fork, restore it.
    with _PYRO, torch.random.fork_rng(devices=devices), pyro.settings.context(module_local_params=True):
        guide = make_guide(plan.guide, task.model, panel, task.start, seed, people.team)
        # From here on every process draws its own people and noise.
        torch.manual_seed((seed + people.team.rank) % 2**63)
        factor, clipped = train(plan.training, guide, task)
    outcome = _conclude(plan, task, guide, factor, clipped)
    return report_fit(outcome, task.model, people, task.logit, task.clock)


class _Schedule:
    """Cosine schedule from 1 to 0 over the steps, or over the seconds of a time limit."""

    def __init__(self, training: Training, clock: Clock) -> None:
        steps = _STEPS if clock.limit is None else None
        self.steps, self.clock = training.steps or steps, clock
        self.constant, self.checks = training.schedule == "constant", [-math.inf]

    def progress(self, step: int) -> float:
        """The larger of the shares of steps and of time used; the same in all processes."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        return min(1.0, max(self.clock.progress(), by_steps))

    def is_over(self, bound: float) -> bool:
        """Whether the bound has not risen in the last tests of a constant rate (the published stopping rule)."""
        self.checks.append(bound)
        return self.constant and max(self.checks[-_PATIENCE:]) <= max(self.checks[:-_PATIENCE] or [-math.inf])

    def rate(self, progress: float) -> float:
        return 1.0 if self.constant else 0.5 * (1.0 + math.cos(math.pi * progress))


def train(training: Training, guide: AmortizedGuide, task: Task) -> tuple[GaussianFactor, int]:
    """Run Adam; return q(theta) averaged over the last quarter of the run, and the number of clipped gradients."""
    run = _Run(training, guide, task)
    return run.to_the_end(), run.clipped


class _Run:
    """Adam on Pyro's ELBO.

    Each process draws its share of a mini-batch from its own people and scales the bound as if they were all people;
    gradients are averaged over processes.
    """

    def __init__(self, training: Training, guide: AmortizedGuide, task: Task) -> None:
        self.guide, self.task, self.team, self.clock = guide, task, task.people.team, task.clock
        panel = task.people.local_panels()
        self.panel = replace(panel, weights=self.team.size * panel.weights)
        self.loss_of = Trace_ELBO()(self._program, guide)
        self.theta = [guide.shift, guide.log_diagonal, guide.below]
        self.rates = [training.rate, training.guide_rate]
        networks = [p for name, p in guide.named_parameters() if "." in name]
        self.optimizers = [Adam(parameters, betas=(0.9, 0.99)) for parameters in (self.theta, networks)]
        self.schedule, self.clipped = _Schedule(training, task.clock), 0
        automatic = guide.sbp is not None and guide.sbp.keep == "auto"
        self.control = KeepControl(guide, self.team) if automatic else None
        self.batch = min(max(1, training.batch_size // self.team.size), len(self.panel))
        self.recent: list[float] = []
        guide.first_person = task.people.first

    def _program(self, data: Panels, people: Tensor) -> None:
        mixed_logit(self.guide.model, data, people)

    def to_the_end(self) -> GaussianFactor:
        """Run until steps or time are used up, or the bound no longer rises at a constant rate; return q(theta)."""
        average, n_averaged, step = _flatten(self.theta) * 0.0, 0, 0
        while (progress := self.schedule.progress(step)) < 1.0:
            self._step(step, progress)
            step += 1
            if self._is_settled(step):
                break
            if progress > _AVERAGED_FROM and not self.schedule.constant:
                average, n_averaged = average + _flatten(self.theta), n_averaged + 1
        if n_averaged:
            _unflatten(average / n_averaged, self.theta)
        factor = self.guide.eval().population_factor()
        return GaussianFactor(factor.mean.detach(), factor.tril.detach())

    def _step(self, step: int, progress: float) -> None:
        guide, panel, key = self.guide, self.panel, (self.task.seed, step)
        chosen = torch.randperm(len(panel))[: self.batch].to(panel.values.device)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.control is not None and step % EVERY == EVERY - 1:
            self.control.adjust(panel, chosen, key)
        guide.mask_key = key
        loss = self.loss_of(panel, chosen)
        loss.backward()
        if guide.newton_steps:
            population = guide.model.space.constrain(guide.population_factor().mean.detach()).to(panel.values)
            bound = guide.encoder_bound(population, panel.take(chosen), chosen)
            (-len(panel) / self.batch * bound).backward()
        _average_gradients([*self.theta, *([] if guide.flow is None else guide.flow.parameters())], self.team)
        longest = _CLIP * len(panel) * self.team.size
        self.clipped += float(torch.nn.utils.clip_grad_norm_(self.theta, longest)) > longest
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.step(rate * self.schedule.rate(progress))
        self.clock.passes += self.batch / len(panel)
        self.recent = [*self.recent[-_RECORD_EVERY + 1 :], -float(loss.detach())]

    def _is_settled(self, step: int) -> bool:
        """Record the bound at intervals; return whether a constant rate has met the stopping rule."""
        bound = sum(self.recent) / len(self.recent)
        if step % _RECORD_EVERY == 0:
            _record(self.clock, step, bound)
        return step % _TEST_EVERY == 0 and self.schedule.is_over(self.team.gather(bound)[0])


def _average_gradients(parameters: list[torch.nn.Parameter], team: Communicator) -> None:
    """Replace gradients by their means over processes (the encoder's are averaged in the backward pass)."""
    if team.size > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for gradient, total in zip(gradients, team.all_reduce_sum(*gradients), strict=True):
            gradient.copy_(total / team.size)


def _flatten(parameters: list[torch.nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def _unflatten(vector: Tensor, parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for part, parameter in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True):
            parameter.copy_(part.view_as(parameter))


def _record(clock: Clock, step: int, elbo: float) -> None:
    row = HistoryRow(f"Adam step {step}", elbo, math.nan, clock.passes, clock.seconds(), accepted=True)
    clock.history.append(row)
    clock.show(f"Adam step {step}: {clock.passes:.1f} passes, ELBO {elbo:.1f}")


def _conclude(plan: AdamPlan, task: Task, guide: AmortizedGuide, factor: GaussianFactor, clipped: int) -> Outcome:
    """Sample q(theta), and measure the guide at its mean."""
    model, people, seed, clock = task.model, task.people, task.seed, task.clock
    factor = GaussianFactor(factor.mean.cpu(), factor.tril.cpu())
    samples: Samples = draw_samples(model.space, factor, plan.n_samples, seed)
    center = model.space.from_report(samples.mean)
    marginal = MarginalLikelihood(people, model.space, model.mixing, seed)
    marginal.score_pass(center, IntegrationSettings(16, plan.degrees_of_freedom, stream=6, newton_steps=30))
    encoder = encoder_quality(guide, center, people, seed)
    diagnostics = replace(
        evaluate_center(marginal, center, 64, plan.degrees_of_freedom),
        elbo=clock.history[-1].objective if clock.history else math.nan,
        elbo_local=encoder.elbo,
        ess_encoder=encoder.ess,
        guide=f"{plan.guide.describe()}, trained by stochastic backpropagation of the ELBO",
        clipped=clipped,
        sbp_keep=None if guide.sbp is None else guide.sbp.share,
    )
    # A flow has learned to follow what the guide polishes; after the bare encoder's factors it would not fit.
    tastes = ImportanceTastes(model, seed, plan.degrees_of_freedom, flow=guide.flow if guide.newton_steps else None)
    guide.requires_grad_(requires_grad=False)
    error = assess_gaussian(task, marginal, factor, samples, plan.degrees_of_freedom)
    error = replace(error, people=assess_people(task, tastes, center))
    return Outcome(samples, center, Status.ITERATIONS_DONE, tastes, diagnostics, error=error)
