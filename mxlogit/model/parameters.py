r"""Population parameters and their coordinate systems: blocks, unconstrained vector, reported vector, relative moves.

Conversions between the three coordinate systems are all in this module.

- `PopulationParameters`: :math:`\alpha` (fixed), :math:`\zeta` (locations), :math:`L` (Cholesky factor of
  :math:`\Omega`), used by the likelihood.
- the unconstrained vector :math:`\psi = (\alpha, \zeta, \log\tau, y)`, y the unconstrained partial
  correlations of each block, used by Gaussian posteriors.
- the reported vector (fixed, locations, sds, correlations), used in results.

Newton steps are *relative* moves :math:`\zeta \leftarrow \zeta + L u,\; L \leftarrow L e^A`, which makes them
independent of the units of the attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions.transforms import CorrCholeskyTransform

from mxlogit.model.products import add_products


@dataclass(frozen=True)
class PopulationParameters:
    """Population parameters in the form used by the likelihood (float64).

    Attributes
    ----------
    fixed : Tensor, shape (*s, f)
        Fixed coefficients alpha.
    location : Tensor, shape (*s, k)
        Means zeta of the latent normals.
    scale_tril : Tensor, shape (*s, k, k)
        Cholesky factor L of the covariance Omega = L L' of the latent normals; its diagonal is positive.
    """

    fixed: Tensor
    location: Tensor
    scale_tril: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviations tau of the latent normals, shape (*s, k)."""
        return self.scale_tril.square().sum(-1).sqrt()

    def map(self, function: Callable[[Tensor], Tensor]) -> PopulationParameters:
        """Apply a function to each of the parameters, such as one that takes some samples."""
        return PopulationParameters(function(self.fixed), function(self.location), function(self.scale_tril))

    def latent(self, whitened: Tensor) -> Tensor:
        """Latent tastes (n, k, r) at whitened tastes (n, k, r), under one population value or one per person."""
        return add_products(self.location[..., None], self.scale_tril.expand(len(whitened), -1, -1), whitened)

    def to(self, like: Tensor) -> PopulationParameters:
        """Return the parameters in the dtype and on the device of ``like``."""
        return PopulationParameters(self.fixed.to(like), self.location.to(like), self.scale_tril.to(like))

    def frozen(self) -> PopulationParameters:
        """Return the parameters detached from the autograd graph."""
        return PopulationParameters(self.fixed.detach(), self.location.detach(), self.scale_tril.detach())


@dataclass(frozen=True)
class ParameterSpace:
    """Layout of the population parameters of one specification.

    Attributes
    ----------
    fixed, random : tuple of str
        Labels of the fixed (f) and random (k) coefficients.
    blocks : tuple of tuple of int
        Partition of range(k): random coefficients of the same block are correlated.
    held : tuple of (int, float)
        Positions, among fixed coefficients and locations (f + k), of those that are not estimated, and their values.
        Locations of a block are held together: relative moves of one would move the others.
    """

    fixed: tuple[str, ...]
    random: tuple[str, ...]
    blocks: tuple[tuple[int, ...], ...]
    held: tuple[tuple[int, float], ...] = ()

    @property
    def n_fixed(self) -> int:
        """Number f of fixed coefficients."""
        return len(self.fixed)

    @property
    def n_random(self) -> int:
        """Number k of random coefficients."""
        return len(self.random)

    @property
    def correlated_blocks(self) -> tuple[tuple[int, ...], ...]:
        """Blocks of at least two coefficients."""
        return tuple(block for block in self.blocks if len(block) > 1)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Correlated pairs (a, b), a < b, in row order of the lower triangle of each block."""
        return [(block[j], block[i]) for block in self.blocks for i in range(len(block)) for j in range(i)]

    @property
    def size(self) -> int:
        """Length D of the unconstrained and of the reported vector."""
        return self.n_means + self.n_random + len(self.pairs)

    @property
    def n_means(self) -> int:
        """Number of fixed coefficients and locations that are estimated: the first coordinates of every system."""
        return self.n_fixed + self.n_random - len(self.held)

    @property
    def n_free(self) -> int:
        """Number of fixed coefficients that are estimated."""
        return sum(position < self.n_fixed for position in self.means)

    @property
    def whole(self) -> ParameterSpace:
        """The space in which nothing is held."""
        return replace(self, held=()) if self.held else self

    @property
    def means(self) -> list[int]:
        """Positions of those among all fixed coefficients and locations (f + k)."""
        held = {position for position, _ in self.held}
        return [i for i in range(self.n_fixed + self.n_random) if i not in held]

    @property
    def scales(self) -> slice:
        """Coordinates of the standard deviations in the unconstrained and the reported vector."""
        return slice(self.n_means, self.n_means + self.n_random)

    @property
    def labels(self) -> list[str]:
        """Labels of the reported vector: columns, ``sd.`` and ``cor.a:b``."""
        names = [*self.fixed, *self.random]
        deviations = [f"sd.{name}" for name in self.random]
        correlations = [f"cor.{self.random[a]}:{self.random[b]}" for a, b in self.pairs]
        return [*(names[i] for i in self.means), *deviations, *correlations]

    def drop_held(self, values: Tensor, *axes: int) -> Tensor:
        """Return values without what is held.

        ``axes``, by default the last one, begin with all fixed coefficients and locations.
        """
        if not self.held:
            return values
        for axis in axes or (-1,):
            size = values.shape[axis]
            kept = [*self.means, *range(self.n_fixed + self.n_random, size)]
            values = values.index_select(axis, torch.tensor(kept, dtype=torch.int64, device=values.device))
        return values

    def insert_held(self, means: Tensor, *, moves: bool = False) -> tuple[Tensor, Tensor]:
        """Fixed coefficients (*s, f) and locations (*s, k) from those that are estimated, or moves of them."""
        if self.held:
            full = means.new_zeros(*means.shape[:-1], self.n_fixed + self.n_random)
            full[..., self.means] = means
            for position, value in () if moves else self.held:
                full[..., position] = value
            means = full
        fixed, location = means.split([self.n_fixed, self.n_random], -1)
        return fixed, location

    @property
    def triangle(self) -> tuple[list[int], list[int]]:
        """Rows and columns of the free entries of L: the lower triangle inside the blocks."""
        cells = [(max(a, b), min(a, b)) for block in self.blocks for i, a in enumerate(block) for b in block[: i + 1]]
        cells.sort()
        return [row for row, _ in cells], [column for _, column in cells]

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split a vector (*s, D) into its four parts (fixed, location, scale, correlation)."""
        means, scale, correlation = vector.split([self.n_means, self.n_random, len(self.pairs)], dim=-1)
        return *self.insert_held(means), scale, correlation

    # -- unconstrained vector -------------------------------------------------------------------

    def correlation_tril(self, partial: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Cholesky factors of the correlation matrices of the correlated blocks, and their log-Jacobians.

        Parameters
        ----------
        partial : Tensor, shape (*s, number of pairs)
            Unconstrained partial correlations, block after block.

        Returns
        -------
        tuple of (list of Tensor (*s, b, b), list of Tensor (*s,))
            Factors, and log |d factor / d partial| in the coordinates of torch's LKJCholesky density.
        """
        factors = self.correlation_factors(partial)
        transform = CorrCholeskyTransform(cache_size=0)
        parts = self._partials_of_blocks(partial)
        return factors, [transform.log_abs_det_jacobian(*pair) for pair in zip(parts, factors, strict=True)]

    def correlation_factors(self, partial: Tensor) -> list[Tensor]:
        """Compute the Cholesky factors alone, as `correlation_tril` says."""
        transform = CorrCholeskyTransform(cache_size=0)
        return [transform(part) for part in self._partials_of_blocks(partial)]

    def _partials_of_blocks(self, partial: Tensor) -> list[Tensor]:
        """The partial correlations (*s, b (b - 1) / 2) of each correlated block."""
        sizes = [len(block) * (len(block) - 1) // 2 for block in self.correlated_blocks]
        return list(partial.split(sizes, dim=-1)) if sizes else []

    def assemble(self, fixed: Tensor, location: Tensor, scale: Tensor, factors: list[Tensor]) -> PopulationParameters:
        """Build a population from its parts, with L = diag(scale) times the factors of the blocks."""
        tril = torch.diag_embed(torch.ones_like(scale))
        for block, factor in zip(self.correlated_blocks, factors, strict=True):
            index = torch.tensor(block, device=scale.device)
            tril = tril.index_put(
                (*_leading_index(scale.shape[:-1], scale.device), index[:, None], index[None, :]), factor
            )
        return PopulationParameters(fixed, location, scale[..., None] * tril)

    def constrain(self, vector: Tensor) -> PopulationParameters:
        """Convert unconstrained vectors (*s, D) to population parameters."""
        fixed, location, log_scale, partial = self.split(vector)
        factors = self.correlation_factors(partial)
        return self.assemble(fixed, location, log_scale.exp(), factors)

    def constrain_each(self, vectors: Tensor) -> list[PopulationParameters]:
        """Convert unconstrained vectors (n, D) to n population values: in a tenth of the time of one by one."""
        whole = self.constrain(vectors)
        return [
            PopulationParameters(*parts) for parts in zip(whole.fixed, whole.location, whole.scale_tril, strict=True)
        ]

    def unconstrain(self, population: PopulationParameters) -> Tensor:
        """Convert population parameters to unconstrained vectors (*s, D)."""
        scale = population.scale
        correlation = population.scale_tril / scale[..., None]
        parts = [population.fixed, population.location, scale.log()]
        for block in self.correlated_blocks:
            index = torch.tensor(block, device=scale.device)
            factor = correlation[..., index[:, None], index[None, :]]
            parts.append(CorrCholeskyTransform(cache_size=0).inv(factor))
        return self.drop_held(torch.cat(parts, dim=-1))

    def report(self, population: PopulationParameters) -> Tensor:
        """Convert population parameters to reported vectors (*s, D): fixed, locations, sds, correlations."""
        covariance = population.scale_tril @ population.scale_tril.mT
        scale = population.scale
        parts = [population.fixed, population.location, scale]
        if self.pairs:
            a, b = torch.tensor(self.pairs, device=scale.device).T
            parts.append(covariance[..., a, b] / (scale[..., a] * scale[..., b]))
        return self.drop_held(torch.cat(parts, dim=-1))

    def from_report(self, vector: Tensor) -> PopulationParameters:
        """Convert reported vectors (*s, D) to population parameters.

        Raises
        ------
        torch.linalg.LinAlgError
            If the correlation matrix is not positive definite.
        """
        fixed, location, scale, correlation = self.split(vector)
        matrix = torch.diag_embed(torch.ones_like(scale))
        for column, (a, b) in enumerate(self.pairs):
            matrix[..., a, b] = matrix[..., b, a] = correlation[..., column]
        tril = torch.linalg.cholesky(matrix)
        return PopulationParameters(fixed, location, scale[..., None] * tril)

    # -- relative moves -------------------------------------------------------------------------

    def move(self, population: PopulationParameters, step: Tensor) -> PopulationParameters:
        """Apply a relative step (a, u, A): alpha + a, zeta + L u, L exp(A).

        Parameters
        ----------
        population : PopulationParameters
            Population parameters without leading dimensions.
        step : Tensor, shape (*s, D)
            Steps a (f), u (k) and the free entries of A in the order of `triangle`.
        """
        tril = population.scale_tril
        fixed, location = self.insert_held(step[..., : self.n_means], moves=True)
        return PopulationParameters(
            population.fixed + fixed,
            population.location + location @ tril.mT,
            tril @ torch.matrix_exp(self.triangle_matrix(step[..., self.n_means :])),
        )

    def triangle_matrix(self, entries: Tensor) -> Tensor:
        """Build lower-triangular matrices (*s, k, k) from their free entries (*s, cells)."""
        rows, columns = self.triangle
        matrix = entries.new_zeros(*entries.shape[:-1], self.n_random, self.n_random)
        matrix[..., rows, columns] = entries
        return matrix

    def relative_jacobian(self, population: PopulationParameters) -> Tensor:
        """Jacobian (D, D) of the unconstrained vector with respect to a relative step, at zero, in closed form.

        It uses dL = L A and the stick-breaking form of the partial correlations of a row.
        """
        f, k, tril, scale = self.n_fixed, self.n_random, population.scale_tril, population.scale
        size = f + 2 * k + len(self.pairs)
        jacobian = torch.zeros(size, size, dtype=tril.dtype, device=tril.device)
        jacobian[:f, :f] = torch.eye(f, dtype=tril.dtype, device=tril.device)
        jacobian[f : f + k, f : f + k] = tril
        rows, columns = self.triangle
        # d_tril[a] is L times the a-th unit matrix of A: column ``columns[a]`` becomes column rows[a] of L.
        d_tril = tril.new_zeros(len(rows), k, k)
        d_tril[torch.arange(len(rows)), :, columns] = tril[:, rows].T
        d_log_scale = (tril * d_tril).sum(-1) / scale.square()
        jacobian[f + k : f + 2 * k, f + k :] = d_log_scale.T
        factor = tril / scale[:, None]
        d_factor = d_tril / scale[:, None] - factor * d_log_scale[..., None]
        jacobian[f + 2 * k :, f + k :] = self._partial_differential(factor, d_factor).T
        return self.drop_held(jacobian, 0, 1)

    def _partial_differential(self, factor: Tensor, d_factor: Tensor) -> Tensor:
        """Differentials (a, pairs) of the unconstrained partial correlations, given (a, k, k) of the factor."""
        parts = [d_factor.new_zeros(len(d_factor), 0)]
        for block in self.correlated_blocks:
            index = torch.tensor(block, device=factor.device)
            part, d_part = factor[index][:, index], d_factor[:, index][:, :, index]
            left = 1.0 - part.square().cumsum(-1) + part.square()
            d_left = -2.0 * ((part * d_part).cumsum(-1) - part * d_part)
            partial = part / left.sqrt()
            d_partial = d_part / left.sqrt() - 0.5 * part * d_left / left.pow(1.5)
            rows, columns = torch.tril_indices(len(block), len(block), -1)
            differential = d_partial[:, rows, columns] / (1.0 - partial[rows, columns].square())
            parts.append(differential)
        return torch.cat(parts, -1)


def _leading_index(shape: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """Index grid over all leading axes, for index_put on the trailing axes."""
    grids = []
    for axis, size in enumerate(shape):
        view = [1] * (len(shape) + 2)
        view[axis] = size
        grids.append(torch.arange(size, device=device).view(view))
    return tuple(grids)
