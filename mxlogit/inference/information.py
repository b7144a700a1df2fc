"""Observed information of everybody at the mode, from as many draws as its noise asks for.

Its bias of order 1 / draws does not shrink with people and is taken away by the jackknife; its noise does, with people
times draws. By Louis' identity the noise is small where people say much about their tastes, along paths of the draws
where they say little (one choice a person: a tenth of it), so both are tried on a few people.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.parameters import Population

# Noise of the information, in whitened coordinates (root mean square): standard deviations err by about as many
# per cent. Where the posterior is moved on from here, it need not be known as well.
PRECISE, ROUGH = 0.01, 0.03
# People and draws of the trial; draws at most, and people times draws.
_TRIED, _FEWEST, _MOST, _MOST_WORK = 250, 16, 4_096, 16_000_000
# Pathwise noise that is this share of the other is worth its price.
_WORTH_A_PATH = 0.7
# Times more draws than were taken, from which on they are taken.
_TOO_FEW = 1.5



@dataclass(frozen=True)
class _Rule:
    """How information is computed, for whom, and what the trial said.

    Attributes
    ----------
    compute : callable
    marginal : MarginalLikelihood
    scale : float
        Weight of everybody in that of these people.
    noise : Tensor, shape (D, D)
        Of everybody's information with one draw of one person, over the root of whose numbers it falls.
    """

    compute: Callable[[MarginalLikelihood, Sweep], Tensor]
    marginal: MarginalLikelihood
    scale: float
    noise: Tensor

    def draws(self, curvature: Tensor, precision: float) -> int:
        """Draws of each person that make the noise small beside a curvature (D, D)."""
        people = len(self.marginal.people)
        most = min(_MOST, max(_FEWEST, _FEWEST * (_MOST_WORK // (_FEWEST * people))))
        wanted = float(whitened(self.noise, curvature).square().mean()) / (precision**2 * people)
        return most if wanted > most else max(_FEWEST, _FEWEST * math.ceil(wanted / _FEWEST))

    def information(self, sweep: Sweep, draws: int) -> Tensor:
        """Information (D, D) of everybody."""
        return self.scale * self.compute(self.marginal, replace(sweep, draws=draws))


def observed_information(
    model: PanelModel,
    sample: MarginalLikelihood,
    everybody: MarginalLikelihood,
    population: Population,
    sweep: Sweep,
    curvature: Tensor,
    precision: float,
) -> Tensor | None:
    """Observed information (D, D) of everybody's likelihood in relative coordinates.

    Parameters
    ----------
    model : PanelModel
    sample, everybody : MarginalLikelihood
        Of a random subsample, or of everybody again. The former is enough where people say much.
    population : Population
    sweep : Sweep
        How to draw; how often is found here.
    curvature : Tensor, shape (D, D)
        About the information, positive definite: in its units noise counts.
    precision : float
        Noise that is allowed.

    Returns
    -------
    Tensor or None
        None for maps with kinks, whose draws do not have the curvature.
    """
    if model.mixing.is_kinked:
        return None
    rule = _choose(model, sample, everybody, population, sweep, curvature, precision)
    draws = rule.draws(curvature, precision)
    found = rule.information(sweep, draws)
    # Outer products of scores from few draws contain their noise; information does not.
    if is_positive(found) and (better := rule.draws(found, precision)) > _TOO_FEW * draws:
        draws = better; found = rule.information(sweep, better)
    import os; os.environ.get("PA") and print("info", rule.compute.__name__, draws, len(rule.marginal.people))
    return found


def _choose(
    model: PanelModel,
    sample: MarginalLikelihood,
    everybody: MarginalLikelihood,
    population: Population,
    sweep: Sweep,
    curvature: Tensor,
    precision: float,
) -> _Rule:
    """Louis' identity on the subsample, or paths of everybody where those have less noise on a few people."""
    part = sample
    if len(sample.people) > _TRIED:
        part = sample.take(sample.people.draw(_TRIED, (sample.seed, -6)))
    unit = everybody.people.weight / part.people.weight * (0.5 * _FEWEST * len(part.people)) ** 0.5

    def louis(marginal: MarginalLikelihood, sweep: Sweep) -> Tensor:
        return marginal.information(population, marginal.propose(population, sweep, remember=False))

    def pathwise(marginal: MarginalLikelihood, sweep: Sweep) -> Tensor:
        return marginal.pathwise_information(model, population, sweep)

    def tried(compute: Callable[[MarginalLikelihood, Sweep], Tensor], marginal: MarginalLikelihood) -> _Rule:
        one, other = (compute(part, replace(sweep, draws=_FEWEST, key=sweep.key + i)) for i in (1, 2))
        return _Rule(compute, marginal, everybody.people.weight / marginal.people.weight, unit * (one - other))

    if model.mixing.direct:
        return tried(pathwise, everybody)
    rule = tried(louis, sample)
    if rule.draws(curvature, precision) == _FEWEST:
        return rule
    other = tried(pathwise, everybody)
    sizes = [float(whitened(r.noise, curvature).norm()) for r in (rule, other)]
    return other if sizes[1] < _WORTH_A_PATH * sizes[0] else rule


def whitened(matrix: Tensor, curvature: Tensor) -> Tensor:
    """A symmetric matrix (D, D) in coordinates in which a positive definite curvature (D, D) is the identity."""
    root = torch.linalg.cholesky(curvature)
    half = torch.linalg.solve_triangular(root, matrix, upper=False)
    return torch.linalg.solve_triangular(root, half.T, upper=False)


def is_positive(matrix: Tensor) -> bool:
    """Whether a symmetric matrix is positive definite."""
    return int(torch.linalg.cholesky_ex(matrix).info) == 0
