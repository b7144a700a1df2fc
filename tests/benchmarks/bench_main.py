"""The main figures: electricity against NUTS, the study design against the attainable bound, Adam, memory.

    python tests/benchmarks/bench_main.py [--json FILE] [--threads 2] [--quick]

Asserts nothing. Every fit is a fresh call of the public interface, the first one after a warm-up fit.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recording import ranges_of, record_results, table_of

from mxlogit import SVI, VI, ConvergenceWarning, MixedLogit, Priors, Training, datasets
from mxlogit.simulate import StudyData, simulate_published_study

REFERENCE = Path(__file__).parent.parent / "reference"
ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]
FIXED, RANDOM = ["f1", "f2", "f3"], ["r1", "r2", "r3", "r4", "r5"]
# Priors of the published study on locations.
STUDY_PRIORS = Priors(location_scale=1.0)


def fit_electricity(seed: int) -> dict[str, float]:
    frame = datasets.load_electricity()
    est = MixedLogit(random=ELECTRICITY, situation="chid", alternative="alt", priors=Priors(), random_state=seed)
    begin = time.perf_counter()
    est.fit(frame)
    seconds = time.perf_counter() - begin
    nuts = json.loads((REFERENCE / "nuts_electricity.json").read_text())
    table = est.summary()
    rows = {name: nuts["location"][name] for name in ELECTRICITY}
    rows |= {f"sd.{name}": nuts["scale"][name] for name in ELECTRICITY}
    correlations = {f"cor.{pair}": record for pair, record in nuts["correlation"].items()}

    def worst(records):
        return max(abs(table.loc[k, "estimate"] - r["mean"]) / r["sd"] for k, r in records.items())

    ratios = [table.loc[k, "std_error"] / r["sd"] for k, r in rows.items()]
    people = est.individual_coefficients()
    truth = pd.read_csv(REFERENCE / "nuts_electricity_persons.csv", index_col=0)
    errors = [((people[(n, "mean")] - truth[f"{n}_mean"]).abs() / truth[f"{n}_sd"]).mean() for n in ELECTRICITY]
    return {
        "seconds": seconds,
        "location_and_sd_worst_z": worst(rows),
        "correlation_worst_z": worst(correlations),
        "posterior_sd_ratio_min": min(ratios),
        "posterior_sd_ratio_max": max(ratios),
        "person_mean_error": float(np.mean(errors)),
        "ess": est.diagnostics_["ess"],
        "pareto_k": est.diagnostics_["pareto_k"],
        "log_likelihood": est.log_likelihood_,
    }


def fit_study(study: StudyData, method: VI, seed: int) -> dict[str, float]:
    est = MixedLogit(fixed=FIXED, random=RANDOM, priors=STUDY_PRIORS, method=method, random_state=seed)
    begin = time.perf_counter()
    est.fit(study.data)
    seconds = time.perf_counter() - begin
    space, samples = est._fitted.model.space, est.result_.samples.unconstrained
    tril = space.constrain(samples).scale_tril
    covariance = (tril @ tril.mT).mean(0).numpy()

    def rmse(estimate, truth):
        return float(np.sqrt(np.mean((np.asarray(estimate) - truth) ** 2)))

    return {
        "seconds": seconds,
        "rmse_omega": rmse(covariance, study.covariance),
        "rmse_zeta": rmse(est.coef_[RANDOM], study.location),
        "rmse_alpha": rmse(est.coef_[FIXED], study.fixed),
        "log_likelihood": est.log_likelihood_,
        "passes": est.diagnostics_["passes"],
        "pareto_k": est.diagnostics_["pareto_k"],
    }


def run_study(n_people: int, runs: range) -> pd.DataFrame:
    """Newton and, given the same seconds, the classic Adam route on the same data sets."""
    rows = []
    for run in runs:
        study = simulate_published_study(n_people, 10, run)
        ours = fit_study(study, VI(), run)
        adam = fit_study(
            study, SVI(polish=0, flow=None, max_seconds=ours["seconds"], training=Training(learning_rate=0.05)), run
        )
        rows += [{"n": n_people, "run": run, "route": route, **r} for route, r in (("newton", ours), ("adam", adam))]
    return pd.DataFrame(rows)


MEMORY_SCRIPT = """
import sys
import numpy as np, torch
torch.set_num_threads({threads})
from mxlogit import MixedLogit, VI
from mxlogit.simulate import simulate_published_study
n = {n}
MixedLogit(fixed={fixed}, random={random}, random_state=0).fit(simulate_published_study(50, 3, 1).data)
data = simulate_published_study(n, 10, 1).data
import gc; gc.collect()
with open("/proc/self/clear_refs", "w") as handle: handle.write("5")
status = lambda key: int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) / 1024
before = status("VmRSS") - data.attributes.numel() * data.attributes.element_size() / 2**20
MixedLogit(fixed={fixed}, random={random}, random_state=0).fit(data)
print(status("VmHWM") - before, data.attributes.numel() * data.attributes.element_size() / 2**20)
"""


def measure_memory(n: int, threads: int) -> dict[str, float]:
    """Peak resident memory of a fit, the data included, above what the warm package takes; MB."""
    script = MEMORY_SCRIPT.format(n=n, fixed=FIXED, random=RANDOM, threads=threads)
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    peak, tensor = map(float, out.stdout.split())
    return {"n": n, "peak_mb": peak, "attributes_mb": tensor, "limit_mb": 3 * tensor + 200}


def summarise_study(study: pd.DataFrame) -> pd.DataFrame:
    """Means over the runs, their standard errors, and the attainable bound."""
    bounds = json.loads((REFERENCE / "simulation_study.json").read_text())["attainable"]["bounds"]
    bound = pd.DataFrame(bounds).set_index("N")
    names = ["rmse_omega", "rmse_zeta", "rmse_alpha"]
    rows = []
    for (n, route), runs in study.groupby(["n", "route"], sort=False):
        row = {"n": n, "route": route, "runs": len(runs), "seconds": runs["seconds"].mean()}
        for name in names:
            row |= {name: runs[name].mean(), f"{name}, standard error": runs[name].sem()}
        rows.append(row | {f"{name}, attainable": bound.loc[n, name] for name in names})
    return pd.DataFrame(rows)


def measure(*, quick: bool, threads: int) -> dict[str, pd.DataFrame]:
    """Every table, printed as soon as it is there."""
    tables = {}
    tables["electricity"] = pd.DataFrame([fit_electricity(seed) for seed in range(1 if quick else 5)])
    print("\nElectricity, six correlated normals, against NUTS (figures: z <= .15, .25; ratios .85-1.15; people <= .1)")
    print(tables["electricity"].round(3).to_string())
    runs = range(1, 2) if quick else range(1, 6)
    tables["study"] = pd.concat([run_study(2_000, runs), run_study(10_000, runs)], ignore_index=True)
    print("\nStudy design, runs one by one")
    print(tables["study"].round(4).to_string(index=False))
    print("\nMeans over the runs, their standard errors, and the attainable bound")
    print(summarise_study(tables["study"]).round(4).T.to_string(header=False))
    tables["memory"] = pd.DataFrame([measure_memory(n, threads) for n in ([10_000] if quick else [10_000, 50_000])])
    print("\nPeak memory of a fit beyond the package (MB)")
    print(tables["memory"].round(0).to_string(index=False))
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one electricity fit and one study run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"threads {options.threads}, {platform.processor() or platform.machine()}, torch {torch.__version__}")
    fit_study(simulate_published_study(200, 5, 1), VI(), 0)  # warm-up
    fit_study(simulate_published_study(200, 5, 1), SVI(polish=0, flow=None, training=Training(steps=5)), 0)
    found = measure(quick=options.quick, threads=options.threads)
    if options.json:
        tables = ranges_of("electricity against NUTS", found["electricity"])
        tables.append(table_of("study design, means over runs", summarise_study(found["study"])))
        tables.append(table_of("study design, runs", found["study"], shown=False))
        tables.append(table_of("memory", found["memory"]))
        record_results(options.json, "Main figures", tables, threads=options.threads)


if __name__ == "__main__":
    main()
