"""A trained run as it lies in its folder: the model at its newest checkpoint, and what its weights are cast with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lotion_theory import Quantizer

from . import checkpoint
from .checkpoint import Checkpoint, Damaged
from .config import TrainConfig
from .evaluate import check_blocks, quantized_names
from .methods import OWN_GRID
from .model import Decoder
from .restore import check_facts, check_model, take_method
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
    opened: list[Opened] = []
    found = checkpoint.load(folder / "checkpoints", fall_back, lambda found: opened.append(_opened(found)))
    if found is None:
        raise FileNotFoundError(f"{folder} holds no checkpoint; name the folder that `lotion train` printed")
    return opened[-1]


def _opened(found: Checkpoint) -> Opened:
    """What a checkpoint holds; :class:`Damaged` if that is no run."""
    try:
        config = changed(TrainConfig(), found.facts["config"], str(found.path))
        model = Decoder(config.model)
        names = quantized_names(model, config.method.include, config.method.exclude)
        method = config.method
        quantizer = None if method.name == "none" else Quantizer.parse(method.format)
        if quantizer is not None:
            check_blocks(quantizer, {name: model.get_parameter(name) for name in names})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{found.path / 'manifest.json'} tells no configuration of a run ({error})") from None
    check_facts(found, config.steps, config.batch)
    check_model(found, model)
    model.load_state_dict(found.part("model"))
    grid = None
    if quantizer is not None and method.name in OWN_GRID:
        grid = _own_grid(found, config, quantizer, {name: model.get_parameter(name) for name in names})
    return Opened(found.step, config, model, names, quantizer, grid, found.facts)


def _own_grid(
    found: Checkpoint, config: TrainConfig, quantizer: Quantizer, weights: dict[str, Tensor]
) -> Callable[[str, Tensor], Quantizer]:
    from .quantized import own_grid

    method = config.method
    try:
        through = own_grid(method.name, weights, quantizer, method.settings, config.steps)
    except (ValueError, TypeError) as error:
        raise Damaged(f"{found.path / 'manifest.json'} tells no configuration of a run ({error})") from None
    state = {key: value for key, value in found.part("method").items() if key != "optimizer"}
    take_method(found._replace(parts={"method": state}), through)
    return through.quantizer
