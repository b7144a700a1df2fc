"""Run the tutorials and write them as notebooks with their output, for the documentation site.

    python tutorials/render.py [--out docs/tutorials] [NAME ...]

Needs the extra ``docs``. ``MXLOGIT_SMOKE=1`` runs them on small data.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def render(script: Path, folder: Path) -> float:
    """Execute a percent script as a notebook; return the seconds it took."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    notebook = jupytext.read(script)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    begin = time.perf_counter()
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{script.stem}.ipynb")
    return time.perf_counter() - begin


def main() -> int:
    """Render all tutorials or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01_first_model")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "tutorials")
    options = parser.parse_args()
    scripts = {path.stem: path for path in sorted(HERE.glob("[0-9]*.py"))}
    unknown = sorted(set(options.names) - set(scripts))
    if unknown:
        parser.error(f"unknown tutorials {unknown}; there are {list(scripts)}")
    for name in options.names or scripts:
        sys.stdout.write(f"{name}: {render(scripts[name], options.out):.0f} s\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
