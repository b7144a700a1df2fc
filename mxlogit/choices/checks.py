"""Checks of choice data whose errors are all reported in one message.

`Problems` collects sentences; each states the error, its count, its first five locations and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.errors import ChoiceDataError

# Number of locations listed per problem.
SHOWN = 5
# Placeholders in a sentence. The null character keeps them distinct from any quoted column name.
COUNT = "\0count"
TOTAL = "\0total"
PLACES = "\0places"
# Largest difference between alternatives of a situation, in units of the column: larger ones overflow in single
# precision once squared and summed over people.
LARGEST_DIFFERENCE = 1e15
# Largest absolute level, in units of the column. Levels only cost digits of the differences; this bound admits every
# 64-bit integer, dates in nanoseconds among them.
LARGEST = 2e19


@dataclass(frozen=True)
class GivenArrays:
    """Padded arrays before checking, shaped as in `mxlogit.ChoiceData.from_arrays`; masks and weights are filled in."""

    attributes: Tensor
    available: Tensor
    observed: Tensor
    chosen: Tensor
    weights: Tensor
    names: tuple[str, ...]
    decision_makers: np.ndarray
    alternatives: np.ndarray | None

    @property
    def n_alternatives(self) -> int:
        """Length of the alternative axis."""
        return self.attributes.shape[2]


class Problems:
    """Sentences describing the problems of the data, raised together."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add a sentence."""
        self.sentences.append(sentence)

    def add_if(self, where: np.ndarray, sentence: str, places: Sequence[object]) -> None:
        """Add ``sentence`` with the count and first locations if any entry of ``where`` is True.

        ``sentence`` may contain the placeholders `COUNT`, `TOTAL` and `PLACES`.
        """
        count = int(where.sum())
        if count:
            shown = "; ".join(str(place) for place in places[:SHOWN])
            more = "; ..." if count > SHOWN else ""
            for field, value in ((COUNT, count), (TOTAL, where.size), (PLACES, shown + more)):
                sentence = sentence.replace(field, str(value))
            self.add(sentence)

    def raise_if_any(self) -> None:
        """Raise all problems in one error, if there are any.

        Raises
        ------
        ChoiceDataError
            A single problem verbatim, several as a numbered list.
        """
        if len(self.sentences) == 1:
            raise ChoiceDataError(self.sentences[0])
        if self.sentences:
            lines = [f"  {i}. {sentence}" for i, sentence in enumerate(self.sentences, 1)]
            raise ChoiceDataError(f"{len(lines)} problems with the choice data:\n" + "\n".join(lines))


def _cells(where: Tensor, data: GivenArrays) -> list[str]:
    """Describe the first flagged (person, situation) cells."""
    rows = torch.nonzero(where)[:SHOWN].tolist()
    return [f"person {data.decision_makers[n]}, situation {t}" for n, t in rows]


def check_arrays(data: GivenArrays) -> None:
    """Check data built from arrays: shapes, finite values, positions, availability, weights.

    Raises
    ------
    ChoiceDataError
        If there are problems; the message lists all of them.
    """
    n, t, j, k = data.attributes.shape
    problems = Problems()
    if tuple(data.chosen.shape) != (n, t):
        one_hot = " Positions of indicators are chosen.argmax(-1)." if tuple(data.chosen.shape) == (n, t, j) else ""
        problems.add(f"chosen must have shape {(n, t)}; got {tuple(data.chosen.shape)}.{one_hot}")
    if tuple(data.weights.shape) != (n,):
        problems.add(f"weights must have shape {(n,)}; got {tuple(data.weights.shape)}.")
    if len(data.names) != k or len(set(data.names)) != k:
        problems.add(f"names must be {k} different names; got {list(data.names)}.")
    _check_labels("decision_makers", data.decision_makers, n, problems)
    if data.alternatives is not None:
        _check_labels("alternatives", data.alternatives, j, problems)
    problems.raise_if_any()
    _check_array_values(data, problems)
    problems.raise_if_any()


def _largest_difference(values: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """Largest difference between finite values of the same choice situation."""
    real = usable & torch.isfinite(values)
    high, low = (values.masked_fill(~real, sign * -torch.inf) * sign for sign in (1.0, -1.0))
    spread = high.amax(-1) + low.amax(-1)
    return torch.where(real.any(-1), spread, 0.0).amax()


def _check_labels(name: str, labels: np.ndarray, count: int, problems: Problems) -> None:
    if len(labels) != count:
        problems.add(f"{name} must have length {count}; got {len(labels)}.")
    missing = pd.isna(labels)
    problems.add_if(missing, f"{name} has {COUNT} missing labels (at {PLACES}).", np.flatnonzero(missing).tolist())
    repeated = pd.Series(labels).duplicated().to_numpy() & ~missing
    problems.add_if(
        repeated, f"{name} must be unique; {COUNT} repeat an earlier one ({PLACES}).", labels[repeated].tolist()
    )


def _check_array_values(data: GivenArrays, problems: Problems) -> None:
    seen = data.observed
    outside = seen & ((data.chosen < 0) | (data.chosen >= data.n_alternatives))
    problems.add_if(
        outside.cpu().numpy(),
        f"{COUNT} chosen positions are missing or outside 0 to {data.n_alternatives - 1} ({PLACES}).",
        _cells(outside, data),
    )
    position = data.chosen.clamp(0, data.n_alternatives - 1)[..., None]
    unavailable = seen & ~data.available.gather(2, position)[..., 0] & ~outside
    problems.add_if(
        unavailable.cpu().numpy(),
        f"in {COUNT} choice situations the chosen alternative is not available ({PLACES}).",
        _cells(unavailable, data),
    )
    usable = (data.available & seen[..., None])[..., None]
    for column, name in enumerate(data.names):
        bad = (~torch.isfinite(data.attributes[..., column : column + 1]) & usable).any(-1).any(-1)
        problems.add_if(
            bad.cpu().numpy(),
            f"attribute {name!r} has missing or infinite values in {COUNT} choice situations ({PLACES}).",
            _cells(bad, data),
        )
        low, high = torch.aminmax(data.attributes[..., column])
        if bool(high - low <= LARGEST_DIFFERENCE):
            continue
        largest = float(_largest_difference(data.attributes[..., column], usable[..., 0]))
        if largest > LARGEST_DIFFERENCE:
            problems.add(f"attribute {name!r} differs by up to {largest:.0e} within a choice situation; rescale it.")
    if not bool(seen.any(1).all()):
        count = int((~seen.any(1)).sum())
        problems.add(f"{count} decision makers have no observed choice situation; drop them.")
    bad_weight = ~(torch.isfinite(data.weights) & (data.weights > 0))
    problems.add_if(
        bad_weight.cpu().numpy(),
        f"{COUNT} weights are not positive and finite ({PLACES}).",
        [f"person {data.decision_makers[i]}" for i in torch.nonzero(bad_weight)[:SHOWN, 0].tolist()],
    )
