"""Sorts of values in stored runs: what each is called, and how it is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Value(NamedTuple):
    """What values of one sort are called, and whether something is one."""

    words: str
    fits: Callable[[Any], bool]

    def optional(self) -> Value:
        return Value(f"{self.words} or null", lambda value: value is None or self.fits(value))


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a run can have measured."""
    # Integers beyond 64 bits are nothing that a run measures, and no float.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | str) or is_number(value)


def _is_named(value: Any, setting: Callable[[Any], bool]) -> bool:
    """Whether it is a text, or a name with settings of this sort."""
    if not isinstance(value, dict):
        return isinstance(value, str) and bool(value)
    return isinstance(value.get("name"), str) and bool(value["name"]) and all(map(setting, value.values()))


def _is_list_or_scalar(value: Any) -> bool:
    return all(map(_is_scalar, value)) if isinstance(value, list) else _is_scalar(value)


def _is_size(value: Any) -> bool:
    return is_number(value) and value > 0


TEXT = Value("text", lambda value: isinstance(value, str))
NAME = Value("a name", lambda value: isinstance(value, str) and bool(value))
NUMBER = Value("a finite number", is_number)
BOOLEAN = Value("true or false", lambda value: isinstance(value, bool))
COUNT = Value("a count", lambda value: type(value) is int and 0 <= value < 2**63)
OBJECT = Value("an object", lambda value: isinstance(value, dict))
PROBLEM = Value("a name, or an object with a name and settings", lambda value: _is_named(value, _is_list_or_scalar))
METHOD = Value("a name, or an object with a name and plain settings", lambda value: _is_named(value, _is_scalar))
SIZE = Value("a positive number", _is_size)
NUMBERS = Value("a list of numbers", lambda value: isinstance(value, list) and all(map(is_number, value)))
