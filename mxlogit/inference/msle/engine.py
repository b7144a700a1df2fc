"""Maximum simulated likelihood: the classical estimator, on the same kernel, data and results as the other engines."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from mxlogit.diagnostics.error import ErrorEstimate, no_errors
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.draws.simulation import SCHEMES, PersonDraws
from mxlogit.errors import Rule, SpecificationError, check_flag, check_settings, one_of, positive, whole
from mxlogit.execution.people import People
from mxlogit.fit import Fit, Outcome, Status
from mxlogit.inference.checks import MAX_SECONDS, SAMPLES
from mxlogit.inference.classes.engine import fit_class_maximum
from mxlogit.inference.clock import Clock
from mxlogit.inference.method import Callback
from mxlogit.inference.msle.covariance import (
    COVARIANCES,
    EstimatorCovariance,
    column_signs,
    coordinate_names,
    information_criteria,
    positive_diagonal,
    report_jacobian,
    sampling_distribution,
)
from mxlogit.inference.msle.draws_check import DrawsCheck
from mxlogit.inference.msle.search import SCIPY, MaximumFound, SearchSettings, SimulatedSearch
from mxlogit.inference.report import report_fit
from mxlogit.inference.start import fit_multinomial_logit, held_in_logit, in_wtp_space, start_population
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.simulated_likelihood import SimulatedLikelihood
from mxlogit.integration.tastes import ConditionalTastes
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters

# Importance draws for the exact log likelihood: initial number, and number from which it increases only while people x
# draws stay below _MOST_EXACT_WORK; chosen by hand.
_FIRST_EXACT_DRAWS = 32
_MOST_EXACT_DRAWS = 512
_MOST_EXACT_WORK = 1_000_000
# Standard error of that log likelihood that is small enough, in nats or relative to its value; chosen by hand.
_EXACT_ERROR = 0.6
_EXACT_SHARE = 2e-5


# What each setting may be.
_RULES: dict[str, Rule] = {
    "n_draws": whole(1),
    "draws": one_of(*SCHEMES),
    "optimizer": one_of("newton", *SCIPY),
    "covariance": one_of(*COVARIANCES),
    "n_starts": whole(1),
    "antithetic": check_flag,
    "check_draws": check_flag,
    "max_iterations": whole(1),
    "tolerance": positive,
    "n_samples": SAMPLES,
    "max_seconds": MAX_SECONDS,
}


class MSLE(BaseEstimator):  # type: ignore[misc]
    r"""Maximum simulated likelihood.

    Parameters
    ----------
    n_draws : int
        Number of draws per decision maker.
    draws : {"halton", "scrambled_halton", "sobol", "mlhs", "pseudo"}
        Kind of draws. "halton" follows mlogit and xlogit: consecutive blocks for people in order of first appearance
        (see `mxlogit.draws.simulation.PersonDraws`).
    optimizer : {"newton", "bfgs", "l-bfgs", "trust-region"}
        Search algorithm. "newton": trust-region steps with outer products of scores, first on a part of the draws. The
        others are scipy's BFGS, L-BFGS-B and trust-exact. All end with Newton steps with the exact Hessian.
    covariance : {"robust", "hessian", "bhhh", "clustered"}
        Covariance estimator: sandwich over decision makers, inverse Hessian, inverse sum over decision makers of outer
        products of scores, or sandwich over ``MixedLogit(cluster=...)``. Weights are sampling weights for the sandwich
        estimators (multiplying all by ten has no effect), and frequency weights for the other two.
    n_starts : int
        Number of starting points. 1: positive standard deviations. More: also the sign changes with the largest
        likelihood, since the simulated likelihood is not symmetric in signs.
    antithetic : bool
        Whether the second half of each person's draws is minus the first.
    check_draws : bool
        Whether to evaluate the optimum on as many other draws: `diagnostics_` then reports how far twice the draws
        would move estimates and standard errors.
    max_iterations : int
        Largest number of iterations of each search and of the final Newton steps.
    tolerance : float
        Predicted gain in log likelihood of a further Newton step at which the search stops.
    n_samples : int
        Number of samples of the asymptotic normal distribution, for intervals of functions of the estimates (Krinsky
        and Robb 1986, Review of Economics and Statistics 68).
    max_seconds : float or None
        Time limit, in seconds: the search stops at its current point, in time for covariances; the status says so.

    Notes
    -----
    Populations of classes (``mixing=Mixture(...)``) have no simulated draws to choose: of the settings they use
    ``covariance``, ``n_starts`` (times two for each class), ``n_samples`` and ``max_seconds``.

    Priors are not used: with perfect separation no maximum exists, and the fit warns of it.

    References
    ----------
    Train (2009), Discrete Choice Methods with Simulation, chapters 8 to 10.
    """

    def __init__(
        self,
        *,
        n_draws: int = 500,
        draws: str = "halton",
        optimizer: str = "newton",
        covariance: str = "robust",
        n_starts: int = 3,
        antithetic: bool = False,
        check_draws: bool = True,
        max_iterations: int = 300,
        tolerance: float = 5e-7,
        n_samples: int = 4000,
        max_seconds: float | None = None,
    ) -> None:
        self.n_draws = n_draws
        self.draws = draws
        self.optimizer = optimizer
        self.covariance = covariance
        self.n_starts = n_starts
        self.antithetic = antithetic
        self.check_draws = check_draws
        self.max_iterations = max_iterations
        self.tolerance = tolerance
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
        if self.antithetic and self.n_draws % 2:
            raise SpecificationError("MSLE(antithetic=True) needs an even n_draws.")

    def run(self, model: MixedLogitModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Fit ``model`` to the choices of ``people`` (parameters as in `VI.run`); priors are not used.

        Returns
        -------
        Fit
            Its samples are draws from the asymptotic sampling distribution.

        Raises
        ------
        SpecificationError
            If a setting is wrong, clusters are asked for and the data have none, or processes share the people.
        """
        self.check()
        panel = people.require_single_process()
        if self.covariance == "clustered" and panel.clusters is None:
            raise SpecificationError(
                "MSLE(covariance='clustered') needs clusters: MixedLogit(cluster='<column>') for a frame, "
                "ChoiceData.from_arrays(clusters=...) for arrays."
            )
        if model.regularised:
            raise SpecificationError(
                "mean_shifters: the effects of the hidden units of a Network have priors, without which they are not "
                "identified; take method='vi', 'svi' or 'mcmc'."
            )
        if model.has_classes:
            return fit_class_maximum(model, people, self, self.covariance, self.n_starts, generator, callback)
        clock = Clock(callback, self.max_seconds)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        panel = panel.by_appearance()
        people = People.gather(panel)
        logit = fit_multinomial_logit(
            people, torch.full_like(model.prior.deviation, math.inf), held=held_in_logit(model)
        )
        model, start = in_wtp_space(model, logit)
        draws = PersonDraws(self.draws, self.n_draws, model.space.n_random, seed, antithetic=self.antithetic)
        if model.space.n_random == 0:
            # A multinomial logit has nothing to integrate.
            draws = replace(draws, n_draws=1, antithetic=False)
        likelihoods = self._likelihoods(model, panel, draws)
        settings = SearchSettings(self.optimizer, self.tolerance, self.max_iterations)
        search = SimulatedSearch(*likelihoods, _natural_sizes(model), settings, clock)
        simulated = likelihoods[0]
        optimum = search.run(simulated.coordinates(start_population(model, start)), self.n_starts)
        outcome = _Conclusion(self, likelihoods, optimum, search, draws).outcome()
        return report_fit(outcome, model, people, logit, clock)

    def _likelihoods(
        self, model: MixedLogitModel, panel: Panels, draws: PersonDraws
    ) -> tuple[SimulatedLikelihood, SimulatedLikelihood]:
        """The likelihoods in the precision of the data and of the search: single precision suffices for "newton"."""
        if self.optimizer != "newton" or panel.values.dtype == torch.float32:
            exact = SimulatedLikelihood(model, panel, draws)
            return exact, exact
        rough = SimulatedLikelihood(model, panel.to(torch.float32), draws)
        return SimulatedLikelihood(model, panel, draws, share=rough), rough


@dataclass(frozen=True)
class _Conclusion:
    """From an optimum to an outcome."""

    settings: MSLE
    likelihoods: tuple[SimulatedLikelihood, SimulatedLikelihood]
    optimum: MaximumFound
    search: SimulatedSearch
    draws: PersonDraws

    def outcome(self) -> Outcome:
        """Covariance, samples, exact likelihood, criteria and the check of the draws."""
        simulated, vector, settings = self.likelihoods[0], self.optimum.vector, self.settings
        panel = simulated.panel
        spread = EstimatorCovariance(
            self.optimum.hessian, self.optimum.at.scores, simulated.weights, self.search.sizes, panel.clusters
        )
        covariance = spread.covariance(settings.covariance)
        samples = sampling_distribution(simulated, vector, covariance, settings.n_samples, self.draws.seed)
        center = positive_diagonal(simulated.population(vector))
        names = coordinate_names(simulated)
        warnings = spread.sentences(names, settings.covariance) + _scheme_sentences(self.draws)
        diagnostics = self._diagnose(center, [names[i] for i in spread.flat])
        # A multinomial logit has nothing to simulate.
        is_exact = simulated.model.space.n_random == 0
        error = ErrorEstimate(samples.labels, (no_errors(len(vector)),)) if is_exact else None
        if settings.check_draws and simulated.model.space.n_random and not self.search.clock.was_over:
            check = self._check_draws(spread)
            found = check.diagnose(settings.n_draws)
            diagnostics = diagnostics.join(found)
            warnings += [] if found.draws_enough else [str(found.draws_verdict)]
            error = ErrorEstimate(samples.labels, (check.errors(),))
        signs = column_signs(simulated.population(vector).scale_tril)
        return Outcome(
            samples,
            center,
            Status.TIME if self.search.clock.was_over else self.optimum.status,
            ConditionalTastes(simulated.model, self.draws, signs),
            diagnostics,
            warnings=warnings,
            covariance=self._reported(spread, covariance),
            error=error,
        )

    def _diagnose(self, center: PopulationParameters, flat: list[str]) -> Diagnostics:
        """Exact likelihood at the estimate, criteria, and how the search ended."""
        simulated = self.likelihoods[0]
        model, panel = simulated.model, simulated.panel
        value = float(self.optimum.at.log_prob @ simulated.weights)
        marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, self.draws.seed)
        exact = _exact_likelihood(marginal, center, once=self.search.clock.was_over)
        return replace(
            exact.join(information_criteria(value, model.space.size, panel)),
            simulated_log_likelihood=value,
            start=self.optimum.start,
            newton_decrement=self.optimum.decrement,
            passes=self.search.passes,
            unidentified=flat,
        )

    def _reported(self, spread: EstimatorCovariance, covariance: Tensor) -> Tensor:
        """Covariance of the reported parameters, missing where coordinates are unbounded."""
        jacobian = report_jacobian(self.likelihoods[0], self.optimum.vector, self.search.sizes)
        reported = jacobian @ covariance @ jacobian.T
        unknown = (jacobian[:, spread.unbounded(self.settings.covariance)] != 0).any(-1)
        reported[unknown] = reported[:, unknown] = math.nan
        return reported

    def _check_draws(self, spread: EstimatorCovariance) -> DrawsCheck:
        """The optimum under other draws: the second half of twice the draws is another randomisation."""
        rough, vector, sizes = self.likelihoods[1], self.optimum.vector, self.search.sizes
        others = SimulatedLikelihood(rough.model, rough.panel, self.draws.another(), keep=False)
        jacobian = report_jacobian(self.likelihoods[0], vector, sizes)
        inverse = spread.covariance("hessian")
        return DrawsCheck(self.optimum.at, others.evaluate(vector), rough.weights, inverse, jacobian, sizes)


def _exact_likelihood(marginal: MarginalLikelihood, center: PopulationParameters, *, once: bool) -> Diagnostics:
    """Importance-sampled log likelihood at the estimate; draws increase until its error is small, unless ``once``."""
    draws = _FIRST_EXACT_DRAWS
    while True:
        sums = marginal.value_pass(center, IntegrationSettings(draws, 8, stream=7, newton_steps=30))
        error = sums.variance**0.5
        enough = error < max(_EXACT_ERROR, _EXACT_SHARE * abs(sums.log_likelihood))
        if once or enough or (draws >= _MOST_EXACT_DRAWS and 4 * draws * len(marginal.people) > _MOST_EXACT_WORK):
            return Diagnostics(log_likelihood=sums.log_likelihood, log_likelihood_error=error, ess=sums.ess)
        draws *= 4


def _scheme_sentences(draws: PersonDraws) -> list[str]:
    count = draws.n_draws // 2 if draws.antithetic else draws.n_draws
    if draws.scheme != "sobol" or count & (count - 1) == 0:
        return []
    return [
        f"Sobol points are balanced in blocks of powers of two; {count} per person is none: use "
        f"{2 ** round(math.log2(count))}."
    ]


def _natural_sizes(model: MixedLogitModel) -> Tensor:
    """Natural size of each coordinate: one util per typical difference of the attribute."""
    unit = 1.0 / model.attribute_scale
    rows, _ = model.space.triangle
    random = torch.ones(model.space.n_random, dtype=torch.float64)
    for i, family in enumerate(model.mixing.families):
        random[i] = unit[model.space.n_fixed + i] if family.units == "linear" else 0.5
    return model.space.drop_held(torch.cat([unit[: model.space.n_fixed], random, random[rows]]))
