"""Construction of the guide of `mxlogit.SVI` before training, and quality of its encoder after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mxlogit.draws.importance import DrawScheme
from mxlogit.execution.people import People
from mxlogit.execution.processes import Communicator
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.encoder import Encoder, PublishedEncoder, SetEncoder
from mxlogit.guide.flows import LocalFlow
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.svi.plan import GuidePlan
from mxlogit.integration.importance import weigh_draws
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.triangles import lower_of

# Initial sd of q(theta) in relative coordinates; chosen by hand.
_START_DEVIATION = 0.1
# Largest number of people from whom the mean and scale of a flow's context are computed; chosen by hand.
_CONTEXT_PEOPLE = 2_000


def make_guide(
    plan: GuidePlan,
    model: MixedLogitModel,
    panel: Panels,
    start: PopulationParameters,
    seed: int,
    team: Communicator | None = None,
) -> AmortizedGuide:
    """Build the guide of a plan, with initial network weights from the seed."""
    with torch.random.fork_rng(devices=[panel.values.device] if panel.values.is_cuda else []):
        torch.manual_seed(seed % 2**63)
        encoder = _make_encoder(plan, model, panel)
        if encoder is not None:
            encoder = encoder.to(panel.values)
            encoder = encoder if team is None else team.wrap_ddp(encoder)
        guide = AmortizedGuide(model, _start_factor(model, start), encoder, plan.newton_steps, family=plan.family)
        guide.sbp = plan.sbp
        if plan.flow is not None and model.space.n_random:
            flow = LocalFlow(model.space.n_random, plan.flow, plan.flow_layers).to(panel.values)
            local = start.to(panel.values)
            taught = panel.take(slice(0, _CONTEXT_PEOPLE))
            flow.standardize(flow.attach(guide.local_factor(local, taught), local, taught, model.mixing).context)
            guide.flow = flow
    return guide


def _make_encoder(plan: GuidePlan, model: MixedLogitModel, panel: Panels) -> torch.nn.Module | None:
    if plan.encoder is None or model.space.n_random == 0:
        return None
    if isinstance(plan.encoder, Encoder):
        return SetEncoder(model.space.n_random, model.mixing, plan.encoder)
    others = panel.dense().sections[0].others
    return PublishedEncoder(model.space.n_random, others * (panel.n_columns + 1))


def _start_factor(model: MixedLogitModel, start: PopulationParameters) -> GaussianFactor:
    """A narrow Gaussian along the axes of relative coordinates, which makes it independent of units."""
    jacobian = model.space.relative_jacobian(start)
    n_fixed = model.space.n_fixed
    size = torch.ones(model.space.whole.size, dtype=torch.float64)
    size[:n_fixed] = 1.0 / model.attribute_scale[:n_fixed]
    size = model.space.drop_held(size)
    return GaussianFactor(model.space.unconstrain(start), lower_of(_START_DEVIATION * jacobian * size))


@dataclass(frozen=True)
class EncoderQuality:
    """Sum of the local bounds, and mean effective sample size fraction, of the encoder's factors."""

    elbo: float
    ess: float


@torch.no_grad()
def encoder_quality(
    guide: AmortizedGuide, population: PopulationParameters, people: People, seed: int
) -> EncoderQuality:
    """Measure the quality of the encoder's factors at given population parameters."""
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
    elbo, ess = people.team.all_reduce_sum(sums)[0].tolist()
    return EncoderQuality(elbo, ess / people.weight)
