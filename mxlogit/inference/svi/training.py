"""Training settings of the guide of `mxlogit.SVI`."""

from __future__ import annotations

from dataclasses import dataclass

from mxlogit.errors import check_at_least, check_finite, check_option, check_whole


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
        if self.steps is not None:
            check_whole("Training(steps=...)", self.steps, 1)
        check_whole("Training(batch_size=...)", self.batch_size, 1)
        for name in ("learning_rate", "guide_learning_rate"):
            rate = getattr(self, name)
            if rate is not None:
                check_at_least(f"Training({name}=...)", rate, 1e-12)
                check_finite(f"Training({name}=...)", rate)
        check_option("Training(schedule=...)", self.schedule, [None, "cosine", "constant"])
        check_option("Training(gradient=...)", self.gradient, ["standard", "stl", "dreg"])
        check_option("Training(safeguard=...)", self.safeguard, [None, "trust", "damping"])

    @property
    def rate(self) -> float:
        """Initial learning rate of q(theta)."""
        return 0.02 if self.learning_rate is None else self.learning_rate

    @property
    def guide_rate(self) -> float:
        """Initial learning rate of the networks."""
        return 0.002 if self.guide_learning_rate is None else self.guide_learning_rate
