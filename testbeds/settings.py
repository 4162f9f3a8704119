"""Frozen dataclasses as settings: made of plain data and told as such, changed by name, with errors that say what is
valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from .documents import short

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


def made(cls: type, given: Any, where: str = "configuration") -> Any:
    """The dataclass ``cls`` with the settings ``given``, by name and nested; all others have their defaults.

    Raises ValueError naming ``where`` and, for every setting that is wrong, its name, its value and what is valid:
    names that do not exist or are missing, values of the wrong type, and combinations that do not make sense.
    """
    return _built(cls, None, given, where)


def changed(config: Any, changes: Mapping[str, Any], where: str = "configuration") -> Any:
    """The dataclass ``config`` with the nested ``changes`` made; raises as :func:`made`."""
    return _built(type(config), config, changes, where)


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


def _built(cls: type, base: Any, given: Any, where: str) -> Any:
    try:
        return _filled(cls, base, given, "")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _filled(cls: Any, base: Any, given: Any, label: str) -> Any:
    """``base``, by default ``cls`` without settings, with those ``given``; ``label``: its name in a larger one."""
    known, types = {one.name: one for one in fields(cls)}, get_type_hints(cls)
    if not isinstance(given, Mapping):
        words = f": {', '.join(known)}" if base is None else f", e.g. {_example(label, base)}"
        raise ValueError(f"{label and label + ' = '}{short(given)}: expected settings{words}")
    path = f"{label}." if label else ""
    values: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in given.items():
        if name not in known:
            faults.append(f"no setting {f'{path}{name}'!r}; valid: {', '.join(path + valid for valid in known)}")
            continue
        try:
            values[name] = _converted(value, types[name], getattr(base, name, None), f"{path}{name}")
        except ValueError as error:
            faults.append(str(error))
    if base is None:
        faults += [f"{path}{name} is missing" for name, one in known.items() if _is_required(one) and name not in given]
    if faults:
        raise ValueError("; ".join(faults))
    return cls(**values) if base is None else replace(base, **values)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple[str, ...]: "a list of texts",
    tuple[float, float]: "a list of two numbers", tuple[Any, ...]: "a list of values",
    tuple[Mapping[str, Any], ...]: "a list of settings", Mapping[str, Any]: "settings by name",
    Mapping[str, tuple[Any, ...]]: "lists of values by name",
}  # fmt: skip
"""The types that settings have, also with ``| None``, beside dataclasses."""


def _converted(value: Any, wanted: Any, old: Any, label: str) -> Any:
    """``value`` as the type ``wanted``, in which a dataclass changes ``old``; ValueError naming ``label``."""
    one: Any = wanted if NoneType not in get_args(wanted) else next(t for t in get_args(wanted) if t is not NoneType)
    if value is None and one is not wanted:
        return None
    if is_dataclass(one):
        return _filled(one, old, value, label)
    parts = get_args(one)
    if get_origin(one) is Mapping and isinstance(value, Mapping):
        return {str(key): _converted(item, parts[1], None, f"{label}.{key}") for key, item in value.items()}
    if get_origin(one) is tuple and isinstance(value, list | tuple) and (parts[-1] is ... or len(value) == len(parts)):
        return tuple(_converted(item, parts[0], None, f"{label}[{place}]") for place, item in enumerate(value))
    try:
        return _scalar(value, one)
    except (TypeError, ValueError, OverflowError):
        null = " or null" if one is not wanted else ""
        cure = "; put it in quotes" if one is str and isinstance(value, int | float) else ""
        raise ValueError(f"{label} = {short(value)}: expected {_WORDS[one]}{null}{cure}") from None


def _scalar(value: Any, wanted: Any) -> Any:
    """``value`` as a number, text or truth value; TypeError, ValueError or OverflowError if it is none such."""
    if wanted is Any:
        return [_number(item) for item in value] if isinstance(value, list) else _number(value)
    if wanted is float and not isinstance(value, bool):
        return float(value)  # of text too: YAML 1.1 reads 1e-3 as text
    if type(value) is not wanted:
        raise TypeError
    return value


def _number(value: Any) -> Any:
    """A number where text looks like one."""
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
