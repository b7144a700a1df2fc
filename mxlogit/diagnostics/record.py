"""The record of diagnostics of a fit: every number that an engine reports about itself, documented once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Diagnostics:
    """Numbers about the quality of a fit; None where its engine has no such number.

    `MixedLogit.diagnostics_` is the dictionary of those that are there, with ``status`` (a sentence) and ``converged``.

    Attributes
    ----------
    seconds : float
        Duration of the fit, questions about signs included.
    passes : float
        Work, in gradients over all people at one value of the parameters.
    log_likelihood, log_likelihood_error : float
        Marginal log likelihood at the point estimate by importance sampling, and its Monte Carlo standard error.
    ess : float
        Mean over people of the effective sample size of their importance weights there, as a share of the draws.
    elbo : float
        Evidence lower bound there: the mean over draws of the log weight, summed over people. With an encoder, the last
        value of its training.
    pareto_k : float
        Tail shape of the weights of the population posterior: above 0.7, with uneven weights, intervals are
        approximate. NaN for engines that weigh no population.
    ess_population : float
        Effective sample size of these weights, as a share of the draws.
    corrected : bool
        Whether posterior samples are weighted draws of the posterior, or states of short chains of it (then ``rhat`` is
        there), instead of draws from a Gaussian.
    rung : {"Gaussian", "weighted draws", "chains"}
        What posterior samples come from: the first of these, by cost, whose estimated error is small.
    rung_seconds : dict of str -> float
        Seconds of the search, of every rung that was tried, and of the report.
    posterior_rounds : int
        Natural-gradient steps from the mode to the Gaussian; zero where they did not settle.
    ess_min, pareto_k_people, people_above_k : float
        Smallest effective share and largest Pareto k of the weights of up to 1,000 people, and the share of people
        above 0.7.
    newton_decrement : float
        Increase of the log posterior (nats) that a Newton step from the mode, or maximum, still promises.
    redraw_shift : float
        Distance (posterior standard deviations, root mean square over parameters) by which new draws move the mode;
        for MSLE the largest of all parameters, in standard errors, for twice the draws.
    draws : int
        Draws per person at the mode.
    guide : str
        Description of how draws of tastes come about.
    population_flow_gain : float
        Nats by which splines fit the weighted draws better than the Gaussian.
    elbo_local, ess_encoder : float
        Evidence lower bound and effective share of the encoder's own factors, without polish.
    clipped : int
        Steps whose gradient of q(theta) was longer than allowed.
    sbp_keep : float
        Share of choice situations that the backward pass keeps.
    bound : float
        Last value of the bound that was optimised, in nats.
    iterations : int
        Steps of the optimizer, or kept iterations of every chain.
    gradients : float
        Gradients of mini-batches.
    rejected : int
        Steps that an independent batch did not confirm.
    fixed_draws : int
        Fixed draws of the population at the end.
    fixed_draws_error : float
        Monte Carlo error of the optimum that they leave, in posterior standard deviations.
    held_out_gap : float
        Nats by which the bound is better on the fixed draws than on others.
    mean_field_sd : list of float, length D
        Standard deviations before linear response.
    simulated_log_likelihood : float
        Simulated log likelihood at the estimate, of the draws of the search.
    simulated_log_likelihood_other_draws, simulated_log_likelihood_twice_the_draws : float
        The same of as many other draws, and of both together.
    std_error_change : float
        Largest relative change of a standard error for twice the draws.
    draws_enough : bool
        Whether these changes are small.
    draws_verdict : str
        The same as a sentence.
    start : str
        Starting point that led to the estimate.
    unidentified : list of str
        Coordinates along which the simulated log likelihood is flat.
    aic, bic, null_log_likelihood, rho_squared, adjusted_rho_squared : float
        Information criteria; log likelihood of equal probabilities; McFadden's indices against it.
    n_parameters : int
        Number of estimated parameters.
    rhat : float
        Largest split R-hat over parameters; NaN of one chain.
    ess_bulk, ess_tail : float
        Smallest effective sample sizes over parameters.
    taste_states : int
        States of people's tastes that were kept.
    acceptance_people, acceptance_population, acceptance_posterior : float
        Accepted shares of the proposals of a Gibbs sampler's steps; ``posterior`` alone of particle Gibbs, of its
        trajectories.
    divergences : float
        Divergent transitions of a Hamiltonian sampler after warm-up.
    error : dict of str -> float
        Estimated distance of reported means and standard deviations from the exact ones, in posterior standard
        deviations (standard deviations relative to the exact ones): the largest of the coefficients (fixed ones and
        locations), the standard deviations, the correlations, and the root mean square over people's mean tastes.
    trusted : bool
        Whether none of them exceeds 0.2.
    trust : str
        The same as a sentence, with cause and remedy where one does.
    log_evidence : float
        Log marginal likelihood of a model of classes, for every labelling of these, or of a model of fixed
        coefficients.
    wrong_sign : list of str
        Columns whose effect has not the sign that their distribution allows, held at zero.
    """

    seconds: float | None = None
    passes: float | None = None
    log_likelihood: float = math.nan
    log_likelihood_error: float = math.nan
    ess: float | None = None
    elbo: float | None = None
    pareto_k: float = math.nan
    ess_population: float | None = None
    corrected: bool | None = None
    rung: str | None = None
    rung_seconds: dict[str, float] | None = None
    posterior_rounds: int | None = None
    ess_min: float | None = None
    pareto_k_people: float | None = None
    people_above_k: float | None = None
    newton_decrement: float | None = None
    redraw_shift: float | None = None
    draws: int | None = None
    guide: str | None = None
    population_flow_gain: float | None = None
    elbo_local: float | None = None
    ess_encoder: float | None = None
    clipped: int | None = None
    sbp_keep: float | None = None
    bound: float | None = None
    iterations: int | None = None
    gradients: float | None = None
    rejected: int | None = None
    fixed_draws: int | None = None
    fixed_draws_error: float | None = None
    held_out_gap: float | None = None
    mean_field_sd: list[float] | None = None
    simulated_log_likelihood: float | None = None
    simulated_log_likelihood_other_draws: float | None = None
    simulated_log_likelihood_twice_the_draws: float | None = None
    std_error_change: float | None = None
    draws_enough: bool | None = None
    draws_verdict: str | None = None
    start: str | None = None
    unidentified: list[str] | None = None
    aic: float | None = None
    bic: float | None = None
    null_log_likelihood: float | None = None
    rho_squared: float | None = None
    adjusted_rho_squared: float | None = None
    n_parameters: int | None = None
    rhat: float | None = None
    ess_bulk: float | None = None
    ess_tail: float | None = None
    taste_states: int | None = None
    acceptance_people: float | None = None
    acceptance_population: float | None = None
    acceptance_posterior: float | None = None
    divergences: float | None = None
    error: dict[str, float] | None = None
    trusted: bool | None = None
    trust: str | None = None
    log_evidence: float | None = None
    wrong_sign: list[str] | None = None

    def join(self, other: Diagnostics) -> Diagnostics:
        """Return this record with the numbers that another one has."""
        return replace(self, **other._given())

    def to_dict(self) -> dict[str, object]:
        """Return the numbers that are there, by name."""
        found = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in found if value is not None}

    def _given(self) -> dict[str, Any]:
        """Numbers that differ from what they are by default."""
        pairs = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return {name: value for name, value, default in pairs if value is not default}
