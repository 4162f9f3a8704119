"""Train one method on one instance of a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from ..descent.runs import trainer_of
from ..figures import training as drawn
from ..problems.descriptor import Config
from ..results import studies
from ..results.leaderboard import training_table
from ..values import METHOD, NAME, PROBLEM
from .base import Kind


def train_run(config: Config, seed: int) -> dict[str, Any]:
    """The metrics of one training run, by the problem's own trainer; raises :class:`~testbeds.problems.Diverged`.

    ``config``: problem, format, method, optimizer, schedule, steps and, where training is descent, ``checkpoints``: at
    how many the losses are measured (24 by default).
    """
    return trainer_of(config["problem"]).train(config, seed)


def check(configs: Sequence[Config]) -> None:
    """ValueError for runs that could not start."""
    for _, same in groupby(configs, lambda config: config["problem"].get("name")):
        found = list(same)
        trainer_of(found[0]["problem"]).check(found)


def tuning(problem: Config, method: str) -> tuple[Mapping[str, Sequence[Any]], bool]:
    """The settings that the problem's trainer tunes for a method, and whether that has a learning rate."""
    trainer = trainer_of(problem)
    return trainer.tuning(method), trainer.rated(method)


KIND = Kind(
    "train",
    train_run,
    check,
    takes=lambda problem: problem.trained,
    settings={"checkpoints": int},
    tuned=True,
    tuning=tuning,
    score="rtn_loss",
    cost="timing",
    config={"problem": PROBLEM, "format": NAME, "method": METHOD},
    curve=True,
    words="training",
    table=training_table,
    figures=studies.of_training,
    pictures=drawn.pictures,
)
