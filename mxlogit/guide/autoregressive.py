"""Inverse autoregressive spline flows, from zuko: a spline of each coordinate, conditional on the preceding ones.

Masked networks give all splines at once from base points, so sampling takes one pass and inversion one per coordinate
(Kingma et al. 2016, NeurIPS, arXiv 1606.04934; splines of Durkan et al. 2019, NeurIPS, arXiv 1906.04032). Needs the
extra ``flows``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mxlogit.errors import MissingExtraError

# Bins of each spline; chosen by hand.
_BINS = 8


def check_zuko() -> None:
    """Raise unless zuko is installed.

    Raises
    ------
    MissingExtraError
    """
    # Importing zuko switches off argument validation in torch.distributions globally.
    before = torch.distributions.Distribution._validate_args
    try:
        import zuko.flows  # noqa: F401
    except ImportError:
        raise MissingExtraError("flow='autoregressive' needs zuko: pip install 'mxlogit[flows]'.") from None
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


class AutoregressiveSpline(nn.Module):
    """Rational-quadratic splines, conditional on preceding coordinates and a person's state; initially the identity.

    Parameters
    ----------
    n_random : int
        Number k of random coefficients.
    width : int
        Width of the state and of the hidden layer.
    reverse : bool
        Whether to condition in reverse order of the coordinates.
    """

    def __init__(self, n_random: int, width: int, *, reverse: bool) -> None:
        super().__init__()
        check_zuko()
        from zuko.flows.autoregressive import MaskedAutoregressiveTransform
        from zuko.transforms import MonotonicRQSTransform

        order = torch.arange(n_random)
        self.conditional = MaskedAutoregressiveTransform(
            n_random,
            context=width,
            order=order.flip(0) if reverse else order,
            univariate=MonotonicRQSTransform,
            shapes=[(_BINS,), (_BINS,), (_BINS - 1,)],
            hidden_features=(width,),
        )
        head = self.conditional.hyper[-1]
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)

    def apply_to(self, points: Tensor, state: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Image (n, s, k) and log determinant (n, s) of the map or of its inverse."""
        transform = self.conditional(state[:, None].expand(*points.shape[:-1], -1))
        image = transform.inv(points) if inverse else transform(points)
        start, end = (image, points) if inverse else (points, image)
        log_det = transform.log_abs_det_jacobian(start, end)
        return image, -log_det if inverse else log_det
