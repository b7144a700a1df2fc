"""Observed information of all people at the mode, from as many draws as its noise asks for.

Its bias of order 1 / draws does not shrink with people and is taken away by the jackknife; its noise does, with people
times draws. By Louis' identity noise is small where people say much about their tastes, along paths of the draws where
panels are uninformative (one choice a person: a tenth of it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy import stats
from torch import Tensor

from mxlogit.inference.budgets import INFORMATION, INFORMATION_OF_FEW
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters

# Allowed noise of the information in whitened coordinates (root mean square), which is about the relative error of
# standard deviations: precise, and rough if later steps update the covariance.
PRECISE = 0.01
ROUGH = 0.03
# People, and draws per person, of the pilot run that estimates the noise.
_PILOT_PEOPLE = 250
_PILOT_DRAWS = 16
# Fewest draws from the population for the information, and their share in those that the mode required. An error of the
# mode of .05 then goes with errors of standard deviations below one per cent (20,000 people, one choice, two and three
# tastes: .7 %).
_FEWEST_OF_NETS, _SHARE_OF_NETS = 128, 0.5
# Largest number of parameters for which the noisiest direction counts instead of the mean, since draws cost little.
FEW_PARAMETERS = 12
# Factor of the draws for few parameters: with one per cent in the worst direction, one person more moved the standard
# deviation of a correlation by 2.5 % (20,000 people, one choice, two tastes), now by 1.1 %.
_MORE_FOR_FEW = 4
# Probability that an expectation exceeds its upper confidence bound.
_EXCEEDANCE = 0.1
# People on whom scores are compared, and largest ratio of the noise of pathwise scores to that of Fisher's at which the
# former are preferred: their information has less noise (two choices each of 20,000 people: ratios of 1 to 1.5, errors
# of sds of .5 per cent against 5).
_COMPARED_PEOPLE = 128
_LARGEST_NOISE_RATIO = 2.0
# Ratio of the required to the used number of draws above which the information is computed again.
_RECOMPUTE_RATIO = 1.5


@dataclass(frozen=True)
class Information:
    """Observed information (D, D) in relative coordinates and one sample (D, D) of its noise; None if that is small."""

    matrix: Tensor
    noise: Tensor | None = None

    def squared_errors(self, jacobian: Tensor) -> Tensor:
        """Expected squared errors (D,) of the logs of standard deviations, from the noise.

        A sample says little about one direction and more about the mean of all: the larger of the two is told.

        Parameters
        ----------
        jacobian : Tensor, shape (D, D)
            Jacobian of the parameters with respect to relative moves.
        """
        if self.noise is None or not is_positive(self.matrix):
            return self.matrix.new_zeros(len(self.matrix))
        root = torch.linalg.cholesky(self.matrix)
        moves = torch.cholesky_solve(jacobian.T, root).T
        relative = ((moves @ self.noise) * moves).sum(1) / (moves * jacobian).sum(1)
        return 0.25 * relative.square().clamp(min=float(whitened(self.noise, self.matrix).square().mean()))


def prefers_paths(
    marginal: MarginalLikelihood, population: PopulationParameters, integration: IntegrationSettings, curvature: Tensor
) -> bool:
    """Return whether scores along paths of the draws have no more noise than Fisher's, beside a curvature (D, D)."""
    if marginal.space.n_random == 0:
        return False
    part = subsample(marginal, _COMPARED_PEOPLE)
    fisher, paths = (
        part.effect_of_draws(population, replace(integration, draws=_PILOT_DRAWS, pathwise=pathwise), 2).noise
        for pathwise in (False, True)
    )
    inverse = torch.linalg.inv(curvature)
    return float((inverse * paths).sum()) < _LARGEST_NOISE_RATIO * float((inverse * fisher).sum())


def observed_information(
    model: MixedLogitModel,
    marginal: MarginalLikelihood,
    population: PopulationParameters,
    integration: IntegrationSettings,
    curvature: Tensor,
    precision: float,
) -> Information | None:
    """Compute the observed information of a marginal likelihood in relative coordinates.

    Parameters
    ----------
    model : MixedLogitModel
    marginal : MarginalLikelihood
        Likelihood of all people or of a random subsample.
    population : PopulationParameters
        Population parameters at which the information is taken.
    integration : IntegrationSettings
        Settings of the integration, except the number of draws around modes; from the population, draws of the mode.
    curvature : Tensor, shape (D, D)
        Positive definite approximation of the information, in whose units the noise is measured.
    precision : float
        Noise that is allowed.

    Returns
    -------
    Information or None
        None for mixing maps with kinks, whose draws do not show the curvature.
    """
    if model.mixing.is_kinked:
        return None
    if integration.from_population:
        draws = max(_FEWEST_OF_NETS, int(_SHARE_OF_NETS * integration.draws))
        return Information(marginal.information(model, population, replace(integration, draws=draws)))
    # Louis' identity is for tastes that depend on the population through latents only, and utility linear in the fixed
    # coefficients.
    position = model.mixing.scale_position
    moves = model.mixing.is_direct or (position is not None and position < model.space.n_fixed)
    integration = replace(integration, pathwise=integration.pathwise or moves)
    noise = _noise_per_draw(model, marginal, population, integration)
    # One sample of the noise has as many degrees of freedom as a symmetric matrix: of few, it may seem small by chance.
    safety = error_bound_factor(model.space.size * (model.space.size + 1) // 2)
    few = model.space.size <= FEW_PARAMETERS
    budget = INFORMATION_OF_FEW if few else INFORMATION

    def draws_for(curvature: Tensor) -> int:
        squares = whitened(noise, curvature).square()
        size = safety * float(squares.mean())
        if few:
            # That of each direction: a correlation's may be ten times as noisy as the others.
            size = _MORE_FOR_FEW * max(size, float(squares.diagonal().amax()))
        wanted = size / (precision**2 * len(marginal.people))
        return budget.draws(marginal.people.load, max(wanted, budget.least))

    draws = draws_for(curvature)
    found = marginal.information(model, population, replace(integration, draws=draws))
    # Outer products of scores from few draws contain their noise; information does not.
    better = draws_for(found) if is_positive(found) else 4 * draws
    if better > _RECOMPUTE_RATIO * draws:
        draws, found = better, marginal.information(model, population, replace(integration, draws=better))
    return Information(found, noise / (draws * len(marginal.people)) ** 0.5)


def error_bound_factor(freedom: int) -> float:
    """Factor from a mean of ``freedom`` squares to a bound that their expectation exceeds once in ten."""
    return freedom / float(stats.chi2.ppf(_EXCEEDANCE, freedom))


def _noise_per_draw(
    model: MixedLogitModel,
    marginal: MarginalLikelihood,
    population: PopulationParameters,
    integration: IntegrationSettings,
) -> Tensor:
    """A sample (D, D) of the noise of these people's information, times the root of how many draws they have in all."""
    part = subsample(marginal, _PILOT_PEOPLE)
    one, other = (
        part.information(model, population, replace(integration, draws=_PILOT_DRAWS, stream=integration.stream + group))
        for group in (1, 2)
    )
    return marginal.people.weight / part.people.weight * (0.5 * _PILOT_DRAWS * len(part.people)) ** 0.5 * (one - other)


def subsample(marginal: MarginalLikelihood, count: int) -> MarginalLikelihood:
    """Marginal likelihood of ``count`` people at random, or of all people if there are no more."""
    if len(marginal.people) <= count:
        return marginal
    return marginal.take(marginal.people.draw(count, (marginal.seed, -6)))


def whitened(matrix: Tensor, curvature: Tensor) -> Tensor:
    """A symmetric matrix (D, D) in coordinates in which a positive definite curvature (D, D) is the identity."""
    root = torch.linalg.cholesky(curvature)
    half = torch.linalg.solve_triangular(root, matrix, upper=False)
    return torch.linalg.solve_triangular(root, half.T, upper=False)


def is_positive(matrix: Tensor) -> bool:
    """Whether a symmetric matrix is positive definite."""
    return int(torch.linalg.cholesky_ex(matrix).info) == 0
