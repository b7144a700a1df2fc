"""Log density of the mixed logit model of one specification, as plain torch functions shared by all engines.

A `MixedLogitModel` combines the parameter space, the mixing distributions and the priors. It holds no data; its
functions take a panel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mxlogit.model.classes import ClassSpace
from mxlogit.model.likelihood import panel_log_prob
from mxlogit.model.mean_shifters import MeanShifters
from mxlogit.model.mixing import Mixing
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.model.priors import PriorDensity


@dataclass(frozen=True)
class PriorInMoves:
    """Log prior at a population, with gradient (D,) and Hessian (D, D) in relative moves."""

    value: float
    gradient: Tensor
    hessian: Tensor


@dataclass(frozen=True)
class MixedLogitModel:
    """Mixed logit model of one specification, without data.

    Attributes
    ----------
    space : ParameterSpace
        Layout of the population parameters.
    mixing : Mixing
        Mixing distributions.
    prior : PriorDensity
        Priors of the population parameters.
    attribute_scale : Tensor, shape (f + k,)
        Within-situation standard deviation of the attributes: the natural unit of 1 / coefficient.
    shifters : MeanShifters
        Effects of covariates, among the fixed coefficients.
    regularised : tuple of int
        Positions of the effects of hidden units, which their priors make identified.
    """

    space: ParameterSpace
    mixing: Mixing
    prior: PriorDensity
    attribute_scale: Tensor
    shifters: MeanShifters = field(default_factory=MeanShifters)
    regularised: tuple[int, ...] = ()

    @property
    def has_classes(self) -> bool:
        """Whether the population consists of classes."""
        return isinstance(self.space, ClassSpace)

    @property
    def varying(self) -> list[int]:
        """Positions, among all f + k parameters, of those that differ between people: shifted or random ones."""
        f = self.space.n_fixed
        return [*sorted({taste for taste in self.shifters.tastes if taste < f}), *range(f, f + self.space.n_random)]

    def coefficients(self, population: PopulationParameters, xi: Tensor, panel: Panels | None = None) -> Tensor:
        """Compute the coefficients of each person (n, f + k) from whitened tastes (n, k).

        Their ``panel`` is needed if covariates shift latent normals.
        """
        tastes = PersonTastes.of(population, self.mixing, panel).values_of_each(xi).taste
        return self.mixing.coefficients(population.fixed, tastes)

    def log_prior(self, vector: Tensor) -> Tensor:
        """Log prior density of the unconstrained vector (*s, D), Jacobian included."""
        return self.prior.log_prob(self.space, vector)

    def log_prior_in_moves(self, population: PopulationParameters) -> PriorInMoves:
        """Compute the log prior and its derivatives with respect to a relative move at zero.

        The Hessian omits the curvature of the coordinates, so it is negative semidefinite.
        """
        vector = self.space.unconstrain(population)
        slope, hessian_diagonal = self.prior.derivatives(self.space, vector)
        jacobian = self.space.relative_jacobian(population)
        return PriorInMoves(
            float(self.log_prior(vector)), jacobian.T @ slope, jacobian.T @ (hessian_diagonal[:, None] * jacobian)
        )

    def log_joint(self, vector: Tensor, xi: Tensor, panel: Panels) -> Tensor:
        """Log joint density of parameters, whitened tastes and choices, with weighted people.

        Parameters
        ----------
        vector : Tensor, shape (D,)
            Unconstrained population parameters.
        xi : Tensor, shape (n, k)
            Whitened tastes.
        panel : PanelDifferences or RaggedPanels
            Choices of n people.

        Returns
        -------
        Tensor, scalar
        """
        population = self.space.constrain(vector)
        log_prob = panel_log_prob(self.coefficients(population, xi, panel), panel)
        log_tastes = torch.distributions.Normal(0.0, 1.0).log_prob(xi).sum(-1)
        return self.log_prior(vector) + ((log_prob + log_tastes) * panel.weights).sum()
