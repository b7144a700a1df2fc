"""Calibration of the estimated error: default fits of simulated data sets beside long chains, and trust in the study.

    python tests/benchmarks/bench_error.py [--count 200] [--processes 2] [--study 25] [--json FILE]

Asserts nothing. The data sets are those of `trust_designs.py`, beside long chains, and those of
tests/reference/posterior_sds.json of up to 5,000 people with one, two or five choices, beside quadrature. True errors
contain those of the references (about .06 posterior standard deviations of a mean by chains). The study is the published
design, 500 to 50,000 people, each size so many times.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent.parent))

import pandas as pd
import torch
from quadrature import N_SIMULATED, REFERENCE, first_people
from recording import record_results, table_of
from trust_cases import fit
from trust_designs import FILE, Design

from mxlogit import MixedLogit, Priors
from mxlogit.simulate import simulate_published_study

# A true error, in posterior standard deviations, that a trusted fit must not have.
_LARGE = 0.3
# Largest R-hat of a reference that counts.
_LARGEST_RHAT = 1.1
# Most people of a data set with a reference by quadrature.
_MOST_PEOPLE = 5_000
_STUDY_SIZES = (500, 2_000, 10_000, 50_000)


def beside_chains(place: int) -> list[dict[str, Any]]:
    """A row for each parameter of a simulated design."""
    design = Design.at(place)
    frame, request = design.simulate()
    exact = pd.DataFrame(json.loads(FILE.read_text())[str(place)]["parameters"], index=["mean", "sd"]).T
    return compare(fit(frame, request, place), exact, {"place": str(place), **design.describe()})


def beside_quadrature(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each parameter of a data set whose posterior is known by quadrature."""
    people, situations, k = (record[name] for name in ("people", "situations", "tastes"))
    frame, names = first_people(N_SIMULATED, situations, k)
    fitted = fit(frame[frame["id"] <= people], {"random": names, "priors": Priors()}, 0)
    exact = pd.DataFrame({"mean": record["mean"], "sd": record["sd"]}, index=fitted[0].summary().index)
    design = {"people": people, "situations": situations, "k": k, "kind": "normal", "parameters": len(exact)}
    return compare(fitted, exact, {"place": f"quadrature {people} {situations} {k}", **design})


def compare(fitted: tuple[MixedLogit, float], exact: pd.DataFrame, design: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each parameter: true and estimated errors."""
    est, seconds = fitted
    table, found = est.summary(), est.diagnostics_
    exact = exact.loc[table.index]
    mean = (table["estimate"] - exact["mean"]).abs() / exact["sd"]
    deviation = (table["std_error"] / exact["sd"] - 1.0).abs()
    route = "chains" if "rhat" in found else "weighted" if found["corrected"] else "Gaussian"
    groups = found["error"]
    return [
        {
            **design,
            "route": route,
            "seconds": seconds,
            "trusted": found["trusted"],
            "trusted parameters": max(value for group, value in groups.items() if group != "people") <= 0.2,
            "label": label,
            "mean": mean[label],
            "sd": deviation[label],
            "estimated": groups[group_of(label)],
        }
        for label in table.index
    ]


def group_of(label: str) -> str:
    kinds = {"sd.": "standard deviations", "cor.": "correlations"}
    return next((group for prefix, group in kinds.items() if label.startswith(prefix)), "coefficients")


def study(job: tuple[int, int]) -> dict[str, Any]:
    """A row for one fit of the published study."""
    people, run = job
    request = {"fixed": ["f1", "f2", "f3"], "random": ["r1", "r2", "r3", "r4", "r5"], "correlated": True}
    est, seconds = fit(simulate_published_study(people, 10, run).data, request, run)
    found = est.diagnostics_
    return {"people_count": people, "run": run, "seconds": seconds, "trusted": found["trusted"], **found["error"]}


def calibration(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Shares of large true errors where fits are trusted and where they are not, by a column."""
    rows = rows.assign(worst=rows[["mean", "sd"]].max(axis=1))
    rows = rows.assign(large=rows["worst"] > _LARGE)
    parts = []
    for name, part in [*rows.groupby(by), ("all", rows)]:
        trusted, fits = part[part["trusted"]], part.groupby("place")["trusted"].first()
        parts.append(
            {
                by: name,
                "fits": len(fits),
                "trusted": fits.mean(),
                "parameters trusted": len(trusted),
                "large errors of them": trusted["large"].mean(),
                "of means": (trusted["mean"] > _LARGE).mean(),
                "of the untrusted": part[~part["trusted"]]["large"].mean(),
                "median error, trusted": trusted["worst"].median(),
                "95 %": trusted["worst"].quantile(0.95),
                "seconds": part.groupby("place")["seconds"].first().median(),
            }
        )
    return pd.DataFrame(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--study", type=int, default=25)
    parser.add_argument("--rows", type=Path, help="file for a row of each parameter, as CSV")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    references = json.loads(FILE.read_text())
    places = [int(place) for place, values in references.items() if (values["rhat"] or 9.0) < _LARGEST_RHAT]
    places = [place for place in places if place < options.count]
    sys.stdout.write(f"{len(places)} of {len(references)} references have an R-hat below {_LARGEST_RHAT}\n")
    known = [record for record in json.loads(REFERENCE.read_text()) if record["people"] <= _MOST_PEOPLE]
    with ProcessPoolExecutor(options.processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parts = [*pool.map(beside_chains, places), *pool.map(beside_quadrature, known)]
        rows = pd.DataFrame([row for part in parts for row in part])
        if options.rows is not None:
            rows.to_csv(options.rows, index=False)
        studies = pd.DataFrame(pool.map(study, [(n, run) for n in _STUDY_SIZES for run in range(options.study)]))
    tables = {f"by {by}": calibration(rows, by) for by in ("kind", "route", "k", "situations")}
    if len(studies):
        errors = ["coefficients", "standard deviations", "correlations", "people"]
        summary = studies.groupby("people_count")[["trusted", *errors, "seconds"]]
        tables["the published study"] = summary.mean().reset_index()
    for name, table in tables.items():
        sys.stdout.write(f"\n{name}\n{table.to_string(index=False, float_format='{:.3g}'.format)}\n")
    if options.json is not None:
        recorded = [table_of(name, table) for name, table in tables.items()]
        record_results(options.json, "Estimated errors beside true ones", recorded, threads=1)


if __name__ == "__main__":
    main()
