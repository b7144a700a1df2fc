"""How small errors can be: the asymptotic error of maximum likelihood at the truth, and of tastes when it is known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mxlogit.draws import make_generator
from mxlogit.errors import SpecificationError
from mxlogit.estimator import MixedLogit
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.parameters import ParameterSpace, Population
from mxlogit.study.designs import StudyDesign
from mxlogit.tastes import PolishedTastes
from mxlogit.team import Team

_SEED, _DRAWS, _TAIL, _POLISH, _ERRORS = 3_000_000, 64, 8, 30, 20_000


def attainable_errors(design: StudyDesign, people: int, simulated: int = 20_000) -> dict[str, float]:
    """Mean root-mean-square errors of an efficient estimator on data sets of a design.

    Parameters
    ----------
    design : StudyDesign
    people : int
        Decision makers of a data set.
    simulated : int
        Decision makers simulated, in data sets of that size, to find the information of one.

    Returns
    -------
    dict of str to float
        ``rmse_alpha rmse_zeta rmse_omega rmse_beta_n`` as of `mxlogit.study.evaluate`; the last one of posterior means
        at the true parameters.

    Raises
    ------
    SpecificationError
        If tastes depend on the population by more than their latents: their information has no closed form here.
    """
    samples = [_at_truth(design, people, part) for part in range(max(1, simulated // people))]
    _, space, truth, _ = samples[0]
    information = torch.stack([found for found, *_ in samples]).mean(0)
    errors = _mean_errors(space, truth, torch.linalg.inv(people * information))
    return {**errors, "rmse_beta_n": float(np.mean([error for *_, error in samples]))}


def _at_truth(design: StudyDesign, people: int, part: int) -> tuple[Tensor, ParameterSpace, Population, float]:
    """Information of one person about relative moves from the truth, its space, the truth, and the error of tastes."""
    sample = design.simulate(people, _SEED + part)
    fitted, everybody, _ = MixedLogit(**design.request(), random_state=part)._prepare(sample.data, Team())
    model = fitted.model
    reported = sample.parameters[list(model.space.labels)].to_numpy(dtype=float)
    truth = model.space.from_report(torch.tensor(reported))
    marginal = MarginalLikelihood(everybody, model.space, model.mixing, part)
    information = marginal.information(truth, marginal.propose(truth, Sweep(_DRAWS, _TAIL, 0, _POLISH)))
    if information is None:
        raise SpecificationError("the attainable error is known for tastes that follow from their latents alone.")
    tastes, _ = PolishedTastes(model, part, _TAIL).moments(everybody.alone(), truth)
    error = tastes.numpy() - sample.tastes.to_numpy()
    return information / people, model.space, truth, float(np.sqrt(np.mean(np.square(error))))


def _mean_errors(space: ParameterSpace, truth: Population, covariance: Tensor) -> dict[str, float]:
    """Means of root mean squares of errors that are normal with this covariance of relative moves."""
    noise = torch.randn(_ERRORS, space.size, generator=make_generator(_SEED), dtype=torch.float64)
    moves = noise @ torch.linalg.cholesky(covariance).T
    fixed, location, cells = moves.split([space.n_fixed, space.n_random, len(space.triangle[0])], 1)
    tril = truth.scale_tril
    matrix = space.triangle_matrix(cells)
    errors = {
        "rmse_alpha": fixed,
        "rmse_zeta": location @ tril.T,
        "rmse_omega": (tril @ (matrix + matrix.mT) @ tril.T).flatten(1),
    }
    return {name: float(error.square().mean(1).sqrt().mean()) for name, error in errors.items() if error.shape[1]}
