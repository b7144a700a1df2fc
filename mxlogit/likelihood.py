r"""The one place where utilities become choice probabilities.

The kernel works on differences to the chosen alternative: with :math:`d_{tj} = x_{tj} - x_{t,chosen}`,

.. math:: \log P(y_n | \beta) = -\sum_t \log\bigl(1 + \sum_{j \ne chosen} e^{d_{tj}'\beta}\bigr),

so a situation costs J - 1 rows and the chosen alternative needs no bookkeeping. Unavailable and padded
alternatives have utility minus infinity; a padded situation then contributes exactly zero.

This module knows tensors only: no frames, no population, no draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Utility differences below this bound cannot overflow exp() in float32, so no shift is needed.
_SAFE_EXPONENT = 60.0
_PEOPLE_AT_ONCE = 1024


class PanelData(Protocol):
    """What the kernel needs of choice data (see `mxlogit.choices.ChoiceData` for shapes)."""

    @property
    def attributes(self) -> Tensor:
        """Attributes (n, t, j, k)."""
        ...

    @property
    def available(self) -> Tensor:
        """Availability (n, t, j)."""
        ...

    @property
    def observed(self) -> Tensor:
        """Observed situations (n, t)."""
        ...

    @property
    def chosen(self) -> Tensor:
        """Chosen positions (n, t)."""
        ...

    @property
    def weights(self) -> Tensor:
        """Weights (n,)."""
        ...

    @property
    def appearance(self) -> Tensor | None:
        """Ranks by first appearance (n,)."""
        ...

    @property
    def clusters(self) -> Tensor | None:
        """Clusters (n,)."""
        ...


@dataclass(frozen=True)
class PanelDifferences:
    """Attributes differenced against the chosen alternative, ready for the kernel.

    Attributes
    ----------
    values : Tensor, shape (n, r, k)
        x_j - x_chosen for the J - 1 other alternatives of each situation; r = t * (J - 1), the
        alternatives of a situation being adjacent. Zero where closed.
    closed : Tensor or None, bool, shape (n, r)
        True where the alternative is unavailable or the situation is padding; None when nowhere.
    n_others : int
        J - 1.
    weights : Tensor, shape (n,)
        Weight of each decision maker in sums over people.
    n_situations : Tensor, shape (n,)
        Number of observed situations of each decision maker.
    appearance : Tensor or None, int64, shape (n,)
        Rank of each decision maker by first appearance in the source; None where people are in that order.
    clusters : Tensor or None, int64, shape (n,)
        Cluster 0, 1, ... of each decision maker, for standard errors.
    """

    values: Tensor
    closed: Tensor | None
    n_others: int
    weights: Tensor
    n_situations: Tensor
    appearance: Tensor | None = None
    clusters: Tensor | None = None

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def like(self) -> Tensor:
        """An empty tensor of the attributes' dtype and device."""
        return self.values[:0]

    @property
    def n_rows(self) -> int:
        """Number r of rows of a person."""
        return self.values.shape[1]

    @property
    def n_columns(self) -> int:
        """Number k of attributes."""
        return self.values.shape[2]

    def take(self, people: slice | Tensor) -> PanelDifferences:
        """Return the panels of some people (a view for a slice, a copy for an index)."""
        return PanelDifferences(
            self.values[people],
            None if self.closed is None else self.closed[people],
            self.n_others,
            self.weights[people],
            self.n_situations[people],
            None if self.appearance is None else self.appearance[people],
            None if self.clusters is None else self.clusters[people],
        )

    def by_appearance(self) -> PanelDifferences:
        """Return the panels in order of first appearance in the source."""
        if self.appearance is None:
            return self
        if bool((self.appearance.diff() > 0).all()):
            return replace(self, appearance=None)
        return replace(self.take(self.appearance.argsort()), appearance=None)

    def ranked(self) -> PanelDifferences:
        """Return the panels with ranks by first appearance, which then travel with every part of them."""
        if self.appearance is not None:
            return self
        return replace(self, appearance=torch.arange(len(self), device=self.values.device))

    def to(self, dtype: torch.dtype) -> PanelDifferences:
        """Return the panels with attributes and weights in another floating point type."""
        return replace(self, values=self.values.to(dtype), weights=self.weights.to(dtype))

    def closed_rows(self) -> Tensor:
        """``closed``, False everywhere where that is None."""
        return torch.zeros_like(self.values[..., 0], dtype=torch.bool) if self.closed is None else self.closed

    def padded(self, situations: int, others: int) -> PanelDifferences:
        """Return the panels with more situations and alternatives, closed ones."""
        values = self.by_situation(self.values)
        more = situations - values.shape[1], others - values.shape[2]
        if more == (0, 0):
            return self
        closed = F.pad(self.by_situation(self.closed_rows()), (0, more[1], 0, more[0]), value=True)
        values = F.pad(values, (0, 0, 0, more[1], 0, more[0]))
        return replace(self, values=values.flatten(1, 2), closed=closed.flatten(1), n_others=others)

    def chunks(self, size: int) -> Iterator[tuple[slice, PanelDifferences]]:
        """Iterate over consecutive people, ``size`` at a time, without copying."""
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, self.take(part)

    def by_situation(self, rows: Tensor) -> Tensor:
        """Reshape (n, r, ...) to (n, t, J - 1, ...)."""
        return rows.unflatten(1, (-1, self.n_others))


def difference_panels(data: PanelData, order: list[int] | None = None) -> PanelDifferences:
    """Difference the attributes of every situation against its chosen alternative.

    Parameters
    ----------
    data : ChoiceData
    order : list of int, optional
        Columns to use, in the order wanted (fixed coefficients first); all by default.

    Returns
    -------
    PanelDifferences
    """
    n, t, j, k = data.attributes.shape
    columns = list(range(k)) if order is None else order
    if j == 1:
        # Nothing to choose from: one closed alternative, so every log probability is zero.
        values = data.attributes.new_zeros(n, t, len(columns))
        nothing = torch.ones(n, t, dtype=torch.bool, device=values.device)
        return PanelDifferences(values, nothing, 1, data.weights, data.observed.sum(1), data.appearance, data.clusters)
    values = data.attributes.new_empty(n, t, j - 1, len(columns))
    opened = torch.empty(n, t, j - 1, dtype=torch.bool, device=values.device)
    natural = columns == list(range(k))
    for start in range(0, n, _PEOPLE_AT_ONCE):
        part = slice(start, start + _PEOPLE_AT_ONCE)
        differences = _difference(data, part, opened[part])
        values[part] = differences if natural else differences[..., columns]
    closed = None if bool(opened.all()) else ~opened.flatten(1)
    return PanelDifferences(
        values.flatten(1, 2), closed, j - 1, data.weights, data.observed.sum(1), data.appearance, data.clusters
    )


def _difference(data: PanelData, part: slice, opened: Tensor) -> Tensor:
    """Differences (n, t, J - 1, k) of some people, zero where closed; says in ``opened`` where they are not."""
    chosen = data.chosen[part][..., None]
    n, t, others, j = *opened.shape, opened.shape[-1] + 1
    other = torch.arange(others, device=chosen.device).expand(n, t, others)
    other = other + (other >= chosen)
    torch.logical_and(data.available[part].gather(2, other), data.observed[part][..., None], out=opened)
    rows = data.attributes[part].reshape(n * t * j, -1)
    situation = j * torch.arange(n * t, device=chosen.device).view(n, t, 1)
    # Whole rows are copied: one look-up for all attributes.
    differences = rows.index_select(0, (situation + other).flatten()).view(n, t, others, -1)
    differences -= rows.index_select(0, (situation + chosen).flatten()).view(n, t, 1, -1)
    return differences if bool(opened.all()) else differences.masked_fill_(~opened[..., None], 0.0)


def join_panels(parts: Sequence[PanelDifferences]) -> PanelDifferences:
    """Put the panels of several groups of people together, padded to the longest panel and the largest choice set."""
    others = max(part.n_others for part in parts)
    situations = max(part.n_rows // part.n_others for part in parts)
    wide = [part.padded(situations, others) for part in parts]
    closed = None
    if any(part.closed is not None for part in wide):
        closed = torch.cat([part.closed_rows() for part in wide])
    return PanelDifferences(
        torch.cat([part.values for part in wide]),
        closed,
        others,
        torch.cat([part.weights for part in wide]),
        torch.cat([part.n_situations for part in wide]),
    )


class Scratch:
    """One buffer for the largest tensor of a chunk, used over and over.

    Fresh memory costs more than what is computed in it: the system clears every page first (measured: a product of
    eight columns with 16 draws takes 9 ms in a buffer and 50 ms in new memory).
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor; it is overwritten by whoever asks next."""
        size, old = math.prod(shape), self._buffer
        if old is None or len(old) < size or old.dtype != like.dtype or old.device != like.device:
            self._buffer = old = like.new_empty(size)
        return old[:size].view(shape)


@dataclass(frozen=True)
class Odds:
    """Odds against the chosen alternative: probability of j = odds[..., j, :] / total.

    Attributes
    ----------
    odds : Tensor, shape (n, t, J - 1, s)
    total : Tensor, shape (n, t, s)
    log_prob : Tensor, shape (n, s)
        Sum over situations of the log probability of the choice.
    """

    odds: Tensor
    total: Tensor
    log_prob: Tensor

    def probabilities(self) -> Tensor:
        """Probabilities of the other alternatives, shape (n, r, s); may overwrite the odds."""
        total = self.total[:, :, None]
        prob = self.odds / total if self.odds.requires_grad else self.odds.div_(total)
        return prob.flatten(1, 2)

    def weigh_probabilities(self, weights: Tensor) -> Tensor:
        """Sums over draws of probabilities times weights (n, s, c), shape (n, r, c)."""
        n, t, others, s = self.odds.shape
        scaled = weights[:, None] / self.total[..., None]
        return torch.bmm(self.odds.view(n * t, others, s), scaled.view(n * t, s, -1)).view(n, t * others, -1)


def compute_odds(utility: Tensor, panel: PanelDifferences) -> Odds:
    """Turn utility differences (n, r, s), which are overwritten, into odds.

    Where a difference could overflow, a situation's odds and total are both divided by its largest odds.
    """
    if panel.closed is not None:
        utility = utility.masked_fill_(panel.closed[..., None], -math.inf)
    odds = panel.by_situation(utility)
    if utility.numel() == 0 or float(utility.detach().amax()) < _SAFE_EXPONENT:
        odds = odds.exp_()
        total = odds.sum(2)
        return Odds(odds, 1.0 + total, -total.log1p().sum(1))
    top = odds.detach().amax(2).clamp_(min=0.0)
    odds = odds.sub_(top[:, :, None]).exp_()
    total = odds.sum(2) + (-top).exp()
    return Odds(odds, total, -(top + total.log()).sum(1))


def panel_log_prob(beta: Tensor, panel: PanelDifferences) -> Tensor:
    r"""Log probability of everybody's choices given their tastes, :math:`\log P(y_n | \beta_n)`.

    Parameters
    ----------
    beta : Tensor, shape (*s, n, k)
        Coefficients in the order of the panel's columns; a leading shape of any length.
    panel : PanelDifferences

    Returns
    -------
    Tensor, shape (*s, n)
        Natural logarithms summed over the situations of a person, not weighted.

    References
    ----------
    Train (2009), Discrete Choice Methods with Simulation, chapters 3 and 6.
    """
    flat = beta.reshape(-1, *beta.shape[-2:]).permute(1, 2, 0)
    return compute_odds(torch.bmm(panel.values, flat), panel).log_prob.mT.reshape(beta.shape[:-1])


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
    gradient : Tensor, shape (n, k)
    information : Tensor, shape (n, k, k)
        Minus the Hessian: positive semidefinite, since the logit is log-concave.
    """

    log_prob: Tensor
    gradient: Tensor
    information: Tensor


def panel_derivatives(utility: Tensor, panel: PanelDifferences, columns: slice = slice(None)) -> Derivatives:
    """Value, gradient and information with respect to some coefficients, in one pass.

    Parameters
    ----------
    utility : Tensor, shape (n, r)
        Utility differences; overwritten.
    panel : PanelDifferences
    columns : slice
        The coefficients to differentiate by; k of them.

    Returns
    -------
    Derivatives
    """
    log_prob, prob = panel_probabilities(utility[..., None], panel)
    values = panel.values[..., columns]
    weighted = values * prob
    mean = panel.by_situation(weighted).sum(2)
    information = torch.bmm(weighted.mT, values) - torch.bmm(mean.mT, mean)
    return Derivatives(log_prob[:, 0], -mean.sum(1), information)


def choice_log_probabilities(coefficients: Tensor, attributes: Tensor, available: Tensor) -> Tensor:
    """Log probabilities of all alternatives.

    Parameters
    ----------
    coefficients : Tensor, shape (s, n, k)
    attributes : Tensor, shape (n, t, j, k)
    available : Tensor, bool, shape (n, t, j)

    Returns
    -------
    Tensor, shape (s, n, t, j)
        Minus infinity where an alternative is not available.
    """
    n, t, j, k = attributes.shape
    utility = torch.bmm(attributes.reshape(n, t * j, k), coefficients.permute(1, 2, 0))
    utility = utility.permute(2, 0, 1).unflatten(2, (t, j))
    return utility.masked_fill(~available, -math.inf).log_softmax(-1)
