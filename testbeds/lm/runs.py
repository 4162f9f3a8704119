"""Language models as runs of a sweep: a problem called ``decoder`` for training experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from lotion_theory.arguments import count

from ..problems.descriptor import Descriptor, Diverged, Trainer
from ..settings import changed
from .loop.config import TrainConfig, preset
from .model.config import ModelConfig
from .model.methods import TUNING

SIZES = tuple(one.name for one in fields(ModelConfig))
OWN = ("preset", "tokens", "batch", "warmup", "windows", "samples", "points")


def configuration(config: Mapping[str, Any], seed: int) -> TrainConfig:
    """The training run that a sweep's configuration stands for.

    ``config``: ``problem`` (``name: decoder``; ``preset``, by default tiny; fields of :class:`ModelConfig`; ``tokens``,
    ``batch``, ``warmup``; ``windows`` and ``samples`` of the evaluation; ``points``: of the curve, by default 4),
    ``format``, ``method`` (name and settings), ``steps``, ``schedule``, ``lr``. ``seed`` draws initial weights, data
    order and rounding noise, so runs of one seed are paired over methods. Raises ValueError naming what is not valid.
    """
    problem = {key: value for key, value in config["problem"].items() if key != "name"}
    for key in problem:
        if key not in (*SIZES, *OWN):
            raise ValueError(f"problem decoder has no setting {key!r}; valid: {', '.join((*SIZES, *OWN))}")
    if config.get("optimizer", "adam") != "adam":
        raise ValueError(f"optimizer = {config['optimizer']!r}; valid for decoder: adam (AdamW)")
    if "checkpoints" in config:
        raise ValueError("settings.checkpoints: the points of a decoder's curve are problem.points")
    method = dict(config["method"])
    name = method.pop("name")
    optimizer = {key: config[key] for key in ("lr", "schedule") if key in config}
    steps, points = config["steps"], problem.get("points", 4)
    points = count("points", points)
    evaluation = {key: problem[key] for key in ("windows", "samples") if key in problem}
    if "warmup" in problem:
        optimizer["warmup"] = problem["warmup"]
    changes: dict[str, Any] = {
        "model": {key: problem[key] for key in SIZES if key in problem},
        "optimizer": optimizer,
        "method": {"name": name, "format": config["format"], "settings": method},
        "evaluation": evaluation,
        "run": {"device": "cpu", "evaluate_every": max(1, steps // points), "log_every": max(1, steps // 10)},
        "steps": steps,
        "seed": seed,
    }
    if "tokens" in problem:
        changes["data"] = {"tokens": problem["tokens"]}
    if "batch" in problem:
        changes["batch"] = problem["batch"]
    return changed(preset(problem.get("preset", "tiny")), changes, "problem decoder")


def train_run(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train and evaluate: float, RTN and RR loss in nats per token on held-out text, gaps, and their curves.

    Raises :class:`~testbeds.problems.Diverged` where the loss is no number any more.
    """
    from .loop.train import train

    result = train(configuration(config, seed))
    measured = result["metrics"]
    metrics: dict[str, Any] = {
        **{f"{name}_loss": measured.get(f"{name}_loss") for name in ("float", "rtn", "rr")},
        **{name: measured.get(name) for name in ("rr_standard_error", "gap", "rr_gap")},
        "train_seconds": result["train_seconds"], "tokens_per_second": result["tokens_per_second"],
        "parameters": result["parameters"]["total"], "quantized_parameters": result["quantized_parameters"],
        "curve": result["curve"],
    }  # fmt: skip
    if result["status"] != "ok":
        raise Diverged(f"after {result['step']} steps", metrics)
    return metrics


def seconds_per_step(config: Mapping[str, Any], seed: int) -> float:
    """Seconds per training step over ``steps`` of them, evaluation and the first step left out."""
    import time

    from .loop import train as loop
    from .loop.distributed import joined

    run = configuration(config, seed)
    with joined(run.run) as world:
        trainer = loop.Trainer(run, world)
        trainer.step()
        begin = time.perf_counter()
        for _ in range(run.steps):
            trainer.step()
        return (time.perf_counter() - begin) / run.steps


def check(configs: Sequence[Mapping[str, Any]]) -> None:
    """ValueError for a run that could not start: sizes, corpus, method, settings, or blocks that do not fit."""
    from .loop import train as loop

    for config in configs:
        loop.check(configuration(config, 0))


PROBLEMS = (
    Descriptor(
        "decoder",
        # A step costs a hundred times that of the small problems.
        trainer=Trainer(train_run, seconds_per_step, lambda method: TUNING.get(method, {}), check, timed_steps=30),
        language=True,
        needs={"torch": "lotion-theory[lm]"},
    ),
)
