r"""Marginal likelihood at many population values at once, on fixed draws of tastes.

Draws :math:`b_s` of a person's latent tastes around its mode at one population value, the anchor, serve for values
nearby: log P(y | b_s) does not depend on location and covariance, so that

.. math:: \log \hat p(y \mid \theta) = \log \tfrac1S \sum_s \frac{P(y \mid \alpha, b_s) N(b_s; \zeta, \Omega)}{q(b_s)}

costs one exponential per draw and population value. In latents whitened at the anchor its exponent is linear in the
draws and their products, so that the exponents of all draws and population values are one matrix product. The same sum
with the Gaussian factor in place of P N, whose expectation is known, is the control variate; on the study design it
removes 99 % of the variance.

Where the fixed coefficients alpha move, draws move by the shift of their person's mode, and log P(y | alpha, b_s) is
expanded along these lines (`mxlogit.integration.expansion`). Under the Gaussian factor the weights of the draws do not
change then (electricity with a fixed price beside five tastes, 256 draws: curvature in the price to 2 per cent; to 8 if
they stay where they are).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.integration.expansion import index_pairs
from mxlogit.integration.following_draws import FollowingDraws
from mxlogit.integration.importance import WeightedDraws
from mxlogit.integration.laplace import LocalFactor
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.proposals import Proposal
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tilts import log_tilted_integral, tilt_coefficients
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters

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
# Largest correction of one person's log probability by its control variate, in nats, where people may not be covered.
_LARGEST_CORRECTION = 1.0
# Largest exponent that is exponentiated without subtracting the maximum first: exp(60) cannot overflow.
_SAFE_EXPONENT = 60.0


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

    def bend(self, moves: Tensor) -> Tensor:
        """Gradients (n, k, b) of the quadratic part of the exponent at ``moves`` (n, k, b) of whitened draws."""
        k = moves.shape[1]
        rows, columns = index_pairs(k)
        matrix = moves.new_zeros(k, k, self.count)
        matrix[rows, columns] = self.tastes[k:]
        return torch.einsum("klb,nlb->nkb", matrix + matrix.transpose(0, 1), moves)


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


@dataclass(frozen=True)
class _Chunk:
    """Fixed draws of a chunk of people.

    Attributes
    ----------
    panel : PanelDifferences
    factor : LocalFactor
    followers : FollowingDraws or None
        None without fixed coefficients.
    tastes : Tensor, shape (n, s, k + pairs)
        Whitened draws and their products.
    target : Tensor, shape (n, s, 1 + f + pairs)
        Log weights at the anchor less ``level``, and derivatives of the log joint density of choices and tastes with
        respect to the fixed coefficients.
    control : Tensor, shape (n, s)
        Log weights if the target were the Gaussian factor.
    level : Tensor, shape (n,)
        Logarithm of the sum of the weights at the anchor.
    """

    panel: PanelDifferences
    factor: LocalFactor
    followers: FollowingDraws | None
    tastes: Tensor
    target: Tensor
    control: Tensor
    level: Tensor

    def weigh(self, c: _Coefficients) -> tuple[_Halves, _Halves]:
        """Weights of the target and of the Gaussian factor at b population values, but for a factor of both."""
        people, one = len(self.level), c.tastes.new_ones(1, c.count)
        shared = self.tastes.flatten(0, 1) @ c.tastes
        if self.followers is not None:
            pull = c.bend(self.followers.shift @ c.fixed)
            shared.view(people, -1, c.count).baddbmm_(self._draws(), pull)
        target = torch.addmm(shared, self.target.flatten(0, 1), torch.cat([one, c.fixed, c.pairs]))
        control = shared.add_(self.control.flatten()[:, None])
        return _Halves.of(target, people), _Halves.of(control, people)

    def _draws(self) -> Tensor:
        """Whitened draws (n, s, k)."""
        return self.tastes[..., : self.factor.mean.shape[1]]

    def expected(self, c: _Coefficients) -> Tensor:
        """Expectations (n, b) of the control sums, in closed form."""
        k = self.factor.mean.shape[1]
        slope: Tensor = c.tastes[:k]
        if self.followers is None:
            return log_tilted_integral(self.factor, slope.expand(len(self.level), -1, -1), c.tastes[k:])
        by_taste = self.followers.by_taste
        return log_tilted_integral(self.factor, slope + by_taste.mT @ c.fixed, c.tastes[k:])

    def pull_of_expected(self, c: _Coefficients) -> tuple[Tensor, Tensor | None]:
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
        if self.followers is not None:
            value = value + self.followers.common(c.fixed, c.pairs)
        apart = target.logs - control.logs
        return value, apart[:, 0] - apart[:, 1]

    def bounded_values(self, c: _Coefficients) -> Tensor:
        """Changes (n, b) as `values`, of people any of whom the draws may not cover: without jackknife.

        Where one draw has all the weight, the jackknife or the control would add tens of nats.
        """
        target, control = self.weigh(c)
        count = math.log(self.tastes.shape[1])
        correction = self.expected(c) - control.logs.logsumexp(1) + count
        value = target.logs.logsumexp(1) - count + correction.clamp(-_LARGEST_CORRECTION, _LARGEST_CORRECTION)
        return value if self.followers is None else value + self.followers.common(c.fixed, c.pairs)

    def pull(self, c: _Coefficients) -> Tensor:
        """Derivatives (F, b) of the weighted sum of log likelihoods with respect to all coefficients."""
        weights = self.panel.weights[:, None, None]
        target, control = ((halves.weights() * weights).flatten(0, 1) for halves in self.weigh(c))
        excess = target - control
        by_tastes, by_fixed = self.pull_of_expected(c)
        by_tastes = by_tastes + self.tastes.flatten(0, 1).T @ excess
        if self.followers is None or by_fixed is None:
            return by_tastes
        of_quadratic, of_shift = self._pull_of_shift(c, excess, self.followers.shift)
        by_tastes[self.factor.mean.shape[1] :] += of_quadratic
        by_all = self.target[..., 1:].flatten(0, 1).T @ target
        by_all[: len(by_fixed)] += by_fixed + of_shift + self.followers.common_slope(c.fixed)
        return torch.cat([by_tastes, by_all])

    def _pull_of_shift(self, c: _Coefficients, excess: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives, by the quadratic (pairs, b) and fixed (f, b) coefficients, of what shifts add to exponents."""
        mean = self._draws().mT @ excess.view(len(self.level), -1, c.count)
        moves = shift @ c.fixed
        rows, columns = index_pairs(mean.shape[1])
        by_quadratic = (mean[:, rows] * moves[:, columns] + mean[:, columns] * moves[:, rows]).sum(0)
        return by_quadratic, (shift.mT @ c.bend(mean)).sum(0)


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
        self._places, self._chunks = [], list[_Chunk]()
        for proposal, drawn in weighed:
            self._places.append(proposal.part)
            self._chunks.append(_keep(proposal, drawn, self._local, self.mixing, self._like.dtype))
        nothing, _ = self._tilts(self.space.unconstrain(anchor)[None])
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

    @torch.no_grad()
    def log_prob_people(self, vectors: Tensor) -> Tensor:
        """Log p(y_n) (b, n) of each person of this process at unconstrained vectors (b, D), without case weights."""
        result = vectors.new_zeros(len(vectors), len(self._people.panels))
        start = 0
        for part in _parts(vectors):
            count = min(len(part), len(vectors) - start)
            coefficients, constant = self._tilts(part)
            local = self._cast(coefficients)
            for place, chunk in zip(self._places, self._chunks, strict=True):
                value = chunk.bounded_values(local).double() + chunk.level.double()[:, None] + constant
                result[start : start + count, place] = value.T[:count]
            start += count
        return result

    def _values(self, vectors: Tensor) -> Tensor:
        coefficients, constant = self._tilts(vectors)
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
            coefficients, constant = self._tilts(inputs)
            with torch.no_grad():
                local = self._cast(coefficients)
                pull = torch.zeros(coefficients.shape, dtype=torch.float64, device=self._people.like.device)
                for chunk in self._chunks:
                    pull += chunk.pull(local).double()
                (pull,) = self._people.team.all_reduce_sum(pull)
            surrogate = (coefficients * pull).sum() + self._people.weight * constant.sum()
            (gradient,) = torch.autograd.grad(surrogate, inputs)
        return gradient

    def _tilts(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return tilt_coefficients(self.anchor, self.space.constrain(vectors))

    def _cast(self, coefficients: Tensor) -> _Coefficients:
        return _Coefficients.split(coefficients.detach().to(self._like), self.space)


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
    return space.n_random > 0 and not mixing.is_direct and linear and marginal.flow is None and fits


def _count_numbers(marginal: MarginalLikelihood, draws: int) -> int:
    """Number of floats of ``draws`` fixed draws per person."""
    k, f = marginal.space.n_random, marginal.space.n_fixed
    return len(marginal.people) * draws * ((k + 1) * (k + 2) // 2 + 1 + f * (f + 3) // 2)


def _keep(
    proposal: Proposal, drawn: WeightedDraws, population: PopulationParameters, mixing: Mixing, dtype: torch.dtype
) -> _Chunk:
    xi, log_ratio, log_control = (x.to(dtype) for x in (drawn.xi, drawn.log_ratio, drawn.log_control))
    factor, panel = proposal.factor.to(dtype), proposal.panel.to(dtype)
    rows, columns = index_pairs(xi.shape[1])
    level = log_ratio.logsumexp(1)
    tastes = torch.cat([xi, xi[:, rows] * xi[:, columns]], 1).mT.contiguous()
    target, followers = (log_ratio - level[:, None])[..., None], None
    if len(population.fixed):
        followers = FollowingDraws(factor, population, panel, mixing)
        target = torch.cat([target, *followers.derivatives(xi)], -1)
    return _Chunk(panel, factor, followers, tastes, target, log_control, level)
