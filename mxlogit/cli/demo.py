"""The commands ``mxlogit demo`` and ``mxlogit study``."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from mxlogit.cli.output import say
from mxlogit.datasets import load_electricity
from mxlogit.errors import SpecificationError
from mxlogit.estimator import MixedLogit

# Attributes of the electricity data.
_ATTRIBUTES = ["pf", "cl", "loc", "wk", "tod", "seas"]
# Diagnostics that the demo prints.
_SHOWN = ("status", "log_likelihood", "log_likelihood_error", "elbo", "ess", "ess_min", "pareto_k", "newton_decrement")


def run_demo(picture: str) -> None:
    """Fit the electricity data with six correlated normal tastes, print the results and plot the tastes."""
    # Checked before the fit.
    if not Path(picture).absolute().parent.is_dir():
        raise FileNotFoundError(f"No such file or directory: {Path(picture).parent}; nothing was fitted.")
    frame = load_electricity()
    est = MixedLogit(random=_ATTRIBUTES, situation="chid", alternative="alt", random_state=0)
    say(f"Electricity: {frame['id'].nunique()} decision makers, {frame['chid'].nunique()} choice situations.")
    say("Fitting six correlated normal tastes ...")
    est.fit(frame)
    diagnostics = est.diagnostics_
    say(f"{diagnostics['status']} {diagnostics['seconds']:.1f} s, {diagnostics['passes']:.0f} passes.\n")
    say(est.summary().round(3).to_string())
    say("\nDiagnostics")
    for name in _SHOWN:
        value = diagnostics[name]
        say(f"  {name:22s} {value:.3f}" if isinstance(value, float) else f"  {name:22s} {value}")
    say("\nTastes of three people: posterior mean and 90 % interval")
    say(_three_people(est, frame).to_string())
    say("\nShares of the alternatives")
    observed = frame.loc[frame["choice"], "alt"].value_counts(normalize=True).sort_index()
    shares = pd.DataFrame({"predicted": est.shares(frame), "observed": observed})
    say(shares.round(4).to_string())
    _write_picture(est, picture)


def _three_people(est: MixedLogit, frame: pd.DataFrame) -> pd.DataFrame:
    three = frame[frame["id"].isin(frame["id"].unique()[:3])]
    table = est.individual_coefficients(three, statistic=["mean", 0.05, 0.95])
    rows = {}
    for person in table.index:
        cells = {}
        for name in _ATTRIBUTES:
            mean, low, high = table.loc[person, name]
            cells[name] = f"{mean:.2f} [{low:.2f}, {high:.2f}]"
        rows[person] = cells
    return pd.DataFrame(rows).T.rename_axis("id")


def _write_picture(est: MixedLogit, path: str) -> None:
    from mxlogit.plots import plot_taste_distributions

    try:
        import matplotlib as mpl

        mpl.use("Agg")
        plot_taste_distributions(est)[0].figure.savefig(path, dpi=150)
    except ImportError:
        say("\nNo picture: install matplotlib with pip install 'mxlogit[plots]'.")
        return
    say(f"\nTaste distributions drawn in {path}")


def run_study_command(options: argparse.Namespace) -> None:
    """Run a study, write its results and print means, with published results if there are any."""
    from mxlogit.study import beside_published, run_study, summarise, write_results

    # Checked before the study, which may take hours.
    if not options.out.endswith((".csv", ".parquet")):
        raise SpecificationError(f"--out must end in .csv or .parquet; got {options.out}.")
    for path in (options.out, options.picture or options.out):
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"No such file or directory: {Path(path).parent}; nothing was fitted.")
    table = run_study(
        options.design,
        sizes=[_whole("--sizes", size) for size in options.sizes.split(",")],
        runs=options.runs,
        methods=options.methods.split(","),
        processes=options.processes,
        path=f"{options.out}.runs",
    )
    write_results(table, options.out)
    shown = beside_published(table) if options.design == "published" else summarise(table)
    say(shown.round(4).to_string(na_rep=""))
    for record in table[table["failure"] != ""].to_dict("records"):
        say(f"failed: {record['method']}, {record['people']} people, run {record['run']}: {record['failure']}")
    if options.picture:
        _draw_seconds(table, options.picture, published=options.design == "published")
    say(f"\nResults in {options.out}. An interrupted study, or one with more runs, resumes from {options.out}.runs.")


def _draw_seconds(table: pd.DataFrame, path: str, *, published: bool) -> None:
    from mxlogit.study import plot_seconds

    try:
        import matplotlib as mpl

        mpl.use("Agg")
        plot_seconds(table, published=("MSLE", "Gibbs", "AVI v2-d", "AVI v2-e") * published).figure.savefig(
            path, dpi=150
        )
    except ImportError:
        say("\nNo picture: install matplotlib with pip install 'mxlogit[plots]'.")
        return
    say(f"\nSeconds drawn in {path}")


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SpecificationError(f"{name} must be whole numbers separated by commas; got {text!r}.") from None
