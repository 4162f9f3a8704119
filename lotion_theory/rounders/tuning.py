"""Settings of rounding schemes, chosen with as many trials for one scheme as for another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from .. import Stream
from . import rounder
from .base import Case, Rounder


class Trial(NamedTuple):
    """One choice of ``settings`` and its ``score``, the geometric mean over cases of the loss over RTN's.

    The score is infinite where the scheme refused the settings, saying ``error``.
    """

    settings: Mapping[str, Any]
    score: float
    error: str = ""


class Tuned(NamedTuple):
    """``settings`` of the least score among ``trials``, in the order in which they were made.

    ``edges``: settings with numbers to choose from whose best one is the lowest or highest that was offered, so that a
    better one may lie beyond. ``exhausted``: every combination was tried before the budget was spent.
    """

    name: str
    settings: Mapping[str, Any]
    score: float
    trials: tuple[Trial, ...]
    edges: tuple[str, ...]
    exhausted: bool


def tune_rounder(
    name: str | Rounder,
    cases: Sequence[Case],
    budget: int,
    *,
    stream: Stream | None = None,
    fixed: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
) -> Tuned:
    """Try ``budget`` combinations of the values that a scheme declares in ``tuning``, each on all ``cases``.

    The defaults come first; then, one setting after the other, all its values beside the best others, again and again
    until nothing improves; then combinations not yet tried, drawn by ``stream``. A scheme with fewer combinations than
    the budget has them all tried.

    Args:
        name: of a scheme, or one.
        cases: on which the final comparison should not be made.
        budget: runs over all cases, the same for all schemes that are to be compared.
        stream: for the schemes and the draws.
        fixed: settings that stay.
        grid: values to try, in place of the scheme's.

    Raises ValueError for less than one trial, no case, a case that RTN rounds without loss, settings that the scheme
    does not have, and where it refused every combination.
    """
    scheme = rounder(name) if isinstance(name, str) else name
    offered = {key: tuple(values) for key, values in (scheme.tuning if grid is None else grid).items()}
    fixed, stream = dict(fixed or {}), stream or Stream(0, "tune_rounder")
    for key in (*offered, *fixed):
        if key not in scheme.settings:
            raise ValueError(f"{scheme.name} has no setting {key!r}; valid: {', '.join(scheme.settings) or 'none'}")
    if budget < 1 or not cases:
        raise ValueError(f"budget={budget} on {len(cases)} cases: needs at least 1 of each")
    offered = {key: values for key, values in offered.items() if key not in fixed}
    bases = [float(case.loss(case.grid.nearest(case.weights)[None])[0]) for case in cases]
    if not all(base > 0 for base in bases):
        raise ValueError(f"case {bases.index(0.0)}: RTN has no loss, so that there is nothing to compare with")
    trials: dict[tuple[Any, ...], Trial] = {}
    for values in _plan(scheme, offered, trials, stream):
        chosen = {**fixed, **dict(zip(offered, values, strict=True))}
        trials[values] = _tried(scheme, cases, bases, chosen, stream)
        if len(trials) == budget:
            break
    best = min(trials.values(), key=lambda trial: trial.score)
    if best.score == math.inf:
        raise ValueError(f"{scheme.name} refused all {len(trials)} combinations, the first one saying: {best.error}")
    edges = tuple(key for key, values in offered.items() if _at_edge(best.settings[key], values))
    exhausted = len(trials) == math.prod(len(set(v) | {scheme.settings[k]}) for k, v in offered.items())
    return Tuned(scheme.name, best.settings, best.score, tuple(trials.values()), edges, exhausted)


def _plan(
    scheme: Rounder, grid: Mapping[str, Sequence[Any]], trials: Mapping[tuple[Any, ...], Trial], stream: Stream
) -> Iterator[tuple[Any, ...]]:
    """Combinations to try next, none twice, reading what came of the former ones in ``trials``."""
    yield tuple(scheme.settings[key] for key in grid)
    while True:
        before = best = min(trials, key=lambda values: trials[values].score)
        for place, values in enumerate(grid.values()):
            for value in values:
                now = (*best[:place], value, *best[place + 1 :])
                if now not in trials:
                    yield now
            best = min(trials, key=lambda values: trials[values].score)
        if best == before:
            break
    offered = [tuple(dict.fromkeys((*values, scheme.settings[key]))) for key, values in grid.items()]
    rest = [values for values in product(*offered) if values not in trials]
    for k in stream.numpy_generator().permutation(len(rest)):
        yield rest[k]


def _tried(
    scheme: Rounder, cases: Sequence[Case], bases: Sequence[float], chosen: Mapping[str, Any], stream: Stream
) -> Trial:
    try:
        losses = [float(case.loss(scheme(case, stream, **chosen)[None])[0]) for case in cases]
    except ValueError as error:
        return Trial(chosen, math.inf, str(error))
    ratios = np.array(losses) / np.array(bases)
    with np.errstate(divide="ignore"):
        return Trial(chosen, float(np.exp(np.log(ratios).mean())))


def _at_edge(value: Any, values: Sequence[Any]) -> bool:
    """Whether a number is the lowest or highest of several."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return numbers and len(values) > 1 and value in (min(values), max(values))
