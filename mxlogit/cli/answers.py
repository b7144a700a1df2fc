"""The commands ``mxlogit predict``, ``wtp`` and ``compare``, which ask saved models."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from mxlogit.cli.data import read_data
from mxlogit.cli.output import say
from mxlogit.errors import SpecificationError
from mxlogit.estimator import MixedLogit


def run_predict(options: argparse.Namespace) -> int:
    """Write the rows of a data file with their predicted probabilities."""
    _check_place(options.out)
    est, frame = MixedLogit.load(options.model), read_data(options.data)
    history = None if options.history is None else read_data(options.history)
    found = est.predict_proba(frame, options.tastes, interval=options.interval, history=history)
    names = {"estimate": "probability"}
    table = found.to_frame() if isinstance(found, pd.Series) else found.rename(columns=names)
    whole = pd.concat([frame, table.add_prefix("predicted_") if set(table) & set(frame) else table], axis=1)
    if options.out is None:
        say(whole.to_string(max_rows=20))
        return 0
    whole.to_csv(options.out, index=False)
    say(f"{len(whole):,} rows in {options.out}")
    return 0


def run_wtp(options: argparse.Namespace) -> int:
    """Print a willingness to pay of a saved model."""
    _check_place(options.out)
    found = MixedLogit.load(options.model).wtp(options.attribute, options.cost, interval=options.interval)
    say(found.attrs["verdict"])
    say(found.round(4).to_string())
    if options.out is not None:
        found.to_csv(options.out)
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Print a comparison of saved models."""
    from mxlogit.postestimation.model_selection import compare_models

    _check_place(options.out)
    names = [Path(model).parent.name if Path(model).name == "model" else Path(model).name for model in options.models]
    if len(set(names)) < len(names):
        names = list(options.models)
    if len(set(names)) < len(names):
        raise SpecificationError("a model is given twice.")
    found = compare_models({name: MixedLogit.load(m) for name, m in zip(names, options.models, strict=True)})
    say(found.round(3).T.to_string())
    if options.out is not None:
        found.to_csv(options.out)
    return 0


def _check_place(out: str | None) -> None:
    """Check the place of a file before the work."""
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise SpecificationError(f"there is no folder {str(Path(out).parent)!r} for {Path(out).name!r}.")
