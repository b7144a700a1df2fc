"""Printed lines and written tables of the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd


def say(text: object = "") -> None:
    """Print a line to standard output."""
    sys.stdout.write(f"{text}\n")


def write_table(frame: pd.DataFrame | pd.Series, path: Path, shown: str | None = None) -> None:
    """Write a table as CSV, and print it under a heading, if given."""
    frame.to_csv(path)
    if shown is not None:
        say(f"\n{shown}")
        if note := frame.attrs.get("verdict"):
            say(note)
        say(frame.round(4).to_string())
