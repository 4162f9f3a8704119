"""From experiments to runs: what is to be run, given the rows that are there already.

:func:`plan` is a pure function of the store's rows. Tuning comes first; the final runs of a method are known as soon
as its tuning is complete, so an interrupted sweep goes on from wherever it stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .. import kinds
from ..descent.runs import TUNING_SEEDS, trainer_of
from ..documents import canonical
from .config import Experiment
from .task import Task
from .tuning import candidates, choose

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
    if not kind.tuned and e.tuning is None:
        return _plain_tasks(e)
    tasks = []
    for problem, text in itertools.product(e.problems(), e.formats):
        base = (base_config if kind.tuned else _plain_config)(e, problem, text)
        if e.oracle and kind.oracle:
            tasks += [Task(e.name, "oracle", kind.oracle, base, seed) for seed in range(e.seeds)]
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
        chosen, grid = choose(e, base, method, rows)
        tasks = [
            Task(e.name, "tune", e.kind, config, TUNING_SEEDS + k) for config in grid for k in range(e.tuning.seeds)
        ]
    if chosen is None:
        return tasks
    tasks += [Task(e.name, "final", e.kind, chosen, seed) for seed in range(e.seeds)]
    steps = equal_time_steps(e, base, method, rows) if e.equal_time else None
    if steps is not None:
        tasks += [Task(e.name, "equal_time", e.kind, {**chosen, "steps": steps}, seed) for seed in range(e.seeds)]
    return tasks


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
