r"""From whitened tastes to utility: whitened taste, latent, taste, coefficient, utility, at one population value.

Whitened tastes :math:`\xi` give latent normals :math:`\eta = \zeta + L \xi`, these give tastes :math:`g(\eta)` by the
maps of the mixing distributions (`mxlogit.model.mixing`), tastes and fixed coefficients give the coefficients of
utility (`mxlogit.model.wtp_space`), and these times attributes are utilities. Every step is written here. Draws are the
last axis, so that elementwise operations run along contiguous memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import Scratch
from mxlogit.model.mixing import MapValue, Mixing
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.products import add_products, multiply
from mxlogit.model.wtp_space import to_coefficients


@dataclass(frozen=True)
class PersonTastes:
    """Tastes of people under one population value, or under one for each person or chain.

    Attributes
    ----------
    population : PopulationParameters
        Population parameters, in the dtype of what they are applied to; one value, or one (n, ...) per person.
    mixing : Mixing
    shift : Tensor or None, broadcastable to (n, k, s)
        What covariates add to the latent normals (`mxlogit.model.latent_shifts`).
    """

    population: PopulationParameters
    mixing: Mixing
    shift: Tensor | None = None

    @classmethod
    def of(cls, population: PopulationParameters, mixing: Mixing, panel: Panels | None) -> PersonTastes:
        """Tastes of the people of a panel, with their covariates."""
        if mixing.shifts is None:
            return cls(population, mixing)
        assert panel is not None
        assert panel.covariates is not None
        loads = mixing.shifts.loads(panel.covariates, population.location)
        return cls(population, mixing, mixing.shifts.of(population.fixed, loads))

    @property
    def n_fixed(self) -> int:
        """Number f of fixed coefficients."""
        return self.population.fixed.shape[-1]

    def latents(self, xi: Tensor) -> Tensor:
        """Latent normals (n, k, s) at whitened tastes (n, k, s)."""
        latents = self.population.latent(xi)
        return latents if self.shift is None else latents + self.shift.to(latents)

    def mapped(self, latents: Tensor) -> MapValue | None:
        """Tastes and their derivatives (n, k, s) at latents (n, k, s); None if tastes are the latents themselves."""
        return None if self.mixing.is_identity else self._evaluate(latents)

    def _evaluate(self, latents: Tensor) -> MapValue:
        location, scale = self._of_draws()
        return self.mixing.evaluate(latents.mT, location, scale).transposed()

    def _of_draws(self) -> tuple[Tensor, Tensor]:
        """Locations and scales, to be broadcast along draws."""
        location, scale = self.population.location, self.population.scale
        if location.dim() > 1:
            location, scale = location[..., None, :], scale[..., None, :]
        return (location, scale) if self.shift is None else (location + self.shift.mT.to(location), scale)

    def values(self, xi: Tensor) -> MapValue:
        """Tastes and slopes (n, k, s) at whitened tastes (n, k, s)."""
        return self._evaluate(self.latents(xi))

    def values_of_each(self, xi: Tensor) -> MapValue:
        """Tastes and slopes (n, k) at one whitened taste vector (n, k) of each person."""
        population = self.population
        location = population.location if self.shift is None else population.location + self.shift[..., 0]
        latents = location + xi @ population.scale_tril.mT
        if self.mixing.is_identity:
            return MapValue(latents, torch.ones_like(latents))
        return self.mixing.evaluate(latents, location, population.scale)

    def curvature(self, xi: Tensor) -> Tensor:
        """Second derivatives (n, k, s) of the tastes with respect to the latents."""
        location, scale = self._of_draws()
        return self.mixing.curvature(self.latents(xi).mT, location, scale).mT

    def tastes(self, xi: Tensor) -> Tensor:
        """Tastes (n, k, s) at whitened tastes (n, k, s)."""
        return self.tastes_at(self.latents(xi))

    def tastes_at(self, latents: Tensor) -> Tensor:
        """Tastes (n, k, s) at latents (n, k, s)."""
        if self.mixing.is_identity:
            return latents
        location, scale = self._of_draws()
        return self.mixing.tastes(latents.mT, location, scale).mT

    def parameters(self, tastes: Tensor, fixed: Tensor | None = None) -> Tensor:
        """Fixed coefficients above tastes (n, k, s), (n, f + k, s): amounts of money in willingness-to-pay space.

        Fixed coefficients are the population's, or others (f, s).
        """
        if fixed is None:
            fixed = self.population.fixed[..., None]
        return torch.cat([fixed.expand(len(tastes), -1, tastes.shape[-1]), tastes], 1)

    def coefficients(self, tastes: Tensor) -> Tensor:
        """Coefficients of utility (n, f + k, s), of tastes (n, k, s)."""
        return to_coefficients(self.parameters(tastes), self.mixing.scale_position, dim=1)

    def utility(self, tastes: Tensor, panel: PanelDifferences, scratch: Scratch | None = None) -> Tensor:
        """Utility differences (n, r, s) at s taste vectors of each person, (n, k, s)."""
        return self.utility_of(self.parameters(tastes), panel, scratch)

    def utility_of(self, parameters: Tensor, panel: PanelDifferences, scratch: Scratch | None = None) -> Tensor:
        """Utility differences (n, r, s) at parameters (n, f + k, s)."""
        coefficients = to_coefficients(parameters, self.mixing.scale_position, dim=1)
        if scratch is None:
            return multiply(panel.values, coefficients)
        shape = (*panel.values.shape[:2], parameters.shape[-1])
        return multiply(panel.values, coefficients, out=scratch.take(shape, panel.values))

    def whitened_utility(self, xi: Tensor, panel: PanelDifferences) -> Tensor:
        """Utility differences (n, r, s) at s whitened tastes of each person, (n, k, s).

        If the mixing map is the identity, attributes are multiplied by L once instead of every draw.
        """
        if self.mixing.is_identity and self.mixing.scale_position is None:
            values = panel.values[..., self.n_fixed :]
            mean = self.fixed_utility(panel) + values @ self.population.location
            return add_products(mean[..., None], values @ self.population.scale_tril, xi)
        return self.utility(self.tastes(xi), panel)

    def fixed_utility(self, panel: PanelDifferences) -> Tensor:
        """Utility differences from the fixed coefficients, shape (n, r)."""
        if self.n_fixed == 0:
            return panel.values.new_zeros(panel.values.shape[:2])
        return panel.values[..., : self.n_fixed] @ self.population.fixed
