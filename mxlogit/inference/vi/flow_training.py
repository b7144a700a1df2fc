"""Training of a conditional flow on the Laplace factors of people, at typical population parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.draws.importance import DrawScheme
from mxlogit.guide import objectives
from mxlogit.guide.flows import LocalFlow
from mxlogit.integration.importance import WeightedDraws, weigh_draws
from mxlogit.integration.laplace import LocalFactor, polish
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.variational import refine_gaussian
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.optim.adam import Adam

# Constants without a stated reason are chosen by hand.
# Largest number of people in the training set, of all processes together.
_TRAINING_PEOPLE = 4_000
# People of a mini-batch, and draws of each.
_BATCH = 200
_DRAWS = 32
# Initial learning rate of Adam, and bound on the norm of gradients.
_RATE = 1e-2
_CLIP = 1.0
# Training steps by default; more if the effective sample size fraction without a flow is at most _VERY_UNEVEN, because
# flows on lognormal tastes improve for longer.
_STEPS = 100
_MANY_STEPS = 400
_VERY_UNEVEN = 0.5
# Smallest effective sample size fraction of a person above which no draws from the prior are needed with the flow.
_SAFE = 0.3
# Draws per person of that check, and people evaluated at once.
_CHECK_DRAWS = 256
_CHECK_CHUNK = 500
# Most Newton steps to the modes, points of the variational steps, and training steps between messages.
_NEWTON_STEPS = 30
_VARIATIONAL_POINTS = 16
_SHOW_EVERY = 20


@dataclass(frozen=True)
class FlowSettings:
    """Architecture and training settings of a flow.

    Attributes
    ----------
    kind : {"affine", "spline", "autoregressive"}
    layers : int
    objective : {"ess", "elbo", "iwae"}
    steps : int or None
        Number of training steps; None: by the effective sample size without a flow.
    variational_steps : int
        Number of variational steps before the flow.
    seed : int
        Seed of initial weights, people and draws.
    """

    kind: str = "spline"
    layers: int = 1
    objective: str = "ess"
    steps: int | None = None
    variational_steps: int = 2
    seed: int = 0


def train_flow(
    model: MixedLogitModel,
    marginal: MarginalLikelihood,
    populations: Sequence[PopulationParameters],
    settings: FlowSettings,
    show: Callable[[str], None],
) -> tuple[LocalFlow, float]:
    """Train a flow on a random sample of people by stochastic backpropagation.

    Some draws come from the prior: a flow trained on its own draws only may miss part of a posterior and appear better
    for it (lognormal tastes: an apparent effective sample size fraction of .8, a true one of .01).

    Parameters
    ----------
    model : MixedLogitModel
    marginal : MarginalLikelihood
        Marginal likelihood of the people, with modes close to the modes at ``populations``.
    populations : sequence of PopulationParameters
        Two or more population values from the posterior; the last one is held out for validation.
    settings : FlowSettings
    show : callable
        Callback that receives progress messages.

    Returns
    -------
    tuple of (LocalFlow, float)
        Flow in evaluation mode with detached weights, and the factor by which it raises the mean effective sample size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed % 2**63)
        flow = LocalFlow(model.space.n_random, settings.kind, settings.layers).to(marginal.people.like)
    panel, places = _sample_people(marginal, settings.seed)
    problems = [
        _TrainingProblem(model, panel, flow, marginal.modes[places], population, settings) for population in populations
    ]
    *training, validation = problems
    flow.standardize(torch.cat([problem.warp.context for problem in training]))
    before = float(validation.effective_sizes().mean())
    steps = settings.steps or (_STEPS if before > _VERY_UNEVEN else _MANY_STEPS)
    _fit(flow, training, settings, steps, show)
    # With several processes, all use the flow that the first trained on its own people.
    team = marginal.people.team
    flow.load_state_dict(team.gather(flow.state_dict())[0])
    after = validation.effective_sizes()
    (worst, gain), *_ = team.gather((float(after.amin()), float(after.mean()) / before))
    flow.defensive = worst < _SAFE
    return flow.eval().requires_grad_(requires_grad=False), gain


def _sample_people(marginal: MarginalLikelihood, seed: int) -> tuple[Panels, Tensor]:
    """Panels and local indices of a random sample of the people of this process."""
    people = marginal.people
    count = min(len(people.panels), max(1, _TRAINING_PEOPLE // people.team.size))
    places = torch.randperm(len(people.panels), generator=make_generator(seed, 21))[:count].sort().values
    places = places.to(marginal.modes.device)
    return people.panels.take(places), places


class _TrainingProblem:
    """Training problem at one population value: people, their local factors and the flow on them."""

    def __init__(
        self,
        model: MixedLogitModel,
        panel: Panels,
        flow: LocalFlow,
        start: Tensor,
        population: PopulationParameters,
        settings: FlowSettings,
    ) -> None:
        population, steps, seed = population.to(panel.values), settings.variational_steps, settings.seed
        self.panel, self.population, self.mixing, self.seed = panel, population, model.mixing, seed
        scheme = DrawScheme((seed, 24), _VARIATIONAL_POINTS, model.space.n_random, None, defensive=False)
        points = scheme.points(0, len(panel), panel.values).points
        with torch.no_grad():
            polished = polish(start, population, panel, model.mixing, _NEWTON_STEPS)
            self.factor = refine_gaussian(polished, points, population, panel, model.mixing, steps)
        self.warp = flow.attach(self.factor, population, panel, model.mixing)

    def draw(self, key: int, people: Tensor, draws: int) -> WeightedDraws:
        """Weighted draws of some people."""
        f = self.factor
        factor = LocalFactor(
            f.mean[people], f.root[people], f.precision_tril[people], f.log_det[people], self.warp.take(people)
        )
        scheme = DrawScheme(
            (self.seed, 23, key), draws, f.mean.shape[1], self.warp.flow.degrees_of_freedom, defensive=True
        )
        base = scheme.points(0, len(people), f.mean)
        return weigh_draws(factor, base, self.population, self.panel.take(people), self.mixing)

    @torch.no_grad()
    def effective_sizes(self) -> Tensor:
        """Effective sample size fraction of each person, (n,)."""
        indices = torch.arange(len(self.panel), device=self.panel.values.device)
        return torch.cat([self.draw(-1, part, _CHECK_DRAWS).ess_fraction for part in indices.split(_CHECK_CHUNK)])


def _fit(
    flow: LocalFlow, training: list[_TrainingProblem], settings: FlowSettings, steps: int, show: Callable[[str], None]
) -> None:
    """Train with Adam on mini-batches of people, cycling over population values, with a cosine learning rate."""
    panel, seed = training[0].panel, training[0].seed
    optimizer = Adam(flow.parameters())
    generator, batch = make_generator(seed, 22), min(_BATCH, len(panel))
    for step in range(steps):
        people = torch.randperm(len(panel), generator=generator)[:batch].to(panel.values.device)
        drawn, weights = training[step % len(training)].draw(step, people, _DRAWS), panel.weights[people]
        reward = objectives.value(drawn.log_ratio, settings.objective)
        loss = -(reward * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), _CLIP)
        optimizer.step(_RATE * 0.5 * (1.0 + math.cos(math.pi * step / steps)))
        if (step + 1) % _SHOW_EVERY == 0:
            show(f"flow: {step + 1} of {steps} steps")
