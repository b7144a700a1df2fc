"""Every error and warning that mxlogit raises on purpose, and the helper that suggests a spelling.

Each error also inherits the builtin that a caller would expect, so ``except ValueError`` keeps working.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
from collections.abc import Iterable

import sklearn.exceptions


class MxlogitError(Exception):
    """Base class of all errors that mxlogit raises on purpose."""


class ChoiceDataError(MxlogitError, ValueError):
    """The choice data cannot be used as they are; the message lists every problem found."""


class SpecificationError(MxlogitError, ValueError):
    """The request itself is wrong: an unknown name, an impossible option, an unidentified coefficient."""


class ProcessError(MxlogitError, RuntimeError):
    """Another process of a fit on several processes failed or was lost; the message names it."""


class NotFittedError(MxlogitError, sklearn.exceptions.NotFittedError):  # type: ignore[misc]
    """A result was asked of an estimator that has not been fitted; scikit-learn's error of that name, too."""


class MissingExtraError(MxlogitError, ImportError):
    """An optional dependency is needed; the message names the extra to install."""


class ConvergenceWarning(UserWarning):
    """A fit ended without meeting its stopping rule, or one of its diagnostics is poor."""


class ChoiceDataWarning(UserWarning):
    """The choice data can be read in two ways; the message says which one was taken, and how to ask for the other."""


def suggest(name: object, known: Iterable[object]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string; types where only they differ."""
    spelled = {str(k): k for k in known}
    nearest = difflib.get_close_matches(str(name), list(spelled), n=1, cutoff=0.5)
    if not nearest:
        return ""
    meant = spelled[nearest[0]]
    types = f" ({type(meant).__name__}), not {name!r} ({type(name).__name__})" if str(meant) == str(name) else ""
    return f" Did you mean {meant!r}{types}?"


def check_option(argument: str, value: object, allowed: Iterable[object]) -> None:
    """Raise unless ``value`` is one of ``allowed``.

    Raises
    ------
    SpecificationError
        Naming the argument, what is allowed and what came.
    """
    allowed = list(allowed)
    if not any(value is option or value == option for option in allowed):
        options = ", ".join(repr(option) for option in allowed)
        hint = suggest(value, allowed)
        raise SpecificationError(f"{argument} must be one of {options}; got {value!r}.{hint}")


def check_at_least(argument: str, value: float, lowest: float) -> None:
    """Raise unless ``value`` is a number of at least ``lowest``.

    Raises
    ------
    SpecificationError
        Naming the argument, the bound and what came.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not value >= lowest:
        raise SpecificationError(f"{argument} must be a number of at least {lowest}; got {value!r}.")


def check_probability(argument: str, value: object) -> None:
    """Raise unless ``value`` lies between 0 and 1.

    Raises
    ------
    SpecificationError
        Naming the argument and what came.
    """
    if not (isinstance(value, float) and 0.0 < value < 1.0):
        raise SpecificationError(f"{argument} must be a probability between 0 and 1, such as 0.95; got {value!r}.")


def check_finite(argument: str, value: float) -> None:
    """Raise if a number is infinite.

    Raises
    ------
    SpecificationError
        Naming the argument and what came.
    """
    if math.isinf(value):
        raise SpecificationError(f"{argument} must be finite; got {value!r}.")


def check_flag(argument: str, value: object) -> None:
    """Raise unless ``value`` is True or False.

    Raises
    ------
    SpecificationError
        Naming the argument and what came.
    """
    if not isinstance(value, bool):
        raise SpecificationError(f"{argument} must be True or False; got {value!r}.")


def check_path(argument: str, value: object) -> None:
    """Raise unless ``value`` is None or a path of a file.

    Raises
    ------
    SpecificationError
        Naming the argument and what came.
    """
    if value is not None and (not isinstance(value, (str, os.PathLike)) or os.fspath(value) in ("", ".", b"")):
        raise SpecificationError(f"{argument} must be None or the path of a file; got {value!r}.")


def check_whole(argument: str, value: object, lowest: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``lowest``, of Python or numpy.

    Raises
    ------
    SpecificationError
        Naming the argument, the bound and what came.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < lowest:  # type: ignore[call-overload]
        raise SpecificationError(f"{argument} must be a whole number of at least {lowest}; got {value!r}.")
