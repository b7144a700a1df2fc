"""The command ``mxlogit init``: a commented configuration from the columns of a data file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from mxlogit.cli.data import read_data
from mxlogit.cli.output import say
from mxlogit.errors import SpecificationError

# Usual names of columns, in lower case, by role.
_USUAL = {
    "decision_maker": ("id", "person", "respondent", "individual", "decision_maker", "pid", "household", "hid"),
    "situation": ("situation", "chid", "choice_situation", "task", "obs", "obsid", "occasion", "choiceid", "case"),
    "alternative": ("alternative", "alt", "mode", "option", "brand"),
    "choice": ("choice", "chosen", "choose", "y", "selected"),
    "availability": ("available", "availability", "avail", "av"),
    "weights": ("weight", "weights", "w"),
}
_NEEDED = ("decision_maker", "situation", "alternative", "choice")
_TEXT = """# mxlogit fit {name}
#
# {rows} rows, {columns} columns: {listed}
# Lines that begin with # are not read. Text is in quotes.

[data]
file = {file}
{roles}

[model]
# One coefficient for all people:
fixed = {fixed}
# Coefficients that vary over people, with their distributions: "normal", "lognormal" (positive), "negative_lognormal"
# (negative, as for a cost), "truncated_normal", "censored_normal", "uniform", "triangular", "johnson_sb" (0 to 1).
random = {random}
correlated = true
# A constant for every alternative but one:
constants = false
# Amounts of money instead of utils, in units of this column:
# scale = "price"
# Covariates of people on which means of tastes depend:
# mean_shifters = {{price = ["income"]}}
# mixing = {{classes = 3, spread = 0, membership = ["income"]}}

[engine]
# "vi" (Bayesian, in seconds), "mcmc" (chains), "msle" (maximum simulated likelihood), "svi"
method = "vi"
random_state = 0

[questions]
# wtp = [{{attribute = "time", cost = "price"}}]
# elasticities = ["price"]
# marginal_effects = ["price"]
shares = true
interval = 0.95

[output]
folder = "results"
"""


def run_init(data: str, out: str) -> int:
    """Write a configuration for a data file in long format."""
    path = Path(out)
    if path.exists():
        raise SpecificationError(f"{out!r} is there already; give another name with --out.")
    if not path.absolute().parent.is_dir():
        raise SpecificationError(f"there is no folder {str(path.parent)!r}.")
    frame = read_data(data)
    roles = find_roles(frame)
    attributes = [name for name in frame if name not in roles.values() and _is_attribute(frame, str(name), roles)]
    path.write_text(
        _TEXT.format(
            name=path.name,
            rows=f"{len(frame):,}",
            columns=frame.shape[1],
            listed=", ".join(map(str, frame.columns[:12])) + (", ..." if frame.shape[1] > 12 else ""),
            file=_quoted(os.path.relpath(data, path.absolute().parent)),
            roles="\n".join(_role_line(role, roles) for role in _USUAL),
            fixed=_quoted([str(name) for name in attributes]),
            random="[]",
        ),
        encoding="utf-8",
    )
    missing = [role for role in _NEEDED if role not in roles]
    say(f"Written to {out}." + (f" Fill in {missing}; then:" if missing else " Edit the model; then:"))
    say(f"  mxlogit fit {out}")
    return 0


def find_roles(frame: pd.DataFrame) -> dict[str, str]:
    """Columns by role, as far as their names tell."""
    lower = {str(name).lower(): str(name) for name in frame}
    found = {}
    for role, names in _USUAL.items():
        match = next((lower[name] for name in names if name in lower), None)
        if match is not None:
            found[role] = match
    return found


def _is_attribute(frame: pd.DataFrame, name: str, roles: dict[str, str]) -> bool:
    """Whether a column is a number that varies within choice situations."""
    if not (is_numeric_dtype(frame[name]) or is_bool_dtype(frame[name])):
        return False
    keys = [roles[role] for role in ("decision_maker", "situation") if role in roles]
    if len(keys) < 2:
        return True
    return bool((frame.groupby(keys)[name].nunique() > 1).any())


def _role_line(role: str, roles: dict[str, str]) -> str:
    if role in roles:
        return f"{role} = {_quoted(roles[role])}"
    return f'{role} = "?"  # no column has a usual name' if role in _NEEDED else f'# {role} = "..."'


def _quoted(value: object) -> str:
    """Form of a text, or a list of texts, that TOML and JSON share."""
    return json.dumps(value, ensure_ascii=False)
