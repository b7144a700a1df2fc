"""Estimates and intervals of quantities that are computed at every sample of the population parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from mxlogit.errors import check_probability

# Column names of every table with intervals.
COLUMNS = ("estimate", "lower", "upper")


@dataclass(frozen=True)
class SampledValues:
    """Values of quantities by sample.

    Attributes
    ----------
    values : Tensor, shape (s, ...)
        Values at samples of a posterior, or of the sampling distribution of an estimator.
    center : Tensor or None, shape (...)
        Values at the point estimate of maximum likelihood; None where the estimate is the mean of the samples.
    """

    values: Tensor
    center: Tensor | None = None

    @property
    def estimate(self) -> Tensor:
        """Posterior means, or values at the point estimate."""
        return self.values.mean(0) if self.center is None else self.center

    def minus(self, other: SampledValues) -> SampledValues:
        """Differences by sample."""
        center = None if self.center is None or other.center is None else self.center - other.center
        return SampledValues(self.values - other.values, center)

    def summary(self, interval: float, estimate: Tensor | None = None) -> np.ndarray:
        """Estimates and central intervals, shape (..., 3).

        Parameters
        ----------
        interval : float
            Probability of the intervals.
        estimate : Tensor, optional
            More accurate estimates: intervals are moved by the difference to `estimate`, the common integration error.
        """
        check_probability("interval", interval)
        at = [0.5 * (1.0 - interval), 0.5 * (1.0 + interval)]
        # Ratios may be infinite: nothing is interpolated between these.
        lower, upper = np.quantile(self.values.cpu().numpy(), at, axis=0, method="nearest")
        own = self.estimate.cpu().numpy()
        if estimate is None:
            return np.stack([own, lower, upper], -1)
        shift = estimate.cpu().numpy() - own
        return np.stack([own + shift, lower + shift, upper + shift], -1)


def interval_frame(summary: np.ndarray, index: pd.Index, kind: str, interval: float) -> pd.DataFrame:
    """Table of summaries (n, 3); ``attrs["interval"]`` says of which distribution the intervals are."""
    frame = pd.DataFrame(summary, index=index, columns=list(COLUMNS))
    frame.attrs["interval"] = f"{100.0 * interval:g} % of the {kind}"
    return frame
