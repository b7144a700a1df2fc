"""Triangular factors of covariance and precision matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_of_lower(tril: Tensor) -> Tensor:
    """Inverse (*s, k, k) of lower triangular matrices (*s, k, k), which is lower triangular as well."""
    identity = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device).expand_as(tril)
    return torch.linalg.solve_triangular(tril, identity, upper=False)


def lower_of(root: Tensor) -> Tensor:
    """Lower triangular matrices (*s, k, k) with positive diagonals and the products root root', root (*s, k, m), by QR.

    Nothing is squared, so that small directions keep their digits.
    """
    upper = torch.linalg.qr(root.mT, mode="r").R
    return upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
