"""Models of who wants what: covariates of people that shift the means of tastes.

    python tests/benchmarks/bench_populations.py [covariates] [time] [ladder] [--count 100] [--processes 2]
        [--threads 2] [--json docs/benchmarks/populations.json]

``covariates``: bias and coverage of effects and means over simulated data sets; ``time``: seconds of fits with two
covariates beside those of the plain model, in turn; ``ladder``: models of the Swissmetro panel, by their log likelihood
and leave-one-person-out.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measurement import Table
from recording import record_results, table_of
from scipy import stats

from mxlogit import ConvergenceWarning, MixedLogit, datasets
from mxlogit.simulate import simulate_choices

PARTS = ("covariates", "time", "ladder")
LEVELS = (0.5, 0.9, 0.95)
# People, choices of each and alternatives of a simulated data set.
_SIZE = (500, 6, 3)
_EFFECTS = {"z": {"income": 0.5, "age": -0.3}, "x": {"income": 0.2}}
_SHIFTERS = {column: list(effects) for column, effects in _EFFECTS.items()}
_RANDOM = {"z": (0.7, 0.9), "w": (-0.5, 0.6)}
# Sizes of the data sets whose fits are timed: ten choices among four alternatives.
_TIMED = (2_000, 50_000)
_REPEATS = 3


def replicate(number: int) -> pd.DataFrame:
    """Estimate, truth and intervals of every parameter in one simulated data set."""
    torch.set_num_threads(1)
    frame, truth = simulate_choices(
        *_SIZE, fixed={"x": -0.6}, random=_RANDOM, correlation=0.3, mean_shifters=_EFFECTS, random_state=1_000 + number
    )
    est = MixedLogit(fixed=["x"], random=list(_RANDOM), mean_shifters=_SHIFTERS, random_state=number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est.fit(frame)
    table = est.summary()[["estimate", "std_error"]].assign(truth=truth.coef)
    for level in LEVELS:
        limits = est.summary(level)
        table[str(level)] = (limits["lower"] <= table["truth"]) & (table["truth"] <= limits["upper"])
    return table


def calibrate(options: argparse.Namespace) -> pd.DataFrame:
    """Bias in standard errors of its own, and coverage beside binomial 95 % bands, of every parameter."""
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        found = pd.concat(list(pool.map(replicate, range(options.count))))
    rows = []
    for label, table in found.groupby(level=0, sort=False):
        error = table["estimate"] - table["truth"]
        row = {
            "parameter": label,
            "truth": float(table["truth"].iloc[0]),
            "bias": float(error.mean()),
            "in standard errors": float(error.mean() / error.sem()),
            "sd of estimates": float(error.std()),
            "mean std_error": float(table["std_error"].mean()),
        }
        for level in LEVELS:
            low, high = stats.binom.ppf([0.025, 0.975], len(table), level) / len(table)
            share = float(table[str(level)].mean())
            row |= {f"{level:.0%}": share, f"inside {level:.0%}": bool(low <= share <= high)}
        rows.append(row)
    return pd.DataFrame(rows)


def measure_seconds(options: argparse.Namespace) -> pd.DataFrame:
    """Median seconds of fits with and without covariates, in turn."""
    torch.set_num_threads(options.threads)
    rows = []
    for people in _TIMED:
        frame, _ = simulate_choices(
            people,
            10,
            4,
            fixed={"x": -0.6},
            random={**_RANDOM, "v": (0.3, 0.5)},
            mean_shifters=_EFFECTS,
            random_state=1,
        )
        plain = partial(MixedLogit, fixed=["x"], random=["z", "w", "v"], random_state=0)
        shifted = partial(plain, mean_shifters={"z": ["income", "age"], "x": ["income"]})
        seconds = {"plain": list[float](), "covariates": list[float]()}
        for _ in range(_REPEATS):
            for name, make in (("plain", plain), ("covariates", shifted)):
                start = time.perf_counter()
                make().fit(frame)
                seconds[name].append(time.perf_counter() - start)
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        rows.append({"people": people, **median, "ratio": median["covariates"] / median["plain"]})
        sys.stdout.write(f"{rows[-1]}\n")
    return pd.DataFrame(rows)


def climb(options: argparse.Namespace) -> pd.DataFrame:
    """Log likelihoods of models of the Swissmetro panel at the mode, beside published ones, and leave-one-person-out."""
    torch.set_num_threads(options.threads)
    frame = datasets.load_swissmetro()
    for name, label in (("train", "TRAIN"), ("car", "CAR"), ("sm", "SM")):
        frame[name] = (frame["alternative"] == label).astype(float)
    by_sex = {column: ["MALE"] for column in ("cost", "time", "car", "train")}
    components = {"random": ["time", "car", "train", "sm"], "held": {"sm": 0.0}, "correlated": False}
    models = {
        "time normal": ({"random": ["time"], "fixed": ["cost", "car", "train"]}, None),
        "error components": ({"fixed": ["cost"], **components}, -3574.943704),
        "error components, shifted by sex": ({"fixed": ["cost"], **components, "mean_shifters": by_sex}, -3543.842866),
        "correlated": ({"fixed": ["cost"], "random": ["time", "car", "train"]}, None),
        "correlated, shifted by sex": (
            {"fixed": ["cost"], "random": ["time", "car", "train"], "mean_shifters": by_sex}, None
        ),
    }  # fmt: skip
    rows = []
    for name, (settings, published) in models.items():
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            est = MixedLogit(availability="available", random_state=0, **settings).fit(frame)
            seconds = time.perf_counter() - start
            density = est.loo()
        row = {"model": name, "parameters": len(est.coef_), "log likelihood": est.log_likelihood_}
        row |= {"its error": est.log_likelihood_error_, "published": np.nan if published is None else published}
        row |= {"loo": density.elpd, "loo error": density.elpd_error, "seconds": seconds}
        rows.append(row)
        sys.stdout.write(f"{row}\n")
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="threads of timed fits")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts, tables = options.parts or list(PARTS), list[Table]()
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown parts {unknown}; known: {', '.join(PARTS)}")
    if "covariates" in parts:
        tables.append(table_of("covariates", calibrate(options)))
    if "time" in parts:
        tables.append(table_of("time", measure_seconds(options)))
    if "ladder" in parts:
        tables.append(table_of("ladder", climb(options)))
    for table in tables:
        sys.stdout.write(f"\n{table.name}\n{pd.DataFrame(table.rows, columns=table.columns).to_string()}\n")
    if options.json is not None:
        record_results(options.json, "Populations", tables, threads=options.threads)


if __name__ == "__main__":
    main()
