"""Training curves as data of the page: means and bands per experiment, problem, format and method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..figures.curves import bands_of, method_curves
from ..rows import Row, at_best, grouped, instance, of_kind, values
from ..statistics import Interval, average

LOSSES = ("rtn", "rr", "float")
DIGITS = 4
SHOWN = 8
"""Methods with curves in one figure; more cannot be told apart."""


def training_curves(rows: Sequence[Row], every: bool = False) -> list[dict[str, Any]]:
    """Per experiment, problem and format the curves of its methods, lowest final RTN loss first.

    ``losses``: per loss a list of ``[value, low, high]`` or None per step, as :mod:`testbeds.figures.curves` draws
    them: geometric means over seeds. ``every``: keep all methods, else PTQ, QAT and the best others.
    """
    if not any(r["kind"] == "train" for r in rows):
        return []
    final = [
        r for r in of_kind(rows, "train")
        if r["phase"] == "final" and r["status"] == "ok" and r["metrics"].get("curve")
    ]  # fmt: skip
    out = []
    for (experiment, problem, format), runs in grouped(final, lambda r: (r["experiment"], *instance(r))).items():
        best = at_best(runs)
        means = {label: average(values(of, "rtn_loss").values()) for label, of in best.items()}
        order = sorted(means, key=lambda label: means[label])
        kept = order if every else _readable(order)
        curves = {label: method_curves(best[label]) for label in kept}
        names = [name for name in LOSSES if all(name in c.losses for c in curves.values())]
        bands = {name: bands_of(curves, name) for name in names}
        out.append({
            "experiment": experiment,
            "problem": problem,
            "format": format,
            "left_out": len(order) - len(kept),
            "floored": any(r["metrics"].get("noise_floor") for r in runs),
            "methods": [
                {
                    "method": label,
                    "seeds": len(c.seeds),
                    "steps": c.steps.tolist(),
                    "seconds": [_digits(float(v)) for v in np.atleast_1d(c.seconds)],
                    "losses": {name: [interval(i) for i in bands[name][label]] for name in names},
                }
                for label, c in curves.items()
            ],
        })  # fmt: skip
    return out


def interval(found: Interval | None) -> list[float] | None:
    """``[value]`` or ``[value, low, high]`` to a few digits; None where there is none."""
    if found is None:
        return None
    ends = [] if found.low is None or found.high is None else [found.low, found.high]
    return [_digits(v) for v in (found.value, *ends)]


def _digits(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _readable(order: list[str]) -> list[str]:
    always = [label for label in order if label.startswith("ptq") or label in ("qat", "qat (detached)")]
    others = [label for label in order if label not in always][: SHOWN - len(always)]
    return [label for label in order if label in always or label in others]
