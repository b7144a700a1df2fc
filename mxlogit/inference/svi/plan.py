"""Components of a guide, as resolved settings."""

from __future__ import annotations

from dataclasses import dataclass

from mxlogit.guide.encoder import Encoder
from mxlogit.guide.subsampling import SBP


@dataclass(frozen=True)
class GuidePlan:
    """Components of a guide.

    Attributes
    ----------
    encoder : Encoder, "rodrigues2022" or None
    newton_steps : int
        Number of Newton steps after the encoder, or from zero.
    flow : {"affine", "spline", "autoregressive", None}
    flow_layers : int
    family : {"gaussian", "diagonal", "blocks"}
        Covariance of q(theta).
    sbp : SBP or None
        Settings of memory-saving backward passes.
    """

    encoder: Encoder | str | None
    newton_steps: int
    flow: str | None = None
    flow_layers: int = 1
    family: str = "gaussian"
    sbp: SBP | None = None

    def describe(self) -> str:
        """Return a short description of the components."""
        encoder = "set" if isinstance(self.encoder, Encoder) else self.encoder or "no"
        return f"{encoder} encoder, {self.flow or 'no'} flow"
