"""Variational inference by Newton steps: the settings object of the default engine."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.base import BaseEstimator

from mxlogit.errors import SpecificationError, check_at_least, check_finite, check_option, check_path, check_whole
from mxlogit.execution.checkpoint import FileJournal, Journal
from mxlogit.execution.identity import identify_fit
from mxlogit.execution.people import People
from mxlogit.fit import Fit
from mxlogit.inference.checks import check_draws, check_flow, check_max_seconds, check_polish, check_tail
from mxlogit.inference.method import Callback
from mxlogit.inference.task import Task
from mxlogit.inference.vi.newton import NewtonSettings
from mxlogit.inference.vi.route import NewtonPlan, run_newton
from mxlogit.model.mixed_logit import PanelModel

# Nats that a Newton step may still gain where none is given.
_TOLERANCE = 0.02
# Newton steps of people's modes in a pass: modes follow the population from pass to pass.
_POLISH = 2


class VI(BaseEstimator):  # type: ignore[misc]
    r"""Variational inference by second-order steps on the marginal likelihood: the default engine.

    The guide is q(theta) q(tastes | theta): a full-covariance Gaussian over the unconstrained population vector, and
    for each person a Gaussian in whitened coordinates, polished, with importance weights. `SVI` trains networks for
    both; the defaults here reach the same bound eight times sooner than its second-order optimizers (20,000 people;
    forty times at 2,000), and forty to a hundred times sooner than Adam.

    Parameters
    ----------
    optimizer : {"newton", "natural"}
        "newton": trust-region Newton on the importance-sampled marginal likelihood, then natural-gradient steps.
        "natural": natural-gradient steps from the start.
    polish : "auto" or int
        Damped Newton steps of each person's factor in every pass; "auto" is 2.
    flow : {"auto", "affine", "spline", "autoregressive", None}
        Conditional normalizing flow on each person's polished Gaussian, trained at the optimum: "affine" shifts and
        shears it, "spline" bends it along its principal axes as well, "autoregressive" bends each coordinate given
        those before it (needs the extra ``flows``). "auto": "spline" where importance weights are uneven (an effective
        sample size below .8) and there are up to 12 random coefficients, else none. With one to three choices a person
        a spline halves or more what weights lack (.61 to .88), with lognormal tastes a quarter (.35 to .49); "affine"
        has most of the gain at half the price.
    flow_layers : int
        Layers of a "spline" or "autoregressive" flow; the first layer of a spline bends axes one by one, further ones
        couple halves of them.
    draws : int or None
        Importance draws per person, a multiple of 4, in the last passes. None: 16, quadrupled until new
        draws do not move the optimum; beyond 20,000 people what more draws would change is found on a subsample.
    tail : int or None
        Degrees of freedom (even, above 2) of the Student-t importance proposal; None for a normal.
    tolerance : float or None
        Newton decrement, in nats, at which the search stops; None: 0.02, and 0.5 beyond 20,000 people ("newton" only).
        The posterior begins with the step that remains.
    max_iterations : int
        Steps of a search: Newton's per stage, or natural-gradient steps in all.
    correct : "auto" or bool
        Whether posterior samples of the population are weighted draws of the posterior itself instead of those of the
        Gaussian. "auto": with up to 20,000 choices (and any 2,000 people) and 40
        parameters, where it is skewed (by more than 0.6 along some axis of the Gaussian, 0.2 up to 250 people), the
        Gaussian fails its importance check, or it could be better (an effective sample size below .98 with up to
        twelve parameters, .7 with more) and draws can stay where they are for that, which takes some seconds; without
        room for them by up to 1,536 passes over the people. True: at any size, until 1,000 draws count; where too few
        count within its limit of work (6.5e8 people x draws x evaluations), the Gaussian stays and a warning says so,
        as ``diagnostics_["corrected"]`` does. False: where seconds count and intervals of standard deviations and
        correlations need not be exact.
    population_family : {"gaussian", "spline"}
        Family of q(theta): Gaussian with full covariance; or splines on it, fitted to importance-weighted draws (as a
        density, or for more samples than there are weighted draws: Wasserstein distances of standard deviations to
        long chains of .10 posterior sds, 100 people; ``correct=True``, the draws themselves, .08, the Gaussian .18).
    n_samples : int
        Posterior samples kept.
    max_seconds : float or None
        Time limit of the fit, in seconds. A search ends where it is, and the posterior with the last Gaussian that was
        found, in time for the passes that close a fit; its status says so.
    checkpoint : str, Path or None
        File in which every pass over the people is kept ("newton" only). A fit that was killed, or ended by
        ``max_seconds``, started again with the same data, settings and ``random_state``, goes on from its last pass and
        ends at the same answer; the file is deleted when the fit is done.
    """

    def __init__(
        self,
        *,
        optimizer: str = "newton",
        polish: str | int = "auto",
        flow: str | None = "auto",
        flow_layers: int = 1,
        draws: int | None = None,
        tail: int | None = 8,
        tolerance: float | None = None,
        max_iterations: int = 60,
        correct: str | bool = "auto",
        population_family: str = "gaussian",
        n_samples: int = 4000,
        max_seconds: float | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.polish = polish
        self.flow = flow
        self.flow_layers = flow_layers
        self.draws = draws
        self.tail = tail
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.correct = correct
        self.population_family = population_family
        self.n_samples = n_samples
        self.max_seconds = max_seconds
        self.checkpoint = checkpoint

    def check(self) -> None:
        """Raise unless the settings make sense together.

        Raises
        ------
        SpecificationError
            Naming the setting, what is allowed and what came.
        """
        check_option("VI(optimizer=...)", self.optimizer, ["newton", "natural"])
        check_flow("VI", self.flow, self.flow_layers, ["auto", None])
        check_option("VI(correct=...)", self.correct, ["auto", True, False])
        check_option("VI(population_family=...)", self.population_family, ["gaussian", "spline"])
        if self.population_family == "spline" and self.correct is False:
            raise SpecificationError(
                "VI(population_family='spline') is fitted to the weighted draws that correct=False leaves out."
            )
        check_polish("VI", self.polish)
        check_draws("VI", self.draws)
        check_tail("VI", self.tail)
        for name, lowest in (("max_iterations", 1), ("n_samples", 2)):
            check_whole(f"VI({name}=...)", getattr(self, name), lowest)
        if self.tolerance is not None:
            check_at_least("VI(tolerance=...)", self.tolerance, 1e-12)
            check_finite("VI(tolerance=...)", self.tolerance)
        check_max_seconds("VI", self.max_seconds)
        check_path("VI(checkpoint=...)", self.checkpoint)
        if self.optimizer == "natural":
            self._refuse_settings_of_newton()

    def _refuse_settings_of_newton(self) -> None:
        for name in ("tolerance", "checkpoint"):
            if getattr(self, name) is not None:
                raise SpecificationError(f"VI({name}=...) needs optimizer='newton'; natural-gradient steps have none.")

    def run(self, model: PanelModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Fit ``model`` to the choices of ``people``.

        Parameters
        ----------
        model : PanelModel
        people : People
        generator : torch.Generator
            The only source of randomness.
        callback : callable
            Receives a line of text whenever there is something to tell.

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
        search = NewtonSettings(
            _TOLERANCE if self.tolerance is None else self.tolerance,
            self.max_iterations,
            self.draws,
            self.tail,
            _POLISH if self.polish == "auto" else int(self.polish),
        )
        plan = NewtonPlan(
            self.optimizer,
            search,
            self.correct,
            self.population_family,
            self.flow,
            self.flow_layers,
            self.n_samples,
            self._journal(task),
        )
        return run_newton(task, plan)

    def _journal(self, task: Task) -> Journal:
        if self.checkpoint is None:
            return Journal()
        settings = ("checkpoint", "max_seconds")
        identity = identify_fit(task.model, task.people, self, task.seed, engine="VI", without=settings)
        return FileJournal(self.checkpoint, identity, task.people.team)
