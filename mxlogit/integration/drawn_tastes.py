"""Tastes and coefficients on fixed draws."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import MapValue
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes


@dataclass(frozen=True)
class DrawnTastes:
    """Parameters of some people on a block of draws.

    Attributes
    ----------
    z : Tensor, shape (n, k, r)
        Standard normal draws.
    latent : Tensor, shape (n, k, r)
    value : MapValue or None
        Tastes, slopes and direct derivatives, (n, k, r) each; None if the mixing map is the identity.
    parameters : Tensor, shape (n, K, r)
        Fixed coefficients and tastes, in preference space or WTP space (`mxlogit.model.wtp_space`).
    """

    z: Tensor
    latent: Tensor
    value: MapValue | None
    parameters: Tensor


def draw_tastes(model: MixedLogitModel, population: PopulationParameters, z: Tensor) -> DrawnTastes:
    """Turn standard normal draws (n, k, r) into parameters, under one population value or one per person."""
    people = PersonTastes(population, model.mixing)
    latent = people.latents(z)
    value = people.mapped(latent)
    tastes = latent if value is None else value.taste
    return DrawnTastes(z, latent, value, tastes if model.space.n_fixed == 0 else people.parameters(tastes))
