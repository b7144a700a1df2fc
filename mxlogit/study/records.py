"""Studies that are stopped go on: a line for every finished run in a file, and runs in several processes."""

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
    """Return the facts of a study by the model that it fits and a data set that it makes.

    Parameters
    ----------
    est : MixedLogit
        Not fitted.
    data : frame or ChoiceData

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
    """Finished runs of one study.

    Attributes
    ----------
    path : Path or None
        None: nothing is kept.
    identity : dict of str to str
        Of the study; a file of another one is refused.
    keys : tuple of str
        Fields that tell records apart.
    """

    path: Path | None
    identity: Identity
    keys: tuple[str, ...]

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """What tells a record apart."""
        return tuple(record[name] for name in self.keys)

    def read(self) -> dict[tuple[Hashable, ...], Record]:
        """Finished runs; a last line that was cut off does not count.

        Raises
        ------
        SpecificationError
            If the file holds another study, or none at all.
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
        """Add a finished run."""
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
    """Records of a task for every key, as they finish; in this process, or in several of so many threads each."""
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
