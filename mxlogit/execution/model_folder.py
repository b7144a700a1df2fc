"""Folder of a saved model: a description in JSON, and its tensors; no code is stored, and none is run on reading."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mxlogit.errors import SpecificationError

# Version of the format: a larger one is refused by older packages.
FORMAT = 1
_KIND = "mxlogit model"
_WORDS, _TENSORS = "model.json", "tensors.safetensors"


def write_folder(folder: Path, content: Mapping[str, Any], tensors: dict[str, Tensor], version: str) -> None:
    """Write a model, or replace an older one: the folder is there as a whole, or not at all.

    Raises
    ------
    SpecificationError
        If the folder holds something else, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _WORDS).exists())):
        raise SpecificationError(f"{str(folder)!r} holds something else than a saved model; give a new folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as trouble:
        raise SpecificationError(f"{str(folder)!r} cannot be written: {trouble}.") from None
    try:
        save_file(tensors, part / _TENSORS)
        facts = {"kind": _KIND, "format": FORMAT, "version": version, "checksum": _checksum(part / _TENSORS)}
        (part / _WORDS).write_text(json.dumps({**facts, "content": content}, allow_nan=False), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError as trouble:
        raise SpecificationError(f"{str(folder)!r} cannot be written: {trouble}.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_folder(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read the description and the tensors.

    Raises
    ------
    SpecificationError
        If the folder is not there, is not of a saved model, is damaged, or was written by a newer version.
    """
    if not folder.is_dir():
        raise SpecificationError(f"there is no saved model: {str(folder)!r} is no folder.")
    if not (folder / _WORDS).is_file():
        raise SpecificationError(f"{str(folder)!r} holds no saved model: it has no {_WORDS}.")
    try:
        words = json.loads((folder / _WORDS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as trouble:
        raise damaged(folder, f"{_WORDS} cannot be read ({trouble})") from None
    if not isinstance(words, dict) or words.get("kind") != _KIND or not isinstance(words.get("format"), int):
        raise SpecificationError(f"{str(folder / _WORDS)!r} is not of a saved model of mxlogit.")
    if words["format"] > FORMAT:
        raise SpecificationError(
            f"{str(folder)!r} was written by mxlogit {words.get('version')}, in format {words['format']}; this version "
            f"reads formats up to {FORMAT}. Upgrade mxlogit."
        )
    if "content" not in words:
        raise damaged(folder, f"{_WORDS} has no content")
    return words["content"], _read_tensors(folder, words.get("checksum"))


def _read_tensors(folder: Path, checksum: object) -> dict[str, Tensor]:
    path = folder / _TENSORS
    if not path.is_file():
        raise damaged(folder, f"{_TENSORS} is missing")
    try:
        if _checksum(path) != checksum:
            raise damaged(folder, f"{_TENSORS} is not the file that was written")
        return load_file(path)
    except (OSError, SafetensorError) as trouble:
        raise damaged(folder, f"{_TENSORS} cannot be read ({trouble})") from None


def damaged(folder: Path, why: str) -> SpecificationError:
    """Error of a saved model that is not whole."""
    return SpecificationError(f"the saved model in {str(folder)!r} is damaged: {why}. Save it again.")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
