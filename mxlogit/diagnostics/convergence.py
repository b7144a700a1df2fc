r"""Convergence diagnostics of Markov chains: R-hat, bulk and tail effective sample sizes, Monte Carlo errors.

R-hat is rank-normalised and split, as defined by Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021, Bayesian
Analysis 16); effective sizes use Geyer's initial monotone sequence (1992, Statistical Science 7), as in Stan and arviz.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mxlogit.errors import SpecificationError


def _check(samples: Tensor) -> None:
    chains, draws = samples.shape[:2]
    if chains < 2 or draws < 4:
        raise SpecificationError(
            f"R-hat and effective sample sizes need at least 2 chains of 4 samples; there are {chains} of {draws}."
        )


def _split(samples: Tensor) -> Tensor:
    """Split chains into halves (2 c, s // 2, D); the middle sample of an odd number is dropped."""
    half = samples.shape[1] // 2
    return torch.cat([samples[:, :half], samples[:, -half:]])


def _normal_scores(samples: Tensor) -> Tensor:
    """Replace samples by normal scores of their ranks over all chains; ties get their mean rank (Blom 1958)."""
    chains, draws, size = samples.shape
    flat = samples.reshape(-1, size).T.contiguous()
    ordered = flat.sort(-1).values
    below = torch.searchsorted(ordered, flat)
    up_to = torch.searchsorted(ordered, flat, right=True)
    rank = 0.5 * (below + up_to + 1).double()
    scores = torch.special.ndtri((rank - 0.375) / (flat.shape[-1] + 0.25))
    return scores.T.reshape(chains, draws, size)


def _potential_reduction(samples: Tensor) -> Tensor:
    """Potential scale reduction (D,) of chains, neither split nor rank-normalised."""
    draws = samples.shape[1]
    within = samples.var(1).mean(0)
    between = samples.mean(1).var(0)
    return ((between + within * (draws - 1) / draws) / within).sqrt()


def rhat(samples: Tensor) -> Tensor:
    """Rank-normalised split R-hat: the larger of the values for samples and for distances to the median.

    Parameters
    ----------
    samples : Tensor, shape (chains, draws, D)
        Samples of D quantities.

    Returns
    -------
    Tensor, shape (D,)
        R-hat; nan for a quantity that is constant.

    Raises
    ------
    SpecificationError
        If there is one chain, or fewer than four samples per chain.
    """
    _check(samples)
    split = _split(samples.double())
    folded = (split - _median(split)).abs()
    return torch.maximum(_potential_reduction(_normal_scores(split)), _potential_reduction(_normal_scores(folded)))


def _median(samples: Tensor) -> Tensor:
    """Median (D,) over all chains."""
    return torch.quantile(samples.reshape(-1, samples.shape[-1]), 0.5, dim=0)


def _autocovariance(samples: Tensor) -> Tensor:
    """Autocovariances (chains, lags, D) by fast Fourier transform, divided by the number of samples."""
    draws = samples.shape[1]
    centred = samples - samples.mean(1, keepdim=True)
    size = 2 ** math.ceil(math.log2(2 * draws))
    spectrum = torch.fft.rfft(centred, n=size, dim=1)
    return torch.fft.irfft(spectrum.abs().square(), n=size, dim=1)[:, :draws] / draws


def _effective_size(samples: Tensor) -> Tensor:
    """Effective sample sizes (D,) of the means of chains, neither split nor rank-normalised."""
    chains, draws, size = samples.shape
    covariance = _autocovariance(samples)
    mean_variance = covariance[:, 0].mean(0) * draws / (draws - 1)
    total = mean_variance * (draws - 1) / draws
    if chains > 1:
        total = total + samples.mean(1).var(0)
    correlation = 1.0 - (mean_variance - covariance.mean(0)) / total
    correlation[0] = 1.0
    sizes = [_sum_pairs(correlation[:, i].tolist(), chains * draws) for i in range(size)]
    constant = (samples.amax((0, 1)) - samples.amin((0, 1))) < torch.finfo(samples.dtype).resolution
    found = torch.tensor(sizes, dtype=samples.dtype)
    return torch.where(constant, torch.full_like(found, float(chains * draws)), found)


def _sum_pairs(rho: list[float], count: int) -> float:
    """Effective size from autocorrelations, by Geyer's initial positive and monotone sequence of pairs."""
    if not all(map(math.isfinite, rho[:2])):
        return math.nan
    draws, kept = len(rho), [rho[0], rho[1]]
    lag, pair = 1, rho[0] + rho[1]
    while lag < draws - 3 and pair > 0.0:
        even, odd = rho[lag + 1], rho[lag + 2]
        pair = even + odd
        kept += [even, odd] if pair >= 0.0 else [0.0, 0.0]
        lag += 2
    last = max(lag - 2, 0)
    # A positive first term of a negative pair is kept, which improves the estimate for antithetic chains.
    tail = rho[last + 1] if last + 1 < draws and rho[last + 1] > 0.0 else 0.0
    for i in range(1, last - 1, 2):
        if kept[i + 1] + kept[i + 2] > kept[i - 1] + kept[i]:
            kept[i + 1] = kept[i + 2] = 0.5 * (kept[i - 1] + kept[i])
    tau = -1.0 + 2.0 * sum(kept[: last + 1]) + tail
    return count / max(tau, 1.0 / math.log10(count))


def ess_bulk(samples: Tensor) -> Tensor:
    """Bulk effective sample size (D,): for means of rank-normalised split chains (chains, draws, D)."""
    _check(samples)
    return _effective_size(_normal_scores(_split(samples.double())))


def ess_tail(samples: Tensor) -> Tensor:
    """Tail effective sample size (D,): the smaller one of the 5 % and 95 % quantiles."""
    _check(samples)
    values = samples.double()
    ends = torch.quantile(values.reshape(-1, values.shape[-1]), torch.tensor([0.05, 0.95]).to(values), dim=0)
    return torch.minimum(*(_effective_size(_split((values <= end).double())) for end in ends))


def mcse_mean(samples: Tensor) -> Tensor:
    """Monte Carlo standard error (D,) of the means of samples (chains, draws, D)."""
    _check(samples)
    values = samples.double()
    return values.reshape(-1, values.shape[-1]).std(0) / _effective_size(_split(values)).sqrt()
