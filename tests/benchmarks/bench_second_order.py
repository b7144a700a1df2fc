"""Population engines by seconds to a common bound, and Bayesian logistic regression by first and second order.

    python tests/benchmarks/bench_second_order.py [--threads 1] [--seeds 5] [--first 0] [--json FILE] [CASE ...]

Asserts nothing. Cases (small and logistic by default):

small     Study design, N = 2,000: seconds until q(theta) is within .1 nat per 1,000 people of the best bound (nearby: 2).
large     The same, N = 20,000.
amortized The default, the modern amortized route and the published method on the same data: errors against the truth.
logistic  Breast cancer data (scikit-learn), 569 x 31, as two alternatives with fixed coefficients.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from recording import medians_of, record_results, table_of
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from mxlogit import DADVI, MCMC, SVI, VI, ConvergenceWarning, MixedLogit, Priors, Training
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.clock import Clock
from mxlogit.inference.start import fit_multinomial_logit, start_population
from mxlogit.inference.svi.guide_objective import GuideObjective, ObjectiveSettings
from mxlogit.inference.svi.guides import make_guide
from mxlogit.inference.svi.second_order_route import minimise
from mxlogit.inference.svi.warm_start import warm_start
from mxlogit.inference.task import Task
from mxlogit.inference.vi.newton import NewtonSearch, NewtonSettings
from mxlogit.inference.vi.posterior_stage import find_posterior
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.optim.curvature import Smooth
from mxlogit.optim.stochastic import Progress, adam
from mxlogit.simulate import simulate_published_study

sys.path.insert(0, str(Path(__file__).parent.parent))
from oracles import marginal_of

FIXED, RANDOM = ["f1", "f2", "f3"], ["r1", "r2", "r3", "r4", "r5"]
# Adam's rates and iterations, of which the fastest counts.
ADAM = ((0.02, 3_000), (0.05, 1_000))
_BATCH, _NEAR, _NEARBY = 2_000, 0.1, 2.0
SECOND_ORDER_STEPS = 25


class Watched:
    """An objective that remembers where and when it was used."""

    def __init__(self, objective: GuideObjective, started: float, seen: list[tuple[float, Tensor]]) -> None:
        self.objective, self.started, self.seen = objective, started, seen
        self.settings, self.panel = objective.settings, objective.panel

    def of_batches(self, people: int, *, masked: bool = True) -> tuple[Watched, float]:
        other, cost = self.objective.of_batches(people, masked=masked)
        return Watched(other, self.started, self.seen), cost

    def batches(self) -> int:
        return self.objective.batches()

    def freeze(self, key: int, around: Tensor) -> Smooth:
        self.seen.append((time.perf_counter() - self.started, around.detach().clone()))
        return self.objective.freeze(key, around)


def race(n_people: int, seeds: range) -> list[dict[str, Any]]:
    rows = []
    for seed in seeds:
        data = simulate_published_study(n_people, 10, seed + 1).data
        est = MixedLogit(fixed=FIXED, random=RANDOM, random_state=seed, method=VI(correct=False)).fit(data)
        tastes = est.result_.tastes
        model, people = tastes.model, marginal_of(est).people
        runs = {"newton": run_newton(model, people, seed)}
        for name in ("hessian_free", "lbfgs"):
            engine = lambda o, x, p, name=name: minimise(o, x, SECOND_ORDER_STEPS, p, name)  # noqa: E731
            runs[name] = run_engine(model, people, seed, engine, near=True)
        runs["adam 0.05, same start"] = run_engine(
            model, people, seed, lambda o, x, p: adam(o, x, 300, p, rate=0.05), points=2, near=True
        )
        for rate, steps in ADAM:
            engine = lambda o, x, p, rate=rate, steps=steps: adam(o, x, steps, p, rate=rate)  # noqa: E731
            runs[f"adam {rate}"] = run_engine(model, people, seed, engine, points=2)
        common = bound_of(model, people, seed)
        curves = {name: [(seconds, common(vector)) for seconds, vector in thin(seen)] for name, seen in runs.items()}
        best = max(value for curve in curves.values() for _, value in curve)
        for name, curve in curves.items():
            near, nearby = (
                [seconds for seconds, value in curve if value > best - nats * n_people / 1_000]
                for nats in (_NEAR, _NEARBY)
            )
            rows.append(
                {
                    "people": n_people,
                    "seed": seed,
                    "engine": name,
                    "seconds": near[0] if near else math.inf,
                    "seconds_nearby": nearby[0] if nearby else math.inf,
                    "seconds_all": curve[-1][0],
                    "short_of_best": best - max(value for _, value in curve),
                }
            )
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=name == "newton"), flush=True)
    table = pd.DataFrame(rows).groupby("engine")[["seconds", "seconds_nearby", "seconds_all", "short_of_best"]].median()
    print(table.round(2).to_string())
    return rows


def thin(seen: list[tuple[float, GaussianFactor]], most: int = 12) -> list[tuple[float, GaussianFactor]]:
    """About ``most`` of the points, the last among them."""
    step = -(-len(seen) // most)
    return seen[::-1][::step][::-1]


def guide_of(model: Any, people: Any, seed: int) -> Any:
    start = start_population(model, fit_multinomial_logit(people, model.prior.deviation))
    return make_guide(SVI(optimizer="lbfgs").plan(), model, people.require_single_process(), start, seed)


def bound_of(model: Any, people: Any, seed: int) -> Any:
    """The common criterion: all people, 16 draws or more, two points a dimension, the same for all."""
    objective = GuideObjective(
        guide_of(model, people, seed),
        people.require_single_process(),
        ObjectiveSettings("marginal", 64 if len(people) <= 5_000 else 16, 2 * model.space.size, 10**9),
        99,
    )
    guide = objective.guide

    def bound(q: GaussianFactor) -> float:
        shift = torch.linalg.solve_triangular(guide.base_tril, (q.mean - guide.base_mean)[:, None], upper=False)[:, 0]
        tril = torch.linalg.solve_triangular(guide.base_tril, q.tril, upper=False)
        vector = torch.cat([shift, tril.diagonal().log(), tril.tril(-1).flatten()])
        return -float(objective.freeze(0, vector).values(vector).mean())

    return bound


def run_engine(
    model: Any, people: Any, seed: int, engine: Any, points: int | None = None, *, near: bool = False
) -> list[tuple[float, GaussianFactor]]:
    """Seconds and q(theta) along the way; ``near``: from where few people lead, in whitened coordinates."""
    started = time.perf_counter()
    guide = guide_of(model, people, seed)
    if near:
        factor = warm_start(guide, people, seed, Clock(lambda line: None))
        guide = AmortizedGuide(model, factor, None, guide.newton_steps)
    settings = ObjectiveSettings("marginal", 16, points or 2 * model.space.size, _BATCH)
    watched = Watched(GuideObjective(guide, people.require_single_process(), settings, seed), started, [])
    end = engine(watched, watched.objective.vector(), Progress(lambda *row: True))
    seen = [*watched.seen, (time.perf_counter() - started, end)]
    return [(seconds, factor_of(watched.objective, vector)) for seconds, vector in seen]


def factor_of(objective: GuideObjective, vector: Tensor) -> GaussianFactor:
    objective.load(vector)
    q = objective.guide.population_factor()
    return GaussianFactor(q.mean.detach(), q.tril.detach())


def run_newton(model: Any, people: Any, seed: int) -> list[tuple[float, GaussianFactor]]:
    """The default engine's only q(theta) comes at its end."""
    started, clock = time.perf_counter(), Clock(lambda line: None)
    logit = fit_multinomial_logit(people, model.prior.deviation)
    marginal = MarginalLikelihood(people, model.space, model.mixing, seed)
    search = NewtonSearch(model, marginal, marginal, NewtonSettings(0.005, 60, None, 8, 2), clock)
    start = start_population(model, logit)
    optimum = search.run(start)
    task = Task(model, people, people, logit, start, seed, clock)
    q = find_posterior(task, marginal, marginal, optimum, wanted=False).factor
    seconds = time.perf_counter() - started
    return [(seconds, q)]


def run_small(seeds: range) -> list[dict[str, Any]]:
    return race(2_000, seeds)


def run_large(seeds: range) -> list[dict[str, Any]]:
    return race(20_000, seeds)


AMORTIZED = {"default": VI(), "amortized": SVI(), "rodrigues2022": SVI.rodrigues2022()}


def run_amortized(seeds: range) -> list[dict[str, Any]]:
    """Root-mean-square errors against the truth, and posterior sds as multiples of the default's."""
    rows = []
    for seed in seeds:
        study = simulate_published_study(2_000, 10, seed + 1)
        exact = None
        for name, method in AMORTIZED.items():
            est = MixedLogit(fixed=FIXED, random=RANDOM, random_state=seed, method=method).fit(study.data)
            table = est.summary()
            exact = table if exact is None else exact
            ratios = table["std_error"] / exact["std_error"]
            root = est.result_.center.scale_tril.numpy()
            errors = {
                "rmse_fixed": table["estimate"][FIXED] - study.fixed,
                "rmse_location": table["estimate"][RANDOM] - study.location,
                "rmse_covariance": (root @ root.T - study.covariance).ravel(),
            }
            rows.append(
                {
                    "seed": seed,
                    "method": name,
                    "seconds": est.diagnostics_["seconds"],
                    **{key: float((error**2).mean() ** 0.5) for key, error in errors.items()},
                    "sd_ratio_min": float(ratios.min()),
                    "sd_ratio_median": float(ratios.median()),
                }
            )
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    print(pd.DataFrame(rows).groupby("method").median(numeric_only=True).round(3).to_string())
    return rows


def breast_cancer() -> tuple[pd.DataFrame, list[str]]:
    """569 cases, 30 standardised measurements and a constant; the second alternative is "benign"."""
    values, benign = load_breast_cancer(return_X_y=True)
    values = (values - values.mean(0)) / values.std(0)
    names = [f"x{i + 1}" for i in range(values.shape[1])]
    second = pd.DataFrame(values, columns=names).assign(
        constant=1.0, id=range(len(values)), alternative=1, choice=benign
    )
    first = second.assign(alternative=0, choice=1 - benign)
    first[[*names, "constant"]] = 0.0
    frame = pd.concat([first, second]).assign(situation=1).sort_values(["id", "alternative"], ignore_index=True)
    return frame, [*names, "constant"]


LOGISTIC = {
    "mcmc": MCMC(warmup=1_000, samples=4_000),
    "newton": VI(correct=False),
    "fixed draws": DADVI(),
    "hessian_free": SVI(optimizer="hessian_free"),
    "lbfgs": SVI(optimizer="lbfgs"),
    "adam": SVI(encoder=None, training=Training(learning_rate=0.05)),
}


def run_logistic(seeds: range) -> list[dict[str, Any]]:
    frame, names = breast_cancer()
    rows, exact = [], None
    for name, method in LOGISTIC.items():
        est = MixedLogit(fixed=names, priors=Priors(location_scale=1.0), method=method, random_state=0).fit(frame)
        table, found = est.summary(), est.diagnostics_
        exact = table if exact is None else exact
        ratios = table["std_error"] / exact["std_error"]
        rows.append(
            {
                "engine": name,
                "seconds": found["seconds"],
                "gradients": found.get("gradients", math.nan),
                "worst_mean": float(((table["estimate"] - exact["estimate"]) / exact["std_error"]).abs().max()),
                "ratio_min": float(ratios.min()),
                "ratio_max": float(ratios.max()),
                "bound": found.get("bound", math.nan),
                "rhat": found.get("rhat", math.nan),
            }
        )
        if name == "newton":
            rows[-1]["log_evidence"] = log_evidence(est)
        print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    return rows


def log_evidence(est: MixedLogit, n: int = 20_000) -> float:
    """Log evidence by importance sampling from a multivariate t with the posterior's moments."""
    fit = est.result_
    vectors = fit.samples.unconstrained
    model, panel = fit.tastes.model, marginal_of(est).people.require_single_process()
    mean, covariance = vectors.mean(0), vectors.T.cov()
    tril = torch.linalg.cholesky(covariance)
    generator = torch.Generator().manual_seed(1)
    chi = torch.distributions.Chi2(torch.tensor(10.0, dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        stretch = (10.0 / chi.sample((n, 1))).sqrt()
    noise = torch.randn(n, len(mean), generator=generator, dtype=torch.float64) * stretch
    points = mean + noise @ tril.T
    d = len(mean)
    log_q = (
        math.lgamma(0.5 * (10 + d)) - math.lgamma(5.0) - 0.5 * d * math.log(10.0 * math.pi)
        - 0.5 * (10 + d) * torch.log1p(noise.square().sum(-1) / 10.0) - tril.diagonal().log().sum()
    )  # fmt: skip
    utility = torch.einsum("nrk,sk->nrs", panel.values.double(), points)
    log_p = -torch.nn.functional.softplus(utility).sum((0, 1)) + model.log_prior(points)
    return float((log_p - log_q).logsumexp(0) - math.log(n))


CASES = {"small": run_small, "large": run_large, "amortized": run_amortized, "logistic": run_logistic}
# Columns that tell groups of runs apart.
GROUPS = {"small": ["people", "engine"], "large": ["people", "engine"], "amortized": ["method"]}


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
    for case in options.cases or ["small", "logistic"]:
        print(f"\n== {case}")
        rows = CASES[case](range(options.first, options.first + options.seeds))
        tables += medians_of(case, rows, GROUPS[case], ("seed",)) if case in GROUPS else [table_of(case, rows)]
    if options.json:
        record_results(options.json, "Population engines", tables, threads=options.threads)


if __name__ == "__main__":
    main()
