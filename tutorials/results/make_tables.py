"""From the result files in this folder to the tables of docs/benchmarks.md, and the picture of run times.

    python tutorials/results/make_tables.py [--check]

Files ``published_<method>.csv`` come from ``mxlogit study published`` (see README.md here); beside each is the machine
that ran it. ``--check`` writes nothing and fails if a table in docs/benchmarks.md is not what the files give.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import pandas as pd

from mxlogit.study import beside_published, summarise

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "benchmarks.md"
PUBLISHED = ("MSLE", "Gibbs", "AVI v2-d", "AVI v2-e")
COVERED = ["covered_coefficient", "covered_sd", "covered_cor"]


def read_results() -> pd.DataFrame:
    """All fits of the published design."""
    return pd.concat([pd.read_csv(path) for path in sorted(HERE.glob("published_*.csv"))], ignore_index=True)


def machines() -> str:
    """A sentence on what ran the fits."""
    found = {
        path.stem.split(".")[0]: json.loads(path.read_text()) for path in sorted(HERE.glob("published_*.machine.json"))
    }
    lines = []
    for name, about in found.items():
        threads = max(1, about["threads"] // about["processes"])
        lines.append(
            f"`{name}`: mxlogit {about['mxlogit']}, torch {about['torch']}, Python {about['python']}, "
            f"{about['cores']} cores ({about['processor']}), {about['processes']} fits at a time on {threads} threads"
        )
    return "; ".join(lines) + "."


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


def errors_table(table: pd.DataFrame) -> str:
    """Errors and seconds beside the published ones, in Markdown."""
    lines = ["| N | | runs | seconds | alpha | zeta | Omega | beta_n |", "|---|---|---|---|---|---|---|---|"]
    last = None
    for (people, method), row in beside_published(table, PUBLISHED).iterrows():
        size = "" if people == last else f"{people:,}"
        runs = "" if pd.isna(row["runs"]) else f"{row['runs']:.0f}"
        errors = [error(row, f"rmse_{name}") for name in ("alpha", "zeta", "omega", "beta_n")]
        lines.append(f"| {size} | {method} | {runs} | {seconds(row['seconds'])} | {' | '.join(errors)} |")
        last = people
    return "\n".join(lines)


def coverage_table(table: pd.DataFrame) -> str:
    """Shares of 90 % intervals that hold the truth, and log probabilities of what was not seen, in Markdown."""
    lines = [
        "| N | | coefficients | standard deviations | correlations | new situations | new people |",
        "|---|---|---|---|---|---|---|",
    ]
    last = None
    for (people, method), row in summarise(table).sort_index(level=0, sort_remaining=False).iterrows():
        size = "" if people == last else f"{people:,}"
        covered = [f"{number(row[name], 2)} ({number(row[f'{name}_se'], 2)})" for name in COVERED]
        held_out = [number(row[name], 3) for name in ("later", "others")]
        lines.append(f"| {size} | {method} | {' | '.join(covered + held_out)} |")
        last = people
    return "\n".join(lines)


def sections() -> dict[str, str]:
    """Generated parts of the page by name."""
    table = read_results()
    return {
        "published errors": errors_table(table),
        "published coverage": coverage_table(table),
        "published machines": machines(),
    }


def with_sections(text: str, parts: dict[str, str]) -> str:
    """A text whose parts between marks are those given."""
    for name, part in parts.items():
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{PAGE.name} has no marks {marks[0]} ... {marks[1]}")
        text = pattern.sub(lambda _, part=part, marks=marks: f"{marks[0]}\n{part}\n{marks[1]}", text)
    return text


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
    old = PAGE.read_text()
    new = with_sections(old, sections())
    if options.check:
        sys.stdout.write("as the files give\n" if new == old else "docs/benchmarks.md differs from the result files\n")
        return int(new != old)
    PAGE.write_text(new)
    draw_seconds(read_results(), HERE / "published_seconds.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
