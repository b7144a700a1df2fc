"""Posterior samples with the moments of the weighted draws that they are a selection of.

A selection of a thousand from some thousands of weighted draws has means that err by a hundredth of a standard
deviation, and a draw more or less changes them. Moment matching (Barraquand 1995, Management Science 41) removes that
noise.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mxlogit.model.parameters import ParameterSpace

# Fewest samples whose moments are matched: of a few, a shift to the mean would leave little chance.
_FEWEST = 100
# Most Newton steps, all with the Jacobian at the start from the first samples: each leaves a tenth of the error, which
# is a hundredth of a standard deviation at first; and errors, in the same unit, that are none, or too large to be left.
_STEPS = 12
_JACOBIAN_SAMPLES = 300
_NO_ERROR, _LARGEST_ERROR = 1e-9, 1e-4
# Largest stretch of a coordinate. Beyond it the weighted moment is that of a few draws far out.
_LARGEST_STRETCH = 0.1


def match_moments(space: ParameterSpace, samples: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
    """Move samples a little, so that means and standard deviations of reported parameters are those of weighted draws.

    Parameters
    ----------
    space : ParameterSpace
    samples : Tensor, shape (s, D)
        Unconstrained vectors, a selection of ``vectors``.
    vectors : Tensor, shape (n, D)
    weights : Tensor, shape (n,)
        They sum to one.

    Returns
    -------
    Tensor, shape (s, D)
        Every coordinate shifted and stretched; the samples as they were where that takes more than a small stretch.
    """
    if len(samples) < _FEWEST:
        return samples
    wanted, middle = _moments(space, vectors, weights), samples.mean(0)

    def moved(part: Tensor, change: Tensor) -> Tensor:
        shift, stretch = change.chunk(2)
        return part + shift + stretch * (part - middle)

    def moments(part: Tensor, change: Tensor) -> Tensor:
        return _moments(space, moved(part, change), part.new_full((len(part),), 1.0 / len(part)))

    change = samples.new_zeros(2 * samples.shape[1])
    first = partial(moments, samples[:_JACOBIAN_SAMPLES])
    jacobian = torch.autograd.functional.jacobian(first, change)
    if not bool(torch.isfinite(jacobian).all()):
        return samples
    inverse, unit = torch.linalg.pinv(jacobian), wanted.chunk(2)[1].repeat(2)
    error = wanted - moments(samples, change)
    for _ in range(_STEPS):
        if bool((error.abs() <= _NO_ERROR * unit).all()):
            break
        change = change + inverse @ error
        error = wanted - moments(samples, change)
    close = (error.abs() < _LARGEST_ERROR * unit).all() & (change.chunk(2)[1].abs() < _LARGEST_STRETCH).all()
    return moved(samples, change) if bool(close) else samples


def _moments(space: ParameterSpace, vectors: Tensor, weights: Tensor) -> Tensor:
    """Weighted means and standard deviations (2 D,) of the reported parameters."""
    reported = space.report(space.constrain(vectors))
    mean = weights @ reported
    return torch.cat([mean, (weights @ (reported - mean).square()).sqrt()])
