r"""Log means over simulation draws, backpropagated through a subset of the draws, or through all chunk by chunk.

The log of a mean over R draws, :math:`\log \tfrac1R \sum_r e^{l_r}`, has the gradient
:math:`\sum_r w_r \nabla l_r` with :math:`w = softmax(l)`. The weights need values only, so all draws are computed
without autograd; the sum is then recorded for m draws, at R / m times their weights. Every draw is equally likely to
be among the m, so the gradient is unbiased. Normalising the weights among the m draws would give the gradient of a
smaller bound instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mxlogit.errors import SpecificationError

# Default number of draws computed at once; chosen by hand.
_CHUNK = 64


def sbp_logmeanexp(
    function: Callable[[Tensor], Tensor], draws: Tensor, kept: Tensor | None = None, *, chunk: int = _CHUNK
) -> Tensor:
    """Log mean over draws of the exponential of a function, with autograd memory independent of the number of draws.

    Parameters
    ----------
    function : callable
        Map from draws (n, ..., r) to logarithms (n, r), independently for each draw: log probabilities of choices for a
        simulated log likelihood, log weights for an importance-weighted bound.
    draws : Tensor, shape (n, ..., R)
        Simulation draws of each person.
    kept : Tensor of int, shape (n, m), optional
        Indices of the draws to backpropagate through (see `choose_draws`); the gradient is unbiased, with more noise.
        None: through all draws, recomputed ``chunk`` at a time in the backward pass; the gradient is exact.
    chunk : int
        Number of draws computed at once.

    Returns
    -------
    Tensor, shape (n,)
        Log means (natural logarithm); ``kept`` does not change them.

    References
    ----------
    Simulated likelihood: Train (2009), *Discrete Choice Methods with Simulation*, chapter 10. Importance-weighted
    bound: Burda, Grosse and Salakhutdinov (2016), arXiv 1509.00519. Subsets after Cheng et al. (2022), arXiv
    2203.16755.
    """
    count = draws.shape[-1]
    if kept is None:
        parts = [checkpoint(function, part, use_reentrant=False) for part in draws.split(chunk, -1)]
        return torch.cat(parts, -1).logsumexp(-1) - math.log(count)
    with torch.no_grad():
        logs = torch.cat([function(part) for part in draws.split(chunk, -1)], -1)
        value = logs.logsumexp(-1)
        shares = (logs - value[:, None]).exp().gather(-1, kept) * (count / kept.shape[-1])
    places = kept.view(len(kept), *[1] * (draws.dim() - 2), -1).expand(*draws.shape[:-1], -1)
    recorded = (shares * function(draws.gather(-1, places))).sum(-1)
    return value - math.log(count) + recorded - recorded.detach()


def choose_draws(people: int, draws: int, keep: float, generator: torch.Generator) -> Tensor:
    """Sample indices of a share of the draws, without replacement and independently for each person.

    Parameters
    ----------
    people, draws : int
        Numbers of people and of draws per person.
    keep : float
        Share of draws to select; at least one draw is selected.
    generator : torch.Generator

    Returns
    -------
    Tensor of int, shape (people, m)
        Indices, increasing in each row.

    Raises
    ------
    SpecificationError
        If the share is not above 0 and at most 1.
    """
    if not 0.0 < keep <= 1.0:
        raise SpecificationError(f"the share of draws that gradients go through must be in (0, 1]; got {keep!r}.")
    count = max(1, round(keep * draws))
    order = torch.rand(people, draws, generator=generator, dtype=torch.float64).argsort(1)
    return order[:, :count].sort(1).values
