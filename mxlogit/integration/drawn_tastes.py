"""Tastes and coefficients on fixed draws."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mxlogit.model.dense_panels import PanelDifferences
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
    loads : Tensor or None, shape (n, e, 1) or (1, e, r)
        Covariates of the effects on latent normals (`mxlogit.model.latent_shifts`).
    shift : Tensor or None, shape (n, k, 1 or r)
        What they add to the latent normals.
    """

    z: Tensor
    latent: Tensor
    value: MapValue | None
    parameters: Tensor
    loads: Tensor | None = None
    shift: Tensor | None = None


def loads_of(model: MixedLogitModel, panel: PanelDifferences) -> Tensor | None:
    """Covariates (n, e, 1) of the effects on latent normals, of the people of a panel; None without such effects."""
    if model.mixing.shifts is None:
        return None
    assert panel.covariates is not None
    return model.mixing.shifts.loads(panel.covariates, panel.values)


def draw_tastes(
    model: MixedLogitModel, population: PopulationParameters, z: Tensor, loads: Tensor | None = None
) -> DrawnTastes:
    """Turn standard normal draws (n, k, r) into parameters, under one population value or one per person.

    ``loads`` are described in `DrawnTastes`.
    """
    shifts = model.mixing.shifts
    shift = None if shifts is None or loads is None else shifts.of(population.fixed, loads)
    people = PersonTastes(population, model.mixing, shift)
    latent = people.latents(z)
    value = people.mapped(latent)
    tastes = latent if value is None else value.taste
    return DrawnTastes(
        z, latent, value, tastes if model.space.n_fixed == 0 else people.parameters(tastes), loads, shift
    )
