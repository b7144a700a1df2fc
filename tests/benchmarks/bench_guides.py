"""Local guides at fixed population parameters: effective sample sizes with and without a flow, and the amortization gap.

    python tests/benchmarks/bench_guides.py [--threads 1] [--seeds 5] [--first 0] [--json FILE] [CASE ...]

Asserts nothing. Cases (all by default):

flows  Importance ESS fraction (mean, worst, of people not seen in training) of the Gaussian and of flows, by data.
gap    Evidence lower bound per person of the trained encoder against the best Gaussian of each person.
few    100 people, five choices: Wasserstein distances of the marginals of standard deviations to long chains (NUTS, where
       NumPyro is installed).
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from recording import medians_of, record_results, table_of
from scipy.stats import wasserstein_distance

from mxlogit import MCMC, VI, ConvergenceWarning, MixedLogit, datasets
from mxlogit.draws.importance import DrawScheme
from mxlogit.guide.encoder import SetEncoder
from mxlogit.inference.vi.flow_training import FlowSettings, train_flow
from mxlogit.integration.importance import weigh_draws
from mxlogit.integration.laplace import polish
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.variational import refine_gaussian
from mxlogit.model.parameters import PopulationParameters
from mxlogit.simulate import simulate_choices, simulate_published_study

sys.path.insert(0, str(Path(__file__).parent.parent))
from oracles import marginal_of

ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]
LOGNORMAL = {name: "negative_lognormal" if name in ("pf", "tod", "seas") else "normal" for name in ELECTRICITY}
GUIDES = {
    "gaussian": None,
    "affine": FlowSettings("affine"),
    "spline": FlowSettings("spline"),
    "spline, 2 layers": FlowSettings("spline", 2),
}
_DRAWS, _POPULATIONS, _UNSEEN = 256, 6, 5
# Of long chains, each: NUTS has hardly any autocorrelation.
_SAMPLES = {"gibbs": 8_000, "numpyro": 2_000}


def electricity(random: Any = ELECTRICITY) -> MixedLogit:
    return MixedLogit(random=random, situation="chid", alternative="alt", random_state=0)


def data_sets() -> dict[str, tuple[MixedLogit, pd.DataFrame]]:
    """Electricity as it is, with three lognormal tastes, and with the first choices of all people only."""
    frame = datasets.load_electricity()
    place = frame.groupby("id")["chid"].rank(method="dense")
    sets = {"electricity": (electricity(), frame), "three lognormal": (electricity(LOGNORMAL), frame)}
    return sets | {f"T = {t}": (electricity(), frame[place <= t]) for t in (1, 2, 3)}


def fitted(est: MixedLogit, frame: Any) -> tuple[MarginalLikelihood, list[PopulationParameters], Any]:
    """All people's marginal likelihood, the posterior mean and some samples, and the model."""
    result = est.set_params(method=VI(flow=None, correct=False)).fit(frame).result_
    space = result.tastes.model.space
    typical = [space.constrain(vector) for vector in result.samples.unconstrained[:_POPULATIONS]]
    return marginal_of(est), [result.center, *typical], result.tastes.model


def effective_sizes(marginal: MarginalLikelihood, population: PopulationParameters, *, defensive: bool) -> torch.Tensor:
    integration = IntegrationSettings(_DRAWS, 8, 3, 30, defensive=defensive, variational_steps=2)
    proposals = marginal.propose(population, integration, remember=False)
    sizes = torch.empty(len(marginal.people))
    for proposal, drawn in marginal.weigh(population, proposals):
        sizes[proposal.part] = drawn.ess_fraction
    return sizes


def run_flows(seeds: range) -> list[dict[str, Any]]:
    rows = []
    for name, (est, frame) in data_sets().items():
        marginal, populations, model = fitted(est, frame)
        count = len(marginal.people)
        for guide, settings in GUIDES.items():
            runs = []
            for seed in seeds:
                order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
                unseen, seen = (
                    part.sort().values for part in order.split([count // _UNSEEN, count - count // _UNSEEN])
                )
                started = time.perf_counter()
                if settings is not None:
                    flow, _ = train_flow(
                        model, marginal.take(seen), populations, replace(settings, seed=seed), lambda line: None
                    )
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


def run_gap(seeds: range) -> list[dict[str, Any]]:
    """ELBO per person of the best Gaussian less that of the encoder, of it and a polish step, of it and a variational one."""
    rows = []
    study = simulate_published_study(2_000, 10, 1).data
    designs = {
        "study, N = 2,000": (
            MixedLogit(fixed=["f1", "f2", "f3"], random=["r1", "r2", "r3", "r4", "r5"], random_state=0),
            study,
        ),
        "electricity": data_sets()["electricity"],
    }
    for name, (est, frame) in designs.items():
        marginal, populations, model = fitted(est, frame)
        population, panel = populations[0], marginal.people.require_single_process()
        for seed in seeds:
            encoder = train_encoder(model, panel, population, seed)
            local = population.to(panel.values)
            points = DrawScheme((seed, 7), 256, model.space.n_random, None, defensive=False)
            base = points.points(0, len(panel), panel.values)
            with torch.no_grad():
                emitted = encoder(local, panel)
                polished = polish(emitted.mean, local, panel, model.mixing, 1)
                varied = refine_gaussian(emitted, base.points[..., :64].contiguous(), local, panel, model.mixing, 1)
                best = refine_gaussian(polished, base.points[..., :64].contiguous(), local, panel, model.mixing, 12)
            bounds = {
                "encoder": emitted,
                "one polish step": polished,
                "one variational step": varied,
                "best": best,
            }
            elbo = {
                key: float(weigh_draws(factor, base, local, panel, model.mixing).log_ratio.mean())
                for key, factor in bounds.items()
            }
            rows.append({"data": name, **{key: elbo["best"] - value for key, value in elbo.items()}})
        table = pd.DataFrame([row for row in rows if row["data"] == name]).drop(columns=["data", "best"]).median()
        print(name, table.round(4).to_dict(), flush=True)
    return rows


def train_encoder(
    model: Any, panel: Any, population: PopulationParameters, seed: int, steps: int = 1_500
) -> SetEncoder:
    """Train the set encoder on its own bound at fixed population parameters."""
    local = population.to(panel.values)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = SetEncoder(model.space.n_random, model.mixing).to(panel.values)
        optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            people = torch.randperm(len(panel))[:256]
            part = panel.take(people)
            scheme = DrawScheme((seed, 8, step), 8, model.space.n_random, None, defensive=False)
            base = scheme.points(0, len(part), panel.values)
            loss = -weigh_draws(encoder(local, part), base, local, part, model.mixing).log_ratio.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return encoder.eval()


def run_few(seeds: range) -> list[dict[str, Any]]:
    """Wasserstein distances of marginals of sds, in posterior sds, of the Gaussian and of weighted draws."""
    judge = "numpyro" if find_spec("numpyro") else "gibbs"
    print(f"long chains: {judge}")
    rows = []
    for seed in seeds:
        frame, _ = simulate_choices(
            fixed={"x": 0.5},
            random={"z": (0.5, 1.0), "w": (-0.5, 0.7), "v": (0.0, 0.5)},
            n_decision_makers=100,
            n_situations=5,
            random_state=seed,
        )
        engines = {
            "chains": MCMC(sampler=judge, warmup=1_000, samples=_SAMPLES[judge]),
            "gaussian": VI(correct=False),
            "corrected": VI(correct=True),
            "spline": VI(population_family="spline"),
        }
        samples, seconds = {}, {}
        for name, method in engines.items():
            est = MixedLogit(fixed=["x"], random=["z", "w", "v"], method=method, random_state=seed).fit(frame)
            samples[name], seconds[name] = est.posterior_samples(), est.diagnostics_["seconds"]
        chains = samples["chains"]
        for name in ("gaussian", "corrected", "spline"):
            distances = {
                label: wasserstein_distance(samples[name][label], chains[label]) / chains[label].std()
                for label in chains
                if label.startswith("sd.")
            }
            rows.append(
                {"seed": seed, "q": name, "worst": max(distances.values()), "seconds": seconds[name], **distances}
            )
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    print(pd.DataFrame(rows).groupby("q")[["worst", "seconds"]].median().round(3).to_string())
    return rows


CASES = {"flows": run_flows, "gap": run_gap, "few": run_few}
# Columns that tell groups of runs apart; rows of "flows" are medians over seeds already.
GROUPS = {"gap": ["data"], "few": ["q"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed, where several processes share the work")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown cases {unknown}; there are {list(CASES)}")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    tables = []
    for case in options.cases or list(CASES):
        print(f"\n== {case}")
        rows = CASES[case](range(options.first, options.first + options.seeds))
        drop = ("seed",) if case == "few" else ()
        tables += medians_of(case, rows, GROUPS[case], drop) if case in GROUPS else [table_of(case, rows)]
    if options.json:
        record_results(options.json, "Guides", tables, threads=options.threads)


if __name__ == "__main__":
    main()
