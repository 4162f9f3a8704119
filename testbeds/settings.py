"""Frozen dataclasses as settings: to and from plain dicts, changed by name, with errors that say what is valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

LARGEST_INTEGER = 2**31 - 1
LARGEST_FLOAT = 3.4e38
"""Weights and learning rates are float32."""


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts, lists, numbers and strings, as JSON or YAML would give it back."""
    out = {}
    for one in fields(config):
        value = getattr(config, one.name)
        if is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        out[one.name] = value
    return out


def changed(config: Any, changes: Mapping[str, Any], where: str = "configuration", path: str = "") -> Any:
    """``config`` with the nested ``changes`` made.

    Raises ValueError naming ``where``, the setting, its value and what is valid: for a name that does not exist, a
    value of the wrong type, and a combination that does not make sense.
    """
    names = {one.name: one.type for one in fields(config)}
    given = {}
    for name, value in changes.items():
        label = f"{path}{name}"
        if name not in names:
            raise ValueError(f"{where}: no setting {label!r}; valid: {', '.join(path + n for n in names)}")
        old = getattr(config, name)
        if is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {label} = {value!r}: expected settings, e.g. {_example(label, old)}")
            given[name] = changed(old, value, where, f"{label}.")
        else:
            try:
                given[name] = _converted(value, str(names[name]))
            except (TypeError, ValueError, OverflowError):
                raise ValueError(f"{where}: {label} = {value!r}: expected {_TYPES[str(names[name])]}") from None
    try:
        return replace(config, **given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Settings in which two configurations (as dicts) differ, e.g. ``"model.width: 64, now 128"``."""
    out = []
    for name in dict.fromkeys((*old, *new)):
        a, b, label = old.get(name), new.get(name), f"{path}{name}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, f"{label}.")
        elif a != b:
            out.append(f"{label}: {a}, now {b}")
    return out


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "int | None": "a whole number or null",
    "float | None": "a number or null",
    "str | None": "text or null",
    "tuple[str, ...]": "a list of texts",
    "Mapping[str, Any]": "settings by name",
}


def _converted(value: Any, kind: str) -> Any:
    """``value`` as the type of that annotation; TypeError or ValueError if it is not one."""
    if kind.endswith(" | None"):
        return None if value is None else _converted(value, kind.removesuffix(" | None"))
    if kind == "tuple[str, ...]":
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise TypeError
        return tuple(value)
    if kind == "Mapping[str, Any]":
        if not isinstance(value, Mapping):
            raise TypeError
        return {str(k): _number(v) for k, v in value.items()}
    if kind == "float":
        if isinstance(value, bool):
            raise TypeError
        return float(value)  # of text too: YAML 1.1 reads 1e-3 as text
    if type(value).__name__ != kind:
        raise TypeError
    return value


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _example(label: str, section: Any) -> str:
    name = fields(section)[0].name
    return f"{label}: {{{name}: {getattr(section, name)}}}"


def at_least(config: Any, least: int, *names: str, most: float | None = None) -> None:
    """ValueError for the first of the settings ``names`` below ``least`` or above ``most``; None counts as unset.

    ``most`` is by default the largest that 32 bits hold: of signed integers, or of floats.
    """
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        if not value >= least:
            raise ValueError(f"{_section(config)}{name} = {value!r}: must be at least {least}")
        _at_most(config, name, value, most)


def positive(config: Any, *names: str) -> None:
    """ValueError for the first of the settings ``names`` that is no finite number above zero; None counts as unset."""
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        if not value > 0:
            raise ValueError(f"{_section(config)}{name} = {value!r}: must be positive")
        _at_most(config, name, value, None)


def _at_most(config: Any, name: str, value: float, most: float | None) -> None:
    most = most if most is not None else LARGEST_INTEGER if isinstance(value, int) else LARGEST_FLOAT
    if value > most:
        raise ValueError(f"{_section(config)}{name} = {_shown(value)}: must be at most {most}")


def _shown(value: float) -> str:
    # Python refuses to print integers of thousands of digits.
    return repr(value) if isinstance(value, float) or abs(value) < 10**40 else "a number of more than 40 digits"


def one_of(config: Any, name: str, valid: tuple[str, ...]) -> None:
    """ValueError listing ``valid`` if the setting ``name`` is not among them."""
    if getattr(config, name) not in valid:
        raise ValueError(f"{_section(config)}{name} = {getattr(config, name)!r}; valid: {', '.join(valid)}")


def _section(config: Any) -> str:
    name = type(config).__name__.removesuffix("Config").lower()
    return "" if name == "train" else f"{name}."
