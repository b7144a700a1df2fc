"""Tables of classes: their shares, their tastes, and the probabilities that people belong to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.errors import SpecificationError
from mxlogit.fit import Fit
from mxlogit.model.classes import ClassPopulation, ClassSpace
from mxlogit.model.mean_shifters import Covariates
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.results.intervals import SampledValues, interval_frame

# Samples whose shares of all people are in memory at a time.
_SAMPLES_AT_ONCE = 64


def class_names(model: MixedLogitModel) -> list[str]:
    """Names of the classes of a model."""
    return [f"class{number + 1}" for number in range(getattr(model.space, "n_classes", 0))]


def class_number(name: object, model: MixedLogitModel) -> int | None:
    """Index of the class with a name; None for anything else."""
    names = class_names(model)
    return names.index(name) if isinstance(name, str) and name in names else None


def require_classes(model: MixedLogitModel) -> None:
    """Raise unless the population consists of classes.

    Raises
    ------
    SpecificationError
        If it does not.
    """
    if not model.has_classes:
        raise SpecificationError("this model has no classes; fit it with mixing=Mixture(classes=...).")


def mean_shares(population: ClassPopulation, people: Covariates | None) -> Tensor:
    """Shares (*s, C) of the classes among people, or, without covariates, in the population."""
    if people is None:
        return population.log_shares().exp()[..., 0, :]
    if population.membership.dim() == 2:
        return population.mean_shares(people.values, people.weights)
    samples = range(0, len(population.membership), _SAMPLES_AT_ONCE)
    parts = [population.map(lambda x, i=i: x[i : i + _SAMPLES_AT_ONCE]) for i in samples]  # type: ignore[misc]
    return torch.cat([part.mean_shares(people.values, people.weights) for part in parts])


def class_moments(model: MixedLogitModel, population: ClassPopulation) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (*s, C, k) of the tastes of the members of each class."""
    mean, deviation = model.mixing.moments(population.location, population.scale)
    counts = population.attended[:, model.space.n_fixed :]
    return mean * counts, deviation * counts


def share_rows(model: MixedLogitModel, fit: Fit, people: Covariates | None, level: float) -> pd.DataFrame:
    """Rows of a summary with the shares of the classes."""
    values = _sampled_shares(model, fit, people)
    summary = values.summary(level)
    error = values.values.std(0).numpy()
    assert isinstance(model.space, ClassSpace)
    index = model.space.share_labels
    data = {"estimate": summary[:, 0], "std_error": error, "lower": summary[:, 1], "upper": summary[:, 2]}
    return pd.DataFrame(data, index=index)


def _sampled_shares(model: MixedLogitModel, fit: Fit, people: Covariates | None) -> SampledValues:
    population = model.space.constrain(fit.samples.unconstrained)
    assert isinstance(population, ClassPopulation)
    assert isinstance(fit.center, ClassPopulation)
    values = mean_shares(population, people).cpu()
    return SampledValues(values, None if fit.samples.kind == "posterior" else mean_shares(fit.center, people).cpu())


def class_frame(model: MixedLogitModel, fit: Fit, people: Covariates | None, interval: float) -> pd.DataFrame:
    """Table of shares and mean tastes of the classes, and of standard deviations within them, with intervals."""
    population = model.space.constrain(fit.samples.unconstrained)
    assert isinstance(population, ClassPopulation)
    assert isinstance(fit.center, ClassPopulation)
    spreads = bool((population.scale_tril != 0.0).any())
    names = [*model.space.fixed, *model.space.random]
    labels = _rows(model, names, spreads=spreads)

    def collect(at: ClassPopulation) -> Tensor:
        mean, deviation = class_moments(model, at)
        fixed = at.fixed[..., None, :] * at.attended[:, : model.space.n_fixed]
        parts = [mean_shares(at, people)[..., None], fixed, mean]
        return torch.cat([*parts, deviation] if spreads else parts, -1)

    posterior = fit.samples.kind == "posterior"
    values = SampledValues(collect(population).flatten(-2), None if posterior else collect(fit.center).flatten(-2))
    keys = [(name, *label) for name in class_names(model) for label in labels]
    index = pd.MultiIndex.from_tuples(keys, names=["class", "statistic", "coefficient"])
    return interval_frame(values.summary(interval), index, fit.samples.kind, interval)


def _rows(model: MixedLogitModel, names: Sequence[str], *, spreads: bool) -> list[tuple[str, str]]:
    """Statistics of a class, in order."""
    rows = [("share", ""), *(("mean", name) for name in names)]
    return [*rows, *(("sd", name) for name in model.space.random)] if spreads else rows


def membership_frame(model: MixedLogitModel, labels: np.ndarray, memberships: Tensor) -> pd.DataFrame:
    """Table of probabilities (n, C) of membership."""
    index = pd.Index(labels, name="decision_maker")
    return pd.DataFrame(memberships.cpu().numpy(), index=index, columns=pd.Index(class_names(model), name="class"))
