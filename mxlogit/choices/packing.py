"""Packing of choices that do not fit in memory into sorted shards of decision makers.

The rows of a person may be scattered over the source. A first scan counts people and rows; a second writes every row to
the bucket of its shard on disk; each bucket is then read, checked and written as a shard. Memory holds one batch of
rows, one bucket, and the labels of the people.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mxlogit.choices.data import ChoiceData
from mxlogit.choices.ingest import read_frame
from mxlogit.choices.labels import labels_are_few, labels_recur, listed
from mxlogit.choices.packed import (
    FORMAT,
    MANIFEST,
    PEOPLE,
    PackedChoices,
    Shard,
    compute_checksum,
    manifest_checksum,
    write_shard,
)
from mxlogit.choices.sources import Source, import_pyarrow
from mxlogit.errors import ChoiceDataError
from mxlogit.spec import Columns, check_names

# Target number of attribute values (rows x attributes) per shard: 32 MB in single precision.
_CELLS_PER_SHARD = 8_000_000
# Largest number of bucket files open at a time; more shards take further scans of the source.
_OPEN_BUCKETS = 256
# Number of labels gathered before duplicates are removed, which bounds memory.
_LABELS_AT_ONCE = 1_000_000


def pack_choices(
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
        Directory to create. It appears once it is complete; an interrupted packing leaves no readable pack.
    names : sequence of str
        Attribute columns to keep (ignored for ChoiceData, whose attributes are all kept).
    decision_maker, situation, alternative, choice, availability, weights : str
        Names of the columns, as in `MixedLogit`.
    dtype : torch.dtype
        Floating point type of the attributes on disk.

    Returns
    -------
    PackedChoices

    Raises
    ------
    ChoiceDataError
        If the data would be rejected by `MixedLogit.fit`, or the path exists.
    MissingExtraError
        If pyarrow is needed and missing.
    """
    names = check_names("names", names)
    columns = Columns(decision_maker, situation, alternative, choice, availability, weights)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ChoiceDataError(f"dtype must be torch.float32 or torch.float64; got {dtype!r}.")
    target = Path(path)
    if target.exists():
        raise ChoiceDataError(f"{str(target)!r} exists; give another path, or delete it to pack again.")
    work = target.with_name(target.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
    except OSError as trouble:
        raise ChoiceDataError(f"{str(target)!r} cannot be created: {trouble}.") from None
    try:
        if isinstance(source, ChoiceData):
            _write(work, _slices(source.to(device="cpu")), source.names, source.alternatives, dtype)
        else:
            _pack_frames(source, work, columns, names, dtype)
        # Renamed last, so that only a complete pack has the final name.
        work.rename(target)
    except OverflowError as trouble:
        raise ChoiceDataError(
            f"whole numbers of more than 64 bits cannot be packed ({trouble}): write them as text."
        ) from None
    except Exception as trouble:
        if type(trouble).__module__.split(".")[0] != "pyarrow":
            raise
        raise ChoiceDataError(f"the source cannot be read as one table of choices: {trouble}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return PackedChoices.open(target)


def _write(
    work: Path,
    parts: Iterable[ChoiceData],
    names: tuple[str, ...],
    alternatives: np.ndarray | None,
    dtype: torch.dtype,
) -> None:
    """Write the shards, the labels and finally the manifest."""
    shards: list[Shard] = []
    labels, weights = [], []
    for data in parts:
        shards.append(write_shard(work, len(shards), data, dtype))
        labels.append(data.decision_makers)
        weights.append(data.weights.double().numpy())
    if not shards:
        raise ChoiceDataError("there are no rows to pack.")
    people = _plain_labels(np.concatenate(labels), "decision makers")
    arrays = {"labels": people, "weights": np.concatenate(weights)}
    known = None if alternatives is None else listed(alternatives)
    if alternatives is not None and not all(isinstance(label, (str, int, float)) for label in listed(alternatives)):
        arrays["alternatives"], known = _plain_labels(alternatives, "alternatives"), None
    np.savez(work / PEOPLE, **arrays)  # type: ignore[arg-type]
    facts = {
        "format": FORMAT,
        "names": list(names),
        "alternatives": known,
        "people": compute_checksum(work / PEOPLE),
        "shards": [asdict(shard) for shard in shards],
    }
    (work / MANIFEST).write_text(json.dumps({**facts, "checksum": manifest_checksum(facts)}, indent=1))


def _plain_labels(labels: np.ndarray, whose: str) -> np.ndarray:
    """Convert labels to numbers, dates or text, which are stored without pickling."""
    plain = pd.Index(labels).infer_objects().to_numpy()
    if plain.dtype.kind == "O":
        if not all(isinstance(label, str) for label in plain):
            first = next(label for label in plain if not isinstance(label, str))
            raise ChoiceDataError(
                f"labels of {whose} must be numbers, dates (without a time zone) or text to be packed; got {first!r} "
                f"({type(first).__name__})."
            )
        plain = plain.astype(np.str_)
    return plain


def _slices(data: ChoiceData) -> Iterator[ChoiceData]:
    """Iterate over shard-sized slices of choice data in memory."""
    rows, columns = data.choices.rows.shape
    before = data.first_rows[data.first_situations]
    cuts = torch.arange(0, rows, max(1, _CELLS_PER_SHARD // max(1, columns)))
    starts = torch.searchsorted(before, cuts).clamp(max=data.n_decision_makers - 1).unique().tolist()
    for start, stop in itertools.pairwise([*starts, data.n_decision_makers]):
        yield data.take(slice(start, stop))


def _pack_frames(source: Any, work: Path, columns: Columns, names: tuple[str, ...], dtype: torch.dtype) -> None:
    others = [columns.choice, *(c for c in (columns.availability, columns.weights) if c), *names]
    table = Source(source, columns.keys, others, work)
    census = _take_census(table, columns)
    size = max(1, int(_CELLS_PER_SHARD / (max(1, len(names)) * census.n_rows / len(census.people))))
    bounds = census.people[::size]
    alternatives = census.alternatives

    feather = import_pyarrow("feather")

    def parts() -> Iterator[ChoiceData]:
        for first in range(0, len(bounds), _OPEN_BUCKETS):
            for bucket in _fill_buckets(table.batches(), columns.decision_maker, bounds, first, work):
                frame = feather.read_table(bucket)
                yield read_frame(frame, columns, names, alternatives=alternatives).data
                bucket.unlink()

    _write(work, parts(), names, alternatives, dtype)
    table.forget()


@dataclass(frozen=True)
class _Census:
    """Sorted labels of all people, number of rows, and labels of the alternatives (None if they do not recur)."""

    people: np.ndarray
    n_rows: int
    alternatives: np.ndarray | None

    @classmethod
    def take(cls, batches: Iterator[Any], columns: Columns) -> _Census:
        people, alternatives = _Labels(columns.decision_maker), _Labels(columns.alternative)
        n_rows, most = 0, 0
        for batch in batches:
            people.add(batch)
            alternatives.add(batch)
            n_rows += len(batch)
            if not labels_are_few(len(alternatives), most):
                keys = batch.select(list(dict.fromkeys([columns.decision_maker, columns.situation]))).to_pandas()
                most = max(most, *keys.value_counts().tolist()[:1])
        if n_rows == 0:
            raise ChoiceDataError("there are no rows to pack.")
        labels = alternatives.sorted()
        recur = labels_recur(len(labels), n_rows, len(people), most)
        return cls(people.sorted(), n_rows, labels if recur else None)


def _take_census(table: Source, columns: Columns) -> _Census:
    """Scan a source; repeat with wider column types as long as values do not fit."""
    while True:
        try:
            return _Census.take(table.batches(), columns)
        except ValueError:
            if not table.widen():
                raise


class _Labels:
    """Distinct values of a column, accumulated batch by batch."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._known = np.array([])
        self._new: list[np.ndarray] = []

    def add(self, batch: Any) -> None:
        values = batch[self.column]
        if values.null_count:
            raise ChoiceDataError(
                f"column {self.column!r} has {values.null_count} missing values in a batch of {len(values)} rows; "
                "every row needs its keys."
            )
        self._new.append(values.unique().to_pandas().to_numpy())
        if sum(len(part) for part in self._new) > max(_LABELS_AT_ONCE, len(self._known)):
            self._merge()

    def __len__(self) -> int:
        self._merge()
        return len(self._known)

    def _merge(self) -> None:
        if not self._new:
            return
        # The empty initial array is left out, since its type would enter the result.
        known = [self._known] if len(self._known) else []
        self._known = pd.unique(np.concatenate([*known, *self._new]))
        self._new = []

    def sorted(self) -> np.ndarray:
        self._merge()
        values = pd.Series(self._known).infer_objects().to_numpy()
        try:
            return np.sort(values)
        except TypeError:
            raise ChoiceDataError(f"column {self.column!r} mixes kinds of labels that have no common order.") from None


def _fill_buckets(batches: Iterator[Any], column: str, bounds: np.ndarray, first: int, work: Path) -> Iterator[Path]:
    """Write the rows of up to `_OPEN_BUCKETS` shards, starting at ``first``, to one file each; yield the files."""
    pa, ipc = import_pyarrow(), import_pyarrow("ipc")
    count = min(_OPEN_BUCKETS, len(bounds) - first)
    files = [work / f"bucket-{first + i}" for i in range(count)]
    writers: list[Any] = [None] * count
    try:
        for batch in batches:
            shard = np.searchsorted(bounds, batch[column].to_pandas().to_numpy(), side="right") - 1 - first
            for i in np.unique(shard[(shard >= 0) & (shard < count)]).tolist():
                rows = batch.take(pa.array(np.flatnonzero(shard == i)))
                if writers[i] is None:
                    writers[i] = ipc.new_file(files[i], batch.schema)
                writers[i].write_table(rows)
    finally:
        for writer in writers:
            if writer is not None:
                writer.close()
    yield from files
