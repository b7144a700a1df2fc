"""How small errors can be: the asymptotic error of maximum likelihood at the truth, and of tastes when it is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.errors import SpecificationError
from mxlogit.estimator import MixedLogit
from mxlogit.execution.people import People
from mxlogit.execution.processes import Team
from mxlogit.integration.marginal import MarginalLikelihood, Sweep
from mxlogit.integration.tastes import PolishedTastes
from mxlogit.model.mixed_logit import PanelModel
from mxlogit.model.parameters import ParameterSpace, Population
from mxlogit.study.designs import StudyDesign

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
        at the true parameters, which nobody who estimates them attains (asymptotic errors of 2,000 people's add .8 %).

    Raises
    ------
    SpecificationError
        If tastes depend on the population by more than their latents: their information has no closed form here.
    """
    samples = [_Sampled.draw(design, people, part) for part in range(max(1, simulated // people))]
    information = torch.stack([sampled.information() for sampled in samples]).mean(0)
    root = torch.linalg.cholesky(torch.linalg.inv(people * information))
    space, truth = samples[0].model.space, samples[0].truth
    noise = torch.randn(_ERRORS, space.size, generator=make_generator(_SEED), dtype=torch.float64)
    tastes = [sampled.error_of_tastes() for sampled in samples]
    return {**_mean_errors(space, truth, noise @ root.T), "rmse_beta_n": _mean(tastes)}


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


@dataclass(frozen=True)
class _Sampled:
    """A data set of a design, its model, its people and its true population and tastes."""

    model: PanelModel
    people: People
    truth: Population
    tastes: np.ndarray
    seed: int

    @classmethod
    def draw(cls, design: StudyDesign, people: int, part: int) -> _Sampled:
        """The data set number ``part``."""
        sample = design.simulate(people, _SEED + part)
        fitted, everybody, _ = MixedLogit(**design.request(), random_state=part)._prepare(sample.data, Team())
        space = fitted.model.space
        reported = sample.parameters[list(space.labels)].to_numpy(dtype=float)
        truth = space.from_report(torch.tensor(reported))
        return cls(fitted.model, everybody, truth, sample.tastes.to_numpy(), part)

    def information(self) -> Tensor:
        """Information of one person about relative moves from the truth."""
        marginal = MarginalLikelihood(self.people, self.model.space, self.model.mixing, self.seed)
        mixing = self.model.mixing
        if mixing.direct or mixing.is_kinked:
            raise SpecificationError("the attainable error is known for tastes that follow from their latents alone.")
        information = marginal.information(self.model, self.truth, Sweep(_DRAWS, _TAIL, 0, _POLISH))
        return information / len(self.people)

    def error_of_tastes(self) -> float:
        """Root-mean-square error of posterior means of everybody's tastes at the truth."""
        found, _ = PolishedTastes(self.model, self.seed, _TAIL).moments(self.people.alone(), self.truth)
        return float(np.sqrt(np.mean(np.square(found.numpy() - self.tastes))))


def _mean_errors(space: ParameterSpace, truth: Population, moves: Tensor) -> dict[str, float]:
    """Means of root mean squares of the errors that relative moves (n, D) from the truth make."""
    fixed, location, cells = moves.split([space.n_fixed, space.n_random, len(space.triangle[0])], 1)
    tril = truth.scale_tril
    matrix = space.triangle_matrix(cells)
    errors = {
        "rmse_alpha": fixed,
        "rmse_zeta": location @ tril.T,
        "rmse_omega": (tril @ (matrix + matrix.mT) @ tril.T).flatten(1),
    }
    return {name: _mean(error.square().mean(1).sqrt().tolist()) for name, error in errors.items() if error.shape[1]}
