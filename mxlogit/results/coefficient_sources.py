"""Coefficients of people by sample: the one source of all quantities that are computed after a fit.

A source hands out draws of coefficients of the people of choice data. They are arranged by samples (s) of the
population parameters, over which quantities have intervals, and nodes (r), over which tastes are averaged given a
sample. Nodes are common to all samples, so that differences between samples are not those of nodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.choices import ChoiceData
from mxlogit.draws.curve import spread_along_curve
from mxlogit.execution.people import on_cpu
from mxlogit.fit import Fit
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.results.individual_coefficients import Group, parameter_samples, weigh_coefficients
from mxlogit.results.population_nodes import LatentNodes, Membership, Nodes, predictive_nodes, situation_nodes

# Posterior samples of quantities with intervals: the ends of a 95 % interval err by a tenth of a standard deviation.
_SAMPLES = 256
# Tastes per sample, a power of two, from which quantities that are summed over choice situations take windows in turn,
# and those of which quantities of single situations are averages: the ends of their intervals err by .07 of half of
# their width with six correlated tastes (.16 with 32 tastes, .03 with 512).
_NODES, _NODES_OF_ROWS = 512, 128


@dataclass(frozen=True)
class Part:
    """Draws of the coefficients of some people.

    Attributes
    ----------
    people : Tensor or None, int64, shape (n,)
        Indices of the people in the data; None for all of them.
    coefficients : Tensor, shape (s, r, k) or (n, s, r, k)
        Coefficients by sample and node, common to all people or of each person.
    weights : Tensor or None, shape (n, r)
        Weights of the nodes, if they are not equal.
    membership : Membership or None
        Weights of the nodes of people in general, of whom each draw has one per class.
    nodes_of_rows : int or None
        Number of nodes, the first ones, for quantities of single choice situations; None for all.
    latents : LatentNodes or None
        Latent normals of the nodes, if covariates shift them: coefficients depend on those of the choice situation.
    """

    people: Tensor | None
    coefficients: Tensor
    weights: Tensor | None = None
    nodes_of_rows: int | None = None
    membership: Membership | None = None
    latents: LatentNodes | None = None


class CoefficientSource(ABC):
    """Draws of the coefficients of people.

    Attributes
    ----------
    kind : str
        The distribution that samples represent.
    n_samples : int
        Number of samples, with the point estimate, if that is the first one.
    starts_at_center : bool
        Whether the first sample is the point estimate of maximum likelihood.
    is_common : bool
        Whether coefficients are common to all people.
    """

    kind: str
    n_samples: int
    starts_at_center: bool = False
    is_common: bool = False

    @abstractmethod
    def parts(self, data: ChoiceData) -> Iterator[Part]:
        """Iterate over draws of the people of the data; the same people may come several times, with weights."""


class PopulationSource(CoefficientSource):
    """Tastes of new people from the mixing distribution.

    Parameters
    ----------
    coefficients : Tensor, shape (s, r, k)
        Coefficients by sample and node.
    kind : str
        The distribution that samples represent.
    nodes_of_rows : int, optional
        Number of nodes for quantities of single choice situations; all by default.
    starts_at_center : bool
        Whether the first sample is the point estimate.
    membership : Membership, optional
        Weights of nodes that are members of classes.
    latents : LatentNodes, optional
        Latent normals of the nodes, if covariates shift them.
    """

    is_common = True

    def __init__(
        self,
        coefficients: Tensor,
        kind: str,
        nodes_of_rows: int | None = None,
        *,
        starts_at_center: bool = False,
        membership: Membership | None = None,
        latents: LatentNodes | None = None,
    ) -> None:
        self.coefficients, self.kind, self.starts_at_center = coefficients, kind, starts_at_center
        self.latents = latents
        self.n_samples, self.nodes_of_rows, self.membership = len(coefficients), nodes_of_rows, membership

    @classmethod
    def of_samples(
        cls, model: MixedLogitModel, fit: Fit, seed: int, nodes: int = _NODES, member_of: int | None = None
    ) -> PopulationSource:
        """Evenly spaced samples of the population parameters, each with the same nodes of tastes.

        With ``member_of``, of the members of the class with this index.
        """
        population, starts = sampled_population(model, fit, _SAMPLES)
        found = situation_nodes(model, population, nodes, seed)
        if member_of is not None:
            found = found.of_class(member_of)
        of_rows = _NODES_OF_ROWS * (found.membership.n_classes if found.membership else 1)
        coefficients = _coefficients(model, found)
        return cls(
            coefficients,
            fit.samples.kind,
            of_rows,
            starts_at_center=starts,
            membership=found.membership,
            latents=found.latents,
        )

    @classmethod
    def of_mean(cls, model: MixedLogitModel, fit: Fit, seed: int, member_of: int | None = None) -> PopulationSource:
        """One sample: the posterior predictive distribution of a new person, or that at the point estimate."""
        found = predictive_nodes(model, fit, seed)
        if member_of is not None:
            found = found.of_class(member_of)
        coefficients = _coefficients(model, found)
        return cls(coefficients, fit.samples.kind, membership=found.membership, latents=found.latents)

    def parts(self, data: ChoiceData) -> Iterator[Part]:
        """The nodes, common to all people."""
        yield Part(None, self.coefficients, None, self.nodes_of_rows, self.membership, self.latents)


def _coefficients(model: MixedLogitModel, nodes: Nodes) -> Tensor:
    """Coefficients of utility (s, r, f + k) of nodes."""
    f = model.space.n_fixed
    return model.mixing.coefficients(nodes.parameters[..., :f], nodes.parameters[..., f:])


class PeopleSource(CoefficientSource):
    """Posterior samples of the tastes of people given their choices, one node each."""

    def __init__(self, model: MixedLogitModel, fit: Fit, group: Group) -> None:
        self.model, self.fit, self.group = model, fit, group
        self.kind, self.n_samples = fit.samples.kind, _SAMPLES
        if self.kind != "posterior":
            self.kind = "distribution of people's tastes at the estimate"

    def parts(self, data: ChoiceData) -> Iterator[Part]:
        """Samples of people, by chunks of them."""
        indices, f = torch.arange(data.n_decision_makers), self.model.space.n_fixed
        for part, parameters in parameter_samples(self.model, self.fit, self.group, _SAMPLES):
            some = parameters.transpose(0, 1)
            coefficients = self.model.mixing.coefficients(some[..., :f], some[..., f:])
            yield of_situations(self.model, Part(indices[on_cpu(part)], coefficients[:, :, None]))


class WeightedPeopleSource(CoefficientSource):
    """Weighted draws of the tastes of people given their choices, the population parameters integrated out."""

    n_samples = 1

    def __init__(self, model: MixedLogitModel, fit: Fit, group: Group) -> None:
        self.model, self.fit, self.group, self.kind = model, fit, group, fit.samples.kind

    def parts(self, data: ChoiceData) -> Iterator[Part]:
        """Weighted draws, chunk after chunk of people, possibly several times per chunk."""
        indices = torch.arange(data.n_decision_makers)
        for drawn in weigh_coefficients(self.model, self.fit, self.group):
            part = Part(indices[on_cpu(drawn.part)], drawn.coefficients[:, None], drawn.weights)
            yield of_situations(self.model, part)


def of_situations(model: MixedLogitModel, part: Part) -> Part:
    """Draws of the coefficients of people (n, s, r, k) in single situations, if they vary between these."""
    varying = model.mixing.varying
    if varying is None:
        return part
    coefficients, of_nodes = varying.spread_over_nodes(part.coefficients)
    people, _, count = part.coefficients.shape[:3]
    weights = part.weights if part.weights is not None else of_nodes.new_full((people, count), 1.0 / count)
    return replace(part, coefficients=coefficients, weights=(weights[..., None] * of_nodes.to(weights)).flatten(1))


def sampled_population(model: MixedLogitModel, fit: Fit, count: int) -> tuple[PopulationParameters, bool]:
    """At most ``count`` evenly spaced samples; whether the first one is the point estimate of maximum likelihood."""
    vectors = spread_along_curve(fit.samples.unconstrained, count)
    if fit.samples.kind == "posterior":
        return model.space.constrain(vectors), False
    return model.space.constrain(torch.cat([model.space.unconstrain(fit.center)[None].to(vectors), vectors])), True
