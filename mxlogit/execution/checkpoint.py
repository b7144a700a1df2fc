"""Journal of the passes of a fit on disk, from which an interrupted fit resumes.

A fit is a deterministic function of the results of its passes over the people. A journal stores these results; a fit
that is repeated reads them back instead of computing them, up to the pass at which the first one was interrupted.
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
from mxlogit.execution.processes import Communicator

# Relative and absolute tolerance up to which the parameters of a repeated pass equal the stored ones.
_SAME = 1e-6


class Checkpoint:
    """File of tensors and text metadata that is replaced atomically.

    Parameters
    ----------
    path : Path
        Path of the file.
    identity : dict of str to str
        Identity of the fit that the file belongs to (`mxlogit.execution.identity`).
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path, self.identity = path, identity

    def read(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Read the tensors and metadata; None if there is no file.

        Raises
        ------
        SpecificationError
            If the file cannot be read, belongs to another fit, or is not writable.
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
            raise self.refuse("has no identity of a fit: another version wrote it") from None
        if differences:
            raise self.refuse(f"belongs to another fit: {differences}")

    def write(self, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
        """Replace the file atomically."""
        part = self.path.with_name(self.path.name + ".partial")
        part.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, {**facts, "identity": json.dumps(self.identity)})
        os.replace(part, self.path)

    def delete(self) -> None:
        """Delete the file, if it exists."""
        self.path.unlink(missing_ok=True)

    def refuse(self, what: str) -> SpecificationError:
        """Build the error for a file that cannot be used."""
        return SpecificationError(
            f"the checkpoint {str(self.path)!r} {what}. Delete it, give another path, or repeat the call that wrote it."
        )


class PassState(Protocol):
    """State that a pass updates in place (the modes that start the next one), stored with its result."""

    modes: Tensor


class Journal:
    """Journal that stores nothing: every pass is computed."""

    def run(self, name: str, at: Tensor, state: PassState, compute: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Return the results of a pass.

        Parameters
        ----------
        name : str
            Name of the pass and its people; the state's modes are stored under its first word.
        at : Tensor, shape (D,)
            Parameters at which the pass is made.
        state : PassState
            State of the pass; a stored pass sets the same modes as a computed one.
        compute : callable
            Function that computes the results.

        Returns
        -------
        list of Tensor
        """
        return list(compute())

    def pause(self) -> None:
        """Store no further passes but keep the stored ones, since the uninterrupted fit would proceed differently."""

    def finish(self) -> None:
        """Discard all passes, since the fit is complete."""


class FileJournal(Journal):
    """Journal in a file that is replaced atomically after every pass.

    Parameters
    ----------
    path : str or Path
        Path of the file; with several processes each has its own, with a suffix.
    identity : dict of str to str
        Identity of the fit.
    team : Communicator
        Processes of the fit; all resume from the last pass that every one has stored.

    Raises
    ------
    SpecificationError
        If the file cannot be read, or belongs to another fit.
    """

    def __init__(self, path: str | Path, identity: Identity, team: Communicator) -> None:
        suffix = f".{team.rank + 1}-of-{team.size}" if team.size > 1 else ""
        self._file = Checkpoint(Path(f"{path}{suffix}"), identity)
        self._names: list[str] = []
        self._tensors: dict[str, Tensor] = {}
        self._read()
        self._names = self._names[: min(team.gather(len(self._names)))]
        self._next, self._paused = 0, False

    def run(self, name: str, at: Tensor, state: PassState, compute: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Return the stored results of the pass, or compute and store them."""
        if self._paused:
            return list(compute())
        place, self._next = self._next, self._next + 1
        modes = f"modes {name.split()[0]}"
        if place < len(self._names):
            self._check(place, name, at)
            state.modes.copy_(self._tensors[modes])
            return [self._tensors[key] for key in self._keys(place)]
        results = list(compute())
        self._names.append(name)
        self._tensors[f"{place} at"] = at
        self._tensors |= {f"{place} {i:02d}": result.contiguous() for i, result in enumerate(results)}
        self._tensors[modes] = state.modes.cpu().contiguous()
        self._file.write(self._tensors, {"passes": json.dumps(self._names)})
        return results

    def pause(self) -> None:
        """Keep the file unchanged from now on."""
        self._paused = True

    def finish(self) -> None:
        """Delete the file, unless the journal was paused for a later resumption."""
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
                "perhaps because it comes from another machine or other versions of libraries"
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
