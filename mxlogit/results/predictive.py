"""Expected log predictive density of new decision makers: leave-one-person-out and WAIC.

Both use the *marginal* likelihood of whole decision makers, with tastes integrated out: a person is left out with all
choices. The conditional version, for choices given sampled tastes, refers to new choices of the same people, has an
effective number of parameters in the thousands, and is not offered here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.diagnostics.psis import pareto_smoothed
from mxlogit.diagnostics.thresholds import largest_pareto_k
from mxlogit.errors import SpecificationError
from mxlogit.execution.people import PanelSource, People
from mxlogit.fit import Fit
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.mixture_likelihood import likelihood_of_classes
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mixed_logit import MixedLogitModel

# Largest number of posterior samples at which the likelihood is evaluated.
_POPULATIONS = 400
# Importance draws per person and sample.
_DRAWS = 128
# Samples at which the exact likelihood of a latent class model is evaluated at a time.
_SAMPLES_AT_ONCE = 32


@dataclass(frozen=True)
class PredictiveDensity:
    """Expected log predictive density of new decision makers.

    Attributes
    ----------
    elpd : float
        Weighted sum over decision makers, in natural logarithms; larger is better.
    elpd_error : float
        Standard error over decision makers.
    parameters : float
        Effective number of parameters.
    pointwise : pandas.DataFrame
        Index: decision maker. Columns: ``elpd`` and ``parameters``, multiplied by ``weight``, and, for leave-one-out,
        ``pareto_k``, above 0.62 (400 posterior samples) for people whose estimate is unreliable.
    """

    elpd: float
    elpd_error: float
    parameters: float
    pointwise: pd.DataFrame

    @property
    def people_above_k(self) -> float:
        """Share of decision makers whose Pareto k is above 0.62, the limit of 400 samples; nan for WAIC."""
        if "pareto_k" not in self.pointwise:
            return float("nan")
        return float((self.pointwise["pareto_k"] > largest_pareto_k(_POPULATIONS)).mean())

    def minus(self, other: PredictiveDensity) -> tuple[float, float]:
        """Difference in elpd of two models of the same decision makers, and its standard error (paired by person).

        Raises
        ------
        SpecificationError
            If the decision makers or their weights differ.
        """
        mine, others = self.pointwise["elpd"], other.pointwise["elpd"]
        if not mine.index.equals(others.index):
            raise SpecificationError("the two models are of different decision makers and cannot be compared.")
        weights = self.pointwise["weight"]
        if not np.allclose(weights, other.pointwise["weight"]):
            raise SpecificationError("the two models weight decision makers differently and cannot be compared.")
        gap = mine - others
        return float(gap.sum()), _error_of_sum(gap / weights, weights)


def log_densities(model: MixedLogitModel, fit: Fit, panel: PanelSource, seed: int) -> Tensor:
    """Marginal log p(y_n | theta_s) of every decision maker at posterior samples, (s, n), float64.

    Raises
    ------
    SpecificationError
        If the fit has no posterior samples.
    """
    if fit.samples.kind != "posterior":
        raise SpecificationError("loo and waic need a posterior: use method='vi' or 'mcmc'.")
    if model.has_classes:
        return _of_classes(model, fit, panel, seed)
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, seed)
    integration = IntegrationSettings(
        _DRAWS, 8, stream=61, newton_steps=30, variational_steps=2 if model.space.n_random else 0
    )
    rows = []
    for vector in fit.samples.unconstrained[:_POPULATIONS]:
        population = model.space.constrain(vector)
        rows.append(marginal.log_prob_people(population, marginal.propose(population, integration)))
    return torch.stack(rows)


def _of_classes(model: MixedLogitModel, fit: Fit, panel: PanelSource, seed: int) -> Tensor:
    """Densities of a population of classes, which are exact without spread."""
    likelihood = likelihood_of_classes(model, People.gather(panel).local_panels(), seed, _DRAWS, 61)
    rows = []
    for vectors in fit.samples.unconstrained[:_POPULATIONS].split(_SAMPLES_AT_ONCE):
        population = model.space.constrain(vectors)
        assert isinstance(population, ClassPopulation)
        rows.append(likelihood.log_prob_people(population))
    return torch.cat(rows)


def leave_one_out(densities: Tensor, weights: Tensor, labels: np.ndarray) -> PredictiveDensity:
    """Leave-one-person-out predictive density by Pareto smoothed importance sampling.

    Parameters
    ----------
    densities : Tensor, shape (s, n)
        Marginal log densities (`log_densities`).
    weights : Tensor, shape (n,)
        Weights of the decision makers.
    labels : ndarray
        Labels of the decision makers.

    References
    ----------
    Vehtari, Gelman and Gabry (2017), Statistics and Computing 27.
    """
    log_weights, shape = pareto_smoothed(-densities.T)
    elpd = (log_weights + densities.T).logsumexp(-1)
    return _collect(elpd, _log_mean(densities) - elpd, weights, labels, pareto_k=shape)


def widely_applicable(densities: Tensor, weights: Tensor, labels: np.ndarray) -> PredictiveDensity:
    """WAIC in log density units (Watanabe 2010, J. of Machine Learning Research 11); parameters as `leave_one_out`."""
    spread = densities.var(0)
    return _collect(_log_mean(densities) - spread, spread, weights, labels)


def _log_mean(densities: Tensor) -> Tensor:
    return densities.logsumexp(0) - float(np.log(len(densities)))


def _error_of_sum(values: pd.Series, weights: pd.Series) -> float:
    """Standard error of a sum over people with frequency weights."""
    count = weights.sum()
    if count <= 1.0:
        return float("nan")
    mean = (weights * values).sum() / count
    return float(np.sqrt(count * (weights * (values - mean) ** 2).sum() / (count - 1.0)))


def _collect(
    elpd: Tensor, parameters: Tensor, weights: Tensor, labels: np.ndarray, **more: Tensor
) -> PredictiveDensity:
    weights = weights.double()
    columns = {"elpd": elpd * weights, "parameters": parameters * weights, "weight": weights, **more}
    frame = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
    frame.index = pd.Index(labels, name="decision_maker")
    error = _error_of_sum(frame["elpd"] / frame["weight"], frame["weight"])
    return PredictiveDensity(float(frame["elpd"].sum()), error, float(frame["parameters"].sum()), frame)
