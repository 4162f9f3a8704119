"""Losses during training: means and bands by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .rows import Row, values
from .statistics import Interval, average, comparison_intervals

SHOWN = 8
"""Methods with curves in one figure; more cannot be told apart."""


class Curves(NamedTuple):
    """A method's curves: ``losses`` has "float", "rtn" and, where every run recorded it, "rr"."""

    steps: np.ndarray  # (points,)
    seconds: np.ndarray  # (points,), median over seeds
    seeds: list[int]
    losses: dict[str, np.ndarray]  # (seeds, points) each


def method_curves(runs: Sequence[Row]) -> Curves:
    """The curves of the runs that succeeded, at the steps that all of them recorded; NaN and None are NaN."""
    kept = [r for r in runs if r["status"] == "ok"]
    steps = sorted(set.intersection(*(set(r["metrics"]["curve"]["step"]) for r in kept)))

    def column(run: Row, name: str) -> list[float]:
        curve: dict[str, Any] = run["metrics"]["curve"]
        at = dict(zip(curve["step"], curve[name], strict=True))
        return [np.nan if at[s] is None else at[s] for s in steps]

    floor = np.array([[r["metrics"].get("noise_floor") or 0.0] for r in kept])
    names = ["float", "rtn", *(["rr"] if all("rr" in r["metrics"]["curve"] for r in kept) else [])]
    losses = {name: np.array([column(r, name) for r in kept], dtype=np.float64) - floor for name in names}
    return Curves(
        np.array(steps), np.median([column(r, "seconds") for r in kept], axis=0), [r["seed"] for r in kept], losses
    )


def bands_of(methods: Mapping[str, Curves], name: str) -> dict[str, list[Interval | None]]:
    """Means and intervals at each point of each method, None where a loss is not positive.

    Methods that recorded other steps enter the comparison with values interpolated between theirs.
    """
    every = sorted(set().union(*(c.steps.tolist() for c in methods.values())))
    at = {label: np.array([np.interp(every, c.steps, row) for row in c.losses[name]]) for label, c in methods.items()}
    found: dict[str, dict[float, Interval]] = {label: {} for label in methods}
    for k, step in enumerate(every):
        positive = {
            label: dict(zip(c.seeds, at[label][:, k].tolist(), strict=True))
            for label, c in methods.items()
            if (at[label][:, k] > 0).all()
        }
        for label, interval in comparison_intervals(positive).items():
            found[label][step] = interval
    return {label: [found[label].get(step) for step in c.steps.tolist()] for label, c in methods.items()}


def by_final_loss(methods: Mapping[str, Sequence[Row]]) -> list[str]:
    """Labels in order of the mean RTN loss at the end, lowest first."""
    means = {label: average(values(runs, "rtn_loss").values()) for label, runs in methods.items()}
    return sorted(means, key=lambda label: means[label])


def readable(methods: Mapping[str, Sequence[Row]]) -> list[str]:
    """At most :data:`SHOWN` labels in order of the final RTN loss: PTQ, QAT, and the best others."""
    order = by_final_loss(methods)
    always = [label for label in order if label.startswith("ptq") or label in ("qat", "qat (detached)")]
    others = [label for label in order if label not in always][: SHOWN - len(always)]
    return [label for label in order if label in always or label in others]
