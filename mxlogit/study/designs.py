"""Simulated data of known truth: the published study's design, and others that are harder in one way each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mxlogit.choices import ChoiceData
from mxlogit.model.priors import Priors
from mxlogit.simulate import StudyData, simulate_choices, simulate_published_study

# New situations, of so many people of the fit at most, and new people.
LATER, LATER_PEOPLE, OTHERS = 5, 1_000, 1_000
# Seeds of what is kept from the fit lie beyond those of runs.
_LATER_SEED, _OTHERS_SEED = 1_000_000, 2_000_000


@dataclass(frozen=True)
class Sample:
    """One data set, what generated it, and choices that the fit does not see.

    Attributes
    ----------
    data : ChoiceData or DataFrame
    parameters : pandas.Series
        True reported parameters: coefficients, locations, ``sd.a``, ``cor.a:b`` (of latent normals).
    tastes : pandas.DataFrame
        True tastes; a row per decision maker of ``data``.
    later : ChoiceData or DataFrame
        New situations of the first thousand of the same decision makers.
    others : ChoiceData or DataFrame
        New decision makers.
    """

    data: Any
    parameters: pd.Series
    tastes: pd.DataFrame
    later: Any
    others: Any


class StudyDesign(Protocol):
    """How data sets are made, and the model that is fitted to them."""

    def request(self) -> dict[str, Any]:
        """Arguments of `MixedLogit` that say the model and its priors."""
        ...

    def simulate(self, people: int, run: int) -> Sample:
        """The data set of a run."""
        ...


_FIXED, _RANDOM = ("f1", "f2", "f3"), ("r1", "r2", "r3", "r4", "r5")


@dataclass(frozen=True)
class PublishedDesign:
    """The simulation study of Rodrigues (2022, arXiv 2004.05426): its data sets, its N(0, 1) priors of locations.

    Five alternatives, three fixed and five correlated random coefficients; 5 situations a person for 500 decision
    makers and 10 beyond.
    """

    def request(self) -> dict[str, Any]:
        """Arguments of `MixedLogit`."""
        return {"fixed": list(_FIXED), "random": list(_RANDOM), "priors": Priors(location_scale=1.0)}

    def situations(self, people: int) -> int:
        """Situations a person in a data set of so many."""
        return 5 if people <= 500 else 10

    def simulate(self, people: int, run: int) -> Sample:
        """The published data set of a run, 1 to 30; new choices from seeds of our own."""
        situations = self.situations(people)
        study = simulate_published_study(people, situations, run)
        truth = study.truth
        return Sample(
            study.data,
            truth.coef,
            truth.tastes,
            _later_choices(study, run),
            simulate_published_study(min(people, OTHERS), situations, _OTHERS_SEED + run).data,
        )


def _later_choices(study: StudyData, run: int) -> ChoiceData:
    """New situations of the first people of a published data set."""
    tastes = study.tastes[:LATER_PEOPLE]
    n, j = len(tastes), study.data.n_alternatives
    rng = np.random.default_rng(_LATER_SEED + run)
    attributes = rng.random((n, LATER, j, len(_FIXED) + len(_RANDOM)))
    utility = attributes[..., :3] @ study.fixed + (attributes[..., 3:] * tastes[:, None, None]).sum(-1)
    chosen = (utility + rng.gumbel(size=utility.shape)).argmax(-1)
    return ChoiceData.from_arrays(attributes.astype(np.float32), chosen, names=[*_FIXED, *_RANDOM])


@dataclass(frozen=True)
class SimulatedDesign:
    """Choices by `simulate_choices`; fields are its arguments."""

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
        """The data set of a run."""
        low, high = self.situations
        frame, truth = self._draw(people, (low + LATER, high + LATER), run)
        last = frame["situation"] > frame.groupby("id")["situation"].transform("max") - LATER
        others, _ = self._draw(min(people, OTHERS), self.situations, _OTHERS_SEED + run)
        first = frame["id"].isin(frame["id"].unique()[:LATER_PEOPLE])
        seen, later = (frame[part].reset_index(drop=True) for part in (~last, last & first))
        return Sample(seen, truth.coef, truth.tastes, later, others)

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


_THREE: dict[str, Sequence[object]] = {"r1": (-0.8, 1.0), "r2": (0.8, 0.7), "r3": (1.0, 1.2)}
DESIGNS: dict[str, StudyDesign] = {
    "published": PublishedDesign(),
    "lognormal": SimulatedDesign({"r1": (-0.5, 0.7, "negative_lognormal"), "r2": (0.8, 0.7), "r3": (1.0, 1.2)}),
    "short": SimulatedDesign(_THREE, situations=(2, 2)),
    "unbalanced": SimulatedDesign(_THREE, situations=(1, 20)),
    "many_alternatives": SimulatedDesign(_THREE, alternatives=50),
    "near_singular": SimulatedDesign(_THREE, correlation=0.97),
    "many_tastes": SimulatedDesign({f"r{i}": (0.5 * (-1) ** i, 0.8) for i in range(1, 21)}, correlation=0.3),
}
