"""Maximum simulated likelihood: published ladder, Swissmetro, full covariance, seconds against xlogit.

    python tests/benchmarks/bench_msle.py [--json FILE] [--threads 2] [--quick]

Asserts nothing. The comparison runs only where xlogit 0.2.7 is installed: same data, same draws, same optimum.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recording import record_results, table_of

from mxlogit import MSLE, ConvergenceWarning, MixedLogit, datasets
from mxlogit.simulate import simulate_published_study

sys.path.insert(0, str(Path(__file__).parent.parent))
from oracles import fit_error_components, fit_normal_time, importance_sampled_maximum

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


def run_ladder(draws: list[int]) -> list[dict[str, object]]:
    published = json.loads((REFERENCE / "msle_electricity.json").read_text())["six_independent_normals"]["ladder"]
    ladder = {rung["R"]: rung["loglik"] for rung in published}
    rows = [fit_electricity(correlated=False, n_draws=r, n_starts=1, covariance="hessian") for r in draws]
    return [{**row, "published": ladder[row["draws"]]} for row in rows]


def time_normal_time(n_draws: int) -> dict[str, object]:
    """Normal time coefficient of Swissmetro, beside its accurate log likelihood."""
    begin = time.perf_counter()
    est = fit_normal_time(MSLE(n_draws=n_draws, n_starts=1))
    seconds = time.perf_counter() - begin
    expected = json.loads((REFERENCE / "msle_swissmetro.json").read_text())["models"]["b05b"]["converged"]["loglik"]
    value = est.diagnostics_["simulated_log_likelihood"]
    return {"draws": n_draws, "seconds": seconds, "simulated": value, "converged": expected}


def time_error_components(n_draws: int) -> dict[str, object]:
    """Panel of Swissmetro with four normals (b12), and the maximum of its importance-sampled likelihood."""
    begin = time.perf_counter()
    est = fit_error_components(MSLE(n_draws=n_draws, draws="pseudo", antithetic=True, n_starts=1))
    seconds = time.perf_counter() - begin
    expected = json.loads((REFERENCE / "msle_swissmetro.json").read_text())["models"]["b12"]
    _, maximum, error = importance_sampled_maximum(est, 2048)
    return {
        "draws": n_draws,
        "seconds": seconds,
        "simulated": est.diagnostics_["simulated_log_likelihood"],
        "published": expected["loglik"],
        "exact": est.log_likelihood_,
        "exact maximum": maximum,
        "its error": error,
        "reference maximum": expected["converged"]["loglik"],
    }


def measure_memory(n: int, n_draws: int) -> dict[str, object]:
    """Peak resident memory of a fresh process that loads arrays and fits them; package and data alone beside it."""
    data = simulate_published_study(n, 10, 1).data
    folder = Path(tempfile.mkdtemp())
    np.savez(folder / "data.npz", attributes=data.attributes.numpy(), chosen=data.chosen.numpy())
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import numpy as np\n"
        "from mxlogit import MSLE, ChoiceData, MixedLogit\n"
        f"arrays = np.load({str(folder / 'data.npz')!r})\n"
        f"data = ChoiceData.from_arrays(arrays['attributes'], arrays['chosen'], names={FIXED + RANDOM})\n"
        # Not getrusage: its maximum includes the parent's at the fork.
        "line = lambda: next(row for row in open('/proc/self/status') if row.startswith('VmHWM'))\n"
        "peak = lambda: int(line().split()[1]) / 1024\n"
        "before = peak()\n"
        f"est = MixedLogit(fixed={FIXED}, random={RANDOM}, correlated=False, random_state=0,\n"
        f"    method=MSLE(n_draws={n_draws}, n_starts=1)).fit(data)\n"
        "print(before, peak(), est.diagnostics_['seconds'])\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    shutil.rmtree(folder)
    before, peak, seconds = (float(word) for word in output.split())
    return {"n": n, "draws": n_draws, "seconds": seconds, "MB before the fit": before, "peak MB": peak}


def compare_with_xlogit(n: int, n_draws: int, runs: int) -> dict[str, object]:
    """Five independent normals and three fixed coefficients, standard errors included on both sides; medians.

    "same work" leaves out the check with other draws, which xlogit does not make; "seconds" is the default.
    """
    import xlogit

    data = simulate_published_study(n, 10, 1).data
    people, t, j, k = data.attributes.shape
    flat = {
        "X": data.attributes.numpy().reshape(-1, k).astype(float),
        "y": (data.chosen.numpy().reshape(-1)[:, None] == np.arange(j)).ravel().astype(int),
        "ids": np.repeat(np.arange(people * t), j),
        "panels": np.repeat(np.arange(people), t * j),
        "alts": np.tile(np.arange(j), people * t),
    }
    ours: dict[bool, list[float]] = {True: [], False: []}
    theirs = []
    for _ in range(runs):
        for check, times in ours.items():
            method = MSLE(n_draws=n_draws, n_starts=1, check_draws=check)
            est = MixedLogit(fixed=FIXED, random=RANDOM, correlated=False, method=method, random_state=0)
            begin = time.perf_counter()
            est.fit(data)
            times.append(time.perf_counter() - begin)
        peer = xlogit.MixedLogit()
        begin = time.perf_counter()
        peer.fit(**flat, varnames=FIXED + RANDOM, randvars=dict.fromkeys(RANDOM, "n"), n_draws=n_draws, verbose=0)
        theirs.append(time.perf_counter() - begin)
    return {
        "n": n,
        "draws": n_draws,
        "runs": runs,
        "seconds": float(np.median(ours[True])),
        "same work": float(np.median(ours[False])),
        "xlogit": float(np.median(theirs)),
        "ratio": float(np.median(theirs) / np.median(ours[False])),
        "lowest ratio": min(b / a for a, b in zip(ours[False], theirs, strict=True)),
        "ratio of default": float(np.median(theirs) / np.median(ours[True])),
        "simulated": est.diagnostics_["simulated_log_likelihood"],
        "xlogit_simulated": float(peer.loglikelihood),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"threads {options.threads}, {platform.machine()}, torch {torch.__version__}", flush=True)
    tables = {}
    for name, rows in measure(quick=options.quick):
        tables[name] = pd.DataFrame(rows)
        print(f"\n{name}\n{tables[name].round(5).to_string(index=False)}", flush=True)
    if options.json:
        found = [table_of(name, table, likelihood_formats(table)) for name, table in tables.items()]
        record_results(options.json, "Maximum simulated likelihood", found, threads=options.threads)


def likelihood_formats(table: pd.DataFrame) -> dict[str, str]:
    """Five decimals of log likelihoods that others published, one of those that are estimated."""
    digits = {name: ".5f" for name in ("simulated", "published", "xlogit_simulated")}
    digits |= {name: ".1f" for name in ("exact", "exact maximum", "converged", "reference maximum")}
    return {name: form for name, form in digits.items() if name in table}


def measure(*, quick: bool) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Every table's name and rows, one after the other."""
    yield "ladder", run_ladder([100] if quick else [100, 500, 600, 1000, 1500])
    full = [(200, 1)] if quick else [(600, 1), (2000, 1), (2000, 3)]
    yield "full covariance", [fit_electricity(correlated=True, n_draws=r, n_starts=starts) for r, starts in full]
    yield "starts", [fit_electricity(correlated=False, n_draws=r, n_starts=7) for r in ([100] if quick else [100, 600])]
    yield "swissmetro", [time_normal_time(200 if quick else 10_000)]
    yield "error components", [time_error_components(500 if quick else 5_000)]
    yield "memory", [measure_memory(1_000, 100) if quick else measure_memory(10_000, 1_000)]
    if importlib.util.find_spec("xlogit"):
        # The first fits of a process pay for loading libraries.
        compare_with_xlogit(100, 50, 1)
        cases = [(1_000, 200, 1)] if quick else [(1_000, 200, 5), (1_000, 500, 3), (2_000, 200, 3), (10_000, 200, 1)]
        yield "xlogit", [compare_with_xlogit(*case) for case in cases]


if __name__ == "__main__":
    main()
