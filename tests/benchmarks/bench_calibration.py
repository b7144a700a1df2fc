"""Simulation-based calibration of the engines: coverage and rank histograms over data sets simulated from the prior.

    python tests/benchmarks/bench_calibration.py [--count 200] [--processes 2] [--folder FOLDER] [--json FILE] [CASE ...]

Asserts nothing. All cases by default, by the default engine; with ``--mcmc`` by short chains of `mxlogit.MCMC`. Cases:

normal      One fixed and two correlated normal coefficients: 150 people, six situations, three alternatives.
lognormal   The same with a lognormal and a normal.
one_choice  One fixed and one normal coefficient: 3,000 people, one situation, three alternatives.

A folder holds finished replications, from which an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
from recording import record_results, table_of

from mxlogit import MCMC, VI, MixedLogit, Priors
from mxlogit.study import Calibration, Design, simulation_based_calibration

_ONE_CHOICE = Design(people=3_000, situations=1)
CASES: dict[str, tuple[Any, Design]] = {
    "normal": (["z", "w"], Design()),
    "lognormal": ({"z": "lognormal", "w": "normal"}, Design()),
    "one_choice": (["z"], _ONE_CHOICE),
}
# Scales of the priors from which parameters are drawn, so that choices are neither noise nor certain.
_PRIORS = Priors(location_scale=0.7, sd_scale=0.3)


def calibrate(name: str, options: argparse.Namespace) -> Calibration:
    """The calibration of a case, printed."""
    random, design = CASES[name]
    est = MixedLogit(fixed=["x"], random=random, priors=_PRIORS)
    method = MCMC(warmup=300, samples=500) if options.mcmc else VI()
    path = None if options.folder is None else options.folder / f"{name}_{type(method).__name__}.jsonl"
    found = simulation_based_calibration(
        est, method, options.count, design=design, processes=options.processes, path=path
    )
    sys.stdout.write(f"\n{name}, {type(method).__name__}\n{found.coverage.round(3).to_string()}\n")
    sys.stdout.write(f"{found.histogram().round(3).to_string()}\n")
    sys.stdout.flush()
    return found


def row_of(name: str, found: Calibration) -> dict[str, Any]:
    """How many coverages are inside their bands, and those of 90 % intervals."""
    coverage = found.coverage
    at_90 = coverage.xs(0.9, level="level")["covered"]
    of_people = at_90.index.str.startswith("people")
    spread = at_90.index.str.startswith(("sd.", "cor."))
    return {
        "design": name,
        "replications": len(found.ranks),
        "inside": int(coverage["inside"].sum()),
        "of": len(coverage),
        "coefficients at 90 %": ", ".join(f"{value:.3f}" for value in at_90[~of_people & ~spread]),
        "standard deviations, correlation": ", ".join(f"{value:.3f}" for value in at_90[spread]),
        "people at 90 %": ", ".join(f"{value:.3f}" for value in at_90[of_people]),
        "smallest p value of ranks": float(found.histogram().loc["p value"].min()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--mcmc", action="store_true", help="chains instead of the default engine")
    parser.add_argument("--folder", type=Path, help="folder of finished replications")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown cases {unknown}; there are {list(CASES)}")
    rows = []
    for name in options.cases or CASES:
        rows.append(row_of(name, calibrate(name, options)))
    table = pd.DataFrame(rows)
    sys.stdout.write(f"\n{table.to_string(index=False, float_format='{:.3g}'.format)}\n")
    if options.json is not None:
        record_results(options.json, "Calibration by simulation", [table_of("default engine", table)], threads=1)


if __name__ == "__main__":
    main()
