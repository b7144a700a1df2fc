"""Records of a benchmark's run: its results as a file of docs/benchmarks/, beside command, versions, machine and date.

A benchmark hands its tables over once, at its end; `measurement.py` owns the form of the file, `make_page.py` the page.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measurement import Cell, Measurement, MeasurementError, Table, read_measurement, write_measurement

import mxlogit

ROOT = Path(__file__).parent.parent.parent
# Changes of these make a measurement one of no commit.
_SOURCES = ("mxlogit", "tests", "pyproject.toml")
# Figures of which three significant digits say too little.
_FORMATS = {"rhat": ".3f", "bound": ".2f", "log_evidence": ".2f", "log_likelihood": ".2f"}

Rows = pd.DataFrame | Iterable[Mapping[str, Any]]


def record_results(path: Path, title: str, tables: list[Table], *, threads: int, device: str = "cpu") -> None:
    """Write the results of this process's command.

    Parameters
    ----------
    path : Path
        File to write. Title and introduction of a file that is there are kept; its tables and notes are replaced, as
        they hold the figures of an earlier run.
    title : str
        Heading of the section, where there is no file yet.
    tables : list of Table
        Results.
    threads : int
        Threads of torch.
    device : {"cpu", "cuda"}
        Device of the fits; the name of a GPU is recorded.
    """
    former = _former(path)
    write_measurement(
        path,
        Measurement(
            title=former.title if former else title,
            introduction=former.introduction if former else "",
            command=[describe_command(sys.argv)],
            version=describe_version(),
            machine=describe_machine(device),
            threads=threads,
            date=date.today().isoformat(),
            tables=tables,
        ),
    )
    if former and former.notes:
        sys.stdout.write(f"{path.name}: notes on the earlier results are left out\n")


def _former(path: Path) -> Measurement | None:
    """Measurement that a file holds already; nothing for none and for other content."""
    try:
        return read_measurement(path) if path.exists() else None
    except MeasurementError:
        return None


def table_of(name: str, rows: Rows, formats: dict[str, str] | None = None, *, shown: bool = True) -> Table:
    """Table of records, columns of numbers to the right."""
    frame = pd.DataFrame(rows)
    align = ["right" if dtype.kind in "iuf" else "left" for dtype in frame.dtypes]
    cells = [[to_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    columns = [str(column) for column in frame]
    usual = {column: form for column, form in _FORMATS.items() if column in columns}
    return Table(name, columns, cells, align=align, formats=usual | (formats or {}), shown=shown)


def medians_of(name: str, rows: Rows, by: list[str], drop: tuple[str, ...] = ()) -> list[Table]:
    """Table of medians over runs, and single runs that are not shown.

    Parameters
    ----------
    name : str
        Name of the table of medians.
    rows : frame or records
        One row per run.
    by : list of str
        Columns that tell groups of runs apart, in the order of their first appearance.
    drop : tuple of str
        Columns without medians, such as seeds.
    """
    frame = pd.DataFrame(rows)
    groups = frame.drop(columns=list(drop)).groupby(by, sort=False)
    medians = groups.median(numeric_only=True)
    medians.insert(0, "runs", groups.size())
    return [table_of(name, medians.reset_index()), table_of(f"{name}, runs", frame, shown=False)]


def ranges_of(name: str, rows: Rows, drop: tuple[str, ...] = ()) -> list[Table]:
    """Table of smallest, median and largest values over runs, and single runs that are not shown."""
    frame = pd.DataFrame(rows)
    ranges = frame.drop(columns=list(drop)).agg(["min", "median", "max"]).T
    ranges.columns = ["smallest", "median", "largest"]
    shown = ranges.rename_axis("figure").reset_index()
    return [table_of(name, shown), table_of(f"{name}, runs", frame, shown=False)]


def to_cell(value: Any) -> Cell:
    """Value of a JSON cell: plain types, null for missing numbers, words for infinite ones."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else "infinite" if value > 0.0 else "-infinite"
    return value if isinstance(value, str | int | float) else str(value)


def describe_command(arguments: list[str]) -> str:
    """Command as typed in the root of the repository, without the file for results."""
    script, *options = arguments
    kept, skip = [], False
    for option in options:
        is_file = option.startswith("--j")
        if not skip and not is_file:
            kept.append(option)
        skip = is_file and "=" not in option
    return shlex.join(["python", f"tests/benchmarks/{Path(script).name}", *kept])


def describe_version() -> str:
    """Versions of the package and its commit, of torch and of Python."""
    return (
        f"mxlogit {mxlogit.__version__}, {describe_commit()}; torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def describe_commit() -> str:
    """Commit of the checkout, and whether its sources differ from it."""
    commit = _git("rev-parse", "--short=10", "HEAD")
    if commit is None:
        return "commit not recorded"
    changed = _git("status", "--porcelain", "--", *_SOURCES)
    return f"commit {commit}{' with changes' if changed else ''}"


def _git(*arguments: str) -> str | None:
    """Answer of git in the checkout; nothing where there is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def describe_machine(device: str = "cpu") -> str:
    """Model of the processor, cores, system, and the GPU where one is used."""
    words = f"{_processor()} ({platform.machine()}), {os.cpu_count()} cores, {platform.system()}"
    return words if device == "cpu" else f"{torch.cuda.get_device_name()}; {words}"


def _processor() -> str:
    """Model of the processor; Linux has it in a file of its own only."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"
