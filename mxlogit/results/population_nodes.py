"""Nodes of people drawn from the population, by sample of its parameters: tastes, and in classes their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.draws.curve import order_along_curve
from mxlogit.draws.simulation import PersonDraws
from mxlogit.fit import Fit
from mxlogit.model.classes import ClassPopulation, log_memberships
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes

# Nodes over (posterior sample of the population, tastes), a power of two. The largest errors of probabilities are given
# in `MixedLogit.predict_proba`; with samples in random order they are twice as large.
_PREDICTIVE_NODES = 4_096
# Offsets of the seeds of the nodes from the seed of the fit.
TASTE_STREAM, _PREDICTIVE_STREAM = 41, 23


@dataclass(frozen=True)
class Membership:
    """Weights of nodes of which each draw of tastes has one per class, in turn.

    Attributes
    ----------
    coefficients : Tensor, shape (s, d, C - 1, 1 + z)
        Coefficients of membership by sample and draw; d is one if they are the same for all draws of a sample.
    names : tuple of str, length z
        Covariates of membership.
    """

    coefficients: Tensor
    names: tuple[str, ...]

    @property
    def n_classes(self) -> int:
        """Number C of classes."""
        return self.coefficients.shape[-2] + 1

    def weights(self, covariates: Tensor | None, draws: slice) -> Tensor:
        """Weights (m or 1, s, C d) of the nodes of some draws, which sum to one, at covariates (m, z), if any."""
        count = draws.stop - draws.start
        chosen = self.coefficients if self.coefficients.shape[1] == 1 else self.coefficients[:, draws]
        shares = log_memberships(chosen, covariates).exp() / count
        return shares.expand(-1, count, -1, -1).movedim(2, 0).flatten(2)

    def mean_weights(self, covariates: Tensor | None, people: Tensor | None, nodes: int) -> Tensor:
        """Weights (s, C d) of all nodes, averaged over people with covariates (n, z) and weights (n,)."""
        count = nodes // self.n_classes
        shares = log_memberships(self.coefficients, covariates).exp() / count
        if people is None or shares.shape[2] == 1:
            mean = shares.mean(2)
        else:
            mean = torch.einsum("n,sdnc->sdc", people / people.sum(), shares)
        return mean.expand(-1, count, -1).flatten(1)


@dataclass(frozen=True)
class LatentNodes:
    """Latent normals of people drawn from populations, which become tastes at given covariates.

    Attributes
    ----------
    model : MixedLogitModel
    population : PopulationParameters
        Parameters (s or 1, 1 or r, ...) of the populations that nodes are drawn from.
    latents : Tensor, shape (s or 1, r, k)
        Latent normals at covariates of zero.
    """

    model: MixedLogitModel
    population: PopulationParameters
    latents: Tensor

    def parameters(self, covariates: Tensor) -> Tensor:
        """Fixed coefficients and tastes (..., s, r, f + k) at covariates that broadcast to (..., s, r, c)."""
        population, k = self.population, self.model.space.n_random
        shift = self.model.shifters.shift_of_latents(population.fixed, covariates, k)
        tastes = self.model.mixing.tastes(self.latents + shift, population.location + shift, population.scale)
        return torch.cat([population.fixed.expand(*tastes.shape[:-1], -1), tastes], -1)

    def coefficients(self, covariates: Tensor) -> Tensor:
        """Coefficients of utility (m, s, r, f + k) in choice situations with covariates (m, c)."""
        found, f = self.parameters(covariates[:, None, None]), self.model.space.n_fixed
        return self.model.mixing.coefficients(found[..., :f], found[..., f:])

    def window(self, draws: slice) -> LatentNodes:
        """Some of the nodes."""

        def part(values: Tensor) -> Tensor:
            return values if values.shape[1] == 1 else values[:, draws]

        return LatentNodes(self.model, self.population.map(part), self.latents[:, draws])


@dataclass(frozen=True)
class Nodes:
    """People drawn from each of some population values, the same draws for all.

    Attributes
    ----------
    parameters : Tensor, shape (s, r, f + k)
        Fixed coefficients and random tastes; amounts of money in willingness-to-pay space.
    membership : Membership or None
        Weights, if they are not equal.
    latents : LatentNodes or None
        Latent normals, if covariates shift them: ``parameters`` are those at covariates of zero.
    """

    parameters: Tensor
    membership: Membership | None = None
    latents: LatentNodes | None = None

    @classmethod
    def of_latents(cls, model: MixedLogitModel, population: PopulationParameters, latents: Tensor) -> Nodes:
        """People with latent normals (s, r, k), of populations with parameters (s or 1, 1 or r, ...)."""
        found = LatentNodes(model, population, latents)
        none = latents.new_zeros(1, 1, len(model.shifters.names))
        return cls(found.parameters(none), None, found if model.shifters.of_latents else None)

    def of_class(self, number: int) -> Nodes:
        """The members of the class with this index."""
        assert self.membership is not None
        return Nodes(self.parameters[:, number :: self.membership.n_classes])


def situation_nodes(model: MixedLogitModel, population: PopulationParameters, nodes: int, seed: int) -> Nodes:
    """Nodes of single choice situations of people: those of `taste_nodes`, if tastes do not vary between situations."""
    varying, k = model.mixing.varying, model.space.n_random
    if varying is None:
        return taste_nodes(model, population, nodes, seed)
    draws = PersonDraws("sobol", nodes, k + len(varying.deviations), seed + TASTE_STREAM)
    normal = draws.normals(0, 1)[0].to(population.location)
    latents = population.location[..., None] + population.scale_tril @ normal[:k]
    return _of_situations(model, population.map(lambda x: x[:, None]), latents.mT, normal[k:].mT)


def _of_situations(model: MixedLogitModel, population: PopulationParameters, latents: Tensor, normals: Tensor) -> Nodes:
    """Nodes with latent normals (s, r, k) of people, with standard normals (r, d) of what varies between situations."""
    varying, f = model.mixing.varying, model.space.n_fixed
    assert varying is not None
    shape = latents.shape[:-1]
    # Tastes that vary are normal: their latents are coefficients.
    both = torch.cat([population.fixed.expand(*shape, -1), latents], -1)
    fixed, latents = varying.spread(both, normals).split([f, model.space.n_random], -1)
    return Nodes.of_latents(model, replace(population, fixed=fixed), latents)


def taste_nodes(model: MixedLogitModel, population: PopulationParameters, nodes: int, seed: int) -> Nodes:
    """Nodes of people drawn from each of some population values (s): as many as ``nodes``, of each class.

    Where tastes have no spread there is one, or one of each class.
    """
    if model.space.n_random == 0:
        return Nodes(population.fixed[:, None])
    is_spread = bool((population.scale_tril != 0.0).any())
    draws = PersonDraws("sobol", nodes if is_spread else 1, model.space.n_random, seed + TASTE_STREAM)
    normal = draws.normals(0, 1)[0].to(population.location)
    if isinstance(population, ClassPopulation):
        found = population.class_tastes(model.mixing, normal if is_spread else None)
        return Nodes(_in_turn(found), Membership(population.membership[:, None], _names(model)))
    people = PersonTastes(population, model.mixing)
    latents = population.location[..., None] + population.scale_tril @ normal
    if model.shifters.of_latents:
        return Nodes.of_latents(model, population.map(lambda x: x[:, None]), latents.mT)
    return Nodes(people.parameters(people.tastes_at(latents)).mT)


def _in_turn(parameters: Tensor) -> Tensor:
    """Nodes (s, d C, f + k) of which each draw has one per class, of parameters (s, C, d, f + k)."""
    return parameters.transpose(1, 2).flatten(1, 2)


def _names(model: MixedLogitModel) -> tuple[str, ...]:
    return tuple(getattr(model.space, "covariates", ()))


def predictive_nodes(model: MixedLogitModel, fit: Fit, seed: int) -> Nodes:
    """Draws of a new decision maker from the posterior predictive distribution, as one sample of parameters, float64.

    They form a scrambled Sobol net over (posterior sample of the population parameters, standard normal tastes).
    Without a posterior (maximum likelihood) the population parameters are the point estimate.
    """
    samples = fit.samples.unconstrained
    if fit.samples.kind != "posterior":
        samples = model.space.unconstrain(fit.center)[None]
    varying, k = model.mixing.varying, model.space.n_random
    if k == 0 and varying is None:
        return Nodes(model.space.constrain(samples[:_PREDICTIVE_NODES]).fixed[None])
    count = _PREDICTIVE_NODES
    if model.has_classes:
        count = min(count, len(samples)) if fit.samples.kind == "posterior" and not _spreads(model) else count
    deviations = 0 if varying is None else len(varying.deviations)
    draws = PersonDraws("sobol", count, 1 + k + deviations, seed + _PREDICTIVE_STREAM)
    normal = draws.normals(0, 1)[0].T
    # Ranks of the first coordinate are a permutation, so every sample is used equally often.
    rank, order = normal[:, 0].argsort().argsort(), order_along_curve(samples)
    population = model.space.constrain(samples[order[rank * len(samples) // count]])
    if isinstance(population, ClassPopulation):
        found = population.class_tastes(model.mixing, normal[:, None, 1:, None])
        membership = Membership(population.membership[None], _names(model))
        return Nodes(_in_turn(found.movedim(0, 2).movedim(0, 1)), membership)
    latent = population.location + (population.scale_tril @ normal[:, 1 : 1 + k, None])[..., 0]
    if varying is not None:
        return _of_situations(model, population.map(lambda x: x[None]), latent[None], normal[:, 1 + k :])
    if model.shifters.of_latents:
        return Nodes.of_latents(model, population.map(lambda x: x[None]), latent[None])
    tastes = model.mixing.tastes(latent, population.location, population.scale)
    return Nodes(torch.cat([population.fixed, tastes], -1)[None])


def _spreads(model: MixedLogitModel) -> bool:
    return bool(getattr(model.space, "is_spread", True))
