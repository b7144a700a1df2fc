r"""Populations that consist of classes: parameters of each class, and probabilities of membership.

Person n belongs to class c with probability :math:`\pi_{nc} \propto e^{\gamma_c'(1, z_n)}`, :math:`\gamma_1 = 0`; the
latent tastes of class c are normal with mean :math:`\zeta_c` and covariance :math:`L_c L_c'`, or equal to
:math:`\zeta_c` in a latent class model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters


@dataclass(frozen=True)
class ClassPopulation(PopulationParameters):
    """Parameters of a population of C classes (float64).

    Attributes
    ----------
    fixed : Tensor, shape (*s, f)
        Fixed coefficients, the same in all classes.
    location : Tensor, shape (*s, C, k)
        Means of the latent normals of each class.
    scale_tril : Tensor, shape (*s, C, k, k)
        Cholesky factors of their covariances; zero in a latent class model.
    membership : Tensor, shape (*s, C - 1, 1 + z)
        Constants and effects of covariates on the logits of membership, relative to the first class.
    attended : Tensor, shape (C, f + k)
        One for the attributes that count in a class, zero for those that it ignores.
    """

    membership: Tensor
    attended: Tensor

    @property
    def n_classes(self) -> int:
        """Number C of classes."""
        return len(self.attended)

    def to(self, like: Tensor) -> ClassPopulation:
        """Return the parameters in the dtype and on the device of ``like``."""
        return replace(self.map(lambda part: part.to(like)), attended=self.attended.to(like))

    def frozen(self) -> ClassPopulation:
        """Return the parameters detached from the autograd graph."""
        return self.map(Tensor.detach)

    def map(self, function: Callable[[Tensor], Tensor]) -> ClassPopulation:
        """Apply a function to each of the parameters, such as one that takes some samples."""
        parts = (self.fixed, self.location, self.scale_tril, self.membership)
        fixed, location, tril, membership = (function(part) for part in parts)
        return ClassPopulation(fixed, location, tril, membership, self.attended)

    def component(self, number: int) -> PopulationParameters:
        """Population parameters of the class with this index, of which ignored attributes have coefficients too."""
        return PopulationParameters(self.fixed, self.location[..., number, :], self.scale_tril[..., number, :, :])

    def log_shares(self, covariates: Tensor | None = None) -> Tensor:
        """Log probabilities of membership (*s, n, C) of people with covariates (n, z); (*s, 1, C) without."""
        return log_memberships(self.membership, covariates)

    def mean_shares(self, covariates: Tensor | None, weights: Tensor) -> Tensor:
        """Shares (*s, C) of the classes among people with covariates (n, z) and weights (n,)."""
        shares = self.log_shares(covariates).exp()
        if shares.shape[-2] == 1:
            return shares[..., 0, :]
        return torch.einsum("n,...nc->...c", weights / weights.sum(), shares)

    def class_tastes(self, mixing: Mixing, normals: Tensor | None = None) -> Tensor:
        """Parameters (*s, C, r, f + k) of the members of each class at standard normals (k, r); by default at zero."""
        location = self.location[..., None]
        latents = location if normals is None else location + self.scale_tril @ normals
        tastes = mixing.tastes(latents.mT, location.mT, self.scale[..., None, :])
        fixed = self.fixed[..., None, None, :].expand(*tastes.shape[:-1], -1)
        return torch.cat([fixed, tastes], -1) * self.attended[:, None]


def log_memberships(membership: Tensor, covariates: Tensor | None = None) -> Tensor:
    """Log probabilities (*s, n, C), of coefficients (*s, C - 1, 1 + z) and covariates (n, z); (*s, 1, C) without."""
    logits = membership[..., 0][..., None, :]
    if covariates is not None and membership.shape[-1] > 1:
        logits = logits + covariates.to(membership) @ membership[..., 1:].mT
    return torch.cat([torch.zeros_like(logits[..., :1]), logits], -1).log_softmax(-1)


@dataclass(frozen=True)
class ClassSpace(ParameterSpace):
    """Layout of the parameters of a population of classes.

    The unconstrained vector has fixed coefficients, then for each class locations (log standard deviations, partial
    correlations) of the attributes that it does not ignore, then class after class the coefficients of membership at
    centred covariates. The reported vector has standard deviations and correlations in their places, and the constants
    of membership at covariates of zero.

    Attributes
    ----------
    n_classes : int
        Number C of classes.
    ignored : tuple of tuple of int, length C
        Positions, among all f + k attributes, of those that each class ignores.
    is_spread : bool
        Whether tastes differ within classes.
    covariates : tuple of str, length z
        Covariates of membership.
    offsets : tuple of float, length z
        Their averages.
    """

    n_classes: int = 2
    ignored: tuple[tuple[int, ...], ...] = ((), ())
    is_spread: bool = False
    covariates: tuple[str, ...] = ()
    offsets: tuple[float, ...] = ()

    @property
    def of_class(self) -> ParameterSpace:
        """Layout of the own parameters of one class that ignores nothing."""
        return ParameterSpace((), self.random, self.blocks)

    @property
    def width(self) -> int:
        """Number d of own parameters of a class that ignores nothing."""
        return self.of_class.size if self.is_spread else self.n_random

    @property
    def attended(self) -> Tensor:
        """One for the attributes that count in a class, zero for those that it ignores, (C, f + k)."""
        counts = torch.ones(self.n_classes, self.n_fixed + self.n_random, dtype=torch.float64)
        for number, places in enumerate(self.ignored):
            counts[number, list(places)] = 0.0
        return counts

    @cached_property
    def kept(self) -> list[int]:
        """Positions of the estimated own parameters among those of all classes, (C d)."""
        own, found = self.of_class, list[int]()
        for number, places in enumerate(self.ignored):
            counts = [self.n_fixed + i not in places for i in range(self.n_random)]
            flags = list(counts)
            if self.is_spread:
                flags += [*counts, *(counts[a] and counts[b] for a, b in own.pairs)]
            found += [number * self.width + i for i, flag in enumerate(flags) if flag]
        return found

    def columns_of_class(self, number: int) -> tuple[list[int], list[int]]:
        """Attributes that count in a class without spread, and the coordinates (among D) of their coefficients."""
        used = [i for i in range(self.n_fixed + self.n_random) if i not in self.ignored[number]]
        place = {old: self.n_fixed + new for new, old in enumerate(self.kept)}
        first = number * self.width - self.n_fixed
        return used, [i if i < self.n_fixed else place[first + i] for i in used]

    @property
    def n_membership(self) -> int:
        """Number of coefficients of membership."""
        return (self.n_classes - 1) * (1 + len(self.covariates))

    @property
    def size(self) -> int:
        """Length D of the unconstrained and of the reported vector."""
        return self.n_fixed + len(self.kept) + self.n_membership

    @property
    def labels(self) -> list[str]:
        """Labels of the reported vector: columns, ``class1.<column>`` and so on, ``class2.membership``."""
        own = self.of_class.labels if self.is_spread else list(self.random)
        tastes = [f"class{c + 1}.{label}" for c in range(self.n_classes) for label in own]
        parts = ["membership", *(f"membership:{name}" for name in self.covariates)]
        members = [f"class{c + 1}.{part}" for c in range(1, self.n_classes) for part in parts]
        return [*self.fixed, *(tastes[i] for i in self.kept), *members]

    @property
    def share_labels(self) -> list[str]:
        """Labels of the shares of the classes in summaries."""
        return [f"class{c + 1}.share" for c in range(self.n_classes)]

    def own(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parts of vectors (*s, D): fixed (*s, f), of classes (*s, C, d), of membership (*s, C - 1, 1 + z).

        Parameters of ignored attributes are zero (a standard deviation of one, if the vector is unconstrained).
        """
        fixed, tastes, membership = vector.split([self.n_fixed, len(self.kept), self.n_membership], -1)
        whole = tastes.new_zeros(*tastes.shape[:-1], self.n_classes * self.width)
        whole = whole.index_copy(-1, torch.tensor(self.kept, dtype=torch.int64, device=whole.device), tastes)
        return (
            fixed,
            whole.unflatten(-1, (self.n_classes, self.width)),
            membership.unflatten(-1, (self.n_classes - 1, 1 + len(self.covariates))),
        )

    def join(self, fixed: Tensor, tastes: Tensor, membership: Tensor) -> Tensor:
        """Join the parts of `own` to vectors (*s, D)."""
        return torch.cat([fixed, tastes.flatten(-2)[..., self.kept], membership.flatten(-2)], -1)

    def constrain(self, vector: Tensor) -> ClassPopulation:
        """Convert unconstrained vectors (*s, D) to a population."""
        fixed, tastes, membership = self.own(vector)
        if self.is_spread:
            inside = self.of_class.constrain(tastes)
            location, tril = inside.location, inside.scale_tril
        else:
            location, tril = tastes, tastes.new_zeros(*tastes.shape, self.n_random)
        return ClassPopulation(fixed, location, tril, self._moved(membership, -1.0), self.attended)

    def constrain_each(self, vectors: Tensor) -> list[PopulationParameters]:
        """Convert unconstrained vectors (n, D) to n population values."""
        whole = self.constrain(vectors)
        return [whole.map(lambda part, i=i: part[i]) for i in range(len(vectors))]  # type: ignore[misc]

    def unconstrain(self, population: PopulationParameters) -> Tensor:
        """Convert a population to unconstrained vectors (*s, D)."""
        assert isinstance(population, ClassPopulation)
        tastes = population.location
        if self.is_spread:
            tastes = self.of_class.unconstrain(_inside(population))
        return self.join(population.fixed, tastes, self._moved(population.membership, 1.0))

    def report(self, population: PopulationParameters) -> Tensor:
        """Convert a population to reported vectors (*s, D)."""
        assert isinstance(population, ClassPopulation)
        tastes = self.of_class.report(_inside(population)) if self.is_spread else population.location
        return self.join(population.fixed, tastes, population.membership)

    def from_report(self, vector: Tensor) -> ClassPopulation:
        """Convert reported vectors (*s, D) to a population."""
        fixed, tastes, membership = self.own(vector)
        if not self.is_spread:
            tril = tastes.new_zeros(*tastes.shape, self.n_random)
            return ClassPopulation(fixed, tastes, tril, membership, self.attended)
        scales = tastes[..., self.of_class.scales]
        ignored = 1.0 - self.attended[:, self.n_fixed :].to(scales)
        tastes = torch.cat([tastes[..., : self.n_random], scales + ignored, tastes[..., 2 * self.n_random :]], -1)
        inside = self.of_class.from_report(tastes)
        return ClassPopulation(fixed, inside.location, inside.scale_tril, membership, self.attended)

    def ordered(self, population: ClassPopulation, shares: Tensor) -> ClassPopulation:
        """The population with classes in the order of their shares (C,), largest first, where they are exchangeable."""
        order = list(range(self.n_classes))
        for alike in self.exchangeable:
            ranked = sorted(alike, key=lambda number: -float(shares[number]))
            for place, number in zip(alike, ranked, strict=True):
                order[place] = number
        return self.permuted(population, order)

    @property
    def exchangeable(self) -> list[list[int]]:
        """Groups of classes that ignore the same attributes, so that their labels have no meaning."""
        return [
            [number for number, places in enumerate(self.ignored) if places == kind]
            for kind in dict.fromkeys(self.ignored)
        ]

    def permuted(self, population: ClassPopulation, order: Sequence[int]) -> ClassPopulation:
        """The population with its classes in another order."""
        index = list(order)
        logits = torch.cat([torch.zeros_like(population.membership[..., :1, :]), population.membership], -2)
        logits = logits[..., index, :]
        return replace(
            population,
            location=population.location[..., index, :],
            scale_tril=population.scale_tril[..., index, :, :],
            membership=logits[..., 1:, :] - logits[..., :1, :],
        )

    def _moved(self, membership: Tensor, sign: float) -> Tensor:
        """Coefficients of membership at covariates of zero (-1) from those at averages, or the other way round (1)."""
        if not self.covariates:
            return membership
        shift = membership[..., 1:] @ membership.new_tensor(self.offsets)
        return torch.cat([membership[..., :1] + sign * shift[..., None], membership[..., 1:]], -1)


def _inside(population: ClassPopulation) -> PopulationParameters:
    """All classes as populations without fixed coefficients, with a leading dimension of classes."""
    return PopulationParameters(population.location[..., :0], population.location, population.scale_tril)
