"""Rules of settings shared by several engines."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from mxlogit.errors import SpecificationError, at_least, either, one_of, whole
from mxlogit.guide.autoregressive import check_zuko
from mxlogit.integration.laplace import FLOWS


def _multiple_of_four(argument: str, value: Any) -> None:
    if not isinstance(value, Integral) or value < 4 or value % 4:
        raise SpecificationError(
            f"{argument} must be a positive multiple of 4 (antithetic pairs in two halves); got {value!r}."
        )


def _even_above_two(argument: str, value: Any) -> None:
    if not isinstance(value, Integral) or value < 4 or value % 2:
        raise SpecificationError(f"{argument} must be None or an even number above 2; got {value!r}.")


# Importance draws per person; None for the engine's default.
DRAWS = either(None, _multiple_of_four)
# Degrees of freedom of a proposal; None for a normal.
TAIL = either(None, _even_above_two)
# Newton steps before drawing; "auto" for the engine's default.
POLISH = either("auto", whole(0))
# Time limit in seconds, of a thousandth at least.
MAX_SECONDS = either(None, at_least(1e-3))
# Posterior samples: standard deviations need two.
SAMPLES = whole(2)
# Flow on people's factors.
FLOW = one_of(*FLOWS, "auto", None)


def check_layers(engine: str, flow: str | None, layers: int) -> None:
    """Raise unless a flow can have as many layers, and what it needs is installed.

    Raises
    ------
    SpecificationError
        If the layers of a flow without layers are set.
    MissingExtraError
        If the flow needs an extra that is not installed.
    """
    if layers > 1 and flow in (None, "affine"):
        raise SpecificationError(
            f"{engine}(flow_layers={layers}) is of flow='spline' and 'autoregressive'; got flow={flow!r}."
        )
    if flow == "autoregressive":
        check_zuko()
