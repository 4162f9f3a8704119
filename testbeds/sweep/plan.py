"""From experiments to runs: what is to be run, given the rows that are there already.

:func:`plan` is a pure function of the store's rows. Tuning comes first; the final runs of a method are known as soon
as its tuning is complete, so an interrupted sweep goes on from wherever it stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import kinds
from ..descent.methods import method_of
from ..descent.runs import trainer_of
from ..documents import canonical
from .config import MOST_SEEDS, Experiment
from .task import Task

TUNING_SEEDS = MOST_SEEDS
"""First seed of the instances that tuning uses; final runs count from 0."""

Row = Mapping[str, Any]


def plan(experiments: Sequence[Experiment], rows: Iterable[Row]) -> list[Task]:
    """All runs that can be named now. Rows of other experiments are ignored."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["experiment"], []).append(row)
    return [task for e in experiments for task in experiment_tasks(e, by_name.get(e.name, []))]


def experiment_tasks(e: Experiment, rows: Sequence[Row]) -> list[Task]:
    """The runs of one experiment that can be named now, tuning first."""
    kind = kinds.kind(e.kind)
    if not kind.tuned:
        return _plain_tasks(e)
    tasks = []
    for problem, text in itertools.product(e.problems(), e.formats):
        base = base_config(e, problem, text)
        if e.equal_time and kind.cost:
            tasks.append(Task(e.name, "timing", kind.cost, _timing(e, base), 0))
        for method in e.methods:
            tasks += _method_tasks(e, base, method, rows)
    return tasks


def base_config(e: Experiment, problem: Mapping[str, Any], text: str) -> dict[str, Any]:
    """What all training runs on one problem and format have in common."""
    return {
        "problem": dict(problem), "format": text, "optimizer": e.optimizer, "schedule": e.schedule, "steps": e.steps,
        **e.settings,
    }  # fmt: skip


def _plain_config(e: Experiment, problem: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {"problem": problem, "format": text, **e.settings}


def configurations(e: Experiment) -> Iterator[dict[str, Any]]:
    """One configuration for each problem, format and method: what must be able to run before anything does.

    Raises ValueError where the tuning budget does not fit a method.
    """
    kind = kinds.kind(e.kind)
    for problem, text in itertools.product(e.problems(), e.formats):
        base = (base_config if kind.tuned else _plain_config)(e, problem, text)
        if not kind.methods:
            yield base
        for method in e.methods:
            if e.tuning is not None:
                yield candidates(e, base, method)[0]
            else:
                yield {**base, "method": dict(method), **({"lr": e.lr} if kind.tuned else {})}


def _plain_tasks(e: Experiment) -> list[Task]:
    tasks = []
    kind = kinds.kind(e.kind)
    for problem, text, seed in itertools.product(e.problems(), e.formats, range(e.seeds)):
        base = _plain_config(e, problem, text)
        if e.oracle and kind.oracle:
            tasks.append(Task(e.name, "oracle", kind.oracle, base, seed))
        if not kind.methods:
            tasks.append(Task(e.name, "final", e.kind, base, seed))
        for method in e.methods:
            tasks.append(Task(e.name, "final", e.kind, {**base, "method": dict(method)}, seed))
    return tasks


def _timing(e: Experiment, base: Mapping[str, Any]) -> dict[str, Any]:
    """One run that times all methods in turns; its steps are few, as only their cost matters."""
    few = trainer_of(e.problem).timed_steps
    return {**base, "methods": [dict(m) for m in e.methods], "steps": min(e.steps, few), "rounds": 5}


def _method_tasks(e: Experiment, base: dict, method: Mapping[str, Any], rows: Sequence[Row]) -> list[Task]:
    if e.tuning is None:
        chosen: dict[str, Any] | None = {**base, "method": dict(method), "lr": e.lr}
        tasks: list[Task] = []
    else:
        grid = candidates(e, base, method)
        tasks = [
            Task(e.name, "tune", e.kind, config, TUNING_SEEDS + k) for config in grid for k in range(e.tuning.seeds)
        ]
        chosen = choose(e, grid, rows)
    if chosen is None:
        return tasks
    tasks += [Task(e.name, "final", e.kind, chosen, seed) for seed in range(e.seeds)]
    steps = equal_time_steps(e, base, method, rows) if e.equal_time else None
    if steps is not None:
        tasks += [Task(e.name, "equal_time", e.kind, {**chosen, "steps": steps}, seed) for seed in range(e.seeds)]
    return tasks


def candidates(e: Experiment, base: Mapping[str, Any], method: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tuning grid of a method: ``budget`` configurations, learning rates times the method's own settings.

    A setting fixed in the experiment is not tuned. Raises ValueError where the budget leaves a method with fewer than
    two learning rates.
    """
    assert e.tuning is not None, "only experiments with tuning have a grid"
    name, settings = method_of(method)
    trainer = trainer_of(base["problem"])
    own = {k: v for k, v in trainer.tuning(name).items() if k not in settings}
    combinations = [dict(zip(own, values, strict=True)) for values in itertools.product(*own.values())]
    if not trainer.rated(name):
        return [{**base, "method": {**method, **chosen}} for chosen in combinations[: e.tuning.budget]]
    count, rest = divmod(e.tuning.budget, len(combinations))
    if count < 2 or rest:
        raise ValueError(
            f"experiment {e.name}: a budget of {e.tuning.budget} is not 2 or more learning rates for each of the "
            f"{len(combinations)} settings of {name}; take a multiple of {len(combinations)}"
        )
    low, high = e.tuning.lr
    rates = np.geomspace(low, high, count)
    return [
        {**base, "method": {**method, **settings_of}, "lr": float(f"{rate:.4g}")}
        for settings_of in combinations
        for rate in rates
    ]


def choose(e: Experiment, grid: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any] | None:
    """The configuration with the lowest mean RTN loss over the tuning seeds; None while runs are missing.

    A configuration that diverged or failed on any seed is not taken, unless all did: then the lowest learning rate is.
    """
    assert e.tuning is not None, "only experiments with tuning choose"
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["phase"] == "tune":
            value = row["metrics"].get("rtn_loss") if row["status"] == "ok" else None
            found.setdefault(canonical(row["config"]), []).append(np.inf if value is None else value)
    scores = []
    for config in grid:
        values = found.get(canonical(config), [])
        if len(values) < e.tuning.seeds:
            return None
        scores.append(float(np.mean(values)))
    if np.isinf(scores).all():
        return dict(sorted(grid, key=lambda config: config.get("lr", 0.0))[0])
    return dict(grid[int(np.argmin(scores))])


def equal_time_steps(
    e: Experiment, base: Mapping[str, Any], method: Mapping[str, Any], rows: Sequence[Row]
) -> int | None:
    """Steps that take the method as long as ``e.steps`` take the reference, by the timing run; None before that."""
    wanted = canonical(_timing(e, base))
    for row in rows:
        if row["phase"] == "timing" and row["status"] == "ok" and canonical(row["config"]) == wanted:
            seconds = row["metrics"]["seconds_per_step"]
            labels = [canonical(dict(m)) for m in e.methods]
            names = [m["name"] for m in e.methods]
            if e.reference not in names:
                raise ValueError(f"experiment {e.name}: reference {e.reference!r} is none of {', '.join(names)}")
            mine = seconds[labels.index(canonical(dict(method)))]
            return max(1, round(e.steps * seconds[names.index(e.reference)] / mine))
    return None
