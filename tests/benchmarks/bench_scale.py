"""Speed and error of the variational engine on generated data of the published simulation design.

    python tests/benchmarks/bench_scale.py [--n 50000] [--t 10] [--seeds 3] [--threads 2] [--json FILE]

Asserts nothing. Each row is one seed: seconds of the fit and of the people's posterior moments, error against the
truth, passes over all people, and the time of one pass of 16 draws beside two floors: streaming the differenced
attributes once, and one bare batched matrix product of them with 16 taste vectors a person.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mxlogit import ConvergenceWarning, MixedLogit, Priors
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.people import People
from mxlogit.simulate import StudyData, simulate_published_study

FIXED, RANDOM = ["f1", "f2", "f3"], ["r1", "r2", "r3", "r4", "r5"]
REFERENCE = Path(__file__).parent.parent / "reference" / "simulation_study.json"
_DRAWS = 16


def median_seconds(work: Callable[[], object], runs: int = 3) -> float:
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def rmse(estimate: object, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.asarray(estimate) - truth) ** 2)))


def measure_pass(est: MixedLogit) -> dict[str, float]:
    """Seconds of one warm pass, of streaming the attributes, and of a bare product in chunks of the pass's size."""
    model, panel = est._fitted.model, est._fitted.panel
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, 0)
    sweep, population = Sweep(_DRAWS, 8, 1, 2), est.result_.center
    marginal.sweep(population, Sweep(_DRAWS, 8, 1, 20))
    random = panel.values[..., len(FIXED) :]
    tastes = torch.randn(marginal.chunk_size(_DRAWS), len(RANDOM), _DRAWS, dtype=panel.values.dtype)

    def multiply() -> None:
        for part, _ in panel.chunks(len(tastes)):
            torch.bmm(random[part], tastes[: part.stop - part.start])

    return {
        "pass": median_seconds(lambda: marginal.sweep(population, sweep)),
        "stream floor": median_seconds(panel.values.sum),
        "product floor": median_seconds(multiply),
    }


def fit_once(study: StudyData, seed: int) -> dict[str, float]:
    est = MixedLogit(fixed=FIXED, random=RANDOM, priors=Priors(location_scale=1.0), random_state=seed)
    begin = time.perf_counter()
    est.fit(study.data)
    fitted = time.perf_counter()
    people = est.individual_coefficients(statistic=["mean"]).to_numpy()
    done = time.perf_counter()
    space, samples = est._fitted.model.space, est.result_.samples.unconstrained
    tril = space.constrain(samples).scale_tril
    return {
        "fit": fitted - begin,
        "people": done - fitted,
        "passes": float(est.diagnostics_["passes"]),
        "rmse_omega": rmse((tril @ tril.mT).mean(0), study.covariance),
        "rmse_zeta": rmse(est.coef_[RANDOM], study.location),
        "rmse_alpha": rmse(est.coef_[FIXED], study.fixed),
        "rmse_beta_n": rmse(people, study.tastes),
        **measure_pass(est),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--t", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"N {options.n}, T {options.t}, threads {options.threads}, {platform.machine()}, torch {torch.__version__}")
    fit_once(simulate_published_study(200, 5, 1), 0)  # warm-up
    rows = []
    for seed in range(1, options.seeds + 1):
        rows.append({"seed": seed, **fit_once(simulate_published_study(options.n, options.t, seed), seed)})
        print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False, header=seed == 1), flush=True)
    table = pd.DataFrame(rows)
    print(f"\nmedians\n{table.median().round(4).to_string()}")
    errors = [column for column in table if column.startswith("rmse")]
    print(f"\nmean errors and their standard errors\n{table[errors].agg(['mean', 'sem']).round(4).to_string()}")
    bounds = json.loads(REFERENCE.read_text())["attainable"]["bounds"]
    print(f"attainable\n{pd.DataFrame(bounds).to_string(index=False)}")
    if options.json:
        machine = {"threads": options.threads, "torch": torch.__version__, "n": options.n, "t": options.t}
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
