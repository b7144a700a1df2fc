"""The passes of a fit on disk, so that one that was killed goes on from its last pass.

A fit is a deterministic function of its passes over the people. A journal keeps what every pass returned; a fit that
is started again gets those results back without computing them, and so comes to where the first one was killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mxlogit.errors import SpecificationError
from mxlogit.execution.identity import Identity, describe_differences
from mxlogit.execution.processes import Team

_SAME = 1e-6


class Checkpoint:
    """Tensors and facts in one file, whole or not at all.

    Parameters
    ----------
    path : Path
    identity : dict of str to str
        Identity of the fit that writes the file, and that alone may read it (`mxlogit.execution.identity`).
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path, self.identity = path, identity

    def read(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """What was written last; None where there is no file.

        Raises
        ------
        SpecificationError
            If the file cannot be read, belongs to another fit, or could not be written.
        """
        try:
            if not self.path.exists():
                self._try_to_write()
                return None
        except (OSError, ValueError) as trouble:
            raise SpecificationError(f"the checkpoint {str(self.path)!r} cannot be written: {trouble}.") from None
        try:
            with safe_open(self.path, "pt") as file:
                facts = file.metadata() or {}
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as trouble:
            raise self.refuse(f"cannot be read ({trouble})") from None
        self._check(facts.pop("identity", ""))
        return tensors, facts

    def _try_to_write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".partial")
        part.touch()
        part.unlink()

    def _check(self, words: str) -> None:
        try:
            differences = describe_differences(dict(json.loads(words)), self.identity)
        except (ValueError, TypeError):
            raise self.refuse("does not say which fit it belongs to: another version wrote it") from None
        if differences:
            raise self.refuse(f"belongs to another fit: {differences}")

    def write(self, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
        """Replace the file."""
        part = self.path.with_name(self.path.name + ".partial")
        part.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, {**facts, "identity": json.dumps(self.identity)})
        os.replace(part, self.path)

    def delete(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def refuse(self, what: str) -> SpecificationError:
        """Return the error that says why the file is of no use."""
        return SpecificationError(
            f"the checkpoint {str(self.path)!r} {what}. Delete it, give another path, or repeat the call that wrote it."
        )


class Keeper(Protocol):
    """Who makes passes, and what it carries from one to the next."""

    modes: Tensor


class Journal:
    """No journal: every pass is computed."""

    def run(self, name: str, at: Tensor, keeper: Keeper, compute: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Return what the pass ``name`` at the parameters ``at`` (D,) returns.

        Parameters
        ----------
        name : str
            Which pass, over whom; the keeper's modes are kept under its first word.
        at : Tensor
        keeper : Keeper
            Has the same modes after a pass that is remembered as after one that is computed.
        compute : callable

        Returns
        -------
        list of Tensor
        """
        return list(compute())

    def pause(self) -> None:
        """Remember no further passes, and keep those that are: what follows is not what the whole fit would do."""

    def finish(self) -> None:
        """Forget all passes: the fit is done."""


class FileJournal(Journal):
    """A journal in a file, written anew after every pass (whole or not at all).

    Parameters
    ----------
    path : str or Path
    identity : dict of str to str
        Identity of the fit.
    team : Team
        Every process has a file of its own; all go on from the last pass that each of them has.

    Raises
    ------
    SpecificationError
        If the file cannot be read, or belongs to another fit.
    """

    def __init__(self, path: str | Path, identity: Identity, team: Team) -> None:
        suffix = f".{team.rank + 1}-of-{team.size}" if team.size > 1 else ""
        self._file = Checkpoint(Path(f"{path}{suffix}"), identity)
        self._names: list[str] = []
        self._tensors: dict[str, Tensor] = {}
        self._read()
        self._names = self._names[: min(team.gather(len(self._names)))]
        self._next, self._paused = 0, False

    def run(self, name: str, at: Tensor, keeper: Keeper, compute: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Return what the pass returned the last time, or compute it and write it down."""
        if self._paused:
            return list(compute())
        place, self._next = self._next, self._next + 1
        modes = f"modes {name.split()[0]}"
        if place < len(self._names):
            self._check(place, name, at)
            keeper.modes.copy_(self._tensors[modes])
            return [self._tensors[key] for key in self._keys(place)]
        results = list(compute())
        self._names.append(name)
        self._tensors[f"{place} at"] = at
        self._tensors |= {f"{place} {i:02d}": result.contiguous() for i, result in enumerate(results)}
        self._tensors[modes] = keeper.modes.cpu().contiguous()
        self._file.write(self._tensors, {"passes": json.dumps(self._names)})
        return results

    def pause(self) -> None:
        """Leave the file as it is."""
        self._paused = True

    def finish(self) -> None:
        """Delete the file, unless it is left for the fit to go on from."""
        if not self._paused:
            self._file.delete()

    def _keys(self, place: int) -> list[str]:
        return sorted(key for key in self._tensors if key.startswith(f"{place} ") and not key.endswith(" at"))

    def _check(self, place: int, name: str, at: Tensor) -> None:
        before = self._tensors[f"{place} at"]
        same = before.shape == at.shape and torch.allclose(before, at, rtol=_SAME, atol=_SAME)
        if not same or self._names[place] != name:
            raise self._file.refuse(
                f"cannot be resumed: its pass {place + 1} ({self._names[place]}) is not the one that this fit makes, "
                "perhaps since it comes from another machine or other versions of libraries"
            )

    def _read(self) -> None:
        found = self._file.read()
        if found is None:
            return
        self._tensors, facts = found
        try:
            self._names = json.loads(facts["passes"])
        except (KeyError, ValueError) as trouble:
            raise self._file.refuse(f"cannot be read ({trouble})") from None
