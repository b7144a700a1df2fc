r"""Priors of a population of classes.

Each class has the priors of a population with one class. Shares at average covariates are uniform (a Dirichlet
distribution with concentrations of one), and effects of covariates on the logits, relative to any class, are normal:
all classes are alike before the data are seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.model.classes import ClassSpace, log_memberships
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import PriorDensity

# Standard deviation of the prior of a covariate's effect on the logit of one class against another, per standard
# deviation of the covariate: odds that differ by a factor of 150 between people one deviation apart are two of them.
EFFECT_SCALE = 2.5
_LOG_TAU = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class ClassPrior(PriorDensity):
    """Priors resolved for one specification and one data set.

    Attributes
    ----------
    effect_scale : Tensor, shape (z,)
        Standard deviations of the effects of covariates on membership.
    """

    effect_scale: Tensor

    def log_prob(self, space: ParameterSpace, vector: Tensor) -> Tensor:
        """Log density (*s,) of unconstrained vectors (*s, D), its Jacobian included."""
        assert isinstance(space, ClassSpace)
        fixed, tastes, membership = space.own(vector)
        if space.is_spread:
            total = _log_normal(fixed, self.mean[: space.n_fixed], self.deviation[: space.n_fixed]).sum(-1)
            for number, (prior, own, places) in enumerate(self._of_classes(space)):
                total = total + prior.log_prob(own, tastes[..., number, places])
        else:
            head = vector[..., : space.n_fixed + len(space.kept)]
            total = _log_normal(head, *self._of_coefficients(space)).sum(-1)
        logits = log_memberships(membership[..., :1])[..., 0, :]
        # The density of uniform shares, in logits.
        total = total + logits.sum(-1) + math.lgamma(space.n_classes)
        if not len(self.effect_scale):
            return total
        effects = membership[..., 1:] / self.effect_scale
        precision = _contrast_precision(space.n_classes).to(effects)
        quadratic = (effects * (precision @ effects)).sum((-1, -2))
        constant = 0.5 * float(torch.logdet(precision)) - 0.5 * len(precision) * _LOG_TAU
        size = len(self.effect_scale)
        return total - 0.5 * quadratic + size * constant - len(precision) * self.effect_scale.log().sum()

    def value_and_slope(self, space: ClassSpace, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (s,) and its gradient (s, D) at unconstrained vectors (s, D) of a latent class model."""
        mean, deviation = self._of_coefficients(space)
        slope, head = torch.zeros_like(vectors), space.n_fixed + len(space.kept)
        slope[:, :head] = (mean - vectors[:, :head]) / deviation.square()
        membership = space.own(vectors)[2]
        by_member = torch.zeros_like(membership)
        by_member[..., 0] = 1.0 - space.n_classes * log_memberships(membership[..., :1])[..., 0, 1:].exp()
        if len(self.effect_scale):
            precision = _contrast_precision(space.n_classes).to(vectors)
            by_member[..., 1:] = -(precision @ membership[..., 1:]) / self.effect_scale.square()
        slope[:, head:] = by_member.flatten(1)
        return self.log_prob(space, vectors), slope

    def _of_coefficients(self, space: ClassSpace) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the fixed coefficients and those of classes without spread."""
        f, k = space.n_fixed, space.n_random
        places = [*range(f), *(f + i % k for i in space.kept)]
        return self.mean[places], self.deviation[places]

    def derivatives_at(self, space: ClassSpace, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (D,) and Hessian (D, D) of `log_prob` at one vector (D,)."""
        fixed, tastes, membership = space.own(vector)
        f, middle, columns = space.n_fixed, len(space.kept), membership.shape[1]
        slope, hessian = torch.zeros_like(vector), vector.new_zeros(len(vector), len(vector))
        slope[:f] = (self.mean[:f] - fixed) / self.deviation[:f].square()
        slopes, diagonal = [], [-self.deviation[:f].square().reciprocal()]
        for number, (prior, own, places) in enumerate(self._of_classes(space)):
            by_class, curved = prior.derivatives(own, tastes[number, places])
            slopes.append(by_class)
            diagonal.append(curved)
        slope[f : f + middle] = torch.cat(slopes)
        hessian.diagonal()[: f + middle] = torch.cat(diagonal)
        share = log_memberships(membership[:, :1])[0].exp()[1:]
        precision = _contrast_precision(space.n_classes).to(vector)
        for_member, by_member = (
            vector.new_zeros(membership.shape),
            vector.new_zeros(*membership.shape, *membership.shape),
        )
        for_member[:, 0] = 1.0 - space.n_classes * share
        by_member[:, 0, :, 0] = -space.n_classes * (share.diag() - share[:, None] * share)
        for z, scale in enumerate(self.effect_scale, 1):
            for_member[:, z] = -precision @ membership[:, z] / scale.square()
            by_member[:, z, :, z] = -precision / scale.square()
        slope[f + middle :] = for_member.flatten()
        hessian[f + middle :, f + middle :] = by_member.view(len(membership) * columns, -1)
        return slope, hessian

    def _of_classes(self, space: ClassSpace) -> Iterator[tuple[PriorDensity, ParameterSpace, list[int]]]:
        """Prior and layout of the own parameters of each class, and their places among those of a whole class."""
        f, width = space.n_fixed, space.width
        for number in range(space.n_classes):
            places = [i - number * width for i in space.kept if i // width == number]
            counts = [i for i in places if i < space.n_random]
            mean, deviation = self.mean[f:][counts], self.deviation[f:][counts]
            if not space.is_spread:
                names = tuple(space.random[i] for i in counts)
                none = mean[:0]
                yield PriorDensity(mean, deviation, none, self.concentration), ParameterSpace(names, (), ()), places
                continue
            own = _without(space.of_class, counts)
            yield PriorDensity(mean, deviation, self.sd_scale[counts], self.concentration), own, places


def _without(own: ParameterSpace, counts: list[int]) -> ParameterSpace:
    """Layout of some of the random coefficients of a class."""
    place = {old: new for new, old in enumerate(counts)}
    blocks = [tuple(place[i] for i in block if i in place) for block in own.blocks]
    return ParameterSpace((), tuple(own.random[i] for i in counts), tuple(block for block in blocks if block))


def _log_normal(value: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return -0.5 * ((value - mean) / deviation).square() - deviation.log() - 0.5 * _LOG_TAU


def _contrast_precision(n_classes: int) -> Tensor:
    """Precision of the contrasts of independent numbers with variance one half to the first one, (C - 1, C - 1)."""
    size = n_classes - 1
    covariance = 0.5 * (torch.eye(size, dtype=torch.float64) + torch.ones(size, size, dtype=torch.float64))
    return torch.linalg.inv(covariance)


def resolve_class_prior(prior: PriorDensity, deviations: Tensor) -> ClassPrior:
    """Priors of a population of classes, from those of one class and the standard deviations (z,) of covariates."""
    return ClassPrior(**vars(prior), effect_scale=EFFECT_SCALE / deviations)
