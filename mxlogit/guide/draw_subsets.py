r"""Log means over simulation draws with gradients through some of them, or through all of them chunk by chunk.

The log of a mean over R draws, :math:`\log \tfrac1R \sum_r e^{l_r}`, has the gradient
:math:`\sum_r w_r \nabla l_r` with :math:`w = softmax(l)`. Weights take values alone, so all draws can be computed
unrecorded; the sum is then recorded for m draws only, at R / m times their weights. As every draw is as likely to be
among the m, the gradient is unbiased. With weights normalised among the m draws themselves it would not be: that is the
gradient of a smaller bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mxlogit.errors import SpecificationError

_CHUNK = 64


def sbp_logmeanexp(
    function: Callable[[Tensor], Tensor], draws: Tensor, kept: Tensor | None = None, *, chunk: int = _CHUNK
) -> Tensor:
    """Log of each person's mean over draws of the exponential of a function; what is recorded does not grow with them.

    Parameters
    ----------
    function : callable
        Draws (n, ..., r) -> logarithms (n, r), each draw for itself: log probabilities of choices for a simulated
        log likelihood, log weights for an importance-weighted bound.
    draws : Tensor, shape (n, ..., R)
    kept : Tensor of int, shape (n, m), optional
        Places of the draws through which gradients go (see `choose_draws`): unbiased, with more noise. None: gradients
        go through all draws, which are computed again, ``chunk`` at a time, in the backward pass: exact.
    chunk : int
        Draws that are computed at a time.

    Returns
    -------
    Tensor, shape (n,)
        The same value either way, natural logarithms.

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
    """Places of a share of the draws, without replacement, for each of so many people by themselves.

    Parameters
    ----------
    people, draws : int
    keep : float
        Share; one draw at least.
    generator : torch.Generator

    Returns
    -------
    Tensor of int, shape (people, m)
        Increasing in each row.

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
