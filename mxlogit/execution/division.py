"""Division of decision makers among the processes of a fit, determined by comparing their data."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mxlogit.choices import ChoiceData, PackedChoices
from mxlogit.choices.chunks import PEOPLE_AT_ONCE
from mxlogit.errors import ChoiceDataError, ChoiceDataWarning
from mxlogit.execution.identity import digest_people
from mxlogit.execution.processes import Communicator
from mxlogit.model.differences import difference_panels

# Share of a process's people with the same choices in another process, above which they are taken for the same people.
_SAME_PEOPLE = 0.5
# Ratio of the number of people with equal choices across processes to the number expected by chance (from equal choices
# within processes) above which the excess is not sampling noise.
_BEYOND_CHANCE = 2


def share_people(
    data: ChoiceData | PackedChoices, team: Communicator, dtype: torch.dtype
) -> ChoiceData | PackedChoices:
    """Return the decision makers of this process: a part of data common to all processes, or its own data.

    Data are common if labels and choices of all decision makers are equal in all processes, in the same order. Else
    the fit uses the decision makers of all processes; those with the same label in two processes are different people
    if their choices differ.

    Parameters
    ----------
    data : ChoiceData or PackedChoices
        Choices given to this process.
    team : Communicator
        Processes of the fit.
    dtype : torch.dtype
        Floating point type of the fit, to which attributes are rounded before comparison.

    Returns
    -------
    ChoiceData or PackedChoices

    Raises
    ------
    ChoiceDataError
        If processes share some but not all decision makers, have the same data in different packs, or differ in
        attributes or alternatives.
    """
    if team.size == 1:
        return data
    _check_columns(data, team)
    # Packs are compared by the checksums of their files, without reading the files.
    packs = set(team.gather(data.digest if isinstance(data, PackedChoices) else None))
    if len(packs) == 1 and None not in packs:
        return _split(data, team)
    people = _Labelled(data.decision_makers.astype(np.str_), _digest_each(data, dtype))
    # Digests of all people are exchanged only if the digest of the whole differs.
    if len(set(team.gather(people.digest()))) == 1:
        if len(packs) > 1:
            raise ChoiceDataError(
                "processes have the same data in packs of different shards, or partly in memory, which cannot be "
                "split alike: open the same pack in all of them, or give the same frame to all."
            )
        return _split(data, team)
    by_process = team.gather(people)
    ambiguous = count_ambiguous([part.labels for part in by_process], [part.contents for part in by_process])
    relabelled = count_relabelled([part.contents for part in by_process])
    if relabelled and not ambiguous and team.rank == 0:
        warnings.warn(
            f"{relabelled} decision makers of a process have the very choices of decision makers of another process, "
            "but other labels: they are taken for different people and all counted. If they are the same people, give "
            "every process the same labels.",
            ChoiceDataWarning,
            stacklevel=4,
        )
    if ambiguous and team.rank == 0:
        warnings.warn(
            f"{ambiguous} labels of decision makers are in the data of several processes, with different choices in "
            "each: they are taken for different people. Give every decision maker a unique label; if they are the same "
            "people, give all choices of each to one process.",
            ChoiceDataWarning,
            stacklevel=4,
        )
    return data


@dataclass(frozen=True)
class _Labelled:
    """Labels (n,) of the people of a process, and digests of their data."""

    labels: np.ndarray
    contents: list[bytes]

    def digest(self) -> str:
        digest = hashlib.sha256(repr(self.labels.tolist()).encode())
        digest.update(b"".join(self.contents))
        return digest.hexdigest()


def count_ambiguous(labels: Sequence[np.ndarray], contents: Sequence[Sequence[bytes]]) -> int:
    """Count the labels that are used for different people in several processes.

    Labels identify people unless one of them has different choices in two processes. Then choices identify them, unless
    equal choices are as frequent within processes (few alternatives, few situations).

    Parameters
    ----------
    labels : sequence of ndarray, shape (n,)
        Labels of the people of every process.
    contents : sequence of sequence of bytes, length n
        Digests of the data of the people of every process.

    Returns
    -------
    int

    Raises
    ------
    ChoiceDataError
        If processes share some of their people.
    """
    parts = zip(labels, contents, strict=True)
    people = pd.concat([pd.DataFrame({"label": a, "content": b, "process": i}) for i, (a, b) in enumerate(parts)])
    by_label = people.groupby("label")
    shared = by_label["process"].nunique() > 1
    ambiguous = shared & (by_label["content"].nunique() > 1)
    if not ambiguous.any():
        common = shared.index[shared]
        if len(common):
            raise _overlap(common.tolist())
        return 0
    alike, by_chance = _alike_elsewhere(people)
    if alike.sum() > _BEYOND_CHANCE * by_chance:
        raise _overlap(people[alike].drop_duplicates("content")["label"].tolist())
    return int(ambiguous.sum())


def _alike_elsewhere(people: pd.DataFrame) -> tuple[pd.Series, int]:
    """Mask of the people whose choices also occur in another process, and their expected number by chance.

    The expected number is estimated from equal choices within processes (few alternatives, few situations).
    """
    alike = people.groupby("content")["process"].transform("nunique") > 1
    others = people["process"].nunique() - 1
    return alike, int(people.duplicated(["process", "content"], keep=False).sum()) * others


def count_relabelled(contents: Sequence[Sequence[bytes]]) -> int:
    """Count the people of a process whose choices also occur in another process; 0 unless they are the majority."""
    people = pd.concat([pd.DataFrame({"content": b, "process": i}) for i, b in enumerate(contents)])
    alike, by_chance = _alike_elsewhere(people)
    share = alike.groupby(people["process"]).mean()
    if alike.sum() <= _BEYOND_CHANCE * by_chance or not share.max() > _SAME_PEOPLE:
        return 0
    return int(alike[(people["process"] == share.idxmax()).to_numpy()].sum())


def _overlap(common: Sequence[str]) -> ChoiceDataError:
    return ChoiceDataError(
        f"{len(common)} decision makers are in the data of several processes (first: {common[:5]}), with the "
        "same choices, but these data are not the same: give every process the same data in the same order, or "
        "different people. Different people with the same choices need unique labels."
    )


def _check_columns(data: ChoiceData | PackedChoices, team: Communicator) -> None:
    names = team.gather(tuple(data.names))
    if len({frozenset(own) for own in names}) == 1 and len(set(names)) > 1:
        raise ChoiceDataError(
            f"processes list the same attributes in different orders: {list(names[0])} and "
            f"{list(next(other for other in names if other != names[0]))}."
        )
    if any(other != names[0] for other in names):
        raise ChoiceDataError(
            "processes have data with different attributes, or alternatives that have constants; all must have the "
            f"same: {', '.join(sorted(set().union(*names) - set(names[0]).intersection(*names)))} are not in all."
        )


def _digest_each(data: ChoiceData | PackedChoices, dtype: torch.dtype) -> list[bytes]:
    parts = (difference_panels(part.to(device="cpu"), dtype=dtype) for part in _parts(data))
    return [digest for part in parts for digest in digest_people(part)]


def _parts(data: ChoiceData | PackedChoices) -> Iterator[ChoiceData]:
    if isinstance(data, PackedChoices):
        yield from data.read_all()
        return
    for start in range(0, data.n_decision_makers, PEOPLE_AT_ONCE):
        yield data.take(slice(start, start + PEOPLE_AT_ONCE))


def _split(data: ChoiceData | PackedChoices, team: Communicator) -> ChoiceData | PackedChoices:
    if isinstance(data, PackedChoices):
        return data.part(team.rank, team.size)
    cuts = [data.n_decision_makers * i // team.size for i in (team.rank, team.rank + 1)]
    return data.take(slice(*cuts))
