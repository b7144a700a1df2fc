"""MCMC as the judge: against NUTS and bayesm, at N = 10,000, and VI against it on the bundled panels.

    python tests/benchmarks/bench_mcmc.py [--threads 2] [--json FILE] [CASE ...]

Asserts nothing. Cases (all but ``numpyro`` by default):

electricity  Six correlated normals against another program's NUTS and, under its prior, against bayesm.
study        The published simulation design, N = 10,000, T = 10: 1,000 kept iterations a chain.
engines      VI against MCMC on electricity, Train and Swissmetro.
numpyro      Smallest effective sample sizes per second on electricity beside NumPyro's NUTS, alternating (extra nuts).
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from recording import medians_of, record_results, table_of

from mxlogit import MCMC, ConvergenceWarning, InverseWishart, MixedLogit, Priors, compare_with_mcmc, datasets
from mxlogit.simulate import simulate_published_study

REFERENCE = Path(__file__).parent.parent / "reference"
ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]
FIXED, RANDOM = ["f1", "f2", "f3"], ["r1", "r2", "r3", "r4", "r5"]


def electricity(priors: Priors | None = None, method: Any = "vi") -> MixedLogit:
    return MixedLogit(
        random=ELECTRICITY, situation="chid", alternative="alt", priors=priors, method=method, random_state=0
    )


def known_posteriors() -> dict[str, dict[str, dict[str, float]]]:
    """Means and sds by label, of NUTS and of bayesm (whose correlations have no sd)."""
    nuts = json.loads((REFERENCE / "nuts_electricity.json").read_text())
    tables = {"nuts": dict(nuts["location"])}
    tables["nuts"] |= {f"sd.{name}": row for name, row in nuts["scale"].items()}
    tables["nuts"] |= {f"cor.{pair}": row for pair, row in nuts["correlation"].items()}
    bayesm = json.loads((REFERENCE / "hb_electricity.json").read_text())
    tables["bayesm"] = {
        prefix + name: {"mean": bayesm[group]["mean"][name], "sd": bayesm[group]["sd"][name]}
        for group, prefix in (("mu", ""), ("sd_of_beta", "sd."))
        for name in ELECTRICITY
    }
    return tables


def run_electricity() -> list[dict[str, Any]]:
    frame, rows = datasets.load_electricity(), []
    for name, known in known_posteriors().items():
        prior = InverseWishart() if name == "bayesm" else None
        est = electricity(Priors(), MCMC(covariance_prior=prior)).fit(frame)
        table = est.summary()
        gaps = [abs(table.loc[label, "estimate"] - row["mean"]) / row["sd"] for label, row in known.items()]
        ratios = [table.loc[label, "std_error"] / row["sd"] for label, row in known.items()]
        chains = {
            key: est.diagnostics_[key] for key in ("seconds", "rhat", "ess_bulk", "ess_tail", "acceptance_people")
        }
        rows.append(
            {"against": name, **chains, "worst_z": max(gaps), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        )
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    return rows


def run_study() -> list[dict[str, Any]]:
    data = simulate_published_study(10_000, 10, 1).data
    est = MixedLogit(fixed=FIXED, random=RANDOM, method=MCMC(samples=1000), random_state=0).fit(data)
    keys = ("seconds", "rhat", "ess_bulk", "ess_tail", "acceptance_people", "acceptance_population")
    row = {key: est.diagnostics_[key] for key in keys}
    print(pd.DataFrame([row]).round(3).to_string(index=False))
    return [row]


def panels() -> dict[str, tuple[MixedLogit, pd.DataFrame]]:
    """The models compared on the bundled panels."""
    train = datasets.load_train()
    train = train.assign(price=train["price"] / 100.0, time=train["time"] / 60.0)
    by_train = MixedLogit(fixed=["price"], random=["time", "change", "comfort"], random_state=0)
    by_swissmetro = MixedLogit(
        fixed=["cost"], random=["time"], constants=True, availability="available", random_state=0
    )
    return {
        "electricity": (electricity(), datasets.load_electricity()),
        "train": (by_train, train),
        "swissmetro": (by_swissmetro, datasets.load_swissmetro()),
    }


def run_engines() -> list[dict[str, Any]]:
    rows = []
    for name, (est, frame) in panels().items():
        compared = compare_with_mcmc(est, frame)
        table, engines = compared.table["vi"], compared.engines
        rows.append(
            {
                "data": name,
                "worst_difference": float(table["difference"].abs().max()),
                "worst_wasserstein": float(table["wasserstein"].max()),
                "ratio_min": float(table["sd_ratio"].min()),
                "ratio_max": float(table["sd_ratio"].max()),
                "people_correlation": float(compared.people["correlation"].min()),
                "predictive_distance": float(engines.loc["vi", "predictive_distance"]),
                "seconds_vi": float(engines.loc["vi", "seconds"]),
                "seconds_mcmc": float(engines.loc["mcmc", "seconds"]),
                "rhat": float(compared.fits["mcmc"].diagnostics_["rhat"]),
            }
        )
        print(compared.verdict)
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    return rows


def run_numpyro() -> list[dict[str, Any]]:
    frame, rows = datasets.load_electricity(), []
    samplers = {"gibbs": MCMC(samples=1000), "numpyro": MCMC(sampler="numpyro", chains=2, warmup=300, samples=400)}
    for turn in range(2):
        for name, method in samplers.items():
            found = electricity(Priors(), method).set_params(random_state=turn).fit(frame).diagnostics_
            smallest = min(found["ess_bulk"], found["ess_tail"])
            rows.append(
                {
                    "sampler": name,
                    "turn": turn,
                    "seconds": found["seconds"],
                    "rhat": found["rhat"],
                    "ess": smallest,
                    "ess_per_second": smallest / found["seconds"],
                }
            )
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).groupby("sampler")["ess_per_second"].median()
    print(f"ratio of medians {table['gibbs'] / table['numpyro']:.1f}")
    return rows


CASES = {
    "electricity": run_electricity,
    "study": run_study,
    "engines": run_engines,
    "numpyro": run_numpyro,
}
_LONG = ("numpyro",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown cases {unknown}; there are {list(CASES)}")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"threads {options.threads}, {platform.processor() or platform.machine()}, torch {torch.__version__}")
    tables = []
    for case in options.cases or [name for name in CASES if name not in _LONG]:
        print(f"\n== {case}")
        rows = CASES[case]()
        tables += medians_of(case, rows, ["sampler"], ("turn",)) if case == "numpyro" else [table_of(case, rows)]
    if options.json:
        record_results(options.json, "MCMC as the judge", tables, threads=options.threads)


if __name__ == "__main__":
    main()
