"""Pack choices that do not fit in memory into shards of decision makers, in order.

The rows of a person may be anywhere in the source. A first scan counts people and rows; a second sends every row to the
bucket of its shard on disk; then one bucket after the other is read, checked and written. Memory holds a batch of rows,
one bucket, and the labels of the people.
"""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import torch

from mxlogit.choices.data import ChoiceData
from mxlogit.choices.frames import as_narwhals
from mxlogit.choices.ingest import read_frame
from mxlogit.choices.labels import are_few, do_recur
from mxlogit.choices.packed import FORMAT, MANIFEST, PEOPLE, PackedChoices, Shard, compute_checksum, write_shard
from mxlogit.errors import ChoiceDataError, MissingExtraError
from mxlogit.spec import Columns

# Attribute cells of a shard (32 MB in single precision), and buckets that are open at a time.
_CELLS_PER_SHARD = 8_000_000
_OPEN_BUCKETS = 256
_BATCH_ROWS = 500_000


def pack_choices(
    source: Any, path: str | Path, columns: Columns, names: Sequence[str], dtype: torch.dtype = torch.float32
) -> PackedChoices:
    """Write choices to shards (parameters as in `ChoiceData.pack`)."""
    target = Path(path)
    if target.exists():
        raise ChoiceDataError(f"{str(target)!r} exists; give another path, or delete it to pack again.")
    work = target.with_name(target.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        if isinstance(source, ChoiceData):
            _write(work, _slices(source), source.names, source.alternatives, dtype)
        else:
            _pack_frames(source, work, columns, tuple(names), dtype)
        # Only a complete pack ever has its own name.
        work.rename(target)
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
    """Write shards, labels and, last, the manifest."""
    shards: list[Shard] = []
    labels, weights = [], []
    for data in parts:
        shards.append(write_shard(work, len(shards), data, dtype))
        labels.append(data.decision_makers)
        weights.append(data.weights.double().numpy())
    if not shards:
        raise ChoiceDataError("there are no rows to pack.")
    people = _plain_labels(np.concatenate(labels))
    np.savez(work / PEOPLE, labels=people, weights=np.concatenate(weights))
    facts = {
        "format": FORMAT,
        "names": list(names),
        "alternatives": None if alternatives is None else alternatives.tolist(),
        "people": compute_checksum(work / PEOPLE),
        "shards": [asdict(shard) for shard in shards],
    }
    (work / MANIFEST).write_text(json.dumps(facts, indent=1))


def _plain_labels(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers, dates or text, which a file can hold without code in it."""
    plain = pd.Index(labels).infer_objects().to_numpy()
    if plain.dtype.kind == "O":
        if not all(isinstance(label, str) for label in plain):
            raise ChoiceDataError("labels of decision makers must be numbers, dates or text to be packed.")
        plain = plain.astype(np.str_)
    return plain


def _slices(data: ChoiceData) -> Iterator[ChoiceData]:
    """Slices of choice data that are in memory already."""
    rows, columns = data.choices.rows.shape
    before = data.first_rows[data.first_situations]
    cuts = torch.arange(0, rows, max(1, _CELLS_PER_SHARD // max(1, columns)))
    starts = torch.searchsorted(before, cuts).clamp(max=data.n_decision_makers - 1).unique().tolist()
    for start, stop in itertools.pairwise([*starts, data.n_decision_makers]):
        yield data.take(slice(start, stop))


def _pack_frames(source: Any, work: Path, columns: Columns, names: tuple[str, ...], dtype: torch.dtype) -> None:
    wanted = [*columns.keys, columns.choice, *(c for c in (columns.availability, columns.weights) if c), *names]
    table = _Source(source, list(dict.fromkeys(wanted)), work)
    census = _Census.take(table.batches(), columns)
    size = max(1, int(_CELLS_PER_SHARD / (max(1, len(names)) * census.n_rows / len(census.people))))
    bounds = census.people[::size]
    alternatives = census.alternatives

    feather = _pyarrow("feather")

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
    """Labels of all people, sorted; number of rows; labels of the alternatives, None if they do not recur."""

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
            if not are_few(len(alternatives), most):
                keys = batch.select(list(dict.fromkeys([columns.decision_maker, columns.situation]))).to_pandas()
                most = max(most, int(keys.value_counts().iloc[0]))
        if n_rows == 0:
            raise ChoiceDataError("there are no rows to pack.")
        labels = alternatives.sorted()
        recur = do_recur(len(labels), n_rows, len(people), most)
        return cls(people.sorted(), n_rows, labels if recur else None)


class _Labels:
    """Distinct values of a column, gathered batch by batch."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._known: pd.Index = pd.Index([])
        self._new: list[np.ndarray] = []

    def add(self, batch: Any) -> None:
        values = batch[self.column]
        if values.null_count:
            raise ChoiceDataError(
                f"column {self.column!r} has {values.null_count} missing values in a batch of {len(values)} rows; "
                "every row needs its keys."
            )
        self._new.append(values.unique().to_pandas().to_numpy())
        if sum(len(part) for part in self._new) > max(1_000_000, len(self._known)):
            self._merge()

    def __len__(self) -> int:
        self._merge()
        return len(self._known)

    def _merge(self) -> None:
        if not self._new:
            return
        self._known = pd.Index(pd.unique(np.concatenate([self._known.to_numpy(), *self._new])))
        self._new = []

    def sorted(self) -> np.ndarray:
        self._merge()
        values = self._known.infer_objects().to_numpy()
        try:
            return np.sort(values)
        except TypeError:
            raise ChoiceDataError(f"column {self.column!r} mixes kinds of labels that have no common order.") from None


def _fill_buckets(batches: Iterator[Any], column: str, bounds: np.ndarray, first: int, work: Path) -> Iterator[Path]:
    """Write the rows of up to `_OPEN_BUCKETS` shards from ``first`` on to a file each; yield the files."""
    pa, ipc = _pyarrow(), _pyarrow("ipc")
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


class _Source:
    """Batches of a source as pyarrow tables, as often as needed; what can be read once only is kept on disk."""

    def __init__(self, source: Any, wanted: list[str], work: Path) -> None:
        self.wanted = wanted
        self._spool: Path | None = None
        if isinstance(source, (str, Path)) or _is_list_of_paths(source):
            self._dataset = _open_dataset(source)
            self._check(self._dataset.schema.names)
        else:
            self._spool = work / "rows"
            self._write(_as_frames(source), self._spool)

    def batches(self) -> Iterator[Any]:
        """Scan from the beginning."""
        pa, ipc = _pyarrow(), _pyarrow("ipc")
        if self._spool is None:
            for batch in self._dataset.to_batches(columns=self.wanted, batch_size=_BATCH_ROWS):
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])
            return
        with pa.memory_map(str(self._spool)) as stream:
            reader = ipc.open_file(stream)
            for i in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(i)])

    def forget(self) -> None:
        """Delete what was kept on disk."""
        if self._spool is not None:
            self._spool.unlink()

    def _write(self, frames: Iterator[Any], spool: Path) -> None:
        ipc = _pyarrow("ipc")
        writer = None
        for frame in frames:
            table = as_narwhals(frame)
            self._check(table.columns)
            rows = table.select(self.wanted).to_arrow()
            if writer is None:
                schema = rows.schema
                writer = ipc.new_file(spool, schema)
            writer.write_table(rows.cast(schema), max_chunksize=_BATCH_ROWS)
        if writer is None:
            raise ChoiceDataError("there are no rows to pack.")
        writer.close()

    def _check(self, columns: Sequence[str]) -> None:
        missing = [name for name in self.wanted if name not in columns]
        if missing:
            raise ChoiceDataError(f"the source has no columns {missing}; it has {list(columns)[:20]}.")


def _open_dataset(source: Any) -> Any:
    """Open a Parquet or CSV file, a directory of them, or a list of files."""
    dataset = _pyarrow("dataset")
    paths = [Path(p) for p in ([source] if isinstance(source, (str, Path)) else source)]
    missing = [str(p) for p in paths if not p.exists()]
    if missing:
        raise ChoiceDataError(f"there is no file or directory {missing}.")
    files = sorted(f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
    kinds = {f.suffix.lower() for f in files if not f.name.startswith((".", "_"))}
    for suffix, kind in ((".parquet", "parquet"), (".csv", "csv")):
        if kinds == {suffix}:
            return dataset.dataset([str(f) for f in files if f.suffix.lower() == suffix], format=kind)
    raise ChoiceDataError(
        f"{[str(p) for p in paths]} must hold Parquet (.parquet) or CSV (.csv) files of one kind; found "
        f"{sorted(kinds)}."
    )


def _is_list_of_paths(source: Any) -> bool:
    return isinstance(source, (list, tuple)) and bool(source) and all(isinstance(p, (str, Path)) for p in source)


def _as_frames(source: Any) -> Iterator[Any]:
    """Frames of an iterator; a single frame is one."""
    if nw.dependencies.is_into_dataframe(source):
        return iter([source])
    if isinstance(source, Iterable):
        return iter(source)
    raise ChoiceDataError(
        "the source must be a Parquet or CSV file, a directory or list of such files, a frame, an iterator of frames "
        f"or a ChoiceData; got {type(source).__name__}."
    )


def _pyarrow(module: str = "") -> Any:
    """A module of pyarrow, needed for packing only."""
    try:
        return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError:
        raise MissingExtraError("packing choices needs pyarrow: pip install 'mxlogit[parquet]'.") from None
