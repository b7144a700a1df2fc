"""Files of measured results, ``docs/benchmarks/<name>.json``: their fields, reading with checks, writing.

One file holds one measurement: results of one command (or of commands run together), on one machine. Fields:

title         Heading of its section on the page.
introduction  What is measured: data, design, units; Markdown, may be empty. Texts are strings or lists of lines.
command       Command as typed in the root of the repository, without ``--json``; a list if there are several.
version       Package (and its commit), torch, Python.
machine       Processor, number of cores, GPU if any, and whether other work ran; no host names, no paths.
threads       Number of threads, or words.
date          Day, YYYY-MM-DD, or "YYYY-MM-DD to YYYY-MM-DD".
tables        List of tables (below), may be empty where ``notes`` hold the figures.
notes         Remarks on these results; Markdown, optional. A rerun leaves them out, as they speak of earlier figures.

``command``, ``version``, ``machine``, ``threads`` and ``date`` are "not recorded" where nobody wrote them down. Fields of a table:

name          Key of the table in its file, and its caption where there is no introduction.
introduction  Markdown above the table; optional.
columns       Headings.
rows          Lists of cells: numbers, strings, true or false, or null for an empty cell.
align         "left" or "right" for each column; optional, left.
formats       Format specifications of numbers by column, such as ".5f"; optional, three significant digits.
shown         Whether the table is on the page; optional, true. Single runs behind medians are stored and not shown.

This module knows nothing of benchmarks or of the page.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_RECORDED = "not recorded"
REQUIRED = ("title", "introduction", "command", "version", "machine", "threads", "date", "tables")
_OPTIONAL = ("notes",)
_MAY_BE_EMPTY = ("introduction", "notes")
_OF_TABLE = ("name", "columns", "rows")
_OPTIONAL_OF_TABLE = ("introduction", "align", "formats", "shown")
_DATE = re.compile(r"\d{4}-\d\d-\d\d( to \d{4}-\d\d-\d\d)?")

Cell = str | int | float | bool | None


class MeasurementError(ValueError):
    """A file of results that is not of the documented form."""


@dataclass(frozen=True)
class Table:
    """One table; attributes are the fields of the module's docstring."""

    name: str
    columns: list[str]
    rows: list[list[Cell]]
    introduction: str = ""
    align: list[str] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    shown: bool = True


@dataclass(frozen=True)
class Measurement:
    """One file; attributes are the fields of the module's docstring."""

    title: str
    introduction: str
    command: list[str]
    version: str
    machine: str
    threads: int | str
    date: str
    tables: list[Table]
    notes: str = ""


def read_measurement(path: Path) -> Measurement:
    """Read and check one file.

    Parameters
    ----------
    path : Path
        File of results.

    Returns
    -------
    Measurement
        Texts joined to strings, commands as a list.

    Raises
    ------
    MeasurementError
        If the file is not of the documented form: one sentence that lists all problems.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as problem:
        raise MeasurementError(f"{path.name} is not valid JSON: {problem}.") from None
    if problems := _problems(record):
        raise MeasurementError(f"{path.name}: {'; '.join(problems)}.")
    texts = {name: _join(record.get(name, "")) for name in ("title", "introduction", "version", "machine", "notes")}
    command = [record["command"]] if isinstance(record["command"], str) else record["command"]
    tables = [Table(**{**table, "introduction": _join(table.get("introduction", ""))}) for table in record["tables"]]
    return Measurement(**texts, command=command, threads=record["threads"], date=record["date"], tables=tables)


def _refuse_constant(name: str) -> None:
    """Refuse NaN and infinities, which JSON does not have."""
    raise ValueError(f"{name} is no JSON number (write null, or words)")


def write_measurement(path: Path, measurement: Measurement) -> None:
    """Write one file, a row of a table to a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(measurement), encoding="utf-8")


def to_json(measurement: Measurement) -> str:
    """Text of the file of a measurement; equal measurements have equal texts."""
    commands = measurement.command
    fields: dict[str, Any] = {
        "title": measurement.title,
        "introduction": _split(measurement.introduction),
        "command": commands[0] if len(commands) == 1 else commands,
        "version": measurement.version,
        "machine": measurement.machine,
        "threads": measurement.threads,
        "date": measurement.date,
    }
    lines = [f" {json.dumps(name)}: {_dump(value, 1)}" for name, value in fields.items()]
    tables = ",\n".join(_table_to_json(table) for table in measurement.tables)
    lines.append(f' "tables": [\n{tables}\n ]' if tables else ' "tables": []')
    if measurement.notes:
        lines.append(f' "notes": {_dump(_split(measurement.notes), 1)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _table_to_json(table: Table) -> str:
    """Text of one table."""
    lines = [f'   "name": {_dump(table.name)}']
    if table.introduction:
        lines.append(f'   "introduction": {_dump(_split(table.introduction), 3)}')
    if not table.shown:
        lines.append('   "shown": false')
    lines.append(f'   "columns": {_dump(table.columns)}')
    lines += [f'   "{name}": {_dump(value)}' for name in ("align", "formats") if (value := getattr(table, name))]
    rows = ",\n".join(f"    {_dump(row)}" for row in table.rows)
    lines.append(f'   "rows": [\n{rows}\n   ]' if rows else '   "rows": []')
    return "  {\n" + ",\n".join(lines) + "\n  }"


def _dump(value: Any, indent: int | None = None) -> str:
    """JSON on one line; lists of texts with a line each below an indentation."""
    if indent is None or not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    space = " " * indent
    lines = ",\n".join(f"{space} {json.dumps(line, ensure_ascii=False)}" for line in value)
    return f"[\n{lines}\n{space}]"


def _split(text: str) -> str | list[str]:
    """List of the lines of a text that has several."""
    return text.split("\n") if "\n" in text else text


def _join(text: str | list[str]) -> str:
    """String of a text that may be a list of lines."""
    return text if isinstance(text, str) else "\n".join(text)


def _problems(record: Any) -> list[str]:
    """Clauses on everything that is wrong with the content of a file."""
    if not isinstance(record, dict):
        return [f"it must hold one object with the fields {', '.join(REQUIRED)}"]
    found = _wrong_names(record, REQUIRED, _OPTIONAL)
    for name in ("title", "introduction", "command", "version", "machine", "notes"):
        if name in record and not _is_text(record[name]):
            found.append(f"{name!r} must be a string or a list of strings")
        elif name in record and name not in _MAY_BE_EMPTY and not _join(record[name]).strip():
            found.append(f'{name!r} is empty (where it is not known, write "{NOT_RECORDED}")')
    if "threads" in record and (isinstance(record["threads"], bool) or not isinstance(record["threads"], int | str)):
        found.append("'threads' must be a whole number or a string")
    date = record.get("date", NOT_RECORDED)
    if date != NOT_RECORDED and not (isinstance(date, str) and _DATE.fullmatch(date)):
        found.append(f"'date' is {date!r}, not YYYY-MM-DD or \"{NOT_RECORDED}\"")
    tables = record.get("tables", [])
    if not isinstance(tables, list):
        return [*found, "'tables' must be a list"]
    for place, table in enumerate(tables, 1):
        found += _problems_of_table(table, place)
    return found


def _problems_of_table(table: Any, place: int) -> list[str]:
    """Clauses on everything that is wrong with one table."""
    if not isinstance(table, dict):
        return [f"table {place} must be an object with the fields {', '.join(_OF_TABLE)}"]
    label = f"table {table.get('name', place)!r}"
    found = _wrong_names(table, _OF_TABLE, _OPTIONAL_OF_TABLE)
    columns, rows = table.get("columns", []), table.get("rows", [])
    if not isinstance(table.get("name", ""), str) or not _is_text(table.get("introduction", "")):
        found.append("'name' and 'introduction' must be strings")
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        return [f"{label}: {clause}" for clause in [*found, "'columns' must be a list of strings"]]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return [f"{label}: {clause}" for clause in [*found, "'rows' must be a list of lists"]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            found.append(f"row {number} has {len(row)} instead of {len(columns)} cells")
        if not all(cell is None or isinstance(cell, str | int | float | bool) for cell in row):
            found.append(f"row {number} has a cell that is no number, string, true, false or null")
    found += _wrong_layout(table, columns)
    return [f"{label}: {clause}" for clause in found]


def _wrong_layout(table: dict[str, Any], columns: list[str]) -> list[str]:
    """Clauses on the optional fields of a table that say how it is shown."""
    found = []
    align, formats = table.get("align", []), table.get("formats", {})
    sides = isinstance(align, list) and all(side in ("left", "right") for side in align)
    if not sides or len(align) not in (0, len(columns)):
        found.append('\'align\' must have "left" or "right" for each column')
    if not isinstance(formats, dict) or not set(formats) <= set(columns):
        found.append("'formats' must be an object whose names are columns")
    elif wrong := [form for form in formats.values() if not _is_format(form)]:
        found.append(f"'formats' has {wrong[0]!r}, which formats no number")
    if not isinstance(table.get("shown", True), bool):
        found.append("'shown' must be true or false")
    return found


def _is_format(form: Any) -> bool:
    """Whether a value is a format specification of numbers."""
    try:
        format(1.0, form)
    except (TypeError, ValueError):
        return False
    return True


def _wrong_names(record: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...]) -> list[str]:
    """Clauses on fields that are missing, and on those that are not known."""
    found = []
    if missing := [name for name in required if name not in record]:
        found.append(f"it lacks {', '.join(map(repr, missing))}")
    if unknown := [name for name in record if name not in (*required, *optional)]:
        found.append(f"unknown {', '.join(map(repr, unknown))} (known: {', '.join((*required, *optional))})")
    return found


def _is_text(value: Any) -> bool:
    """Whether a value is a string or a list of strings."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(line, str) for line in value))
