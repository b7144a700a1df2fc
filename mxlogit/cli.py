"""Command line interface: the command ``mxlogit``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mxlogit.datasets import load_electricity
from mxlogit.errors import MxlogitError, SpecificationError
from mxlogit.estimator import MixedLogit

# Attributes of the electricity data.
_ATTRIBUTES = ["pf", "cl", "loc", "wk", "tod", "seas"]
# Diagnostics that the demo prints.
_SHOWN = ("status", "log_likelihood", "log_likelihood_error", "elbo", "ess", "ess_min", "pareto_k", "newton_decrement")


def _print(text: object = "") -> None:
    sys.stdout.write(f"{text}\n")


def run_demo(picture: str) -> None:
    """Fit the electricity data with six correlated normal tastes, print the results and plot the tastes."""
    # Checked before the fit.
    if not Path(picture).absolute().parent.is_dir():
        raise FileNotFoundError(f"No such file or directory: {Path(picture).parent}; nothing was fitted.")
    frame = load_electricity()
    est = MixedLogit(random=_ATTRIBUTES, situation="chid", alternative="alt", random_state=0)
    _print(f"Electricity: {frame['id'].nunique()} decision makers, {frame['chid'].nunique()} choice situations.")
    _print("Fitting six correlated normal tastes ...")
    est.fit(frame)
    diagnostics = est.diagnostics_
    _print(f"{diagnostics['status']} {diagnostics['seconds']:.1f} s, {diagnostics['passes']:.0f} passes.\n")
    _print(est.summary().round(3).to_string())
    _print("\nDiagnostics")
    for name in _SHOWN:
        value = diagnostics[name]
        _print(f"  {name:22s} {value:.3f}" if isinstance(value, float) else f"  {name:22s} {value}")
    _print("\nTastes of three people: posterior mean and 90 % interval")
    _print(_three_people(est, frame).to_string())
    _print("\nShares of the alternatives")
    observed = frame.loc[frame["choice"], "alt"].value_counts(normalize=True).sort_index()
    shares = pd.DataFrame({"predicted": est.shares(frame), "observed": observed})
    _print(shares.round(4).to_string())
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
    from mxlogit.postestimation.plots import plot_taste_distributions

    try:
        import matplotlib as mpl

        mpl.use("Agg")
        plot_taste_distributions(est)[0].figure.savefig(path, dpi=150)
    except ImportError:
        _print("\nNo picture: install matplotlib with pip install 'mxlogit[plots]'.")
        return
    _print(f"\nTaste distributions drawn in {path}")


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
    _print(shown.round(4).to_string(na_rep=""))
    for record in table[table["failure"] != ""].to_dict("records"):
        _print(f"failed: {record['method']}, {record['people']} people, run {record['run']}: {record['failure']}")
    if options.picture:
        _draw_seconds(table, options.picture, published=options.design == "published")
    _print(f"\nResults in {options.out}. An interrupted study, or one with more runs, resumes from {options.out}.runs.")


def _draw_seconds(table: pd.DataFrame, path: str, *, published: bool) -> None:
    from mxlogit.study import plot_seconds

    try:
        import matplotlib as mpl

        mpl.use("Agg")
        plot_seconds(table, published=("MSLE", "Gibbs", "AVI v2-d", "AVI v2-e") * published).figure.savefig(
            path, dpi=150
        )
    except ImportError:
        _print("\nNo picture: install matplotlib with pip install 'mxlogit[plots]'.")
        return
    _print(f"\nSeconds drawn in {path}")


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SpecificationError(f"{name} must be whole numbers separated by commas; got {text!r}.") from None


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mxlogit", description="Bayesian mixed logit choice models.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="fit the electricity panel and show the results")
    demo.add_argument("--picture", default="mxlogit-demo.png", help="file of the plot")
    study = commands.add_parser("study", help="fit simulated data with known parameters, as in published studies")
    study.add_argument("design", help="published, lognormal, short, unbalanced, many_alternatives, ...")
    study.add_argument("--sizes", default="500,2000", help="numbers of decision makers, separated by commas")
    study.add_argument("--runs", type=int, default=30, help="data sets per size")
    study.add_argument(
        "--methods", default="vi", help="vi, vi_uncorrected, amortized, rodrigues2022, msle, mcmc, xlogit"
    )
    study.add_argument("--processes", type=int, default=1, help="fits in parallel")
    study.add_argument("--picture", help="file of a plot of seconds against decision makers")
    study.add_argument("--out", default="study.csv", help="file of the results (.csv or .parquet)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _make_parser().parse_args(arguments)
    try:
        if options.command == "demo":
            run_demo(options.picture)
        else:
            run_study_command(options)
    except (MxlogitError, OSError) as error:
        sys.stderr.write(f"mxlogit: {error}\n")
        return 1
    return 0
