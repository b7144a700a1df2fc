"""`ChoiceData`: what a frame of choices becomes, and the only form of data the mathematics sees.

Axes are always n (decision maker), t (choice situation of that person), j (alternative), k (attribute).
Panels of different length and choice sets of different size are padded; masks say what is real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mxlogit.choices.arrays import as_attributes, as_codes, as_labels, as_mask, as_names, as_numbers, as_positions
from mxlogit.choices.checks import check_arrays
from mxlogit.errors import ChoiceDataError
from mxlogit.spec import Columns, check_names

if TYPE_CHECKING:
    from mxlogit.choices.packed import PackedChoices


@dataclass(frozen=True, eq=False, repr=False)
class ChoiceData:
    """Choices of a panel of decision makers as padded tensors.

    Attributes
    ----------
    attributes : Tensor, shape (n, t, j, k)
        Finite everywhere; zero where padded.
    available : Tensor, bool, shape (n, t, j)
        Every situation, padding included, has at least one available alternative.
    observed : Tensor, bool, shape (n, t)
        False where the situation is padding.
    chosen : Tensor, int64, shape (n, t)
        Position of the chosen alternative; an available one, 0 where padded.
    weights : Tensor, shape (n,)
        Weight of each decision maker in sums over people.
    names : tuple of str
        Names of the k attributes.
    decision_makers : ndarray, shape (n,)
        Labels of the people, in the order of the tensors.
    alternatives : ndarray or None, shape (j,)
        Labels of the alternatives; None when positions carry no label.
    appearance : Tensor or None, int64, shape (n,)
        Rank of each decision maker by first appearance in the frame read; None where that is the order here.
    clusters : Tensor or None, int64, shape (n,)
        Cluster of each decision maker, 0, 1, ...: the unit of clustered standard errors.
    """

    attributes: Tensor
    available: Tensor
    observed: Tensor
    chosen: Tensor
    weights: Tensor
    names: tuple[str, ...]
    decision_makers: np.ndarray
    alternatives: np.ndarray | None = None
    appearance: Tensor | None = None
    clusters: Tensor | None = None

    @classmethod
    def from_arrays(
        cls,
        attributes: Tensor | np.ndarray,
        chosen: Tensor | np.ndarray,
        *,
        names: Sequence[str],
        available: Tensor | np.ndarray | None = None,
        observed: Tensor | np.ndarray | None = None,
        weights: Tensor | np.ndarray | None = None,
        decision_makers: Sequence[object] | np.ndarray | None = None,
        alternatives: Sequence[object] | np.ndarray | None = None,
        clusters: Sequence[object] | np.ndarray | None = None,
    ) -> ChoiceData:
        """Build choice data from arrays, without copying the attributes when they can be used as they are.

        Parameters
        ----------
        attributes : array, shape (n, t, j, k)
            float32 and float64 are kept, other numbers become float64. Memory is shared, except with reversed,
            big-endian, read-only and object arrays.
        chosen : array of int, shape (n, t)
            Position of the chosen alternative, 0 to j - 1; ignored, and may be missing, where not observed.
        names : sequence of str, length k
        available : array of bool, shape (n, t, j), optional
            All available by default.
        observed : array of bool, shape (n, t), optional
            All observed by default.
        weights : array, shape (n,), optional
            One by default; positive. Counts of like decision makers (see `mxlogit.MixedLogit`).
        decision_makers : sequence, length n, optional
            Labels, all different; 0 to n - 1 by default.
        alternatives : sequence, length j, optional
            Labels, all different; none by default.
        clusters : sequence, length n, optional
            Label of each decision maker's cluster, for clustered standard errors.

        Returns
        -------
        ChoiceData

        Raises
        ------
        ChoiceDataError
            Listing every problem: shapes, missing values, positions out of range, chosen but unavailable.
        """
        x = as_attributes(attributes)
        n, t, j, _ = x.shape
        weight = torch.ones(n) if weights is None else as_numbers("weights", weights)
        data = cls(
            attributes=x,
            available=as_mask("available", available, (n, t, j), x.device),
            observed=as_mask("observed", observed, (n, t), x.device),
            chosen=as_positions("chosen", chosen, x.device),
            weights=weight.to(x),
            names=as_names(names),
            decision_makers=np.arange(n) if decision_makers is None else as_labels("decision_makers", decision_makers),
            alternatives=None if alternatives is None else as_labels("alternatives", alternatives),
            clusters=None if clusters is None else as_codes("clusters", clusters, n),
        )
        check_arrays(data)
        return data._with_padding()

    @classmethod
    def pack(
        cls,
        source: Any,
        path: str | Path,
        *,
        names: Sequence[str] = (),
        decision_maker: str = "id",
        situation: str = "situation",
        alternative: str = "alternative",
        choice: str = "choice",
        availability: str | None = None,
        weights: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PackedChoices:
        """Pack choices that do not fit in memory into shards on disk, for `MixedLogit.fit`.

        Parameters
        ----------
        source : path, list of paths, frame, iterator of frames, or ChoiceData
            Parquet or CSV files, or a directory of them (pyarrow, extra ``parquet``), long frames as for
            `MixedLogit.fit`, or choice data (whose clusters are not kept). Rows may come in any order; an iterator is
            read once.
        path : str or Path
            Directory to make. It appears when it is complete; an interrupted packing leaves nothing that opens.
        names : sequence of str
            Attribute columns to keep (all attributes of a ChoiceData are).
        decision_maker, situation, alternative, choice, availability, weights : str
            Columns, as of `MixedLogit`.
        dtype : torch.dtype
            Of the attributes on disk.

        Returns
        -------
        PackedChoices

        Raises
        ------
        ChoiceDataError
            If the data are wrong in any way that `MixedLogit.fit` would tell, or the path exists.
        MissingExtraError
            If pyarrow is needed and missing.
        """
        from mxlogit.choices.packing import pack_choices

        names = check_names("names", names)
        columns = Columns(decision_maker, situation, alternative, choice, availability, weights)
        return pack_choices(source, path, columns, names, dtype)

    @staticmethod
    def open(path: str | Path) -> PackedChoices:
        """Open choices packed by `pack`.

        Raises
        ------
        ChoiceDataError
            If there is no complete pack, or one of its shards is damaged.
        """
        from mxlogit.choices.packed import PackedChoices

        return PackedChoices.open(path)

    def _with_padding(self) -> ChoiceData:
        """Return the same data with the padding invariants; tensors that already obey them are kept."""
        attributes, available, chosen = self.attributes, self.available, self.chosen
        if not bool(self.observed.all()):
            chosen = chosen.masked_fill(~self.observed, 0)
            first = torch.zeros_like(available)
            first[..., 0] = True
            available = torch.where(self.observed[..., None], available, first)
        usable = available & self.observed[..., None]
        if not bool(usable.all()):
            attributes = attributes.masked_fill(~usable[..., None], 0.0)
        return replace(self, attributes=attributes, available=available, chosen=chosen)

    def __repr__(self) -> str:
        return (
            f"<ChoiceData: {self.n_decision_makers:,} decision makers, {self.n_situations:,} choice situations, "
            f"{self.n_alternatives} alternatives; {' '.join(self.names)}>"
        )

    @property
    def n_decision_makers(self) -> int:
        """Number of decision makers."""
        return self.attributes.shape[0]

    @property
    def n_situations(self) -> int:
        """Number of observed choice situations of all decision makers."""
        return int(self.observed.sum())

    @property
    def n_alternatives(self) -> int:
        """Length of the alternative axis."""
        return self.attributes.shape[2]

    def to(self, *, device: torch.device | str, dtype: torch.dtype) -> ChoiceData:
        """Return the data on a device, attributes and weights in ``dtype``."""
        return replace(
            self,
            attributes=self.attributes.to(device, dtype),
            available=self.available.to(device),
            observed=self.observed.to(device),
            chosen=self.chosen.to(device),
            weights=self.weights.to(device, dtype),
            appearance=None if self.appearance is None else self.appearance.to(device),
            clusters=None if self.clusters is None else self.clusters.to(device),
        )

    def columns(self, names: Sequence[str]) -> list[int]:
        """Positions of attributes by name.

        Raises
        ------
        ChoiceDataError
            If a name is not an attribute.
        """
        return find_columns(self.names, names)

    def take(self, people: Tensor | slice) -> ChoiceData:
        """Return the panels of some people, by an index tensor (a copy) or a slice (without copying)."""
        index = people if isinstance(people, slice) else people.cpu().numpy()
        return replace(
            self,
            attributes=self.attributes[people],
            available=self.available[people],
            observed=self.observed[people],
            chosen=self.chosen[people],
            weights=self.weights[people],
            decision_makers=self.decision_makers[index],
            appearance=None if self.appearance is None else self.appearance[people],
            clusters=None if self.clusters is None else self.clusters[people],
        )


def find_columns(known: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Positions of wanted attributes among those known.

    Raises
    ------
    ChoiceDataError
        If a name is not an attribute.
    """
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ChoiceDataError(f"the choice data have no attribute {missing}; they have {list(known)}.")
    return [known.index(name) for name in wanted]
