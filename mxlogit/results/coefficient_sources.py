"""Coefficients of people by sample: the one source of all quantities that are computed after a fit.

A source hands out draws of coefficients of the people of choice data. They are arranged by samples (s) of the
population parameters, over which quantities have intervals, and nodes (r), over which tastes are averaged given a
sample. Nodes are common to all samples, so that differences between samples are not those of nodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.choices import ChoiceData
from mxlogit.draws.curve import order_along_curve, spread_along_curve
from mxlogit.draws.simulation import PersonDraws
from mxlogit.execution.people import on_cpu
from mxlogit.fit import Fit
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.results.individual_coefficients import Group, parameter_samples, weigh_coefficients

# Posterior samples of quantities with intervals: the ends of a 95 % interval err by a tenth of a standard deviation.
_SAMPLES = 256
# Tastes per sample, a power of two, from which quantities that are summed over choice situations take windows in turn,
# and those of which quantities of single situations are averages: the ends of their intervals err by .07 of half of
# their width with six correlated tastes (.16 with 32 tastes, .03 with 512).
_NODES, _NODES_OF_ROWS = 512, 128
# Nodes over (posterior sample of the population, tastes), a power of two. The largest errors of probabilities are given
# in `MixedLogit.predict_proba`; with samples in random order they are twice as large.
_PREDICTIVE_NODES = 4_096
# Offsets of the seeds of the nodes from the seed of the fit.
TASTE_STREAM, _PREDICTIVE_STREAM = 41, 23


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
    nodes_of_rows : int or None
        Number of nodes, the first ones, for quantities of single choice situations; None for all.
    """

    people: Tensor | None
    coefficients: Tensor
    weights: Tensor | None = None
    nodes_of_rows: int | None = None


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
    """

    is_common = True

    def __init__(
        self, coefficients: Tensor, kind: str, nodes_of_rows: int | None = None, *, starts_at_center: bool = False
    ) -> None:
        self.coefficients, self.kind, self.starts_at_center = coefficients, kind, starts_at_center
        self.n_samples, self.nodes_of_rows = len(coefficients), nodes_of_rows

    @classmethod
    def of_samples(cls, model: MixedLogitModel, fit: Fit, seed: int, nodes: int = _NODES) -> PopulationSource:
        """Evenly spaced samples of the population parameters, each with the same nodes of tastes."""
        population, starts = sampled_population(model, fit, _SAMPLES)
        parameters = taste_nodes(model, population, nodes, seed)
        coefficients = model.mixing.coefficients(
            parameters[..., : model.space.n_fixed], parameters[..., model.space.n_fixed :]
        )
        return cls(coefficients, fit.samples.kind, _NODES_OF_ROWS, starts_at_center=starts)

    @classmethod
    def of_mean(cls, model: MixedLogitModel, fit: Fit, seed: int) -> PopulationSource:
        """One sample: the posterior predictive distribution of a new person, or that at the point estimate."""
        return cls(predictive_nodes(model, fit, seed)[None], fit.samples.kind)

    def parts(self, data: ChoiceData) -> Iterator[Part]:
        """The nodes, common to all people."""
        yield Part(None, self.coefficients, nodes_of_rows=self.nodes_of_rows)


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
            yield Part(indices[on_cpu(part)], coefficients[:, :, None])


class WeightedPeopleSource(CoefficientSource):
    """Weighted draws of the tastes of people given their choices, the population parameters integrated out."""

    n_samples = 1

    def __init__(self, model: MixedLogitModel, fit: Fit, group: Group) -> None:
        self.model, self.fit, self.group, self.kind = model, fit, group, fit.samples.kind

    def parts(self, data: ChoiceData) -> Iterator[Part]:
        """Weighted draws, chunk after chunk of people, possibly several times per chunk."""
        indices = torch.arange(data.n_decision_makers)
        for drawn in weigh_coefficients(self.model, self.fit, self.group):
            yield Part(indices[on_cpu(drawn.part)], drawn.coefficients[:, None], drawn.weights)


def sampled_population(model: MixedLogitModel, fit: Fit, count: int) -> tuple[PopulationParameters, bool]:
    """At most ``count`` evenly spaced samples; whether the first one is the point estimate of maximum likelihood."""
    vectors = spread_along_curve(fit.samples.unconstrained, count)
    if fit.samples.kind == "posterior":
        return model.space.constrain(vectors), False
    return model.space.constrain(torch.cat([model.space.unconstrain(fit.center)[None].to(vectors), vectors])), True


def taste_nodes(model: MixedLogitModel, population: PopulationParameters, nodes: int, seed: int) -> Tensor:
    """Parameters (s, r, f + k) of people drawn from each of some population values, the same nodes for all.

    Parameters are fixed coefficients and random tastes; amounts of money in willingness-to-pay space. Without random
    coefficients there is one node.
    """
    if model.space.n_random == 0:
        return population.fixed[:, None]
    normal = (
        PersonDraws("sobol", nodes, model.space.n_random, seed + TASTE_STREAM).normals(0, 1)[0].to(population.location)
    )
    people = PersonTastes(population, model.mixing)
    latents = population.location[..., None] + population.scale_tril @ normal
    return people.parameters(people.tastes_at(latents)).mT


def predictive_nodes(model: MixedLogitModel, fit: Fit, seed: int) -> Tensor:
    """Draw coefficients (r, f + k), float64, from the posterior predictive distribution of a new decision maker.

    They form a scrambled Sobol net over (posterior sample of the population parameters, standard normal tastes).
    Without a posterior (maximum likelihood) the population parameters are the point estimate.
    """
    samples = fit.samples.unconstrained
    if fit.samples.kind != "posterior":
        samples = model.space.unconstrain(fit.center)[None]
    if model.space.n_random == 0:
        return model.space.constrain(samples[:_PREDICTIVE_NODES]).fixed
    draws = PersonDraws("sobol", _PREDICTIVE_NODES, 1 + model.space.n_random, seed + _PREDICTIVE_STREAM)
    normal = draws.normals(0, 1)[0].T
    # Ranks of the first coordinate are a permutation, so every sample is used equally often.
    rank, order = normal[:, 0].argsort().argsort(), order_along_curve(samples)
    population = model.space.constrain(samples[order[rank * len(samples) // _PREDICTIVE_NODES]])
    latent = population.location + (population.scale_tril @ normal[:, 1:, None])[..., 0]
    tastes = model.mixing.tastes(latent, population.location, population.scale)
    return model.mixing.coefficients(population.fixed, tastes)
