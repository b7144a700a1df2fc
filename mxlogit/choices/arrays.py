"""Arrays that are given to `ChoiceData.from_arrays`, of any layout and type, as tensors and labels."""

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
    """Real numbers as a tensor that shares memory with ``values`` where torch can use them as they are.

    Reversed, big-endian, read-only and object arrays are copied.

    Raises
    ------
    ChoiceDataError
        If they are ragged, masked, or no real numbers.
    """
    if isinstance(values, Tensor):
        return _check_real(name, values.detach())
    return torch.from_numpy(_plain(_read_array(name, values)))


def _read_array(name: str, values: Any) -> np.ndarray:
    """Numbers of any type, exact ones as objects where double precision would round them."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ChoiceDataError(f"{name} is a masked array: fill it, and mark the holes with available or observed.")
    try:
        array = np.asarray(values)
    except ValueError:
        raise ChoiceDataError(f"{name} is ragged: pad it, and mark the padding with available or observed.") from None
    try:
        return read_numbers(array.ravel()).reshape(array.shape) if _is_unusual(array) else read_numbers(array)
    except NotNumbersError as trouble:
        raise ChoiceDataError(f"{name} {trouble}") from None


def _is_unusual(array: np.ndarray) -> bool:
    """Return whether elements are objects, or of more than double precision."""
    return array.dtype.kind == "O" or (array.dtype.kind == "f" and array.dtype.itemsize > np.dtype(float).itemsize)


def _check_real(name: str, values: Tensor) -> Tensor:
    if values.is_complex() or values.is_quantized or values.layout != torch.strided:
        raise ChoiceDataError(f"{name} must be a dense tensor of real numbers; got {values.dtype}, {values.layout}.")
    return values


def _plain(array: np.ndarray) -> np.ndarray:
    """The array itself where torch can share its memory, else a copy: native bytes, forward strides, writable."""
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize > 1:
        dtype = np.dtype(np.float64 if dtype.itemsize == 8 else np.int64)
    elif dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    usable = array.dtype == dtype and array.flags.writeable and min(array.strides, default=0) >= 0
    return array if usable else array.astype(dtype, order="C", copy=True)


def as_attributes(values: Any) -> Tensor:
    """Attributes (n, t, j, k): float32 and float64 as they are, others as float64.

    Raises
    ------
    ChoiceDataError
        If they are no numbers or have another number of axes.
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
    """Attributes (n, t, j, k) as they are, but less the largest of the situation where double precision rounds them.

    The largest one is that of an alternative: there is zero, or nothing, where none is.
    """
    if attributes.dtype.kind == "f":
        return attributes
    near = np.nan_to_num(np.abs(attributes.astype(np.float64)))
    origins = np.take_along_axis(attributes, near.argmax(2)[:, :, None], 2)
    return as_floats(attributes, np.broadcast_to(origins, attributes.shape))


def as_positions(name: str, values: Any, device: torch.device) -> Tensor:
    """Whole numbers; -1 where they are missing.

    Raises
    ------
    ChoiceDataError
        If some are not whole.
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
    """0/1 or False/True of a given shape as bool; all True where there is none.

    Raises
    ------
    ChoiceDataError
        If the shape is another, or values are not 0 or 1.
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
    """Names of attributes.

    Raises
    ------
    ChoiceDataError
        If they are a single string.
    """
    if isinstance(names, str):
        raise ChoiceDataError(f"names must be a list of names; got the string {names!r}: write [{names!r}].")
    if not isinstance(names, Iterable):
        raise ChoiceDataError(f"names must be a list of names; got {names!r}.")
    return tuple(str(name) for name in names)


def as_labels(name: str, labels: Any) -> np.ndarray:
    """Labels in one row, as they are: not as text where numbers are among them.

    Raises
    ------
    ChoiceDataError
        If they have another number of axes, or cannot be labels.
    """
    if not isinstance(labels, Iterable) or isinstance(labels, (str, bytes)):
        raise ChoiceDataError(f"{name} must be labels in one row; got {labels!r}.")
    plain = labels if hasattr(labels, "__array__") else list(labels)
    if isinstance(plain, list) and (len(set(map(type, plain))) > 1 or any(isinstance(x, tuple) for x in plain)):
        array = np.empty(len(plain), dtype=object)
        array[:] = plain
    else:
        array = np.asarray(plain)
    if array.ndim != 1:
        raise ChoiceDataError(f"{name} must be labels in one row; got an array of shape {array.shape}.")
    strange = [x for x in array if not isinstance(x, Hashable)] if array.dtype.kind == "O" else []
    if strange:
        raise ChoiceDataError(f"{name} must be numbers, text or dates; {len(strange)} are not, first {strange[0]!r}.")
    return array


def as_codes(name: str, labels: Any, count: int) -> Tensor:
    """Whole numbers 0, 1, ... for labels that may repeat, one for each of ``count``.

    Raises
    ------
    ChoiceDataError
        If there are more or fewer, or some are missing.
    """
    codes, _ = factorize(as_labels(name, labels))
    if len(codes) != count:
        raise ChoiceDataError(f"{name} must have length {count}, one label per decision maker; got {len(codes)}.")
    if (codes < 0).any():
        raise ChoiceDataError(f"{name} has {int((codes < 0).sum())} missing labels (first: number {codes.argmin()}).")
    return torch.from_numpy(codes.astype(np.int64))
