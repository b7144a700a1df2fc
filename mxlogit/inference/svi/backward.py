"""Memory-saving backward passes as a setting of VI: what is meant, and whether it fits what else is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxlogit.errors import SpecificationError, check_option
from mxlogit.guide.encoder import Encoder
from mxlogit.guide.subsampling import SBP

if TYPE_CHECKING:
    from mxlogit.inference.vi.engine import VI

_WORDS = {"auto": SBP("auto"), "checkpoint": SBP(1.0, recompute=True), "bfloat16": SBP(1.0, half=True)}


def resolve_sbp(settings: VI) -> SBP | None:
    """Settings of memory-saving backward passes, None without.

    Raises
    ------
    SpecificationError
        If a word is none of those that stand for settings.
    """
    sbp = settings.sbp
    if sbp is None or isinstance(sbp, SBP):
        return sbp
    if isinstance(sbp, str):
        check_option("VI(sbp=...), as a word,", sbp, list(_WORDS))
        return _WORDS[sbp]
    return SBP(sbp)


def check_sbp(settings: VI) -> None:
    """Raise unless memory-saving backward passes make sense with the other settings.

    Raises
    ------
    SpecificationError
    """
    sbp = resolve_sbp(settings)
    if sbp is None:
        return
    sbp.check()
    if settings.population not in ("adam", "hessian_free"):
        raise SpecificationError(
            f"VI(sbp=...) is for population='adam' and 'hessian_free'; population={settings.population!r} compares "
            "values and derivatives of one function, and what some situations leave is the derivative of none."
        )
    if settings.encoder == "rodrigues2022":
        raise SpecificationError(
            "VI(sbp=...) is not for encoder='rodrigues2022': its batch normalisation would see two kinds of rows, "
            "and one linear map before pooling leaves nothing to save."
        )
    _check_draws(settings, sbp)
    if not settings.has_set_encoder:
        if sbp.draws is None or sbp.keep != 1.0:
            raise SpecificationError(
                "VI(sbp=...) is for encoders trained with encoder='set' or Encoder(...); without one only draws can be "
                "left out: SBP(1.0, draws=...) with objective='iwae'."
            )
        return
    _check_encoder(settings.encoder if isinstance(settings.encoder, Encoder) else Encoder(), sbp)
    if sbp.keep == "auto" and not settings.wants_pyros_elbo:
        raise SpecificationError("SBP(keep='auto') is for population='adam' on Pyro's ELBO; give a share.")


def _check_draws(settings: VI, sbp: SBP) -> None:
    if sbp.draws is None:
        return
    if settings.objective != "iwae" or settings.population != "adam" or settings.gradient != "standard":
        raise SpecificationError(
            "SBP(draws=...) is for population='adam' with objective='iwae' and gradient='standard': only its log of a "
            "mean over draws has weights from all of them."
        )


def _check_encoder(encoder: Encoder, sbp: SBP) -> None:
    if sbp.mode == "winners" and encoder.pool != "max":
        raise SpecificationError("SBP(mode='winners') needs VI(encoder=Encoder(pool='max')): others have no winners.")
    if sbp.mode == "query" and not encoder.heads:
        raise SpecificationError("SBP(mode='query') needs attention, VI(encoder=Encoder(heads=4)); choose 'whole'.")
    if encoder.heads and sbp.mode not in ("whole", "query"):
        raise SpecificationError(
            f"SBP(mode={sbp.mode!r}) is for encoders without attention; choose 'query' with heads={encoder.heads}."
        )
