"""Variational inference by Newton steps: the settings object of the default engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from sklearn.base import BaseEstimator

from mxlogit.errors import Rule, SpecificationError, check_path, check_settings, either, one_of, positive, whole
from mxlogit.execution.checkpoint import FileJournal, Journal
from mxlogit.execution.identity import identify_fit
from mxlogit.execution.people import People
from mxlogit.fit import Fit
from mxlogit.inference.checks import DRAWS, FLOW, MAX_SECONDS, POLISH, SAMPLES, TAIL, check_layers
from mxlogit.inference.classes.engine import fit_class_posterior
from mxlogit.inference.method import Callback
from mxlogit.inference.task import Task
from mxlogit.inference.vi.money_start import find_money_start
from mxlogit.inference.vi.newton import NewtonSettings
from mxlogit.inference.vi.route import NewtonPlan, run_newton
from mxlogit.model.mixed_logit import MixedLogitModel

# Default tolerance: predicted gain of a further Newton step, in nats; chosen by hand.
_TOLERANCE = 0.02
# Default number of Newton steps to people's modes in a pass; few suffice, since modes are warm-started in every pass.
_POLISH = 2

# What each setting may be.
_RULES: dict[str, Rule] = {
    "optimizer": one_of("newton", "natural"),
    "polish": POLISH,
    "flow": FLOW,
    "flow_layers": whole(1),
    "draws": DRAWS,
    "tail": TAIL,
    "tolerance": either(None, positive),
    "max_iterations": whole(1),
    "correct": one_of("auto", True, False),
    "population_family": one_of("gaussian", "spline"),
    "n_samples": SAMPLES,
    "max_seconds": MAX_SECONDS,
    "checkpoint": check_path,
}


class VI(BaseEstimator):  # type: ignore[misc]
    r"""Variational inference by second-order steps on the marginal likelihood: the default engine.

    The guide is q(theta) q(tastes | theta): a full-covariance Gaussian over the unconstrained population vector, and
    for each person a Gaussian around the mode of its whitened tastes, with importance weights. `SVI` trains networks
    for both; the defaults here reach the same bound eight times sooner than its second-order optimizers (20,000 people;
    forty times at 2,000), and forty to a hundred times sooner than Adam.

    Parameters
    ----------
    optimizer : {"newton", "natural"}
        Search algorithm. "newton": trust-region Newton on the importance-sampled marginal likelihood, then
        natural-gradient steps. "natural": natural-gradient steps from the start.
    polish : "auto" or int
        Number of damped Newton steps to each person's mode in every pass; "auto" is 2.
    flow : {"auto", "affine", "spline", "autoregressive", None}
        Conditional normalizing flow on each person's Gaussian, trained at the optimum. "affine": a shift and a
        triangular factor; "spline": the same after splines along the principal axes; "autoregressive": the same after
        splines of each coordinate conditional on the preceding ones (needs the extra ``flows``). "auto": "spline" if
        importance weights are uneven (an effective sample size below .8) and there are up to 12 random coefficients,
        otherwise none. With one to three choices per person a spline reduces the loss of effective sample size by half
        or more (.61 to .88), with lognormal tastes by a quarter (.35 to .49); "affine" has most of the gain at half
        the cost.
    flow_layers : int
        Number of layers of a "spline" or "autoregressive" flow; one layer of a spline flow is elementwise along the
        axes, further ones couple halves of them.
    draws : int or None
        Number of importance draws per person, a multiple of 4, in the last passes. None: 16, quadrupled until new
        draws do not move the optimum; beyond 20,000 people the effect of more draws is estimated on a subsample.
    tail : int or None
        Degrees of freedom (even, above 2) of the Student-t importance proposal; None for a normal.
    tolerance : float or None
        Predicted gain of a further Newton step, in nats, at which the search stops; None: 0.02, and 0.5 beyond 20,000
        people ("newton" only). The fit of the posterior starts with this step.
    max_iterations : int
        Largest number of Newton steps per stage of the search, or of natural-gradient steps in total.
    correct : "auto" or bool
        Whether posterior samples of the population parameters are importance-weighted draws of the posterior instead of
        samples from the Gaussian. "auto": with up to 2,000 people or 20,000 choices, whichever is more, and up to 40
        parameters, if the posterior is skewed (by more than 0.6 along an axis of the Gaussian, 0.2 up to 250 people),
        if the Gaussian fails its importance check, or if it can be improved (an effective sample size below .98 with up
        to twelve parameters, .7 with more) on fixed draws that fit in memory, which takes some seconds; without fixed
        draws it takes up to 1,536 passes over the people. Where that is no remedy (the Gaussian fails its check, or
        more than a twentieth of the people have uneven weights), short chains of the exact posterior are begun from the
        fit, if these take less than about a minute (up to some 50,000 rows of data, each person of weight one):
        ``diagnostics_`` then has their ``rhat`` and ``ess_bulk``, and tastes of people are their states. True: at any
        size, up to an effective sample size of 1,000; if too few weighted draws are effective within its limit of work
        (6.5e8 people x draws x evaluations), the Gaussian is kept, with a warning and ``diagnostics_["corrected"]``
        False. False: for speed, if intervals of standard deviations and correlations need not be exact.
    population_family : {"gaussian", "spline"}
        Family of q(theta): Gaussian with full covariance; or splines on it, fitted to importance-weighted draws, for a
        density or for more samples than there are weighted draws (Wasserstein distance of standard deviations to long
        chains, 100 people: .10 posterior sds; weighted draws themselves, ``correct=True``, .08; Gaussian .18).
    n_samples : int
        Number of posterior samples kept.
    max_seconds : float or None
        Time limit of the fit, in seconds. The search stops at its current point, and the posterior is the last Gaussian
        found, in time for the final passes of a fit; the status says so.
    checkpoint : str, Path or None
        File that records every pass over the people ("newton" only). A fit that was interrupted, or ended by
        ``max_seconds``, resumes after its last recorded pass when repeated with the same data, settings and
        ``random_state``, and gives the same result; the file is deleted at the end of a fit.

    Notes
    -----
    Populations of classes (``mixing=Mixture(...)``) use ``n_samples`` and ``max_seconds`` only: their posterior is that
    of weighted draws around the best mode, or of Hamiltonian chains where too few of these count.
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
        """Raise unless the settings are valid together.

        Raises
        ------
        SpecificationError
            If a setting is invalid; the message names it, its allowed values and the value given.
        """
        check_settings(self, _RULES)
        check_layers("VI", self.flow, self.flow_layers)
        if self.population_family == "spline" and self.correct is False:
            raise SpecificationError(
                "VI(population_family='spline') is fitted to the weighted draws that correct=False leaves out."
            )
        if self.optimizer == "natural":
            self._refuse_settings_of_newton()

    def _refuse_settings_of_newton(self) -> None:
        for name in ("tolerance", "checkpoint"):
            if getattr(self, name) is not None:
                raise SpecificationError(f"VI({name}=...) needs optimizer='newton'; natural-gradient steps have none.")

    def run(self, model: MixedLogitModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Fit ``model`` to the choices of ``people``.

        Parameters
        ----------
        model : MixedLogitModel
        people : People
        generator : torch.Generator
            The only source of randomness.
        callback : callable
            Callback that receives progress messages, one line of text each.

        Returns
        -------
        Fit

        Raises
        ------
        SpecificationError
            If a setting is invalid, or the scale column of willingness-to-pay space has no effect on choices.
        """
        self.check()
        if model.has_classes:
            return fit_class_posterior(model, people, self, generator, callback)
        task = Task.begin(model, people, generator, callback, self.max_seconds)
        position = model.mixing.scale_position
        if position is not None and position >= model.space.n_fixed:
            task = replace(task, start=find_money_start(model, task, callback, self.max_seconds))
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
