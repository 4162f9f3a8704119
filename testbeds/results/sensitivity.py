"""Final losses against the weight λ of the smoothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .rows import Row, at_best, by_method, canonical, excess, final_runs, grouped, instance, tuned_settings
from .statistics import Interval, comparison_intervals

LOSSES = (("rtn_loss", "RTN"), ("rr_loss", "RR"), ("float_loss", "float"))
"""Metrics of the study, and what they are called."""


class ByWeight(NamedTuple):
    """Intervals on one problem and format by metric, method and λ; ``fixed``: methods without λ by metric."""

    weighted: dict[str, dict[str, dict[float, Interval]]]
    fixed: dict[str, dict[str, Interval]]


def by_weight(rows: Iterable[Row]) -> dict[tuple[str, str], ByWeight]:
    """Per problem and format on which a method was trained with several weights: losses against them.

    Final runs alone, equal steps for all. Geometric means over seeds of losses above the noise floor; intervals are for
    comparing points, what all share being taken out (Cousineau, with Morey's correction). At each λ the learning rate
    of the lowest mean RTN loss among those that were run. λ = 0, and losses that are not positive, are left out.
    """
    out = {}
    for place, mine in grouped(final_runs(rows, "train"), instance).items():
        labels = by_method(mine)
        if any(len({_weight(r) for r in of_label}) > 1 for of_label in labels.values()):
            found = {metric: _intervals(labels, metric) for metric, _ in LOSSES}
            weighted: dict[str, dict[str, dict[float, Interval]]] = {metric: {} for metric in found}
            fixed: dict[str, dict[str, Interval]] = {metric: {} for metric in found}
            for metric, cells in found.items():
                for (label, weight), value in cells.items():
                    if weight is None:
                        fixed[metric][label] = value
                    else:
                        weighted[metric].setdefault(label, {})[weight] = value
                weighted[metric] = {label: dict(sorted(line.items())) for label, line in weighted[metric].items()}
            out[place] = ByWeight(weighted, fixed)
    return out


def is_swept(rows: Iterable[Row]) -> bool:
    """Whether a method was run with more than two weights while all else stayed: a weight that tuning chose takes
    several values too, but one per method."""
    lines = grouped(final_runs(rows, "train"), lambda r: (*instance(r), _without_weight(r)))
    return any(len({_weight(r) for r in line}) > 2 for line in lines.values())


def _intervals(labels: dict[str, list[Row]], metric: str) -> dict[tuple[str, float | None], Interval]:
    cells: dict[tuple[str, float | None], dict[int, float]] = {}
    for label, mine in labels.items():
        for weight, of_weight in grouped(mine, _weight).items():
            # A label's runs at one λ differ in the learning rate only: the best of these.
            best = next(iter(at_best(of_weight).values()), [])
            losses = excess(best, metric)
            if losses and min(losses.values()) > 0 and (weight is None or weight > 0):
                cells[label, weight] = losses
    names = {str(k): place for k, place in enumerate(cells)}
    found = comparison_intervals(dict(zip(names, cells.values(), strict=True)))
    return {place: found[name] for name, place in names.items() if name in found}


def _weight(row: Row) -> float | None:
    value = tuned_settings(row, ("weight",)).get("weight")
    return None if value is None else float(value)


def _without_weight(row: Row) -> str:
    method = row["config"]["method"]
    return canonical(method if isinstance(method, str) else {k: v for k, v in method.items() if k != "weight"})
