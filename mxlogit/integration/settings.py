"""Settings of one pass over the people that integrates their tastes out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IntegrationSettings:
    """Integration settings of one pass.

    Attributes
    ----------
    draws : int
        Importance draws per person, a multiple of 4.
    tail : int or None
        Degrees of freedom of the Student-t proposal; None for the normal.
    key : int
        Random stream; passes with the same key use the same base draws.
    polish : int
        Most Newton steps per person before drawing.
    defensive : bool
        Whether some draws come from the prior, which bounds the weights.
    settled : float
        Half the squared Newton decrement, in nats, below which a person takes no more Newton steps.
    vary : int
        Number of variational steps after the Newton steps, against uneven weights.
    pathwise : bool
        Whether to differentiate at constant whitened tastes (`mxlogit.integration.pathwise`), for uninformative panels.
    """

    draws: int = 16
    tail: int | None = None
    key: int = 0
    polish: int = 2
    defensive: bool = True
    settled: float = 1e-4
    vary: int = 0
    pathwise: bool = False
