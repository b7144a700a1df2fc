"""Models of who wants what: covariates of people that shift the means of tastes.

    python tests/benchmarks/bench_populations.py [covariates] [latents] [within] [time] [ladder] [--count 100]
        [--processes 2] [--threads 2] [--json docs/benchmarks/populations.json]

``covariates``: bias and coverage of effects and means over simulated data sets; ``latents``: the same of effects on a
lognormal taste; ``within``: the same, by maximum likelihood, of a taste that varies between situations; ``time``:
seconds of fits with two covariates beside those of the plain model, in turn; ``ladder``: models of the Swissmetro
panel, by their log likelihood and leave-one-person-out.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measurement import Table
from recording import record_results, table_of
from scipy import stats

from mxlogit import ConvergenceWarning, MixedLogit, datasets
from mxlogit.simulate import simulate_choices

PARTS = ("covariates", "latents", "within", "time", "ladder")
LEVELS = (0.5, 0.9, 0.95)
# People, choices of each and alternatives of a simulated data set.
_SIZE = (500, 6, 3)
_EFFECTS = {"z": {"income": 0.5, "age": -0.3}, "x": {"income": 0.2}}
_SHIFTERS = {column: list(effects) for column, effects in _EFFECTS.items()}
_RANDOM = {"z": (0.7, 0.9), "w": (-0.5, 0.6)}
# Sizes of the data sets whose fits are timed, ten choices among four alternatives, and how often.
_TIMED = {2_000: 3, 50_000: 1}


@dataclass(frozen=True)
class Design:
    """Truth of simulated data sets, and what else than their columns the fitted model is told."""

    truth: dict[str, Any]
    model: dict[str, Any]

    def simulate(self, people: int, *size: int, random_state: int) -> tuple[pd.DataFrame, Any]:
        """Choices, and the true parameters."""
        return simulate_choices(people, *size, **self.truth, random_state=random_state)

    def estimator(self, **settings: Any) -> MixedLogit:
        """Estimator of the true model."""
        random = {name: value[2] if len(value) > 2 else "normal" for name, value in self.truth["random"].items()}
        return MixedLogit(fixed=list(self.truth["fixed"]), random=random, **{**self.model, **settings})


_LATENT = {"x": {"income": 0.3, "age": -0.2}}
DESIGNS = {
    "covariates": Design(
        {"fixed": {"x": -0.6}, "random": _RANDOM, "correlation": 0.3, "mean_shifters": _EFFECTS},
        {"mean_shifters": _SHIFTERS},
    ),
    "latents": Design(
        {
            "fixed": {"w": 0.5},
            "random": {"x": (-0.2, 0.5, "negative_lognormal"), "z": (0.7, 0.9)},
            "correlation": 0.3,
            "mean_shifters": _LATENT,
        },
        {"mean_shifters": {"x": list(_LATENT["x"])}},
    ),
    "within": Design(
        {"fixed": {"x": -0.8}, "random": {"z": (0.7, 0.6)}, "within": {"z": 1.0}},
        {"within": {"z": "normal"}, "method": "msle"},
    ),
}


def replicate(number: int, design: str = "covariates") -> pd.DataFrame:
    """Estimate, truth and intervals of every parameter in one simulated data set."""
    torch.set_num_threads(1)
    frame, truth = DESIGNS[design].simulate(*_SIZE, random_state=1_000 + number)
    est = DESIGNS[design].estimator(random_state=number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est.fit(frame)
    table = est.summary()[["estimate", "std_error"]].assign(truth=truth.coef)
    for level in LEVELS:
        limits = est.summary(level)
        table[str(level)] = (limits["lower"] <= table["truth"]) & (table["truth"] <= limits["upper"])
    return table


def calibrate(options: argparse.Namespace, design: str) -> pd.DataFrame:
    """Bias in standard errors of its own, and coverage beside binomial 95 % bands, of every parameter."""
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        found = pd.concat(list(pool.map(partial(replicate, design=design), range(options.count))))
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
    for (people, repeats), (name, design) in product(_TIMED.items(), _timed_designs().items()):
        frame, _ = design.simulate(people, 10, 4, random_state=1)
        models: dict[str, Callable[[], MixedLogit]] = {
            "plain": partial(design.estimator, mean_shifters=None, random_state=0),
            "covariates": partial(design.estimator, random_state=0),
        }
        seconds = {kind: list[float]() for kind in models}
        for _ in range(repeats):
            for kind, make in models.items():
                start = time.perf_counter()
                make().fit(frame)
                seconds[kind].append(time.perf_counter() - start)
        median = {kind: float(np.median(values)) for kind, values in seconds.items()}
        rows.append({"people": people, "tastes": name, **median, "ratio": median["covariates"] / median["plain"]})
        sys.stdout.write(f"{rows[-1]}\n")
    return pd.DataFrame(rows)


def _timed_designs() -> dict[str, Design]:
    """Designs with three tastes, normal ones and with a lognormal one, some of which covariates shift."""
    normal, latent = DESIGNS["covariates"], DESIGNS["latents"]
    more = {**normal.truth["random"], "v": (0.3, 0.5)}
    return {
        "normal": replace(normal, truth={**normal.truth, "random": more}),
        "one lognormal": replace(latent, truth={**latent.truth, "random": {**latent.truth["random"], "v": (0.3, 0.5)}}),
    }


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
    tables += [table_of(design, calibrate(options, design)) for design in DESIGNS if design in parts]
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
