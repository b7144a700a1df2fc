"""Speed, memory and error of the variational engine on generated data of the published simulation design.

    python tests/benchmarks/bench_scale.py [--n 50000] [--t 10] [--seeds 3] [--threads 2] [--json FILE] [CASE ...]

Asserts nothing. Cases (by default ``fit``):

fit     One row per seed: seconds of the fit and of the people's posterior moments, error against the truth, passes over
        all people, peak memory beyond what the process held before, as a multiple of the attributes, and the time of a
        pass of 16 draws beside two floors: streaming the differenced attributes once, and one bare batched product of
        them with 16 taste vectors a person.
growth  Seconds at N / 100, N / 10 and N, and the exponent.
shards  The same data packed on disk: seconds against memory, and memory beyond the page cache.
team    Two gloo processes against one: difference of the answers, and seconds that an exchange adds to a pass.
shapes  Seconds of a pass, a thousand people, for 2, 5, 20 and 100 alternatives and 1, 5, 10 and 20 random coefficients.
gpu     The fit on CUDA, of data in the processor's memory: seconds, all people's posterior means included, error, and peak
        memory of the device as a multiple of the attributes; the first fit of the process is a row of its own.
adam    The classic route, with more steps until its error is 1.2 times that of the fit, or 16,000.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from recording import medians_of, record_results, table_of

from mxlogit import SVI, ChoiceData, ConvergenceWarning, MixedLogit, PackedChoices, Priors, Training, pack_choices
from mxlogit.execution.people import People
from mxlogit.execution.processes import current_team
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.simulate import StudyData, simulate_published_study

FIXED, RANDOM = ["f1", "f2", "f3"], ["r1", "r2", "r3", "r4", "r5"]
REFERENCE = Path(__file__).parent.parent / "reference" / "simulation_study.json"
_DRAWS, _MEGABYTE = 16, 2**20


def median_seconds(work: Callable[[], object], runs: int = 3) -> float:
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def rmse(estimate: object, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.asarray(estimate) - truth) ** 2)))


def memory() -> dict[str, float]:
    """Resident megabytes: peak, and now without pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: float(line.split()[1]) / 1024 for line in lines if line.endswith("kB")}
    return {"peak": values["VmHWM"], "now": values["VmRSS"], "anonymous": values["RssAnon"]}


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def make_estimator(seed: int, **more: object) -> MixedLogit:
    settings = {"fixed": FIXED, "random": RANDOM, "priors": Priors(location_scale=1.0), "random_state": seed}
    settings["device"] = "cpu"
    return MixedLogit(**{**settings, **more})


def float_data(study: StudyData) -> ChoiceData:
    return study.data.to(device="cpu", dtype=torch.float32)


def measure_pass(est: MixedLogit) -> dict[str, float]:
    """Seconds of one warm pass, of streaming the attributes, and of a bare product in chunks of the pass's size."""
    model, panel = est._fitted.model, est._fitted.panel
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, 0)
    integration, population = IntegrationSettings(_DRAWS, 8, 1, 2), est.result_.center
    marginal.score_pass(population, IntegrationSettings(_DRAWS, 8, 1, 20))
    random = panel.values[..., len(FIXED) :]
    tastes = torch.randn(marginal.chunk_size(_DRAWS), len(RANDOM), _DRAWS, dtype=panel.values.dtype)
    buffer = torch.empty(len(tastes), panel.n_rows, _DRAWS, dtype=panel.values.dtype)

    def multiply() -> None:
        for part, _ in panel.chunks(len(tastes)):
            size = part.stop - part.start
            torch.bmm(random[part], tastes[:size], out=buffer[:size])

    return {
        "pass": median_seconds(lambda: marginal.score_pass(population, integration)),
        "stream_floor": median_seconds(panel.values.sum),
        "product_floor": median_seconds(multiply),
    }


def errors(est: MixedLogit, study: StudyData) -> dict[str, float]:
    tril = est._fitted.model.space.constrain(est.result_.samples.unconstrained).scale_tril
    return {
        "rmse_omega": rmse((tril @ tril.mT).mean(0), study.covariance),
        "rmse_zeta": rmse(est.coef_[RANDOM], study.location),
        "rmse_alpha": rmse(est.coef_[FIXED], study.fixed),
    }


def fit_once(study: StudyData, seed: int) -> dict[str, float]:
    data, est = float_data(study), make_estimator(seed)
    size = data.attributes.nelement() * data.attributes.element_size() / _MEGABYTE
    before = memory()["now"]
    reset_peak()
    begin = time.perf_counter()
    est.fit(data)
    fitted = time.perf_counter()
    people = est.individual_coefficients(statistic=["mean"]).to_numpy()
    done = time.perf_counter()
    peak = memory()["peak"]
    return {
        "fit": fitted - begin,
        "people": done - fitted,
        "total": done - begin,
        "passes": float(est.diagnostics_["passes"]),
        **errors(est, study),
        "rmse_beta_n": rmse(people, study.tastes),
        # The attributes are part of what the process held before.
        "memory_ratio": (peak - before + size) / size,
        **measure_pass(est),
    }


def run_fit(options: argparse.Namespace) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for seed in range(1, options.seeds + 1):
        rows.append({"seed": seed, **fit_once(simulate_published_study(options.n, options.t, seed), seed)})
        print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False, header=seed == 1), flush=True)
    table = pd.DataFrame(rows)
    print(f"\nmedians\n{table.drop(columns='seed').median().round(4).to_string()}")
    columns = [column for column in table if column.startswith("rmse")]
    print(f"\nmean errors and their standard errors\n{table[columns].agg(['mean', 'sem']).round(4).to_string()}")
    bounds = json.loads(REFERENCE.read_text())["attainable"]["bounds"]
    print(f"attainable\n{pd.DataFrame(bounds).to_string(index=False)}")
    return rows


def run_growth(options: argparse.Namespace) -> list[dict[str, float]]:
    sizes = [options.n // 100, options.n // 10, options.n]
    rows = []
    for n in sizes:
        data = float_data(simulate_published_study(n, options.t, 1))
        seconds = median_seconds(lambda data=data: make_estimator(1).fit(data), options.seeds)
        rows.append({"n": n, "fit": seconds})
    exponent = float(np.polyfit(np.log(sizes), np.log([row["fit"] for row in rows]), 1)[0])
    print(f"{pd.DataFrame(rows).round(3).to_string(index=False)}\nexponent {exponent:.3f}")
    return [*rows, {"exponent": exponent}]


def fit_pack(path: str, threads: int, answer: multiprocessing.Queue) -> None:
    """Fit a pack in a process that never held the data."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    packed = PackedChoices.open(path)
    highest = [memory()["anonymous"]]
    est = make_estimator(1, verbose=0)
    chunks = PanelDifferences.chunks

    def watched(panel: PanelDifferences, size: int) -> object:
        highest[0] = max(highest[0], memory()["anonymous"])
        return chunks(panel, size)

    PanelDifferences.chunks = watched  # type: ignore[method-assign]
    begin = time.perf_counter()
    est.fit(packed)
    seconds = time.perf_counter() - begin
    answer.put({"fit": seconds, "anonymous": highest[0], "coef": est.coef_.to_numpy()})


def run_shards(options: argparse.Namespace) -> list[dict[str, float]]:
    data = float_data(simulate_published_study(options.n, options.t, 1))
    size = data.attributes.nelement() * data.attributes.element_size() / _MEGABYTE
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        packed = pack_choices(data, Path(folder) / "pack")
        packing = time.perf_counter() - begin
        begin = time.perf_counter()
        here = make_estimator(1).fit(data)
        in_memory = time.perf_counter() - begin
        context = multiprocessing.get_context("spawn")
        answer: multiprocessing.Queue = context.Queue()
        process = context.Process(target=fit_pack, args=(str(packed.path), options.threads, answer))
        process.start()
        there = answer.get()
        process.join()
    row = {
        "n": options.n,
        "attributes_mb": size,
        "packing": packing,
        "fit_in_memory": in_memory,
        "fit_from_shards": there["fit"],
        "ratio": there["fit"] / in_memory,
        "anonymous_mb": there["anonymous"],
        "largest_difference": float(np.abs(there["coef"] - here.coef_.to_numpy()).max()),
    }
    print(pd.Series(row).round(6).to_string())
    return [row]


def fit_in_team(rank: int, size: int, n: int, t: int, dtype: str, store: str, answer: multiprocessing.Queue) -> None:
    """One of several processes with one thread each."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    if size > 1:
        dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    data = simulate_published_study(n, t, 1).data
    make_estimator(1).fit(data.take(slice(0, 1000)))  # warm-up
    begin = time.perf_counter()
    est = make_estimator(1, dtype=dtype).fit(data)
    seconds = time.perf_counter() - begin
    team, size_of_pass = current_team(), 4 + 23 + 23 * 23
    exchange = median_seconds(lambda: team.all_reduce_sum(torch.zeros(size_of_pass)), 101)
    found = {"coef": est.coef_.to_numpy(), "sd": est.summary()["std_error"].to_numpy()}
    answer.put({"rank": rank, "fit": seconds, "exchange": exchange, "log_likelihood": est.log_likelihood_, **found})


def run_team(options: argparse.Namespace) -> list[dict[str, object]]:
    rows = [compare_team(options, dtype) for dtype in ("float32", "float64")]
    print(pd.DataFrame(rows).T.to_string(header=False))
    return rows


def compare_team(options: argparse.Namespace, dtype: str) -> dict[str, object]:
    context = multiprocessing.get_context("spawn")
    results = {}
    for size in (1, 2):
        answer: multiprocessing.Queue = context.Queue()
        with tempfile.TemporaryDirectory() as folder:
            given = size, options.n, options.t, dtype, f"{folder}/store", answer
            processes = [context.Process(target=fit_in_team, args=(rank, *given)) for rank in range(size)]
            for process in processes:
                process.start()
            results[size] = [answer.get() for _ in processes]
            for process in processes:
                process.join()
    one, two = results[1][0], results[2]
    scale = np.maximum(np.abs(one["coef"]), one["sd"])
    return {
        "n": options.n,
        "dtype": dtype,
        "one_process_one_thread": one["fit"],
        "two_processes_one_thread": max(result["fit"] for result in two),
        "exchange_ms": 1e3 * max(result["exchange"] for result in two),
        "largest_relative_difference": float((np.abs(two[0]["coef"] - one["coef"]) / scale).max()),
        "log_likelihood_relative_difference": abs(two[0]["log_likelihood"] / one["log_likelihood"] - 1.0),
    }


def shape_panel(n: int, t: int, j: int, k: int) -> PanelDifferences:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(n, t * (j - 1), k, generator=generator) / k**0.5
    return PanelDifferences.regular(values, j - 1)


def run_shapes(options: argparse.Namespace) -> list[dict[str, float]]:
    rows = []
    for j, k in [(2, 5), (5, 5), (20, 5), (100, 5), (5, 1), (5, 10), (5, 20)]:
        people = People.gather(shape_panel(1000, options.t, j, k))
        space = ParameterSpace((), tuple(f"z{i}" for i in range(k)), (tuple(range(k)),))
        population = PopulationParameters(torch.zeros(0).double(), torch.zeros(k).double(), 0.5 * torch.eye(k).double())
        marginal = MarginalLikelihood(people, space, Mixing(["normal"] * k), 0)
        marginal.score_pass(population, IntegrationSettings(_DRAWS, 8, 1, 20))
        seconds = median_seconds(
            lambda m=marginal, p=population: m.score_pass(p, IntegrationSettings(_DRAWS, 8, 1, 2)), 7
        )
        rows.append({"j": j, "k": k, "pass_ms": 1e3 * seconds, "per_row": 1e9 * seconds / (1000 * options.t * (j - 1))})
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    return rows


def run_adam(options: argparse.Namespace) -> list[dict[str, float]]:
    study = simulate_published_study(options.n, options.t, 1)
    data = float_data(study)
    begin = time.perf_counter()
    newton = make_estimator(1).fit(data)
    seconds, goal = time.perf_counter() - begin, 1.2 * errors(newton, study)["rmse_omega"]
    rows = [{"route": "newton", "seconds": seconds, **errors(newton, study)}]
    steps = 500
    while rows[-1]["rmse_omega"] > goal or len(rows) == 1:
        begin = time.perf_counter()
        est = make_estimator(1, method=SVI(polish=0, flow=None, training=Training(steps=steps))).fit(data)
        rows.append({"route": f"adam, {steps} steps", "seconds": time.perf_counter() - begin, **errors(est, study)})
        print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False, header=False), flush=True)
        if steps >= 16_000:
            break
        steps *= 2
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    print(f"ratio of seconds {rows[-1]['seconds'] / seconds:.1f}")
    return rows


def run_gpu(options: argparse.Namespace) -> list[dict[str, float]]:
    rows = []
    for seed in (1, *range(1, options.seeds + 1)):
        study = simulate_published_study(options.n, options.t, seed)
        data, est = float_data(study), make_estimator(seed, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        est.fit(data)
        fitted = time.perf_counter()
        people = est.individual_coefficients(statistic=["mean"]).to_numpy()
        done = time.perf_counter()
        size = data.attributes.nelement() * data.attributes.element_size()
        found = {"seed": seed, "fit": fitted - begin, "people": done - fitted, "total": done - begin}
        found |= {
            "passes": float(est.diagnostics_["passes"]),
            **errors(est, study),
            "rmse_beta_n": rmse(people, study.tastes),
        }
        rows.append({**found, "peak_ratio": torch.cuda.max_memory_allocated() / size})
        print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False, header=len(rows) == 1), flush=True)
    print(
        f"\n{torch.cuda.get_device_name()}, medians without the first\n{pd.DataFrame(rows[1:]).median().round(4).to_string()}"
    )
    return rows


CASES = {
    "fit": run_fit,
    "gpu": run_gpu,
    "growth": run_growth,
    "shards": run_shards,
    "team": run_team,
    "shapes": run_shapes,
    "adam": run_adam,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["fit"], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--t", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown cases {sorted(unknown)}; choose from {list(CASES)}")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    machine = {"threads": options.threads, "torch": torch.__version__, "n": options.n, "t": options.t}
    print(f"{machine}, {platform.machine()}", flush=True)
    fit_once(simulate_published_study(200, 5, 1), 0)  # warm-up
    tables = []
    for case in options.cases:
        print(f"\n== {case}", flush=True)
        # Rows of the other cases say it themselves.
        size = {"n": options.n} if case in ("fit", "gpu", "adam") else {}
        rows = [{**size, **row} for row in CASES[case](options)]
        tables += medians_of(case, rows, ["n"], ("seed",)) if case == "fit" else [table_of(case, rows)]
    if options.json:
        device = "cuda" if "gpu" in options.cases else "cpu"
        record_results(options.json, "Many people", tables, threads=options.threads, device=device)


if __name__ == "__main__":
    main()
