"""References by long chains of the default engine's particle Gibbs, and files that hold them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd

from mxlogit import VI, ConvergenceWarning, MixedLogit
from mxlogit.inference.vi import route, short_chains

# Seed of the chains, which no measured fit has.
_OTHER_SEED = 1_000


def run_long_chains(
    frame: pd.DataFrame, request: dict[str, Any], most: int, enough: float, seconds: float | None = None
) -> dict[str, Any]:
    """Means and standard deviations of the exact posterior, and what the chains say of themselves.

    Parameters
    ----------
    frame : DataFrame
    request : dict
        Arguments of `MixedLogit`.
    most : int
        Most kept iterations of eight chains.
    enough : float
        Effective sample size of the worst parameter that ends them.
    seconds : float, optional
        Time after which they end with what they have.
    """
    plan = replace(short_chains._PARTICLES, most=most, enough=enough, work=1e15)
    # Chains whether people's weights ask for them or not.
    with (
        mock.patch.object(short_chains, "_PARTICLES", plan),
        mock.patch.object(route, "_needs_chains", return_value=True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        method = VI(n_samples=4_000, max_seconds=seconds)
        est = MixedLogit(**request, method=method, random_state=_OTHER_SEED).fit(frame)
    found = {name: est.diagnostics_.get(name) for name in ("rhat", "ess_bulk", "ess_tail")}
    parameters = {label: [row["estimate"], row["std_error"]] for label, row in est.summary().iterrows()}
    return {**found, "parameters": parameters}


def write_references(path: Path, references: Mapping[str, Any]) -> None:
    """Write references, one a line, numbers to five digits."""
    lines = [f"{json.dumps(name)}: {json.dumps(rounded(value))}" for name, value in references.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def rounded(value: Any) -> Any:
    """Numbers, in lists and dictionaries of any depth, to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value
