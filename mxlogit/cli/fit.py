"""The command ``mxlogit fit``: data and a configuration in, a folder of tables, pictures, report and model out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mxlogit.cli.config import Config, read_config
from mxlogit.cli.data import read_data
from mxlogit.cli.output import say, write_table
from mxlogit.errors import ConvergenceWarning, MissingExtraError, SpecificationError
from mxlogit.estimator import MixedLogit

# Exit status of a fit whose results were written but are not to be relied on.
NOT_TRUSTED = 3


def run_fit(path: str) -> int:
    """Fit a model and answer the questions of a configuration; return the exit status."""
    config = read_config(path)
    frame = read_data(config.file)
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as trouble:
        raise SpecificationError(f"the folder of the results cannot be made: {trouble}.") from None
    say(f"{config.file.name}: {len(frame):,} rows. Fitting ...")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        est = config.estimator.fit(frame)
    _tell_diagnostics(est, [str(warning.message) for warning in caught])
    _write_tables(est, config.folder)
    for name, answer in _questions(est, frame, config.questions).items():
        write_table(answer(), config.folder / f"{name}.csv", name.replace("_", " "))
    _write_rest(est, frame, config)
    say(f"\nResults in {config.folder}")
    good = est.diagnostics_["converged"] and est.diagnostics_.get("trusted", True)
    return 0 if good else NOT_TRUSTED


def _tell_diagnostics(est: MixedLogit, sentences: list[str]) -> None:
    found = est.diagnostics_
    say(f"{found['status']} {found['seconds']:.1f} s.")
    if "trust" in found:
        say(str(found["trust"]))
    for sentence in dict.fromkeys(sentences):
        say(f"Warning: {sentence}")


def _write_tables(est: MixedLogit, folder: Path) -> None:
    write_table(est.summary(), folder / "summary.csv", "estimates")
    if est._state().model.varying:
        with warnings.catch_warnings():
            # Medians instead of means of heavy tails are in the report.
            warnings.simplefilter("ignore", ConvergenceWarning)
            write_table(est.taste_distribution(), folder / "tastes.csv")
        write_table(est.individual_coefficients(), folder / "people.csv")
    facts = {name: _plain(value) for name, value in est.diagnostics_.items()}
    (folder / "diagnostics.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _plain(value: object) -> Any:
    """A value that JSON has a form for; None for numbers that are none."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _questions(est: MixedLogit, frame: pd.DataFrame, asked: dict[str, Any]) -> dict[str, Callable[[], pd.DataFrame]]:
    """Names and functions of the answers that a configuration asks for."""
    interval = asked.get("interval", 0.95)
    found = dict[str, Callable[[], pd.DataFrame]]()
    for pair in asked.get("wtp", []):
        name = f"wtp_{pair['attribute']}_{pair['cost']}"
        found[name] = partial(est.wtp, pair["attribute"], pair["cost"], interval=interval)
    for column in asked.get("elasticities", []):
        found[f"elasticities_{column}"] = partial(est.elasticities, frame, column, interval=interval)
    for column in asked.get("marginal_effects", []):
        found[f"marginal_effects_{column}"] = partial(est.marginal_effects, frame, column, interval=interval)
    if asked.get("shares"):
        found["shares"] = partial(est.shares, frame, interval=interval)
    if asked.get("diversion"):
        found["diversion"] = partial(est.diversion, frame, interval=interval)
    return found


def _write_rest(est: MixedLogit, frame: pd.DataFrame, config: Config) -> None:
    """The saved model, pictures and the report, as far as they are asked for and can be made."""
    if config.output.get("model", True):
        est.save(config.folder / "model")
    pairs = [(pair["attribute"], pair["cost"]) for pair in config.questions.get("wtp", [])]
    columns = config.questions.get("elasticities", [])
    try:
        if config.output.get("pictures", True) and est.result_.center.location.numel():
            import matplotlib as mpl

            from mxlogit.plots import plot_taste_distributions

            mpl.use("Agg")
            plot_taste_distributions(est)[0].figure.savefig(config.folder / "tastes.png", dpi=150)
        if config.output.get("report", True):
            est.report(config.folder / "report.html", X=frame, wtp=pairs, elasticities=columns)
    except (ImportError, MissingExtraError) as trouble:
        say(f"No pictures: {trouble}")
