"""Triangular factors of covariance and precision matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_of_lower(tril: Tensor) -> Tensor:
    """Inverse (*s, k, k) of lower triangular matrices (*s, k, k)."""
    identity = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device).expand_as(tril)
    return torch.linalg.solve_triangular(tril, identity, upper=False)


def lower_of(root: Tensor) -> Tensor:
    """Cholesky factors (*s, k, k) of root root', with root (*s, k, m), by QR.

    The product is not formed, which would lose digits in directions of small variance.
    """
    upper = torch.linalg.qr(root.mT, mode="r").R
    return upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
