"""What a stored run looks like, checked once where rows enter, so that whatever reads them may rely on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import kinds
from ..values import BOOLEAN, COUNT, NAME, NUMBER, NUMBERS, OBJECT, PROBLEM, SIZE, TEXT, Value, is_number
from .task import STATUSES

_SHOWN = 60

STATUS = Value(f"one of {', '.join(STATUSES)}", lambda value: isinstance(value, str) and value in STATUSES)

RUN = {
    "experiment": NAME, "phase": NAME, "kind": NAME, "seed": COUNT, "status": STATUS, "config": OBJECT,
    "metrics": OBJECT, "finished": TEXT, "version": TEXT, "machine": TEXT,
}  # fmt: skip
RUN_IF_THERE = {"key": TEXT, "message": TEXT, "seconds": NUMBER, "attempts": COUNT}
CONFIG_IF_THERE = {
    "problem": PROBLEM, "format": NAME, "lr": NUMBER.optional(), "steps": COUNT.optional(), "d": SIZE,
}  # fmt: skip
SIZES = ("d", "k")
"""Settings of problems that are places on an axis."""
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
    config, metrics = row["config"], row["metrics"]
    # Runs of other kinds are none of what tables and figures read.
    if row["kind"] in kinds.names():
        needed = kinds.kind(row["kind"])
        _check(config, needed.config, CONFIG_IF_THERE, "config.")
        if isinstance(config.get("problem"), dict):
            _check(config["problem"], {}, dict.fromkeys(SIZES, SIZE), "config.problem.")
        if isinstance(config.get("method"), dict):
            _check(config["method"], {}, {"weight": NUMBER.optional()}, "config.method.")
        _check(metrics, needed.metrics if row["status"] == "ok" else {}, METRICS_IF_THERE, "metrics.")
        if needed.curve and metrics.get("curve") is not None:
            _check_curve(metrics["curve"])
    return row


def _check(found: Mapping[str, Any], needed: Mapping[str, Value], others: Mapping[str, Value], where: str) -> None:
    for name, sort in (*needed.items(), *((k, v) for k, v in others.items() if k not in needed and k in found)):
        if name not in found:
            raise ValueError(f"{where}{name} is missing: expected {sort.words}")
        if not sort.fits(found[name]):
            raise ValueError(f"{where}{name} = {_short(found[name])}: expected {sort.words}")


def _check_curve(curve: Any) -> None:
    """Lists of one length: steps that rise, and at each of them a number, or null where there is none."""
    lists = list(curve.values()) if isinstance(curve, dict) else []
    if not set(CURVES) <= set(curve if lists else ()) or not all(isinstance(found, list) for found in lists):
        raise ValueError(f"metrics.curve: expected lists named {', '.join(CURVES)}")
    if len({len(found) for found in lists}) > 1 or not curve["step"]:
        raise ValueError("metrics.curve: expected lists of the same length, not empty")
    for name, found in curve.items():
        if not all(is_number(value) or (value is None and name not in ("step", "seconds")) for value in found):
            raise ValueError(f"metrics.curve.{name}: expected finite numbers")
    if any(a >= b for a, b in zip(curve["step"], curve["step"][1:], strict=False)):
        raise ValueError("metrics.curve.step: expected numbers that rise")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        text = "an integer of thousands of digits"  # Python refuses to write it.
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
