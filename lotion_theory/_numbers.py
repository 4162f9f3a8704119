"""Numbers that users give as arguments: what counts as an integer or a real number, and what is said of others."""

from __future__ import annotations

import math
import operator
from numbers import Integral, Real
from typing import Any

import numpy as np


def is_integer(value: Any) -> bool:
    """Whether ``value`` is an integer of Python, numpy or another library that registers its own; no boolean is."""
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_)


def is_real(value: Any) -> bool:
    """Whether ``value`` is a real number (not a string, a boolean or an array); NaN and infinities are."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def integer(name: str, value: Any, least: int | None = None, below: int | None = None, valid: str = "") -> int:
    """``value`` as a Python int; whatever has ``__index__`` is taken, booleans are not.

    TypeError for what is no integer, ValueError for one under ``least``, or not ``below`` it. ``valid``: what is said
    to be valid.
    """
    valid = valid or ("an integer" if least is None else f"an integer from {least} on")
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} = {value!r} is a boolean; valid: {valid}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r} is a {type(value).__name__}; valid: {valid}") from None
    if (least is not None and number < least) or (below is not None and number >= below):
        raise ValueError(f"{name} = {value!r}; valid: {valid}")
    return number


def real(name: str, value: Any) -> float:
    """``value`` as a float: any real number of Python or numpy, or an array of one. TypeError for what is none."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise TypeError(f"{name} = {value!r} is a {type(value).__name__}; valid: a real number")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} = {value!r} is a {type(value).__name__}; valid: a real number") from None
    except OverflowError:
        return math.copysign(math.inf, value)
