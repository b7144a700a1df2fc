"""Statistics of choices, observed beside those of simulated choices of the same people.

A model that cannot produce what is seen shows it here (Gelman, Meng and Stern 1996, Statistica Sinica 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mxlogit.choices import ChoiceData
from mxlogit.choices.labels import listed
from mxlogit.errors import ChoiceDataError, check_probability

# Statistics, in the order of the table.
STATISTICS = ("share", "switching", "entropy", "loyal")


@dataclass(frozen=True)
class ChosenAlternatives:
    """Alternatives that people choose, situation after situation.

    Attributes
    ----------
    person : ndarray of int, shape (situations,)
    weights : ndarray, shape (people,)
    labels : list
        Labels of the alternatives.
    rows : ndarray of int, shape (rows,)
        Alternative of each row of the data.
    first : ndarray of int, shape (situations,)
        First row of each situation.
    """

    person: np.ndarray
    weights: np.ndarray
    labels: list[object]
    rows: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, data: ChoiceData) -> ChosenAlternatives:
        """Raise if alternatives have no labels that recur over situations."""
        if data.alternatives is None:
            raise ChoiceDataError(
                "checks of choices need alternatives with labels that recur over choice situations; these have none."
            )
        lengths = data.choices.panel_lengths.cpu().numpy()
        return cls(
            np.arange(data.n_decision_makers).repeat(lengths),
            data.weights.cpu().double().numpy(),
            listed(data.alternatives),
            data.choices.listed_positions().cpu().long().numpy(),
            data.first_rows[:-1].cpu().numpy(),
        )

    def statistics(self, ranks: np.ndarray) -> np.ndarray:
        """Shares of all alternatives, switching, entropy and loyalty, (statistics,), of chosen ranks (situations,)."""
        chosen, count = self.rows[self.first + ranks], len(self.labels)
        weights = self.weights[self.person]
        shares = np.bincount(chosen, weights, count) / weights.sum()
        same_person = self.person[1:] == self.person[:-1]
        pairs = weights[1:][same_person]
        changed = (chosen[1:] != chosen[:-1])[same_person]
        switching = (pairs @ changed) / pairs.sum() if pairs.sum() > 0.0 else np.nan
        return np.array([*shares, switching, *self._of_people(chosen)])

    def _of_people(self, chosen: np.ndarray) -> tuple[float, float]:
        """Mean entropy of a person's choices, and the share of people who always choose the same alternative."""
        cell, times = np.unique(self.person.astype(np.int64) * len(self.labels) + chosen, return_counts=True)
        person, total = cell // len(self.labels), np.bincount(self.person, minlength=len(self.weights))
        share = times / total[person]
        entropy = np.bincount(person, -share * np.log(share), len(self.weights))
        several = total > 1
        weights = self.weights * several
        if not weights.sum() > 0.0:
            return np.nan, np.nan
        loyal = np.bincount(person, share == 1.0, len(self.weights))
        return float(weights @ entropy / weights.sum()), float(weights @ loyal / weights.sum())

    def index(self) -> pd.MultiIndex:
        """Labels of `statistics`."""
        keys = [("share", label) for label in self.labels]
        return pd.MultiIndex.from_tuples(
            [*keys, *((name, "") for name in STATISTICS[1:])], names=["statistic", "alternative"]
        )


def check_frame(data: ChoiceData, simulated: np.ndarray, interval: float) -> pd.DataFrame:
    """Table of observed statistics beside those of simulated choices (situations, samples).

    Returns
    -------
    pandas.DataFrame
        Index: statistic, alternative. Columns: ``observed``, ``mean``, ``lower``, ``upper`` of the simulated ones, and
        ``p``, twice the smaller share of simulated values at least, or at most, as large as the observed one.
    """
    check_probability("interval", interval)
    chosen = ChosenAlternatives.of(data)
    observed = chosen.statistics(data.choices.chosen_ranks.cpu().long().numpy())
    values = np.stack([chosen.statistics(ranks) for ranks in simulated.T])
    lower, upper = np.quantile(values, [0.5 * (1.0 - interval), 0.5 * (1.0 + interval)], axis=0)
    tails = np.minimum((values >= observed - 1e-12).mean(0), (values <= observed + 1e-12).mean(0))
    frame = {"observed": observed, "mean": values.mean(0), "lower": lower, "upper": upper}
    return pd.DataFrame({**frame, "p": np.minimum(1.0, 2.0 * tails)}, index=chosen.index())
