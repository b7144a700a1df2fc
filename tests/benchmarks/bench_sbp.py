"""Memory-saving backward passes of the set encoder: bytes, seconds, accuracy, and the longest panel in 2 GB.

    python tests/benchmarks/bench_sbp.py [--threads 1] [--repeats 7] [--seeds 10] [--device cpu] [--json FILE] [CASE ...]

Asserts nothing. Cases (all by default):

steps     For panels of T situations and widths of the encoder: bytes that the encoder and the whole step keep for the
          backward pass, and seconds of a forward and backward pass, as ratios of plain backpropagation, alternating,
          medians. What "checkpoint" keeps is not seen by the count, so it has no bytes here. With ``--device cuda`` there
          are 64 times as many situations, and bytes are those by which allocation rises at most.
accuracy  Training at T = 128, paired seeds, equal steps and equal seconds, beside smaller batches of equal memory: encoder's
          bound of people never seen, and root-mean-square error of Omega; seconds of the processor.
variance  Variance of the encoder's gradient and time of a step, as multiples of plain backpropagation, and their product:
          below 1 masks pay for themselves. Width 64, a guide trained by 150 steps, mini-batches of 16 people.
longest   Situations of eight people that one step takes within 2 GB of resident memory, all libraries included, to 10 %.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from measurement import Table
from recording import record_results, table_of

from mxlogit import SBP, SVI, ChoiceData, Encoder, MixedLogit, Priors, Training
from mxlogit.execution.people import People
from mxlogit.execution.processes import Communicator
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.encoder import SetEncoder
from mxlogit.guide.memory import memory_report
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.clock import Clock
from mxlogit.inference.start import fit_multinomial_logit, start_population
from mxlogit.inference.svi.adam_route import train as train_by_adam
from mxlogit.inference.svi.guides import encoder_quality, make_guide
from mxlogit.inference.svi.keep_control import KeepControl
from mxlogit.inference.task import Task
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.differences import difference_panels
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import resolve_priors
from mxlogit.simulate import simulate_choices

LENGTHS, WIDTHS, KEEPS = (8, 32, 128, 512), (64, 256), (1.0, 0.5, 0.25, 0.125)
_SITUATIONS, _ALTERNATIVES = {"cpu": 16_384, "cuda": 1_048_576}, 4
SPACE = ParameterSpace(("f",), ("a", "b", "c"), ((0, 1, 2),))
# People of a mini-batch and steps of the training runs; smaller batches of equal memory beside them.
_TRAINED, _BATCH, _STEPS, _LENGTH = 64, 16, 300, 128
_CAP = 2 * 2**30
_FEW = 8


def make_guide_of(shape: Encoder, device: str = "cpu") -> AmortizedGuide:
    mixing = Mixing(["normal"] * 3)
    model = MixedLogitModel(SPACE, mixing, resolve_priors(Priors(), mixing, 1, [1.0] * 4), torch.ones(4).double())
    start = GaussianFactor(torch.zeros(SPACE.size).double(), 0.1 * torch.eye(SPACE.size).double())
    torch.manual_seed(1)
    return AmortizedGuide(model, start, SetEncoder(3, mixing, shape).to(device))


def make_panel(length: int, people: int, device: str = "cpu") -> PanelDifferences:
    generator = torch.Generator().manual_seed(2)
    attributes = torch.randn(people, length, _ALTERNATIVES, 4, generator=generator)
    chosen = torch.randint(0, _ALTERNATIVES, (people, length), generator=generator)
    data = ChoiceData.from_arrays(attributes, chosen, names=["f", "a", "b", "c"])
    return difference_panels(data.to(device=device, dtype=torch.float32))


def step(guide: AmortizedGuide, panel: PanelDifferences) -> float:
    """Seconds of one step of the encoder's own bound."""
    population = guide.model.space.constrain(guide.population_factor().mean.detach()).to(panel.values)
    guide.zero_grad()
    people = torch.arange(len(panel), device=panel.values.device)
    wait = torch.cuda.synchronize if panel.values.is_cuda else lambda: None
    wait()
    started = time.perf_counter()
    guide.encoder_bound(population, panel, people).backward()
    wait()
    return time.perf_counter() - started


RIVALS = {"checkpoint": SBP(1.0, recompute=True), "bfloat16": SBP(1.0, half=True)}


def compare(length: int, shape: Encoder, repeats: int, device: str) -> list[dict[str, Any]]:
    # As many people as make all panels have the same number of situations.
    guide, panel = make_guide_of(shape, device), make_panel(length, _SITUATIONS[device] // length, device)
    variants: dict[str, SBP | None] = {"plain": None}
    variants |= {f"keep {keep}": SBP(keep, min_keep=1) for keep in KEEPS}
    variants |= RIVALS
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, sbp in variants.items():
            guide.sbp, guide.mask_key = sbp, (0, repeat)
            taken = step(guide, panel)
            seconds[name] += [taken] if repeat else []
    plain = memory_report(with_sbp(guide, None), panel)
    rows = []
    for name, sbp in variants.items():
        found = memory_report(with_sbp(guide, sbp), panel)
        seen = name != "checkpoint" or device == "cuda"
        rows.append(
            {
                "T": length,
                "width": shape.width,
                "heads": shape.heads,
                "variant": name,
                "encoder_mb": plain["encoder"] / 1e6 if name == "plain" else math.nan,
                "encoder_bytes": found["encoder"] / plain["encoder"] if seen else math.nan,
                "step_bytes": found["step"] / plain["step"] if seen else math.nan,
                "seconds": statistics.median(seconds[name]),
                "time": statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)),
            }
        )
    return rows


def with_sbp(guide: AmortizedGuide, sbp: SBP | None) -> AmortizedGuide:
    guide.sbp = sbp
    return guide


def run_steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    shapes = [(length, Encoder(width)) for width in WIDTHS for length in LENGTHS]
    shapes += [(length, Encoder(64, heads=4)) for length in (32, 128, 512)]
    for length, shape in shapes:
        found = compare(length, shape, options.repeats, options.device)
        print(pd.DataFrame(found).round(3).to_string(index=False, header=not rows), flush=True)
        rows += found
    return rows


def train_guide(
    settings: SVI, seed: int, length: int = _LENGTH
) -> tuple[AmortizedGuide, GaussianFactor, People, People, float]:
    """The guide, q(theta), people who trained it and people who did not, and seconds of the processor."""
    frame, _ = simulate_choices(
        fixed={"f": 0.5},
        random={"a": (0.5, 1.0), "b": (-0.5, 1.0), "c": (0.2, 0.7)},
        correlation=_correlation(ROOT),
        n_decision_makers=2 * _TRAINED,
        n_situations=length,
        n_alternatives=_ALTERNATIVES,
        random_state=100 + seed,
    )
    est = MixedLogit(fixed=["f"], random=["a", "b", "c"], method=settings, random_state=seed)
    fitted, people, _ = est._prepare(frame, Communicator())
    panel = people.require_single_process()
    seen, unseen = (People.gather(panel.take(slice(i * _TRAINED, (i + 1) * _TRAINED))) for i in range(2))
    model = fitted.model
    logit = fit_multinomial_logit(seen, model.prior.deviation)
    started, start = time.process_time(), start_population(model, logit)
    task = Task(model, seen, seen, logit, start, seed, Clock(lambda line: None))
    with torch.random.fork_rng(), pyro.settings.context(module_local_params=True):
        guide = make_guide(settings.plan(), model, seen.require_single_process(), start, seed)
        torch.manual_seed(seed)
        factor, _ = train_by_adam(settings.resolved_training, guide, task)
    return guide, factor, seen, unseen, time.process_time() - started


def train(settings: SVI, seed: int) -> dict[str, float]:
    """The encoder's bound of people never seen, the error of Omega, seconds."""
    guide, factor, _, unseen, seconds = train_guide(settings, seed)
    center = guide.model.space.constrain(factor.mean)
    root_found = center.scale_tril.numpy()
    sds = np.array([1.0, 1.0, 0.7])
    omega = _correlation(ROOT) * np.outer(sds, sds)
    return {
        "bound": encoder_quality(guide, center, unseen, 1).elbo / _TRAINED,
        "rmse_omega": float(np.sqrt(np.mean((root_found @ root_found.T - omega) ** 2))),
        "seconds": seconds,
    }


def _correlation(root: np.ndarray) -> np.ndarray:
    covariance = root @ root.T
    scale = np.sqrt(np.diag(covariance))
    return covariance / np.outer(scale, scale)


ROOT = np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]])
HOW = Training(steps=_STEPS, batch_size=_BATCH, learning_rate=0.03)
PLAIN = SVI(encoder=Encoder(64), polish=0, flow=None, training=HOW)
AT_EQUAL_STEPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "keep .5": {"sbp": 0.5},
    "keep .25": {"sbp": 0.25},
    "keep auto": {"sbp": "auto"},
    "half the batch": {"training": replace(HOW, batch_size=_BATCH // 2)},
    "quarter of the batch": {"training": replace(HOW, batch_size=_BATCH // 4)},
}


def run_accuracy(options: argparse.Namespace) -> list[dict[str, Any]]:
    runs = {name: varied(PLAIN, **changes) for name, changes in AT_EQUAL_STEPS.items()}
    rows = []
    for seed in range(options.seeds):
        rows += [{"seed": seed, "run": name, **train(settings, seed)} for name, settings in runs.items()]
        print(pd.DataFrame(rows[-len(runs) :]).round(4).to_string(index=False), flush=True)
    rows += at_equal_seconds(rows)
    print(summarise(pd.DataFrame(rows)).round(3).to_string())
    return rows


def at_equal_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many more steps as a step is faster, by medians over all seeds: a single run's clock is too noisy."""
    table = pd.DataFrame(rows)
    seconds, seeds = table.groupby("run")["seconds"].median(), sorted(set(table["seed"]))
    found = []
    for name in ("keep .5", "keep .25"):
        longer = replace(HOW, steps=round(_STEPS * seconds["plain"] / seconds[name]))
        settings = varied(PLAIN, **AT_EQUAL_STEPS[name], training=longer)
        found += [{"seed": seed, "run": f"{name}, same seconds", **train(settings, seed)} for seed in seeds]
    return found


def varied(settings: SVI, **changes: Any) -> SVI:
    return SVI(**{**settings.get_params(deep=False), **changes})


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Losses in per cent of the plain run's figure, over pairs, with 95 % intervals."""
    wide = {name: table.pivot(index="seed", columns="run", values=name) for name in ("bound", "rmse_omega", "seconds")}
    rows = {}
    for run in wide["bound"]:
        losses = {
            "bound": 100.0 * (wide["bound"]["plain"] - wide["bound"][run]) / wide["bound"]["plain"].abs(),
            "rmse": 100.0 * (wide["rmse_omega"][run] / wide["rmse_omega"]["plain"] - 1.0),
        }
        rows[run] = {"seconds": wide["seconds"][run].median()}
        for name, loss in losses.items():
            rows[run][f"{name}_loss"] = loss.mean()
            rows[run][f"{name}_half_width"] = 2.26 * loss.std() / math.sqrt(len(loss))
    return pd.DataFrame.from_dict(rows, orient="index")


def peak_of(length: int, sbp: SBP | None) -> int:
    """Bytes resident at most in a process that makes one step."""
    call = f"import bench_sbp as b; from mxlogit import SBP; b.report_peak({length}, {sbp!r})"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def report_peak(length: int, sbp: SBP | None) -> None:
    torch.set_num_threads(1)
    guide = with_sbp(make_guide_of(Encoder(256)), sbp)
    step(guide, make_panel(length, _FEW))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def run_longest(options: argparse.Namespace) -> list[dict[str, Any]]:
    variants: dict[str, SBP | None] = {"plain": None, **{f"keep {k}": SBP(k) for k in KEEPS[1:]}, **RIVALS}
    variants["keep 0.125, recomputed"] = replace(SBP(0.125), recompute=True)
    rows = []
    for name, sbp in variants.items():
        fits, too_long, peak = 4_000, 80_000, math.nan
        while too_long > 1.1 * fits:
            tried = int((fits * too_long) ** 0.5)
            found = peak_of(tried, sbp)
            fits, too_long, peak = (tried, too_long, found) if found <= _CAP else (fits, tried, peak)
        rows.append({"variant": name, "situations": fits, "peak_gb": peak / 2**30})
        print(pd.DataFrame(rows[-1:]).round(2).to_string(index=False, header=len(rows) == 1), flush=True)
    return rows


def run_variance(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for length in LENGTHS[:3]:
        guide, _, seen, _, _ = train_guide(varied(PLAIN, training=replace(HOW, steps=150)), 0, length)
        guide.train()
        panel, people = seen.require_single_process(), torch.arange(_BATCH)
        base = None
        for keep in KEEPS:
            guide.sbp = SBP(keep, min_keep=1)
            control, seconds = KeepControl(guide, Communicator()), time.process_time()
            found = [[control._halves(panel, people, (1, noise, 7, mask)) for mask in range(4)] for noise in range(25)]
            seconds = time.process_time() - seconds
            gradients = torch.stack([torch.stack(row) for row in found])
            by_masks = float(gradients.mean(2).var(1).sum(-1).mean())
            by_batch = float(gradients.diff(dim=2).square().sum(-1).mean()) / 4.0 - by_masks
            base = base or (by_batch, seconds)
            variance, cost = 1.0 + by_masks / base[0], seconds / base[1]
            rows.append({"T": length, "keep": keep, "variance": variance, "time": cost, "product": variance * cost})
        print(pd.DataFrame(rows[-len(KEEPS) :]).round(3).to_string(index=False, header=length == 8), flush=True)
    return rows


def tables_of(case: str, rows: list[dict[str, Any]], device: str) -> list[Table]:
    """Tables of a case; all figures of "steps" and single runs of "accuracy" are kept behind those that are shown."""
    frame = pd.DataFrame(rows)
    if case == "steps":
        # On a GPU, allocation of a whole step; on the processor, what the encoder keeps.
        figures = {"step_bytes" if device == "cuda" else "encoder_bytes": "bytes", "time": "time"}
        wide = frame[frame["variant"] != "plain"].pivot(
            index=["width", "heads", "T"], columns="variant", values=list(figures)
        )
        wide.columns = [f"{figures[figure]}, {variant}" for figure, variant in wide.columns]
        shown = wide.dropna(axis=1, how="all").reset_index()
    elif case == "accuracy":
        shown = summarise(frame).rename_axis("run").reset_index()
    else:
        return [table_of(case, frame)]
    return [table_of(case, shown), table_of(f"{case}, runs", frame, shown=False)]


CASES = {"steps": run_steps, "accuracy": run_accuracy, "longest": run_longest, "variance": run_variance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--device", choices=list(_SITUATIONS), default="cpu", help="of steps")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown cases {unknown}; there are {list(CASES)}")
    torch.set_num_threads(options.threads)
    tables = []
    for case in options.cases or list(CASES):
        print(f"\n== {case}")
        tables += tables_of(case, CASES[case](options), options.device)
    if options.json:
        title = "Memory-saving backward passes"
        record_results(options.json, title, tables, threads=options.threads, device=options.device)


if __name__ == "__main__":
    main()
