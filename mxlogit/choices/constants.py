"""Labels of alternative-specific constants, and their conflicts with other columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import narwhals as nw
import numpy as np

from mxlogit.choices.checks import Problems
from mxlogit.choices.columns import RowKeys
from mxlogit.choices.labels import listed
from mxlogit.choices.values import read_flags
from mxlogit.errors import ChoiceDataError, suggest
from mxlogit.spec import CONSTANT_PREFIX


def constant_labels(alternatives: np.ndarray | None, base: object, taken: Sequence[str] = ()) -> dict[str, Any]:
    """Map the labels of the alternative-specific constants to their alternatives, without the base.

    Parameters
    ----------
    alternatives : ndarray or None
        Labels of the alternatives; None if they carry no labels.
    base : object
        Label of the base alternative; None for the first alternative.
    taken : sequence of str
        Names of the attributes that the data already have.

    Returns
    -------
    dict of label (``asc.<alternative>``) to alternative

    Raises
    ------
    ChoiceDataError
        If alternatives carry no labels, the base is not among them, two of them have the same label (1 and "1"), or
        an attribute has the label of a constant.
    """
    if alternatives is None:
        raise ChoiceDataError(
            "constants=True needs labelled alternatives that recur over choice situations; these have no labels, or "
            "labels that only number the rows."
        )
    known = listed(alternatives)
    try:
        # The label of the data, which may have another type than the equal one given: 1 and 1.0.
        base = known[0 if base is None else known.index(base)]
    except (ValueError, TypeError):
        raise ChoiceDataError(
            f"base_alternative {base!r} is not among the alternatives {known[:10]}.{suggest(base, known)}"
        ) from None
    labels = {f"{CONSTANT_PREFIX}{alternative}": alternative for alternative in known}
    if len(labels) < len(known):
        label, _ = Counter(f"{CONSTANT_PREFIX}{alternative}" for alternative in known).most_common(1)[0]
        same = [alternative for alternative in known if f"{CONSTANT_PREFIX}{alternative}" == label]
        raise ChoiceDataError(f"alternatives {same} would have constants of the same label {label!r}; rename one.")
    del labels[f"{CONSTANT_PREFIX}{base}"]
    both = [label for label in labels if label in taken]
    if both:
        raise ChoiceDataError(
            f"the choice data already have attributes {both}, the labels of constants that constants=True would add: "
            "rename them, or name them in fixed or random without constants=True."
        )
    return labels


def check_constants(
    table: nw.DataFrame[Any],
    names: Sequence[str],
    labels: dict[str, Any],
    rows: RowKeys,
    available: np.ndarray,
    problems: Problems,
) -> list[str]:
    """Return the names to read from columns.

    Unknown constants, and columns that differ from the constant of the same label, are recorded as problems.
    """
    unknown = [n for n in names if n.startswith(CONSTANT_PREFIX) and n not in labels and n not in table.columns]
    if unknown:
        problems.add(
            f"no such alternative-specific constant: {unknown}. There are: {list(labels)}.{suggest(unknown[0], labels)}"
        )
    assert rows.alternatives is not None
    position = {alternative: j for j, alternative in enumerate(listed(rows.alternatives))}
    for label in [label for label in labels if label in table.columns]:
        flags = read_flags(table.get_column(label))
        dummy = rows.alternative == position[labels[label]]
        if flags is None or (flags != dummy)[available].any():
            problems.add(
                f"column {label!r} differs from the constant of the same label that constants=True adds for "
                f"alternative {labels[label]!r}. Rename the column."
            )
    return [name for name in names if name not in labels and name not in unknown]
