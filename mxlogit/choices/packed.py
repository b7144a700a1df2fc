"""Choice data packed on disk: sorted shards of decision makers, read through memory maps.

A pack is a directory with ``manifest.json``, ``people.npz`` (labels and weights) and one safetensors file per shard.
Attributes are stored as differences to the chosen alternative of each choice situation, which determine the
probabilities; they are taken before rounding. `mxlogit.choices.packing` writes packs.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mxlogit.choices.chunks import ROWS_AT_ONCE
from mxlogit.choices.constants import constant_labels
from mxlogit.choices.data import ChoiceData, find_columns
from mxlogit.choices.ingest import add_constants
from mxlogit.choices.moments import AttributeMoments
from mxlogit.choices.rows import ChoiceRows
from mxlogit.errors import ChoiceDataError

# File names of the manifest and of the labels and weights of decision makers.
MANIFEST = "manifest.json"
PEOPLE = "people.npz"
# Name and version of the format, stored in the manifest.
FORMAT = "mxlogit choices 2"


@dataclass(frozen=True)
class Shard:
    """One file of a pack.

    Attributes
    ----------
    file : str
        Name of the file.
    people, situations, rows, columns : int
        Numbers of decision makers, choice situations, rows (available alternatives of all situations) and attributes.
    alternatives : int
        Length of the alternative axis.
    gram, squares : sequence of float, lengths k x k and k
        Moments (`AttributeMoments`) of the attributes before differences were taken and rounded.
    rounding : float
        Relative rounding error of the attributes before differences were taken.
    size : int
        Size of the file in bytes.
    checksum : int
        CRC-32 of the file.
    """

    file: str
    people: int
    situations: int
    rows: int
    columns: int
    alternatives: int
    gram: tuple[float, ...]
    squares: tuple[float, ...]
    rounding: float
    size: int
    checksum: int


@dataclass(frozen=True, eq=False, repr=False)
class PackedChoices:
    """Choices of a panel of decision makers on disk, which `MixedLogit.fit` reads shard by shard.

    Attributes
    ----------
    path : Path
        Directory of the pack.
    shards : tuple of Shard
        Files of the pack.
    names : tuple of str
        Names of the k attributes.
    decision_makers : ndarray, shape (n,)
        Labels of the decision makers, sorted.
    weights : Tensor, shape (n,)
        Weight of each decision maker.
    alternatives : ndarray or None, shape (j,)
        Labels of the alternatives; None if positions carry no label.
    """

    path: Path
    shards: tuple[Shard, ...]
    names: tuple[str, ...]
    decision_makers: np.ndarray
    weights: Tensor
    alternatives: np.ndarray | None = None
    _constants: tuple[object] | None = None
    _checked: set[tuple[str, int]] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> PackedChoices:
        """Open a pack written by `mxlogit.pack_choices`.

        Raises
        ------
        ChoiceDataError
            If there is no complete pack, or a shard is missing or its size has changed since it was written.
        """
        if not isinstance(path, (str, Path)):
            raise ChoiceDataError(f"a pack is opened by its path; got {path!r}.")
        root = Path(path)
        try:
            facts = json.loads((root / MANIFEST).read_text())
            checksum = compute_checksum(root / PEOPLE)
        except (OSError, ValueError) as trouble:
            raise ChoiceDataError(f"{str(root)!r} is not a complete pack of choices: {trouble}.") from None
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            found = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
            raise ChoiceDataError(
                f"{str(root)!r} has format {found!r}; this version reads {FORMAT!r}. Pack the data again."
            )
        if facts.pop("checksum", None) != manifest_checksum(facts):
            raise ChoiceDataError(f"{str(root / MANIFEST)!r} was changed since it was written. Pack the data again.")
        if facts["people"] != checksum:
            raise ChoiceDataError(
                f"{str(root / PEOPLE)!r} is not the file that was written with {MANIFEST}: it is damaged, or of "
                "another pack. Pack the data again."
            )
        with np.load(root / PEOPLE) as people:
            labels, weights = people["labels"], torch.from_numpy(people["weights"])
            alternatives = people["alternatives"] if "alternatives" in people else _as_labels(facts["alternatives"])
        shards = tuple(_shard_from(entry) for entry in facts["shards"])
        for place, shard in enumerate(shards):
            _check_size(root, shard, place, len(shards))
        return cls(root, shards, tuple(facts["names"]), labels, weights, alternatives)

    def __repr__(self) -> str:
        return (
            f"<PackedChoices in {str(self.path)!r}: {self.n_decision_makers:,} decision makers, "
            f"{self.n_situations:,} choice situations in {len(self.shards)} shards, up to {self.n_alternatives} "
            f"alternatives; {' '.join(self.names)}>"
        )

    @property
    def n_decision_makers(self) -> int:
        """Number of decision makers."""
        return len(self.decision_makers)

    @property
    def n_situations(self) -> int:
        """Number of observed choice situations, summed over decision makers."""
        return sum(shard.situations for shard in self.shards)

    @property
    def n_alternatives(self) -> int:
        """Largest length of the alternative axis over the shards."""
        return max((shard.alternatives for shard in self.shards), default=1)

    @property
    def first_places(self) -> list[int]:
        """Index of the first decision maker of every shard, followed by the number of decision makers."""
        return [0, *np.cumsum([shard.people for shard in self.shards]).tolist()]

    @property
    def digest(self) -> str:
        """SHA-256 digest of the pack's contents, computed from the checksums of its files."""
        facts = (self.shards, self.names, self.decision_makers.tolist(), self.weights.tolist(), self._constants)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def columns(self, names: Sequence[str]) -> list[int]:
        """Positions of attributes by name.

        Raises
        ------
        ChoiceDataError
            If a name is not an attribute.
        """
        return find_columns(self.names, names)

    def with_constants(self, base: object) -> PackedChoices:
        """Return the choices with a dummy added for every alternative but the base (see `ingest.add_constants`)."""
        names = (*self.names, *constant_labels(self.alternatives, base, self.names))
        return replace(self, names=names, _constants=(base,))

    def part(self, index: int, count: int) -> PackedChoices:
        """Return one of ``count`` parts of consecutive shards with about equally many people, possibly none."""
        places = np.array(self.first_places)
        cuts = np.searchsorted(places, np.linspace(0, places[-1], count + 1) - 0.5)
        first, last = int(cuts[index]), int(cuts[index + 1])
        people = slice(int(places[first]), int(places[last]))
        return replace(
            self,
            shards=self.shards[first:last],
            decision_makers=self.decision_makers[people],
            weights=self.weights[people],
        )

    def read(self, place: int) -> ChoiceData:
        """Map one shard into memory; attributes are read from disk on access.

        Raises
        ------
        ChoiceDataError
            If the shard has changed since it was written; the message names it.
        """
        shard, first = self.shards[place], self.first_places[place]
        _check_size(self.path, shard, place, len(self.shards))
        # The modification time identifies a file that was replaced after its check.
        state = shard.file, (self.path / shard.file).stat().st_mtime_ns
        if state not in self._checked and compute_checksum(self.path / shard.file) != shard.checksum:
            raise _damage(shard, place, len(self.shards), "its contents have changed")
        self._checked.add(state)
        try:
            tensors = load_file(self.path / shard.file)
        except (SafetensorError, OSError) as trouble:
            raise _damage(shard, place, len(self.shards), str(trouble)) from None
        people = slice(first, first + shard.people)
        data = self._data(tensors, self.names[: shard.columns], people)
        return data if self._constants is None else add_constants(data, self._constants[0])

    def _data(self, tensors: dict[str, Tensor], names: tuple[str, ...], people: slice) -> ChoiceData:
        choices = ChoiceRows(
            tensors["rows"],
            tensors["set_sizes"],
            tensors["chosen_ranks"].long(),
            tensors["panel_lengths"],
            tensors.get("positions"),
        )
        return ChoiceData(
            choices=choices,
            weights=self.weights[people].to(choices.rows),
            names=names,
            decision_makers=self.decision_makers[people],
            n_alternatives=self.n_alternatives,
            alternatives=self.alternatives,
        )

    def empty(self) -> ChoiceData:
        """Return choice data without decision makers."""
        counts = torch.zeros(0, dtype=torch.int64)
        rows = torch.zeros(0, len(self.names), dtype=self.weights.dtype)
        nothing = {"rows": rows, "set_sizes": counts, "chosen_ranks": counts, "panel_lengths": counts}
        return self._data(nothing, self.names, slice(0, 0))

    def read_all(self) -> Iterator[ChoiceData]:
        """Iterate over the shards, mapping each into memory."""
        for place in range(len(self.shards)):
            yield self.read(place)

    def moments(self) -> AttributeMoments:
        """Moments of the attributes, summed over all shards."""
        total = AttributeMoments.zeros(len(self.names))
        for shard, data in zip(self.shards, self.read_all(), strict=True):
            found, k = AttributeMoments.of(data), shard.columns
            found.square[:k] = found.square.new_tensor(shard.squares)
            found.gram[:k, :k] = found.gram.new_tensor(shard.gram).view(k, k)
            total = total + replace(found, rounding=shard.rounding)
        return total


def _as_labels(listed: list[Any] | None) -> np.ndarray | None:
    """Convert labels to an array, of objects if their types differ."""
    return None if listed is None else pd.Series(listed, dtype=object).infer_objects().to_numpy()


def _shard_from(entry: dict[str, Any]) -> Shard:
    return Shard(**entry)


def _check_size(root: Path, shard: Shard, place: int, count: int) -> None:
    file = root / shard.file
    if not file.exists():
        raise _damage(shard, place, count, "it is missing")
    if file.stat().st_size != shard.size:
        raise _damage(shard, place, count, f"it has {file.stat().st_size} bytes instead of {shard.size}")


def _damage(shard: Shard, place: int, count: int, what: str) -> ChoiceDataError:
    return ChoiceDataError(f"shard {place + 1} of {count} ({shard.file}) is damaged: {what}. Pack the data again.")


def manifest_checksum(facts: dict[str, Any]) -> int:
    """CRC-32 of the contents of a manifest."""
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def compute_checksum(file: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def write_shard(root: Path, place: int, data: ChoiceData, dtype: torch.dtype) -> Shard:
    """Write one shard and return its entry of the manifest."""
    name = f"{place:05d}.safetensors"
    c, file = data.choices, root / name
    tensors = {
        "rows": _differences(data, dtype),
        "set_sizes": c.set_sizes.contiguous(),
        "chosen_ranks": c.chosen_ranks.to(torch.int32).contiguous(),
        "panel_lengths": c.panel_lengths.contiguous(),
    }
    if c.positions is not None:
        tensors["positions"] = c.positions.contiguous()
    save_file(tensors, file)
    counts = data.n_decision_makers, data.n_situations, len(c.rows), len(data.names), data.n_alternatives
    moments = AttributeMoments.of(data)
    gram, squares = tuple(moments.gram.flatten().tolist()), tuple(moments.square.tolist())
    return Shard(name, *counts, gram, squares, moments.rounding, file.stat().st_size, compute_checksum(file))


def _differences(data: ChoiceData, dtype: torch.dtype) -> Tensor:
    """Attributes (r, k) minus those of the situation's chosen alternative; rounded after the difference is taken."""
    c = data.choices
    chosen = (data.first_rows[:-1] + c.chosen_ranks).repeat_interleave(c.set_sizes.long())
    result = torch.empty(c.rows.shape, dtype=dtype)
    for start in range(0, len(chosen), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        result[part] = c.rows[part] - c.rows[chosen[part]]
    return result
