"""From the result files in this folder to docs/benchmarks/published_study.json, and the picture of run times.

    python tutorials/results/make_tables.py [--check]

Files ``published_<method>.csv`` come from ``mxlogit study published`` (see README.md here); beside each is the machine
that ran it. ``--check`` writes nothing and fails if the tables are not what the files give. Title, introduction and
notes are kept as they are. Then ``python tests/benchmarks/make_page.py`` makes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mxlogit.study import beside_published, summarise

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests" / "benchmarks"))
from measurement import NOT_RECORDED, Measurement, Table, read_measurement, to_json, write_measurement

HERE = Path(__file__).parent
RECORD = HERE.parent.parent / "docs" / "benchmarks" / "published_study.json"
COMMAND = "python tutorials/results/make_tables.py"
PUBLISHED = ("MSLE", "Gibbs", "AVI v2-d", "AVI v2-e")
COVERED = ["covered_coefficient", "covered_sd", "covered_cor"]
LOG_SCORES = ["log_score_same_people", "log_score_new_people"]
ERRORS = ["alpha", "zeta", "omega", "beta_n"]
HELD_OUT = (
    "Shares of 90 % intervals that hold the truth, mean log probabilities of choices in new situations of the same "
    "people, and of people never seen (per choice):"
)


def read_results() -> pd.DataFrame:
    """All fits of the published design."""
    return pd.concat([pd.read_csv(path) for path in sorted(HERE.glob("published_*.csv"))], ignore_index=True)


def read_machines() -> dict[str, dict[str, Any]]:
    """Versions and machine of each result file."""
    return {
        path.name.split(".")[0]: json.loads(path.read_text()) for path in sorted(HERE.glob("published_*.machine.json"))
    }


def describe(machines: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Version, machine, threads and date of the fits, in words, as fields of a measurement."""
    words: dict[str, list[str]] = {"version": [], "machine": [], "threads": []}
    for name, about in machines.items():
        threads = max(1, about["threads"] // about["processes"])
        versions = f"mxlogit {about['mxlogit']}, torch {about['torch']}, Python {about['python']}"
        words["version"].append(f"`{name}`: {versions}")
        fits = f"{about['processes']} {'fits' if about['processes'] > 1 else 'fit'} at a time"
        words["machine"].append(f"`{name}`: {about['cores']} cores ({about['processor']}), {fits}")
        words["threads"].append(f"{threads} a fit (`{name}`)")
    dates = sorted({about.get("date", "") for about in machines.values()})
    date = NOT_RECORDED if not all(dates) else dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return {**{name: "; ".join(parts) for name, parts in words.items()}, "date": date}


def number(value: float, digits: int) -> str:
    """A number without its leading zero; nothing for none."""
    if pd.isna(value):
        return ""
    return re.sub(r"^0\.", ".", f"{value:.{digits}f}")


def error(row: pd.Series, name: str) -> str:
    """An error, its standard error in brackets."""
    digits = 3 if row[name] >= 0.02 else 4
    deviation = row.get(f"{name}_se")
    text = number(row[name], digits)
    return text if not text or pd.isna(deviation) else f"{text} ({number(deviation, digits)})"


def seconds(value: float) -> str:
    """Seconds, to two figures where they are few."""
    return "" if pd.isna(value) else f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def errors_table(table: pd.DataFrame) -> Table:
    """Errors and seconds beside the published ones."""
    rows, last = [], None
    for (people, method), row in beside_published(table, PUBLISHED).iterrows():
        size = "" if people == last else f"{people:,}"
        runs = "" if pd.isna(row["runs"]) else f"{row['runs']:.0f}"
        rows.append([size, method, runs, seconds(row["seconds"]), *(error(row, f"rmse_{name}") for name in ERRORS)])
        last = people
    columns = ["N", "", "runs", "seconds", "alpha", "zeta", "Omega", "beta_n"]
    return Table("errors", columns, rows, "Errors and seconds:")


def coverage_table(table: pd.DataFrame) -> Table:
    """Shares of 90 % intervals that hold the truth, and log probabilities of what was not seen."""
    rows, last = [], None
    for (people, method), row in summarise(table).sort_index(level=0, sort_remaining=False).iterrows():
        size = "" if people == last else f"{people:,}"
        covered = [f"{number(row[name], 2)} ({number(row[f'{name}_se'], 2)})" for name in COVERED]
        rows.append([size, method, *covered, *(number(row[name], 3) for name in LOG_SCORES)])
        last = people
    columns = ["N", "", "coefficients", "standard deviations", "correlations", "new situations", "new people"]
    return Table("coverage", columns, rows, HELD_OUT)


def make_record(former: Measurement) -> Measurement:
    """A measurement with the tables of the result files, and the texts of the former one."""
    table = read_results()
    fields = describe(read_machines())
    return replace(former, command=[COMMAND], tables=[errors_table(table), coverage_table(table)], **fields)


def draw_seconds(table: pd.DataFrame, path: Path) -> None:
    """The picture of run times."""
    import matplotlib as mpl

    from mxlogit.study import plot_seconds

    mpl.use("Agg")
    plot_seconds(table, published=PUBLISHED).figure.savefig(path, dpi=150)


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    record = make_record(read_measurement(RECORD))
    if options.check:
        same = RECORD.read_text(encoding="utf-8") == to_json(record)
        sys.stdout.write("as the files give\n" if same else f"{RECORD.name} differs from the result files\n")
        return int(not same)
    write_measurement(RECORD, record)
    draw_seconds(read_results(), HERE / "published_seconds.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
