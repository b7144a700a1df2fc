"""Posteriors that are hard for a Gaussian: agreement of the default engine with exact ones, and its seconds.

    python tests/benchmarks/bench_trust.py [--threads 2] [--seeds 5] [--swiss-route FILE] [--json FILE] [GROUP ...]

Asserts nothing. The cases and their exact posteriors are those of `trust_cases.py`:

skewed    Sign-restricted tastes: electricity (three lognormals of six), swiss_route (four negative lognormals, if the
          file is given), the published study's design with two lognormals of five, 500 and 2,000 people, Swissmetro.
few       One and two choices a person, 2,000 to 30,000 people, one to three normal tastes; one lognormal.
families  One taste between bounds, 60 to 400 people; eight correlated normals.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pandas as pd
import torch
from recording import record_results, table_of
from trust_cases import QUANTILES, Case, all_cases, fit

from mxlogit import MixedLogit

GROUPS = ("skewed", "few", "families")


def compare(case: Case, frame: pd.DataFrame, seed: int) -> tuple[dict[str, Any], pd.Series]:
    """A row: the worst parameter of a fit in several respects; and its estimates, in exact standard deviations."""
    exact = pd.DataFrame(case.exact).T
    mean, sd = exact[0], exact[1]
    est, seconds = fit(frame, case.request, seed)
    table, found = est.summary().loc[mean.index], est.diagnostics_
    away, ratio = ((table["estimate"] - mean) / sd).abs(), table["std_error"] / sd
    correlations = mean.index.str.startswith("cor.")
    row = {
        "case": case.name,
        "seed": seed,
        "seconds": seconds,
        "rung": found["rung"],
        "trusted": found["trusted"],
        "estimated": max(value for group, value in found["error"].items() if group != "people"),
        "locations and sds": float(away[~correlations].max()),
        "correlations": float(away[correlations].max()) if correlations.any() else None,
        "least ratio of sds": float(ratio.min()),
        "largest": float(ratio.max()),
        "quantiles": distance_of_quantiles(est, exact) if exact.shape[1] > 2 else None,
    }
    return row, table["estimate"] / sd


def distance_of_quantiles(est: MixedLogit, exact: pd.DataFrame) -> float:
    """Largest distance of a quantile, in exact standard deviations."""
    found = est.posterior_samples()[list(exact.index)].quantile(list(QUANTILES)).T
    apart = found.to_numpy() - exact[[2, 3]].to_numpy()
    return float(abs(apart / exact[[1]].to_numpy()).max())


def summarise(rows: pd.DataFrame, apart: dict[str, float]) -> pd.DataFrame:
    """The worst of each case's seeds."""
    groups = rows.groupby("case", sort=False)
    table = groups[["locations and sds", "correlations", "largest", "quantiles", "estimated"]].max()
    table.insert(0, "seconds", groups["seconds"].median())
    table.insert(1, "trusted", groups["trusted"].mean())
    table.insert(4, "least ratio of sds", groups["least ratio of sds"].min())
    table["between seeds"] = pd.Series(apart)
    return table.reset_index()


def measure(cases: list[Case], seeds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of all fits, and the worst of each case."""
    rows, apart = [], {}
    for case in cases:
        frame, estimates = case.load(), []
        for seed in range(seeds):
            row, estimate = compare(case, frame, seed)
            rows.append(row)
            estimates.append(estimate)
            sys.stdout.write(f"{row}\n")
            sys.stdout.flush()
        apart[case.name] = float(pd.DataFrame(estimates).agg(lambda column: column.max() - column.min()).max())
    table = pd.DataFrame(rows)
    return table, summarise(table, apart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--swiss-route", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := [group for group in options.groups if group not in GROUPS]:
        parser.error(f"unknown groups {unknown}; there are {list(GROUPS)}")
    torch.set_num_threads(options.threads)
    tables = []
    for group in options.groups or GROUPS:
        cases = [case for case in all_cases(options.swiss_route) if case.group == group and case.exact]
        rows, worst = measure(cases, options.seeds)
        sys.stdout.write(f"\n{group}\n{worst.to_string(index=False, float_format='{:.3g}'.format)}\n")
        tables += [table_of(group, worst), table_of(f"{group}, fits", rows, shown=False)]
    if options.json is not None:
        record_results(options.json, "Hard posteriors beside exact ones", tables, threads=options.threads)


if __name__ == "__main__":
    main()
