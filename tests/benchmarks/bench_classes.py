"""Populations of classes: latent class models and mixtures of normals.

    python tests/benchmarks/bench_classes.py [swissmetro] [panels] [calibration] [time] [number] [route] [--count 100]
        [--processes 2] [--threads 2] [--tuna PATH] [--swiss-route PATH] [--json docs/benchmarks/classes.json]

``swissmetro``: models of biogeme's examples; ``panels``: leave-one-person-out of spread and segments on electricity, and
on tuna, a file of R's Ecdat (Tuna, in pydataset); ``calibration``: bias and coverage of classes over simulated data
sets; ``time``: seconds beside the plain model; ``number``: numbers of classes found in ten simulated data sets, by
log_evidence and by leave-one-person-out; ``route``: latent classes of the route choices of R's apollo package
(apollo_swissRouteChoiceData as CSV), whose licence does not allow to ship them here.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measurement import Table
from recording import record_results, table_of
from scipy import stats

from mxlogit import ConvergenceWarning, MixedLogit, Mixture, compare_models, datasets, wide_to_long
from mxlogit.simulate import simulate_choices

PARTS = ("swissmetro", "panels", "calibration", "time", "number", "route")
LEVELS = (0.5, 0.9, 0.95)
# Published log likelihoods of latent classes of the route choices, by their number.
_ROUTE = {2: -1552.534, 3: -1490.216, 4: -1449.524, 5: -1431.005}
# Tastes (x, y) and shares of well separated classes.
_CLASSES = {2: ([(1.5, -1.0), (-1.5, -2.0)], [0.6, 0.4]), 3: ([(1.5, -1.0), (-1.5, -2.0), (0.0, 2.0)], [0.5, 0.3, 0.2])}
_PEOPLE, _SITUATIONS, _ALTERNATIVES = 400, 8, 3
# Timed fits: attributes' means and standard deviations, models, and repetitions by number of people.
_TIMED = {"z": (0.7, 0.9), "w": (-0.5, 0.6), "v": (0.3, 0.5)}
_TIMED_MODELS = {
    "plain": None,
    "2 latent classes": Mixture(2, 0),
    "3 latent classes": Mixture(3, 0),
    "2 normals": Mixture(2),
}
_REPEATS = {2_000: 3, 50_000: 1}
# Planted numbers of classes, one a data set, and the numbers that are fitted (one class is no Mixture).
_PLANTED, _FITTED = (2, 3, 4, 2, 3, 4, 2, 3, 4, 2), (2, 3, 4, 5)
# Planted classes: standard deviation of tastes, their least distance, and the least share.
_TASTE, _APART, _LEAST_SHARE = 1.5, 2.0, 0.15


def fit_row(name: str, frame: pd.DataFrame, published: float = np.nan, **settings: Any) -> dict[str, Any]:
    """One fit: its log likelihood beside a published one, leave-one-person-out and seconds."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(random_state=0, **settings).fit(frame)
        seconds = time.perf_counter() - start
        posterior = est.result_.samples.kind == "posterior"
        density = est.loo() if posterior else None
    row = {"model": name, "parameters": len(est.coef_), "log likelihood": est.log_likelihood_}
    row |= {"its error": est.log_likelihood_error_, "published": published}
    row |= {"loo": density.elpd if density else np.nan, "loo error": density.elpd_error if density else np.nan}
    row |= {"trusted": bool(est.diagnostics_.get("trusted", False)), "seconds": seconds}
    sys.stdout.write(f"{row}\n")
    sys.stdout.flush()
    return row


def fit_swissmetro(options: argparse.Namespace) -> pd.DataFrame:
    """A two-point mixture of the cross-section, and two classes of the panel, one of which ignores time."""
    torch.set_num_threads(options.threads)
    frame = datasets.load_swissmetro()
    for name, label in (("train", "TRAIN"), ("car", "CAR")):
        frame[name] = (frame["alternative"] == label).astype(float)
    each = frame.assign(id=frame["id"].astype(str) + "." + frame["situation"].astype(str))
    ignoring = {2: ["time"]}
    points = {"fixed": ["cost", "car", "train"], "random": ["time"], "availability": "available"}
    panel = {"fixed": ["cost"], "random": ["time", "car", "train"], "availability": "available"}
    classes = Mixture(classes=2, ignored=ignoring, membership=["INCOME"])
    fits = [
        ("time at two points, one zero (cross-section)", each, -5208.498030, {
            **points, "mixing": Mixture(classes=2, spread=0, ignored=ignoring), "method": "msle"}),
        ("two classes, one ignores time (panel)", frame, -3524.885837, {**panel, "mixing": classes}),
        ("three latent classes (panel)", frame, np.nan, {
            "random": ["cost", *panel["random"]], "availability": "available", "mixing": Mixture(classes=3, spread=0)}),
    ]  # fmt: skip
    return pd.DataFrame([fit_row(name, data, known, **settings) for name, data, known, settings in fits])


def compare_panels(options: argparse.Namespace) -> pd.DataFrame:
    """Spread or segments, by leave-one-person-out."""
    torch.set_num_threads(options.threads)
    rows = []
    power = {"random": ["pf", "cl", "loc", "wk", "tod", "seas"], "situation": "chid", "alternative": "alt"}
    sources = {"electricity": (datasets.load_electricity(), power)}
    if options.tuna is not None:
        wide = pd.read_csv(options.tuna)
        brands = [name.removeprefix("price.") for name in wide if name.startswith("price.")]
        wide = wide.assign(occasion=np.arange(len(wide)))
        prices = {"price": {brand: f"price.{brand}" for brand in brands}}
        tuna = wide_to_long(wide, prices, choice="choice", decision_maker="hid", situation="occasion")
        columns = ["price", *(f"asc.{brand}" for brand in sorted(brands)[1:])]
        settings = {"random": columns, "constants": True, "decision_maker": "hid"}
        sources["tuna"] = (tuna, settings)
    for data, (frame, settings) in sources.items():
        models = {"correlated normals": {}} | {f"{c} classes": {"mixing": Mixture(c, 0)} for c in (2, 3, 4)}
        models |= {"mixture of two normals": {"mixing": Mixture(2)}} if data == "electricity" else {}
        rows += [fit_row(f"{data}: {name}", frame, **settings, **more) for name, more in models.items()]
    return pd.DataFrame(rows)


def simulate_classes(count: int, seed: int, people: int = _PEOPLE) -> pd.DataFrame:
    """Choices of people in well separated classes."""
    rng, (tastes, shares) = np.random.default_rng([seed, count]), _CLASSES[count]
    frame = simulate_members(rng, np.array(tastes), np.array(shares), people, _SITUATIONS)
    return frame.rename(columns={"x0": "x", "x1": "y"})


def simulate_members(
    rng: np.random.Generator, tastes: np.ndarray, shares: np.ndarray, people: int, situations: int
) -> pd.DataFrame:
    """Choices of members of classes with tastes (classes, attributes) and shares (classes,)."""
    member = rng.choice(len(shares), size=people, p=shares)
    x = rng.normal(size=(people, situations, _ALTERNATIVES, tastes.shape[1]))
    utility = (x * tastes[member][:, None, None]).sum(-1) + rng.gumbel(size=x.shape[:3])
    n, t, j = np.indices(x.shape[:3]).reshape(3, -1)
    frame = pd.DataFrame({"id": n, "situation": t, "alternative": j, "choice": j == utility.argmax(-1)[n, t]})
    return frame.assign(**{f"x{i}": x[..., i].ravel() for i in range(tastes.shape[1])})


def replicate(job: tuple[int, int]) -> pd.DataFrame:
    """Estimate, truth and intervals of every coefficient and share in one simulated data set."""
    count, number = job
    torch.set_num_threads(1)
    tastes, shares = _CLASSES[count]
    truth = {f"class{c + 1}.{name}": tastes[c][i] for c in range(count) for i, name in enumerate("xy")}
    truth |= {f"class{c + 1}.share": shares[c] for c in range(count)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(random=["x", "y"], mixing=Mixture(count, 0), random_state=number)
        est.fit(simulate_classes(count, number))
    table = est.summary().loc[list(truth), ["estimate", "std_error"]].assign(truth=pd.Series(truth), classes=count)
    for level in LEVELS:
        limits = est.summary(level).loc[list(truth)]
        table[str(level)] = (limits["lower"] <= table["truth"]) & (table["truth"] <= limits["upper"])
    return table


def calibrate(options: argparse.Namespace) -> pd.DataFrame:
    """Bias in standard errors of its own, and coverage beside binomial 95 % bands, of every coefficient and share."""
    jobs = [(count, number) for count in _CLASSES for number in range(options.count)]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        found = pd.concat(list(pool.map(replicate, jobs)))
    rows = []
    for (count, label), table in found.groupby(["classes", found.index], sort=False):
        error = table["estimate"] - table["truth"]
        row = {"classes": count, "parameter": label, "truth": float(table["truth"].iloc[0])}
        row |= {"bias": float(error.mean()), "in standard errors": float(error.mean() / error.sem())}
        row |= {"sd of estimates": float(error.std()), "mean std_error": float(table["std_error"].mean())}
        for level in LEVELS:
            low, high = stats.binom.ppf([0.025, 0.975], len(table), level) / len(table)
            share = float(table[str(level)].mean())
            row |= {f"{level:.0%}": share, f"inside {level:.0%}": bool(low <= share <= high)}
        rows.append(row)
    return pd.DataFrame(rows)


def measure_seconds(options: argparse.Namespace) -> pd.DataFrame:
    """Median seconds of fits of the plain model and of classes, in turn, and their ratios per class."""
    torch.set_num_threads(options.threads)
    rows = []
    for people, repeats in _REPEATS.items():
        frame = simulate_two_normals(people)
        runs = pd.DataFrame([time_fit(frame, name) for _ in range(repeats) for name in _TIMED_MODELS])
        found = runs.groupby("model", sort=False).agg({"seconds": "median", "trusted": "all"}).reset_index()
        plain = found["seconds"].iloc[0]
        per_class = [
            found["seconds"][i] / plain / (m.classes if m else 1) for i, m in enumerate(_TIMED_MODELS.values())
        ]
        found.insert(0, "people", people)
        rows.append(found.assign(repeats=repeats).assign(**{"times plain, per class": per_class}))
    return pd.concat(rows)


def simulate_two_normals(people: int) -> pd.DataFrame:
    """Choices of people of whom half have the opposite mean of one taste."""
    frame, _ = simulate_choices(people, 10, 4, random=_TIMED, random_state=1)
    return frame.assign(z=np.where(frame["id"] % 2 == 0, -frame["z"], frame["z"]))


def time_fit(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    """Seconds of one fit."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = MixedLogit(random=list(_TIMED), random_state=0, mixing=_TIMED_MODELS[name]).fit(frame)
    row = {"model": name, "seconds": time.perf_counter() - start, "trusted": bool(est.diagnostics_["trusted"])}
    sys.stdout.write(f"{row}\n")
    sys.stdout.flush()
    return row


def plant(number: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One of the data sets whose number of classes is to be found, and its design."""
    rng, count = np.random.default_rng([number, 7]), _PLANTED[number]
    people, situations = int(rng.integers(400, 801)), int(rng.integers(6, 11))
    tastes, shares = plant_classes(rng, count)
    frame = simulate_members(rng, tastes, shares, people, situations)
    apart = min(np.linalg.norm(tastes[i] - tastes[j]) for i in range(count) for j in range(i))
    design = {"data set": number + 1, "planted": count, "people": people, "situations": situations}
    return frame, design | {"least distance": float(apart), "least share": float(shares.min())}


def plant_classes(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tastes (classes, 3) and shares of classes, drawn until they are well apart and none is small."""
    while True:
        tastes, shares = _TASTE * rng.normal(size=(count, 3)), rng.dirichlet(np.ones(count))
        apart = np.linalg.norm(tastes[:, None] - tastes, axis=-1) + _APART * np.eye(count)
        if apart.min() >= _APART and shares.min() >= _LEAST_SHARE:
            return tastes, shares


def count_classes(number: int) -> pd.DataFrame:
    """Fits of all numbers of classes to one planted data set, a row each."""
    torch.set_num_threads(1)
    frame, design = plant(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = {c: MixedLogit(random=["x0", "x1", "x2"], mixing=Mixture(c, 0), random_state=number) for c in _FITTED}
        table = compare_models({str(c): model.fit(frame) for c, model in models.items()})
    kept = ["log_evidence", "elpd", "elpd_difference", "difference_error", "bic", "trusted", "seconds"]
    table = table.rename(index=int).sort_index()[kept].rename_axis("classes").reset_index()
    table.insert(1, "rung", [models[c].diagnostics_["rung"] for c in table["classes"]])
    sys.stdout.write(f"{design}\n{table.to_string()}\n")
    sys.stdout.flush()
    return pd.DataFrame([design] * len(table)).join(table)


def find_numbers(options: argparse.Namespace) -> pd.DataFrame:
    """Fits of two to five classes to data sets with two to four planted ones."""
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        return pd.concat(list(pool.map(count_classes, range(len(_PLANTED)))))


def choose_number(fits: pd.DataFrame) -> dict[str, Any]:
    """Numbers of classes that rules choose among the fits to one data set."""
    by_number = fits.set_index("classes")
    evidence = by_number["log_evidence"]
    near = by_number["elpd_difference"] + by_number["difference_error"] >= 0.0
    row = fits.iloc[0][["data set", "planted", "people", "situations", "least distance", "least share"]].to_dict()
    row |= {"by log_evidence": evidence.idxmax(), "nats above next": evidence.max() - evidence.nlargest(2).min()}
    row |= {"by leave-one-out": by_number["elpd"].idxmax(), "smallest within its error": near.idxmax()}
    return row | {"by BIC": by_number["bic"].idxmin(), "seconds of all fits": by_number["seconds"].sum()}


def tables_of_numbers(fits: pd.DataFrame) -> list[Table]:
    """Table of the numbers that are chosen, its last row of how many are the planted ones, and one of all fits."""
    chosen = pd.DataFrame([choose_number(some) for _, some in fits.groupby("data set")])
    rules = ["by log_evidence", "by leave-one-out", "smallest within its error", "by BIC"]
    right = pd.DataFrame([{"rule": rule, "right": (chosen[rule] == chosen["planted"]).sum()} for rule in rules])
    right["data sets"] = len(chosen)
    right["too many"] = [(chosen[rule] > chosen["planted"]).sum() for rule in rules]
    return [
        table_of("number of classes, rules", right),
        table_of("number of classes, data sets", chosen, {"nats above next": ".2f"}),
        table_of("number of classes, fits", fits, {"elpd": ".2f", "bic": ".2f"}, shown=False),
    ]


def climb_route(options: argparse.Namespace) -> pd.DataFrame:
    """Latent classes of route choices by maximum likelihood, and their posteriors' leave-one-person-out."""
    torch.set_num_threads(options.threads)
    wide = pd.read_csv(options.swiss_route)
    wide = wide.assign(occasion=wide.groupby("ID").cumcount())
    columns = ["tt", "tc", "hw", "ch"]
    sources = {name: {1: f"{name}1", 2: f"{name}2"} for name in columns}
    frame = wide_to_long(wide, sources, choice="choice", decision_maker="ID", situation="occasion")
    settings = {"random": columns, "decision_maker": "ID"}
    rows = []
    for count, published in _ROUTE.items():
        mixing = Mixture(count, 0)
        row = fit_row(f"{count} classes", frame, published, mixing=mixing, method="msle", **settings)
        posterior = fit_row(f"{count} classes, posterior", frame, mixing=mixing, **settings)
        rows.append({**row, **{name: posterior[name] for name in ("loo", "loo error")}})
    rows.append(fit_row("correlated normals", frame, **settings))
    lognormal = dict.fromkeys(columns, "negative_lognormal")
    rows.append(fit_row("correlated negative lognormals", frame, **{**settings, "random": lognormal}))
    return pd.DataFrame(rows)


_MEASURES = {
    "swissmetro": fit_swissmetro,
    "panels": compare_panels,
    "calibration": calibrate,
    "time": measure_seconds,
    "number": find_numbers,
    "route": climb_route,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="threads of timed fits")
    parser.add_argument("--tuna", type=Path, help="Tuna of R's Ecdat, as CSV")
    parser.add_argument("--swiss-route", type=Path, help="apollo_swissRouteChoiceData of R's apollo, as CSV")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = options.parts or [part for part in PARTS if part != "route" or options.swiss_route is not None]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown parts {unknown}; known: {', '.join(PARTS)}")
    if "route" in parts and options.swiss_route is None:
        parser.error("route needs --swiss-route PATH")
    tables: list[Table] = []
    for part in parts:
        found = _MEASURES[part](options)
        tables += tables_of_numbers(found) if part == "number" else [table_of(part, found)]
    for table in tables:
        sys.stdout.write(f"\n{table.name}\n{pd.DataFrame(table.rows, columns=table.columns).to_string()}\n")
    if options.json is not None:
        record_results(options.json, "Classes", tables, threads=options.threads)


if __name__ == "__main__":
    main()
