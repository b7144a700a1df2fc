"""The simulated likelihood as a loss that scipy's optimisers minimise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mxlogit.integration.simulated_likelihood import SimulatedLikelihood, SimulatedScores


class ScaledLoss:
    """Minus the simulated log likelihood in coordinates divided by their scales; the last point is kept."""

    def __init__(self, simulated: SimulatedLikelihood, scales: Tensor) -> None:
        self.simulated, self.scales = simulated, scales
        self._last: tuple[bytes, SimulatedScores] | None = None

    def _at(self, scaled: np.ndarray, *, curvature: bool = False) -> SimulatedScores:
        key = scaled.tobytes()
        if self._last is None or self._last[0] != key or (curvature and self._last[1].hessian is None):
            vector = torch.from_numpy(scaled.copy()) * self.scales
            self._last = key, self.simulated.evaluate(vector, curvature=curvature)
        return self._last[1]

    def value(self, scaled: np.ndarray) -> float:
        """Loss at scaled coordinates (D,)."""
        return -float(self._at(scaled).log_prob @ self.simulated.weights)

    def gradient(self, scaled: np.ndarray) -> np.ndarray:
        """Its gradient (D,)."""
        gradient: np.ndarray = -(self.scales * (self._at(scaled).scores.T @ self.simulated.weights)).numpy()
        return gradient

    def hessian(self, scaled: np.ndarray) -> np.ndarray:
        """Its exact Hessian (D, D)."""
        exact = self._at(scaled, curvature=True).hessian
        assert exact is not None
        hessian: np.ndarray = -(self.scales[:, None] * exact * self.scales).numpy()
        return hessian

    def first_inverse_hessian(self, start: Tensor) -> np.ndarray:
        """Inverse of the sum of outer products of scores at the start, with a ridge."""
        scores = self.simulated.evaluate(start).scores * self.scales
        outer = (scores * self.simulated.weights[:, None]).T @ scores
        ridge = 1e-3 * outer.diagonal().mean() * torch.eye(len(outer), dtype=outer.dtype)
        inverse = torch.linalg.inv(outer + ridge).numpy()
        symmetric: np.ndarray = 0.5 * (inverse + inverse.T)
        return symmetric
