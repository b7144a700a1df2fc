"""Variational inference: the settings object and the default route from data to posterior."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from sklearn.base import BaseEstimator

from mxlogit.errors import SpecificationError, check_at_least, check_finite, check_option, check_path, check_whole
from mxlogit.execution.people import People
from mxlogit.fit import Fit
from mxlogit.guide.autoregressive import check_zuko
from mxlogit.guide.encoder import Encoder
from mxlogit.guide.families import family_rank
from mxlogit.guide.objectives import check_objective
from mxlogit.guide.subsampling import SBP
from mxlogit.inference.method import Callback
from mxlogit.inference.start import fit_multinomial_logit, start_population
from mxlogit.inference.svi.backward import check_sbp
from mxlogit.inference.vi.newton import STAGE_SIZES, Clock
from mxlogit.inference.vi.route import run_newton
from mxlogit.integration.laplace import FLOWS
from mxlogit.model.mixed_logit import PanelModel

_POPULATIONS = ("newton", "natural", "hessian_free", "lbfgs", "saa", "adam")
_TRAINED = ("adam", "hessian_free", "lbfgs")


class VI(BaseEstimator):  # type: ignore[misc]
    r"""Variational inference with an amortized guide and importance weights.

    Which setting for which data (measured; the tables are in the README):

    - Leave ``population`` alone: "newton" comes to the best bound eight times sooner than "hessian_free" and "lbfgs"
      (20,000 people; forty times at 2,000), forty to a hundred times sooner than "adam". "saa" is for its Monte
      Carlo error, "hessian_free" for guides with networks.
    - ``flow``: with weights of effective size .99 there is nothing to win. With one to three choices a person "auto"
      trains a "spline", which halves or more what weights lack (.61 to .88), with lognormal tastes a quarter (.35 to
      .49); "affine" has most of the gain at half the price; further layers and "autoregressive" gain no more for
      several times the time.
    - ``correct=False`` where seconds count and intervals of standard deviations and correlations need not be exact: up
      to 2,000 people "auto" takes about twice as long as the Gaussian alone.
    - ``VI.amortized()``: where a trained encoder is wanted for its own sake; a Newton search leaves it nothing to add.

    The guide is q(theta) q(tastes | theta): a full-covariance Gaussian over the unconstrained population
    vector, and for each person encoder -> polish -> importance weights in whitened coordinates.

    Parameters
    ----------
    population : {"newton", "natural", "hessian_free", "lbfgs", "saa", "adam"}
        How q(theta) is found. "newton" (default): trust-region Newton on the importance-sampled marginal likelihood,
        then natural-gradient steps. "natural": natural-gradient steps from the start. "hessian_free", "lbfgs": second
        order on the guide's bound under frozen draws, over q(theta) alone or, with an encoder or a flow, over all
        weights together. "saa": a diagonal q(theta) under fixed draws, covariance by linear response. "adam": first
        order; with an encoder (the default) the classic route, encoder and q(theta) trained by stochastic
        backpropagation of Pyro's ELBO on mini-batches (Rodrigues 2022, arXiv 2004.05426).
    encoder : {"auto", None, "set", "rodrigues2022"} or Encoder
        Network that proposes each person's factor. "auto" is "set" under "adam" and None elsewhere, where polishing
        leaves a network nothing to win; "rodrigues2022" is the published network, for comparison. An `Encoder` is the
        set encoder in another shape.
    sbp : None, float, SBP, "auto", "checkpoint" or "bfloat16"
        Memory-saving backward passes of the set encoder: gradients through that share of each person's situations, by
        the rules of an `SBP`; unbiased. "auto" finds the share. "checkpoint" recomputes all rows: exact, slower;
        "bfloat16" rounds what is recorded. For panels of many situations and wide encoders, under "adam" and
        "hessian_free" (gradients only, one mask an iteration; curvature of few people through all their situations).
        `mxlogit.memory_report` says what there is to save.
    covariance : {"full", "diagonal", "rank1", "rank2", ...}
        What the encoder "set" emits: a full covariance, none between whitened tastes, or a precision of a diagonal and
        so many columns. Polish makes it full again.
    coordinates : {"whitened", "centred"}
        Whether a restricted covariance is that of whitened tastes, standard normal in the population, or of the latent
        tastes themselves. Whitened ones are nearly independent where people say little, latent ones where they say
        much about each taste by itself.
    polish : "auto" or int
        Damped Newton steps per person and pass: "auto" is 2 under "newton", 0 after an encoder, 10 from zero.
    population_family : {"gaussian", "spline", "diagonal", "blocks"}
        Family of q(theta): Gaussian with full covariance; splines on it, fitted to importance-weighted draws ("newton"
        and "natural" only; as a density, or for more samples than there are weighted draws: Wasserstein distances of
        standard deviations to long chains of .10 posterior sds, 100 people; ``correct=True``, the draws themselves,
        .08, the Gaussian .18); Gaussian without
        covariances, or only within fixed coefficients and within locations (the others; "saa" is always diagonal).
    objective : {"auto", "iwae", "elbo"}
        Bound of people under "hessian_free", "lbfgs", "saa" and "adam", from ``draws`` draws (16). "auto" is the log
        marginal likelihood where q(theta) alone is trained, Pyro's one-draw ELBO under "adam" with an encoder, else
        "iwae".
    gradient : {"standard", "stl", "dreg"}
        Estimator of the gradient under "adam": "stl" (sticking the landing) with ``objective="elbo"``, "dreg" (doubly
        reparameterised) with "iwae". Both have less noise where the guide comes close to the posterior.
    noise : {"antithetic", "sobol"}
        Of people's draws in the ``objective``: pseudo-random or quasi-random, in antithetic pairs both; "dreg" takes
        independent ones. Draws of q(theta) are antithetic pairs in orthogonal directions.
    safeguard : {"trust", "damping"}
        Of "hessian_free": a trust region, or Levenberg and Marquardt's damping.
    flow : {"auto", "affine", "spline", "autoregressive", None}
        Conditional normalizing flow on each person's polished Gaussian, trained at the optimum ("newton"), or together
        with the encoder ("adam"): "affine" shifts and shears it, "spline" bends it along its principal axes as
        well, "autoregressive" bends each coordinate given those before it (needs the extra ``flows``).
        "auto": "spline" where importance weights are uneven (an effective sample size below .8)
        and there are up to 12 random coefficients, else none.
    flow_layers : int
        Layers of splines: the first bends axes one by one, further ones couple halves of them.
    draws : int or None
        Importance draws per person, a multiple of 4, in the last passes. None: 16, quadrupled until new
        draws do not move the optimum; beyond 20,000 people what more draws would change is found on a subsample.
    tail : int or None
        Degrees of freedom (even, above 2) of the Student-t importance proposal; None for a normal.
    tolerance : float
        Newton decrement, in nats, at which the search stops; 0.5 beyond 20,000 people. The posterior begins with the
        step that remains.
    max_iterations : int
        Newton iterations per stage.
    correct : "auto" or bool
        Whether posterior samples of the population are weighted draws of the posterior itself instead of those of the
        Gaussian ("newton" and "natural" only). "auto": with up to 20,000 choices (and any 2,000 people) and 40
        parameters, where it is skewed (by more than 0.6 along some axis of the Gaussian, 0.2 up to 250 people), the
        Gaussian fails its importance check, or it could be better (an effective sample size below .98 with up to
        twelve parameters, .7 with more) and draws can stay where they are for that, which takes some seconds; without
        room for them by up to 1,536 passes over the people. True: at any size, until 1,000 draws count; where too few
        count within its limit of work (6.5e8 people x draws x evaluations), the Gaussian stays and a warning says so,
        as ``diagnostics_["corrected"]`` does.
    n_samples : int
        Posterior samples kept.
    steps : int or None
        Iterations of "adam", "lbfgs" and "hessian_free"; None: 2,000, 150 and 60 at most.
    batch_size : int
        Decision makers per mini-batch ("saa" takes all of them); under "hessian_free" and "lbfgs" each antithetic pair
        of points of theta has its own, while there are people enough.
    learning_rate, guide_learning_rate : float
        First Adam rates of q(theta) and of the networks; both follow a cosine ("adam" only).
    checkpoint : str, Path or None
        File in which every pass over the people is kept. A fit that was killed, started again with the same data,
        settings and ``random_state``, goes on from its last pass and ends at the same answer; the file is deleted when
        the fit is done ("newton" only).
    schedule : {"cosine", "constant"}
        Of the rates of "adam" with an encoder; a constant rate ends when the bound has not risen for 500 steps.
    max_seconds : float or None
        Time limit of "adam", "lbfgs" and "hessian_free"; the cosine of the classic route then follows the clock.
    """

    def __init__(
        self,
        *,
        population: str = "newton",
        encoder: str | Encoder | None = "auto",
        sbp: float | str | SBP | None = None,
        covariance: str = "full",
        coordinates: str = "whitened",
        polish: str | int = "auto",
        flow: str | None = "auto",
        flow_layers: int = 1,
        draws: int | None = None,
        tail: int | None = 8,
        tolerance: float = 0.02,
        max_iterations: int = 60,
        correct: str | bool = "auto",
        population_family: str = "gaussian",
        objective: str = "auto",
        gradient: str = "standard",
        noise: str = "antithetic",
        safeguard: str = "trust",
        n_samples: int = 4000,
        steps: int | None = None,
        batch_size: int = 512,
        learning_rate: float = 0.02,
        guide_learning_rate: float = 0.002,
        schedule: str = "cosine",
        max_seconds: float | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.population = population
        self.encoder = encoder
        self.sbp = sbp
        self.covariance = covariance
        self.coordinates = coordinates
        self.polish = polish
        self.flow = flow
        self.flow_layers = flow_layers
        self.draws = draws
        self.tail = tail
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.correct = correct
        self.population_family = population_family
        self.objective = objective
        self.gradient = gradient
        self.noise = noise
        self.safeguard = safeguard
        self.n_samples = n_samples
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.guide_learning_rate = guide_learning_rate
        self.schedule = schedule
        self.max_seconds = max_seconds
        self.checkpoint = checkpoint

    @classmethod
    def amortized(cls, **settings: Any) -> VI:
        """Return the modern form of amortized inference: encoder, a polish step and a flow, by backpropagation.

        Parameters
        ----------
        **settings
            Of `VI`, in place of these.
        """
        return cls(**{"population": "adam", "encoder": "set", "polish": 1, "flow": "affine", **settings})

    @classmethod
    def rodrigues2022(cls, **settings: Any) -> VI:
        """Return the published method, for comparison (Rodrigues 2022, arXiv 2004.05426, version 0.1 of its code).

        Its network, one draw of Pyro's ELBO, constant rates of Adam, early stopping, independent blocks of q(theta);
        not its permuted people, nor draws for people outside the mini-batch. It begins at the multinomial logit.

        Parameters
        ----------
        **settings
            Of `VI`, in place of the published ones.
        """
        published = {
            "population": "adam",
            "encoder": "rodrigues2022",
            "polish": 0,
            "flow": None,
            "population_family": "blocks",
            "schedule": "constant",
            "learning_rate": 0.005,
            "guide_learning_rate": 0.001,
            "batch_size": 500,
            "steps": 10_000,
        }
        return cls(**{**published, **settings})

    def check(self) -> None:
        """Raise unless the settings make sense together.

        Raises
        ------
        SpecificationError
            Naming the setting, what is allowed and what came.
        """
        check_option("VI(population=...)", self.population, list(_POPULATIONS))
        self._check_encoder()
        check_option("VI(flow=...)", self.flow, ["auto", *FLOWS, None])
        check_option("VI(correct=...)", self.correct, ["auto", True, False])
        searched = self.population in ("newton", "natural")
        families = ["gaussian", *(["spline"] if searched else ["diagonal", "blocks"])]
        check_option(f"VI(population_family=...) with population={self.population!r}", self.population_family, families)
        check_option("VI(schedule=...)", self.schedule, ["cosine", "constant"])
        self._check_objective()
        family_rank(self.covariance)
        if self.covariance != "full" and not self.has_set_encoder:
            raise SpecificationError(
                f"VI(covariance={self.covariance!r}) is of what encoder='set' emits; there is no such encoder here."
            )
        check_option("VI(coordinates=...)", self.coordinates, ["whitened", "centred"])
        if self.coordinates == "centred" and self.covariance == "full":
            raise SpecificationError(
                "VI(coordinates='centred') is of a restricted covariance ('diagonal', 'rank1', ...): a full one is the "
                "same family in both coordinates."
            )
        check_option("VI(safeguard=...)", self.safeguard, ["trust", "damping"])
        if self.flow == "autoregressive":
            check_zuko()
        if self.population == "saa" and self.flow in FLOWS:
            raise SpecificationError("VI(population='saa') takes no flow: it would fit the fixed draws to any depth.")
        if self.correct is True and not searched:
            raise SpecificationError("VI(correct=True) needs population='newton' or 'natural'.")
        if self.polish != "auto":
            check_whole("VI(polish=...)", self.polish, 0)
        if self.draws is not None and (not isinstance(self.draws, Integral) or self.draws < 4 or self.draws % 4):
            raise SpecificationError(
                f"VI(draws=...) must be a positive multiple of 4 (antithetic pairs in two halves); got {self.draws!r}."
            )
        if self.tail is not None and (not isinstance(self.tail, Integral) or self.tail < 4 or self.tail % 2):
            raise SpecificationError(f"VI(tail=...) must be None or an even number above 2; got {self.tail!r}.")
        for name, lowest in (
            ("max_iterations", 1),
            ("n_samples", 2),
            ("batch_size", 1),
            ("flow_layers", 1),
        ):
            check_whole(f"VI({name}=...)", getattr(self, name), lowest)
        if self.steps is not None:
            check_whole("VI(steps=...)", self.steps, 1)
        for name in ("tolerance", "learning_rate", "guide_learning_rate"):
            check_at_least(f"VI({name}=...)", getattr(self, name), 1e-12)
            check_finite(f"VI({name}=...)", getattr(self, name))
        check_path("VI(checkpoint=...)", self.checkpoint)
        if self.checkpoint is not None and self.population != "newton":
            raise SpecificationError("VI(checkpoint=...) needs population='newton': training by Adam is not resumed.")
        if self.max_seconds is not None:
            check_at_least("VI(max_seconds=...)", self.max_seconds, 1e-3)

    @property
    def wants_pyros_elbo(self) -> bool:
        """Whether an encoder would be trained by Pyro's ELBO, and not by a bound, gradient or noise asked for."""
        usual = self.objective == "auto" and self.gradient == "standard" and self.noise == "antithetic"
        return self.population == "adam" and usual

    @property
    def has_set_encoder(self) -> bool:
        """Whether an encoder of sets of situations is trained."""
        automatic = self.encoder == "auto" and self.population == "adam"
        return automatic or self.encoder == "set" or isinstance(self.encoder, Encoder)

    def _check_encoder(self) -> None:
        trained = self.population in _TRAINED
        if isinstance(self.encoder, Encoder) and trained:
            self.encoder.check()
        else:
            encoders = ["auto", None, *(["set", "rodrigues2022"] if trained else [])]
            check_option(f"VI(encoder=...) with population={self.population!r}", self.encoder, encoders)
        check_sbp(self)

    def _check_objective(self) -> None:
        searched = self.population in ("newton", "natural")
        where = f"with population={self.population!r}"
        check_option(f"VI(objective=...) {where}", self.objective, ["auto", *([] if searched else ["iwae", "elbo"])])
        check_option(f"VI(noise=...) {where}", self.noise, ["antithetic", *([] if searched else ["sobol"])])
        check_option("VI(gradient=...)", self.gradient, ["standard", "stl", "dreg"])
        if self.encoder is not None and not self.wants_pyros_elbo and self.population == "adam":
            # Gradients stop at a polished point.
            check_option("VI(polish=...) with an objective, gradient or noise of one's own", self.polish, ["auto", 0])
        if self.gradient == "standard":
            return
        if self.population != "adam":
            raise SpecificationError(
                f"VI(gradient={self.gradient!r}) is no derivative of the bound under given draws, which "
                f"population={self.population!r} needs; it is for population='adam'."
            )
        if self.objective == "auto":
            raise SpecificationError(
                f"VI(gradient={self.gradient!r}) needs objective='elbo' (for 'stl') or 'iwae' (for 'dreg')."
            )
        check_objective(self.objective, self.gradient)

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
        if model.mixing.scale_position is not None:
            raise SpecificationError(
                "willingness-to-pay space (scale=...) needs method='msle'; VI estimates coefficients in utils."
            )
        seed = int(torch.randint(2**62, (1,), generator=generator))
        clock = Clock(callback)
        largest = STAGE_SIZES[-1]
        # Beyond so many people a random subsample says where to begin, and what bends slowly.
        sample = people.take(people.draw(largest, (seed, -3))) if len(people) > largest else people
        logit = fit_multinomial_logit(sample, model.prior.deviation)
        logit = replace(logit, information=logit.information * (people.weight / sample.weight))
        start = start_population(model, logit)
        if self.population in ("newton", "natural"):
            return run_newton(self, model, people, sample, logit, start, seed, clock)
        # Imported here: the default route needs neither Pyro nor its import time.
        from mxlogit.inference.svi.adam_route import encoder_name, run_classic
        from mxlogit.inference.svi.second_order_route import run_stochastic

        # Fixed coefficients alone leave an encoder nothing to encode.
        classic = self.wants_pyros_elbo and encoder_name(self) is not None and model.space.n_random > 0
        return (run_classic if classic else run_stochastic)(self, model, people, logit, start, seed, clock)
