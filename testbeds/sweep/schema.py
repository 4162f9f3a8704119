"""What a stored run looks like, checked once where rows enter, so that whatever reads them may rely on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .task import STATUSES

_SHOWN = 60


class _Kind(NamedTuple):
    """A kind of value: what it is called, and whether a value is one."""

    words: str
    fits: Callable[[Any], bool]

    def optional(self) -> _Kind:
        return _Kind(f"{self.words} or null", lambda value: value is None or self.fits(value))


def _is_number(value: Any) -> bool:
    # Integers beyond 64 bits are nothing that a run measures, and no float.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _is_named(value: Any, setting: Callable[[Any], bool]) -> bool:
    """Whether it is a text, or a name with settings of this kind."""
    if not isinstance(value, dict):
        return isinstance(value, str) and bool(value)
    return isinstance(value.get("name"), str) and bool(value["name"]) and all(map(setting, value.values()))


def _is_list_or_scalar(value: Any) -> bool:
    return all(map(_is_scalar, value)) if isinstance(value, list) else _is_scalar(value)


def _is_size(value: Any) -> bool:
    return _is_number(value) and value > 0


TEXT = _Kind("text", lambda value: isinstance(value, str))
NAME = _Kind("a name", lambda value: isinstance(value, str) and bool(value))
NUMBER = _Kind("a finite number", _is_number)
BOOLEAN = _Kind("true or false", lambda value: isinstance(value, bool))
COUNT = _Kind("a count", lambda value: type(value) is int and 0 <= value < 2**63)
OBJECT = _Kind("an object", lambda value: isinstance(value, dict))
PROBLEM = _Kind("a name, or an object with a name and settings", lambda value: _is_named(value, _is_list_or_scalar))
METHOD = _Kind("a name, or an object with a name and plain settings", lambda value: _is_named(value, _is_scalar))
SIZE = _Kind("a positive number", _is_size)
STATUS = _Kind(f"one of {', '.join(STATUSES)}", lambda value: isinstance(value, str) and value in STATUSES)
NUMBERS = _Kind("a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value)))

RUN = {
    "experiment": NAME, "phase": NAME, "kind": NAME, "seed": COUNT, "status": STATUS, "config": OBJECT,
    "metrics": OBJECT, "finished": TEXT, "version": TEXT, "machine": TEXT,
}  # fmt: skip
RUN_IF_THERE = {"key": TEXT, "message": TEXT, "seconds": NUMBER, "attempts": COUNT}
CONFIG: Mapping[str, Mapping[str, _Kind]] = {
    "train": {"problem": PROBLEM, "format": NAME, "method": METHOD},
    "round": {"problem": PROBLEM, "format": NAME, "method": METHOD},
    "oracle": {"problem": PROBLEM, "format": NAME},
    "estimator": {"problem": PROBLEM, "format": NAME, "method": METHOD},
    "minima": {"format": NAME},
    "timing": {},
}
"""What tables and figures need of a configuration, by kind; runs of other kinds are none of theirs."""
CONFIG_IF_THERE = {
    "problem": PROBLEM, "format": NAME, "lr": NUMBER.optional(), "steps": COUNT.optional(), "d": SIZE,
}  # fmt: skip
SIZES = ("d", "k")
"""Settings of problems that are places on an axis."""
METRICS = {"round": {"loss": NUMBER}, "oracle": {"loss": NUMBER, "proven": BOOLEAN}}
"""What a run that ended ok has measured."""
METRICS_IF_THERE = {
    **dict.fromkeys(
        (
            "float_loss", "rtn_loss", "rr_loss", "rr_standard_error", "gap", "noise_floor", "rtn_of_optimum", "optimum",
            "train_seconds", "seconds", "loss", "ratio", "relative", "bias", "bias_standard_error", "deviation",
            "local_minima_raw", "local_minima_smoothed", "points",
        ),
        NUMBER.optional(),
    ),
    "grid": NAME, "optimal": BOOLEAN.optional(), "global_kept": BOOLEAN.optional(), "seconds_per_step": NUMBERS,
}  # fmt: skip
CURVES = ("step", "seconds", "float", "rtn")
"""What a training curve has at least."""


def checked_row(row: Any) -> dict[str, Any]:
    """``row`` itself if it is a run as a store keeps them; ValueError naming the value that does not fit."""
    if not isinstance(row, dict):
        raise ValueError(f"{_short(row)}: expected an object")
    _check(row, RUN, RUN_IF_THERE, "")
    kind, config, metrics = row["kind"], row["config"], row["metrics"]
    if kind in CONFIG:
        _check(config, CONFIG[kind], CONFIG_IF_THERE, "config.")
        if isinstance(config.get("problem"), dict):
            _check(config["problem"], {}, dict.fromkeys(SIZES, SIZE), "config.problem.")
        if isinstance(config.get("method"), dict):
            _check(config["method"], {}, {"weight": NUMBER.optional()}, "config.method.")
        _check(metrics, METRICS.get(kind, {}) if row["status"] == "ok" else {}, METRICS_IF_THERE, "metrics.")
        if kind == "train" and metrics.get("curve") is not None:
            _check_curve(metrics["curve"])
    return row


def _check(found: Mapping[str, Any], needed: Mapping[str, _Kind], others: Mapping[str, _Kind], where: str) -> None:
    for name, kind in (*needed.items(), *((k, v) for k, v in others.items() if k not in needed and k in found)):
        if name not in found:
            raise ValueError(f"{where}{name} is missing: expected {kind.words}")
        if not kind.fits(found[name]):
            raise ValueError(f"{where}{name} = {_short(found[name])}: expected {kind.words}")


def _check_curve(curve: Any) -> None:
    """Lists of one length: steps that rise, and at each of them a number, or null where there is none."""
    lists = list(curve.values()) if isinstance(curve, dict) else []
    if not set(CURVES) <= set(curve if lists else ()) or not all(isinstance(found, list) for found in lists):
        raise ValueError(f"metrics.curve: expected lists named {', '.join(CURVES)}")
    if len({len(found) for found in lists}) > 1 or not curve["step"]:
        raise ValueError("metrics.curve: expected lists of the same length, not empty")
    for name, found in curve.items():
        if not all(_is_number(value) or (value is None and name not in ("step", "seconds")) for value in found):
            raise ValueError(f"metrics.curve.{name}: expected finite numbers")
    if any(a >= b for a, b in zip(curve["step"], curve["step"][1:], strict=False)):
        raise ValueError("metrics.curve.step: expected numbers that rise")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        text = "an integer of thousands of digits"  # Python refuses to write it.
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
