"""Derivatives of the log probabilities of membership in classes, in the unconstrained vector."""

from __future__ import annotations

import torch
from torch import Tensor

from mxlogit.model.classes import ClassSpace


def regressors(space: ClassSpace, covariates: Tensor | None, count: int) -> Tensor:
    """Ones and centred covariates of membership (n, 1 + z), of ``count`` people."""
    ones = torch.ones(count, 1, dtype=torch.float64)
    if covariates is None or not space.covariates:
        return ones
    return torch.cat([ones, covariates.cpu() - covariates.new_tensor(space.offsets).cpu()], 1)


def member_scores(space: ClassSpace, shares: Tensor, columns: Tensor) -> Tensor:
    """Scores (n, C, D) of the log probabilities of membership, at probabilities (n, C) and regressors (n, 1 + z)."""
    n, classes = shares.shape
    slopes = torch.eye(classes, dtype=shares.dtype)[None, :, 1:] - shares[:, None, 1:]
    result = shares.new_zeros(n, classes, space.size)
    result[..., space.size - space.n_membership :] = (slopes[..., None] * columns[:, None, None]).flatten(2)
    return result


def member_information(space: ClassSpace, shares: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Information (D, D) about the coefficients of membership, if memberships were observed."""
    free = shares[:, 1:]
    curved = torch.diag_embed(free) - free[:, :, None] * free[:, None]
    found = torch.einsum("ncd,ny,nz->cydz", curved * weights[:, None, None], columns, columns)
    result = shares.new_zeros(space.size, space.size)
    start = space.size - space.n_membership
    result[start:, start:] = found.flatten(2).flatten(0, 1)
    return result
