"""Training on the instances of a problem as runs of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lotion_theory import Quantizer, Stream
from lotion_theory.methods import method as training_method

from ..documents import canonical
from ..problems import descriptor, training_problem
from ..problems.base import TrainingProblem
from ..problems.descriptor import Config, Diverged, Trainer
from ..problems.mlp import Classifier
from . import plain
from .methods import follows_gradient, method_of, search, tuning
from .run import Run, evaluate, prepare, train
from .state import Optimizer, block_starts

TUNING_SEEDS = 1000
"""First seed of the instances that tuning uses; final runs count from 0."""
CURVE, ENDS = 24, 2
"""Evaluations of a final run, and of a tuning run, whose curve nobody keeps: the losses at its end are the same."""


def trainer_of(problem: Config) -> Trainer:
    """How the problem ``{"name": ...}`` is trained: its own way, or by descent on its instances.

    Raises ValueError for an unknown problem and for one that is not trained.
    """
    return descriptor(problem.get("name"), lambda found: found.trained).trainer or DESCENT


def _run(config: Config, seed: int) -> tuple[TrainingProblem, Run]:
    problem = training_problem(config["problem"], seed)
    name, settings = method_of(config["method"])
    if (found := search(name)) is not None:
        return problem, found.run(problem, config["format"], seed, settings)
    optimizer = Optimizer(config.get("optimizer", "adam"), config["lr"], config.get("schedule", "cosine"))
    rule = training_method(name)(**settings)
    points = config.get("checkpoints", ENDS if seed >= TUNING_SEEDS else CURVE)
    return problem, train(problem, rule, config["format"], optimizer, config["steps"], seed, points)


def train_run(config: Config, seed: int) -> dict[str, Any]:
    """Train one method on one instance: float, RTN and RR loss, the gap, and their curves; raises :class:`Diverged`."""
    problem, result = _run(config, seed)
    losses = result.losses
    metrics: dict[str, Any] = {
        "float_loss": losses.full, "rtn_loss": losses.rtn, "rr_loss": losses.rr, "rr_standard_error": losses.rr_error,
        "gap": losses.gap, "noise_floor": float(getattr(problem, "floor", 0.0) or 0.0),
        "rtn_of_optimum": _rtn_of_optimum(problem, config["format"]), "train_seconds": result.seconds,
        "curve": result.curve,
    }  # fmt: skip
    if result.diverged:
        raise Diverged(f"after {result.steps} steps", metrics)
    if isinstance(problem, Classifier):
        rounded = plain.place(result.state, np.zeros_like(result.state.w)).near
        points = np.stack([result.state.w, rounded])
        metrics["test_float_loss"], metrics["test_rtn_loss"] = problem.test_loss(points).tolist()
        metrics["test_float_accuracy"], metrics["test_rtn_accuracy"] = problem.test_accuracy(points).tolist()
    return metrics


def _rtn_of_optimum(problem: TrainingProblem, text: str) -> float | None:
    """Loss of the unquantized optimum rounded to nearest on the format's own grid."""
    if problem.optimum is None:
        return None
    state = prepare(problem, training_method("ptq")(), text, start=problem.optimum)
    return evaluate(problem, state, Stream(0, "unused")).rtn


def seconds_per_step(config: Config, seed: int) -> float:
    """Seconds per step of one training run, evaluations left out."""
    _, result = _run(config, seed)
    return result.seconds / result.steps


def check(configs: Sequence[Config]) -> None:
    """ValueError for problems, blocks, methods, settings and optimizers of training runs that do not fit."""
    check_instances(configs)
    for config in configs:
        Optimizer(config["optimizer"], 1.0, config["schedule"])


def check_instances(configs: Sequence[Config]) -> None:
    """ValueError for problems, formats and methods that do not fit; instance 0 of each problem is made once."""
    made: dict[str, TrainingProblem] = {}
    for config in configs:
        name = canonical(config["problem"])
        if name not in made:
            made[name] = training_problem(config["problem"], 0)
        block_starts(Quantizer.parse(config["format"]), made[name].parts)
    for config in configs:
        name, settings = method_of(config["method"])
        if (found := search(name)) is not None:
            found.check(settings)
            continue
        rule, _ = training_method(name)(**settings).on(Quantizer.parse(config["format"]).codebook)
        rule.parameters(np.zeros(1))


DESCENT = Trainer(train_run, seconds_per_step, tuning, check, follows_gradient)
"""Training by the methods of this package."""
