"""Standard deviations between situations with their positive sign: the likelihood is the same with either."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.fit import Fit, Samples
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters


def mean_population(model: MixedLogitModel, samples: Samples) -> PopulationParameters:
    """Population at the means of reported parameters, of standard deviations between situations by absolute values."""
    mean, varying = samples.mean.clone(), model.mixing.varying
    if varying is not None:
        places = [model.space.means.index(place) for place in varying.deviations]
        mean[places] = samples.reported[:, places].abs().mean(0).to(mean)
    return model.space.from_report(mean)


def with_positive_deviations(fit: Fit, model: MixedLogitModel) -> Fit:
    """The fit with the absolute values of standard deviations between situations, in samples as at the centre."""
    varying = model.mixing.varying
    if varying is None:
        return fit
    places = [model.space.means.index(place) for place in varying.deviations]
    fixed = list(varying.deviations)

    def absolute(values: Tensor, columns: list[int] = places) -> Tensor:
        result = values.clone()
        result[..., columns] = result[..., columns].abs()
        return result

    signs = torch.ones(model.space.size, dtype=torch.float64)
    signs[places] = torch.where(fit.center.fixed[fixed] < 0.0, -1.0, 1.0).to(signs)
    covariance = None if fit.covariance is None else fit.covariance * torch.outer(signs, signs).to(fit.covariance)
    samples = replace(
        fit.samples, unconstrained=absolute(fit.samples.unconstrained), reported=absolute(fit.samples.reported)
    )
    center = replace(fit.center, fixed=absolute(fit.center.fixed, fixed))
    return replace(
        fit,
        samples=samples,
        center=center,
        covariance=covariance,
        chains=None if fit.chains is None else absolute(fit.chains),
        states=None if fit.states is None else replace(fit.states, fixed=absolute(fit.states.fixed, fixed)),
    )
