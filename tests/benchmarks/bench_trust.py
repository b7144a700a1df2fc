"""Skewed and sign-restricted tastes: agreement of the default engine with long chains, and its seconds.

    python tests/benchmarks/bench_trust.py [--threads 1] [--seeds 5] [--swiss-route FILE] [--json FILE]

Asserts nothing. Cases:

electricity   Three lognormals among six correlated tastes, beside the long chains of tests/reference/.
swiss_route   Four correlated negative lognormals (388 people, nine choices), if the file of R's apollo 0.3.8
              (apollo_swissRouteChoiceData, as CSV) is given: beside its own long run of particle Gibbs, of other draws.
study         The published study's design with two of its five random tastes lognormal, 500 people: beside the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from recording import record_results, table_of

from mxlogit import VI, ConvergenceWarning, MixedLogit, datasets
from mxlogit.inference.vi import route, short_chains
from mxlogit.simulate import simulate_choices

REFERENCE = Path(__file__).parent.parent / "reference" / "chains_electricity_lognormal.json"
NEGATIVE = "negative_lognormal"
# Kept iterations of a reference run, and the seed that no measured run has.
_LONG, _OTHER_SEED = 1_000, 1_000


def electricity() -> tuple[pd.DataFrame, dict[str, Any]]:
    random = {"pf": "normal", "cl": "normal", "loc": "normal", "wk": "lognormal", "tod": NEGATIVE, "seas": NEGATIVE}
    return datasets.load_electricity(), {"random": random, "situation": "chid", "alternative": "alt"}


def swiss_route(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The wide file as a long frame."""
    wide = pd.read_csv(path)
    names = ["tt", "tc", "hw", "ch"]
    parts = []
    for place in (1, 2):
        part = wide[["ID", *(f"{name}{place}" for name in names)]].set_axis(["id", *names], axis=1)
        parts.append(part.assign(chid=range(len(wide)), alt=place, choice=(wide["choice"] == place).astype(int)))
    frame = pd.concat(parts).sort_values(["chid", "alt"], ignore_index=True)
    return frame, {"random": dict.fromkeys(names, NEGATIVE), "situation": "chid", "alternative": "alt"}


def study() -> tuple[pd.DataFrame, dict[str, Any]]:
    random: dict[str, Any] = {f"r{place}": (0.3 * place - 0.8, 0.9) for place in (1, 2, 3)}
    random |= {"r4": (-0.5, 0.7, "lognormal"), "r5": (-0.5, 0.7, NEGATIVE)}
    fixed = {"f1": -0.6, "f2": 0.4, "f3": 0.2}
    frame, _ = simulate_choices(500, 10, 5, fixed=fixed, random=random, random_state=1)
    families = {name: value[2] if len(value) > 2 else "normal" for name, value in random.items()}
    return frame, {"fixed": list(fixed), "random": families}


def fit(frame: pd.DataFrame, request: dict[str, Any], seed: int) -> tuple[MixedLogit, float]:
    """A fit and its seconds."""
    est = MixedLogit(**request, method=VI(), random_state=seed)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est.fit(frame)
    return est, time.perf_counter() - began


def long_run(frame: pd.DataFrame, request: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Means and standard deviations of a long run, with its R-hat on standard error."""
    plan = replace(short_chains._PARTICLES, most=_LONG, enough=1e9, work=1e15)
    # Chains whether people's weights ask for them or not.
    with (
        mock.patch.object(short_chains, "_PARTICLES", plan),
        mock.patch.object(route, "_needs_chains", return_value=True),
    ):
        est, _ = fit(frame, request, _OTHER_SEED)
    found = est.diagnostics_
    sys.stderr.write(f"reference: R-hat {found['rhat']:.3f}, effective sample size {found['ess_bulk']:.0f}\n")
    table = est.summary()
    return {name: {"mean": row["estimate"], "sd": row["std_error"]} for name, row in table.iterrows()}


def compare(name: str, frame: pd.DataFrame, request: dict[str, Any], seeds: range) -> Iterator[dict[str, Any]]:
    """A row for each seed."""
    exact = json.loads(REFERENCE.read_text())["parameters"] if name == "electricity" else long_run(frame, request)
    mean = pd.Series({label: values["mean"] for label, values in exact.items()})
    sd = pd.Series({label: values["sd"] for label, values in exact.items()})
    correlations = mean.index.str.startswith("cor.")
    for seed in seeds:
        est, seconds = fit(frame, request, seed)
        table, found = est.summary().loc[mean.index], est.diagnostics_
        away, ratio = ((table["estimate"] - mean) / sd).abs(), table["std_error"] / sd
        yield {
            "case": name,
            "seed": seed,
            "seconds": seconds,
            "locations and sds": float(away[~correlations].max()),
            "correlations": float(away[correlations].max()),
            "least ratio of sds": float(ratio.min()),
            "largest": float(ratio.max()),
            "iterations": found.get("iterations"),
            "rhat": found.get("rhat"),
            "ess_bulk": found.get("ess_bulk"),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--swiss-route", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = {"electricity": electricity(), "study": study()}
    if options.swiss_route is not None:
        cases["swiss_route"] = swiss_route(options.swiss_route)
    rows = []
    for name, (frame, request) in cases.items():
        for row in compare(name, frame, request, range(options.seeds)):
            rows.append(row)
            sys.stdout.write(f"{row}\n")
            sys.stdout.flush()
    table = pd.DataFrame(rows)
    sys.stdout.write(table.to_string(index=False, float_format="{:.3g}".format) + "\n")
    if options.json is not None:
        tables = [table_of("default engine", table)]
        record_results(options.json, "Skewed tastes beside long chains", tables, threads=options.threads)


if __name__ == "__main__":
    main()
