"""The result of any engine: samples, a status that is a sentence, the history, and how to get tastes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.diagnostics.error import ErrorEstimate
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.execution.people import PanelSource
from mxlogit.model.parameters import PopulationParameters


@dataclass(frozen=True)
class Samples:
    """Samples of the population parameters.

    Attributes
    ----------
    unconstrained : Tensor, shape (s, D)
        Vectors in the coordinates of `mxlogit.model.parameters.ParameterSpace`.
    reported : Tensor, shape (s, D)
        Fixed coefficients, locations, standard deviations, correlations.
    labels : tuple of str, length D
    kind : {"posterior", "sampling distribution"}
        What the samples represent.
    """

    unconstrained: Tensor
    reported: Tensor
    labels: tuple[str, ...]
    kind: str = "posterior"

    def __len__(self) -> int:
        return self.reported.shape[0]

    @property
    def mean(self) -> Tensor:
        """Mean of the reported parameters, shape (D,)."""
        return self.reported.mean(0)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the reported parameters, shape (D,)."""
        return self.reported.std(0)

    def quantiles(self, probabilities: Sequence[float]) -> Tensor:
        """Quantiles of the reported parameters, shape (number of probabilities, D)."""
        at = torch.tensor(probabilities, dtype=self.reported.dtype, device=self.reported.device)
        return torch.quantile(self.reported, at, dim=0)


class Status(Enum):
    """Outcome of a fit; the value is the sentence that users read."""

    CONVERGED = "Converged: the stopping rule was met."
    BOUNDARY = (
        "Converged to the boundary: the covariance of the random tastes is indistinguishable from a singular one."
    )
    SEPARATION = "Not converged: separation; the likelihood does not bound a coefficient."
    WRONG_SIGN = "Not converged: a sign-restricted taste is zero, its boundary; its attribute has the opposite sign."
    ITERATIONS_DONE = "Trained for the requested steps, seconds or patience; training does not show convergence."
    TIME = (
        "Not converged: max_seconds was reached before the stopping rule; estimates and errors are those found by then."
    )
    ITERATIONS = "Not converged: the iteration limit was reached before the stopping rule."
    MIXED = "Converged: the chains agree (R-hat at most 1.01)."
    NOT_MIXED = "Not converged: the chains still disagree (R-hat above 1.01)."
    ONE_CHAIN = "Convergence not assessed: R-hat needs at least two chains."
    INTERRUPTED = "Interrupted: the samples are those drawn by then."
    STALLED = "Not converged: no step increased the objective although the gradient is not zero."

    @property
    def converged(self) -> bool:
        """Whether the stopping rule was met."""
        return self in (Status.CONVERGED, Status.BOUNDARY, Status.ITERATIONS_DONE, Status.MIXED)


@dataclass(frozen=True)
class HistoryRow:
    """Row of a fit's decision log.

    Attributes
    ----------
    stage : str
        What was being done, and on how many people.
    objective : float
        Log posterior density (ELBO for the classic route), scaled to all people.
    decrement : float
        Newton decrement in units of the objective; nan where the route has none.
    passes : float
        Gradient equivalents since the start: a gradient over all people at one value of the parameters counts one, a
        value a third, a Hessian-vector product two.
    seconds : float
        Since the start.
    accepted : bool
    """

    stage: str
    objective: float
    decrement: float
    passes: float
    seconds: float
    accepted: bool


class TasteDraws(Protocol):
    """Weighted draws of the random tastes of some people (`mxlogit.integration.tastes.WeightedTastes`)."""

    @property
    def part(self) -> slice | Tensor:
        """Places of the people in their panel."""
        ...

    @property
    def weights(self) -> Tensor:
        """Weights (n, s), which sum to one for every person."""
        ...

    @property
    def tastes(self) -> Tensor:
        """Tastes (n, k, s)."""
        ...

    @property
    def fixed(self) -> Tensor | None:
        """Fixed coefficients (f, s) of each draw; None if they are those of the population."""
        ...


class TasteSampler(Protocol):
    """Posterior of people's tastes given their choices and a value of the population parameters.

    ``places`` are the ranks of people among those of the fit by first appearance, and the number of people of the fit
    for people never seen; without them the panel is taken for the fit's own people in order.
    """

    def moments(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of each person's random tastes, (n, k) each."""
        ...

    def averaged_moments(
        self,
        panel: PanelSource,
        populations: Sequence[PopulationParameters],
        anchor: PopulationParameters,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (n, k) over several population values, near the ``anchor``."""
        ...

    def weigh(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> Iterator[TasteDraws]:
        """Weighted draws of people's random tastes, chunk after chunk of people."""
        ...

    def sample(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's random tastes, (n_samples, n, k)."""
        ...

    def sample_parameters(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's fixed coefficients and random tastes, (n_samples, n, f + k)."""
        ...


@dataclass(frozen=True)
class TasteStates:
    """Posterior of the tastes of the people of a fit by the states of its chains, the population integrated out.

    Attributes
    ----------
    mean, deviation : Tensor, shape (n, k)
        Mean and standard deviation of the random tastes over all kept iterations of all chains.
    fixed : Tensor, shape (states, f)
        Fixed coefficients of the kept states.
    tastes : Tensor, shape (states, n, k)
        Random tastes of the kept states.
    """

    mean: Tensor
    deviation: Tensor
    fixed: Tensor
    tastes: Tensor

    def take(self, people: Tensor) -> TasteStates:
        """Return the states of some people, by an index tensor of places."""
        return TasteStates(self.mean[people], self.deviation[people], self.fixed, self.tastes[:, people])


@dataclass(frozen=True)
class Outcome:
    """Result of an engine before its diagnostics are assessed.

    Attributes
    ----------
    samples : Samples
    center : PopulationParameters
        Point estimate at which `coef_` is reported.
    status : Status
    tastes : TasteSampler
        Sampler of the tastes of people seen or never seen, given a value of the population parameters.
    diagnostics : Diagnostics
        Numbers about the quality of the fit.
    warnings : list of str
        Plain sentences; also issued as `ConvergenceWarning`.
    covariance : Tensor or None, shape (D, D)
        Covariance of the reported parameters by the delta method, where the engine has an asymptotic one.
    chains : Tensor or None, shape (chains, kept, D)
        Reported parameters in the order of sampling, where the engine has chains.
    states : TasteStates or None
        Tastes of the people of the fit, where the engine has chains.
    error : ErrorEstimate or None
        Estimated distance of means and standard deviations from those of the exact posterior; for a sampling
        distribution, of estimates and errors from those of the exact likelihood. None where it was not estimated.
    """

    samples: Samples
    center: PopulationParameters
    status: Status
    tastes: TasteSampler
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    warnings: list[str] = field(default_factory=list)
    covariance: Tensor | None = None
    chains: Tensor | None = None
    states: TasteStates | None = None
    error: ErrorEstimate | None = None


@dataclass(frozen=True)
class Fit(Outcome):
    """The outcome of an engine, assessed (`mxlogit.inference.report`), and the history of its search.

    Attributes
    ----------
    history : list of HistoryRow
        Decision log of the search.
    void : tuple of str
        Labels of parameters whose standard errors and intervals mean nothing, such as those that separation leaves
        unbounded.
    """

    history: list[HistoryRow] = field(default_factory=list)
    void: tuple[str, ...] = ()

    def describe(self) -> dict[str, object]:
        """Return ``status`` (its sentence), ``converged``, and the diagnostics that are there."""
        return {"status": self.status.value, "converged": self.status.converged, **self.diagnostics.to_dict()}
