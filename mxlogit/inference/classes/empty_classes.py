r"""Posterior mass where some classes have hardly any members, which draws around the mode may miss.

With more classes than the data tell, shares that are uniform a priori leave much of the posterior where the others
describe the data and the rest have tastes of the prior (Rousseau and Mengersen 2011, J. of the Royal Statistical
Society B 73). Its mass is found by importance sampling: classes around the mode of a model with fewer of them, tastes
of the others from the prior, and their shares from what remains for members that nobody needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.inference.classes.conclusion import ClassFit
from mxlogit.inference.classes.objective import ClassObjective, Place
from mxlogit.inference.classes.posterior import ClassPosterior, laplace
from mxlogit.inference.classes.search import climb
from mxlogit.inference.vi.student import StudentFactor
from mxlogit.integration.mixture_likelihood import likelihood_of_classes
from mxlogit.model.class_prior import ClassPrior
from mxlogit.model.classes import ClassPopulation, ClassSpace

# Members below which a class counts as nearly empty.
_MEMBERS = 5.0
# Draws, and degrees of freedom of the classes that remain.
_DRAWS, _FREEDOM = 2_048, 8.0
# Rate of the exponential distribution of an empty class's share, relative to that of the first class, per member of it:
# less than one, for shares that fall more slowly than if nobody needed the class.
_RATE = 0.7
# Most steps of a climb with fewer classes.
_STEPS = 60
# Missing share of the posterior above which weighted draws are not trusted.
LARGEST_SHARE = 0.1


@dataclass(frozen=True)
class EmptyClasses:
    """Posterior mass with nearly empty classes.

    Attributes
    ----------
    log_mass : float
        Logarithm of the integral of prior times likelihood of one labelling over it, as found by importance sampling.
    share : float
        Share of the weighted draws that lie in it.
    """

    log_mass: float
    share: float

    def log_missing(self, log_evidence: float) -> float:
        """Logarithm of the mass that the draws lack, relative to theirs; minus infinity if they lack none."""
        excess = math.exp(min(self.log_mass - log_evidence, 700.0)) - self.share
        return math.log(excess) if excess > 0.0 else -math.inf


def find_empty_classes(fit: ClassFit, posterior: ClassPosterior, vectors: Tensor, weights: Tensor) -> EmptyClasses:
    """Mass with nearly empty classes, and the share of weighted draws (n, D) of one labelling there.

    Parameters
    ----------
    fit : ClassFit
        With a latent class model.
    posterior : ClassPosterior
    vectors : Tensor, shape (n, D)
    weights : Tensor, shape (n,)
    """
    masses = [_log_mass(fit, posterior, some) for some in _with_fewer(fit)]
    share = float(weights @ _has_empty(fit, vectors).double())
    return EmptyClasses(max(masses, default=-math.inf), share)


def _has_empty(fit: ClassFit, vectors: Tensor) -> Tensor:
    """Whether a class has hardly any members, (n,), at vectors (n, D)."""
    weights, found = fit.likelihood.weights, list[Tensor]()
    for some in vectors.split(256):
        population = fit.space.constrain(some)
        assert isinstance(population, ClassPopulation)
        members = population.mean_shares(fit.likelihood.panel.covariates, weights) * weights.sum()
        found.append(members.amin(-1) < _MEMBERS)
    return torch.cat(found)


def _with_fewer(fit: ClassFit) -> Iterator[tuple[ClassObjective, Place]]:
    """Modes with one class less, and one less again, as long as exchangeable classes can be left out."""
    objective, place = fit.objective, fit.optimum.place
    while True:
        alike = max(objective.space.exchangeable, key=len)
        if len(alike) < 2 or objective.space.n_classes < 3 or fit.clock.is_over():
            return
        fewer = _of_space(fit, objective, alike[-1])
        starts = [_without(objective.space, place.vector, number) for number in alike]
        places = [climb(fewer, start, _STEPS, lambda *_: None) for start in starts]
        objective, place = fewer, max(places, key=lambda found: found.value)
        yield objective, place


def _of_space(fit: ClassFit, objective: ClassObjective, number: int) -> ClassObjective:
    """The objective of a model without one class."""
    space, model = objective.space, objective.likelihood.model
    ignored = tuple(places for i, places in enumerate(space.ignored) if i != number)
    smaller = replace(space, n_classes=space.n_classes - 1, ignored=ignored)
    likelihood = likelihood_of_classes(replace(model, space=smaller), fit.likelihood.panel, fit.seed)
    return replace(objective, likelihood=likelihood, space=smaller)


def _without(space: ClassSpace, vector: Tensor, number: int) -> Tensor:
    """A vector (D,) without one class."""
    fixed, tastes, membership = space.own(vector)
    kept = [i for i in range(space.n_classes) if i != number]
    logits = torch.cat([torch.zeros_like(membership[:1]), membership])[kept]
    smaller = replace(space, n_classes=len(kept), ignored=tuple(space.ignored[i] for i in kept))
    return smaller.join(fixed, tastes[kept], logits[1:] - logits[:1])


def _log_mass(fit: ClassFit, posterior: ClassPosterior, fewer: tuple[ClassObjective, Place]) -> float:
    """Logarithm of the mass around the mode of a model with fewer classes, where the others are nearly empty."""
    objective, place = fewer
    space, smaller, prior = fit.space, objective.space, posterior.prior
    extra = space.n_classes - smaller.n_classes
    proposal = StudentFactor(laplace(place), _FREEDOM)
    generator = make_generator(fit.seed, 43)
    main = proposal.sample(_DRAWS, generator)
    tastes, of_tastes = _tastes_of_prior(fit, prior, extra, generator)
    population = smaller.constrain(place.vector)
    assert isinstance(population, ClassPopulation)
    first = float(population.mean_shares(fit.likelihood.panel.covariates, fit.likelihood.weights)[0])
    rate = _RATE * first * float(fit.likelihood.weights.sum())
    shares = -torch.rand(_DRAWS, extra, generator=generator, dtype=torch.float64).clamp(min=1e-300).log() / rate
    logits = shares.log()
    # The density of the logarithm of an exponential variate.
    of_logits = (math.log(rate) + logits - rate * shares).sum(1)
    effects, of_effects = _effects_of_prior(space, prior, extra, generator)
    fixed, own, membership = smaller.own(main)
    added = torch.cat([logits[..., None], effects], -1)
    order = _places(space, smaller)
    vectors = space.join(
        fixed, torch.cat([own, tastes], 1)[:, order], _in_order(torch.cat([membership, added], 1), order)
    )
    log_ratio = torch.cat([posterior.log_prob(some) for some in vectors.split(256)])
    log_ratio = log_ratio - proposal.log_prob(main) - of_tastes - of_logits - of_effects
    inside = log_ratio.masked_fill(~_has_empty(fit, vectors), -math.inf)
    return float(inside.logsumexp(0)) - math.log(_DRAWS) - math.lgamma(extra + 1.0)


def _places(space: ClassSpace, smaller: ClassSpace) -> list[int]:
    """Order in which the classes of a smaller model and the added ones behind them take the places of all classes."""
    left, added, order = list(range(smaller.n_classes)), list(range(smaller.n_classes, space.n_classes)), list[int]()
    for places in space.ignored:
        match = next((i for i in left if smaller.ignored[i] == places), None)
        if match is None:
            order.append(added.pop(0))
        else:
            left.remove(match)
            order.append(match)
    return order


def _in_order(membership: Tensor, order: list[int]) -> Tensor:
    """Coefficients of membership (n, C - 1, 1 + z), relative to the first class, of classes in another order."""
    logits = torch.cat([torch.zeros_like(membership[:, :1]), membership], 1)[:, order]
    return logits[:, 1:] - logits[:, :1]


def _tastes_of_prior(fit: ClassFit, prior: ClassPrior, extra: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tastes (n, extra, k) of classes from the prior, and their log densities (n,)."""
    f = fit.space.n_fixed
    normal = torch.distributions.Normal(prior.mean[f:], prior.deviation[f:])
    unit = torch.randn(_DRAWS, extra, fit.space.n_random, generator=generator, dtype=torch.float64)
    tastes = prior.mean[f:] + prior.deviation[f:] * unit
    density = normal.log_prob(tastes)
    # Attributes that the class ignores have no tastes.
    counts = fit.space.attended[max(fit.space.exchangeable, key=len)[0], f:]
    return tastes * counts, (density * counts).sum((1, 2))


def _effects_of_prior(
    space: ClassSpace, prior: ClassPrior, extra: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Effects (n, extra, z) of covariates on the membership of classes, and their log densities (n,)."""
    count = len(space.covariates)
    unit = torch.randn(_DRAWS, extra, count, generator=generator, dtype=torch.float64)
    if not count:
        return unit, torch.zeros(_DRAWS, dtype=torch.float64)
    effects = prior.effect_scale * unit
    return effects, torch.distributions.Normal(0.0, prior.effect_scale).log_prob(effects).sum((1, 2))
