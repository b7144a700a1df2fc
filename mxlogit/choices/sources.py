"""Sources of rows to pack (Parquet and CSV files, frames, iterators of frames), as batches of one schema."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import narwhals as nw

from mxlogit.choices.frames import as_narwhals
from mxlogit.errors import ChoiceDataError, MissingExtraError

# Rows of a batch, which bounds memory.
_BATCH_ROWS = 500_000
# Spellings of a missing number in text files.
_WORDS_FOR_MISSING = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", "#N/A")
# Bound below which all integers are exact in double precision.
_EXACT = 2.0**53


class Source:
    """Repeatable scans of a source as batches of pyarrow tables; frames and iterators are spooled to disk.

    Parameters
    ----------
    source : path, list of paths, frame or iterator of frames
        Rows to scan.
    keys : sequence of str
        Columns of labels.
    others : sequence of str
        Columns of numbers.
    work : Path
        Directory for spooled rows.
    """

    def __init__(self, source: Any, keys: Sequence[str], others: Sequence[str], work: Path) -> None:
        self.keys, self.wanted = list(keys), list(dict.fromkeys([*keys, *others]))
        self._spools: list[Path] = []
        self._dataset: Any = None
        self._is_text, self._as_written = False, set[str]()
        if isinstance(source, (str, Path)) or _is_list_of_paths(source):
            self._dataset = _open_dataset(source)
            schemas = [part.physical_schema for part in self._dataset.get_fragments()]
            self._is_text = all(map(_is_text_file, self._dataset.get_fragments()))
            for schema in schemas:
                self._check(schema.names)
            if self._is_text:
                schemas = self._with_text_where_labels_differ(schemas)
            self.schema = self._common(schemas, "file")
            self._give_up_doubtful_types()
        else:
            self.schema = self._common(self._write(_as_frames(source), work), "frame")

    def batches(self) -> Iterator[Any]:
        """Scan the source from the beginning.

        Raises
        ------
        ValueError
            If values of a text file do not fit the types guessed from its first rows; `widen` may help.
        """
        pa = import_pyarrow()
        for batch in self._scan():
            if batch.num_rows:
                yield self._with_types(pa.Table.from_batches([batch]))

    def widen(self) -> bool:
        """Read integer columns of text files as floating point from now on; return whether any type changed.

        Types are guessed from the first rows, whose numbers may be whole by chance.
        """
        if not self._is_text:
            return False
        pa, types, before = import_pyarrow(), import_pyarrow("types"), self.schema
        for place, field in enumerate(before):
            if field.name in self._as_written:
                self.schema = self.schema.set(place, pa.field(field.name, pa.string()))
            elif field.name not in self.keys and (types.is_integer(field.type) or types.is_null(field.type)):
                self.schema = self.schema.set(place, pa.field(field.name, pa.float64()))
        return bool(self.schema != before)

    def _with_types(self, table: Any) -> Any:
        """Cast a batch to the types of the schema; labels of text files are read verbatim first."""
        if self._dataset is None or not self._is_text:
            return table.cast(self.schema)
        pa, compute = import_pyarrow(), import_pyarrow("compute")
        for place, field in enumerate(table.schema):
            if field.name not in self.keys:
                continue
            text = table.column(place)
            text = compute.if_else(compute.equal(text, ""), pa.scalar(None, text.type), text)
            table = table.set_column(place, field.name, self._labels(field.name, text))
        return table.cast(self.schema)

    def _labels(self, name: str, text: Any) -> Any:
        """Convert labels of a text file to the type guessed from its first rows.

        Raises
        ------
        ChoiceDataError
            If labels of a column of numbers are spellings of a missing value.
        ValueError
            If labels do not fit the type; they are read as text from then on.
        """
        wanted = self.schema.field(name).type
        if wanted == text.type:
            return text
        compute, pa = import_pyarrow("compute"), import_pyarrow()
        words = compute.sum(compute.is_in(text, value_set=pa.array(_WORDS_FOR_MISSING))).as_py()
        if words:
            raise ChoiceDataError(
                f"column {name!r} of numbers has {words} labels that mean a missing value ({_WORDS_FOR_MISSING[0]}, "
                "...) in text files; every row needs its keys. If they are labels, pass a frame or Parquet with text."
            )
        try:
            labels = text.cast(wanted)
        except ValueError:
            self._as_written.add(name)
            raise
        if not _is_date(wanted) and not _are_plain_numbers(text, labels):
            self._as_written.add(name)
            raise ValueError(f"labels of {name!r} are not plain numbers")
        return labels

    @property
    def _written(self) -> Any:
        """Schema of a text file with all labels as text."""
        pa, schema = import_pyarrow(), self.schema
        for place, field in enumerate(schema):
            if field.name in self.keys:
                schema = schema.set(place, pa.field(field.name, pa.string()))
        return schema

    def _with_text_where_labels_differ(self, schemas: list[Any]) -> list[Any]:
        """Set labels to text in all schemas if they are numbers in one text file and not in another."""
        pa = import_pyarrow()
        for key in self.keys:
            kinds = [schema.field(key).type for schema in schemas]
            if all(_wider(kinds[0], kind) is not None for kind in kinds):
                continue
            schemas = [schema.set(schema.get_field_index(key), pa.field(key, pa.string())) for schema in schemas]
        return schemas

    def _give_up_doubtful_types(self) -> None:
        """Read labels of text files as text unless they are numbers or dates."""
        pa, types = import_pyarrow(), import_pyarrow("types")
        for place, field in enumerate(self.schema):
            plain = types.is_integer(field.type) or types.is_floating(field.type) or _is_date(field.type)
            if self._is_text and field.name in self.keys and not plain:
                self.schema = self.schema.set(place, pa.field(field.name, pa.string()))

    def forget(self) -> None:
        """Delete the spooled rows."""
        for spool in self._spools:
            spool.unlink()

    def _scan(self) -> Iterator[Any]:
        if self._dataset is not None:
            for fragment in self._dataset.get_fragments():
                # Types guessed from the first rows of one text file may be too narrow.
                schema = self._written if self._is_text else fragment.physical_schema
                yield from fragment.to_batches(schema=schema, columns=self.wanted, batch_size=_BATCH_ROWS)
            return
        pa, ipc = import_pyarrow(), import_pyarrow("ipc")
        for spool in self._spools:
            with pa.memory_map(str(spool)) as stream:
                reader = ipc.open_file(stream)
                for i in range(reader.num_record_batches):
                    yield reader.get_batch(i)

    def _write(self, frames: Iterator[Any], work: Path) -> list[Any]:
        """Spool frames to disk, one file per run of equal schemas; return the schemas."""
        ipc, writer = import_pyarrow("ipc"), None
        schemas: list[Any] = []
        try:
            for frame in frames:
                table = as_narwhals(frame)
                self._check(table.columns)
                rows = self._plain(
                    table.select(self.wanted).to_arrow().select(self.wanted).replace_schema_metadata(None)
                )
                if not schemas or schemas[-1] != rows.schema:
                    if writer is not None:
                        writer.close()
                    schemas.append(rows.schema)
                    self._spools.append(work / f"rows-{len(schemas)}")
                    writer = ipc.new_file(self._spools[-1], rows.schema)
                assert writer is not None
                writer.write_table(rows, max_chunksize=_BATCH_ROWS)
        finally:
            if writer is not None:
                writer.close()
        if not schemas:
            raise ChoiceDataError("there are no rows to pack.")
        return schemas

    def _plain(self, rows: Any) -> Any:
        """Convert categorical labels to plain ones: the categories of frames differ."""
        types = import_pyarrow("types")
        for place, field in enumerate(rows.schema):
            if field.name in self.keys and types.is_dictionary(field.type):
                rows = rows.set_column(place, field.name, rows.column(place).cast(field.type.value_type))
        return rows

    def _common(self, schemas: Sequence[Any], what: str) -> Any:
        """Common schema that can hold the values of all."""
        pa = import_pyarrow()
        fields = []
        for name in self.wanted:
            kind = schemas[0].field(name).type
            for place, schema in enumerate(schemas[1:], 2):
                other = schema.field(name).type
                wider = _wider(kind, other)
                if wider is None:
                    raise ChoiceDataError(f"column {name!r} is {kind} first and {other} in {what} {place}; convert it.")
                kind = wider
            fields.append(pa.field(name, kind))
        return pa.schema(fields)

    def _check(self, columns: Sequence[str]) -> None:
        missing = [name for name in self.wanted if name not in columns]
        if missing:
            raise ChoiceDataError(f"the source has no columns {missing}; it has {list(columns)[:20]}.")


def _are_plain_numbers(text: Any, numbers: Any) -> bool:
    """Return whether different text labels stay different as numbers: no leading zeros, no excess digits."""
    compute, types = import_pyarrow("compute"), import_pyarrow("types")
    plain = compute.all(compute.match_substring_regex(text, r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$")).as_py()
    if not types.is_floating(numbers.type) or plain is False:
        return plain is not False
    largest = compute.max(compute.abs(numbers)).as_py()
    return largest is None or largest < _EXACT


def _is_date(kind: Any) -> bool:
    return bool(import_pyarrow("types").is_temporal(kind))


def _is_text_file(fragment: Any) -> bool:
    return bool(fragment.format.default_extname == "csv")


def _wider(one: Any, other: Any) -> Any:
    """Common type of two number, text or date types; None if there is none."""
    pa, types = import_pyarrow(), import_pyarrow("types")
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if all(map(_is_number, (one, other))):
        floating = any(map(types.is_floating, (one, other)))
        # Signed and unsigned 64-bit integers have no common integer type.
        signs = {types.is_unsigned_integer(kind) for kind in (one, other) if kind.bit_width == 64}
        return pa.float64() if floating else None if len(signs) > 1 else pa.uint64() if signs == {True} else pa.int64()
    if all(map(_is_text, (one, other))):
        return pa.large_string()
    if all(map(types.is_timestamp, (one, other))) and one.tz == other.tz:
        return min(one, other, key=lambda kind: ["ns", "us", "ms", "s"].index(kind.unit))
    return None


def _is_number(kind: Any) -> bool:
    types = import_pyarrow("types")
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_text(kind: Any) -> bool:
    types = import_pyarrow("types")
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _open_dataset(source: Any) -> Any:
    """Open a Parquet or CSV file, a directory of them, or a list of files."""
    dataset = import_pyarrow("dataset")
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
    """Iterate over frames; a single frame counts as an iterator of one."""
    if nw.dependencies.is_into_dataframe(source):
        return iter([source])
    if isinstance(source, Iterable):
        return iter(source)
    raise ChoiceDataError(
        "the source must be a Parquet or CSV file, a directory or list of such files, a frame, an iterator of frames "
        f"or a ChoiceData; got {type(source).__name__}."
    )


def import_pyarrow(module: str = "") -> Any:
    """Import a module of pyarrow, which is needed for packing only."""
    try:
        return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError:
        raise MissingExtraError("packing choices needs pyarrow: pip install 'mxlogit[parquet]'.") from None
