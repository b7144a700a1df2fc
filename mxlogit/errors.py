"""Errors and warnings of mxlogit, checks of arguments, and spelling suggestions.

Each error also inherits from the corresponding builtin, so that ``except ValueError`` works.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sklearn.exceptions


class MxlogitError(Exception):
    """Base class of all errors raised by mxlogit."""


class ChoiceDataError(MxlogitError, ValueError):
    """Error in the choice data; the message lists all problems found."""


class SpecificationError(MxlogitError, ValueError):
    """Error in the specification or the settings: an unknown name or option, or an unidentified coefficient."""


class ProcessError(MxlogitError, RuntimeError):
    """Failure or loss of another process of a fit on several processes; the message names it."""


class NotFittedError(MxlogitError, sklearn.exceptions.NotFittedError):  # type: ignore[misc]
    """Request for a result of an estimator that is not fitted; also scikit-learn's error of that name."""


class MissingExtraError(MxlogitError, ImportError):
    """Missing optional dependency; the message names the extra to install."""


class ConvergenceWarning(UserWarning):
    """Warning of a fit that ended without meeting its stopping rule, or with a poor diagnostic."""


class ChoiceDataWarning(UserWarning):
    """Warning of ambiguous choice data; the message states the interpretation used and how to select the other."""


def suggest(name: object, known: Iterable[object]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name (with types if only they differ), or an empty string."""
    spelled = {str(k): k for k in known}
    nearest = difflib.get_close_matches(str(name), list(spelled), n=1, cutoff=0.5)
    if not nearest:
        return ""
    meant = spelled[nearest[0]]
    types = f" ({type(meant).__name__}), not {name!r} ({type(name).__name__})" if str(meant) == str(name) else ""
    return f" Did you mean {meant!r}{types}?"


def check_option(argument: str, value: object, allowed: Iterable[object]) -> None:
    """Check that ``value`` is one of ``allowed``.

    Raises
    ------
    SpecificationError
        If it is not; the message names the argument, the allowed options and the value.
    """
    allowed = list(allowed)
    if not any(value is option or value == option for option in allowed):
        options = ", ".join(repr(option) for option in allowed)
        hint = suggest(value, allowed)
        raise SpecificationError(f"{argument} must be one of {options}; got {value!r}.{hint}")


def check_at_least(argument: str, value: float, lowest: float) -> None:
    """Check that ``value`` is a number of at least ``lowest``.

    Raises
    ------
    SpecificationError
        If it is not; the message names the argument, the bound and the value.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not value >= lowest:
        raise SpecificationError(f"{argument} must be a number of at least {lowest}; got {value!r}.")


def check_probability(argument: str, value: object) -> None:
    """Check that ``value`` is a float strictly between 0 and 1.

    Raises
    ------
    SpecificationError
        If it is not; the message names the argument and the value.
    """
    if not (isinstance(value, float) and 0.0 < value < 1.0):
        raise SpecificationError(f"{argument} must be a probability between 0 and 1, such as 0.95; got {value!r}.")


def check_probabilities(argument: str, values: object) -> None:
    """Check that ``values`` is a sequence of floats strictly between 0 and 1.

    Raises
    ------
    SpecificationError
        If it is not; the message names the argument and the value.
    """
    if isinstance(values, (str, float, int)) or not isinstance(values, Iterable):
        raise SpecificationError(f"{argument} must be a list of probabilities, such as [0.05, 0.5]; got {values!r}.")
    for value in values:
        check_probability(argument, value)


def check_finite(argument: str, value: float) -> None:
    """Check that a number is not infinite.

    Raises
    ------
    SpecificationError
        If it is; the message names the argument and the value.
    """
    if math.isinf(value):
        raise SpecificationError(f"{argument} must be finite; got {value!r}.")


def check_flag(argument: str, value: object) -> None:
    """Check that ``value`` is True or False.

    Raises
    ------
    SpecificationError
        If it is not; the message names the argument and the value.
    """
    if not isinstance(value, bool):
        raise SpecificationError(f"{argument} must be True or False; got {value!r}.")


def check_path(argument: str, value: object) -> None:
    """Check that ``value`` is None or the path of a file.

    Raises
    ------
    SpecificationError
        If it is not; the message names the argument and the value.
    """
    if value is not None and (not isinstance(value, (str, os.PathLike)) or os.fspath(value) in ("", ".", b"")):
        raise SpecificationError(f"{argument} must be None or the path of a file; got {value!r}.")


def check_whole(argument: str, value: object, lowest: int) -> None:
    """Check that ``value`` is an integer (Python or numpy) of at least ``lowest``.

    Raises
    ------
    SpecificationError
        If it is not; the message names the argument, the bound and the value.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < lowest:  # type: ignore[call-overload]
        raise SpecificationError(f"{argument} must be a whole number of at least {lowest}; got {value!r}.")


# Rule of one setting: raises SpecificationError unless the value is allowed, given the argument's name for the message.
Rule = Callable[[str, Any], None]


def check_settings(settings: object, rules: Mapping[str, Rule]) -> None:
    """Check every setting by its rule.

    Parameters
    ----------
    settings : object
        Settings as attributes.
    rules : mapping of str to Rule
        Rules by name of the setting.

    Raises
    ------
    SpecificationError
        At the first setting that is not allowed; the message names the class, the setting, what is allowed and the
        value.
    """
    for name, rule in rules.items():
        rule(f"{type(settings).__name__}({name}=...)", getattr(settings, name))


def one_of(*allowed: object) -> Rule:
    """Rule: one of the given values."""
    return lambda argument, value: check_option(argument, value, allowed)


def whole(lowest: int) -> Rule:
    """Rule: an integer of at least ``lowest``."""
    return lambda argument, value: check_whole(argument, value, lowest)


def at_least(lowest: float) -> Rule:
    """Rule: a number of at least ``lowest``, perhaps infinite."""
    return lambda argument, value: check_at_least(argument, value, lowest)


def positive(argument: str, value: Any) -> None:
    """Rule: a positive finite number."""
    check_at_least(argument, value, 1e-12)
    check_finite(argument, value)


def either(other: object, rule: Rule) -> Rule:
    """Rule: the value ``other``, or what another rule allows."""

    def check(argument: str, value: Any) -> None:
        if value is not other and not (isinstance(other, str) and value == other):
            rule(argument, value)

    return check
