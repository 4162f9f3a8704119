"""Rounding schemes against the exact optimum, as dimensions grow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .leaderboard import RoundingLine, rounding_line
from .rows import Row, by_method, canonical, grouped, of_kind, problem_label, row_labels, values
from .statistics import average


class Dimensions(NamedTuple):
    """``order``: schemes by mean loss over the optimum on all instances, best first. ``lines``: per problem (without
    its dimension) and format, by scheme and dimension."""

    order: list[str]
    lines: dict[tuple[str, str], dict[str, dict[float, RoundingLine]]]


def by_dimension(rows: Iterable[Row], width: str = "d") -> Dimensions:
    """Shares of optima found and losses over the optimum, on instances whose optimum is proven.

    ``width``: the setting of the problem that grows. Schemes that choose their own scales are left out: they have
    another optimum. Raises ValueError where no run has a known optimum.
    """
    runs = [
        r for r in of_kind(rows, "round")
        if r["phase"] not in ("tune", "timing") and width in r["config"]["problem"]
        and r["metrics"].get("optimal") is not None and r["metrics"].get("ratio") is not None
        and r["metrics"].get("grid", "fixed") == "fixed"
    ]  # fmt: skip
    if not runs:
        raise ValueError(f"rows: none of kind 'round' has a problem with {width!r} and a known optimum")
    ratios = {label: list(values(mine, "ratio").values()) for label, mine in by_method(runs, ()).items()}
    means = {label: average(found) for label, found in ratios.items() if found}
    order = sorted(means, key=lambda label: means[label])
    out: dict[tuple[str, str], dict[str, dict[float, RoundingLine]]] = {}
    named = zip(row_labels(runs, ()), runs, strict=True)
    for (problem, format, d, label), mine in grouped(named, lambda pair: (*_place(pair[1], width), pair[0])).items():
        line = rounding_line(problem, format, label, [r for _, r in mine])
        out.setdefault((problem, format), {}).setdefault(label, {})[d] = line
    return Dimensions(order, out)


class CaseRatio(NamedTuple):
    """Loss of a scheme over that of another on one instance, and the problem it belongs to."""

    problem: Mapping[str, Any]
    value: float


def case_ratios(rows: Iterable[Row], other: str) -> dict[str, list[CaseRatio]]:
    """Per scheme its losses over those of the scheme labelled ``other`` on the same instances; empty without it."""
    runs = [r for r in rows if r["kind"] == "round" and r["status"] == "ok"]
    methods = by_method(runs, ())
    if other not in methods:
        return {}
    theirs = {_case(r): r["metrics"]["loss"] for r in methods[other]}
    return {
        label: [
            CaseRatio(r["config"]["problem"], r["metrics"]["loss"] / theirs[_case(r)])
            for r in mine
            if _case(r) in theirs
        ]
        for label, mine in methods.items()
    }


def _case(row: Row) -> tuple[str, int]:
    return canonical(row["config"]["problem"]), row["seed"]


def _place(row: Row, width: str) -> tuple[str, str, float]:
    problem = {k: v for k, v in row["config"]["problem"].items() if k != width}
    return problem_label(problem), str(row["config"]["format"]), row["config"]["problem"][width]
