"""Tables of estimates as text, Markdown, LaTeX and HTML."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mxlogit.errors import check_option, check_whole

FORMATS = ("text", "markdown", "latex", "html")
# Characters that LaTeX reads as commands.
_ESCAPES = str.maketrans(
    {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
)


def render_table(frame: pd.DataFrame, form: str = "text", digits: int = 3) -> str:
    """Render a table.

    Parameters
    ----------
    frame : pandas.DataFrame
        Table, such as that of `MixedLogit.summary`.
    form : {"text", "markdown", "latex", "html"}
        LaTeX is a tabular with the rules of the package booktabs.
    digits : int
        Digits after the decimal point.

    Returns
    -------
    str

    Raises
    ------
    SpecificationError
        If the form is unknown.
    """
    check_option("form", form, FORMATS)
    check_whole("digits", digits, 0)
    cells = pd.DataFrame({str(name): [_cell(value, digits) for value in frame[name]] for name in frame}, dtype=object)
    cells.index = frame.index
    if form == "text":
        return cells.to_string()
    if form == "html":
        html: str = cells.to_html(border=0)
        return html
    names = [str(name) if name is not None else "" for name in frame.index.names]
    header = [*names, *cells.columns]
    rows = [[*map(str, key if isinstance(key, tuple) else (key,)), *row] for key, row in zip(
        frame.index, cells.itertuples(index=False, name=None), strict=True
    )]  # fmt: skip
    return _markdown(header, rows, len(names)) if form == "markdown" else _latex(header, rows, len(names))


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.{digits}f}"
    return str(value)


def _markdown(header: list[str], rows: list[list[str]], keys: int) -> str:
    lines = [header, ["---"] * keys + ["---:"] * (len(header) - keys), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _latex(header: list[str], rows: list[list[str]], keys: int) -> str:
    def line(cells: list[str]) -> str:
        return " & ".join(cell.replace("\\", r"\textbackslash{}").translate(_ESCAPES) for cell in cells) + r" \\"

    columns = "l" * keys + "r" * (len(header) - keys)
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(header), r"\midrule"]
    return "\n".join([*head, *map(line, rows), r"\bottomrule", r"\end{tabular}"])
