"""Local guides at fixed population parameters: effective sample sizes with and without a flow, and the amortization gap.

    python tests/benchmarks/bench_guides.py [--threads 1] [--seeds 5] [--json FILE] [CASE ...]

Asserts nothing. Cases (all by default):

flows  Importance ESS fraction (mean, worst, of people not seen in training) of the Gaussian and of flows, by data.
gap    Evidence lower bound per person of the trained encoder against the best Gaussian of each person.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mxlogit import VI, ConvergenceWarning, MixedLogit, datasets
from mxlogit.inference.flow_training import FlowSettings, train_flow
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.parameters import Population
from mxlogit.simulate import simulate_published_study

ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]
LOGNORMAL = {name: "negative_lognormal" if name in ("pf", "tod", "seas") else "normal" for name in ELECTRICITY}
GUIDES = {
    "gaussian": None,
    "affine": FlowSettings("affine"),
    "spline": FlowSettings("spline"),
    "spline, 2 layers": FlowSettings("spline", 2),
}
_DRAWS, _POPULATIONS, _UNSEEN = 256, 6, 5


def electricity(random: Any = ELECTRICITY) -> MixedLogit:
    return MixedLogit(random=random, situation="chid", alternative="alt", random_state=0)


def data_sets() -> dict[str, tuple[MixedLogit, pd.DataFrame]]:
    """Electricity as it is, with three lognormal tastes, and with the first choices of everybody only."""
    frame = datasets.load_electricity()
    place = frame.groupby("id")["chid"].rank(method="dense")
    sets = {"electricity": (electricity(), frame), "three lognormal": (electricity(LOGNORMAL), frame)}
    return sets | {f"T = {t}": (electricity(), frame[place <= t]) for t in (1, 2, 3)}


def fitted(est: MixedLogit, frame: Any) -> tuple[MarginalLikelihood, list[Population], Any]:
    """Everybody's marginal likelihood, the posterior mean and some samples, and the model."""
    result = est.set_params(method=VI(flow=None, correct=False)).fit(frame).result_
    space = result.tastes.model.space
    typical = [space.constrain(vector) for vector in result.samples.unconstrained[:_POPULATIONS]]
    return result.tastes.seen, [result.center, *typical], result.tastes.model


def effective_sizes(marginal: MarginalLikelihood, population: Population, *, defensive: bool) -> torch.Tensor:
    sweep = Sweep(_DRAWS, 8, 3, 30, defensive=defensive, vary=2)
    proposals = marginal.propose(population, sweep, remember=False)
    sizes = torch.empty(len(marginal.people))
    for proposal, drawn in marginal.weigh(population, proposals):
        sizes[proposal.part] = drawn.ess_fraction
    return sizes


def run_flows(seeds: int) -> list[dict[str, Any]]:
    rows = []
    for name, (est, frame) in data_sets().items():
        marginal, populations, model = fitted(est, frame)
        count = len(marginal.people)
        for guide, settings in GUIDES.items():
            runs = []
            for seed in range(seeds):
                order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
                unseen, seen = (
                    part.sort().values for part in order.split([count // _UNSEEN, count - count // _UNSEEN])
                )
                started = time.perf_counter()
                if settings is not None:
                    flow, _ = train_flow(model, marginal.take(seen), populations, settings, seed, lambda line: None)
                    marginal.flow = flow
                trained = time.perf_counter()
                sizes = effective_sizes(marginal, populations[0], defensive=False)
                done = time.perf_counter()
                if marginal.flow is not None:
                    marginal.flow.defensive = True
                mixture = effective_sizes(marginal, populations[0], defensive=True)
                marginal.flow = None
                of_seen, of_unseen = sizes[seen], sizes[unseen]
                runs.append(
                    {
                        "ess": float(of_seen.mean()),
                        "worst": float(of_seen.amin()),
                        "ess_unseen": float(of_unseen.mean()),
                        "worst_unseen": float(of_unseen.amin()),
                        "ess_mixture": float(mixture.mean()),
                        "train_s": trained - started,
                        "pass_s": done - trained,
                    }
                )
            rows.append({"data": name, "guide": guide, **pd.DataFrame(runs).median().to_dict()})
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=guide == "gaussian"), flush=True)
    return rows


def run_gap(seeds: int) -> list[dict[str, Any]]:
    """ELBO per person of encoder, encoder + one polish step, and + one variational step, less the best Gaussian's."""
    rows = []
    study = simulate_published_study(2_000, 10, 1).data
    sets = {
        "study, N = 2,000": (
            MixedLogit(fixed=["f1", "f2", "f3"], random=["r1", "r2", "r3", "r4", "r5"], random_state=0),
            study,
        ),
        "electricity": data_sets()["electricity"],
    }
    for name, (est, frame) in sets.items():
        for seed in range(seeds):
            est.set_params(random_state=seed, method=VI(population="adam", steps=2_000, flow=None)).fit(frame)
            found = est.diagnostics_
            rows.append(
                {
                    "data": name,
                    "encoder": found["gap_encoder"],
                    "one polish step": found["gap_polish"],
                    "one variational step": found["gap_variational"],
                }
            )
        table = pd.DataFrame([row for row in rows if row["data"] == name]).drop(columns="data").median()
        print(name, table.round(4).to_dict(), flush=True)
    return rows


CASES = {"flows": run_flows, "gap": run_gap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown cases {unknown}; there are {list(CASES)}")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    record: dict[str, Any] = {"threads": options.threads, "seeds": options.seeds, "torch": torch.__version__}
    for case in options.cases or list(CASES):
        print(f"\n== {case}")
        record[case] = CASES[case](options.seeds)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
