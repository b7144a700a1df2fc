"""Files of finished runs, from which interrupted studies resume, and runs in several processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from mxlogit.choices import ChoiceData
from mxlogit.errors import SpecificationError
from mxlogit.estimator import MixedLogit
from mxlogit.execution.identity import Identity, describe_differences, describe_settings, digest_data
from mxlogit.execution.people import People
from mxlogit.model.differences import difference_panels
from mxlogit.reading import read_choices

Key = TypeVar("Key", bound=Hashable)
Record = dict[str, Any]


def identify_study(est: MixedLogit, data: Any) -> Identity:
    """Return the identity of a study: its model, and the digest of one of its data sets.

    Parameters
    ----------
    est : MixedLogit
        Estimator of the study, not fitted.
    data : frame or ChoiceData
        Data set of the study.

    Returns
    -------
    dict of str to str
    """
    choices = read_choices(data, est._columns(), est._specify())
    assert isinstance(choices, ChoiceData)
    return {
        "data": digest_data(People.gather(difference_panels(choices))),
        **describe_settings(est, without=("method", "random_state", "verbose")),
        "version": version("mxlogit"),
    }


@dataclass(frozen=True)
class RecordFile:
    """File of the finished runs of one study.

    Attributes
    ----------
    path : Path or None
        Path of the file; None if runs are not stored.
    identity : dict of str to str
        Identity of the study; the file of another study is rejected.
    keys : tuple of str
        Fields that identify a record.
    """

    path: Path | None
    identity: Identity
    keys: tuple[str, ...]

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """Values that identify a record."""
        return tuple(record[name] for name in self.keys)

    def read(self) -> dict[tuple[Hashable, ...], Record]:
        """Read the finished runs; incomplete lines are ignored.

        Raises
        ------
        SpecificationError
            If the file belongs to another study, or is not a file of runs.
        """
        if self.path is None or not self.path.exists() or not self.path.stat().st_size:
            return {}
        try:
            first, *lines = self.path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as trouble:
            raise self._refuse(f"cannot be read ({trouble})") from None
        found = _parse(first)
        if not isinstance(found, dict):
            raise self._refuse(f"holds another study, of another version, or none: it begins {first[:60]!r}")
        if differences := describe_differences(found, self.identity):
            raise self._refuse(f"holds another study: {differences}")
        records = [
            record for record in map(_parse, lines) if isinstance(record, dict) and not set(self.keys) - set(record)
        ]
        return {self.key(record): record for record in records}

    def _refuse(self, what: str) -> SpecificationError:
        return SpecificationError(f"{self.path} {what}. Give this study another path, or delete the file.")

    def append(self, record: Record) -> None:
        """Append a finished run."""
        if self.path is None:
            return
        new = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a") as stream:
            if new:
                stream.write(json.dumps(self.identity) + "\n")
            stream.write("\n" * (not new and not self._ends_with_newline()) + json.dumps(record) + "\n")

    def _ends_with_newline(self) -> bool:
        assert self.path is not None
        with self.path.open("rb") as stream:
            stream.seek(-1, 2)
            return stream.read() == b"\n"


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def run_all(
    task: Callable[[Key], Record], keys: Sequence[Key], processes: int, threads: int | None = 1
) -> Iterator[Record]:
    """Iterate over the records of a task for all keys, as they finish.

    Tasks run in this process, or in several ``processes`` with ``threads`` threads each.
    """
    if processes == 1 or len(keys) < 2:
        yield from map(task, keys)
        return
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_set_threads, initargs=(threads,)
    )
    with pool:
        for future in as_completed([pool.submit(task, key) for key in keys]):
            yield future.result()


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
