"""Studies of engines on simulated data: sizes x methods x runs, resumable, in several processes."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from mxlogit.errors import ConvergenceWarning, MxlogitError, SpecificationError, check_option, check_whole
from mxlogit.estimator import MixedLogit
from mxlogit.execution.identity import Identity, describe_settings
from mxlogit.inference.mcmc.engine import MCMC
from mxlogit.inference.method import Method
from mxlogit.inference.msle.engine import MSLE
from mxlogit.inference.svi.engine import SVI
from mxlogit.inference.vi.engine import VI
from mxlogit.study.designs import DESIGNS, StudyDesign
from mxlogit.study.metrics import evaluate, machine, with_peak_memory
from mxlogit.study.peers import Xlogit
from mxlogit.study.records import Record, RecordFile, identify_study, run_all

# Settings of the methods by name.
METHODS: dict[str, Method] = {
    "vi": VI(),
    "vi_uncorrected": VI(correct=False),
    "amortized": SVI(),
    "rodrigues2022": SVI.rodrigues2022(),
    "msle": MSLE(),
    "mcmc": MCMC(),
    "xlogit": Xlogit(),
}
# Columns that identify a fit.
_KEYS = ("people", "method", "run")
# Number of decision makers of the data set that identifies a design.
_PROBED_PEOPLE = 20


@dataclass(frozen=True)
class _Task:
    """Task of a study: a fit of one method to one data set."""

    design: StudyDesign
    methods: Mapping[str, Method]

    def __call__(self, key: tuple[int, str, int]) -> Record:
        people, method, run = key
        sample = self.design.simulate(people, run)
        est = MixedLogit(**self.design.request(), method=self.methods[method], random_state=run)
        record: Record = {"people": people, "method": method, "run": run, "failure": ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                _, peak = with_peak_memory(lambda: est.fit(sample.data))
            except MxlogitError as error:
                return {**record, "failure": f"{type(error).__name__}: {error}"}
            return {**record, **evaluate(est, sample), "peak_mb": peak}


def run_study(
    design: str | StudyDesign = "published",
    *,
    sizes: Sequence[int] = (500, 2_000),
    runs: int | Sequence[int] = 30,
    methods: Sequence[str] | Mapping[str, Method] = ("vi",),
    processes: int = 1,
    path: str | Path | None = None,
) -> pd.DataFrame:
    """Fit methods to simulated data sets and evaluate them against the true parameters.

    Parameters
    ----------
    design : str or StudyDesign
        "published" (Rodrigues 2022), "lognormal", "short", "unbalanced", "many_alternatives", "near_singular",
        "many_tastes", or a design object.
    sizes : sequence of int
        Numbers of decision makers.
    runs : int or sequence of int
        Number of data sets per size, or their numbers (seeds); all methods have the same data sets.
    methods : sequence of str or mapping of str to settings
        Names of methods: "vi", "vi_uncorrected", "amortized", "rodrigues2022", "msle", "mcmc", "xlogit" (if it is
        installed); or settings by user-chosen names.
    processes : int
        Number of fits that run in parallel, with an equal share of the threads each.
    path : path, optional
        File of finished fits, one per line, from which an interrupted study resumes.

    Returns
    -------
    pandas.DataFrame
        Table with one row per fit: ``people``, ``method``, ``run``, the columns of `mxlogit.study.evaluate`,
        ``peak_mb`` and ``failure`` (the error message of a fit that failed). ``attrs["machine"]`` describes the
        machine.

    Raises
    ------
    SpecificationError
        If a setting is wrong, or ``path`` holds another study.
    """
    check_whole("processes", processes, 1)
    if isinstance(design, str):
        check_option("design", design, list(DESIGNS))
        design = DESIGNS[design]
    numbers = _run_numbers(runs)
    for size in sizes:
        check_whole("sizes", size, 2)
    settings = _resolve_methods(methods)
    task = _Task(design, settings)
    file = RecordFile(None if path is None else Path(path), {} if path is None else _identify(design, settings), _KEYS)
    wanted = [(size, name, run) for size in sizes for name in settings for run in numbers]
    done = file.read()
    missing = [key for key in wanted if key not in done]
    about = machine()
    threads = max(1, about["threads"] // processes)
    for record in tqdm(run_all(task, missing, processes, threads), total=len(missing), disable=None, leave=False):
        done[file.key(record)] = record
        file.append(record)
    table = pd.DataFrame([done[key] for key in wanted])
    table.attrs["machine"] = {**about, "processes": processes}
    return table


def _run_numbers(runs: int | Sequence[int]) -> list[int]:
    if isinstance(runs, int):
        check_whole("runs", runs, 1)
        return list(range(1, runs + 1))
    if not len(runs) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise SpecificationError(f"runs must be a whole number, or a list of whole numbers from 0; got {runs!r}.")
    return list(runs)


def _resolve_methods(methods: Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    if isinstance(methods, Mapping):
        return dict(methods)
    for name in methods:
        check_option("methods", name, list(METHODS))
    return {name: METHODS[name] for name in methods}


def _identify(design: StudyDesign, methods: Mapping[str, Method]) -> Identity:
    """Identity of a study: a small data set of the design, and all settings of the methods, defaults included."""
    identity = identify_study(MixedLogit(**design.request()), design.simulate(_PROBED_PEOPLE, 1).data)
    for name, method in methods.items():
        identity |= describe_settings(method, prefix=f"{name}: ")
    return {**identity, "methods": ", ".join(methods)}


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Means over runs with their standard errors, and median seconds, by (people, method).

    Columns come in pairs, ``x`` and ``x_se``; ``runs`` counts all fits and ``failed`` the failed ones.
    """
    groups = table.groupby(["people", "method"], sort=False)
    numbers = [name for name in table.columns if name not in ("people", "method", "run", "failure")]
    parts = {"runs": groups.size(), "failed": groups["failure"].agg(lambda column: int((column != "").sum()))}
    for name in numbers:
        parts[name] = groups[name].median() if name == "seconds" else groups[name].mean()
        if name != "seconds":
            parts[f"{name}_se"] = groups[name].std() / groups[name].count().pow(0.5)
    return pd.DataFrame(parts)


def write_results(table: pd.DataFrame, path: str | Path) -> None:
    """Write results as Parquet or CSV, by the suffix of the path, and a description of the machine as JSON beside it.

    Raises
    ------
    SpecificationError
        If the path has another suffix.
    """
    target = Path(path)
    if target.suffix not in (".csv", ".parquet"):
        raise SpecificationError(f"results are written to a path that ends in .csv or .parquet; got {target}.")
    if target.suffix == ".csv":
        table.to_csv(target, index=False, float_format="%.10g")
    else:
        table.to_parquet(target, index=False)
    about = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in table.attrs["machine"].items()}
    target.with_suffix(".machine.json").write_text(json.dumps(about, indent=1) + "\n")
