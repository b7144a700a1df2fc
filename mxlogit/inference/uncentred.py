"""From a fit with centred covariates to means at covariates of zero.

Covariates such as years of birth are far from zero, where the mean of a taste is known a hundred times less than at the
average person, and is correlated with the effect. Engines see products with centred covariates, and their results are
converted here: effects stay, and means move by effects times averages.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.fit import Fit, TasteStates
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters


def uncentred(fit: Fit, model: MixedLogitModel) -> Fit:
    """The fit of a model whose products were centred by ``model.shifters.offsets``, in terms of the plain products."""
    if not model.shifters:
        return fit
    samples = replace(
        fit.samples,
        unconstrained=_moved(fit.samples.unconstrained, model),
        reported=_moved(fit.samples.reported, model),
    )
    return replace(
        fit,
        samples=samples,
        center=_moved_population(fit.center, model),
        covariance=None if fit.covariance is None else _moved_covariance(fit.covariance, model),
        chains=None if fit.chains is None else _moved(fit.chains, model),
        states=None if fit.states is None else _moved_states(fit.states, model),
    )


def _moved(vectors: Tensor, model: MixedLogitModel) -> Tensor:
    """Unconstrained or reported vectors (*s, D)."""
    space = model.space
    means, rest = vectors[..., : space.n_means], vectors[..., space.n_means :]
    whole = model.shifters.uncentre(torch.cat(space.insert_held(means), -1))
    return torch.cat([space.drop_held(whole), rest], -1)


def _moved_population(population: PopulationParameters, model: MixedLogitModel) -> PopulationParameters:
    whole = model.shifters.uncentre(torch.cat([population.fixed, population.location], -1))
    fixed, location = whole.split([model.space.n_fixed, model.space.n_random], -1)
    return PopulationParameters(fixed, location, population.scale_tril)


def _moved_covariance(covariance: Tensor, model: MixedLogitModel) -> Tensor:
    """Covariance (D, D) of reported parameters; what is void stays so."""
    unit = torch.eye(len(covariance)).to(covariance)
    jacobian = (_moved(unit, model) - _moved(torch.zeros_like(unit), model)).T
    void = torch.isnan(covariance).all(1)
    moved = jacobian @ covariance.nan_to_num(nan=0.0) @ jacobian.T
    moved[void] = moved[:, void] = torch.nan
    return moved


def _moved_states(states: TasteStates, model: MixedLogitModel) -> TasteStates:
    """States of chains; standard deviations are those of tastes without what covariates add."""
    f = model.space.n_fixed
    # What moves is the same for all people: the difference at a taste of zero.
    still = states.tastes.new_zeros(len(states.fixed), model.space.n_random)
    whole = model.shifters.of_tastes.uncentre(torch.cat([states.fixed.to(still), still], -1))
    tastes = states.tastes + whole[:, None, f:]
    mean = states.mean + whole[:, f:].mean(0).to(states.mean)
    return TasteStates(mean, states.deviation, whole[:, :f].to(states.fixed), tastes)
