r"""Covariance families of a local Gaussian, for encoders without Newton steps after them.

All have the form of a `LocalFactor`: mean, a root R with R R' = C, its inverse and log |R|.

- ``full``: a lower-triangular root.
- ``diagonal``: standard deviations only.
- ``rank<r>``: precision :math:`D + U U'` with r columns. With :math:`V = D^{-1/2} U = Q\, diag(s) W'`,
  :math:`R = D^{-1/2} (I - Q\, diag(1 - 1/\sqrt{1 + s^2})\, Q')` has :math:`R R' = (D + U U')^{-1}`; for one column it
  is :math:`D^{-1/2} - \frac{e}{1 + \sqrt e} D^{-1} u u' D^{-1/2}`, :math:`e = 1 / (1 + u' D^{-1} u)`, which is finite
  at u = 0 (the precision of Rezende, Mohamed and Wierstra 2014, ICML, arXiv 1401.4082, in a numerically stable form).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxlogit.errors import SpecificationError
from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.triangles import inverse_of_lower

_PREFIX = "rank"


def family_rank(covariance: str) -> int | None:
    """Rank r of a "rank<r>" family; None for "full" and "diagonal".

    Raises
    ------
    SpecificationError
        If there is no such family.
    """
    if covariance in ("full", "diagonal"):
        return None
    rank = covariance.removeprefix(_PREFIX)
    if not covariance.startswith(_PREFIX) or not rank.isdigit() or int(rank) < 1:
        raise SpecificationError(
            f"Encoder(covariance=...) must be 'full', 'diagonal', 'rank1', 'rank2', ...; got {covariance!r}."
        )
    return int(rank)


def family_size(covariance: str, k: int) -> int:
    """Number of covariance parameters of a family for k tastes."""
    rank = family_rank(covariance)
    if rank is not None:
        return k * (1 + rank)
    return k if covariance == "diagonal" else k * (k + 1) // 2


def make_factor(covariance: str, mean: Tensor, numbers: Tensor) -> LocalFactor:
    """Build factors of a family from its parameters; zeros give unit covariance.

    Parameters
    ----------
    covariance : str
    mean : Tensor, shape (n, k)
    numbers : Tensor, shape (n, `family_size`)
        Parameters: log precisions, followed by the columns of U times sqrt k in low-rank families; in the full family
        the precision root row by row, with the logarithm of its diagonal.

    Returns
    -------
    LocalFactor
    """
    n, k = mean.shape
    rank = family_rank(covariance)
    if rank is not None:
        columns = numbers[:, k:].reshape(n, k, rank) / k**0.5
        return low_rank_factor(mean, numbers[:, :k].exp(), columns)
    if covariance == "diagonal":
        root = torch.diag_embed((-0.5 * numbers).exp())
        return LocalFactor(mean, root, torch.diag_embed((0.5 * numbers).exp()), -0.5 * numbers.sum(-1))
    rows, columns = torch.tril_indices(k, k)
    lower = numbers.new_zeros(n, k, k)
    lower[:, rows, columns] = numbers
    log_diagonal = lower.diagonal(dim1=-2, dim2=-1)
    tril = lower.tril(-1) + torch.diag_embed(log_diagonal.exp())
    inverse = inverse_of_lower(tril)
    return LocalFactor(mean, inverse.mT, tril, -log_diagonal.sum(-1))


def low_rank_factor(mean: Tensor, diagonal: Tensor, columns: Tensor) -> LocalFactor:
    """Gaussian whose precision is D + U U'.

    Parameters
    ----------
    mean : Tensor, shape (n, k)
    diagonal : Tensor, shape (n, k)
        D, positive.
    columns : Tensor, shape (n, k, r)
        U.

    Returns
    -------
    LocalFactor
        Factors whose ``precision_tril``, the inverse of R', is not triangular.
    """
    root_inverse = diagonal.sqrt()
    if columns.shape[-1] == 1:
        inner, outer, log_det = _rank_one(columns[..., 0] / root_inverse)
    else:
        inner, outer, log_det = _rank_many(columns / root_inverse[..., None])
    identity = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    root = (identity - inner) / root_inverse[..., None]
    inverse_transposed = root_inverse[..., None] * (identity + outer)
    return LocalFactor(mean, root, inverse_transposed, log_det - root_inverse.log().sum(-1))


def whiten(factor: LocalFactor, population: PopulationParameters) -> LocalFactor:
    """Factor of whitened tastes xi = L^-1 (eta - zeta) from the factor of the latent tastes eta (centred form).

    The same restriction of the covariance defines different families in latent and in whitened tastes.
    """
    tril = population.scale_tril
    inverse = inverse_of_lower(tril)
    mean = (factor.mean - population.location) @ inverse.mT
    log_det = factor.log_det - tril.diagonal().log().sum()
    return LocalFactor(mean, inverse @ factor.root, tril.mT @ factor.precision_tril, log_det)


def _rank_one(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices I - (I + v v')^(-1/2) and (I + v v')^(1/2) - I, and the log determinant of (I + v v')^(-1/2)."""
    size = v.square().sum(-1)
    shrink = 1.0 / (1.0 + size)
    product = v[..., :, None] * v[..., None, :]
    inner = (shrink / (1.0 + shrink.sqrt()))[..., None, None] * product
    outer = (1.0 / (1.0 + (1.0 + size).sqrt()))[..., None, None] * product
    return inner, outer, -0.5 * size.log1p()


def _rank_many(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of `_rank_one` for I + V V', by eigenvectors of V' V; differentiable if its eigenvalues differ."""
    values, vectors = torch.linalg.eigh(v.mT @ v)
    values = values.clamp(min=0.0)
    size = (1.0 + values).sqrt()
    # 1 - 1 / size = values / (size (1 + size)), so that Q needs no division by singular values.
    along = v @ vectors
    inner = (along / (size * (1.0 + size))[..., None, :]) @ along.mT
    outer = (along / (1.0 + size)[..., None, :]) @ along.mT
    return inner, outer, -0.5 * values.log1p().sum(-1)
