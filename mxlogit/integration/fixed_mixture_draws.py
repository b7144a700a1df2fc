"""The likelihood of a mixture of normals at many parameter values at once, on fixed draws of tastes in each class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.integration.fixed_taste_draws import FixedTasteDraws, supports_fixed_draws
from mxlogit.integration.mixture_likelihood import MixtureLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.classes import ClassPopulation, ClassSpace
from mxlogit.model.panels import Panels

# Draws per person and class, and the random stream of their base points.
_DRAWS, _STREAM = 128, 50


@dataclass(frozen=True)
class FixedMixtureDraws:
    """Fixed draws around one value of the parameters, for values nearby.

    Attributes
    ----------
    likelihood : MixtureLikelihood
        The likelihood that draws anew at every value.
    classes : list of FixedTasteDraws
        Fixed draws in each class; empty where they do not fit in memory, and the likelihood is used itself.
    """

    likelihood: MixtureLikelihood
    classes: list[FixedTasteDraws]

    @classmethod
    def around(cls, likelihood: MixtureLikelihood, anchor: ClassPopulation) -> FixedMixtureDraws:
        """Draw tastes around people's modes at one value of the parameters."""
        integration = replace(likelihood.integration, draws=_DRAWS, stream=_STREAM, newton_steps=30)
        if not all(supports_fixed_draws(marginal, _DRAWS) for marginal in likelihood.classes):
            return cls(likelihood, [])
        pairs = enumerate(likelihood.classes)
        return cls(likelihood, [FixedTasteDraws(marginal, anchor.component(c), integration) for c, marginal in pairs])

    @property
    def space(self) -> ClassSpace:
        """Layout of the parameters."""
        return self.likelihood.space

    @property
    def panel(self) -> Panels:
        """People and their choices."""
        return self.likelihood.panel

    @property
    def weights(self) -> Tensor:
        """Weights (n,) of the people."""
        return self.likelihood.weights

    def other_draws(self) -> IntegrationSettings:
        """Settings of draws by which these are checked."""
        return replace(self.likelihood.integration, draws=_DRAWS, stream=_STREAM + 9, newton_steps=10)

    @property
    def cost(self) -> float:
        """Cost of a person in one class at one value, in rows of exact likelihoods."""
        if self.classes:
            return float(_DRAWS)
        return 4.0 * self.likelihood.integration.draws * max(1, self.panel.n_rows)

    @torch.no_grad()
    def log_prob_people(self, population: ClassPopulation) -> Tensor:
        """Log probabilities (s, n) of people's choices, memberships summed out."""
        if not self.classes:
            return self.likelihood.log_prob_people(population)
        plain = self.likelihood.plain
        parts = [
            fixed.log_prob_people(plain.unconstrain(population.component(c))) for c, fixed in enumerate(self.classes)
        ]
        return (torch.stack(parts, -1) + population.log_shares(self.panel.covariates)).logsumexp(-1)
