"""Moments of attributes within choice situations, which identification depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.choices.data import ChoiceData
from mxlogit.errors import SpecificationError

# Relative size below which an eigenvalue of the scaled Gram matrix (float64 sums) counts as zero.
_COLLINEAR = 1e-10
# Standard deviation of differences between alternatives whose square, and reciprocal, single precision holds.
_SMALLEST_DEVIATION = 1e-18
# Rows that are summed at a time.
_ROWS_AT_ONCE = 100_000


@dataclass(frozen=True)
class AttributeMoments:
    """Sums over the available alternatives of observed situations (float64); those of several groups of people add up.

    Attributes
    ----------
    gram : Tensor, shape (k, k)
        Products of the attributes about their situation mean: adding a constant to all utilities of a situation
        changes nothing, so identification depends on this matrix alone.
    square : Tensor, shape (k,)
        Squares of the attributes that may have been rounded: whole numbers have not.
    count : Tensor, shape (2,)
        Number of alternatives and of situations.
    rounding : float
        Relative rounding error of the attributes.
    """

    gram: Tensor
    square: Tensor
    count: Tensor
    rounding: float = 0.0

    @classmethod
    def zeros(cls, size: int) -> AttributeMoments:
        """Return sums over nobody."""
        gram = torch.zeros(size, size, dtype=torch.float64)
        return cls(gram, gram.diagonal().clone(), gram.new_zeros(2))

    @classmethod
    def of(cls, data: ChoiceData) -> AttributeMoments:
        """Sum over the people of some data."""
        rows = data.choices.rows
        total = cls.zeros(rows.shape[1])
        for _, sets in data.choice_sets(_ROWS_AT_ONCE):
            total = total + cls._of_sets(sets.double(), 1.0 / torch.finfo(rows.dtype).eps)
        return replace(total, rounding=torch.finfo(rows.dtype).eps)

    @classmethod
    def _of_sets(cls, sets: Tensor, exact: float) -> AttributeMoments:
        """Sum over situations with equally many alternatives, (m, size, k); whole numbers are exact up to ``exact``."""
        # Differences first: what does not vary is then zero exactly, however large it is.
        differences = sets - sets[:, :1]
        centred = (differences - differences.mean(1, keepdim=True)).flatten(0, 1)
        count = sets.new_tensor([len(centred), len(sets)])
        rounded = sets.masked_fill((sets == sets.round()) & (sets.abs() <= exact), 0.0)
        return cls((centred.T @ centred).cpu(), rounded.square().sum((0, 1)).cpu(), count.cpu())

    def __add__(self, other: AttributeMoments) -> AttributeMoments:
        """Sum over the people of both."""
        rounding = max(self.rounding, other.rounding)
        return AttributeMoments(self.gram + other.gram, self.square + other.square, self.count + other.count, rounding)

    @property
    def n_situations(self) -> int:
        """Number of observed situations."""
        return int(self.count[1])

    @property
    def n_rows(self) -> int:
        """Number of available alternatives of observed situations."""
        return int(self.count[0])

    def take(self, columns: Sequence[int]) -> AttributeMoments:
        """Return the moments of some attributes."""
        index = list(columns)
        return AttributeMoments(self.gram[index][:, index], self.square[index], self.count, self.rounding)


def check_identification(moments: AttributeMoments, names: Sequence[str]) -> list[float]:
    """Check that the coefficients of attributes can be identified from choices among alternatives.

    Parameters
    ----------
    moments : AttributeMoments
    names : sequence of str

    Returns
    -------
    list of float
        Within-situation standard deviation of each attribute, in its own unit.

    Raises
    ------
    SpecificationError
        If an attribute never varies within a situation, or some are perfectly collinear there.
    """
    rows = moments.count[0].clamp(min=1.0)
    deviation, size = (moments.gram.diagonal() / rows).sqrt(), (moments.square / rows).sqrt()
    problems = []
    # Attributes that are computed, equal but for the last digit, vary by rounding alone.
    constant = deviation <= moments.rounding * size
    for i in torch.nonzero(constant)[:, 0].tolist():
        problems.append(
            f"the coefficient of {names[i]!r} is not identified: the column does not vary across alternatives "
            f"in any of the {moments.n_situations} choice situations. Interact it with an attribute or with "
            "alternative-specific constants, or leave it out."
        )
    tiny = ~constant & (deviation < _SMALLEST_DEVIATION)
    if bool(tiny.any()):
        small = {names[i]: f"{float(deviation[i]):.0e}" for i in torch.nonzero(tiny)[:, 0].tolist()}
        problems.append(
            f"columns vary by too little for single precision, by {small} within choice situations; rescale them (to "
            f"above {_SMALLEST_DEVIATION:.0e})."
        )
    vary = torch.nonzero(~(constant | tiny))[:, 0]
    for group in _collinear_groups(moments.gram[vary][:, vary]):
        members = [names[int(vary[i])] for i in group]
        problems.append(
            f"the coefficients of {members} are not identified: within choice situations one of these columns is "
            "a linear combination of the others, exactly or to five digits. Leave one of them out."
        )
    if problems:
        raise SpecificationError("\n  ".join(problems))
    return [float(x) for x in deviation]


def _collinear_groups(gram: Tensor) -> list[list[int]]:
    """Columns that take part in each exact linear dependence of a Gram matrix."""
    if len(gram) < 2:
        return []
    deviation = gram.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(gram / torch.outer(deviation, deviation))
    groups = []
    for value, vector in zip(values, vectors.T, strict=True):
        if value < _COLLINEAR:
            groups.append(torch.nonzero(vector.abs() > 1e-4)[:, 0].tolist())
    return groups
