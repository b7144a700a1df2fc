"""Generative model of the mixed logit as a Pyro program.

fixed, location ~ normal; scale ~ half-Cauchy; correlation factors ~ LKJ; within a plate over decision
makers: whitened tastes xi ~ N(0, I), tastes beta = g(location + L xi), and the log probability of the
person's choices. The plate scales a mini-batch by N / batch. Inner loops call the torch functions of
`mxlogit.model.mixed_logit` instead; a test checks that both agree.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from mxlogit.model.likelihood import panel_log_prob
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters

# Name of the plate over decision makers.
PLATE = "decision_makers"


def sample_site(name: str, distribution: Any) -> Tensor:
    """Sample a vector-valued site; empty vectors are returned without a site, which samplers do not support."""
    if distribution.event_shape.numel() == 0:
        empty: Tensor = distribution.sample()
        return empty
    value: Tensor = pyro.sample(name, distribution)
    return value


def sample_population(model: MixedLogitModel) -> PopulationParameters:
    """Sample the population parameters from their priors (Pyro sites fixed, location, scale, correlation_i)."""
    n_fixed, prior = model.space.n_fixed, model.prior
    mean, deviation = prior.mean, prior.deviation
    fixed = sample_site("fixed", dist.Normal(mean[:n_fixed], deviation[:n_fixed]).to_event(1))
    location = sample_site("location", dist.Normal(mean[n_fixed:], deviation[n_fixed:]).to_event(1))
    scale = sample_site("scale", dist.HalfCauchy(prior.sd_scale).to_event(1))
    concentration = mean.new_tensor(prior.concentration)
    factors = [
        pyro.sample(f"correlation_{i}", dist.LKJCholesky(len(block), concentration))
        for i, block in enumerate(model.space.correlated_blocks)
    ]
    return model.space.assemble(fixed, location, scale, factors)


def mixed_logit(model: MixedLogitModel, panel: Panels, people: Tensor | None = None) -> None:
    """Run the Pyro program of a mixed logit on a panel.

    Parameters
    ----------
    model : MixedLogitModel
        Mixed logit model.
    panel : PanelDifferences or RaggedPanels
        Choices of all N people.
    people : Tensor of int, shape (b,), optional
        Indices of the mini-batch; all people by default. Local terms are scaled by N / b.
    """
    population = sample_population(model).to(panel.values)
    index = torch.arange(len(panel), device=panel.values.device) if people is None else people
    part = panel if people is None else panel.take(people)
    with (
        pyro.plate(PLATE, len(panel), subsample=index, dim=-1),
        pyro.poutine.scale(scale=part.weights),
    ):
        unit = part.values.new_zeros(len(part), model.space.n_random)
        xi = sample_site("xi", dist.Normal(unit, unit + 1.0).to_event(1))
        pyro.factor("choices", panel_log_prob(model.coefficients(population, xi, part), part))
