"""Checks of settings shared by several engines."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from mxlogit.errors import SpecificationError, check_at_least, check_option, check_whole
from mxlogit.guide.autoregressive import check_zuko
from mxlogit.integration.laplace import FLOWS


def check_flow(engine: str, flow: str | None, layers: int, others: Sequence[str | None]) -> None:
    """Raise unless a flow is known or one of ``others``, and its number of layers is valid.

    Raises
    ------
    SpecificationError
    MissingExtraError
        If the flow needs an extra that is not installed.
    """
    check_option(f"{engine}(flow=...)", flow, [*FLOWS, *others])
    check_whole(f"{engine}(flow_layers=...)", layers, 1)
    if layers > 1 and flow in (None, "affine"):
        raise SpecificationError(
            f"{engine}(flow_layers={layers}) is of flow='spline' and 'autoregressive'; got flow={flow!r}."
        )
    if flow == "autoregressive":
        check_zuko()


def check_draws(engine: str, draws: int | None) -> None:
    """Raise unless the number of draws is a positive multiple of four, or None for the engine's default.

    Raises
    ------
    SpecificationError
    """
    if draws is not None and (not isinstance(draws, Integral) or draws < 4 or draws % 4):
        raise SpecificationError(
            f"{engine}(draws=...) must be a positive multiple of 4 (antithetic pairs in two halves); got {draws!r}."
        )


def check_tail(engine: str, tail: int | None) -> None:
    """Raise unless degrees of freedom are even and above two, or None for a normal.

    Raises
    ------
    SpecificationError
    """
    if tail is not None and (not isinstance(tail, Integral) or tail < 4 or tail % 2):
        raise SpecificationError(f"{engine}(tail=...) must be None or an even number above 2; got {tail!r}.")


def check_polish(engine: str, polish: str | int) -> None:
    """Raise unless the number of Newton steps is a non-negative integer, or "auto" for the engine's default.

    Raises
    ------
    SpecificationError
    """
    if polish != "auto":
        check_whole(f"{engine}(polish=...)", polish, 0)


def check_max_seconds(engine: str, seconds: float | None) -> None:
    """Raise unless a time limit is None or at least a thousandth of a second.

    Raises
    ------
    SpecificationError
    """
    if seconds is not None:
        check_at_least(f"{engine}(max_seconds=...)", seconds, 1e-3)
