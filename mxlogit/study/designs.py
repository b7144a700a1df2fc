"""Designs of simulated data: that of the published study, and others with one additional difficulty each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mxlogit.choices import ChoiceData
from mxlogit.model.priors import Priors
from mxlogit.simulate import StudyData, simulate_choices, simulate_published_study

# Number of new situations per person for out-of-sample evaluation.
NEW_SITUATIONS = 5
# Largest number of people of the fit with new situations.
PEOPLE_WITH_NEW_SITUATIONS = 1_000
# Largest number of new people.
NEW_PEOPLE = 1_000
# Offset of the seeds of new situations, distinct from the seeds of runs.
_NEW_SITUATIONS_SEED = 1_000_000
# Offset of the seeds of new people.
_NEW_PEOPLE_SEED = 2_000_000


@dataclass(frozen=True)
class Sample:
    """Simulated data set, its true parameters, and choices for out-of-sample evaluation.

    Attributes
    ----------
    data : ChoiceData or DataFrame
        Choices for the fit.
    parameters : pandas.Series
        True reported parameters: coefficients, locations, ``sd.a``, ``cor.a:b`` (of latent normals).
    tastes : pandas.DataFrame
        True tastes, one row per decision maker of ``data``.
    new_situations : ChoiceData or DataFrame
        New situations of the first thousand of the same decision makers.
    new_people : ChoiceData or DataFrame
        Choices of new decision makers.
    """

    data: Any
    parameters: pd.Series
    tastes: pd.DataFrame
    new_situations: Any
    new_people: Any


class StudyDesign(Protocol):
    """Interface of a design: simulation of data sets, and the model fitted to them."""

    def request(self) -> dict[str, Any]:
        """Arguments of `MixedLogit` that define the model and its priors."""
        ...

    def simulate(self, people: int, run: int) -> Sample:
        """Simulate the data set of a run."""
        ...


# Attributes of the published design with fixed and with random coefficients.
_FIXED = ("f1", "f2", "f3")
_RANDOM = ("r1", "r2", "r3", "r4", "r5")


@dataclass(frozen=True)
class PublishedDesign:
    """Simulation study of Rodrigues (2022, arXiv 2004.05426), with its data sets and N(0, 1) priors of locations.

    There are five alternatives, three fixed and five correlated random coefficients, and 5 situations per person up to
    500 decision makers, 10 for more.
    """

    def request(self) -> dict[str, Any]:
        """Arguments of `MixedLogit`."""
        return {"fixed": list(_FIXED), "random": list(_RANDOM), "priors": Priors(location_scale=1.0)}

    def situations(self, people: int) -> int:
        """Number of situations per person in a data set of ``people`` decision makers."""
        return 5 if people <= 500 else 10

    def simulate(self, people: int, run: int) -> Sample:
        """Simulate the published data set of a run, 1 to 30; new choices have seeds of this package."""
        situations = self.situations(people)
        study = simulate_published_study(people, situations, run)
        truth = study.truth
        return Sample(
            study.data,
            truth.coef,
            truth.tastes,
            _simulate_new_situations(study, run),
            simulate_published_study(min(people, NEW_PEOPLE), situations, _NEW_PEOPLE_SEED + run).data,
        )


def _simulate_new_situations(study: StudyData, run: int) -> ChoiceData:
    """Simulate new situations of the first people of a published data set."""
    tastes = study.tastes[:PEOPLE_WITH_NEW_SITUATIONS]
    n, j = len(tastes), study.data.n_alternatives
    rng = np.random.default_rng(_NEW_SITUATIONS_SEED + run)
    attributes = rng.random((n, NEW_SITUATIONS, j, len(_FIXED) + len(_RANDOM)))
    utility = attributes[..., :3] @ study.fixed + (attributes[..., 3:] * tastes[:, None, None]).sum(-1)
    chosen = (utility + rng.gumbel(size=utility.shape)).argmax(-1)
    return ChoiceData.from_arrays(attributes.astype(np.float32), chosen, names=[*_FIXED, *_RANDOM])


@dataclass(frozen=True)
class SimulatedDesign:
    """Design whose choices are simulated by `simulate_choices`; its fields are arguments of that function."""

    random: Mapping[str, Sequence[object]]
    fixed: Mapping[str, float] = field(default_factory=lambda: {"f1": -0.8, "f2": 0.8})
    correlation: float | None = 0.5
    situations: tuple[int, int] = (10, 10)
    alternatives: int = 4

    def request(self) -> dict[str, Any]:
        """Arguments of `MixedLogit`."""
        families = {name: str(value[2]) if len(value) > 2 else "normal" for name, value in self.random.items()}
        return {"fixed": list(self.fixed), "random": families, "correlated": self.correlation is not None}

    def simulate(self, people: int, run: int) -> Sample:
        """Simulate the data set of a run."""
        low, high = self.situations
        frame, truth = self._draw(people, (low + NEW_SITUATIONS, high + NEW_SITUATIONS), run)
        last = frame["situation"] > frame.groupby("id")["situation"].transform("max") - NEW_SITUATIONS
        new_people, _ = self._draw(min(people, NEW_PEOPLE), self.situations, _NEW_PEOPLE_SEED + run)
        first = frame["id"].isin(frame["id"].unique()[:PEOPLE_WITH_NEW_SITUATIONS])
        seen, new_situations = (frame[part].reset_index(drop=True) for part in (~last, last & first))
        return Sample(seen, truth.coef, truth.tastes, new_situations, new_people)

    def _draw(self, people: int, situations: tuple[int, int], seed: int) -> Any:
        return simulate_choices(
            people,
            situations,
            self.alternatives,
            fixed=self.fixed,
            random=self.random,
            correlation=self.correlation,
            random_state=seed,
        )


# Location and standard deviation of three normal coefficients, common to several designs.
_THREE: dict[str, Sequence[object]] = {"r1": (-0.8, 1.0), "r2": (0.8, 0.7), "r3": (1.0, 1.2)}
# Designs by name; all but "published" are of this package.
DESIGNS: dict[str, StudyDesign] = {
    "published": PublishedDesign(),
    "lognormal": SimulatedDesign({"r1": (-0.5, 0.7, "negative_lognormal"), "r2": (0.8, 0.7), "r3": (1.0, 1.2)}),
    "short": SimulatedDesign(_THREE, situations=(2, 2)),
    "unbalanced": SimulatedDesign(_THREE, situations=(1, 20)),
    "many_alternatives": SimulatedDesign(_THREE, alternatives=50),
    "near_singular": SimulatedDesign(_THREE, correlation=0.97),
    "many_tastes": SimulatedDesign({f"r{i}": (0.5 * (-1) ** i, 0.8) for i in range(1, 21)}, correlation=0.3),
}
