"""Adam (Kingma and Ba 2015, arXiv 1412.6980) by torch's function of it: its class loads the compiler, for seconds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam

# Added to the root of the second moment (Kingma and Ba 2015, algorithm 1).
_EPSILON = 1e-8


class Adam:
    """Averages of gradients and of their squares, and steps by them: in all digits those of `torch.optim.Adam`.

    The first use of a class of `torch.optim` imports `torch._dynamo`, which takes as long as `import torch`.

    Parameters
    ----------
    parameters : iterable of Tensor
        Leaves whose ``grad`` is read; those without one are not moved.
    betas : tuple of float
        Decay of the two averages.
    """

    def __init__(self, parameters: Iterable[Tensor], betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.parameters, self.betas = list(parameters), betas
        self._moments: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the parameters against their gradients, in place, at a learning rate."""
        moved, gradients, moments = [], [], []
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            if index not in self._moments:
                first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
                self._moments[index] = first, second, torch.tensor(0.0, device="cpu")
            moved.append(parameter)
            gradients.append(parameter.grad)
            moments.append(self._moments[index])
        adam(
            moved,
            gradients,
            [first for first, _, _ in moments],
            [second for _, second, _ in moments],
            [],
            [count for _, _, count in moments],
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=rate,
            weight_decay=0.0,
            eps=_EPSILON,
            maximize=False,
        )
