"""Hidden units of networks of covariates (`mxlogit.spec.network`): their values for people, and as columns of data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mxlogit.choices.covariates import check_covariates, read_covariates
from mxlogit.choices.data import ChoiceData
from mxlogit.errors import ChoiceDataError
from mxlogit.spec import HiddenUnits

# Standard deviation of the weights into a unit, all together, per standard deviation of the covariates: units bend
# within the range of these. Chosen by hand.
_GAIN = 1.5
# Standard deviation of a covariate relative to its size that is rounding.
_ROUNDING = 1e-9


def standardise(units: HiddenUnits, data: ChoiceData) -> HiddenUnits:
    """Hidden units with means and standard deviations of the covariates over the people of choice data.

    Raises
    ------
    ChoiceDataError
        If a covariate is the same for all people.
    """
    values, weights = read_covariates(data, units.covariates), data.weights.double()
    share = (weights / weights.sum())[:, None]
    centre = (share * values).sum(0)
    scale = (share * (values - centre).square()).sum(0).sqrt()
    smallest = _ROUNDING * values.abs().amax(0)
    constant = [name for i, name in enumerate(units.covariates) if not float(scale[i]) > float(smallest[i])]
    if constant:
        raise ChoiceDataError(f"mean_shifters: {constant} are the same for all decision makers; leave them out.")
    return replace(units, centre=tuple(centre.tolist()), scale=tuple(scale.tolist()))


def activate(units: HiddenUnits, covariates: Tensor) -> Tensor:
    """Values (n, h), float64, of the units of the last layer at covariates (n, c)."""
    rng = np.random.default_rng(units.seed)
    centre, scale = (torch.tensor(part, dtype=torch.float64) for part in (units.centre, units.scale))
    values = (covariates.double().cpu() - centre) / scale
    for inputs, outputs in units.shapes:
        weights = torch.from_numpy(rng.standard_normal((outputs, inputs))) * (_GAIN / inputs**0.5)
        values = torch.tanh(values @ weights.T + torch.from_numpy(rng.standard_normal(outputs)))
    return values


def add_hidden_units(data: ChoiceData, networks: Sequence[HiddenUnits], *, per_person: bool = True) -> ChoiceData:
    """Append columns with the values of hidden units; parameters and errors as in `covariates.add_products`."""
    for units in networks:
        taken = [label for label in units.features if label in data.names]
        if taken:
            raise ChoiceDataError(f"the choice data have attributes {taken}, which Network would make: rename them.")
        check_covariates(data, units.covariates, per_person=per_person)
        rows = data.choices.rows
        made = activate(units, rows[:, data.columns(units.covariates)]).to(rows)
        data = replace(
            data,
            choices=replace(data.choices, rows=torch.cat([rows, made], 1)),
            names=(*data.names, *units.features),
        )
    return data
