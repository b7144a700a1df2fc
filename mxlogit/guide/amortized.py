"""The guide as a Pyro program: q(theta) Gaussian, q(xi | theta) from the encoder, optionally polished."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from mxlogit.density import PanelModel
from mxlogit.draws import log_standard_normal
from mxlogit.guide.laplace import LocalFactor, polish
from mxlogit.guide.population import GaussianFactor
from mxlogit.likelihood import panel_log_prob
from mxlogit.panels import PanelDifferences
from mxlogit.parameters import Population

PLATE = "decision_makers"


class AmortizedGuide(nn.Module):
    """Variational family of the classic route.

    Parameters
    ----------
    model : PanelModel
    start : GaussianFactor
        First value of q(theta).
    encoder : nn.Module
        Maps (population, panel) to a `LocalFactor`.
    polish_steps : int
        Newton steps after the encoder. Gradients stop at the polished point, so the encoder then learns from its
        own bound, `encoder_bound`.
    """

    base_mean: Tensor
    base_tril: Tensor

    def __init__(self, model: PanelModel, start: GaussianFactor, encoder: nn.Module, polish_steps: int = 0) -> None:
        super().__init__()
        self.model, self.polish_steps, self.encoder = model, polish_steps, encoder
        # Coordinates whitened by the start: one learning rate then fits all parameters.
        self.register_buffer("base_mean", start.mean)
        self.register_buffer("base_tril", start.tril)
        size = len(start.mean)
        self.shift = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.log_diagonal = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.below = nn.Parameter(torch.zeros(size, size, dtype=torch.float64))

    def population_factor(self) -> GaussianFactor:
        """Return q(theta) as it stands."""
        tril = self.below.tril(-1) + torch.diag(self.log_diagonal.exp())
        return GaussianFactor(self.base_mean + self.base_tril @ self.shift, self.base_tril @ tril)

    def local_factor(self, population: Population, panel: PanelDifferences) -> LocalFactor:
        """q(xi_n | theta) of the people of a panel."""
        factor: LocalFactor = self.encoder(population, panel)
        if not self.polish_steps:
            return factor
        with torch.no_grad():
            return polish(factor.mean, population, panel, self.model.mixing, self.polish_steps)

    def encoder_bound(self, population: Population, panel: PanelDifferences) -> Tensor:
        """One-draw evidence lower bound of the encoder's unpolished factors, summed over the panel."""
        factor: LocalFactor = self.encoder(population, panel)
        noise = torch.randn_like(factor.mean)
        xi = factor.mean + (factor.root @ noise[..., None])[..., 0]
        k = self.model.space.n_random
        log_prob = panel_log_prob(self.model.coefficients(population, xi), panel)
        log_ratio = log_standard_normal(xi.square().sum(-1), k) - log_standard_normal(noise.square().sum(-1), k)
        return ((log_prob + log_ratio + factor.log_det) * panel.weights).sum()

    def forward(self, panel: PanelDifferences, people: Tensor | None = None) -> None:
        """Run the guide: the Pyro counterpart of `mxlogit.model.mixed_logit`."""
        population = self._sample_population().to(panel.values)
        index = torch.arange(len(panel), device=panel.values.device) if people is None else people
        part = panel if people is None else panel.take(people)
        with (
            pyro.plate(PLATE, len(panel), subsample=index, dim=-1),
            pyro.poutine.scale(scale=part.weights),
        ):
            factor = self.local_factor(population, part)
            local = dist.MultivariateNormal(factor.mean, scale_tril=_lower_root(factor))
            pyro.sample("xi", local)

    def _sample_population(self) -> Population:
        """Sample the unconstrained vector and hand its blocks to the model's sites, Jacobians included."""
        space = self.model.space
        factor = self.population_factor()
        family = dist.MultivariateNormal(factor.mean, scale_tril=factor.tril)
        vector = pyro.sample("vector", family, infer={"is_auxiliary": True})
        fixed, location, log_scale, partial = space.split(vector)
        factors, log_jacobians = space.correlation_tril(partial)
        pyro.sample("fixed", dist.Delta(fixed, event_dim=1))
        pyro.sample("location", dist.Delta(location, event_dim=1))
        scale = dist.Delta(log_scale.exp(), log_density=-log_scale.sum(), event_dim=1)
        pyro.sample("scale", scale)
        for i, (tril, log_jacobian) in enumerate(zip(factors, log_jacobians, strict=True)):
            pyro.sample(f"correlation_{i}", dist.Delta(tril, log_density=-log_jacobian, event_dim=2))
        return space.assemble(fixed, location, log_scale.exp(), factors)


def _lower_root(factor: LocalFactor) -> Tensor:
    """Lower-triangular root of the covariance whose upper-triangular root is R."""
    return torch.linalg.cholesky(factor.covariance)
