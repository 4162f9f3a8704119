"""Options of the commands that name a training run: a preset, a file, single settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lotion_theory.files import file_name

from ..settings import changed, to_dict
from .loop.config import TrainConfig, assigned, load, preset
from .text.config import SOTU


@dataclass(frozen=True)
class Options:
    """What to train, and how."""

    preset: Annotated[
        Literal["tiny", "20m", "150m", "300m"],
        tyro.conf.arg(help="size and settings to start from; named by the parameters of the blocks"),
    ] = "tiny"
    config: Annotated[Path | None, tyro.conf.arg(help="YAML file of settings on top of the preset")] = None
    method: Annotated[str | None, tyro.conf.arg(help="training method")] = None
    format: Annotated[str | None, tyro.conf.arg(help="number format, as in `lotion formats`")] = None
    steps: Annotated[int | None, tyro.conf.arg(help="optimizer steps")] = None
    batch: Annotated[int | None, tyro.conf.arg(help="sequences per step, over all devices")] = None
    micro_batch: Annotated[int | None, tyro.conf.arg(help="sequences per device and forward pass")] = None
    lr: Annotated[float | None, tyro.conf.arg(help="learning rate")] = None
    seed: Annotated[int | None, tyro.conf.arg(help="of initial weights, data order and rounding noise")] = None
    tokens: Annotated[str | None, tyro.conf.arg(help=f"folder made by `lotion prepare`, or {SOTU}")] = None
    mixer: Annotated[Literal["attention", "recurrence"] | None, tyro.conf.arg(help="architecture")] = None
    device: Annotated[str | None, tyro.conf.arg(help="auto, cpu, cuda, cuda:1, ...")] = None
    precision: Annotated[Literal["float32", "bfloat16"] | None, tyro.conf.arg(help="of matrix products")] = None
    compile: Annotated[bool, tyro.conf.arg(help="use torch.compile")] = False
    strategy: Annotated[Literal["auto", "none", "ddp", "fsdp"] | None, tyro.conf.arg(help="under torchrun")] = None
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(help="any other setting, e.g. model.width=64 optimizer.schedule=wsd")
    ] = ()

    def resolved(self) -> TrainConfig:
        """The preset, changed by the file, the options and ``--set`` in this order."""
        config = preset(self.preset)
        if self.config is not None:
            config = load(self.config, config)
        options = {
            "method": {"name": self.method, "format": self.format},
            "optimizer": {"lr": self.lr},
            "data": {"tokens": self.tokens},
            "model": {"mixer": self.mixer},
            "run": {"device": self.device, "precision": self.precision, "strategy": self.strategy,
                    "micro_batch": self.micro_batch, "compile": self.compile or None},
            "steps": self.steps, "batch": self.batch, "seed": self.seed,
        }  # fmt: skip
        return assigned(changed(config, _given(options), "command line"), self.set)


def default_name(name: str, config: TrainConfig) -> str:
    """Name for a run's folder, e.g. ``tiny-ptq-int4-absmax-block=32-lr=0.01-seed0``.

    After method and format it tells every setting that changes the training itself and is not that of the preset
    ``name``; a name that gets too long ends in a hash.
    """
    text = "" if config.method.name == "none" else f"-{config.method.format.replace('/', '-')}"
    usual, own = (_flat(to_dict(one)) for one in (preset(name), config))
    for label, value in own.items():
        if value != usual.get(label) and label.partition(".")[0] not in ("run", "evaluation"):
            text += f"-{label.partition('.')[2] or label}={_text(value)}" if label not in _TOLD else ""
    return file_name(f"{name}-{config.method.name}{text}-seed{config.seed}")


_TOLD = ("method.name", "method.format", "seed")
"""Settings that every name holds."""


def _flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Settings by their path."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        out |= _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return out


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options without those that are None."""
    out = {}
    for name, value in options.items():
        value = _given(value) if isinstance(value, dict) else value
        if value is not None and value != {}:
            out[name] = value
    return out
