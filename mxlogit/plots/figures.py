"""Figures and axes; matplotlib is imported on first use."""

from __future__ import annotations

from typing import Any

import numpy as np

from mxlogit.errors import MissingExtraError


def pyplot() -> Any:
    """Import matplotlib's pyplot; the error names the extra to install."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise MissingExtraError("plots need matplotlib: pip install 'mxlogit[plots]'.") from None
    return plt


def grid_of_axes(count: int) -> Any:
    """Create axes in rows of three and hide unused ones."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = pyplot().subplots(rows, columns, figsize=(3.6 * columns, 2.7 * rows), squeeze=False)
    for spare in axes.ravel()[count:]:
        spare.set_visible(False)
    figure.set_layout_engine("tight")
    return axes


def single_axes(axes: Any, width: float = 4.8, height: float = 3.4) -> Any:
    """Return the given axes, or those of a new figure."""
    if axes is not None:
        return axes
    figure, axes = pyplot().subplots(figsize=(width, height))
    figure.set_layout_engine("tight")
    return axes


def several_axes(axes: Any, count: int) -> np.ndarray:
    """Return ``count`` of the given axes, or of new ones."""
    return np.asarray(grid_of_axes(count) if axes is None else axes).ravel()[:count]
