"""Rows of a sweep: what their methods and problems are called, which rows count, and their values by seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ..descent.methods import names, tuning
from .statistics import Interval, average, paired

Row = Mapping[str, Any]

TUNED = ("weight", "lr")
"""Settings that are tuned in every method that has them."""

# --- names -----------------------------------------------------------------------------------------------------------


def method_label(method: Mapping[str, Any] | str, tuned: Collection[str] = TUNED, keys: bool = False) -> str:
    """Name and settings that are not tuned, e.g. ``lotion (attached, ramp)``.

    Text stands by itself, True as the setting's name, False as ``ramp off``, other values as ``samples=8``; None is
    left out. ``keys``: write every setting with its name.
    """
    if isinstance(method, str):
        return method
    shown = []
    for key, value in method.items():
        if key == "name" or key in tuned or value is None:
            continue
        words = key.replace("_", " ")
        if isinstance(value, bool):
            shown.append(words if value else f"{words} off")
        elif isinstance(value, str) and not keys:
            shown.append(value.replace("_", " "))
        else:
            shown.append(f"{words}={_text(value)}")
    return f"{method['name']} ({', '.join(shown)})" if shown else str(method["name"])


def method_name(method: Mapping[str, Any] | str) -> str:
    """Its name without settings."""
    return method if isinstance(method, str) else str(method["name"])


def problem_label(problem: Mapping[str, Any] | str) -> str:
    """Name and settings of a problem, e.g. ``linear_regression d=12000``."""
    if isinstance(problem, str):
        return problem
    return " ".join([str(problem["name"]), *(f"{k}={_text(v)}" for k, v in problem.items() if k != "name")])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def tuned_keys(method: Mapping[str, Any] | str) -> tuple[str, ...]:
    """Names of a training method's tuned settings: its own, as it declares them, and ``weight`` and ``lr``."""
    name = method_name(method)
    own = tuning(name) if name in names() else ()
    return tuple(dict.fromkeys((*own, *TUNED)))


def tuned_settings(row: Row, tuned: Collection[str] | None = None) -> dict[str, Any]:
    """The tuned settings of a run, from its method or its configuration; ``tuned``: by default :func:`tuned_keys`."""
    config = row["config"]
    method = config["method"] if isinstance(config["method"], Mapping) else {}
    apart = config.get("tuned", {})
    found = {**config, **method, **apart}
    return {k: found[k] for k in dict.fromkeys((*apart, *_keys(row, tuned))) if found.get(k) is not None}


def row_labels(rows: Sequence[Row], tuned: Collection[str] | None = None) -> list[str]:
    """Labels of methods, one per row, that tell apart whatever differs among the rows, tuned settings aside.

    ``tuned``: names of tuned settings, by default :func:`tuned_keys` of each method. Optimizer, schedule, batch and
    steps are shown where the rows differ in them; steps only outside the equal-time phase, where they always differ.
    """

    def identity(row: Row) -> str:
        method = row["config"]["method"]
        kept = _keys(row, tuned)
        return method if isinstance(method, str) else canonical({k: v for k, v in method.items() if k not in kept})

    short = [method_label(row["config"]["method"], _keys(row, tuned)) for row in rows]
    alike: dict[str, set[str]] = {}
    for label, row in zip(short, rows, strict=True):
        alike.setdefault(label, set()).add(identity(row))
    differ = []
    for key in ("optimizer", "schedule", "batch", "steps"):
        among = [r for r in rows if key != "steps" or r["phase"] != "equal_time"]
        if len({canonical(r["config"].get(key)) for r in among}) > 1:
            differ.append(key)
    labels = []
    for label, row in zip(short, rows, strict=True):
        config = row["config"]
        if len(alike[label]) > 1:
            label = method_label(config["method"], _keys(row, tuned), keys=True)
        for key in differ:
            if config.get(key) is not None and not (key == "steps" and row["phase"] == "equal_time"):
                label += f", {config[key]}" if isinstance(config[key], str) else f", {key}={_text(config[key])}"
        labels.append(label)
    return labels


def by_method(rows: Sequence[Row], tuned: Collection[str] | None = None) -> dict[str, list[Row]]:
    """Rows by label of their method, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for label, row in zip(row_labels(rows, tuned), rows, strict=True):
        groups.setdefault(label, []).append(row)
    return groups


def at_best(rows: Sequence[Row], tuned: Collection[str] | None = None) -> dict[str, list[Row]]:
    """Rows by label of their method, of several tuned settings those with the lowest mean RTN loss.

    Methods that never succeeded are left out.
    """
    out: dict[str, list[Row]] = {}
    for label, runs in by_method(rows, tuned).items():
        settings = grouped(runs, lambda r: canonical(tuned_settings(r, tuned))).values()
        means = [(average(found.values()), runs) for runs in settings if (found := values(runs, "rtn_loss"))]
        if means:
            out[label] = min(means, key=lambda pair: pair[0])[1]
    return out


def _keys(row: Row, tuned: Collection[str] | None) -> Collection[str]:
    return tuned_keys(row["config"]["method"]) if tuned is None else tuned


# --- rows ------------------------------------------------------------------------------------------------------------


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row per experiment, phase, configuration and seed: the one that finished last."""
    kept: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row["experiment"], row["phase"], row["kind"], canonical(row["config"]), canonical(row["seed"]))
        if key not in kept or row["finished"] >= kept[key]["finished"]:
            kept[key] = row
    return list(kept.values())


def of_kind(rows: Iterable[Row], kind: str, experiment: str | None = None) -> list[Row]:
    """The latest rows of a kind, of one experiment if named; ValueError, listing those there are, for none."""
    rows = list(rows)
    found = latest(r for r in rows if r["kind"] == kind and experiment in (None, r["experiment"]))
    if not found:
        have = sorted({f"{r['experiment']} ({r['kind']})" for r in rows})
        wanted = f"kind {kind!r}" + ("" if experiment is None else f" of experiment {experiment!r}")
        raise ValueError(f"no rows of {wanted}; valid: {', '.join(have) or 'none, there are no rows'}")
    return found


def final_runs(rows: Iterable[Row], kind: str) -> list[Row]:
    """The latest successful rows of a kind that compare methods at equal steps; empty where there are none."""
    return [r for r in latest(r for r in rows if (r["kind"], r["phase"]) == (kind, "final")) if r["status"] == "ok"]


def values(rows: Iterable[Row], metric: str) -> dict[int, float]:
    """``{seed: metric}`` of the runs that succeeded and have a finite one."""
    found = ((r["seed"], r["metrics"].get(metric)) for r in rows if r["status"] == "ok")
    return {seed: float(v) for seed, v in found if v is not None and math.isfinite(v)}


def excess(rows: Iterable[Row], metric: str = "rtn_loss") -> dict[int, float]:
    """``{seed: metric - noise floor}``; the floor is 0 where a row gives none."""
    rows = list(rows)
    floor = values(rows, "noise_floor")
    return {seed: v - floor.get(seed, 0.0) for seed, v in values(rows, metric).items()}


def ratio(a: Mapping[int, float], b: Mapping[int, float]) -> Interval | None:
    """Geometric mean of a / b over common seeds; the ratio of means without interval where a value is not positive."""
    if not a.keys() & b.keys():
        return None
    found = paired(a, b)
    if found.geometric is not None or found.ratio_of_means is None:
        return found.geometric
    return Interval(found.ratio_of_means, None, None, found.n)


def grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Items by key, in order of appearance."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def instance(row: Row) -> tuple[str, str]:
    """Label of the problem and the format."""
    return problem_label(row["config"]["problem"]), str(row["config"]["format"])


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
