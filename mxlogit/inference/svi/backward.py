"""Resolution and checks of `mxlogit.SVI(sbp=...)`, the memory-saving backward passes."""

from __future__ import annotations

from mxlogit.errors import SpecificationError, check_option
from mxlogit.guide.encoder import Encoder
from mxlogit.guide.subsampling import SBP

# Settings that have a name.
_NAMED = {"auto": SBP("auto"), "checkpoint": SBP(1.0, recompute=True), "bfloat16": SBP(1.0, half=True)}


def resolve_sbp(sbp: float | str | SBP | None) -> SBP | None:
    """Settings of memory-saving backward passes, None without.

    Raises
    ------
    SpecificationError
        If a name is unknown.
    """
    if sbp is None or isinstance(sbp, SBP):
        return sbp
    if isinstance(sbp, str):
        check_option("SVI(sbp=...), as a word,", sbp, list(_NAMED))
        return _NAMED[sbp]
    return SBP(sbp)


def check_sbp(sbp: SBP, encoder: Encoder | str | None) -> None:
    """Raise unless the memory-saving backward passes are valid for an encoder.

    Raises
    ------
    SpecificationError
    """
    sbp.check()
    if isinstance(encoder, Encoder):
        _check_encoder(encoder, sbp)
    elif encoder is not None:
        raise SpecificationError(
            "SVI(sbp=...) is not for encoder='rodrigues2022': its batch normalisation would see two kinds of rows, "
            "and one linear map before pooling leaves nothing to save."
        )
    elif sbp.draws is None or sbp.keep != 1.0:
        raise SpecificationError(
            "SVI(sbp=...) is for encoders trained with encoder='set' or Encoder(...); without one only draws can be "
            "left out: SBP(1.0, draws=...) with objective='iwae'."
        )


def _check_encoder(encoder: Encoder, sbp: SBP) -> None:
    if sbp.mode == "winners" and encoder.pool != "max":
        raise SpecificationError("SBP(mode='winners') needs SVI(encoder=Encoder(pool='max')): others have no winners.")
    if sbp.mode == "query" and not encoder.heads:
        raise SpecificationError("SBP(mode='query') needs attention, SVI(encoder=Encoder(heads=4)); choose 'whole'.")
    if encoder.heads and sbp.mode not in ("whole", "query"):
        raise SpecificationError(
            f"SBP(mode={sbp.mode!r}) is for encoders without attention; choose 'query' with heads={encoder.heads}."
        )
