"""Fixed draws with linear response: the settings object."""

from __future__ import annotations

import torch
from sklearn.base import BaseEstimator

from mxlogit.errors import Rule, check_settings, one_of
from mxlogit.execution.people import People
from mxlogit.fit import Fit
from mxlogit.inference.checks import DRAWS, MAX_SECONDS, POLISH, SAMPLES, TAIL
from mxlogit.inference.method import Callback
from mxlogit.inference.start import refuse_held, refuse_wtp_space
from mxlogit.inference.svi.plan import GuidePlan
from mxlogit.inference.task import Task
from mxlogit.model.mixed_logit import MixedLogitModel

# Default number of Newton steps from zero to a person's mode; chosen by hand.
_POLISH = 10


# What each setting may be.
_RULES: dict[str, Rule] = {
    "objective": one_of("auto", "iwae", "elbo"),
    "noise": one_of("antithetic", "sobol"),
    "draws": DRAWS,
    "polish": POLISH,
    "tail": TAIL,
    "n_samples": SAMPLES,
    "max_seconds": MAX_SECONDS,
}


class DADVI(BaseEstimator):  # type: ignore[misc]
    """Deterministic variational inference: a diagonal q(theta) under fixed draws, its covariance by linear response.

    With fixed draws the bound is a deterministic function, optimised to convergence by a trust-region Newton method.
    The Monte Carlo error of the fixed draws is estimated (``diagnostics_["fixed_draws_error"]``), and their number is
    doubled until it is below half a posterior standard deviation.

    Parameters
    ----------
    objective : {"auto", "iwae", "elbo"}
        Bound on each person's log likelihood, from ``draws`` draws; "auto": an estimate of the log likelihood itself.
    noise : {"antithetic", "sobol"}
        Kind of draws of tastes: pseudo-random or quasi-random, both in antithetic pairs.
    draws : int or None
        Number of draws of each person's tastes, a multiple of 4; None: 128.
    polish : "auto" or int
        Number of damped Newton steps from zero to each person's mode; "auto" is 10.
    tail : int or None
        Degrees of freedom (even, above 2) of the Student-t importance proposal of people's tastes and of the log
        likelihood at the estimate; None for a normal.
    n_samples : int
        Number of posterior samples kept.
    max_seconds : float or None
        Time limit of the fit, in seconds.

    References
    ----------
    Giordano, Ingram and Broderick (2024), Journal of Machine Learning Research 25, arXiv 2304.05527.
    """

    def __init__(
        self,
        *,
        objective: str = "auto",
        noise: str = "antithetic",
        draws: int | None = None,
        polish: str | int = "auto",
        tail: int | None = 8,
        n_samples: int = 4000,
        max_seconds: float | None = None,
    ) -> None:
        self.objective = objective
        self.noise = noise
        self.draws = draws
        self.polish = polish
        self.tail = tail
        self.n_samples = n_samples
        self.max_seconds = max_seconds

    def check(self) -> None:
        """Raise unless the settings are valid.

        Raises
        ------
        SpecificationError
            If a setting is invalid; the message names it, its allowed values and the value given.
        """
        check_settings(self, _RULES)

    def run(self, model: MixedLogitModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Fit ``model`` to the choices of ``people`` (parameters as in `VI.run`).

        Returns
        -------
        Fit

        Raises
        ------
        SpecificationError
            If a setting is invalid, or the model is in willingness-to-pay space.
        """
        self.check()
        refuse_wtp_space(model, "DADVI")
        refuse_held(model, "DADVI")
        task = Task.begin(model, people, generator, callback, self.max_seconds)
        # Imported here, because other engines do not need Pyro.
        from mxlogit.inference.svi.second_order_route import BoundPlan, run_stochastic
        from mxlogit.inference.svi.training import Training

        guide = GuidePlan(None, _POLISH if self.polish == "auto" else int(self.polish), family="diagonal")
        training, optimizer = Training(), "fixed_draws"
        plan = BoundPlan(guide, optimizer, training, self.objective, self.noise, self.draws, self.tail, self.n_samples)
        return run_stochastic(task, plan)
