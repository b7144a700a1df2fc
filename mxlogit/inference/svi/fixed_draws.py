r"""Fixed draws: the bound of a diagonal Gaussian as a deterministic function, minimised by trust-region Newton.

After Giordano, Ingram and Broderick (2024, Journal of Machine Learning Research 25, arXiv 2304.05527): with M fixed
draws, the optimum is found to convergence, its covariance is corrected by linear response, and the Monte Carlo error of
the fixed draws is estimated. With a full covariance the bound on M draws could be unbounded, so only a diagonal one is
offered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from mxlogit.fit import HistoryRow
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.clock import Clock
from mxlogit.inference.svi.guide_objective import GuideObjective
from mxlogit.optim.curvature import Product, Smooth

# Initial and largest number M of fixed draws of theta; chosen by hand.
FIRST_DRAWS = 30
_MOST_DRAWS = 960
# Largest allowed Monte Carlo error of a mean, in linear-response sds; chosen by hand.
_LARGEST_ERROR = 0.5
# Most rounds in which people's factors are updated at the optimum, and move of the optimum, in sds, that ends them;
# chosen by hand.
_ROUNDS = 6
_SETTLED = 0.05
# Keys of the fitted and the held-out draws.
_KEY = 0
_HELD_OUT_KEY = 1
# Norm of the gradient, in the units of the guide, at which the search ends; chosen by hand.
_GRADIENT = 0.02
# Most Newton steps of a round: a tenth is typical; with too few draws the bound may be unbounded.
_ITERATIONS = 100
# Smallest curvature relative to the largest, if a search ended before its optimum; chosen by hand.
_LEAST_CURVATURE = 1e-6


@dataclass(frozen=True)
class FixedDraws:
    """Optimum of the bound on fixed draws.

    Attributes
    ----------
    factor : GaussianFactor
        Gaussian with the mean of the optimum and the covariance by linear response.
    mean_field : Tensor, shape (D,)
        Standard deviations of the diagonal factor itself.
    draws : int
        Number M of draws.
    error : float
        Largest Monte Carlo error of a mean, in linear-response sds.
    held_out_gap : float
        Difference of the bound between fitted and held-out draws, in nats; positive if it is worse on held-out draws.
    gradients : float
        Cost in gradient evaluations.
    settled : bool
        Whether people's factors and the optimum have converged jointly.
    """

    factor: GaussianFactor
    mean_field: Tensor
    draws: int
    error: float
    held_out_gap: float
    gradients: float
    settled: bool


def minimise_fixed_draws(objective: GuideObjective, seed: int, clock: Clock, draws: int = FIRST_DRAWS) -> FixedDraws:
    """Double the number of draws until their error is below half a posterior sd.

    Parameters
    ----------
    objective : GuideObjective
        Bound of a guide with a diagonal population factor and no other trained part.
    seed : int
    clock : Clock
    draws : int
        Initial number of draws, even.

    Returns
    -------
    FixedDraws
    """
    vector, gradients = objective.vector(), 0.0
    while True:
        fixed = GuideObjective(
            objective.guide,
            objective.panel,
            replace(objective.settings, points=draws, batch=len(objective.panel)),
            seed,
        )
        vector, smooth, settled = _minimise(fixed, vector, clock)
        gradients += smooth.gradients
        found = _describe(fixed, vector, smooth, gradients, settled=settled)
        if found.error < _LARGEST_ERROR or 2 * draws > _MOST_DRAWS or clock.is_over():
            return found
        draws *= 2


def _minimise(objective: GuideObjective, vector: Tensor, clock: Clock) -> tuple[Tensor, Smooth, bool]:
    """Find the optimum on fixed draws, updating people's factors in rounds."""
    spent = 0.0
    for _ in range(_ROUNDS):
        smooth = objective.freeze(_KEY, vector)
        new = torch.from_numpy(_trust_newton(smooth, vector, clock))
        spent += smooth.gradients
        size = len(new) // 2
        move = float(((new - vector)[:size] / new[size:].exp()).abs().amax())
        vector = new
        if clock.was_over:
            break
        if move < _SETTLED or objective.guide.model.space.n_random == 0:
            smooth.gradients = spent
            return vector, smooth, True
    smooth.gradients = spent
    return vector, smooth, False


def _trust_newton(smooth: Smooth, vector: Tensor, clock: Clock) -> np.ndarray:
    kept: dict[bytes, Product] = {}

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = smooth.gradient(torch.from_numpy(x.copy()))
        return value, gradient.numpy()

    def multiply(x: np.ndarray, direction: np.ndarray) -> np.ndarray:
        key = x.tobytes()
        if key not in kept:
            kept.clear()
            kept[key] = smooth.curvature(torch.from_numpy(x.copy()))
        return kept[key](torch.from_numpy(np.array(direction))).numpy()

    def record(intermediate_result: optimize.OptimizeResult) -> None:
        value = float(intermediate_result.fun)
        row = HistoryRow("fixed draws", -value, float("nan"), smooth.gradients, clock.seconds(), accepted=True)
        clock.history.append(row)
        clock.passes = max(clock.passes, smooth.gradients)
        clock.show(f"fixed draws: bound {-value:.3f}, {smooth.gradients:.0f} gradients")
        if clock.is_over():
            raise StopIteration

    found = optimize.minimize(
        value_and_gradient,
        vector.numpy(),
        jac=True,
        hessp=multiply,
        method="trust-ncg",
        callback=record,
        options={"gtol": _GRADIENT, "maxiter": _ITERATIONS},
    )
    return np.asarray(found.x)


def _describe(
    objective: GuideObjective, vector: Tensor, smooth: Smooth, gradients: float, *, settled: bool
) -> FixedDraws:
    guide, size = objective.guide, len(vector) // 2
    unit = guide.base_tril.diagonal()
    covariance, error = linear_response(smooth, vector)
    response = covariance[:size, :size]
    deviation = response.diagonal().sqrt()
    mean = guide.base_mean + unit * vector[:size]
    tril = torch.linalg.cholesky(unit[:, None] * response * unit)
    other = objective.freeze(_HELD_OUT_KEY, vector)
    gap = float(other.values(vector).mean() - smooth.values(vector).mean())
    return FixedDraws(
        GaussianFactor(mean, tril),
        unit * vector[size:].exp(),
        objective.settings.points,
        float((error[:size] / deviation).amax()),
        gap,
        gradients,
        settled,
    )


def _inverse(hessian: Tensor) -> Tensor:
    """Inverse (d, d) of a Hessian; of its absolute eigenvalues if it is not positive definite (not at an optimum)."""
    values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.T))
    if not bool((values > 0.0).all()):
        values = values.abs().clamp(min=_LEAST_CURVATURE * float(values.abs().amax()))
    return (vectors / values) @ vectors.T


def linear_response(smooth: Smooth, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse Hessian (d, d) at an optimum, and the Monte Carlo error (d,) of the optimum from independent values.

    The block of the means is the linear-response covariance, exact for a Gaussian target (Giordano, Broderick and
    Jordan 2018, Journal of Machine Learning Research 19).
    """
    inverse = _inverse(smooth.hessian(vector))
    scores = torch.autograd.functional.jacobian(smooth.function, vector)
    centred = scores - scores.mean(0)
    spread = centred.T @ centred / (len(scores) - 1)
    error = (inverse @ spread @ inverse / len(scores)).diagonal().clamp(min=0.0).sqrt()
    return 0.5 * (inverse + inverse.T), error
