"""Simulated data sets over easy and hard designs, on which the error estimate of a fit is calibrated.

    python tests/benchmarks/trust_designs.py [--count 200] [--processes 2]

writes the exact posterior's means and standard deviations of each data set to tests/reference/trust_designs.json, by
particle Gibbs of the default engine's short chains, continued until every parameter has at least 250 effective samples.
Data sets that are there are left as they are. Chains share the likelihood with the engines and nothing else. One choice
a person, of which chains mix slowly, has references by quadrature (tests/reference/posterior_sds.json).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from long_chains import rounded, run_long_chains, write_references

from mxlogit.simulate import simulate_choices

FILE = Path(__file__).parent.parent / "reference" / "trust_designs.json"
# Smallest effective sample size of a reference, and most kept iterations of its eight chains.
_ENOUGH, _MOST = 250.0, 250
# Seconds after which chains end with what they have.
_SECONDS = 50.0
# Most rows of a data set, so that chains take seconds, and of every tenth, whose chains take minutes.
_MOST_ROWS, _MANY_ROWS = 8_000, 30_000
# Fewest choice situations per random coefficient: with fewer, the posterior is the prior's.
_SITUATIONS_PER_TASTE = 50
# Shares of designs by kind of the random coefficients.
_KINDS = {"normal": 0.55, "lognormal": 0.3, "johnson_sb": 0.15}


@dataclass(frozen=True)
class Design:
    """A simulated data set: people, choice situations each, alternatives, coefficients and their distributions."""

    place: int
    people: int
    situations: int
    alternatives: int
    fixed: dict[str, float]
    random: dict[str, tuple[float, float, str]]
    correlated: bool

    @classmethod
    def at(cls, place: int) -> Design:
        """The design of a number."""
        rng = np.random.default_rng((20_261_129, place))
        kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
        k = int(rng.choice([1, 2, 3, 4, 5, 6, 8, 10], p=[0.22, 0.2, 0.18, 0.14, 0.1, 0.06, 0.05, 0.05]))
        situations, alternatives = int(rng.choice([4, 2, 3, 5, 10, 20, 30])), int(rng.integers(2, 6))
        people = int(np.exp(rng.uniform(np.log(50), np.log(5_000))))
        most = _MANY_ROWS if place % 10 == 9 else _MOST_ROWS
        least = max(50, _SITUATIONS_PER_TASTE * k // situations)
        people = max(least, min(people, most // (situations * alternatives)))
        random = {}
        for j in range(k):
            unusual = kind != "normal" and (j == 0 or (kind == "lognormal" and rng.random() < 0.3))
            size = float(rng.uniform(0.4, 1.2))
            location = float(rng.normal(-0.3, 0.3)) if unusual else float(rng.normal(0.0, 0.7))
            random[f"r{j}"] = (location, size, kind if unusual else "normal")
        fixed = {f"f{j}": float(rng.normal(0.0, 0.7)) for j in range(int(rng.integers(0, 4)))}
        return cls(place, people, situations, alternatives, fixed, random, k > 1 and rng.random() < 0.5)

    def simulate(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The frame, and the arguments of `MixedLogit`."""
        # A Johnson SB taste lies between 0 and 1: in units of four, so that its spread is seen.
        scales = {name: 4.0 for name, value in self.random.items() if value[2] == "johnson_sb"}
        frame, _ = simulate_choices(
            self.people,
            self.situations,
            self.alternatives,
            fixed=self.fixed,
            random=self.random,
            correlation=0.3 if self.correlated else None,
            scales=scales,
            random_state=self.place,
        )
        families = {name: value[2] for name, value in self.random.items()}
        return frame, {"fixed": list(self.fixed), "random": families, "correlated": self.correlated}

    def describe(self) -> dict[str, Any]:
        """The design in a row of a table."""
        families = [value[2] for value in self.random.values()]
        kind = next((family for family in families if family != "normal"), "normal")
        return {
            "people": self.people,
            "situations": self.situations,
            "k": len(families),
            "kind": kind,
            "parameters": len(self.fixed)
            + 2 * len(families)
            + self.correlated * len(families) * (len(families) - 1) // 2,
        }


def solve(place: int) -> dict[str, Any]:
    """The exact posterior of a design, as the file has it."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = run_long_chains(*Design.at(place).simulate(), _MOST, _ENOUGH, _SECONDS)
    return {**found, "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    references = json.loads(FILE.read_text()) if FILE.exists() else {}
    left = [place for place in range(options.count) if str(place) not in references]
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = {pool.submit(solve, place): place for place in left}
        for job in as_completed(jobs):
            place = jobs[job]
            references[str(place)] = job.result()
            write_references(FILE, {str(key): references[str(key)] for key in sorted(map(int, references))})
            row = {key: value for key, value in references[str(place)].items() if key != "parameters"}
            sys.stdout.write(f"{place} {Design.at(place).describe()} {rounded(row)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
