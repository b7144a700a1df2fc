"""Lists of column names as users write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import KeysView, Sequence
from typing import Any

import numpy as np

from mxlogit.errors import SpecificationError


def check_names(argument: str, names: Any) -> tuple[str, ...]:
    """Convert an ordered collection of column names (list, tuple, array, Index, Series) to a tuple.

    Raises
    ------
    SpecificationError
        If ``names`` is a single string, has no order, holds anything but strings, or repeats a name.
    """
    if isinstance(names, str):
        raise SpecificationError(
            f"{argument} must be a list of column names; got the string {names!r}: write [{names!r}]."
        )
    listed = as_list(names)
    if listed is None:
        order = " A set has no order: write a list." if isinstance(names, (set, frozenset)) else ""
        raise SpecificationError(f"{argument} must be a list of column names; got {names!r}.{order}")
    wrong = [name for name in listed if not isinstance(name, str)]
    if wrong:
        raise SpecificationError(
            f"{argument} must hold column names (strings); got {wrong[:5]}. Rename columns whose names are not "
            "strings: frame.rename(columns=str)."
        )
    repeated = sorted(name for name, count in Counter(listed).items() if count > 1)
    if repeated:
        raise SpecificationError(f"{argument} lists {repeated} more than once.")
    return tuple(str(name) for name in listed)


def as_list(names: Any) -> list[Any] | None:
    """List the elements of a sequence, of the keys of a mapping, or of a one-dimensional array-like; else None."""
    if isinstance(names, (Sequence, KeysView)):
        return list(names)
    listed = np.asarray(names) if hasattr(names, "__array__") else np.empty(())
    return list(listed) if listed.ndim == 1 else None
