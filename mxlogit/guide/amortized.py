"""The guide as a Pyro program: q(theta) Gaussian, q(xi | theta) from encoder, Newton steps and flow, each optional."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from mxlogit.draws.importance import log_standard_normal
from mxlogit.guide.encoder import PublishedEncoder, observed
from mxlogit.guide.flows import LocalFlow
from mxlogit.guide.population import GaussianFactor
from mxlogit.guide.subsampling import SBP, Masks
from mxlogit.integration.laplace import LocalFactor, polish
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import by_pieces, panel_log_prob
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters

PLATE = "decision_makers"


class AmortizedGuide(nn.Module):
    """Variational family of the classic route.

    Parameters
    ----------
    model : MixedLogitModel
    start : GaussianFactor
        Initial value of q(theta).
    encoder : nn.Module or None
        Network from (population, panel) to a `LocalFactor`; None: Newton steps start at xi = 0.
    newton_steps : int
        Number of Newton steps after the encoder. No gradients pass through them; the encoder is then trained on its
        own bound, `encoder_bound`.
    flow : LocalFlow, optional
        Flow applied after the Newton steps.
    family : {"gaussian", "diagonal", "blocks"}
        Covariance of q(theta): full; diagonal; or full within fixed coefficients and within locations, zero elsewhere,
        as in the published code.
    """

    base_mean: Tensor
    base_tril: Tensor
    free: Tensor

    def __init__(
        self,
        model: MixedLogitModel,
        start: GaussianFactor,
        encoder: nn.Module | None,
        newton_steps: int = 0,
        flow: LocalFlow | None = None,
        family: str = "gaussian",
    ) -> None:
        super().__init__()
        self.model, self.newton_steps, self.encoder, self.flow, self.family = model, newton_steps, encoder, flow, family
        self.sbp: SBP | None = None
        self.mask_key: tuple[int, ...] = (0, 0)
        self.first_person = 0
        if family != "gaussian":
            start = GaussianFactor(start.mean, torch.diag((start.tril @ start.tril.T).diagonal().sqrt()))
        # Coordinates whitened by the initial factor, so that one learning rate suits all parameters.
        self.register_buffer("base_mean", start.mean)
        self.register_buffer("base_tril", start.tril)
        size = len(start.mean)
        self.shift = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.log_diagonal = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        below = 0 if family == "diagonal" else size
        self.below = nn.Parameter(torch.zeros(below, below, dtype=torch.float64))
        self.register_buffer("free", _free_cells(model, family)[:below, :below], persistent=False)

    def population_factor(self) -> GaussianFactor:
        """Return the current q(theta)."""
        tril = torch.diag(self.log_diagonal.exp())
        if self.family != "diagonal":
            tril = tril + self.below * self.free
        return GaussianFactor(self.base_mean + self.base_tril @ self.shift, self.base_tril @ tril)

    def local_factor(
        self, population: PopulationParameters, panel: Panels, people: Tensor | None = None
    ) -> LocalFactor:
        """q(xi_n | theta) for the people of a panel; ``people`` (n,) are their global indices, see `encode`."""
        if self.encoder is None or self.newton_steps:
            factor = self.polished(population, panel)
        else:
            factor = self.encode(population, panel, people)
        return self.flowed(factor, population, panel)

    @torch.no_grad()
    def polished(self, population: PopulationParameters, panel: Panels) -> LocalFactor:
        """Laplace factors before the flow, by Newton steps from the encoder's means or from zero; detached."""
        start = panel.values.new_zeros(len(panel), self.model.space.n_random)
        if self.encoder is not None:
            start = self.encode(population, panel, None).mean
        # Detached as well, because forward-mode derivatives ignore no_grad.
        return polish(start, population, panel, self.model.mixing, self.newton_steps).frozen()

    def flowed(self, factor: LocalFactor, population: PopulationParameters, panel: Panels) -> LocalFactor:
        """Factors with the flow, if there is one."""
        if self.flow is None:
            return factor
        return replace(factor, warp=self.flow.attach(factor, population, panel, self.model.mixing))

    def encode(self, population: PopulationParameters, panel: Panels, people: Tensor | None) -> LocalFactor:
        """Factors of the encoder; in training, given ``people``, backpropagated through a subset of situations."""

        def parts(place: slice | Tensor, piece: PanelDifferences) -> tuple[Tensor, ...]:
            factor = self._encode(population, piece, None if people is None else people[place])
            return factor.mean, factor.root, factor.precision_tril, factor.log_det

        if isinstance(getattr(self.encoder, "module", self.encoder), PublishedEncoder):
            # The published network normalises over all situations of the batch, padding included.
            return self._encode(population, panel.dense(), people)
        return LocalFactor.of(by_pieces(panel, parts))

    def _encode(self, population: PopulationParameters, panel: PanelDifferences, people: Tensor | None) -> LocalFactor:
        assert self.encoder is not None
        if self.sbp is None or people is None or not (self.training and torch.is_grad_enabled()):
            factor: LocalFactor = self.encoder(population, panel)
            return factor
        network: Any = getattr(self.encoder, "module", self.encoder)
        places = people + self.first_person
        shape = network.shape
        masks = Masks.draw(self.sbp, observed(panel), self.mask_key, places, shape.blocks, shape.heads)
        masked: LocalFactor = self.encoder(population, panel, masks)
        return masked

    def encoder_bound(self, population: PopulationParameters, panel: Panels, people: Tensor | None = None) -> Tensor:
        """One-draw evidence lower bound of the encoder's factors before Newton steps, summed over the panel."""
        factor = self.encode(population, panel, people)
        noise = torch.randn_like(factor.mean)
        xi = factor.mean + (factor.root @ noise[..., None])[..., 0]
        k = self.model.space.n_random
        log_prob = panel_log_prob(self.model.coefficients(population, xi, panel), panel)
        log_ratio = log_standard_normal(xi.square().sum(-1), k) - log_standard_normal(noise.square().sum(-1), k)
        return ((log_prob + log_ratio + factor.log_det) * panel.weights).sum()

    def forward(self, panel: Panels, people: Tensor | None = None) -> None:
        """Run the guide: the Pyro counterpart of `mxlogit.model.pyro_program.mixed_logit`."""
        population = self._sample_population().to(panel.values)
        index = torch.arange(len(panel), device=panel.values.device) if people is None else people
        part = panel if people is None else panel.take(people)
        with (
            pyro.plate(PLATE, len(panel), subsample=index, dim=-1),
            pyro.poutine.scale(scale=part.weights),
        ):
            factor = self.local_factor(population, part, index)
            pyro.sample("xi", _local_distribution(factor))

    def _sample_population(self) -> PopulationParameters:
        """Sample the unconstrained vector and set the model's sites to its blocks, with Jacobians."""
        space = self.model.space
        factor = self.population_factor()
        family = dist.MultivariateNormal(factor.mean, scale_tril=factor.tril)
        vector = pyro.sample("vector", family, infer={"is_auxiliary": True})
        fixed, location, log_scale, partial = space.split(vector)
        factors, log_jacobians = space.correlation_tril(partial)
        zero = log_scale.new_zeros(())
        values = {"fixed": (fixed, zero), "location": (location, zero), "scale": (log_scale.exp(), -log_scale.sum())}
        for name, (value, log_density) in values.items():
            # The model has no sites for empty blocks.
            if len(value):
                pyro.sample(name, dist.Delta(value, log_density=log_density, event_dim=1))
        for i, (tril, log_jacobian) in enumerate(zip(factors, log_jacobians, strict=True)):
            pyro.sample(f"correlation_{i}", dist.Delta(tril, log_density=-log_jacobian, event_dim=2))
        return space.assemble(fixed, location, log_scale.exp(), factors)


def _free_cells(model: MixedLogitModel, family: str) -> Tensor:
    """Indicator (D, D) of the free entries below the diagonal of the root of q(theta)."""
    size, fixed = model.space.size, model.space.n_free
    random = model.space.n_means - fixed
    cells = torch.ones(size, size, dtype=torch.float64)
    if family == "blocks":
        cells = torch.zeros_like(cells)
        cells[:fixed, :fixed] = 1.0
        cells[fixed : fixed + random, fixed : fixed + random] = 1.0
    return cells.tril(-1)


def _local_distribution(factor: LocalFactor) -> dist.TorchDistribution:
    if factor.warp is None:
        return dist.MultivariateNormal(factor.mean, scale_tril=_lower_root(factor))
    return FlowDistribution(factor)


def _lower_root(factor: LocalFactor) -> Tensor:
    """Cholesky factor of the covariance R R'."""
    return torch.linalg.cholesky(factor.covariance)


class FlowDistribution(dist.TorchDistribution):  # type: ignore[misc]
    """Distribution of whitened tastes: each person's flow of standard normal base points.

    Parameters
    ----------
    factor : LocalFactor
        Local factors of n people, with a warp.
    """

    has_rsample = True

    def __init__(self, factor: LocalFactor) -> None:
        self.factor = factor
        super().__init__(factor.mean.shape[:1], factor.mean.shape[1:], validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw tastes, shape (*sample_shape, n, k)."""
        n, k = self.factor.mean.shape
        points = torch.randn(n, k, max(1, sample_shape.numel()), dtype=self.factor.mean.dtype).to(self.factor.mean)
        assert self.factor.warp is not None
        images, _ = self.factor.warp.forward(points)
        xi = self.factor.mean[..., None] + self.factor.root @ images
        return xi.permute(2, 0, 1).reshape(*sample_shape, n, k)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, shape (*s, n), at tastes (*s, n, k)."""
        n, k = self.factor.mean.shape
        xi = value.reshape(-1, n, k).permute(1, 2, 0)
        standard = self.factor.precision_tril.mT @ (xi - self.factor.mean[..., None])
        assert self.factor.warp is not None
        points, stretch = self.factor.warp.inverse(standard)
        log_base = log_standard_normal(points.square().sum(1), k)
        return (log_base - stretch - self.factor.log_det[:, None]).T.reshape(value.shape[:-1])
