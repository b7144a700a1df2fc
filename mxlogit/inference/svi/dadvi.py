"""Fixed draws with linear response: the settings object."""

from __future__ import annotations

import torch
from sklearn.base import BaseEstimator

from mxlogit.errors import check_option, check_whole
from mxlogit.execution.people import People
from mxlogit.fit import Fit
from mxlogit.inference.checks import check_draws, check_max_seconds, check_polish, check_tail
from mxlogit.inference.method import Callback
from mxlogit.inference.svi.plan import GuidePlan
from mxlogit.inference.task import Task
from mxlogit.model.mixed_logit import PanelModel

_POLISH = 10


class DADVI(BaseEstimator):  # type: ignore[misc]
    """Deterministic variational inference: a diagonal q(theta) under fixed draws, its covariance by linear response.

    With the draws fixed the bound is an ordinary function, minimised to the end by a trust-region Newton method; the
    Monte Carlo error of the fixed draws is known (``diagnostics_["fixed_draws_error"]``), and they are doubled until it
    is below half a posterior standard deviation.

    Parameters
    ----------
    objective : {"auto", "iwae", "elbo"}
        Bound of people, from ``draws`` draws; "auto" is their log marginal likelihood.
    noise : {"antithetic", "sobol"}
        People's draws: pseudo-random or quasi-random, in antithetic pairs both.
    draws : int or None
        Draws of each person's tastes, a multiple of 4; None: 128.
    polish : "auto" or int
        Damped Newton steps of each person's factor from zero; "auto" is 10.
    tail : int or None
        Degrees of freedom (even, above 2) of the Student-t importance proposal of people's tastes and of the log
        likelihood at the estimate; None for a normal.
    n_samples : int
        Posterior samples kept.
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
        """Raise unless the settings make sense.

        Raises
        ------
        SpecificationError
            Naming the setting, what is allowed and what came.
        """
        check_option("DADVI(objective=...)", self.objective, ["auto", "iwae", "elbo"])
        check_option("DADVI(noise=...)", self.noise, ["antithetic", "sobol"])
        check_draws("DADVI", self.draws)
        check_polish("DADVI", self.polish)
        check_tail("DADVI", self.tail)
        check_whole("DADVI(n_samples=...)", self.n_samples, 2)
        check_max_seconds("DADVI", self.max_seconds)

    def run(self, model: PanelModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Fit ``model`` to the choices of ``people`` (parameters as in `VI.run`).

        Returns
        -------
        Fit

        Raises
        ------
        SpecificationError
            If a setting is wrong, or the model is in willingness-to-pay space.
        """
        self.check()
        task = Task.begin(model, people, generator, callback, self.max_seconds)
        # Imported here: other engines need neither Pyro nor its import time.
        from mxlogit.inference.svi.second_order_route import BoundPlan, run_stochastic
        from mxlogit.inference.svi.training import Training

        guide = GuidePlan(None, _POLISH if self.polish == "auto" else int(self.polish), family="diagonal")
        how, optimizer = Training(), "fixed_draws"
        plan = BoundPlan(guide, optimizer, how, self.objective, self.noise, self.draws, self.tail, self.n_samples)
        return run_stochastic(task, plan)
