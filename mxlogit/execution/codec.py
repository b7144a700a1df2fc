"""Objects as JSON beside named tensors, without code: only classes of a given list are made when they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Key of the kind of everything that JSON has no form for.
_KIND = "kind"
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class Recipe:
    """Description and construction of the objects of a class.

    Attributes
    ----------
    type : type
        Class.
    arguments : callable
        Function from an object to the arguments by name that make an equal one.
    make : callable
        Function from these arguments to an object.
    """

    type: type
    arguments: Callable[[Any], dict[str, Any]]
    make: Callable[..., Any]


def recipe_of(type_: type) -> Recipe:
    """Recipe of a dataclass, of named tuples, or of settings with ``get_params``."""
    if is_dataclass(type_):
        names = [part.name for part in fields(type_) if part.init]
        return Recipe(type_, lambda value: {name: getattr(value, name) for name in names}, type_)
    if hasattr(type_, "_fields"):
        return Recipe(type_, lambda value: value._asdict(), type_)
    return Recipe(type_, lambda value: value.get_params(deep=False), type_)


class Codec:
    """Conversion of objects to JSON and back.

    Parameters
    ----------
    recipes : sequence of Recipe
        The only classes that are written and made.
    enums : sequence of type
        Enumerations, by name of their members.
    """

    def __init__(self, recipes: Sequence[Recipe], enums: Sequence[type[Enum]]) -> None:
        self._recipes = {recipe.type.__name__: recipe for recipe in recipes}
        self._enums = {enum.__name__: enum for enum in enums}

    def encode(self, value: Any, tensors: dict[str, Tensor]) -> Any:
        """Describe a value, and add its tensors to ``tensors``.

        Raises
        ------
        TypeError
            If the value, or a part of it, is of a class that is not listed.
        """
        if value is None or isinstance(value, (bool, str)) or (isinstance(value, int) and not isinstance(value, Enum)):
            return value
        name = type(value).__name__
        if name in self._recipes and type(value) is self._recipes[name].type:
            given = self._recipes[name].arguments(value)
            return {_KIND: name, "arguments": {key: self.encode(part, tensors) for key, part in given.items()}}
        if isinstance(value, Enum) and name in self._enums:
            return {_KIND: "enum", "type": name, "member": value.name}
        if isinstance(value, Mapping):
            return {_KIND: "map", "items": [[self.encode(part, tensors) for part in pair] for pair in value.items()]}
        if isinstance(value, (list, tuple)):
            return {_KIND: type(value).__name__, "items": [self.encode(part, tensors) for part in value]}
        return self._encode_leaf(value, tensors)

    def _encode_leaf(self, value: Any, tensors: dict[str, Tensor]) -> Any:
        if isinstance(value, Tensor):
            return {_KIND: "tensor", **_store(value, tensors)}
        if isinstance(value, np.ndarray):
            return self._encode_array(value, tensors)
        if isinstance(value, np.generic):
            return self.encode(value.item(), tensors)
        if isinstance(value, float):
            return value if math.isfinite(value) else {_KIND: "float", "value": str(value)}
        if isinstance(value, (torch.dtype, torch.device, Path)):
            return {_KIND: type(value).__name__ if not isinstance(value, Path) else "path", "value": str(value)}
        raise TypeError(f"{type(value).__name__} {value!r} cannot be saved")

    def _encode_array(self, value: np.ndarray, tensors: dict[str, Tensor]) -> Any:
        if value.dtype.kind in "biuf" and value.dtype.isnative and value.dtype.itemsize <= 8:
            return {_KIND: "array", "dtype": value.dtype.str, **_store(torch.from_numpy(value.copy()), tensors)}
        if value.dtype.kind in "mM":
            whole = torch.from_numpy(value.astype(np.int64))
            return {_KIND: "times", "dtype": value.dtype.str, **_store(whole, tensors)}
        dtype = "object" if value.dtype.kind == "O" else value.dtype.str
        return {_KIND: "labels", "dtype": dtype, "items": [self.encode(part, tensors) for part in value]}

    def decode(self, words: Any, tensors: Mapping[str, Tensor]) -> Any:
        """Make what `encode` described.

        Raises
        ------
        ValueError
            If it is not a description, or one of a class that is not listed.
        """
        if words is None or isinstance(words, (bool, int, float, str)):
            return words
        kind = words[_KIND]
        if kind in self._recipes:
            given = {key: self.decode(part, tensors) for key, part in words["arguments"].items()}
            return self._recipes[kind].make(**given)
        if kind in ("list", "tuple", "map"):
            items = [self.decode(part, tensors) for part in words["items"]] if kind != "map" else None
            if items is None:
                return {self.decode(key, tensors): self.decode(part, tensors) for key, part in words["items"]}
            return items if kind == "list" else tuple(items)
        return self._decode_leaf(kind, words, tensors)

    def _decode_leaf(self, kind: str, words: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
        if kind == "tensor":
            return _restore(words, tensors)
        if kind in ("array", "times"):
            values = _restore(words, tensors).numpy()
            return values.view(words["dtype"]) if kind == "times" else values.astype(words["dtype"])
        if kind == "labels":
            result = np.empty(len(words["items"]), dtype=words["dtype"])
            result[:] = [self.decode(part, tensors) for part in words["items"]]
            return result
        if kind == "enum":
            return self._enums[words["type"]][words["member"]]
        if kind == "float":
            return _WORDS[words["value"]]
        if kind in ("dtype", "device"):
            value = words["value"].removeprefix("torch.")
            return getattr(torch, value) if kind == "dtype" else torch.device(value)
        if kind == "path":
            return Path(words["value"])
        raise ValueError(f"unknown kind {kind!r}")


def _store(value: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Add a tensor under a new name, in the order of its memory, so that sums over it are the same to the last bit."""
    name = f"t{len(tensors)}"
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda axis: -strides[axis])
    # A copy, because no two tensors of a file may share memory.
    tensors[name] = value.detach().cpu().permute(order).contiguous().clone()
    return {"name": name} if order == list(range(value.dim())) else {"name": name, "order": order}


def _restore(words: dict[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    value = tensors[words["name"]]
    if "order" not in words:
        return value
    return value.permute([words["order"].index(axis) for axis in range(value.dim())])
