"""Posteriors that are hard for a Gaussian, and what they are exactly.

    python tests/benchmarks/trust_cases.py [--swiss-route FILE] [CASE ...]

adds to tests/reference/trust_cases.json what it lacks: means, standard deviations and, by sums, quantiles. Of several
tastes by long runs of particle Gibbs with a seed that no measured fit has; of one taste by sums (`tests/one_taste.py`).
Electricity has long chains of its own, few choices quadrature (`tests/quadrature.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import pandas as pd
import quadrature
from long_chains import rounded, run_long_chains, write_references
from one_taste import LABELS, OneTaste

from mxlogit import VI, ConvergenceWarning, MixedLogit, Priors, datasets
from mxlogit.simulate import simulate_choices

FOLDER = Path(__file__).parent.parent / "reference"
FILE, ELECTRICITY = FOLDER / "trust_cases.json", FOLDER / "chains_electricity_lognormal.json"
NEGATIVE = "negative_lognormal"
# Kept iterations of a reference run (swiss_route and 500 people of the study: 1,000).
_LONG = 300
# Location, standard deviation and scale of one taste, by its distribution.
_ONE_TASTE = {
    "johnson_sb": (0.3, 1.5, 3.0),
    "truncated_normal": (0.4, 0.9, 1.0),
    "censored_normal": (0.3, 0.9, 1.0),
    "uniform": (0.4, 1.2, 1.0),
    "triangular": (0.5, 1.5, 1.0),
}
# Location and standard deviation of a lognormal and a normal taste; nodes of each, and points, of their quadrature.
_TWO_TASTES = {"z": (-0.3, 0.8), "w": (-0.5, 1.0)}
_NODES, _POINTS = 20, 1_024
# Probabilities of the quantiles of one taste.
QUANTILES = (0.05, 0.95)


@dataclass(frozen=True)
class Case:
    """A data set with its model, and the exact posterior by label: mean, sd and, of some, quantiles."""

    name: str
    group: str
    load: Callable[[], pd.DataFrame]
    request: dict[str, Any]
    family: str = ""
    exact: dict[str, list[float]] = field(default_factory=dict)

    def solve(self) -> dict[str, Any]:
        """The exact posterior, as the file has it."""
        if self.family:
            found = OneTaste(self.load(), self.family, 10.0, 2.5)
            table = {
                label: [found.mean[label], found.sd[label], *(found.quantile(label, share) for share in QUANTILES)]
                for label in LABELS
            }
            return {"by": "sums", "parameters": table}
        if self.group == "few":
            names = list(self.request["random"])
            start = quadrature.starting_point(*zip(*_TWO_TASTES.values(), strict=True))
            found = quadrature.LognormalQuadrature(self.load(), names, _NODES).moments(start, _POINTS)
            labels = [*names, *(f"sd.{name}" for name in names), "cor.z:w"]
            rows = zip(found.mean.tolist(), found.sd.tolist(), strict=True)
            return {"by": "quadrature", "parameters": dict(zip(labels, map(list, rows), strict=True))}
        return {"by": "chains", **run_long_chains(self.load(), self.request, _LONG, math.inf)}


def swiss_route(path: Path) -> pd.DataFrame:
    """The wide file of R's apollo 0.3.8 (apollo_swissRouteChoiceData, as CSV) as a long frame."""
    wide = pd.read_csv(path)
    names = ["tt", "tc", "hw", "ch"]
    parts = []
    for place in (1, 2):
        part = wide[["ID", *(f"{name}{place}" for name in names)]].set_axis(["id", *names], axis=1)
        parts.append(part.assign(chid=range(len(wide)), alt=place, choice=(wide["choice"] == place).astype(int)))
    return pd.concat(parts).sort_values(["chid", "alt"], ignore_index=True)


_STUDY: dict[str, Any] = {f"r{place}": (0.3 * place - 0.8, 0.9) for place in (1, 2, 3)}
_STUDY |= {"r4": (-0.5, 0.7, "lognormal"), "r5": (-0.5, 0.7, NEGATIVE)}


def study(people: int) -> pd.DataFrame:
    """The published study's design, with two of its five random tastes lognormal."""
    frame, _ = simulate_choices(people, 10, 5, fixed={"f1": -0.6, "f2": 0.4, "f3": 0.2}, random=_STUDY, random_state=1)
    return frame


def one_taste(family: str, people: int, situations: int, *, of: tuple[float, float, float]) -> pd.DataFrame:
    """Choices by one random coefficient, of a location, a standard deviation and a scale."""
    location, size, scale = of
    frame, _ = simulate_choices(
        people,
        situations,
        3,
        random={"z": (location, size, family)},
        scales={} if scale == 1.0 else {"z": scale},
        random_state=2,
    )
    return frame


def two_tastes(people: int, situations: int) -> pd.DataFrame:
    """Choices by a lognormal and a normal taste."""
    (z, w) = _TWO_TASTES.values()
    frame, _ = simulate_choices(people, situations, 3, random={"z": (*z, "lognormal"), "w": w}, random_state=2)
    return frame


def eight_normals() -> pd.DataFrame:
    random = {f"r{place}": (0.2 * place - 0.8, 0.8) for place in range(8)}
    frame, _ = simulate_choices(500, 10, 4, random=random, correlation=0.3, random_state=1)
    return frame


def skewed(path: Path | None) -> Iterator[Case]:
    electricity = {
        "pf": "normal",
        "cl": "normal",
        "loc": "normal",
        "wk": "lognormal",
        "tod": NEGATIVE,
        "seas": NEGATIVE,
    }
    names = {"situation": "chid", "alternative": "alt"}
    yield Case("electricity", "skewed", datasets.load_electricity, {"random": electricity, **names})
    if path is not None:
        random = dict.fromkeys(["tt", "tc", "hw", "ch"], NEGATIVE)
        yield Case("swiss_route", "skewed", lambda: swiss_route(path), {"random": random, **names})
    request = {"fixed": ["f1", "f2", "f3"], "random": {k: (*v, "normal")[2] for k, v in _STUDY.items()}}
    for people in (500, 2_000):
        yield Case(f"study {people}", "skewed", lambda people=people: study(people), request)  # type: ignore[misc]
    request = {"random": {"time": NEGATIVE, "cost": NEGATIVE}, "constants": True, "availability": "available"}
    yield Case("swissmetro", "skewed", datasets.load_swissmetro, request)


def few_choices() -> Iterator[Case]:
    for record in json.loads(quadrature.REFERENCE.read_text()):
        people, situations, k = (record[name] for name in ("people", "situations", "tastes"))
        if people < 2_000 or situations > 2:
            continue
        frame = lambda p=people, t=situations, k=k: quadrature.first_people(p, t, k)[0]  # noqa: E731
        names = list(quadrature.TASTES)[:k]
        labels = [*names, *(f"sd.{name}" for name in names)]
        labels += [f"cor.{a}:{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
        exact = dict(zip(labels, map(list, zip(record["mean"], record["sd"], strict=True)), strict=True))
        request = {"random": names, "priors": Priors()}
        yield Case(f"normal {people} x {situations}, {k}", "few", frame, request, exact=exact)
    for people, situations in ((300, 2), (2_000, 1), (2_000, 2), (5_000, 1), (5_000, 2)):
        load = lambda p=people, t=situations: one_taste("lognormal", p, t, of=(-0.3, 0.8, 1.0))  # noqa: E731
        request = {"random": {"z": "lognormal"}, "priors": Priors()}
        yield Case(f"lognormal {people} x {situations}, 1", "few", load, request, "lognormal")
    for people, situations in ((2_000, 2), (5_000, 2), (20_000, 1)):
        load = lambda p=people, t=situations: two_tastes(p, t)  # noqa: E731
        request = {"random": {"z": "lognormal", "w": "normal"}, "priors": Priors()}
        yield Case(f"lognormal {people} x {situations}, 2", "few", load, request)


def families() -> Iterator[Case]:
    for family, of in _ONE_TASTE.items():
        for people in (60, 120, 400):
            load = lambda f=family, p=people, of=of: one_taste(f, p, 6, of=of)  # noqa: E731
            yield Case(f"{family} {people}", "families", load, {"random": {"z": family}, "priors": Priors()}, family)
    request = {"random": {f"r{place}": "normal" for place in range(8)}}
    yield Case("eight normals", "families", eight_normals, request)


def fit(frame: pd.DataFrame, request: dict[str, Any], seed: int) -> tuple[MixedLogit, float]:
    """A default fit and its seconds."""
    est = MixedLogit(**request, method=VI(), random_state=seed)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est.fit(frame)
    return est, time.perf_counter() - began


def all_cases(path: Path | None) -> Iterator[Case]:
    """All cases, with their exact posteriors where these are known."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    chains = json.loads(ELECTRICITY.read_text())["parameters"]
    known["electricity"] = {"parameters": {label: [row["mean"], row["sd"]] for label, row in chains.items()}}
    for case in (*skewed(path), *few_choices(), *families()):
        yield case if case.exact else replace(case, exact=known.get(case.name, {}).get("parameters", {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--swiss-route", type=Path)
    options = parser.parse_args()
    for case in all_cases(options.swiss_route):
        if case.exact or (options.cases and case.name not in options.cases):
            continue
        found = case.solve()
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        write_references(FILE, known | {case.name: found})
        sys.stdout.write(f"{case.name} {rounded(found)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
