"""Scaling of frequency weights, and warnings about weights and clusters."""

from __future__ import annotations

from dataclasses import replace

import torch

from mxlogit.choices import ChoiceData, PackedChoices
from mxlogit.errors import ChoiceDataError, check_option
from mxlogit.execution.people import People
from mxlogit.execution.processes import Communicator
from mxlogit.inference.method import Method
from mxlogit.inference.msle.engine import MSLE

# Smallest mean weight without a warning: posterior sds are wrong by a factor of 1.4 (the square root of two) if the
# weights were meant to be relative.
_SMALLEST_MEAN = 0.5
# Largest mean weight without a warning, for the same reason.
_LARGEST_MEAN = 2.0
# Smallest single weight, below which it is lost in the rounding of sums over people.
_SMALLEST = 1e-9
# Largest single weight, above which sums over people lose the digits of the other weights.
_LARGEST = 1e9
# Sandwich covariances, which do not depend on the unit of the weights.
_WITHOUT_UNIT = ("robust", "clustered")


def scale_weights(
    data: ChoiceData | PackedChoices, weights_sum: str | None, team: Communicator
) -> ChoiceData | PackedChoices:
    """Scale the weights of the people of this process according to `MixedLogit(weights_sum=...)`.

    Raises
    ------
    SpecificationError
        If ``weights_sum`` is unknown.
    ChoiceDataError
        If weights are not plausible counts.
    """
    check_option("weights_sum", weights_sum, [None, "given", "n"])
    if weights_sum != "n":
        _check_size(data.weights)
        return data
    total, count = team.all_reduce_sum(data.weights.double().sum(), torch.tensor(float(len(data.weights))))
    return replace(data, weights=data.weights * float(count) / float(total))


def _check_size(weights: torch.Tensor) -> None:
    least, most = (float(x) for x in weights.aminmax()) if len(weights) else (1.0, 1.0)
    if least < _SMALLEST or most > _LARGEST:
        raise ChoiceDataError(
            f"weights lie between {least:.3g} and {most:.3g}; a weight is a number of decision makers, from "
            f"{_SMALLEST:.0e} to {_LARGEST:.0e}. weights_sum='n' scales them to a mean of one."
        )


def weight_sentences(people: People, weights_sum: str | None, method: Method) -> list[str]:
    """Sentences that warn of a mean weight far from one, unless weights are declared counts or have no unit."""
    mean = people.weight / max(1, len(people))
    if weights_sum is not None or _SMALLEST_MEAN <= mean <= _LARGEST_MEAN:
        return []
    if isinstance(method, MSLE) and method.covariance in _WITHOUT_UNIT:
        return []
    return [
        f"The weights of {len(people):,} decision makers have a mean of {mean:.3g}: a weight is a number of decision "
        f"makers, so intervals are those of {people.weight:,.3g} people. If weights only make the sample "
        "representative, set weights_sum='n' (they are scaled to a mean of one); if they are counts, set "
        "weights_sum='given'."
    ]


def cluster_sentences(cluster: str | None, method: Method) -> list[str]:
    """Sentences that warn of clusters that the covariance of maximum likelihood does not use."""
    if cluster is None or not isinstance(method, MSLE) or method.covariance == "clustered":
        return []
    return [
        f"cluster={cluster!r} has no effect with MSLE(covariance={method.covariance!r}): for clustered errors use "
        "MSLE(covariance='clustered')."
    ]
