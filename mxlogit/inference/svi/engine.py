"""Stochastic variational inference: the settings object of trained guides."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from sklearn.base import BaseEstimator

from mxlogit.errors import Rule, SpecificationError, check_option, check_settings, one_of, whole
from mxlogit.execution.people import People
from mxlogit.fit import Fit
from mxlogit.guide.encoder import Encoder
from mxlogit.guide.objectives import check_objective
from mxlogit.guide.subsampling import SBP
from mxlogit.inference.checks import DRAWS, FLOW, MAX_SECONDS, POLISH, SAMPLES, TAIL, check_layers
from mxlogit.inference.method import Callback
from mxlogit.inference.start import refuse_held, refuse_within, refuse_wtp_space
from mxlogit.inference.svi.backward import check_sbp, resolve_sbp
from mxlogit.inference.svi.plan import GuidePlan
from mxlogit.inference.svi.training import Training
from mxlogit.inference.task import Task
from mxlogit.model.mixed_logit import MixedLogitModel

# Default numbers of Newton steps to a person's mode, without an encoder and after one on Pyro's ELBO; chosen by hand.
_POLISH_FROM_ZERO = 10
_POLISH_AFTER_ENCODER = 1


def _encoder(argument: str, value: Any) -> None:
    if not isinstance(value, Encoder):
        check_option(argument, value, ["auto", None, "set", "rodrigues2022"])


def _training(argument: str, value: Any) -> None:
    if value is not None and not isinstance(value, Training):
        raise SpecificationError(f"{argument} must be None or a Training(...); got {value!r}.")


# What each setting may be; masks check themselves.
_RULES: dict[str, Rule] = {
    "optimizer": one_of("adam", "hessian_free", "lbfgs"),
    "encoder": _encoder,
    "training": _training,
    "flow": FLOW,
    "flow_layers": whole(1),
    "population_family": one_of("gaussian", "diagonal", "blocks"),
    "objective": one_of("auto", "iwae", "elbo"),
    "noise": one_of("antithetic", "sobol"),
    "polish": POLISH,
    "draws": DRAWS,
    "tail": TAIL,
    "n_samples": SAMPLES,
    "max_seconds": MAX_SECONDS,
}


class SVI(BaseEstimator):  # type: ignore[misc]
    r"""Stochastic variational inference: a guide trained on mini-batches of decision makers.

    The guide is q(theta) q(tastes | theta): a Gaussian over the unconstrained population vector, and for each person
    an encoder, Newton steps and a flow in whitened coordinates. By default encoder, flow and q(theta) are trained
    together by stochastic backpropagation of Pyro's ELBO (Rodrigues 2022, arXiv 2004.05426). `VI` reaches the same
    bound sooner; use this engine for guides with networks, if a trained encoder itself is of interest.

    Parameters
    ----------
    optimizer : {"adam", "hessian_free", "lbfgs"}
        Optimiser of the bound. "adam": first order. "hessian_free", "lbfgs": second order, under fixed draws, over
        q(theta) alone or, with an encoder or a flow, over all weights together.
    encoder : {"auto", None, "set", "rodrigues2022"} or Encoder
        Network that outputs each person's factor. "auto" is "set" under "adam" and None otherwise, since Newton steps
        make a network unnecessary; "rodrigues2022" is the published network, for comparison. An `Encoder` is the set
        encoder with another architecture.
    flow : {"auto", "affine", "spline", "autoregressive", None}
        Conditional normalizing flow on each person's factor (see `VI`), trained jointly. "auto": "affine" with an
        encoder on Pyro's ELBO, otherwise none.
    flow_layers : int
        Number of layers of a "spline" or "autoregressive" flow.
    sbp : None, float, SBP, "auto", "checkpoint" or "bfloat16"
        Memory-saving backward passes of the set encoder: the share of each person's situations to backpropagate
        through, with the defaults of `SBP`, or an `SBP`; gradients are unbiased. "auto" adapts the share. "checkpoint"
        recomputes all rows: exact, slower; "bfloat16" rounds stored activations. For panels of many situations and wide
        encoders, under "adam" and "hessian_free" (there for gradients, with one mask per iteration; curvature uses all
        situations of few people). `mxlogit.memory_report` measures the memory to be saved.
    polish : "auto" or int
        Number of damped Newton steps per person and pass. "auto" is 10 from zero, 1 after an encoder on Pyro's ELBO and
        0 after an encoder on another bound.
    objective : {"auto", "iwae", "elbo"}
        Bound on each person's log likelihood, from ``draws`` draws. "auto" is Pyro's one-draw ELBO under "adam" with an
        encoder, an estimate of the log marginal likelihood if q(theta) alone is trained, otherwise "iwae".
    noise : {"antithetic", "sobol"}
        Kind of draws of tastes in the ``objective``: pseudo-random or quasi-random, both in antithetic pairs; "dreg"
        uses independent draws. Draws of q(theta) are antithetic pairs in orthogonal directions.
    draws : int or None
        Number of draws of each person's tastes, a multiple of 4; None: 16. Pyro's ELBO uses one.
    tail : int or None
        Degrees of freedom (even, above 2) of the Student-t importance proposal of people's tastes and of the log
        likelihood after training; None for a normal.
    population_family : {"gaussian", "diagonal", "blocks"}
        Family of q(theta): Gaussian with full covariance, with diagonal covariance, or with covariances within fixed
        coefficients and within locations only.
    n_samples : int
        Number of posterior samples kept.
    training : Training or None
        Steps, mini-batches, learning rates and gradient estimator; None: ``Training()``.
    max_seconds : float or None
        Time limit of the fit, in seconds; learning rates of "adam" that fall to zero then follow the clock.
    """

    def __init__(
        self,
        *,
        optimizer: str = "adam",
        encoder: str | Encoder | None = "auto",
        flow: str | None = "auto",
        flow_layers: int = 1,
        sbp: float | str | SBP | None = None,
        polish: str | int = "auto",
        objective: str = "auto",
        noise: str = "antithetic",
        draws: int | None = None,
        tail: int | None = 8,
        population_family: str = "gaussian",
        n_samples: int = 4000,
        training: Training | None = None,
        max_seconds: float | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.encoder = encoder
        self.flow = flow
        self.flow_layers = flow_layers
        self.sbp = sbp
        self.polish = polish
        self.objective = objective
        self.noise = noise
        self.draws = draws
        self.tail = tail
        self.population_family = population_family
        self.n_samples = n_samples
        self.training = training
        self.max_seconds = max_seconds

    @classmethod
    def rodrigues2022(cls, **settings: Any) -> SVI:
        """Return the published method, for comparison (Rodrigues 2022, arXiv 2004.05426, version 0.1 of its code).

        It has the published network, one draw of Pyro's ELBO, constant learning rates of Adam, early stopping and
        independent blocks of q(theta), but not the published permutation of people or draws for people outside the
        mini-batch. It starts at the multinomial logit.

        Parameters
        ----------
        **settings
            Settings of `SVI` and, by name, of `Training`, which replace the published ones.

        Raises
        ------
        SpecificationError
            If another optimizer is requested.
        """
        if settings.get("optimizer", "adam") != "adam":
            raise SpecificationError(
                f"SVI.rodrigues2022() is trained by Adam; got optimizer={settings['optimizer']!r}."
            )
        rates = {"schedule": "constant", "learning_rate": 0.005, "guide_learning_rate": 0.001}
        training: dict[str, Any] = {"steps": 10_000, "batch_size": 500, **rates}
        training |= {field.name: settings.pop(field.name) for field in fields(Training) if field.name in settings}
        published = {"encoder": "rodrigues2022", "polish": 0, "flow": None, "population_family": "blocks"}
        return cls(**{**published, "training": Training(**training), **settings})

    def check(self) -> None:
        """Raise unless the settings are valid together.

        Raises
        ------
        SpecificationError
            If a setting is invalid; the message names it, its allowed values and the value given.
        """
        check_settings(self, _RULES)
        if isinstance(self.encoder, Encoder):
            self.encoder.check()
        self.resolved_training.check()
        check_layers("SVI", self.flow, self.flow_layers)
        check_layers("SVI", self.plan().flow, self.flow_layers)
        self._check_gradient()
        self._check_sbp()
        self._refuse_what_has_no_effect()

    def _check_gradient(self) -> None:
        gradient = self.resolved_training.gradient
        own_bound = self.resolved_encoder is not None and self.optimizer == "adam" and not self.takes_pyros_elbo
        if own_bound:
            # Gradients do not pass through Newton steps.
            check_option("SVI(polish=...) with an objective, gradient or noise of one's own", self.polish, ["auto", 0])
        if gradient == "standard":
            return
        if self.optimizer != "adam":
            raise SpecificationError(
                f"Training(gradient={gradient!r}) is no derivative of the bound under given draws, which "
                f"optimizer={self.optimizer!r} needs; it is for optimizer='adam'."
            )
        if self.objective == "auto":
            raise SpecificationError(
                f"Training(gradient={gradient!r}) needs objective='elbo' (for 'stl') or 'iwae' (for 'dreg')."
            )
        check_objective(self.objective, gradient)

    def _check_sbp(self) -> None:
        sbp = resolve_sbp(self.sbp)
        if sbp is None:
            return
        if self.optimizer == "lbfgs":
            raise SpecificationError(
                "SVI(sbp=...) is for optimizer='adam' and 'hessian_free'; 'lbfgs' compares values and derivatives of "
                "one function, and what some situations leave is the derivative of none."
            )
        usual = self.optimizer == "adam" and self.resolved_training.gradient == "standard"
        if sbp.draws is not None and not (self.objective == "iwae" and usual):
            raise SpecificationError(
                "SBP(draws=...) is for optimizer='adam' with objective='iwae' and gradient='standard': only its log of "
                "a mean over draws has weights from all of them."
            )
        check_sbp(sbp, self.resolved_encoder)
        if sbp.keep == "auto" and not self.takes_pyros_elbo:
            raise SpecificationError("SBP(keep='auto') is for optimizer='adam' on Pyro's ELBO; give a share.")

    def _refuse_what_has_no_effect(self) -> None:
        training, plan = self.resolved_training, self.plan()
        on_pyros_elbo = self.takes_pyros_elbo and plan.encoder is not None
        networks = plan.encoder is not None or plan.flow is not None
        given = {
            "SVI(draws=...)": (self.draws, not on_pyros_elbo, "objective='iwae' or 'elbo': Pyro's ELBO takes one draw"),
            "Training(learning_rate=...)": (training.learning_rate, self.optimizer == "adam", "optimizer='adam'"),
            "Training(guide_learning_rate=...)": (
                training.guide_learning_rate,
                self.optimizer == "adam" and networks,
                "optimizer='adam' and an encoder or a flow",
            ),
            "Training(schedule=...)": (
                training.schedule,
                on_pyros_elbo,
                "optimizer='adam' with an encoder on Pyro's ELBO",
            ),
            "Training(safeguard=...)": (
                training.safeguard,
                self.optimizer == "hessian_free",
                "optimizer='hessian_free'",
            ),
        }
        for name, (value, used, needs) in given.items():
            if value is not None and not used:
                raise SpecificationError(f"{name} needs {needs}; without it {value!r} would change nothing.")

    @property
    def resolved_training(self) -> Training:
        """Training settings, given or default."""
        return self.training or Training()

    @property
    def takes_pyros_elbo(self) -> bool:
        """Whether an encoder would be trained by Pyro's ELBO: no other bound, gradient or noise was requested."""
        usual = (
            self.objective == "auto" and self.resolved_training.gradient == "standard" and self.noise == "antithetic"
        )
        return self.optimizer == "adam" and usual

    @property
    def resolved_encoder(self) -> Encoder | str | None:
        """Architecture of the set encoder, "rodrigues2022", or None."""
        if self.encoder == "auto":
            return Encoder() if self.optimizer == "adam" else None
        return Encoder() if self.encoder == "set" else self.encoder

    def plan(self) -> GuidePlan:
        """Return the components of the guide."""
        encoder, flow, polish = self.resolved_encoder, self.flow, self.polish
        classic = self.takes_pyros_elbo and encoder is not None
        if flow == "auto":
            flow = "affine" if classic else None
        if polish == "auto":
            polish = _POLISH_FROM_ZERO if encoder is None else _POLISH_AFTER_ENCODER * classic
        sbp = resolve_sbp(self.sbp)
        return GuidePlan(encoder, int(polish), flow, self.flow_layers, self.population_family, sbp)

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
        refuse_wtp_space(model, "SVI")
        refuse_held(model, "SVI")
        refuse_within(model, "SVI")
        task = Task.begin(model, people, generator, callback, self.max_seconds)
        # Imported here, because other engines do not need Pyro.
        from mxlogit.inference.svi.adam_route import AdamPlan, run_classic
        from mxlogit.inference.svi.second_order_route import BoundPlan, run_stochastic

        guide = self.plan()
        # With fixed coefficients only, there are no tastes to encode.
        if self.takes_pyros_elbo and guide.encoder is not None and model.space.n_random > 0:
            return run_classic(task, AdamPlan(guide, self.resolved_training, self.tail, self.n_samples))
        bound = BoundPlan(
            guide,
            self.optimizer,
            self.resolved_training,
            self.objective,
            self.noise,
            self.draws,
            self.tail,
            self.n_samples,
        )
        return run_stochastic(task, bound)
