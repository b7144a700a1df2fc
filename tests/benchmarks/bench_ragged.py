"""Cost of one giant panel and of one giant choice set: seconds and memory of a fit, with and without it.

    python tests/benchmarks/bench_ragged.py [--threads 1] [--runs 3] [--json FILE] [CASE ...]

Asserts nothing. Every measurement is a process of its own: processor seconds of the second of two fits, and by how many
MB resident memory rises beyond what the package and the frame take. Cases (all by default):

panels   2,000 people x 2 choices of 3; one person more with 5,000 or 20,000 choices.
sets     2,000 people x 5 choices of 3; one choice more of 300 or 3,000 alternatives.
mixed    20 people x 500 choices of 3; the same with one choice of 300 each.
predict  Predictions of 2,000 and of 40,000 people x 1 choice of 3 after a fit of 500.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from recording import record_results, table_of

from mxlogit import MixedLogit
from mxlogit.simulate import simulate_choices

TRUTH = {"x": (-1.0, 0.6), "z": (0.5, 0.7)}
CASES = {
    "panels": ["panels 0", "panels 5000", "panels 20000"],
    "sets": ["sets 0", "sets 300", "sets 3000"],
    "mixed": ["mixed 0", "mixed 300"],
    "predict": ["predict 2000", "predict 40000"],
}


def make_frame(kind: str, size: int) -> pd.DataFrame:
    """Frame of a case, with one giant of the given size unless it is zero."""
    people, situations = {"panels": (2_000, 2), "sets": (2_000, 5), "mixed": (20, 500), "predict": (500, 5)}[kind]
    frame = simulate_choices(people, situations, 3, random=TRUTH, random_state=0)[0]
    if size == 0 or kind == "predict":
        return frame
    if kind == "panels":
        giant = simulate_choices(1, size, 3, random=TRUTH, random_state=1)[0].assign(id=10**6)
        return pd.concat([frame, giant], ignore_index=True)
    owners = 1 if kind == "sets" else people
    giants = simulate_choices(owners, 1, size, random=TRUTH, random_state=1)[0].assign(situation=10**6)
    return pd.concat([frame, giants], ignore_index=True)


def memory(name: str) -> float:
    """Resident memory (VmRSS) or its peak (VmHWM), MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024.0


def measure(kind: str, size: int) -> dict[str, float]:
    """Processor seconds and peak memory of a fit, or of predictions."""
    frame = make_frame(kind, size)
    est = MixedLogit(random=list(TRUTH), random_state=0)
    est.fit(make_frame(kind, 0))
    work = lambda: est.fit(frame)  # noqa: E731
    if kind == "predict":
        frame = simulate_choices(size, 1, 3, random=TRUTH, random_state=2)[0]
        work = lambda: est.predict_proba(frame)  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = memory("VmRSS"), time.process_time()
    work()
    return {"seconds": time.process_time() - begin, "megabytes": memory("VmHWM") - before, "rows": float(len(frame))}


def main() -> None:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        warnings.simplefilter("ignore")
        kind, size = options.one.split()
        sys.stdout.write(json.dumps(measure(kind, int(size))))
        return
    results = {}
    for case in [one for name in options.cases or CASES for one in CASES[name]]:
        command = [sys.executable, __file__, "--one", case, "--threads", str(options.threads)]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(options.runs)]
        results[case] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        row = results[case]
        sys.stdout.write(f"{case:14s} {row['rows']:9,.0f} rows  {row['seconds']:6.2f} s  {row['megabytes']:6.0f} MB\n")
        sys.stdout.flush()
    if options.json:
        rows = [{"case": case, **row} for case, row in results.items()]
        title = "One giant panel, one giant choice set"
        record_results(options.json, title, [table_of("medians", rows)], threads=options.threads)


if __name__ == "__main__":
    main()
