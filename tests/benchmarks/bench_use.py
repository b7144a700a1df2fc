"""After the fit: calibration of the intervals of answers, and their seconds and memory.

    python tests/benchmarks/bench_use.py [--count 200] [--processes 2] [--folder FOLDER] [--json FILE] [PART ...]

Asserts nothing. Parts, all by default:

calibration  Simulated data sets, each with coefficients of its own, with a normal and with a negative lognormal cost:
             coverage of intervals of shares, own elasticities, the median willingness to pay and the mean surplus of
             people never seen. True values are sums over 16,384 people, by numpy alone.
size         Seconds and peak memory of each answer in a process of its own.
start        Seconds of imports, as ratios to that of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from recording import record_results, table_of
from scipy import stats
from scipy.stats import qmc

from mxlogit import ConvergenceWarning, MixedLogit

PARTS = ("calibration", "size", "start")
_LEVELS = (0.5, 0.9, 0.95)
_PEOPLE, _SITUATIONS, _ALTERNATIVES, _PREDICTED = 250, 6, 3, 20
# Ranges of the true locations and standard deviations, in which choices are neither noise nor certain; of a normal cost,
# so that a few people in a hundred at most have the other sign.
_RANGES = {"x": (-1.0, 1.0), "z": (-1.0, 1.0), "sd.z": (0.3, 1.0)}
_OF_COST = {
    "normal": {"cost": (-1.8, -1.2), "sd.cost": (0.3, 0.6)},
    "negative_lognormal": {"cost": (-0.7, 0.7), "sd.cost": (0.3, 0.9)},
}
_DISCOUNT = 0.3
_TRUE_PEOPLE = 1 << 14


def frame_of(rng: np.random.Generator, people: int, situations: int) -> pd.DataFrame:
    """Situations of independent normal attributes."""
    shape = (people, situations, _ALTERNATIVES)
    person, situation, alternative = np.meshgrid(*map(np.arange, shape), indexing="ij")
    keys = {"id": person, "situation": situation, "alternative": alternative}
    columns = {**keys, **{name: rng.normal(size=shape) for name in ("x", "z", "cost")}}
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


def coefficients_of(truth: dict[str, float], latent: np.ndarray, cost: str) -> np.ndarray:
    """Coefficients (n, 3) of people at standard normal latents (n, 2)."""
    z = truth["z"] + truth["sd.z"] * latent[:, 0]
    price = truth["cost"] + truth["sd.cost"] * latent[:, 1]
    price = -np.exp(price) if cost == "negative_lognormal" else price
    return np.stack([np.full_like(z, truth["x"]), z, price], 1)


def probabilities(utility: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    utility = np.exp(utility - utility.max(-1, keepdims=True))
    return utility / utility.sum(-1, keepdims=True)


def true_answers(truth: dict[str, float], frame: pd.DataFrame, cost: str) -> dict[str, float]:
    """Share, own elasticity and surplus of the first alternative, and the median willingness to pay for z."""
    points = stats.norm.ppf(qmc.Sobol(2, seed=1).random(_TRUE_PEOPLE))
    b = coefficients_of(truth, points, cost)
    levels = frame[["x", "z", "cost"]].to_numpy().reshape(-1, _ALTERNATIVES, 3)
    cheaper = levels.copy()
    cheaper[:, 0, 2] -= _DISCOUNT
    first, slope, surplus = 0.0, 0.0, 0.0
    for before, after in zip(levels, cheaper, strict=True):
        utility, changed = b @ before.T, b @ after.T
        p = probabilities(utility)[:, 0]
        first += p.mean()
        slope += before[0, 2] * (b[:, 2] * p * (1.0 - p)).mean()
        gain = np.logaddexp.reduce(changed, 1) - np.logaddexp.reduce(utility, 1)
        surplus += (gain / -b[:, 2]).mean()
    answers = {"share": first / len(levels), "elasticity": slope / first, "median wtp": np.median(-b[:, 1] / b[:, 2])}
    return answers if cost == "normal" else {**answers, "surplus": surplus / len(levels)}


def found_answers(est: MixedLogit, frame: pd.DataFrame, cost: str, level: float) -> dict[str, pd.Series]:
    """The same answers of a fit, with intervals."""
    found = {
        "share": est.shares(frame, interval=level).loc[0],
        "elasticity": est.elasticities(frame, "cost", interval=level).loc[(0, 0)],
        "median wtp": est.wtp("z", "cost", interval=level).loc["50 %"],
    }
    if cost != "normal":
        cheaper = frame.assign(cost=frame["cost"] - _DISCOUNT * (frame["alternative"] == 0))
        found["surplus"] = est.surplus(frame, cheaper, "cost", interval=level).loc["mean"]
    return found


def replicate(cost: str, number: int) -> dict[str, Any]:
    """Whether intervals cover the truth, by answer and level, in one data set."""
    torch.set_num_threads(1)
    rng = np.random.default_rng((20_261_201, number, len(cost)))
    truth = {name: float(rng.uniform(*bounds)) for name, bounds in {**_RANGES, **_OF_COST[cost]}.items()}
    frame = frame_of(rng, _PEOPLE, _SITUATIONS)
    b = coefficients_of(truth, rng.normal(size=(_PEOPLE, 2)), cost)[frame["id"]]
    utility = (frame[["x", "z", "cost"]].to_numpy() * b).sum(1).reshape(-1, _ALTERNATIVES)
    chosen = (utility + rng.gumbel(size=utility.shape)).argmax(1)
    frame["choice"] = (chosen[:, None] == np.arange(_ALTERNATIVES)).ravel()
    new = frame_of(rng, _PREDICTED, 1)
    est = MixedLogit(
        fixed=["x"],
        random={"z": "normal", "cost": cost},
        correlated=False,
        random_state=number,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est.fit(frame)
        exact, covered = true_answers(truth, new, cost), dict[str, bool]()
        for level in _LEVELS:
            for name, row in found_answers(est, new, cost, level).items():
                covered[f"{name}|{level}"] = bool(row["lower"] <= exact[name] <= row["upper"])
    return {"number": number, **covered}


def calibrate(cost: str, options: argparse.Namespace) -> pd.DataFrame:
    """Coverage of each answer's intervals, beside their binomial bands."""
    path = None if options.folder is None else options.folder / f"use_{cost}.jsonl"
    done = {}
    if path is not None and path.exists():
        done = {record["number"]: record for record in map(json.loads, path.read_text().splitlines())}
    missing = [number for number in range(options.count) if number not in done]
    with ProcessPoolExecutor(options.processes) as pool:
        for record in pool.map(partial(replicate, cost), missing):
            done[record["number"]] = record
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    table = pd.DataFrame([done[number] for number in range(options.count)]).drop(columns="number")
    rows = []
    for key in table:
        answer, _, level = key.partition("|")
        low, high = stats.binom.ppf([0.025, 0.975], len(table), float(level)) / len(table)
        share = float(table[key].mean())
        row = {"cost": cost, "answer": answer, "level": float(level), "covered": share, "lower": low, "upper": high}
        rows.append({**row, "inside": bool(low <= share <= high)})
    return pd.DataFrame(rows).sort_values(["answer", "level"])


# Code of a measurement in a process of its own: an estimator, a frame and what is asked of them.
_PREPARE = """
import resource, time, warnings, sys, numpy as np, pandas as pd, torch
warnings.simplefilter("ignore")
torch.set_num_threads({threads})
from mxlogit import MixedLogit, datasets
est = MixedLogit.load({folder!r})
def situations(n):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({{name: rng.normal(size=3 * n) for name in ("x", "z", "cost")}})
    keys = {{"id": np.repeat(np.arange(n), 3), "situation": 0, "alternative": np.tile(["a", "b", "c"], n)}}
    return frame.assign(**keys)
{frame}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
{question}
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, before / 1e6)
"""
_CHOSEN = "frame = situations({n}); frame['choice'] = frame['alternative'] == 'a'"
_SIZES = (
    ("shares with intervals, 1,000,000 situations", "model", "frame = situations(1_000_000)",
     "est.shares(frame, interval=0.9)"),
    ("predict_proba, 100,000 people", "model", "frame = situations(100_000)", "est.predict_proba(frame)"),
    ("tastes of 100,000 unseen people", "model", _CHOSEN.format(n="100_000"), "est.individual_coefficients(frame)"),
    ("elasticities of electricity", "electricity", "frame = datasets.load_electricity()",
     "est.elasticities(frame, 'pf')"),
    ("surplus of electricity", "electricity", "frame = datasets.load_electricity()",
     "est.surplus(frame, frame.assign(pf=0.9 * frame['pf']), 'pf')"),
    ("willingness to pay of electricity", "electricity", "frame = 0", "est.wtp('cl', 'pf')"),
)  # fmt: skip


def measure_sizes(options: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """Seconds and peak memory of each answer."""
    from mxlogit import datasets
    from mxlogit.simulate import simulate_choices

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        simulated = {"z": (0.7, 0.9), "cost": (-0.5, 0.5, "negative_lognormal")}
        frame = simulate_choices(1_000, 5, 3, fixed={"x": -0.6}, random=simulated, random_state=2)[0]
        request = {"z": "normal", "cost": "negative_lognormal"}
        frame["alternative"] = frame["alternative"].map({"a1": "a", "a2": "b", "a3": "c"})
        MixedLogit(fixed=["x"], random=request, random_state=1).fit(frame).save(folder / "model")
        electricity = MixedLogit(
            fixed=["pf"], random=["cl", "loc", "wk", "tod", "seas"], situation="chid", alternative="alt", random_state=0
        )
        electricity.fit(datasets.load_electricity()).save(folder / "electricity")
    rows = []
    for name, model, frame, question in _SIZES:
        code = _PREPARE.format(threads=options.threads, folder=str(folder / model), frame=frame, question=question)
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        seconds, peak, before = map(float, done.stdout.split())
        rows.append({"answer": name, "seconds": seconds, "peak GB": peak, "of it before the question": before})
        sys.stdout.write(f"{rows[-1]}\n")
        sys.stdout.flush()
    return pd.DataFrame(rows)


def measure_start(repeats: int = 5) -> pd.DataFrame:
    """Median seconds of imports in fresh processes, interleaved."""
    codes = ["import torch", "import mxlogit", "from mxlogit import MixedLogit", "import torch, pandas, sklearn.base"]
    seconds = {code: list[float]() for code in codes}
    for _ in range(repeats):
        for code in codes:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[code].append(time.perf_counter() - start)
    base = float(np.median(seconds[codes[0]]))
    rows = [(code, float(np.median(values)), float(np.median(values)) / base) for code, values in seconds.items()]
    return pd.DataFrame(rows, columns=["code", "seconds", "ratio to torch"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="threads of the part on size")
    parser.add_argument("--folder", type=Path, help="folder of finished replications and saved models")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts, tables = options.parts or list(PARTS), []
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown parts {unknown}; known: {', '.join(PARTS)}")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    if "calibration" in parts:
        found = pd.concat([calibrate(cost, options) for cost in ("normal", "negative_lognormal")])
        tables.append(table_of("calibration", found))
    if "size" in parts:
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            tables.append(table_of("size", measure_sizes(options, Path(place))))
    if "start" in parts:
        tables.append(table_of("start", measure_start()))
    for table in tables:
        sys.stdout.write(f"\n{table.name}\n{pd.DataFrame(table.rows, columns=table.columns).to_string()}\n")
    if options.json is not None:
        record_results(options.json, "After the fit", tables, threads=options.threads)


if __name__ == "__main__":
    main()
