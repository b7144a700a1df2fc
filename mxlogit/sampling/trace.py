"""Stored samples of chains: all population parameters, moments of tastes, and states of tastes that fit in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from mxlogit.fit import Samples
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.sampling.chains import State

# Largest number of states of people's tastes that are kept, of all chains; at least half of it if there are as many:
# means of as many are known to a fortieth of a posterior standard deviation.
MOST_STATES = 4_096


class TasteMoments:
    """Running mean and sum of squares (n, k) of tastes, float64 (Welford 1962, Technometrics 4, for batches)."""

    def __init__(self, shape: tuple[int, int], like: Tensor) -> None:
        self.count = 0
        self.mean = like.new_zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def add(self, tastes: Tensor) -> None:
        """Add tastes (chains, n, k)."""
        batch, centre = len(tastes), tastes.mean(0)
        shift = centre - self.mean
        self.squares += (tastes - centre).square().sum(0) + shift.square() * (self.count * batch / (self.count + batch))
        self.count += batch
        self.mean += shift * (batch / self.count)

    @property
    def deviation(self) -> Tensor:
        """Standard deviations (n, k)."""
        return (self.squares / max(1, self.count - 1)).sqrt()


class Trace:
    """Kept iterations of all chains.

    Parameters
    ----------
    model : MixedLogitModel
    xi : Tensor, shape (chains, k, n)
        Whitened tastes, which give the numbers of chains and people.
    length : int
        Number of iterations to be kept.
    taste_bytes : int
        Memory for states of people's tastes, in bytes; if all iterations do not fit, or are more than enough, evenly
        spaced ones are kept.
    loads : Tensor, optional
        Covariates that shift latent normals, of `ChainLikelihood`.
    """

    def __init__(
        self, model: MixedLogitModel, xi: Tensor, length: int, taste_bytes: int, loads: Tensor | None = None
    ) -> None:
        chains, k, n = xi.shape
        self.model, self.n_kept, self._loads = model, 0, None if loads is None else loads.double()
        self._vectors = torch.empty(length, chains, model.space.size, dtype=torch.float64)
        self.moments = TasteMoments((n, k), xi)
        size = max(1, xi.numel() * xi.element_size())
        self._every = max(1, -(-length * size // max(size, taste_bytes)))
        self._most = max(1, MOST_STATES // max(1, chains))
        self._states: list[Tensor] = []

    def add(self, state: State) -> None:
        """Keep the state of all chains."""
        population = state.population
        self._vectors[self.n_kept] = self.model.space.unconstrain(population).cpu()
        shifts = self.model.mixing.shifts
        shift = None if shifts is None or self._loads is None else shifts.of(population.fixed, self._loads)
        tastes = PersonTastes(population, self.model.mixing, shift).tastes(state.xi.double()).mT
        self.moments.add(tastes)
        if self.n_kept % self._every == 0:
            self._states.append(tastes.to(state.xi))
            if len(self._states) > self._most:
                # How long chains run is not known in advance: a limit of time may end them.
                self._states, self._every = self._states[::2], 2 * self._every
        self.n_kept += 1

    def tensors(self) -> dict[str, Tensor]:
        """All stored samples as named tensors, which `restore` reads."""
        return {
            "vectors": self._vectors[: self.n_kept].clone(),
            "mean": self.moments.mean,
            "squares": self.moments.squares,
            "states": torch.stack(self._states) if self._states else torch.empty(0),
            "every": torch.tensor(self._every),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the samples stored by another trace of the same run."""
        vectors, moments = tensors["vectors"], self.moments
        self.n_kept = len(vectors)
        self._vectors[: self.n_kept] = vectors
        moments.mean, moments.squares = tensors["mean"].to(moments.mean), tensors["squares"].to(moments.mean)
        moments.count = self.n_kept * vectors.shape[1]
        self._states, self._every = list(tensors["states"].to(moments.mean.device)), int(tensors["every"])

    def vectors(self) -> Tensor:
        """Unconstrained vectors, (chains, kept, D)."""
        return self._vectors[: self.n_kept].transpose(0, 1)

    def reported(self) -> Tensor:
        """Reported parameters, (chains, kept, D)."""
        return self.model.space.report(self.model.space.constrain(self.vectors()))

    def states(self) -> tuple[Tensor, Tensor]:
        """Fixed coefficients (states x chains, f) and tastes (states x chains, n, k) of the kept states."""
        fixed, *_ = self.model.space.split(self._vectors[: self.n_kept : self._every])
        return fixed.flatten(0, 1), torch.cat(self._states)

    def samples(self, generator: torch.Generator) -> Samples:
        """Samples of all chains in random order, so that any subset represents the posterior."""
        flat = self.vectors().reshape(-1, self.model.space.size)
        flat = flat[torch.randperm(len(flat), generator=generator)]
        reported = self.model.space.report(self.model.space.constrain(flat))
        return Samples(flat, reported, tuple(self.model.space.labels))
