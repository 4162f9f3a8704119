"""A language model small enough that twenty steps take a second, and how to compare two of its runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from testbeds.lm.loop.config import EvaluationConfig, MethodConfig, OptimizerConfig, RunConfig, TrainConfig
from testbeds.lm.loop.train import train
from testbeds.lm.model.config import ModelConfig

TIMES = ("seconds", "tokens_per_second", "memory_bytes", "train_seconds", "mfu", "machine", "version")

SMALL = TrainConfig(
    model=ModelConfig(width=16, depth=2, heads=2, hidden=32, context=16),
    optimizer=OptimizerConfig(lr=1e-2, warmup=3),
    method=MethodConfig(format="int4/absmax/block=16"),
    evaluation=EvaluationConfig(windows=8, samples=2),
    run=RunConfig(device="cpu", log_every=1, checkpoint_every=5),
    steps=20,
    batch=4,
)


def small(**changes):
    """:data:`SMALL` with settings changed, each given by its path with two underscores: ``run__keep=3``."""
    config = SMALL
    for path, value in changes.items():
        section, _, name = path.partition("__")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value}) if name else value})
    return config


def parts(out: Path, step: int = 20) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by file and name."""
    found = {}
    for name in ("model", "optimizer"):
        content = torch.load(out / "checkpoints" / f"step-{step:08}" / f"{name}.pt", weights_only=True)
        content = content["state"] if name == "optimizer" else content
        for key, value in content.items():
            items = value.items() if isinstance(value, dict) else [("", value)]
            found |= {f"{name}/{key}/{k}": v for k, v in items}
    return found


def assert_same_bits(a: Path, b: Path, step: int = 20) -> None:
    """Both runs have the same weights, optimizer state, and losses in their logs."""
    first, second = parts(a, step), parts(b, step)
    assert first.keys() == second.keys() and len(first) > 30
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
    assert lines(a) == lines(b)


def lines(out: Path) -> list[dict]:
    """The log without times and without where the run was started."""
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if k not in TIMES} for one in found if one["kind"] in ("train", "evaluation")]


class Interrupted(Exception):
    pass


def interrupting(step, action=None):
    """A progress function that interrupts at ``step``."""

    def progress(done, steps, text):
        if done == step:
            if action is None:
                raise Interrupted
            action()

    return progress


def interrupted_at(step, out, config=SMALL):
    with pytest.raises(Interrupted):
        train(config, out, progress=interrupting(step))
