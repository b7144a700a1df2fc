"""A spline flow as the population factor: fitted to weighted draws of the posterior, where it is not Gaussian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.draws import make_generator
from mxlogit.guide.flows import LocalFlow
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.correction import WeightedVectors

_STEPS, _RATE, _TEST_EVERY, _PATIENCE = 400, 5e-3, 20, 4
_WIDTH, _LAYERS, _HELD_OUT = 16, 1, 5


@dataclass(frozen=True)
class FlowFactor:
    """q(theta): splines along the axes of a Gaussian, and a lower-triangular map.

    Attributes
    ----------
    gaussian : GaussianFactor
        Weighted mean and covariance of the draws.
    flow : LocalFlow
        In its whitened coordinates.
    gain : float
        Nats by which the flow's mean log density of draws that it was not fitted to exceeds the Gaussian's.
    """

    gaussian: GaussianFactor
    flow: LocalFlow
    gain: float

    def log_prob(self, vectors: Tensor) -> Tensor:
        """Log density (n,) of unconstrained vectors (n, D)."""
        whitened = self.gaussian.whitened(vectors)
        return self.gaussian.log_prob(vectors) + _excess(self.flow, whitened)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n unconstrained vectors (n, D)."""
        size = len(self.gaussian.mean)
        noise = torch.randn(n, size, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            image, _ = self.flow(noise[None], _nothing())
        return self.gaussian.at(image[0])


def _nothing() -> Tensor:
    """The context of a flow that has none."""
    return torch.zeros(1, 1, dtype=torch.float64)


def _excess(flow: LocalFlow, whitened: Tensor) -> Tensor:
    """Log density of a flow less that of the standard normal, (n,), at whitened vectors (n, D)."""
    points, log_det = flow(whitened[None], _nothing(), inverse=True)
    return 0.5 * (whitened.square().sum(-1) - points[0].square().sum(-1)) + log_det[0]


def fit_population_flow(weighted: WeightedVectors, seed: int) -> FlowFactor:
    """Fit a flow by weighted maximum likelihood, until draws that were held out say to stop.

    Where no step helps them the flow stays the identity, and q(theta) the Gaussian.

    Parameters
    ----------
    weighted : WeightedVectors
    seed : int

    Returns
    -------
    FlowFactor
    """
    gaussian = weighted.gaussian(0.0)
    whitened, weights = gaussian.whitened(weighted.vectors), weighted.log_weights.exp()
    order = torch.randperm(len(weights), generator=make_generator(seed, 51))
    test, train = order[::_HELD_OUT], order[torch.arange(len(order)) % _HELD_OUT != 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        flow = LocalFlow(whitened.shape[1], "spline", _LAYERS, _WIDTH, n_context=1).double()
    best = {name: value.clone() for name, value in flow.state_dict().items()}
    gain, since, optimizer = 0.0, 0, torch.optim.Adam(flow.parameters(), lr=_RATE)
    for step in range(_STEPS):
        loss = -(weights[train] @ _excess(flow, whitened[train])) / weights[train].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
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
    return FlowFactor(gaussian, flow.eval().requires_grad_(requires_grad=False), gain)
