"""Which configurations are tried before the final runs, and which of them is taken."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .. import kinds
from ..descent.methods import method_of
from ..documents import canonical
from .config import Experiment

Row = Mapping[str, Any]
Config = dict[str, Any]


def candidates(e: Experiment, base: Mapping[str, Any], method: Mapping[str, Any]) -> list[Config]:
    """The tuning grid of a method: ``budget`` configurations, learning rates times the method's own settings; of a kind
    without learning rates the settings alone, under ``"tuned"`` beside the method.

    A setting fixed in the experiment is not tuned. Raises ValueError where the budget leaves a method with fewer than
    two learning rates.
    """
    assert e.tuning is not None, "only experiments with tuning have a grid"
    name, own, rated = _tuned(e, base, method)
    combinations = [dict(zip(own, values, strict=True)) for values in itertools.product(*own.values())]
    if not kinds.kind(e.kind).tuned:
        apart = [{"tuned": chosen} if chosen else {} for chosen in combinations[: e.tuning.budget]]
        return [{**base, "method": dict(method), **chosen} for chosen in apart]
    if not rated:
        return [{**base, "method": {**method, **chosen}} for chosen in combinations[: e.tuning.budget]]
    count, rest = divmod(e.tuning.budget, len(combinations))
    if count < 2 or rest:
        raise ValueError(
            f"experiment {e.name}: a budget of {e.tuning.budget} is not 2 or more learning rates for each of the "
            f"{len(combinations)} settings of {name}; take a multiple of {len(combinations)}"
        )
    low, high = e.tuning.rates
    rates = np.geomspace(low, high, count)
    return [
        {**base, "method": {**method, **settings_of}, "lr": float(f"{rate:.4g}")}
        for settings_of in combinations
        for rate in rates
    ]


def _tuned(
    e: Experiment, base: Mapping[str, Any], method: Mapping[str, Any]
) -> tuple[str, dict[str, tuple[Any, ...]], bool]:
    """A method's name, the settings to be tuned with the values to try, and whether it has a learning rate."""
    name, settings = method_of(method)
    tuning = kinds.kind(e.kind).tuning
    assert tuning is not None, "only experiments of a kind with tuning have one"
    own, rated = tuning(base["problem"], name)
    return name, {k: tuple(v) for k, v in own.items() if k not in settings}, rated


def choose(
    e: Experiment, base: Mapping[str, Any], method: Mapping[str, Any], rows: Sequence[Row]
) -> tuple[Config | None, list[Config]]:
    """The configuration with the lowest mean score over the tuning seeds, None while runs are missing; and all those
    that are to be tried so far: none where there is no choice.

    While the best lies at an edge of what was tried, the grid is continued there, up to ``tuning.extend``
    configurations. One that diverged or failed on any seed is not taken, unless all did: then the lowest learning rate
    is.
    """
    assert e.tuning is not None, "only experiments with tuning choose"
    grid = candidates(e, base, method)
    if len(grid) == 1:
        return grid[0], []
    scores = _scores(e, rows)
    first = len(grid)
    keys = tuple(_tuned(e, base, method)[1])
    while True:
        means = [scores.get(canonical(config)) for config in grid]
        if any(mean is None for mean in means):
            return None, grid
        values = np.array(means, dtype=float)
        if np.isinf(values).all():
            return dict(sorted(grid, key=lambda config: config.get("lr", 0.0))[0]), grid
        best = grid[int(np.argmin(values))]
        more = list(itertools.islice(_beyond(e.kind, grid, best, keys), first + e.tuning.extend - len(grid)))
        if not more:
            return dict(best), grid
        grid = grid + more


def _scores(e: Experiment, rows: Sequence[Row]) -> dict[str, float]:
    """Mean score by configuration, of those whose tuning runs are all there; infinite where one failed."""
    assert e.tuning is not None, "only experiments with tuning have scores"
    score = kinds.kind(e.kind).score
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["phase"] == "tune":
            value = row["metrics"].get(score) if row["status"] == "ok" else None
            found.setdefault(canonical(row["config"]), []).append(np.inf if value is None else value)
    return {config: float(np.mean(values)) for config, values in found.items() if len(values) >= e.tuning.seeds}


def _beyond(kind: str, grid: Sequence[Config], best: Config, keys: Sequence[str]) -> Iterator[Config]:
    """Configurations one step beyond ``best`` for each number that is the lowest or highest tried with the others as
    they are: the next value tried elsewhere, else the step to its neighbour, as a ratio, once more. Those that the
    method does not take are left out."""
    for key in (*(("lr",) if "lr" in best else ()), *keys):
        value = _value(best, key)
        if not _extends(value):
            continue
        known = sorted({v for config in grid if _extends(v := _value(config, key))})
        around = [_value(config, key) for config in grid if _alike(config, best, key)]
        for side in (-1, 1):
            beyond = known[known.index(value) + 1 :] if side > 0 else known[: known.index(value)][::-1]
            near = known[: known.index(value)][::-1] if side > 0 else known[known.index(value) + 1 :]
            if set(beyond) & set(around) or not (beyond or near):
                continue
            config = _with(best, key, beyond[0] if beyond else float(f"{value * value / near[0]:.4g}"))
            if _runs(kind, canonical(config)):
                yield config


def _extends(value: Any) -> bool:
    """Whether a setting can be continued: a positive float. Whole numbers are counts that cost."""
    return isinstance(value, float) and value > 0


def _place(config: Config) -> str:
    """Under which key the tuned settings of a method are, its learning rate aside."""
    return "tuned" if "tuned" in config else "method"


def _value(config: Config, key: str) -> Any:
    return config[key] if key in config else config[_place(config)].get(key)


def _with(config: Config, key: str, value: float) -> Config:
    place = _place(config)
    return {**config, key: value} if key in config else {**config, place: {**config[place], key: value}}


def _alike(a: Config, b: Config, key: str) -> bool:
    """Whether two configurations differ at most in ``key``."""
    return canonical(_with(a, key, 0.0)) == canonical(_with(b, key, 0.0))


@lru_cache(maxsize=4096)
def _runs(kind: str, config: str) -> bool:
    check = kinds.kind(kind).check
    assert check is not None, "experiments name kinds that can be checked"
    try:
        check([json.loads(config)])
    except ValueError:
        return False
    return True
