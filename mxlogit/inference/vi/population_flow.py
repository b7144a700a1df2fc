"""A spline flow as the population factor, fitted to weighted draws of a non-Gaussian posterior.

Standard deviations are transformed by `NormalScales`, because their posterior density does not vanish at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.guide.flows import LocalFlow
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.weighted_draws import WeightedVectors
from mxlogit.model.parameters import ParameterSpace
from mxlogit.optim.adam import Adam

# Constants are chosen by hand.
# Most steps of Adam and its learning rate.
_STEPS = 400
_RATE = 5e-3
# Early stopping: every fifth draw is held out, tested every 20 steps; training stops after 4 tests without improvement.
_HELD_OUT = 5
_TEST_EVERY = 20
_PATIENCE = 4
# Width of the hidden layers, and number of spline layers.
_WIDTH = 16
_LAYERS = 1


@dataclass(frozen=True)
class NormalScales:
    """Coordinates in which a half-normal standard deviation is standard normal; other parameters are unchanged.

    Attributes
    ----------
    first : int
        Index of the first log standard deviation.
    unit : Tensor, shape (k,)
        Root mean squares of the standard deviations, their units. The map is nearly linear far from zero.
    """

    first: int
    unit: Tensor

    @classmethod
    def of(cls, first: int, count: int, weighted: WeightedVectors) -> NormalScales:
        """Compute the units from weighted draws."""
        squares = (2.0 * weighted.vectors[:, first : first + count]).exp()
        return cls(first, (weighted.log_weights.exp() @ squares).sqrt())

    @property
    def _places(self) -> slice:
        return slice(self.first, self.first + len(self.unit))

    def from_unconstrained(self, vectors: Tensor) -> Tensor:
        """Points (n, D) in these coordinates of unconstrained vectors (n, D)."""
        result = vectors.clone()
        ratio = vectors[:, self._places].exp() / self.unit
        # Both tails of the half-normal have probability 2 Phi(-ratio).
        result[:, self._places] = -torch.special.ndtri(2.0 * _upper_tail(ratio))
        return result

    def to_unconstrained(self, points: Tensor) -> Tensor:
        """Unconstrained vectors (n, D) of points (n, D)."""
        result = points.clone()
        ratio = -torch.special.ndtri(0.5 * _upper_tail(points[:, self._places]))
        result[:, self._places] = (ratio * self.unit).log()
        return result

    def log_jacobian(self, vectors: Tensor) -> Tensor:
        """Log determinant (n,) of the derivative of `points`."""
        ratio = vectors[:, self._places].exp() / self.unit
        bent = self.from_unconstrained(vectors)[:, self._places]
        return (math.log(2.0) + 0.5 * (bent.square() - ratio.square()) + ratio.log()).sum(-1)


@dataclass(frozen=True)
class FlowFactor:
    """q(theta): splines along the axes of a Gaussian, and a lower-triangular map.

    Attributes
    ----------
    coordinates : NormalScales
    gaussian : GaussianFactor
        Weighted mean and covariance of the draws, in these coordinates.
    flow : LocalFlow
        Flow in the whitened coordinates of ``gaussian``.
    gain : float
        Mean log density of held-out draws less the Gaussian's, in nats.
    """

    coordinates: NormalScales
    gaussian: GaussianFactor
    flow: LocalFlow
    gain: float

    def log_prob(self, vectors: Tensor) -> Tensor:
        """Log density (n,) of unconstrained vectors (n, D)."""
        points = self.coordinates.from_unconstrained(vectors)
        log_q = self.gaussian.log_prob(points) + _excess(self.flow, self.gaussian.whitened(points))
        return log_q + self.coordinates.log_jacobian(vectors)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n unconstrained vectors (n, D)."""
        size = len(self.gaussian.mean)
        noise = torch.randn(n, size, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            image, _ = self.flow(noise[None], _no_context())
        return self.coordinates.to_unconstrained(self.gaussian.at(image[0]))


def _upper_tail(x: Tensor) -> Tensor:
    """Probability that a standard normal exceeds x; `torch.special.ndtr` underflows to zero below -9."""
    return 0.5 * torch.special.erfc(x / math.sqrt(2.0))


def _no_context() -> Tensor:
    """Constant context of an unconditional flow."""
    return torch.zeros(1, 1, dtype=torch.float64)


def _excess(flow: LocalFlow, whitened: Tensor) -> Tensor:
    """Log density (n,) of a flow less log density of the standard normal, at whitened vectors (n, D)."""
    points, log_det = flow(whitened[None], _no_context(), inverse=True)
    return 0.5 * (whitened.square().sum(-1) - points[0].square().sum(-1)) + log_det[0]


def fit_population_flow(weighted: WeightedVectors, space: ParameterSpace, seed: int) -> FlowFactor:
    """Fit a flow by weighted maximum likelihood, with early stopping on held-out draws.

    If no step improves the held-out density, the flow is the identity and q(theta) the Gaussian.

    Parameters
    ----------
    weighted : WeightedVectors
    space : ParameterSpace
    seed : int

    Returns
    -------
    FlowFactor
    """
    coordinates = NormalScales.of(space.n_means, space.n_random, weighted)
    points = coordinates.from_unconstrained(weighted.vectors)
    # The transform of a standard deviation forty times the typical one overflows; its weight is negligible.
    near = torch.isfinite(points).all(-1)
    points, log_weights = points[near], weighted.log_weights[near].log_softmax(0)
    gaussian = replace(weighted, vectors=points, log_weights=log_weights).gaussian(0.0)
    whitened, weights = gaussian.whitened(points), log_weights.exp()
    order = torch.randperm(len(weights), generator=make_generator(seed, 51))
    test, train = order[::_HELD_OUT], order[torch.arange(len(order)) % _HELD_OUT != 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        flow = LocalFlow(whitened.shape[1], "spline", _LAYERS, _WIDTH, n_context=1).double()
    best = {name: value.clone() for name, value in flow.state_dict().items()}
    gain, since, optimizer = 0.0, 0, Adam(flow.parameters())
    for step in range(_STEPS):
        loss = -(weights[train] @ _excess(flow, whitened[train])) / weights[train].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(_RATE)
        if (step + 1) % _TEST_EVERY:
            continue
        with torch.no_grad():
            found = float(weights[test] @ _excess(flow, whitened[test]) / weights[test].sum())
        since = 0 if found > gain else since + 1
        if found > gain:
            gain, best = found, {name: value.clone() for name, value in flow.state_dict().items()}
        if since == _PATIENCE:
            break
    flow.load_state_dict(best)
    return FlowFactor(coordinates, gaussian, flow.eval().requires_grad_(requires_grad=False), gain)
