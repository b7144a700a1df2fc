"""The log posterior in relative coordinates, from the sums of a pass: its evaluation, Newton steps and noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.integration.sums import PassResult
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.triangles import inverse_of_lower
from mxlogit.optim.trust_region import Evaluation, newton_decrement, solve_step

# Largest scaled coordinate of a Newton step; chosen by hand.
TRUST_RADIUS = 0.5
# Largest share of the curvature in a direction that is subtracted as noise; chosen by hand.
_MOST_NOISE = 0.95


def step_scale(model: MixedLogitModel) -> Tensor:
    """Natural size (D,) of a step in each relative coordinate."""
    scale = torch.ones(model.space.whole.size, dtype=torch.float64)
    scale[: model.space.n_fixed] = 1.0 / model.attribute_scale[: model.space.n_fixed]
    return model.space.drop_held(scale)


def step_from(model: MixedLogitModel, population: PopulationParameters, evaluation: Evaluation) -> PopulationParameters:
    """Take one Newton step from a population value."""
    return model.space.move(population, solve_step(evaluation, step_scale(model), TRUST_RADIUS).step)


def draws_shift(model: MixedLogitModel, old: Evaluation, new: Evaluation) -> float:
    """Squared distance per parameter, in posterior sds, between the Newton steps of two evaluations of a point.

    The difference of the two scores is free of the search's own remaining step.
    """
    apart = replace(new, gradient=new.gradient - old.gradient)
    return 2.0 * newton_decrement(apart, step_scale(model)) / model.space.size


def with_prior(model: MixedLogitModel, population: PopulationParameters, result: PassResult) -> Evaluation:
    """Log posterior, its gradient, and its curvature by outer products of scores, from the sums of a pass."""
    prior = model.log_prior_in_moves(population)
    return Evaluation(
        result.value.log_likelihood + prior.value,
        result.score + prior.gradient,
        result.outer - prior.hessian,
        detail=result,
    )


def without_noise(curvature: Tensor, noise: Tensor) -> Tensor:
    """Subtract noise from a curvature (D, D), at most `_MOST_NOISE` of it in any direction: positive definite."""
    root = torch.linalg.cholesky(curvature)
    inverse = inverse_of_lower(root)
    values, vectors = torch.linalg.eigh(inverse @ noise @ inverse.T)
    return curvature - root @ (vectors * values.clamp(max=_MOST_NOISE)) @ vectors.T @ root.T
