"""Configuration of a training run: frozen dataclasses, presets, and overrides that refuse unknown names.

The name of a preset counts the parameters of its blocks ("150m": 149.4 M in 12 blocks of width 1024), without the
embedding, which is shared with the output layer. Papers also name models by their total: 131 M of embedding (a
vocabulary of 128,256 at width 1024) and 19 M of blocks are a "150M" model too. Both counts of every preset are in
:func:`testbeds.lm.model.decoder.parameter_counts`. Learning rates and schedules are ours, not those of a paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...documents import read_yaml, yaml_value
from ...settings import at_least, changed, one_of, positive
from ..model.config import ModelConfig
from ..text.config import DataConfig

SCHEDULES = ("cosine", "wsd", "constant")
PRECISIONS = ("float32", "bfloat16")
STRATEGIES = ("auto", "none", "ddp", "fsdp")
GPT2_VOCABULARY = 50304
"""The 50,257 ids of GPT-2, padded to a multiple of 128."""
LARGEST_SEED = 2**63 - 1
LARGEST_BATCH = 2**20


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, and the learning rate over time.

    ``lr`` rises linearly over ``warmup`` steps, then falls to ``final`` times itself: along a cosine, or ("wsd") stays
    until the last ``decay`` part of all steps and falls linearly there, or ("constant") stays. ``weight_decay`` applies
    to matrices only; ``clip``: the largest norm of the whole gradient, 0 for no limit.
    """

    lr: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    schedule: str = "cosine"
    warmup: int = 50
    decay: float = 0.2
    final: float = 0.1

    def __post_init__(self) -> None:
        one_of(self, "schedule", SCHEDULES)
        at_least(self, 0, "warmup", "weight_decay", "clip", "final")
        positive(self, "lr", "epsilon", "decay")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} = {getattr(self, name)!r}: must lie in [0, 1)")
        if self.decay > 1:
            raise ValueError(f"optimizer.decay = {self.decay!r}: a part of all steps, at most 1")


@dataclass(frozen=True)
class MethodConfig:
    """How weights are prepared for ``format`` during training, and which weights.

    ``include``, ``exclude``: patterns as in a shell ("blocks.*", "*.feed.down.weight") over parameter names; only
    matrices are taken, and a pattern that takes none is an error. ``settings``: those of the method.
    """

    name: str = "ptq"
    format: str = "int4"
    include: tuple[str, ...] = ("blocks.*",)
    exclude: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from ..model.methods import METHODS

        one_of(self, "name", tuple(METHODS))
        if not self.include:
            raise ValueError("method.include is empty: name at least one pattern, e.g. 'blocks.*'")


@dataclass(frozen=True)
class EvaluationConfig:
    """``windows`` held-out sequences (fewer if there are not as many) and ``samples`` randomized roundings, both drawn
    from ``seed`` alone, so that every run with the same data is measured on the same ones. ``batch``: sequences at a
    time, by default the micro-batch of training."""

    windows: int = 256
    samples: int = 4
    seed: int = 0
    batch: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 2, "windows", "samples")
        at_least(self, 1, "batch")
        at_least(self, 0, "seed", most=LARGEST_SEED)


@dataclass(frozen=True)
class RunConfig:
    """What does not change the result beyond rounding errors: the machine, and how often things are written.

    ``micro_batch``: sequences per device and forward pass, by default all of a device's share; ``recompute``: keep only
    block inputs for the backward pass; ``deterministic``: only kernels that give the same bits every time (on a GPU;
    CPUs do anyway); ``checkpoint_every``, ``evaluate_every``: steps, 0 for the end only; ``keep``: checkpoints kept;
    ``peak_flops``: of one device, for the model FLOPs utilization; ``wandb``: project name.
    """

    device: str = "auto"
    precision: str = "float32"
    compile: bool = False
    strategy: str = "auto"
    micro_batch: int | None = None
    recompute: bool = False
    deterministic: bool = False
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    peak_flops: float | None = None
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        one_of(self, "precision", PRECISIONS)
        one_of(self, "strategy", STRATEGIES)
        at_least(self, 1, "log_every", "keep", "micro_batch")
        at_least(self, 0, "evaluate_every", "checkpoint_every")
        positive(self, "peak_flops")


@dataclass(frozen=True)
class TrainConfig:
    """Everything about a run. ``batch``: sequences per optimizer step, over all devices; ``seed``: names the streams of
    initial weights, data order and rounding noise."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = OptimizerConfig()
    method: MethodConfig = field(default_factory=MethodConfig)
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()
    steps: int = 600
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")
        at_least(self, 1, "batch", most=LARGEST_BATCH)
        at_least(self, 0, "seed", most=LARGEST_SEED)


def _large(shape: tuple[int, int, int, int, int], lr: float, steps: int, batch: int, micro: int) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(GPT2_VOCABULARY, *shape),
        data=DataConfig(tokens=""),
        optimizer=OptimizerConfig(lr=lr, warmup=steps // 20),
        run=RunConfig(precision="bfloat16", micro_batch=micro, evaluate_every=1000, checkpoint_every=500),
        steps=steps,
        batch=batch,
    )


PRESETS = {
    "tiny": TrainConfig(),
    # Steps make 20 tokens per block parameter.
    "20m": _large((512, 6, 8, 1536, 512), 3e-3, 6200, 128, 32),
    "150m": _large((1024, 12, 16, 2688, 1024), 2e-3, 11_400, 256, 32),
    "300m": _large((1024, 24, 16, 2688, 1024), 1.5e-3, 22_800, 256, 16),
}


def preset(name: str) -> TrainConfig:
    """The configuration of that name; ValueError listing the names for another."""
    if name not in PRESETS:
        raise ValueError(f"preset = {name!r}; valid: {', '.join(PRESETS)}")
    return PRESETS[name]


def load(path: Path, base: TrainConfig | None = None) -> TrainConfig:
    """The YAML file's settings on top of ``base``, or of the preset it names under ``preset`` (by default tiny).

    Raises FileNotFoundError, and ValueError naming the file and the setting.
    """
    data = read_yaml(path)
    named = data.pop("preset", None)
    if named is not None and not isinstance(named, str):
        raise ValueError(f"{path}: preset = {named!r}; valid: {', '.join(PRESETS)}")
    if base is None or named is not None:
        base = preset(named or "tiny")
    return changed(base, data, str(path))


def assigned(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """``config`` with assignments such as ``"model.width=64"`` made, all at once; values are read as YAML.

    Raises ValueError naming the setting.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        name, sign, value = text.partition("=")
        *sections, last = name.split(".")
        if not sign or not all((*sections, last)):
            raise ValueError(f"--set {text}: expected NAME=VALUE, e.g. model.width=64")
        place = changes
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {text}: {section!r} is given a value as well")
        place[last] = yaml_value(value, f"--set {text}")
    return changed(config, changes, "--set")
