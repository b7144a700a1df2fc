"""Conversion of the arrays given to `ChoiceData.from_arrays`, of any layout and type, into tensors and labels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mxlogit.choices.labels import factorize
from mxlogit.choices.values import NotNumbersError, as_floats, read_numbers
from mxlogit.errors import ChoiceDataError


def as_numbers(name: str, values: Any) -> Tensor:
    """Convert real numbers into a tensor, which shares memory with ``values`` where torch supports their layout.

    Reversed, big-endian, read-only and object arrays are copied.

    Raises
    ------
    ChoiceDataError
        If ``values`` are ragged, masked, or not real numbers.
    """
    if isinstance(values, Tensor):
        return _check_real(name, values.detach())
    return torch.from_numpy(_plain(_read_array(name, values)))


def _read_array(name: str, values: Any) -> np.ndarray:
    """Read numbers of any type; exact numbers that double precision would round are returned as objects."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ChoiceDataError(f"{name} is a masked array: fill it, and mark masked entries with available or observed.")
    try:
        array = np.asarray(values)
    except ValueError:
        raise ChoiceDataError(f"{name} is ragged: pad it, and mark the padding with available or observed.") from None
    try:
        return read_numbers(array.ravel()).reshape(array.shape) if _is_unusual(array) else read_numbers(array)
    except NotNumbersError as trouble:
        raise ChoiceDataError(f"{name} {trouble}") from None


def _is_unusual(array: np.ndarray) -> bool:
    """Return whether the elements are objects or wider than double precision."""
    return array.dtype.kind == "O" or (array.dtype.kind == "f" and array.dtype.itemsize > np.dtype(float).itemsize)


def _check_real(name: str, values: Tensor) -> Tensor:
    if values.is_complex() or values.is_quantized or values.layout != torch.strided:
        raise ChoiceDataError(f"{name} must be a dense tensor of real numbers; got {values.dtype}, {values.layout}.")
    return values


def _plain(array: np.ndarray) -> np.ndarray:
    """Return the array if torch can share its memory (native byte order, forward strides, writable), else a copy."""
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize > 1:
        dtype = np.dtype(np.float64 if dtype.itemsize == 8 else np.int64)
    elif dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    usable = array.dtype == dtype and array.flags.writeable and min(array.strides, default=0) >= 0
    return array if usable else array.astype(dtype, order="C", copy=True)


def as_attributes(values: Any) -> Tensor:
    """Convert attributes (n, t, j, k) to float64; float32 and float64 are kept.

    Raises
    ------
    ChoiceDataError
        If they are not numbers or do not have four axes.
    """
    device = values.device if isinstance(values, Tensor) else torch.device("cpu")
    if isinstance(values, Tensor) and _check_real("attributes", values).is_floating_point():
        x = values.detach()
    else:
        array = _read_array("attributes", values.cpu().numpy() if isinstance(values, Tensor) else values)
        x = torch.from_numpy(_plain(_rounded(array) if array.ndim == 4 and array.size else array)).to(device)
    if x.dim() != 4 or 0 in x.shape[:3]:
        raise ChoiceDataError(f"attributes must have shape (n, t, j, k) with no empty axis; got {tuple(x.shape)}.")
    return x if x.dtype in (torch.float32, torch.float64) else x.double()


def _rounded(attributes: np.ndarray) -> np.ndarray:
    """Subtract from attributes (n, t, j, k) the largest of their situation where double precision would round them.

    The largest in absolute value belongs to an alternative: cells without one hold zero or a missing value.
    """
    if attributes.dtype.kind == "f":
        return attributes
    near = np.nan_to_num(np.abs(attributes.astype(np.float64)))
    origins = np.take_along_axis(attributes, near.argmax(2)[:, :, None], 2)
    return as_floats(attributes, np.broadcast_to(origins, attributes.shape))


def as_positions(name: str, values: Any, device: torch.device) -> Tensor:
    """Convert to int64, with -1 for missing values.

    Raises
    ------
    ChoiceDataError
        If some numbers are not whole.
    """
    numbers = as_numbers(name, values)
    if numbers.is_floating_point():
        broken = ~numbers.isnan() & (numbers != numbers.round())
        if bool(broken.any()):
            first = float(numbers[broken].flatten()[0])
            raise ChoiceDataError(f"{name} must hold whole numbers; {int(broken.sum())} are not, first {first}.")
        numbers = numbers.nan_to_num(nan=-1.0)
    return numbers.to(device, torch.int64)


def as_mask(name: str, values: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Convert 0/1 or False/True to a boolean mask of the given shape; None gives all True.

    Raises
    ------
    ChoiceDataError
        If the shape differs, or values are not 0 or 1.
    """
    if values is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    numbers = as_numbers(name, values).to(device)
    if tuple(numbers.shape) != shape:
        raise ChoiceDataError(f"{name} must have shape {shape}; got {tuple(numbers.shape)}.")
    strange = (numbers != 0) & (numbers != 1)
    if bool(strange.any()):
        raise ChoiceDataError(
            f"{name} must hold 0/1 or False/True; {int(strange.sum())} of {strange.numel()} values are something else, "
            f"first {numbers[strange].flatten()[0].item()}."
        )
    return numbers.bool()


def as_names(names: Any) -> tuple[str, ...]:
    """Convert attribute names to a tuple of strings.

    Raises
    ------
    ChoiceDataError
        If they are a single string, or not iterable.
    """
    if isinstance(names, str):
        raise ChoiceDataError(f"names must be a list of names; got the string {names!r}: write [{names!r}].")
    if not isinstance(names, Iterable):
        raise ChoiceDataError(f"names must be a list of names; got {names!r}.")
    return tuple(str(name) for name in names)


def as_labels(name: str, labels: Any) -> np.ndarray:
    """Convert labels to a vector that keeps their types: numbers among text are not turned into text.

    Raises
    ------
    ChoiceDataError
        If they are not a vector, or not hashable.
    """
    if not isinstance(labels, Iterable) or isinstance(labels, (str, bytes)):
        raise ChoiceDataError(f"{name} must be a vector of labels; got {labels!r}.")
    plain = labels if hasattr(labels, "__array__") else list(labels)
    if isinstance(plain, list) and (len(set(map(type, plain))) > 1 or any(isinstance(x, tuple) for x in plain)):
        array = np.empty(len(plain), dtype=object)
        array[:] = plain
    else:
        array = np.asarray(plain)
    if array.ndim != 1:
        raise ChoiceDataError(f"{name} must be a vector of labels; got an array of shape {array.shape}.")
    strange = [x for x in array if not isinstance(x, Hashable)] if array.dtype.kind == "O" else []
    if strange:
        raise ChoiceDataError(f"{name} must be numbers, text or dates; {len(strange)} are not, first {strange[0]!r}.")
    return array


def as_codes(name: str, labels: Any, count: int) -> Tensor:
    """Integer codes 0, 1, ... of ``count`` labels that may repeat.

    Raises
    ------
    ChoiceDataError
        If the number of labels is not ``count``, or some are missing.
    """
    codes, _ = factorize(as_labels(name, labels))
    if len(codes) != count:
        raise ChoiceDataError(f"{name} must have length {count}, one label per decision maker; got {len(codes)}.")
    if (codes < 0).any():
        raise ChoiceDataError(f"{name} has {int((codes < 0).sum())} missing labels (first: number {codes.argmin()}).")
    return torch.from_numpy(codes.astype(np.int64))
