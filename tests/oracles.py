"""Slow, plain answers that tests and benchmarks compare with."""

import pandas as pd
import torch

from mxlogit import MSLE, MixedLogit, datasets
from mxlogit.execution.people import People
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.parameters import PopulationParameters
from mxlogit.optim.trust_region import Evaluation, NewtonAscent

# Location and scale of the latent normal that give informative data for each family.
PARAMETERS = {
    "normal": (0.8, 1.0),
    "lognormal": (-0.2, 0.7),
    "negative_lognormal": (-0.2, 0.7),
    "truncated_normal": (0.6, 1.0),
    "censored_normal": (0.5, 1.2),
    "uniform": (0.5, 1.8),
    "triangular": (0.5, 2.2),
    "johnson_sb": (0.5, 2.5),
}


def importance_sampled_maximum(
    est: MixedLogit, draws: int, tolerance: float = 1e-3
) -> tuple[PopulationParameters, float, float]:
    """Maximise the importance-sampled likelihood, without a prior, from a fit's estimate.

    Returns the population, its log likelihood and the Monte Carlo standard error.
    """
    model, panel = est._fitted.model, est._fitted.panel
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, 11)

    def evaluate(population: PopulationParameters) -> Evaluation:
        result = marginal.score_pass(population, IntegrationSettings(draws, 8, 1, 8))
        return Evaluation(result.value.log_likelihood, result.score, result.outer, result)

    scale = torch.ones(model.space.size, dtype=torch.float64)
    scale[: model.space.n_fixed] = 1.0 / model.attribute_scale[: model.space.n_fixed]
    ascent = NewtonAscent(evaluate, model.space.move, scale, tolerance, 60, 0.5, lambda iteration: None)
    found = ascent.run(est.result_.center)
    return found.point, found.evaluation.value, found.evaluation.detail.value.variance**0.5


def marginal_of(est: MixedLogit) -> MarginalLikelihood:
    """The marginal likelihood of the people of a fit, on the seed of its tastes."""
    model, panel = est._fitted.model, est._fitted.panel
    return MarginalLikelihood(People.gather(panel), model.space, model.mixing, est.result_.tastes.seed)


def fit_normal_time(method: MSLE) -> MixedLogit:
    """Swissmetro with a normal time coefficient, every situation its own draws (b05): the published specification."""
    frame: pd.DataFrame = datasets.load_swissmetro()
    est = MixedLogit(
        fixed=["cost"],
        random=["time"],
        constants=True,
        base_alternative="SM",
        decision_maker="case",
        availability="available",
        method=method,
        random_state=0,
    )
    return est.fit(frame.assign(case=frame["id"] * 100 + frame["situation"]))


def fit_error_components(method: MSLE) -> MixedLogit:
    """Swissmetro as a panel with a normal time coefficient and error components on three constants (b12).

    Independent components on three constants are, in differences to Swissmetro, two constants whose covariance is
    the variance of Swissmetro's component.
    """
    est = MixedLogit(
        fixed=["cost"],
        random=["time", "asc.TRAIN", "asc.CAR"],
        correlated=[["asc.TRAIN", "asc.CAR"]],
        constants=True,
        base_alternative="SM",
        availability="available",
        method=method,
        random_state=1,
    )
    return est.fit(datasets.load_swissmetro())
