"""What the grid alone is worth: the float optimum, rounded to nearest on the best single scale of each block.

No weight is trained. On a diagonal quadratic the scale is the exact optimum of :mod:`testbeds.oracles.best_scale`, so a
method with a higher loss gains nothing that clipping would not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from lotion_theory import Quantizer, Stream
from lotion_theory.methods import LearnedTop, Rule

from ..oracles.best_scale import best_scale
from ..problems.base import TrainingProblem
from .methods import Search
from .run import Run, evaluate, prepare


def run_best_scale(problem: TrainingProblem, q: Quantizer | str, seed: int, settings: Mapping[str, Any]) -> Run:
    """The losses of the optimum on the best scales. ValueError for a problem without a diagonal Hessian."""
    hessian, optimum = getattr(problem, "hessian_diagonal", None), problem.optimum
    if hessian is None or optimum is None:
        raise ValueError(f"{problem.name} has no diagonal Hessian with a known optimum")
    begin = time.perf_counter()
    rule = Rule(top="learned", learned=LearnedTop(lambda w, book: 1.0, lambda book: 1.0, lambda n, book: 1.0))
    state = prepare(problem, rule, q, start=optimum)
    values = np.array([float(v) for v in state.book.values])
    for b, (first, last) in enumerate(pairwise(state.starts)):
        found = best_scale(optimum[first:last], hessian[first:last], values)
        state.top[b] = found.scale * values[-1]
    losses = evaluate(problem, state, Stream(seed, "descent/evaluation"))
    curve = {"step": [0.0], "seconds": [0.0], "float": [losses.full], "rtn": [losses.rtn], "rr": [losses.rr]}
    return Run(losses, time.perf_counter() - begin, 1, False, state, curve)


def check(settings: Mapping[str, Any]) -> None:
    """ValueError for any setting: there is none."""
    if settings:
        raise ValueError(f"best_scale has no setting {next(iter(settings))!r}; valid: none")


SEARCH = Search(
    "best_scale",
    "exact; ours",
    "the optimum and the diagonal Hessian",
    {},
    {},
    run_best_scale,
    check,
)
