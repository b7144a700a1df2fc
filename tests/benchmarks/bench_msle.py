"""Maximum simulated likelihood: published ladder, Swissmetro, full covariance, seconds against xlogit.

    python tests/benchmarks/bench_msle.py [--json FILE] [--threads 2] [--quick]

Asserts nothing. The comparison runs only where xlogit 0.2.7 is installed: same data, same draws, same optimum.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mxlogit import MSLE, ConvergenceWarning, MixedLogit, datasets
from mxlogit.simulate import simulate_published_study

REFERENCE = Path(__file__).parent.parent / "reference"
ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]
FIXED, RANDOM = ["f1", "f2", "f3"], ["r1", "r2", "r3", "r4", "r5"]


def fit_electricity(*, correlated: bool, **options: object) -> dict[str, object]:
    est = MixedLogit(
        random=ELECTRICITY,
        correlated=correlated,
        situation="chid",
        alternative="alt",
        method=MSLE(**options),
        random_state=0,
    )
    begin = time.perf_counter()
    est.fit(datasets.load_electricity())
    d = est.diagnostics_
    return {
        "draws": options["n_draws"],
        "seconds": time.perf_counter() - begin,
        "simulated": d["simulated_log_likelihood"],
        "exact": est.log_likelihood_,
        "exact_error": est.log_likelihood_error_,
        "redraw_shift": d["redraw_shift"],
        "start": d["start"],
        "evaluations": d["passes"],
    }


def run_ladder(draws: list[int]) -> pd.DataFrame:
    published = json.loads((REFERENCE / "msle_electricity.json").read_text())["six_independent_normals"]["ladder"]
    ladder = {rung["R"]: rung["loglik"] for rung in published}
    rows = [fit_electricity(correlated=False, n_draws=r, n_starts=1, covariance="hessian") for r in draws]
    return pd.DataFrame([{**row, "published": ladder[row["draws"]]} for row in rows])


def fit_swissmetro(n_draws: int) -> dict[str, object]:
    """Normal time coefficient, every situation its own draw: the published cross-section specification."""
    frame = datasets.load_swissmetro()
    frame = frame.assign(case=frame["id"] * 100 + frame["situation"])
    est = MixedLogit(
        fixed=["cost"],
        random=["time"],
        constants=True,
        base_alternative="SM",
        decision_maker="case",
        availability="available",
        method=MSLE(n_draws=n_draws, n_starts=1),
        random_state=0,
    )
    begin = time.perf_counter()
    est.fit(frame)
    expected = json.loads((REFERENCE / "msle_swissmetro.json").read_text())["models"]["b05b"]["converged"]["loglik"]
    value = est.diagnostics_["simulated_log_likelihood"]
    return {"draws": n_draws, "seconds": time.perf_counter() - begin, "simulated": value, "converged": expected}


def compare_with_xlogit(n: int, n_draws: int) -> dict[str, object]:
    """Five independent normals and three fixed coefficients, standard errors included on both sides."""
    import xlogit

    data = simulate_published_study(n, 10, 1).data
    people, t, j, k = data.attributes.shape
    method = MSLE(n_draws=n_draws, n_starts=1, covariance="hessian")
    est = MixedLogit(fixed=FIXED, random=RANDOM, correlated=False, method=method, random_state=0)
    begin = time.perf_counter()
    est.fit(data)
    ours = time.perf_counter() - begin
    flat = {
        "X": data.attributes.numpy().reshape(-1, k).astype(float),
        "y": (data.chosen.numpy().reshape(-1)[:, None] == np.arange(j)).ravel().astype(int),
        "ids": np.repeat(np.arange(people * t), j),
        "panels": np.repeat(np.arange(people), t * j),
        "alts": np.tile(np.arange(j), people * t),
    }
    peer = xlogit.MixedLogit()
    begin = time.perf_counter()
    peer.fit(**flat, varnames=FIXED + RANDOM, randvars=dict.fromkeys(RANDOM, "n"), n_draws=n_draws, verbose=0)
    theirs = time.perf_counter() - begin
    return {
        "n": n,
        "draws": n_draws,
        "seconds": ours,
        "xlogit_seconds": theirs,
        "ratio": theirs / ours,
        "simulated": est.diagnostics_["simulated_log_likelihood"],
        "xlogit_simulated": peer.loglikelihood,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"threads {options.threads}, {platform.machine()}, torch {torch.__version__}")
    tables = {"ladder": run_ladder([100] if options.quick else [100, 500, 600, 1000, 1500])}
    full = [200] if options.quick else [600, 2000]
    tables["full"] = pd.DataFrame([fit_electricity(correlated=True, n_draws=r, n_starts=1) for r in full])
    tables["swissmetro"] = pd.DataFrame([fit_swissmetro(200 if options.quick else 10_000)])
    if importlib.util.find_spec("xlogit"):
        cases = [(1_000, 200)] if options.quick else [(1_000, 200), (1_000, 500)]
        tables["xlogit"] = pd.DataFrame([compare_with_xlogit(*case) for case in cases])
    for name, table in tables.items():
        print(f"\n{name}\n{table.round(5).to_string(index=False)}")
    if options.json:
        record = {name: table.to_dict("records") for name, table in tables.items()}
        record["machine"] = {"threads": options.threads, "torch": torch.__version__}
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
