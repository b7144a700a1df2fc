"""Training settings of the guide of `mxlogit.SVI`."""

from __future__ import annotations

from dataclasses import dataclass

from mxlogit.errors import Rule, check_settings, either, one_of, positive, whole

# What each setting may be.
_RULES: dict[str, Rule] = {
    "steps": either(None, whole(1)),
    "batch_size": whole(1),
    "learning_rate": either(None, positive),
    "guide_learning_rate": either(None, positive),
    "schedule": one_of(None, "cosine", "constant"),
    "gradient": one_of("standard", "stl", "dreg"),
    "safeguard": one_of(None, "trust", "damping"),
}


@dataclass(frozen=True)
class Training:
    """Steps, mini-batches, learning rates and gradient estimator.

    Parameters
    ----------
    steps : int or None
        Largest number of iterations; None: 2,000 for "adam", 150 for "lbfgs" and 60 for "hessian_free".
    batch_size : int
        Number of decision makers per mini-batch; under "hessian_free" and "lbfgs" each antithetic pair of points of
        theta has its own mini-batch, as long as there are enough people.
    learning_rate : float or None
        Initial learning rate of q(theta) ("adam" only); None: 0.02.
    guide_learning_rate : float or None
        Initial learning rate of the networks ("adam" only); None: 0.002.
    schedule : {None, "cosine", "constant"}
        Schedule of the learning rates of "adam" with an encoder on Pyro's ELBO: None and "cosine" fall to zero over the
        steps, or over the seconds of a time limit; "constant" stops when the bound has not risen for 500 steps.
    gradient : {"standard", "stl", "dreg"}
        Gradient estimator under "adam": "stl" (sticking the landing) with ``objective="elbo"``, "dreg" (doubly
        reparameterised) with "iwae". Both have less noise if the guide is close to the posterior.
    safeguard : {None, "trust", "damping"}
        Globalisation of "hessian_free": a trust region (None, "trust") or Levenberg-Marquardt damping.
    """

    steps: int | None = None
    batch_size: int = 512
    learning_rate: float | None = None
    guide_learning_rate: float | None = None
    schedule: str | None = None
    gradient: str = "standard"
    safeguard: str | None = None

    def check(self) -> None:
        """Raise unless each setting is valid by itself.

        Raises
        ------
        SpecificationError
        """
        check_settings(self, _RULES)

    @property
    def rate(self) -> float:
        """Initial learning rate of q(theta)."""
        return 0.02 if self.learning_rate is None else self.learning_rate

    @property
    def guide_rate(self) -> float:
        """Initial learning rate of the networks."""
        return 0.002 if self.guide_learning_rate is None else self.guide_learning_rate
