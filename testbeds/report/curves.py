"""Training curves as data of the page: means and bands per experiment, problem, format and method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..results.curves import bands_of, by_final_loss, method_curves, readable
from ..results.rows import Row, at_best, final_runs, grouped, instance
from ..results.studies import digits, interval

LOSSES = ("rtn", "rr", "float")


def training_curves(rows: Sequence[Row], every: bool = False) -> list[dict[str, Any]]:
    """Per experiment, problem and format the curves of its methods, lowest final RTN loss first.

    ``losses``: per loss a list of ``[value, low, high]`` or None per step, as :mod:`testbeds.figures.curves` draws
    them: geometric means over seeds. ``every``: keep all methods, else PTQ, QAT and the best others.
    """
    final = [r for r in final_runs(rows, "train") if r["metrics"].get("curve")]
    out = []
    for (experiment, problem, format), runs in grouped(final, lambda r: (r["experiment"], *instance(r))).items():
        best = at_best(runs)
        kept = by_final_loss(best) if every else readable(best)
        curves = {label: method_curves(best[label]) for label in kept}
        names = [name for name in LOSSES if all(name in c.losses for c in curves.values())]
        bands = {name: bands_of(curves, name) for name in names}
        out.append({
            "experiment": experiment,
            "problem": problem,
            "format": format,
            "left_out": len(best) - len(kept),
            "floored": any(r["metrics"].get("noise_floor") for r in runs),
            "methods": [
                {
                    "method": label,
                    "seeds": len(c.seeds),
                    "steps": c.steps.tolist(),
                    "seconds": [digits(float(v)) for v in np.atleast_1d(c.seconds)],
                    "losses": {name: [interval(i) for i in bands[name][label]] for name in names},
                }
                for label, c in curves.items()
            ],
        })  # fmt: skip
    return out
