"""Settings by which one pass over the people integrates their tastes out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IntegrationSettings:
    """Integration settings of one pass.

    Attributes
    ----------
    draws : int
        Number of importance draws per person, a multiple of 4.
    degrees_of_freedom : int or None
        Degrees of freedom of the Student-t proposal; None for a normal proposal.
    stream : int
        Number of the random stream; passes with the same number use the same base draws.
    newton_steps : int
        Largest number of Newton steps towards a person's mode before drawing.
    defensive : bool
        Whether some of the draws come from the prior (a defensive mixture), which bounds the importance weights.
    newton_tolerance : float
        Half the squared Newton decrement, in nats, below which a person takes no more Newton steps.
    variational_steps : int
        Number of variational steps after the Newton steps, where importance weights are uneven.
    pathwise : bool
        Whether derivatives are taken at constant whitened tastes (`mxlogit.integration.pathwise`), as suits
        uninformative panels.
    from_population : bool
        Whether draws are quasi-random ones from the mixing distribution instead of proposals around modes: along paths
        of uninformative panels, their noise is that of many times as many draws.
    """

    draws: int = 16
    degrees_of_freedom: int | None = None
    stream: int = 0
    newton_steps: int = 2
    defensive: bool = True
    newton_tolerance: float = 1e-4
    variational_steps: int = 0
    pathwise: bool = False
    from_population: bool = False
