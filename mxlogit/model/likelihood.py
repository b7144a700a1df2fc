r"""Likelihood kernel: the only module where utilities become choice probabilities.

The kernel works on differences to the chosen alternative: with :math:`d_{tj} = x_{tj} - x_{t,chosen}`,

.. math:: \log P(y_n | \beta) = -\sum_t \log\bigl(1 + \sum_{j \ne chosen} e^{d_{tj}'\beta}\bigr),

so a situation has J - 1 rows and the index of the chosen alternative is not needed. Unavailable and padded
alternatives have utility minus infinity; a padded situation then contributes exactly zero.

This module handles tensors only: no frames, no population, no draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mxlogit.choices.chunks import cells_at_once
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.panels import Panels

# Utility difference up to which exp() cannot overflow in float32, so that the log-sum-exp shift is not needed.
_SAFE_EXPONENT = 60.0
# Number of alternatives up to which adding them one by one is faster than a reduction over the middle axis (measured:
# 0.26 ms instead of 0.84 for 3,125 people, 10 situations, 4 alternatives, 16 draws).
_FEW_ALTERNATIVES = 8
# Length of the last axis (draws) up to which the same holds, and number of alternatives or situations up to which it
# holds whatever that length (500 people, 256 draws: one, 86 microseconds beside the logarithm's 55; three, 81 not 183).
_SHORT_ROW, _FEW = 32, 3
# Number of situations whose odds are multiplied before one logarithm is taken: a logarithm costs as much as ten
# products.
_LARGEST_PRODUCT = 8


class Scratch:
    """Reusable buffer for the largest tensor of a chunk.

    Newly allocated memory is slow, since the system clears every page first (measured: a product of eight columns with
    16 draws takes 9 ms in a buffer and 50 ms in new memory).
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor, valid until the next call."""
        size, old = math.prod(shape), self._buffer
        if old is None or len(old) < size or old.dtype != like.dtype or old.device != like.device:
            self._buffer = old = like.new_empty(size)
        return old[:size].view(shape)


@dataclass(frozen=True)
class Odds:
    """Odds relative to the chosen alternative: probability of j = odds[..., j, :] / total.

    Attributes
    ----------
    odds : list of Tensor, shape (n, t, J - 1, s)
        Odds of the other alternatives, one tensor per section of the panels.
    total : list of Tensor, shape (n, t, s)
        Sums of the odds of all alternatives, the chosen one included, one tensor per section.
    log_prob : Tensor, shape (n, s)
        Sum over situations of the log probability of the choice.
    chances : list of Tensor or None, shape (n, t / q, q, s)
        Probabilities of the choice at the nodes of each situation (`mxlogit.model.situation_nodes`), times their
        weights, up to a factor of the situation, if tastes vary between situations.
    """

    odds: list[Tensor]
    total: list[Tensor]
    log_prob: Tensor
    chances: list[Tensor] | None = None

    @cached_property
    def shares(self) -> list[Tensor] | None:
        """Shares of the nodes of each situation given the choice, (n, t, s), by which probabilities are weighted."""
        if self.chances is None:
            return None
        parts = [chance / chance.sum(2, keepdim=True) for chance in self.chances]
        # Never zero, since totals are divided by them.
        return [part.flatten(1, 2).clamp(min=torch.finfo(part.dtype).tiny ** 0.5) for part in parts]

    def probabilities(self) -> Tensor:
        """Probabilities of the other alternatives, shape (n, r, s); may overwrite the odds."""
        parts = [_share(odds, total[:, :, None]) for odds, total in zip(self.odds, self._divisors(), strict=True)]
        return join_rows(parts)

    def _divisors(self) -> list[Tensor]:
        """Totals over shares of nodes, (n, t, s)."""
        if self.shares is None:
            return self.total
        return [total / share for total, share in zip(self.total, self.shares, strict=True)]

    def weigh_probabilities(self, weights: Tensor) -> Tensor:
        """Sums over draws of probabilities times weights (n, s, c), shape (n, r, c)."""
        parts = []
        for odds, total in zip(self.odds, self._divisors(), strict=True):
            n, t, others, s = odds.shape
            scaled = weights[:, None] / total[..., None]
            parts.append(torch.bmm(odds.reshape(n * t, others, s), scaled.view(n * t, s, -1)).view(n, t, others, -1))
        return join_rows(parts)


def _share(odds: Tensor, total: Tensor) -> Tensor:
    return odds / total if odds.requires_grad else odds.div_(total)


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate sections (n, t, J - 1, ...) to rows (n, r, ...)."""
    return parts[0].flatten(1, 2) if len(parts) == 1 else torch.cat([part.flatten(1, 2) for part in parts], 1)


def sum_alternatives(values: Tensor) -> Tensor:
    """Sum values (n, t, J - 1, s) over alternatives; a view of them where there is one."""
    return _sum_over(values, 2)


def _sum_over(values: Tensor, axis: int) -> Tensor:
    """Sum values (..., s) over an axis before the last one."""
    length = values.shape[axis]
    if length == 1:
        return values.select(axis, 0)
    shortest = _FEW if values.shape[-1] > _SHORT_ROW else _FEW_ALTERNATIVES
    if values.requires_grad or not 2 <= length <= shortest:
        return values.sum(axis)
    first, second, *others = values.unbind(axis)
    total = first + second
    for other in others:
        total += other
    return total


def _sum_logs(values: Tensor, bound: float) -> Tensor:
    """Sum over situations of the logs of values (n, t, s) in [1, exp(bound)], by products that cannot overflow."""
    room = int(math.log(torch.finfo(values.dtype).max) / (bound + 0.1))
    group = max(1, min(values.shape[1], room, _LARGEST_PRODUCT))
    whole = values.shape[1] // group * group
    product = values[:, :whole:group]
    for place in range(1, group):
        product = product * values[:, place:whole:group]
    result = _sum_over(product.log(), 1)
    return result if whole == values.shape[1] else result + _sum_over(values[:, whole:].log(), 1)


def compute_odds(utility: Tensor, panel: PanelDifferences) -> Odds:
    """Compute odds from utility differences (n, r, s), which are overwritten.

    If a difference could overflow, odds and total of each situation are divided by its largest odds, and with two
    alternatives odds are bounded; log probabilities and probabilities are exact.
    """
    if panel.unavailable is not None:
        utility = utility.masked_fill_(panel.unavailable[..., None], -math.inf)
    largest = float(utility.detach().amax()) if utility.numel() else 0.0
    parts = panel.by_section(utility)
    if panel.log_nodes is not None:
        own = [part.clone() if part.requires_grad and len(parts) > 1 else part for part in parts]
        return _odds_over_nodes(own, panel.log_nodes, largest)
    if len(parts) == 1:
        odds, total, log_prob = _section_odds(parts[0], largest)
        return Odds([odds], [total], log_prob)
    # Views of one tensor that are overwritten in turn would invalidate each other's gradients.
    found = [_section_odds(part.clone() if part.requires_grad else part, largest) for part in parts]
    log_probs = torch.stack([log_prob for _, _, log_prob in found])
    return Odds([odds for odds, _, _ in found], [total for _, total, _ in found], log_probs.sum(0))


def _odds_over_nodes(parts: list[Tensor], log_nodes: Tensor, largest: float) -> Odds:
    """Odds where each situation has nodes, one after the other, over which its probability is averaged."""
    found = [_section_odds_over_nodes(part, log_nodes.to(part), largest) for part in parts]
    odds, totals, chances, log_probs = (list(column) for column in zip(*found, strict=True))
    return Odds(odds, totals, log_probs[0] if len(found) == 1 else torch.stack(log_probs).sum(0), chances)


def _section_odds_over_nodes(
    utility: Tensor, log_nodes: Tensor, largest: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Odds in place of utility differences, totals, weighted probabilities of the nodes, and log probabilities (n, s).

    Probabilities are averaged without logarithms of single nodes where none can underflow.
    """
    if largest < _SAFE_EXPONENT:
        odds = utility.exp_()
        total = sum_alternatives(odds) + 1.0
        chances = total.reciprocal().unflatten(1, (-1, len(log_nodes))) * log_nodes.exp()[:, None]
        return odds, total, chances, chances.sum(2).log().sum(1)
    top = utility.detach().amax(2).clamp_(min=0.0)
    odds = utility.sub_(top[:, :, None]).exp_()
    total = sum_alternatives(odds) + (-top).exp()
    joint = -(top + total.log()).unflatten(1, (-1, len(log_nodes))) + log_nodes[:, None]
    highest = joint.detach().amax(2, keepdim=True)
    chances = (joint - highest).exp()
    return odds, total, chances, (highest[:, :, 0] + chances.sum(2).log()).sum(1)


def _section_odds(utility: Tensor, largest: float) -> tuple[Tensor, Tensor, Tensor]:
    """Odds (n, t, J - 1, s) in place of utility differences, totals (n, t, s) and log probabilities (n, s)."""
    if largest < _SAFE_EXPONENT:
        odds = utility.exp_()
        total = sum_alternatives(odds) + 1.0
        return odds, total, -_sum_logs(total, max(largest, 0.0) + math.log(odds.shape[2] + 1.0))
    if utility.shape[2] == 1:
        return _binary_odds(utility)
    top = utility.detach().amax(2).clamp_(min=0.0)
    odds = utility.sub_(top[:, :, None]).exp_()
    total = sum_alternatives(odds) + (-top).exp()
    return odds, total, -(top + total.log()).sum(1)


def _binary_odds(utility: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Odds, totals and log probabilities where there is one other alternative, of utility differences of any size.

    Odds are at most exp(_SAFE_EXPONENT), where a probability is one in double precision as well; the rest of a utility
    difference is subtracted from the log probability. It takes half the time of a shift by the largest odds.
    """
    excess = _sum_over((utility - _SAFE_EXPONENT).clamp_(min=0.0), 1)[:, 0]
    odds = utility.clamp_(max=_SAFE_EXPONENT).exp_()
    total = odds[:, :, 0] + 1.0
    return odds, total, -(_sum_over(total.log(), 1) + excess)


def panel_log_prob(beta: Tensor, panel: Panels) -> Tensor:
    r"""Log probability of each person's choices given the tastes, :math:`\log P(y_n | \beta_n)`.

    Parameters
    ----------
    beta : Tensor, shape (*s, n, k)
        Coefficients in the order of the panel's columns, with any leading shape.
    panel : PanelDifferences or RaggedPanels
        Choices of n people.

    Returns
    -------
    Tensor, shape (*s, n)
        Log probabilities summed over the situations of a person, not weighted.

    References
    ----------
    Train (2009), Discrete Choice Methods with Simulation, chapters 3 and 6.
    """
    flat = beta.reshape(math.prod(beta.shape[:-2]), *beta.shape[-2:]).permute(1, 2, 0)

    def log_prob(place: slice | Tensor, piece: PanelDifferences) -> tuple[Tensor]:
        return (compute_odds(torch.bmm(piece.values, flat[place]), piece).log_prob,)

    return by_pieces(panel, log_prob)[0].mT.reshape(beta.shape[:-1])


def by_pieces(
    panel: Panels, compute: Callable[[slice | Tensor, PanelDifferences], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Compute tensors (n, ...) of all people, one dense piece of the panels at a time.

    Parameters
    ----------
    panel : PanelDifferences or RaggedPanels
        Choices of n people.
    compute : callable
        Function of the indices (m,) of a group of people and their panels that returns tensors (m, ...).
    """
    if isinstance(panel, PanelDifferences) or len(panel) == 0:
        return compute(slice(None), panel.dense())
    indices, places, parts = torch.arange(len(panel), device=panel.values.device), [], []
    for place, piece in panel.pieces(cells_at_once(0.25), len(panel)):
        places.append(indices[place])
        parts.append(compute(place, piece))
    order = torch.cat(places).argsort()
    return tuple(torch.cat(column)[order] for column in zip(*parts, strict=True))


def panel_probabilities(utility: Tensor, panel: PanelDifferences) -> tuple[Tensor, Tensor]:
    """Log probabilities (n, s) and probabilities of the other alternatives (n, r, s).

    ``utility`` (n, r, s) is overwritten.
    """
    odds = compute_odds(utility, panel)
    return odds.log_prob, odds.probabilities()


@dataclass(frozen=True)
class Derivatives:
    """Value, gradient and information of log P(y_n | beta_n) at one coefficient vector per person.

    Attributes
    ----------
    log_prob : Tensor, shape (n,)
        Log probability of each person's choices.
    gradient : Tensor, shape (n, k)
        Derivatives of the log probability with respect to the coefficients.
    information : Tensor, shape (n, k, k)
        Minus the Hessian, positive semidefinite since the logit is log-concave; where situations have nodes, its mean
        over these, which is positive semidefinite as well and somewhat larger.
    """

    log_prob: Tensor
    gradient: Tensor
    information: Tensor


def panel_derivatives(utility: Tensor, panel: PanelDifferences, columns: slice = slice(None)) -> Derivatives:
    """Compute value, gradient and information with respect to a slice of the coefficients.

    Parameters
    ----------
    utility : Tensor, shape (n, r)
        Utility differences; overwritten.
    panel : PanelDifferences
        Choices of n people.
    columns : slice
        The k coefficients with respect to which derivatives are taken.

    Returns
    -------
    Derivatives
    """
    odds = compute_odds(utility[..., None], panel)
    log_prob, prob = odds.log_prob, odds.probabilities()
    values = panel.values[..., columns]
    weighted = values * prob
    parts = [sum_alternatives(part) for part in panel.by_section(weighted)]
    mean = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    scaled = mean if odds.shares is None else mean * torch.cat(odds.shares, 1).rsqrt()
    information = torch.bmm(weighted.mT, values) - torch.bmm(scaled.mT, scaled)
    return Derivatives(log_prob[:, 0], -mean.sum(1), information)


def situation_means(values: Tensor, prob: Tensor, panel: PanelDifferences) -> Tensor:
    """Sum attributes (n, r, k) times probabilities (n, r, s) over the alternatives of each situation, (n, t, k, s)."""
    pairs = zip(panel.by_section(values), panel.by_section(prob), strict=True)
    parts = [torch.bmm(x.flatten(0, 1).mT, p.flatten(0, 1)).unflatten(0, x.shape[:2]) for x, p in pairs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def choice_probabilities(attributes: Tensor, coefficients: Tensor) -> Tensor:
    """Choice probabilities of all alternatives of choice sets of one size.

    Parameters
    ----------
    attributes : Tensor, shape (m, j, k)
        Attributes of the available alternatives, up to a constant per choice set and attribute.
    coefficients : Tensor, shape (s, k) or (m, s, k)
        Coefficients of each sample, common to all sets or per set.

    Returns
    -------
    Tensor, shape (m, j, s)
    """
    return (attributes @ coefficients.mT).softmax(1)
