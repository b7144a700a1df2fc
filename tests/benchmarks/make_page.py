"""The page of measured figures, docs/benchmarks.md, from the files of docs/benchmarks/.

    python tests/benchmarks/make_page.py [--check] [--results docs/benchmarks] [--page docs/benchmarks.md]

``--check`` writes nothing and fails if the page is not what the files give. A new file is shown after those of ``ORDER``;
``measurement.py`` describes its fields, ``bench_*.py --json docs/benchmarks/<name>.json`` writes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measurement import NOT_RECORDED, Cell, Measurement, MeasurementError, Table, read_measurement

ROOT = Path(__file__).parent.parent.parent
RESULTS, PAGE = ROOT / "docs" / "benchmarks", ROOT / "docs" / "benchmarks.md"
ORDER = (
    "main",
    "published_study",
    "scale",
    "scale_gpu",
    "mcmc",
    "mcmc_numpyro",
    "engines",
    "guides_flows",
    "guides_gap",
    "guides_few",
    "population_engines",
    "amortized_routes",
    "sbp_steps",
    "sbp_steps_gpu",
    "sbp_accuracy",
    "sbp_longest",
    "sbp_variance",
    "logistic",
    "calibration",
    "msle",
    "trust",
    "error",
    "use",
    "populations",
    "classes",
)
_HEAD = """# Measured

<!-- Made by `tests/benchmarks/make_page.py`, from `docs/benchmarks/*.json`: edit those, not this page. -->

Figures beside the commands that measure them. A machine is named with each section; ratios within one run are what to compare.
"Not recorded" stands where figures are older than these records.
"""


def find_files(folder: Path) -> list[Path]:
    """Files of results, those of ``ORDER`` first, others by name."""
    places = {name: place for place, name in enumerate(ORDER)}
    found = sorted(folder.glob("*.json"), key=lambda path: (places.get(path.stem, len(ORDER)), path.stem))
    if not found:
        raise MeasurementError(f"There are no files of results (*.json) in the folder {folder.name!r}.")
    return found


def make_page(folder: Path) -> str:
    """Text of the page."""
    return "\n".join([_HEAD, *(section(read_measurement(path)) for path in find_files(folder))])


def section(measurement: Measurement) -> str:
    """Markdown of one measurement: heading, where the figures come from, design, tables, remarks."""
    shown = [table for table in measurement.tables if table.shown]
    blocks = [f"## {measurement.title}", provenance(measurement), measurement.introduction]
    for table in shown:
        blocks += [table.introduction or (f"**{table.name}**" if len(shown) > 1 else ""), markdown_table(table)]
    return "\n\n".join(block for block in [*blocks, measurement.notes] if block) + "\n"


def provenance(measurement: Measurement) -> str:
    """A list of command, version, machine and date."""
    commands = [command if command == NOT_RECORDED else f"`{command}`" for command in measurement.command]
    return "\n".join(
        [
            f"- Command: {'; '.join(commands)}",
            f"- Version: {measurement.version}",
            f"- Machine: {measurement.machine}; threads: {measurement.threads}",
            f"- Date: {measurement.date}",
        ]
    )


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    align = table.align or ["left"] * len(table.columns)
    rule = "|".join("---:" if side == "right" else "---" for side in align)
    rows = [
        [show(cell, table.formats.get(column)) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    lines = [_line([show(column) for column in table.columns]), f"|{rule}|", *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    """A row in Markdown; an empty cell is one space."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def show(cell: Cell, form: str | None = None) -> str:
    """A cell as text: numbers by their format, or to three significant digits."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return " ".join(cell.split()).replace("|", "\\|")
    if form is not None:
        return format(cell, form)
    if isinstance(cell, int) or abs(cell) >= 1_000.0:
        return f"{cell:,.0f}"
    return f"{cell:.3g}"


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args()
    try:
        page = make_page(options.results)
    except MeasurementError as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    if options.check:
        old = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
        answer = f"differs from the files; run python tests/benchmarks/{Path(__file__).name}"
        sys.stdout.write(f"{options.page.name} {'is as the files give' if page == old else answer}\n")
        return int(page != old)
    options.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
