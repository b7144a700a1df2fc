"""Second moments of attributes within choice situations, which determine identification."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.choices.chunks import ROWS_AT_ONCE
from mxlogit.choices.data import ChoiceData
from mxlogit.errors import SpecificationError

# Eigenvalue of the Gram matrix of unit diagonal (sums in float64) below which its columns count as collinear.
_COLLINEAR = 1e-10
# Ratio of the within-situation standard deviation to the size of the values above which rounding is no question, in any
# precision, whichever values are exact.
_CLEAR = 1e-2
# Smallest within-situation standard deviation, in units of the column, whose square and reciprocal are representable in
# single precision.
_SMALLEST_DEVIATION = 1e-18
# Absolute loading on a null eigenvector (of unit length) above which a column counts as part of the dependence.
_LOADING = 1e-4


@dataclass(frozen=True)
class AttributeMoments:
    """Sums over the available alternatives of observed situations (float64), additive over groups of people.

    Attributes
    ----------
    gram : Tensor, shape (k, k)
        Sums of products of the attributes centred at their situation mean: probabilities do not depend on the level of
        utility in a situation, so identification depends on this matrix alone.
    square : Tensor, shape (k,)
        Sums of squares of the attribute values; where attributes vary little, of those that may be rounded: all but
        integers that the type holds exactly.
    count : Tensor, shape (2,)
        Number of available alternatives and of situations.
    rounding : float
        Relative rounding error of the attributes.
    """

    gram: Tensor
    square: Tensor
    count: Tensor
    rounding: float = 0.0

    @classmethod
    def zeros(cls, size: int) -> AttributeMoments:
        """Return the sums over no decision maker."""
        gram = torch.zeros(size, size, dtype=torch.float64)
        return cls(gram, gram.diagonal().clone(), gram.new_zeros(2))

    @classmethod
    def of(cls, data: ChoiceData) -> AttributeMoments:
        """Sum over the people of ``data``."""
        rows = data.choices.rows
        total = cls.zeros(rows.shape[1])
        for _, sets in data.choice_sets(ROWS_AT_ONCE):
            total = total + cls._of_sets(sets.double(), 1.0 / torch.finfo(rows.dtype).eps)
        return replace(total, rounding=torch.finfo(rows.dtype).eps)

    @classmethod
    def _of_sets(cls, sets: Tensor, exact: float) -> AttributeMoments:
        """Sum over situations with equally many alternatives, (m, size, k); integers up to ``exact`` are exact."""
        # Differences are taken first: an attribute that does not vary is then exactly zero, however large it is.
        differences = sets - sets[:, :1]
        differences -= differences.mean(1, keepdim=True)
        centred = differences.flatten(0, 1)
        count, gram = sets.new_tensor([len(centred), len(sets)]), centred.T @ centred
        square = sets.square().sum((0, 1))
        if bool((gram.diagonal() < _CLEAR**2 * square).any()):
            square = sets.masked_fill((sets == sets.round()) & (sets.abs() <= exact), 0.0).square().sum((0, 1))
        return cls(gram.cpu(), square.cpu(), count.cpu())

    def __add__(self, other: AttributeMoments) -> AttributeMoments:
        """Add the sums over two groups of people."""
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
        """Return the moments of the attributes at ``columns``."""
        index = list(columns)
        return AttributeMoments(self.gram[index][:, index], self.square[index], self.count, self.rounding)


def check_identification(
    moments: AttributeMoments, names: Sequence[str], products: Sequence[str] = (), held: Collection[str] = ()
) -> list[float]:
    """Check that the coefficients of the attributes are identified.

    Parameters
    ----------
    moments : AttributeMoments
        Moments of k attributes.
    names : sequence of str, length k
        Names of the attributes, for messages.
    products : sequence of str
        Those of them that are products with covariates.
    held : collection of str
        Those whose means are not estimated: they may depend on others.

    Returns
    -------
    list of float
        Within-situation standard deviation of each attribute, in its own unit.

    Raises
    ------
    SpecificationError
        If an attribute never varies within a situation, or attributes are collinear within situations.
    """
    rows = moments.count[0].clamp(min=1.0)
    deviation, size = (moments.gram.diagonal() / rows).sqrt(), (moments.square / rows).sqrt()
    problems = []
    # Computed attributes that are equal up to the last digit vary by rounding alone.
    constant = deviation <= moments.rounding * size
    for i in torch.nonzero(constant)[:, 0].tolist():
        if names[i] in products:
            problems.append(
                f"the effect {names[i]!r} is not identified: the covariate is the same for everybody, and so cannot "
                "be told from the mean itself, or the attribute does not vary within choice situations."
            )
            continue
        problems.append(
            f"the coefficient of {names[i]!r} is not identified: the column does not vary across alternatives "
            f"in any of the {moments.n_situations} choice situations. Interact it with an attribute or with "
            "alternative-specific constants, or drop it."
        )
    tiny = ~constant & (deviation < _SMALLEST_DEVIATION)
    if bool(tiny.any()):
        small = {names[i]: f"{float(deviation[i]):.0e}" for i in torch.nonzero(tiny)[:, 0].tolist()}
        problems.append(
            f"columns vary by too little for single precision, by {small} within choice situations; rescale them (to "
            f"above {_SMALLEST_DEVIATION:.0e})."
        )
    estimated = torch.tensor([name not in held for name in names], dtype=torch.bool)
    vary = torch.nonzero(~(constant | tiny).cpu() & estimated)[:, 0]
    for group in _collinear_groups(moments.gram[vary][:, vary]):
        members = [names[int(vary[i])] for i in group]
        problems.append(
            f"the coefficients of {members} are not identified: within choice situations one of these columns is "
            "a linear combination of the others, exactly or to five digits. Drop one of them."
            f"{_covariate_hint([name for name in members if name in products])}"
        )
    if problems:
        raise SpecificationError("\n  ".join(problems))
    return [float(x) for x in deviation]


def _covariate_hint(products: list[str]) -> str:
    """A sentence on dependent products with covariates, if there are any."""
    if not products:
        return ""
    return (
        f" {products} are effects of covariates on means: a covariate that is the same for everybody, or shares that "
        "add up to one, cannot be told from the mean itself."
    )


def _collinear_groups(gram: Tensor) -> list[list[int]]:
    """Columns of each linear dependence of a Gram matrix."""
    if len(gram) < 2:
        return []
    deviation = gram.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(gram / torch.outer(deviation, deviation))
    groups = []
    for value, vector in zip(values, vectors.T, strict=True):
        if value < _COLLINEAR:
            groups.append(torch.nonzero(vector.abs() > _LOADING)[:, 0].tolist())
    return groups
