"""Attainable errors: asymptotic errors of maximum likelihood at the truth, and of tastes at known parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.errors import SpecificationError
from mxlogit.estimator import MixedLogit
from mxlogit.execution.people import People
from mxlogit.execution.processes import Communicator
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tastes import ImportanceTastes
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.study.designs import StudyDesign

# Offset of the seeds of the simulated data sets, distinct from the seeds of runs and of new choices.
_SEED = 3_000_000
# Importance draws per person.
_DRAWS = 64
# Degrees of freedom of the Student-t importance density.
_DEGREES_OF_FREEDOM = 8
# Largest number of Newton steps to each person's mode.
_NEWTON_STEPS = 30
# Draws from the asymptotic distribution over which mean errors are computed.
_ERRORS = 20_000


def attainable_errors(design: StudyDesign, people: int, simulated: int = 20_000) -> dict[str, float]:
    """Mean root-mean-square errors of an efficient estimator on data sets of a design.

    Parameters
    ----------
    design : StudyDesign
        Design of the data sets.
    people : int
        Number of decision makers of a data set.
    simulated : int
        Number of decision makers simulated, in data sets of that size, to estimate the information per person.

    Returns
    -------
    dict of str to float
        Errors ``rmse_alpha rmse_zeta rmse_omega rmse_beta_n`` as in `mxlogit.study.evaluate`; the last one is for
        posterior means at the true parameters, a lower bound (with estimated parameters it is .8 % larger for 2,000
        people, asymptotically).

    Raises
    ------
    SpecificationError
        If tastes depend on the population parameters other than through their latents.
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
    """Data set of a design, with its model, people, true population parameters and true tastes."""

    model: MixedLogitModel
    people: People
    truth: PopulationParameters
    tastes: np.ndarray
    seed: int

    @classmethod
    def draw(cls, design: StudyDesign, people: int, part: int) -> _Sampled:
        """Simulate data set number ``part``."""
        sample = design.simulate(people, _SEED + part)
        fitted, all_people, _ = MixedLogit(**design.request(), random_state=part)._prepare(sample.data, Communicator())
        space = fitted.model.space
        reported = sample.parameters[list(space.labels)].to_numpy(dtype=float)
        truth = space.from_report(torch.tensor(reported))
        return cls(fitted.model, all_people, truth, sample.tastes.to_numpy(), part)

    def information(self) -> Tensor:
        """Mean information matrix per person for relative moves from the truth."""
        marginal = MarginalLikelihood(self.people, self.model.space, self.model.mixing, self.seed)
        mixing = self.model.mixing
        if mixing.direct or mixing.is_kinked:
            raise SpecificationError(
                "attainable errors are available for families whose tastes are smooth functions of their latents alone."
            )
        information = marginal.information(
            self.model, self.truth, IntegrationSettings(_DRAWS, _DEGREES_OF_FREEDOM, newton_steps=_NEWTON_STEPS)
        )
        return information / len(self.people)

    def error_of_tastes(self) -> float:
        """Root-mean-square error of the posterior means of all people's tastes at the true parameters."""
        found, _ = ImportanceTastes(self.model, self.seed, _DEGREES_OF_FREEDOM).moments(
            self.people.require_single_process(), self.truth
        )
        return float(np.sqrt(np.mean(np.square(found.numpy() - self.tastes))))


def _mean_errors(space: ParameterSpace, truth: PopulationParameters, moves: Tensor) -> dict[str, float]:
    """Mean root-mean-square errors of the parameters after relative moves (n, D) from the truth."""
    fixed, location, cells = moves.split([space.n_fixed, space.n_random, len(space.triangle[0])], 1)
    tril = truth.scale_tril
    matrix = space.triangle_matrix(cells)
    errors = {
        "rmse_alpha": fixed,
        "rmse_zeta": location @ tril.T,
        "rmse_omega": (tril @ (matrix + matrix.mT) @ tril.T).flatten(1),
    }
    return {name: _mean(error.square().mean(1).sqrt().tolist()) for name, error in errors.items() if error.shape[1]}
