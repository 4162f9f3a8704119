"""A trained run as it lies in its folder: the model at its newest checkpoint, and what its weights are cast with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lotion_theory import Quantizer

from . import checkpoint
from .config import TrainConfig
from .evaluate import quantized_names
from .methods import OWN_GRID
from .model import Decoder
from .settings import changed


class Opened(NamedTuple):
    """``names``: of the weights the run quantizes; ``quantizer``: of its format, None for plain training; ``grid``: for
    methods with a grid of their own, the quantizer of a weight by its name and values, else None; ``facts``: plain data
    of the checkpoint."""

    step: int
    config: TrainConfig
    model: Decoder
    names: list[str]
    quantizer: Quantizer | None
    grid: Callable[[str, Tensor], Quantizer] | None
    facts: dict[str, Any]


def open_run(folder: Path, fall_back: bool = False) -> Opened:
    """The run in ``folder``, on the CPU.

    Raises FileNotFoundError for a folder without a checkpoint, and ValueError for a damaged one unless ``fall_back``
    lets an older one take its place.
    """
    found = checkpoint.load(folder / "checkpoints", fall_back)
    if found is None:
        raise FileNotFoundError(f"{folder} holds no checkpoint; name the folder that `lotion train` printed")
    config = changed(TrainConfig(), found.facts["config"], str(found.path))
    model = Decoder(config.model)
    model.load_state_dict(found.parts["model"])
    names = quantized_names(model, config.method.include, config.method.exclude)
    method = config.method
    quantizer = None if method.name == "none" else Quantizer.parse(method.format)
    grid = None
    if quantizer is not None and method.name in OWN_GRID:
        from .quantized import own_grid

        weights = {name: model.get_parameter(name) for name in names}
        grid = own_grid(method.name, weights, quantizer, method.settings, config.steps, found.parts["method"]).quantizer
    return Opened(found.step, config, model, names, quantizer, grid, found.facts)
