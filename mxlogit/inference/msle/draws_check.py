"""Whether simulated draws were enough: a maximum under other draws, and what these say of its error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.diagnostics.error import Cause, SquaredErrors, shrunk_squares
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.integration.simulated_likelihood import SimulatedScores

# Draws are not enough if twice the draws would move an estimate by more than this, in standard errors,
_FAR = 0.5
# or change a standard error by more than this share. Both chosen by hand.
_UNSTEADY = 0.2
# Bias of some draws, in its change under twice as many: it is inversely proportional to draws.
_BIAS_PER_CHANGE = 2.0
# Expected square of an error from noise, in the square of its change under twice the draws.
_NOISE_PER_CHANGE = 2.0


@dataclass(frozen=True)
class DrawsCheck:
    """A maximum under the draws of its search and under as many others.

    Attributes
    ----------
    first, other : SimulatedScores
        Log probabilities (n,) and scores (n, D) of every person there.
    weights : Tensor, shape (n,)
    inverse : Tensor, shape (D, D)
        Inverse of the negative Hessian of the simulated log likelihood.
    jacobian : Tensor, shape (D, D)
        Jacobian of the reported parameters with respect to the coordinates.
    sizes : Tensor, shape (D,)
        Natural sizes of the coordinates.
    """

    first: SimulatedScores
    other: SimulatedScores
    weights: Tensor
    inverse: Tensor
    jacobian: Tensor
    sizes: Tensor

    def both(self) -> SimulatedScores:
        """Log probabilities and scores under both sets of draws together."""
        log_prob = torch.stack([self.first.log_prob, self.other.log_prob])
        share = log_prob.softmax(0)[..., None]
        scores = share[0] * self.first.scores + share[1] * self.other.scores
        return replace(self.first, log_prob=log_prob.logsumexp(0) - math.log(2.0), scores=scores)

    def diagnose(self, n_draws: int) -> Diagnostics:
        """Diagnostics of the change under twice the draws, with a verdict in words."""
        both = self.both()
        move = (self.inverse @ (both.scores.T @ self.weights)) / self.inverse.diagonal().sqrt()
        old, new = (self._outer(at.scores).diagonal().sqrt() for at in (self.first, both))
        shift, change = float(move.nan_to_num().abs().max()), float((new / old - 1.0).nan_to_num().abs().max())
        enough = shift < _FAR and change < _UNSTEADY
        verdict = (
            f"Twice the draws would move estimates by up to {shift:.2f} standard errors and change standard errors by "
            f"up to {change:.0%}: {n_draws} draws were {'enough' if enough else 'not enough'}."
        )
        return Diagnostics(
            simulated_log_likelihood_other_draws=float(self.other.log_prob @ self.weights),
            simulated_log_likelihood_twice_the_draws=float(both.log_prob @ self.weights),
            redraw_shift=shift,
            std_error_change=change,
            draws_enough=enough,
            draws_verdict=verdict,
        )

    def errors(self) -> SquaredErrors:
        """Expected squared errors of estimates and standard errors, in standard errors.

        People's noises are independent, so that its variance follows from two sets of draws; the bias is seen in sums.
        """
        both = self.both()
        response = self.jacobian @ self.inverse
        unit = (response * self.jacobian).sum(1).clamp(min=1e-300).sqrt()
        apart = (self.weights[:, None] * (self.first.scores - self.other.scores)) @ (response / unit[:, None]).T
        bent = self.weights[:, None] * (both.scores - 0.5 * (self.first.scores + self.other.scores))
        bent = _BIAS_PER_CHANGE * bent @ (response / unit[:, None]).T
        bias = shrunk_squares(bent.sum(0), len(bent) * bent.var(0))
        old, new = (((self.jacobian @ self._outer(at.scores)) * self.jacobian).sum(1) for at in (self.first, both))
        change = 0.5 * (new / old).log()
        return SquaredErrors(Cause.SIMULATION, 0.5 * apart.square().sum(0) + bias, _NOISE_PER_CHANGE * change.square())

    def _outer(self, scores: Tensor) -> Tensor:
        """Covariance (D, D) of the coordinates from outer products of scores."""
        scaled = scores * self.sizes
        inverse = torch.linalg.pinv(scaled.T @ (self.weights[:, None] * scaled), hermitian=True)
        return self.sizes[:, None] * inverse * self.sizes
