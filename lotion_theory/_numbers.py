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
