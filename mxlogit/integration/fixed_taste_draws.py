r"""Marginal likelihood at many population values at once, on fixed draws of tastes.

Draws :math:`b_s` of a person's latent tastes around its mode at one population value, the anchor, serve for values
nearby: log P(y | b_s) does not depend on location and covariance, so that

.. math:: \log \hat p(y \mid \theta) = \log \tfrac1S \sum_s \frac{P(y \mid \alpha, b_s) N(b_s; \zeta, \Omega)}{q(b_s)}

costs one exponential per draw and population value. In latents whitened at the anchor its exponent is linear in the
draws and their products, and log P(y | alpha, b_s) is expanded in the fixed coefficients
(`mxlogit.integration.expansion`): the exponents of all draws and population values are one matrix product. The same sum
with the Gaussian factor in place of P N, whose expectation is known, is the control variate; on the study design it
removes 99 % of the variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.integration.expansion import Remainder, fixed_derivatives, index_pairs
from mxlogit.integration.importance import WeightedDraws
from mxlogit.integration.laplace import LocalFactor
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.proposals import Proposal
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.triangles import inverse_of_lower

# Largest number of floats of all fixed draws together: 128 MB in single precision.
_MOST_NUMBERS = 32_000_000
# People x draws of a chunk. A quarter of it, and four times it, were measured to be slower.
_CHUNK_DRAWS = 32_000
# Population values of one matrix product, and a number of which all products have a multiple: with 62 columns, or with
# 2, a column takes three to four times as long (AVX512). Exponents of a chunk take 4 MB.
_VALUES_AT_ONCE = 32
_COLUMNS = 16
# Number of floats of all fixed draws up to which they are in double precision. With few people the posterior reaches
# populations much narrower than the anchor, whose exponents are small differences of large numbers: the log likelihood
# of 100 people erred by 5e-4 nats there. Their fit takes .06 s more.
_FEW_NUMBERS = 500_000
# Largest exponent that is exponentiated without subtracting the maximum first: exp(60) cannot overflow.
_SAFE_EXPONENT = 60.0
# Half-width of the central difference in `_cross`, in sds of a person's factor. At larger distances the slopes of
# lognormal tastes differ from the slopes in the region of the draws.
_SLOPE_DISTANCE = 0.5


@dataclass(frozen=True)
class _Coefficients:
    """Coefficients of the features of a draw in its exponent at b population values, in the dtype of the draws.

    Attributes
    ----------
    tastes : Tensor, shape (k + pairs, b)
        Coefficients of whitened draws and of their products.
    fixed, pairs : Tensor, shapes (f, b) and (pairs, b)
        Changes of the fixed coefficients, and products of two changes, halved for squares.
    """

    tastes: Tensor
    fixed: Tensor
    pairs: Tensor

    @classmethod
    def split(cls, whole: Tensor, space: ParameterSpace) -> _Coefficients:
        """Split all coefficients (F, b) into the three parts."""
        k, f = space.n_random, space.n_fixed
        return cls(*whole.split([k + k * (k + 1) // 2, f, f * (f + 1) // 2]))

    @property
    def count(self) -> int:
        """Number b of population values."""
        return self.tastes.shape[1]


@dataclass(frozen=True)
class _Halves:
    """Exponentials (n, 2, s / 2, b) of the exponents by halves of draws, and logarithms (n, 2, b) of their sums.

    Where an exponent could overflow, the exponentials are relative to the largest of their half.
    """

    odds: Tensor
    logs: Tensor

    @classmethod
    def of(cls, exponents: Tensor, people: int) -> _Halves:
        """Exponentiate exponents (n s, b), which are overwritten."""
        odds = exponents.view(people, 2, -1, exponents.shape[1])
        if float(odds.amax()) < _SAFE_EXPONENT:
            odds = odds.exp_()
            return cls(odds, odds.sum(2).log())
        top = odds.amax(2, keepdim=True)
        odds = odds.sub_(top).exp_()
        return cls(odds, odds.sum(2).log() + top[:, :, 0])

    @property
    def log_sum(self) -> Tensor:
        """Jackknifed logarithms (n, b) of sums over draws, free of the logarithm's bias of order 1 / s."""
        return 2.0 * self.logs.logsumexp(1) - self.logs.mean(1)

    def weights(self) -> Tensor:
        """Derivatives (n, s, b) of `log_sum` with respect to the exponents; ``odds`` is overwritten."""
        share = (self.logs - self.logs.logsumexp(1, keepdim=True)).exp()
        return self.odds.mul_(((2.0 * share - 0.5) / self.odds.sum(2))[:, :, None]).flatten(1, 2)


def log_tilted_integral(factor: LocalFactor, slope: Tensor, quadratic: Tensor) -> Tensor:
    """Log integrals (n, b) of Gaussian factors times exp(slope' xi + quadratic' (products of xi)); nan if infinite.

    The Cholesky factorisation runs entry by entry over all people and population values together, in a sixth of the
    time of a factorisation of one matrix after the other.

    Parameters
    ----------
    factor : LocalFactor
    slope : Tensor, shape (n, k, b)
    quadratic : Tensor, shape (pairs, b)
    """
    precision = factor.precision_tril @ factor.precision_tril.mT
    pull = (precision @ factor.mean[..., None])[..., 0]
    value = -factor.log_det[:, None] - 0.5 * (pull * factor.mean).sum(-1)[:, None]
    pairs = {
        pair: place
        for place, pair in enumerate(zip(*(part.tolist() for part in index_pairs(slope.shape[1])), strict=True))
    }
    cells: dict[tuple[int, int], Tensor] = {}
    solved: list[Tensor] = []
    for j in range(slope.shape[1]):
        pivot = precision[:, j, j, None] - 2.0 * quadratic[pairs[j, j]]
        right = pull[:, j, None] + slope[:, j]
        for m in range(j):
            pivot = pivot - cells[j, m].square()
            right = right - cells[j, m] * solved[m]
        inverse = pivot.rsqrt()
        solved.append(right * inverse)
        value = value + inverse.log() + 0.5 * solved[j].square()
        for i in range(j + 1, slope.shape[1]):
            cell = precision[:, i, j, None] - quadratic[pairs[i, j]]
            for m in range(j):
                cell = cell - cells[i, m] * cells[j, m]
            cells[i, j] = cell * inverse
    return value


@dataclass(frozen=True)
class _Chunk:
    """Fixed draws of a chunk of people.

    Attributes
    ----------
    panel : PanelDifferences
    factor : LocalFactor
    remainder : Remainder or None
        Remainder of the expansion in the fixed coefficients; None without fixed coefficients.
    tastes : Tensor, shape (n, s, k + pairs)
        Whitened draws and their products.
    target : Tensor, shape (n, s, 1 + f + pairs)
        Log weights at the anchor less ``level``, and derivatives of log P with respect to the fixed coefficients.
    control : Tensor, shape (n, s, 1 + f)
        Log weights and first derivatives if the target were the Gaussian factor.
    cross : Tensor, shape (n, f, k)
        Derivatives of log P with respect to a fixed coefficient and a whitened taste.
    level : Tensor, shape (n,)
        Logarithm of the sum of the weights at the anchor.
    """

    panel: PanelDifferences
    factor: LocalFactor
    remainder: Remainder | None
    tastes: Tensor
    target: Tensor
    control: Tensor
    cross: Tensor
    level: Tensor

    def weigh(self, c: _Coefficients) -> tuple[_Halves, _Halves]:
        """Weights of the target and of the Gaussian factor at b population values."""
        one = c.tastes.new_ones(1, c.count)
        shared = self.tastes.flatten(0, 1) @ c.tastes
        target = torch.addmm(shared, self.target.flatten(0, 1), torch.cat([one, c.fixed, c.pairs]))
        control = shared.addmm_(self.control.flatten(0, 1), torch.cat([one, c.fixed]))
        people = len(self.level)
        return _Halves.of(target, people), _Halves.of(control, people)

    def expected(self, c: _Coefficients) -> Tensor:
        """Expectations (n, b) of the control sums, in closed form."""
        k = self.cross.shape[2]
        return log_tilted_integral(self.factor, c.tastes[:k] + self.cross.mT @ c.fixed, c.tastes[k:])

    def pull_of_expected(self, c: _Coefficients) -> tuple[Tensor, Tensor]:
        """Derivatives of the weighted sum of `expected` with respect to ``tastes`` and ``fixed`` coefficients."""
        with torch.enable_grad():
            tastes, fixed = c.tastes.detach().requires_grad_(), c.fixed.detach().requires_grad_()
            total = (self.panel.weights @ self.expected(_Coefficients(tastes, fixed, c.pairs))).sum()
            by_tastes, by_fixed = torch.autograd.grad(total, (tastes, fixed), allow_unused=True)
        return by_tastes, by_fixed

    def values(self, c: _Coefficients) -> tuple[Tensor, Tensor]:
        """Changes (n, b) of log likelihoods less a term common to all people, and differences between halves of draws.

        Changes are from ``level``, which is not added here: rounding would cost what a sum over people needs.
        """
        target, control = self.weigh(c)
        value = target.log_sum - control.log_sum + self.expected(c)
        if self.remainder is not None:
            value = value + self.remainder.at(c.fixed, c.pairs)
        apart = target.logs - control.logs
        return value, apart[:, 0] - apart[:, 1]

    def pull(self, c: _Coefficients) -> Tensor:
        """Derivatives (F, b) of the weighted sum of log likelihoods with respect to all coefficients."""
        weights = self.panel.weights[:, None, None]
        target, control = ((halves.weights() * weights).flatten(0, 1) for halves in self.weigh(c))
        expected, of_fixed = self.pull_of_expected(c)
        by_tastes = self.tastes.flatten(0, 1).T @ (target - control) + expected
        if self.remainder is None:
            return by_tastes
        f = self.cross.shape[1]
        by_fixed = self.target[..., 1:].flatten(0, 1).T @ target
        by_fixed[:f] -= self.control[..., 1:].flatten(0, 1).T @ control
        by_fixed[:f] += of_fixed + self.remainder.slope(c.fixed)
        return torch.cat([by_tastes, by_fixed])


class FixedTasteDraws:
    """Fixed draws of all people's latent tastes around one population value.

    Parameters
    ----------
    marginal : MarginalLikelihood
        Marginal likelihood of all people, with modes close to those at the anchor; `supports_fixed_draws` must hold.
    anchor : PopulationParameters
    integration : IntegrationSettings
        Number of draws and their proposal.
    """

    def __init__(
        self, marginal: MarginalLikelihood, anchor: PopulationParameters, integration: IntegrationSettings
    ) -> None:
        self.space, self.mixing, self.anchor = marginal.space, marginal.mixing, anchor
        few = _count_numbers(marginal, integration.draws) <= _FEW_NUMBERS
        self._like = marginal.people.like.double() if few else marginal.people.like
        self._people, self._local = marginal.people, anchor.to(self._like)
        size = max(1, _CHUNK_DRAWS // integration.draws)
        proposals = marginal.propose(anchor, integration, remember=False, size=size)
        weighed = marginal.weigh(anchor, proposals)
        self._chunks = [
            _keep(proposal, drawn, self._local, self.mixing, self._like.dtype) for proposal, drawn in weighed
        ]
        nothing, _ = self._coefficients(self.space.unconstrain(anchor)[None])
        with torch.no_grad():
            self._apart = [chunk.values(self._cast(nothing))[1] for chunk in self._chunks]

    @torch.no_grad()
    def log_likelihood(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Log likelihoods (b,) at unconstrained vectors (b, D), and variances of their differences to the anchor's.

        The variances are due to the finite number of draws, estimated from the two halves of each person's draws.
        """
        if not len(vectors):
            return vectors.new_zeros(0), vectors.new_zeros(0)
        total = torch.cat([self._values(part) for part in _parts(vectors)], 1)[:, : len(vectors)]
        return total[0], total[1]

    def _values(self, vectors: Tensor) -> Tensor:
        coefficients, constant = self._coefficients(vectors)
        local = self._cast(coefficients)
        total = self._people.like.new_zeros(2, len(vectors), dtype=torch.float64)
        for chunk, apart in zip(self._chunks, self._apart, strict=True):
            weights = chunk.panel.weights.double()
            value, difference = chunk.values(local)
            total[0] += weights @ (value.double() + chunk.level.double()[:, None])
            total[1] += weights.square() @ (0.5 * (difference - apart)).double().square()
        (total,) = self._people.team.all_reduce_sum(total)
        total[0] += self._people.weight * constant
        return total

    def gradients(self, vectors: Tensor) -> Tensor:
        """Gradients (b, D) of the log likelihoods at unconstrained vectors (b, D)."""
        return torch.cat([self._gradients(part) for part in _parts(vectors)])[: len(vectors)]

    def _gradients(self, vectors: Tensor) -> Tensor:
        with torch.enable_grad():
            inputs = vectors.detach().requires_grad_()
            coefficients, constant = self._coefficients(inputs)
            with torch.no_grad():
                local = self._cast(coefficients)
                pull = torch.zeros(coefficients.shape, dtype=torch.float64, device=self._people.like.device)
                for chunk in self._chunks:
                    pull += chunk.pull(local).double()
                (pull,) = self._people.team.all_reduce_sum(pull)
            surrogate = (coefficients * pull).sum() + self._people.weight * constant.sum()
            (gradient,) = torch.autograd.grad(surrogate, inputs)
        return gradient

    def _cast(self, coefficients: Tensor) -> _Coefficients:
        return _Coefficients.split(coefficients.detach().to(self._like), self.space)

    def _coefficients(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (F, b) of the features, and the term (b,) that all people's exponents share."""
        space, anchor = self.space, self.anchor
        population = space.constrain(vectors)
        fixed = population.fixed - anchor.fixed
        rows, columns = index_pairs(space.n_fixed)
        pairs = fixed[:, rows] * fixed[:, columns] * (1.0 - 0.5 * (rows == columns).to(fixed))
        tril = torch.linalg.solve_triangular(anchor.scale_tril, population.scale_tril, upper=False)
        shift = torch.linalg.solve_triangular(
            anchor.scale_tril, (population.location - anchor.location).T, upper=False
        ).T
        identity = torch.eye(space.n_random, dtype=tril.dtype)
        inverse = inverse_of_lower(tril)
        precision = inverse.mT @ inverse
        slope = (precision @ shift[..., None])[..., 0]
        constant = -tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * (slope * shift).sum(-1)
        rows, columns = index_pairs(space.n_random)
        quadratic = (identity - precision)[:, rows, columns] * (1.0 - 0.5 * (rows == columns).to(fixed))
        return torch.cat([slope, quadratic, fixed, pairs], 1).T, constant


def _parts(vectors: Tensor) -> tuple[Tensor, ...]:
    """Unconstrained vectors (b, D) of one matrix product after the other; the last is filled up by repetition."""
    missing = -len(vectors) % _COLUMNS if len(vectors) > 1 else 0
    return torch.cat([vectors, vectors[-1:].expand(missing, -1)]).split(_VALUES_AT_ONCE)


def supports_fixed_draws(marginal: MarginalLikelihood, draws: int) -> bool:
    """Whether fixed draws of tastes apply.

    The mixing map must not depend on the population parameters, utility must be linear in the fixed coefficients, no
    flow may be in use, and the draws must fit in memory.
    """
    space, mixing = marginal.space, marginal.mixing
    linear = mixing.scale_position is None or mixing.scale_position >= space.n_fixed
    fits = _count_numbers(marginal, draws) <= _MOST_NUMBERS
    return space.n_random > 0 and not mixing.direct and linear and marginal.flow is None and fits


def _count_numbers(marginal: MarginalLikelihood, draws: int) -> int:
    """Number of floats of ``draws`` fixed draws per person."""
    k, f = marginal.space.n_random, marginal.space.n_fixed
    return len(marginal.people) * draws * ((k + 1) * (k + 2) // 2 + 1 + f * (f + 3) // 2)


def _tastes(xi: Tensor, population: PopulationParameters, mixing: Mixing) -> Tensor:
    """Tastes (n, k, s) at whitened tastes."""
    latent = population.latent(xi)
    return mixing.tastes(latent.mT, population.location, population.scale).mT


def _keep(
    proposal: Proposal, drawn: WeightedDraws, population: PopulationParameters, mixing: Mixing, dtype: torch.dtype
) -> _Chunk:
    xi, log_ratio, log_control = (x.to(dtype) for x in (drawn.xi, drawn.log_ratio, drawn.log_control))
    factor, panel = proposal.factor.to(dtype), proposal.panel.to(dtype)
    n, k, _ = xi.shape
    f = len(population.fixed)
    rows, columns = index_pairs(k)
    level = log_ratio.logsumexp(1)
    tastes = torch.cat([xi, xi[:, rows] * xi[:, columns]], 1).mT.contiguous()
    target, control = (log_ratio - level[:, None])[..., None], log_control[..., None]
    cross, remainder = xi.new_zeros(n, 0, k), None
    if f:
        of_fixed = fixed_derivatives(_tastes(xi, population, mixing), population, panel, mixing)
        cross = _cross(factor, population, panel, mixing)
        target = torch.cat([target, of_fixed.first.mT, of_fixed.second.mT], -1)
        control = torch.cat([control, (cross @ xi).mT], -1)
        remainder = Remainder(_tastes(factor.mean[..., None], population, mixing)[..., 0], population, panel, mixing)
    return _Chunk(panel, factor, remainder, tastes, target, control, cross, level)


def _cross(factor: LocalFactor, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing) -> Tensor:
    """Mixed derivatives (n, f, k) of log P with respect to fixed coefficients and whitened tastes.

    Central differences near the mode, not a regression on the draws: control variates whose slopes are fitted to the
    same draws leave a bias of order 1 / s, on Train's data (235 people, 64 draws) a third of a nat at one posterior sd
    of the fixed coefficient.
    """
    reach = _SLOPE_DISTANCE * factor.root
    points = factor.mean[..., None] + torch.cat([reach, -reach], -1)
    first = fixed_derivatives(_tastes(points, population, mixing), population, panel, mixing).first
    above, below = first.chunk(2, -1)
    return (above - below) @ factor.precision_tril.mT / (2.0 * _SLOPE_DISTANCE)
