"""Numbers that users give as arguments: what counts as an integer or a real number, and what is said of others."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np


def is_integer(value: Any) -> bool:
    """Whether ``value`` is an integer of Python or numpy, or anything else with ``__index__``; no boolean is."""
    if isinstance(value, bool | np.bool_):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def is_real(value: Any) -> bool:
    """Whether ``value`` is a real number (not a string, a boolean or an array); NaN and infinities are."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def count(name: str, value: Any, least: int = 1, valid: str = "") -> int:
    """``value`` as a Python int of at least ``least``; ValueError, also for what is no integer."""
    valid = valid or ("a positive integer" if least == 1 else f"an integer of at least {least}")
    if not is_integer(value) or value < least:
        raise ValueError(f"{name} = {value!r}; valid: {valid}")
    return operator.index(value)


def real(name: str, value: Any) -> float:
    """``value`` as a float: any real number of Python or numpy, or an array of one. TypeError for what is none."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise TypeError(f"{name} = {value!r} is a {type(value).__name__}; valid: a real number")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} = {value!r} is a {type(value).__name__}; valid: a real number") from None
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def integer(value: Any, name: str, lowest: int = 1) -> int:
    """``value``, an integer of any library or a 0-dimensional tensor of one, as an int; ValueError if it is none, or
    below ``lowest``."""
    if type(value) is not int:
        value = _plain(value, name, operator.index, _integers(lowest))
    if value < lowest:
        raise ValueError(f"{name} = {value!r}; must be {_integers(lowest)}")
    return value


def number(
    value: Any, name: str, lowest: float = -math.inf, highest: float = math.inf, open_below: bool = False
) -> float:
    """``value``, a real number of any library or a 0-dimensional tensor of one, as a float. ValueError if it is none,
    not finite, or outside of ``lowest`` (excluded where ``open_below``) to ``highest``."""
    valid = _range(lowest, highest, open_below)
    if type(value) is not float:
        value = _plain(value, name, _real, valid)
    inside = lowest <= value <= highest and (value != lowest or not open_below)
    # Written so that torch.compile takes it, and NaN fails.
    if not (inside and -math.inf < value < math.inf):
        raise ValueError(f"{name} = {value!r}; must be {valid}")
    return value


def _integers(lowest: int) -> str:
    return {0: "an integer, not negative", 1: "a positive integer"}.get(lowest, f"an integer of at least {lowest}")


def _range(lowest: float, highest: float, open_below: bool) -> str:
    if highest < math.inf:
        return f"a number in {'(' if open_below else '['}{lowest:g}, {highest:g}]"
    if lowest > -math.inf:
        return f"a finite number {'above' if open_below else 'of at least'} {lowest:g}"
    return "a finite number"


def _plain(value: Any, name: str, convert: Any, valid: str) -> Any:
    """``value`` converted; text, truth values, complex numbers and arrays are no numbers."""
    try:
        found = value.item() if getattr(value, "ndim", None) == 0 else value
        if isinstance(found, bool):
            raise TypeError
        return convert(found)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} = {value!r}; must be {valid}") from None


def _real(value: Any) -> float:
    if not isinstance(value, Real):
        raise TypeError
    return float(value)
