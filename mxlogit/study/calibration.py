"""Simulation-based calibration of an engine: ranks and coverage over data simulated from the prior."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.base import clone
from tqdm import tqdm

from mxlogit.choices import ChoiceData
from mxlogit.choices.moments import AttributeMoments
from mxlogit.draws.generators import make_generator
from mxlogit.errors import ConvergenceWarning, check_whole
from mxlogit.estimator import MixedLogit
from mxlogit.execution.identity import Identity, describe_settings
from mxlogit.inference.method import Method
from mxlogit.model.build import build_model
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.request import resolve_method
from mxlogit.study.records import RecordFile, identify_study, run_all

# Probabilities of the central intervals whose coverage is reported.
_LEVELS = (0.5, 0.9, 0.95)


@dataclass(frozen=True)
class Design:
    """Sizes of a simulated data set, and number of posterior samples among which the truth is ranked."""

    people: int = 150
    situations: int = 6
    alternatives: int = 3
    ranked: int = 99


@dataclass(frozen=True)
class Calibration:
    """Ranks of true parameters among posterior samples, and coverage of intervals.

    Attributes
    ----------
    ranks : pandas.DataFrame
        Ranks, from 0 to ``samples``, by replication (rows) and parameter (columns); uniform if the posterior is
        calibrated.
    samples : int
        Number of posterior samples among which the truth is ranked.
    people : pandas.DataFrame
        Share of decision makers whose interval covers their taste, by replication (rows) and (taste, level) (columns).
    converged : pandas.Series
        Whether the fit converged, by replication.
    """

    ranks: pd.DataFrame
    samples: int
    people: pd.DataFrame
    converged: pd.Series

    @property
    def coverage(self) -> pd.DataFrame:
        """Coverage of central intervals.

        Index: (parameter, level), with ``people <taste>`` for tastes of people. Columns: ``covered``, the 95 % band
        ``lower`` to ``upper`` of a calibrated posterior, and ``inside``. The band is binomial for parameters; for
        tastes it is estimated from the variation over replications, since people of a data set are dependent.
        """
        rows = {}
        share = (self.ranks + 0.5) / (self.samples + 1.0)
        count = len(self.ranks)
        for level in _LEVELS:
            tail = 0.5 * (1.0 - level)
            lower, upper = stats.binom.ppf([0.025, 0.975], count, level) / count
            for name in self.ranks.columns:
                rows[name, level] = (float(share[name].between(tail, 1.0 - tail).mean()), lower, upper)
        for taste, level in self.people.columns:
            values = self.people[taste, level]
            error = 1.96 * float(values.std()) / np.sqrt(count)
            rows[f"people {taste}", level] = (float(values.mean()), level - error, level + error)
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["covered", "lower", "upper"])
        frame.index = pd.MultiIndex.from_tuples(list(rows), names=["parameter", "level"])
        frame["inside"] = frame["covered"].between(frame["lower"], frame["upper"])
        return frame

    def histogram(self, bins: int = 10) -> pd.DataFrame:
        """Counts of ranks in equal bins, by parameter (columns), with the p value of uniformity in the last row."""
        edges = np.linspace(-0.5, self.samples + 0.5, bins + 1)
        counts = {name: np.histogram(self.ranks[name], bins=edges)[0] for name in self.ranks}
        frame = pd.DataFrame(counts, index=[f"bin {i + 1}" for i in range(bins)], dtype=float)
        frame.loc["p value"] = [stats.chisquare(column).pvalue for column in counts.values()]
        return frame

    def plot(self, axes: Any = None, bins: int = 10) -> Any:
        """Plot the rank histograms with the band of 95 % of the counts of a calibrated posterior."""
        from mxlogit.plots import plot_ranks

        return plot_ranks(self.histogram(bins).iloc[:-1], len(self.ranks), axes)


def simulation_based_calibration(
    est: MixedLogit,
    method: str | Method = "vi",
    n_replications: int = 200,
    *,
    design: Design | None = None,
    random_state: int = 0,
    processes: int = 1,
    path: str | Path | None = None,
) -> Calibration:
    """Rank true parameters among posterior samples, for data sets simulated from the prior.

    Parameters
    ----------
    est : MixedLogit
        Estimator with the model and its priors; it is not fitted.
    method : str or settings object
        Inference engine.
    n_replications : int
        Number of data sets.
    design : Design, optional
        Sizes of the data sets; ``Design()`` by default.
    random_state : int
        Seed; a replication does not depend on the number of replications.
    processes : int
        Number of replications that run in parallel, each on one thread.
    path : path, optional
        File of finished replications, one per line, from which an interrupted study resumes.

    Returns
    -------
    Calibration

    Raises
    ------
    SpecificationError
        If a setting is wrong, or ``path`` holds another study.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv 1804.06788.
    """
    check_whole("n_replications", n_replications, 1)
    check_whole("processes", processes, 1)
    sizes = Design() if design is None else design
    task = _Task(clone(est).set_params(method=resolve_method(method)), sizes, random_state)
    file = RecordFile(None if path is None else Path(path), {} if path is None else task.identity, ("replication",))
    done = file.read()
    missing = [r for r in range(n_replications) if (r,) not in done]
    for record in tqdm(run_all(task.run, missing, processes), total=len(missing), disable=None, leave=False):
        done[file.key(record)] = record
        file.append(record)
    return _collect([done[(r,)] for r in range(n_replications)], sizes.ranked)


@dataclass(frozen=True)
class _Task:
    """Task of a replication."""

    est: MixedLogit
    design: Design
    seed: int

    @property
    def identity(self) -> Identity:
        """Identity of the study: the model, the first data set, all settings and the seed."""
        method = describe_settings(self.est.method, prefix="method: ")
        study = identify_study(self.est, self.simulate(0)[1])
        return {**study, **method, "design": repr(self.design), "random_state": str(self.seed)}

    def run(self, replication: int) -> dict[str, Any]:
        """Run a replication."""
        truth, data, tastes = self.simulate(replication)
        est = clone(self.est).set_params(random_state=replication)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            est.fit(data)
        samples = est.posterior_samples(self.design.ranked)
        return {
            "replication": replication,
            "ranks": {name: int((samples[name] < truth[name]).sum()) for name in samples},
            "people": _people_covered(est, tastes),
            "converged": bool(est.diagnostics_["converged"]),
        }

    def simulate(self, replication: int) -> tuple[dict[str, float], ChoiceData, np.ndarray]:
        """Simulate true reported parameters, choices, and random tastes (n, k)."""
        specification, sizes = self.est._specify(), self.design
        generator = make_generator(self.seed, replication, 71)
        shape = (sizes.people, sizes.situations, sizes.alternatives, len(specification.names))
        attributes = torch.randn(shape, generator=generator, dtype=torch.float64)
        nothing = torch.zeros(shape[:2], dtype=torch.int64)
        data = ChoiceData.from_arrays(attributes, nothing, names=specification.names)
        model = build_model(specification, AttributeMoments.of(data), self.est.priors)
        population = _draw_population(model, generator)
        unit = torch.randn(sizes.people, model.space.n_random, generator=generator, dtype=torch.float64)
        coefficients = model.coefficients(population, unit)
        utility = torch.einsum("ntjk,nk->ntj", attributes, coefficients)
        noise = -torch.rand(shape[:3], generator=generator, dtype=torch.float64).log()
        chosen = (utility - noise.log()).argmax(-1)
        data = ChoiceData.from_arrays(attributes, chosen, names=specification.names)
        truth = dict(zip(model.space.labels, model.space.report(population).tolist(), strict=True))
        return truth, data, coefficients[:, model.space.n_fixed :].numpy()


def _draw_population(model: MixedLogitModel, generator: torch.Generator) -> PopulationParameters:
    """Draw population parameters from their priors, by the Pyro program."""
    from mxlogit.model.pyro_program import sample_population

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return sample_population(model)


def _people_covered(est: MixedLogit, tastes: np.ndarray) -> dict[str, list[float]]:
    """Shares of people whose central intervals cover their taste, by taste, at all levels."""
    tails = {level: (round(0.5 * (1.0 - level), 4), round(0.5 * (1.0 + level), 4)) for level in _LEVELS}
    if tastes.shape[1] == 0:
        return {}
    frame = est.individual_coefficients(statistic=sorted({q for pair in tails.values() for q in pair}))
    covered = {}
    for i, name in enumerate(frame.columns.unique("taste")):
        found = frame[name]
        covered[name] = [
            float(((found[low] <= tastes[:, i]) & (tastes[:, i] <= found[high])).mean()) for low, high in tails.values()
        ]
    return covered


def _by_level(shares: list[float]) -> Iterator[tuple[float, float]]:
    return zip(_LEVELS, shares, strict=True)


def _collect(records: list[dict[str, Any]], samples: int) -> Calibration:
    index = pd.Index([record["replication"] for record in records], name="replication")
    ranks = pd.DataFrame([record["ranks"] for record in records], index=index)
    cells = [
        {(taste, level): share for taste, shares in record["people"].items() for level, share in _by_level(shares)}
        for record in records
    ]
    people = pd.DataFrame(cells, index=index)
    if len(people.columns):
        people.columns = pd.MultiIndex.from_tuples(list(people.columns), names=["taste", "level"])
    return Calibration(ranks, samples, people, pd.Series([r["converged"] for r in records], index=index))
