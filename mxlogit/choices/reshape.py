"""Wide frames (one row per choice situation) to long frames (one row per alternative)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mxlogit.choices.checks import Problems
from mxlogit.errors import ChoiceDataError, suggest


def wide_to_long(
    frame: pd.DataFrame,
    attributes: Mapping[str, Mapping[Any, Any]],
    *,
    choice: str,
    decision_maker: str = "id",
    situation: str | None = None,
    availability: Mapping[Any, str] | None = None,
    keep: Sequence[str] = (),
) -> pd.DataFrame:
    """Turn one row per choice situation into one row per alternative.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per choice situation.
    attributes : mapping of name to {alternative: column or number}
        For every attribute of the long frame, the wide column that holds it for each alternative, or a
        number that holds in all rows. All attributes must name the same alternatives.
    choice : str
        Column with the label of the chosen alternative, as in ``attributes``.
    decision_maker : str
        Column with the decision maker; kept.
    situation : str, optional
        Column with the choice situation; counted within the decision maker if None.
    availability : mapping {alternative: column}, optional
        0/1 columns; alternatives left out are always available.
    keep : sequence of str
        Other columns to repeat on every row of a situation.

    Returns
    -------
    pandas.DataFrame
        Columns: decision maker, ``situation``, ``alternative``, ``choice`` (bool), ``available`` (bool, only
        with ``availability``), the attributes, and ``keep``. Rows of a situation are adjacent.

    Raises
    ------
    ChoiceDataError
        If columns are missing, attributes name different alternatives, or a choice is no alternative.

    Examples
    --------
    >>> wide = pd.DataFrame({"id": [1, 1], "chosen": ["bus", "car"], "bus_time": [30, 20], "car_time": [25, 25]})
    >>> wide_to_long(wide, {"time": {"bus": "bus_time", "car": "car_time"}}, choice="chosen")
       id  situation alternative  choice  time
    0   1          0         bus    True    30
    1   1          0         car   False    25
    2   1          1         bus   False    20
    3   1          1         car    True    25
    """
    alternatives = _check_wide(frame, attributes, [decision_maker, choice, *keep], situation, availability)
    n_rows, n_alternatives = len(frame), len(alternatives)
    repeat = np.repeat(np.arange(n_rows), n_alternatives)
    if situation is None:
        counted = frame.groupby(decision_maker, sort=False).cumcount().to_numpy()
    else:
        counted = frame[situation].to_numpy()
    labels = np.array(alternatives, dtype=object)
    long = {
        decision_maker: frame[decision_maker].to_numpy()[repeat],
        "situation": counted[repeat],
        "alternative": pd.Series(np.tile(labels, n_rows)).infer_objects(),
        "choice": (frame[choice].to_numpy()[:, None] == labels[None, :]).ravel(),
    }
    if availability:
        long["available"] = _stack(frame, {a: availability.get(a, 1) for a in alternatives}).astype(bool)
    for name, sources in attributes.items():
        long[name] = _stack(frame, {a: sources[a] for a in alternatives})
    for name in keep:
        long[name] = frame[name].to_numpy()[repeat]
    return pd.DataFrame(long)


def _stack(frame: pd.DataFrame, sources: Mapping[Any, Any]) -> np.ndarray:
    parts = [
        frame[source].to_numpy() if isinstance(source, str) else np.full(len(frame), source)
        for source in sources.values()
    ]
    return np.stack(parts, axis=1).ravel()


def _check_wide(
    frame: pd.DataFrame,
    attributes: Mapping[str, Mapping[Any, Any]],
    columns: Sequence[str],
    situation: str | None,
    availability: Mapping[Any, str] | None,
) -> list[Any]:
    if not isinstance(frame, pd.DataFrame):
        raise ChoiceDataError(f"wide_to_long needs a pandas DataFrame; got {type(frame).__name__}.")
    if not attributes:
        raise ChoiceDataError("attributes must name at least one attribute.")
    problems = Problems()
    alternatives = list(next(iter(attributes.values())))
    for name, sources in attributes.items():
        if set(sources) != set(alternatives):
            problems.add(f"attribute {name!r} names alternatives {list(sources)}; the first names {alternatives}.")
    for alternative in availability or {}:
        if alternative not in alternatives:
            hint = suggest(str(alternative), map(str, alternatives))
            problems.add(f"availability names {alternative!r}, which is no alternative of {alternatives}.{hint}")
    wanted = [*columns, *([situation] if situation else []), *(availability or {}).values()]
    wanted += [s for sources in attributes.values() for s in sources.values() if isinstance(s, str)]
    for name in dict.fromkeys(wanted):
        if name not in frame.columns:
            problems.add(f"the frame has no column {name!r}.{suggest(name, map(str, frame.columns))}")
    problems.raise_if_any()
    for name in (availability or {}).values():
        if not frame[name].isin([0, 1]).all():
            problems.add(f"availability column {name!r} must hold 0/1 or False/True in every row.")
    strange = ~frame[columns[1]].isin(alternatives).to_numpy()
    problems.add_if(
        strange,
        f"{{count}} of {{total}} rows of {columns[1]!r} name no alternative of {alternatives} (rows {{places}}).",
        list(frame.index[strange][:5]),
    )
    problems.raise_if_any()
    return alternatives
