"""The classic route: encoder and q(theta) trained by stochastic backpropagation of Pyro's ELBO.

After Rodrigues (2022, arXiv 2004.05426): mini-batches of decision makers, one reparametrised draw, Adam. It
starts where the default route starts, follows a cosine schedule, and reports the average of the last
quarter of the iterates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from mxlogit.draws.importance import DrawScheme
from mxlogit.execution.people import People
from mxlogit.execution.processes import Team
from mxlogit.fit import Fit, HistoryRow, Samples, Status
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.encoder import Encoder, PublishedEncoder, SetEncoder
from mxlogit.guide.flows import LocalFlow
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.assess import draw_samples, evaluate_center, judge
from mxlogit.inference.start import MultinomialLogit
from mxlogit.inference.svi.backward import resolve_sbp
from mxlogit.inference.svi.keep_control import EVERY, KeepControl
from mxlogit.inference.vi.newton import Clock
from mxlogit.integration.importance import weigh_draws
from mxlogit.integration.laplace import FLOWS
from mxlogit.integration.marginal import MarginalLikelihood, Sweep
from mxlogit.integration.tastes import PolishedTastes
from mxlogit.model.mixed_logit import PanelModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import Population
from mxlogit.model.pyro_program import mixed_logit
from mxlogit.model.triangles import lower_of

if TYPE_CHECKING:
    from mxlogit.inference.vi.engine import VI

_START_DEVIATION = 0.1
_RECORD_EVERY, _TEST_EVERY, _PATIENCE = 50, 100, 5
_CLIP = 10.0
_STEPS = 2_000
# Most Newton steps from xi = 0 where there is no encoder; people of whom a flow takes the scale of its context.
_POLISH_FROM_ZERO, _TAUGHT = 10, 2_000


def run_classic(
    settings: VI,
    model: PanelModel,
    people: People,
    logit: MultinomialLogit,
    start: Population,
    seed: int,
    clock: Clock,
) -> Fit:
    """Train the amortized guide and return its fit.

    Parameters
    ----------
    settings : VI
    model : PanelModel
    people : People
    logit : MultinomialLogit
    start : Population
        The population at which q(theta) is centred at first.
    seed : int
    clock : Clock

    Returns
    -------
    Fit
    """
    panel = people.own()
    devices = [panel.values.device] if panel.values.is_cuda else []
    # Pyro and torch.distributions know only the global generator: fork it, seed the fork, restore it.
    with torch.random.fork_rng(devices=devices), pyro.settings.context(module_local_params=True):
        guide = make_guide(settings, model, panel, start, seed, people.team)
        # From here on every process draws its own people and noise.
        torch.manual_seed((seed + people.team.rank) % 2**63)
        factor, clipped = _train(settings, guide, panel, people, seed, clock)
    fit = _package(settings, guide, factor, people, seed, clock)
    fit.diagnostics.update(clipped=clipped, **({} if guide.sbp is None else {"sbp_keep": guide.sbp.share}))
    return judge(fit, model, people, logit)


def make_guide(
    settings: VI, model: PanelModel, panel: Panels, start: Population, seed: int, team: Team | None = None
) -> AmortizedGuide:
    """Return the guide that was asked for, before training, its network's first weights from the seed."""
    with torch.random.fork_rng(devices=[panel.values.device] if panel.values.is_cuda else []):
        torch.manual_seed(seed % 2**63)
        encoder = _make_encoder(settings, model, panel)
        if encoder is not None:
            encoder = encoder.to(panel.values)
            encoder = encoder if team is None else team.spread(encoder)
        family = "diagonal" if settings.population == "saa" else settings.population_family
        polish_steps = _polish_steps(settings, encoder)
        guide = AmortizedGuide(model, _start_factor(model, start), encoder, polish_steps, family=family)
        guide.sbp = resolve_sbp(settings)
        if settings.flow in FLOWS and model.space.n_random:
            flow = LocalFlow(model.space.n_random, str(settings.flow), settings.flow_layers).to(panel.values)
            local = start.to(panel.values)
            taught = panel.take(slice(0, _TAUGHT))
            flow.standardize(flow.attach(guide.local_factor(local, taught), local, taught, model.mixing).context)
            guide.flow = flow
    return guide


def _make_encoder(settings: VI, model: PanelModel, panel: Panels) -> torch.nn.Module | None:
    if encoder_name(settings) is None or model.space.n_random == 0:
        return None
    if settings.encoder == "rodrigues2022":
        others = panel.dense().sections[0].others
        return PublishedEncoder(model.space.n_random, others * (panel.n_columns + 1))
    shape = settings.encoder if isinstance(settings.encoder, Encoder) else Encoder()
    return SetEncoder(model.space.n_random, model.mixing, shape, settings.covariance, settings.coordinates)


def encoder_name(settings: VI) -> str | None:
    """Name of the encoder, "auto" resolved: only the classic route has one unless asked for."""
    if settings.encoder == "auto":
        return "set" if settings.population == "adam" else None
    return "set" if isinstance(settings.encoder, Encoder) else settings.encoder


def _polish_steps(settings: VI, encoder: torch.nn.Module | None) -> int:
    if settings.polish == "auto":
        return _POLISH_FROM_ZERO if encoder is None else 0
    return int(settings.polish)


def _start_factor(model: PanelModel, start: Population) -> GaussianFactor:
    """A narrow Gaussian whose axes are those of relative moves, so that units do not matter."""
    jacobian = model.space.relative_jacobian(start)
    n_fixed = model.space.n_fixed
    size = torch.ones(model.space.size, dtype=torch.float64)
    size[:n_fixed] = 1.0 / model.attribute_scale[:n_fixed]
    return GaussianFactor(model.space.unconstrain(start), lower_of(_START_DEVIATION * jacobian * size))


class _Schedule:
    """Cosine from 1 to 0 over the steps, or over the seconds when there is a time limit."""

    def __init__(self, settings: VI, clock: Clock) -> None:
        self.steps, self.limit, self.clock = settings.steps or _STEPS, settings.max_seconds, clock
        self.constant, self.checks = settings.schedule == "constant", [-math.inf]

    def progress(self, step: int) -> float:
        by_time = 0.0 if self.limit is None else self.clock.seconds() / self.limit
        by_steps = step / self.steps if self.limit is None else 0.0
        return min(1.0, max(by_time, by_steps))

    def is_over(self, bound: float) -> bool:
        """Whether, at a constant rate, the bound has not risen in the last tests (the published stopping rule)."""
        self.checks.append(bound)
        return self.constant and max(self.checks[-_PATIENCE:]) <= max(self.checks[:-_PATIENCE] or [-math.inf])

    def rate(self, progress: float) -> float:
        return 1.0 if self.constant else 0.5 * (1.0 + math.cos(math.pi * progress))


def _train(
    settings: VI, guide: AmortizedGuide, panel: Panels, people: People, seed: int, clock: Clock
) -> tuple[GaussianFactor, int]:
    """Run Adam; return q(theta) averaged over the last quarter of the run, and how many gradients were clipped.

    Gradients are means over processes, each of which takes its share of a mini-batch from its own people, as if they
    were all.
    """
    team, first = people.team, people.first
    panel = replace(panel, weights=team.size * panel.weights)

    def program(data: Panels, people: Tensor) -> None:
        mixed_logit(guide.model, data, people)

    loss_of = Trace_ELBO()(program, guide)
    theta = [guide.shift, guide.log_diagonal, guide.below]
    first_rates = [settings.learning_rate, settings.guide_learning_rate]
    networks = [p for name, p in guide.named_parameters() if "." in name]
    groups: list[dict[str, Any]] = [{"params": theta}, {"params": networks}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule, average, n_averaged, step = _Schedule(settings, clock), _flatten(theta) * 0.0, 0, 0
    clipped = 0
    control = KeepControl(guide, team) if guide.sbp is not None and guide.sbp.keep == "auto" else None
    batch = min(max(1, settings.batch_size // team.size), len(panel))
    recent: list[float] = []
    guide.first_person = first
    while (progress := team.gather(schedule.progress(step))[0]) < 1.0:
        for group, rate in zip(optimizer.param_groups, first_rates, strict=True):
            group["lr"] = rate * schedule.rate(progress)
        chosen = torch.randperm(len(panel))[:batch].to(panel.values.device)
        optimizer.zero_grad()
        if control is not None and step % EVERY == EVERY - 1:
            control.adjust(panel, chosen, (seed, step))
        guide.mask_key = (seed, step)
        loss = loss_of(panel, chosen)
        loss.backward()
        if guide.polish_steps:
            population = guide.model.space.constrain(guide.population_factor().mean.detach()).to(panel.values)
            (-len(panel) / batch * guide.encoder_bound(population, panel.take(chosen), chosen)).backward()
        _average_gradients([*theta, *([] if guide.flow is None else guide.flow.parameters())], team)
        longest = _CLIP * len(panel) * team.size
        clipped += float(torch.nn.utils.clip_grad_norm_(theta, longest)) > longest
        optimizer.step()
        clock.passes += batch / len(panel)
        recent = [*recent[-_RECORD_EVERY + 1 :], -float(loss.detach())]
        step += 1
        if step % _RECORD_EVERY == 0:
            _record(clock, step, sum(recent) / len(recent))
        if step % _TEST_EVERY == 0 and schedule.is_over(team.gather(sum(recent) / len(recent))[0]):
            break
        if progress > 0.75 and not schedule.constant:
            average, n_averaged = average + _flatten(theta), n_averaged + 1
    if n_averaged:
        _unflatten(average / n_averaged, theta)
    guide.eval()
    factor = guide.population_factor()
    return GaussianFactor(factor.mean.detach(), factor.tril.detach()), clipped


def _average_gradients(parameters: list[torch.nn.Parameter], team: Team) -> None:
    """Replace gradients by their means over processes (the encoder's are averaged while they are computed)."""
    if team.size > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for gradient, total in zip(gradients, team.total(*gradients), strict=True):
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
    clock.tell(f"Adam step {step}: {clock.passes:.1f} passes, ELBO {elbo:.1f}")


def _package(
    settings: VI,
    guide: AmortizedGuide,
    factor: GaussianFactor,
    people: People,
    seed: int,
    clock: Clock,
) -> Fit:
    model = guide.model
    factor = GaussianFactor(factor.mean.cpu(), factor.tril.cpu())
    samples: Samples = draw_samples(model.space, factor, settings.n_samples, seed)
    center = model.space.from_report(samples.mean)
    marginal = MarginalLikelihood(people, model.space, model.mixing, seed)
    marginal.sweep(center, Sweep(16, settings.tail, 6, 30))
    diagnostics = evaluate_center(marginal, center, 64, settings.tail)
    encoder = encoder_quality(guide, center, people, seed)
    diagnostics.update(
        elbo=clock.history[-1].objective if clock.history else math.nan,
        elbo_local=encoder.elbo,
        ess_encoder=encoder.ess,
        pareto_k=math.nan,
        passes=clock.passes,
        seconds=clock.seconds(),
        guide=f"{encoder_name(settings)} encoder, {settings.flow if guide.flow else 'no'} flow, trained by stochastic "
        "backpropagation of the ELBO",
    )
    # A flow has learned to follow what the guide polishes; after the bare encoder's factors it would not fit.
    tastes = PolishedTastes(model, seed, settings.tail, flow=guide.flow if guide.polish_steps else None)
    guide.requires_grad_(requires_grad=False)
    return Fit(samples, center, Status.ITERATIONS_DONE, clock.history, tastes, diagnostics)


@dataclass(frozen=True)
class EncoderQuality:
    """Sum of the local bounds and mean ESS fraction of the encoder's factors as they are."""

    elbo: float
    ess: float


@torch.no_grad()
def encoder_quality(guide: AmortizedGuide, population: Population, people: People, seed: int) -> EncoderQuality:
    """Measure the encoder's own factors at given population parameters."""
    local, panel = population.to(people.like), people.panels
    sums = torch.zeros(2, dtype=torch.float64)
    marginal = MarginalLikelihood(people, guide.model.space, guide.model.mixing, seed)
    scheme = DrawScheme((seed, 41), 32, guide.model.space.n_random, None, defensive=False)
    for part, chunk in panel.chunks(marginal.chunk_size(32)):
        factor = guide.local_factor(local, chunk)
        base = scheme.points(people.first + part.start, len(chunk), factor.mean)
        drawn = weigh_draws(factor, base, local, chunk, guide.model.mixing)
        values = torch.stack([drawn.elbo, drawn.ess_fraction]).double()
        sums += (values @ chunk.weights.double()).cpu()
    elbo, ess = people.team.total(sums)[0].tolist()
    return EncoderQuality(elbo, ess / people.weight)
