"""Estimates of the error of a fit that need its model and data: noise of draws, importance checks, tastes of people."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.diagnostics.error import Cause, SquaredErrors, shrunk_squares
from mxlogit.diagnostics.thresholds import LARGEST_PARETO_K
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tastes import PeopleCheck
from mxlogit.model.parameters import ParameterSpace, PopulationParameters

# Most people whose scores under two sets of draws are compared, and most draws of a set: variances of noise are known
# to a few per cent from hundreds of people.
_COMPARED_PEOPLE = 2_000
_COMPARED_DRAWS = 64
# Fewest people whose scores are compared, where these are compared with all draws that they have.
_FEWEST_COMPARED = 500
# Random streams: of the part of the people, and the step to that of their draws.
_PEOPLE_STREAM, _DRAWS_STREAM = -9, 11
# Bias of the score from some draws, in its change under twice as many, if it is inversely proportional to draws.
_BIAS_PER_CHANGE = 2.0
# Squared error of a mean by weights of a heavy tail, in their sum of squares (censored normals, 60 and 400 people: k
# above .7 for a quarter of them, told .1, true .02); chosen by hand.
_UNSEEN = 5.0


class Standardised:
    """Reported parameters in posterior standard deviations from their means.

    Parameters
    ----------
    space : ParameterSpace
    vectors : Tensor, shape (n, D)
        Unconstrained vectors that represent the posterior.
    weights : Tensor, shape (n,), optional
        Weights that sum to one; equal ones by default.
    """

    def __init__(self, space: ParameterSpace, vectors: Tensor, weights: Tensor | None = None) -> None:
        self.space, self.vectors = space, vectors
        self.weights = vectors.new_full((len(vectors),), 1.0 / len(vectors)) if weights is None else weights
        reported = space.report(space.constrain(vectors))
        self._mean = self.weights @ reported
        self._unit = (self.weights @ (reported - self._mean).square()).sqrt().clamp(min=1e-300)

    def scores(self, vectors: Tensor | None = None) -> Tensor:
        """Standardised parameters (n, D) at unconstrained vectors (n, D), by default the posterior's own."""
        vectors = self.vectors if vectors is None else vectors
        return (self.space.report(self.space.constrain(vectors)) - self._mean) / self._unit

    def response(self, population: PopulationParameters) -> Tensor:
        """Shift (D, D) of the means, in standard deviations, per change of the score in relative coordinates.

        A gradient added to the log posterior moves a mean by its covariance with the gradient's coordinates.
        """
        weighted = self.weights[:, None] * self.scores()
        covariance = weighted.T @ (self.vectors - self.weights @ self.vectors)
        return torch.linalg.solve(self.space.relative_jacobian(population).mT, covariance, left=False)


def error_of_draws(
    marginal: MarginalLikelihood,
    population: PopulationParameters,
    integration: IntegrationSettings,
    posterior: Standardised,
    weight: float,
    *,
    biased: bool = True,
) -> SquaredErrors:
    """Errors of means that noise and bias of the draws leave in the score at a population.

    The noise of a sum over people is the sum of their noises, so that two sets of draws for some hundred people tell
    its covariance.

    Parameters
    ----------
    marginal : MarginalLikelihood
        Marginal likelihood of all people, or of a random part of them.
    population : PopulationParameters
        Population parameters at which the score was taken.
    integration : IntegrationSettings
        Settings of that score.
    posterior : Standardised
    weight : float
        Sum of all people's weights.
    biased : bool
        Whether bias of the draws counts, beside their noise.
    """
    part, people, draws = marginal, _COMPARED_PEOPLE, min(integration.draws, _COMPARED_DRAWS)
    if integration.from_population:
        # Their noise does not fall in proportion to their number.
        people, draws = max(_FEWEST_COMPARED, people * draws // integration.draws), integration.draws
    if len(part.people) > people:
        part = part.take(part.people.draw(people, (part.seed, _PEOPLE_STREAM)))
    few = replace(integration, draws=draws, stream=integration.stream + _DRAWS_STREAM)
    effect = part.effect_of_draws(population, few, 2).scaled(weight / part.people.weight)
    response, share = posterior.response(population), draws / integration.draws
    bias = _BIAS_PER_CHANGE * share * (response @ effect.score)
    of_bias = (_BIAS_PER_CHANGE * share) ** 2 * _variances(response, effect.variance)
    noise = share * _mean_weight(part) * _variances(response, effect.noise)
    squares = noise + shrunk_squares(bias, of_bias) if biased else noise
    return SquaredErrors(Cause.DRAWS, squares, torch.zeros_like(noise))


def _mean_weight(marginal: MarginalLikelihood) -> float:
    """Sum of squares of people's weights over their sum: a person's noise counts by the square of the weight."""
    people = marginal.people
    weights = people.panels.weights.double()
    return people.total(weights.square()) / people.total(weights)


def _variances(response: Tensor, covariance: Tensor) -> Tensor:
    return ((response @ covariance) * response).sum(1)


def error_of_people(check: PeopleCheck, draws: int) -> float:
    """Root mean square error of people's mean tastes by importance draws, in posterior standard deviations.

    Where weights have so heavy a tail that their variance tells nothing, the sum of squares of those that were seen is
    still of the order of the squared error: what was not drawn weighs about as much as the heaviest draws.
    """
    seen = 1.0 / (draws * check.ess.double().clamp(min=1e-12))
    squares = torch.where(check.pareto_k > LARGEST_PARETO_K, _UNSEEN * seen, seen - 1.0 / draws)
    return float(squares.clamp(max=1.0).mean().sqrt())
