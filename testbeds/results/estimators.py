"""Bias and spread of gradient estimators, relative to the norm of the exact gradient of the smoothed loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, NamedTuple

from .rows import Row, by_method, grouped, instance, of_kind, values
from .statistics import Interval, average, format_interval, format_number, mean_interval
from .table import Column, Table, count

METRICS = ("bias", "deviation")
ERRORS = 2.0
"""A bias below this many standard errors is not told apart from zero."""
ROUNDING = 1e-9
"""What is smaller, relative to the gradient, is a rounding error of float64 and counts as zero."""


class Spread(NamedTuple):
    """Median over instances, and the range."""

    median: float
    low: float
    high: float


class Estimator(NamedTuple):
    """``spreads``: by metric and series (a format, with its problem where there are several). ``hidden``: series whose
    bias is neither zero nor known to differ from it."""

    spreads: dict[str, dict[str, Spread]]
    hidden: frozenset[str]


@dataclass(frozen=True)
class EstimatorLine:
    """A gradient estimator on one problem and format; ``bias`` and ``deviation`` over the norm of the exact gradient,
    means over instances, and ``bias_median``."""

    problem: str
    format: str
    method: str
    bias: Interval | None
    bias_median: float | None
    deviation: Interval | None
    instances: int
    failed: int
    experiment: str = ""

    table: ClassVar = Table(
        columns=(
            Column("method", "method", lambda x: x.method),
            Column("bias", "bias", lambda x: format_interval(x.bias)),
            Column("bias, median", "bias_median", lambda x: format_number(x.bias_median, 3)),
            Column("deviation of a sample", "deviation", lambda x: format_interval(x.deviation)),
            Column("instances", "instances", lambda x: str(x.instances)),
            Column("failed", "failed", lambda x: count(x.failed)),
        ),
        legend="Bias and standard deviation of one sample, over the norm of the exact gradient of the smoothed loss. "
        "±: 95 % t interval of the mean over instances.",
    )


def estimators(rows: Iterable[Row]) -> dict[str, Estimator]:
    """Estimators by label, the least biased first; of those whose bias may be zero, the quieter first.

    Raises ValueError where no run of kind "estimator" succeeded.
    """
    runs = [r for r in of_kind(rows, "estimator") if r["status"] == "ok"]
    if not runs:
        raise ValueError("rows: no run of kind 'estimator' succeeded")
    methods = by_method(runs, ())
    order = sorted(methods, key=lambda label: _rank(methods[label]))
    return {label: _estimator(methods[label], runs) for label in order}


def estimator_lines(rows: Iterable[Row], experiment: str = "") -> list[EstimatorLine]:
    """Estimators by problem and format, least mean bias first."""
    out = []
    for (problem, format), group in grouped(of_kind(rows, "estimator"), instance).items():
        lines = []
        for label, runs in by_method(group, ()).items():
            bias, deviation = values(runs, "bias"), values(runs, "deviation")
            lines.append(
                EstimatorLine(
                    problem, format, label, mean_interval(bias.values()) if bias else None,
                    median(bias.values()) if bias else None,
                    mean_interval(deviation.values()) if deviation else None,
                    len(bias), sum(r["status"] != "ok" for r in runs), experiment,
                )
            )  # fmt: skip
        out += sorted(lines, key=lambda line: (line.bias is None, line.bias.value if line.bias else 0.0))
    return out


def series_names(rows: Iterable[Row]) -> list[str]:
    """Names of the series among successful runs, in order of appearance."""
    runs = [r for r in of_kind(rows, "estimator") if r["status"] == "ok"]
    return list(dict.fromkeys(_series(r, runs) for r in runs))


def _estimator(mine: Sequence[Row], runs: Sequence[Row]) -> Estimator:
    spreads: dict[str, dict[str, Spread]] = {metric: {} for metric in METRICS}
    hidden = set()
    for name, part in grouped(mine, lambda r: _series(r, runs)).items():
        for metric in METRICS:
            found = _numbers(part, metric)
            if found:
                spreads[metric][name] = Spread(median(found), min(found), max(found))
        if _may_be_zero(part) and max(_numbers(part, "bias"), default=0.0) > 0:
            hidden.add(name)
    return Estimator(spreads, frozenset(hidden))


def _series(row: Row, runs: Sequence[Row]) -> str:
    """The format, with the problem where there are several; empty where the runs name neither."""
    if "format" not in row["config"] or "problem" not in row["config"]:
        return str(row["config"].get("format", ""))
    problem, format = instance(row)
    return format if len({instance(r)[0] for r in runs if "problem" in r["config"]}) < 2 else f"{problem}, {format}"


def _numbers(runs: Iterable[Row], metric: str) -> list[float]:
    found = (r["metrics"].get(metric) for r in runs)
    return [float(v) if v > ROUNDING else 0.0 for v in found if v is not None and math.isfinite(v)]


def _may_be_zero(runs: Sequence[Row]) -> bool:
    """Whether the bias is not told apart from zero on at least half of the instances."""
    below = [
        r["metrics"]["bias"] <= max(ROUNDING, ERRORS * (r["metrics"].get("bias_standard_error") or 0.0))
        for r in runs
        if r["metrics"].get("bias") is not None
    ]
    return bool(below) and average(below) >= 0.5


def _rank(runs: Sequence[Row]) -> tuple[bool, float, float]:
    """Whatever is not told apart from zero is unbiased as far as anyone knows: among those the quieter comes first."""
    unknown = _may_be_zero(runs)
    bias, deviation = (median(found) if (found := _numbers(runs, m)) else math.inf for m in METRICS)
    return not unknown, *((deviation, bias) if unknown else (bias, deviation))
