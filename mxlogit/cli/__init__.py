"""Command line interface: the command ``mxlogit``.

Exit status: 0, or 1 for a mistake of the user (one sentence on standard error), 2 for unknown options, 3 for a fit
whose results are written but that did not converge or is not trusted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mxlogit.cli.answers import run_compare, run_predict, run_wtp
from mxlogit.cli.demo import run_demo, run_study_command
from mxlogit.cli.fit import run_fit
from mxlogit.cli.init import run_init
from mxlogit.errors import MxlogitError


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mxlogit", description="Bayesian mixed logit choice models.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="fit the electricity panel and show the results")
    demo.add_argument("--picture", default="mxlogit-demo.png", help="file of the plot")
    init = commands.add_parser("init", help="write a commented configuration from the columns of a data file")
    init.add_argument("data", help="long table: .csv, .csv.gz, .tsv or .parquet")
    init.add_argument("--out", default="config.toml", help="file of the configuration")
    fit = commands.add_parser("fit", help="fit a model and answer questions, as a configuration says")
    fit.add_argument("config", help="file in TOML format, as `mxlogit init` writes it")
    _add_answers(commands)
    _add_study(commands)
    return parser


def _add_answers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that ask saved models."""
    predict = commands.add_parser("predict", help="predict probabilities by a saved model")
    predict.add_argument("model", help="folder of a saved model")
    predict.add_argument("data", help="long table of choice situations")
    predict.add_argument("--tastes", default="population", help="population, or individual for people of the fit")
    predict.add_argument("--history", help="table of earlier choices of the people")
    predict.add_argument("--interval", type=float, help="probability of intervals, such as 0.9")
    predict.add_argument("--out", help="file of the result (.csv); printed without")
    wtp = commands.add_parser("wtp", help="print a willingness to pay by a saved model")
    wtp.add_argument("model", help="folder of a saved model")
    wtp.add_argument("attribute", help="column of the attribute")
    wtp.add_argument("cost", help="column of the cost")
    wtp.add_argument("--interval", type=float, default=0.95, help="probability of intervals")
    wtp.add_argument("--out", help="file of the result (.csv)")
    compare = commands.add_parser("compare", help="compare saved models of the same choices")
    compare.add_argument("models", nargs="+", help="folders of saved models")
    compare.add_argument("--out", help="file of the result (.csv)")


def _add_study(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command of simulation studies."""
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


def _run(options: argparse.Namespace) -> int:
    if options.command == "fit":
        return run_fit(options.config)
    if options.command == "init":
        return run_init(options.data, options.out)
    if options.command in ("predict", "wtp", "compare"):
        return {"predict": run_predict, "wtp": run_wtp, "compare": run_compare}[options.command](options)
    if options.command == "demo":
        run_demo(options.picture)
    else:
        run_study_command(options)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _make_parser().parse_args(arguments)
    try:
        return _run(options)
    except (MxlogitError, OSError) as error:
        sys.stderr.write(f"mxlogit: {error}\n")
        return 1
