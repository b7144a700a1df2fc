"""Table of the average effects of covariates on means of coefficients."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from mxlogit.choices.hidden_units import activate
from mxlogit.errors import SpecificationError
from mxlogit.fit import Fit
from mxlogit.model.mean_shifters import Covariates
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.results.intervals import SampledValues, interval_frame
from mxlogit.spec import HiddenUnits, Specification

# Step of a numerical derivative, in standard deviations of the covariate.
_STEP = 1e-3


def effects_frame(
    specification: Specification, model: MixedLogitModel, fit: Fit, people: Covariates | None, interval: float
) -> pd.DataFrame:
    """Average derivatives of the mean of each shifted coefficient by covariates, over people, with intervals.

    Of a covariate with values zero and one, the average difference between one and zero.

    Returns
    -------
    pandas.DataFrame
        Index: coefficient, covariate. Columns: ``estimate``, ``lower``, ``upper``.

    Raises
    ------
    SpecificationError
        If the model has no such covariates.
    """
    if people is None or not specification.shifters:
        raise SpecificationError("no covariates shift coefficients of this model; fit it with mean_shifters.")
    networks = {units.column: units for units in specification.networks}
    pairs = [pair for pair in specification.shifters if pair[1] not in specification.features]
    loadings = torch.stack(
        [_loading(specification, networks.get(column), (column, name), people) for column, name in pairs]
    )
    places = list(model.shifters.effects)
    population = model.space.constrain(fit.samples.unconstrained)
    values = population.fixed[:, places] @ loadings.T
    estimate = None if fit.samples.kind == "posterior" else fit.center.fixed[places] @ loadings.T
    index = pd.MultiIndex.from_tuples(pairs, names=["coefficient", "covariate"])
    return interval_frame(SampledValues(values, estimate).summary(interval), index, fit.samples.kind, interval)


def _loading(
    specification: Specification, units: HiddenUnits | None, pair: tuple[str, str], people: Covariates
) -> Tensor:
    """Average derivatives (number of effects,) of what each effect multiplies by one covariate."""
    column, name = pair
    result = torch.zeros(len(specification.shifters), dtype=torch.float64)
    result[specification.shifters.index(pair)] = 1.0
    if units is None:
        return result
    mine = [specification.shifters.index((column, feature)) for feature in units.features]
    columns = [specification.covariates.index(covariate) for covariate in units.covariates]
    result[mine] = _average_derivatives(units, people.values[:, columns], people.weights, units.covariates.index(name))
    return result


def _average_derivatives(units: HiddenUnits, values: Tensor, weights: Tensor, place: int) -> Tensor:
    """Average derivatives (h,) of hidden units by a covariate, or differences between its values one and zero."""
    low, high = values.clone(), values.clone()
    if bool(((values[:, place] == 0.0) | (values[:, place] == 1.0)).all()):
        low[:, place], high[:, place], width = 0.0, 1.0, 1.0
    else:
        step = _STEP * units.scale[place]
        low[:, place] -= step
        high[:, place] += step
        width = 2.0 * step
    share = weights / weights.sum()
    return share @ (activate(units, high) - activate(units, low)) / width
