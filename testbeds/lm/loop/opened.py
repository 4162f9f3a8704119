"""A trained run as it lies in its folder: the model at its newest checkpoint, and what its weights are cast with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...settings import changed
from ..model.casts import Casting, Grid, quantized_names
from ..model.decoder import Decoder
from ..model.methods import OWN_GRID
from . import checkpoint
from .checkpoint import Checkpoint, Damaged
from .config import TrainConfig
from .folder import CHECKPOINTS
from .restore import check_facts, check_model, take_method


class Opened(NamedTuple):
    """``casting``: of the weights that the run quantizes, None for plain training; ``facts``: plain data of the
    checkpoint."""

    step: int
    config: TrainConfig
    model: Decoder
    casting: Casting | None
    facts: dict[str, Any]


def open_run(folder: Path, fall_back: bool = False) -> Opened:
    """The run in ``folder``, on the CPU.

    Raises FileNotFoundError for a folder without a checkpoint, and ValueError for a damaged one unless ``fall_back``
    lets an older one take its place.
    """
    opened: list[Opened] = []
    stored = checkpoint.load(folder / CHECKPOINTS, fall_back, lambda stored: opened.append(_opened(stored)))
    if stored is None:
        raise FileNotFoundError(f"{folder} holds no checkpoint; name the folder that `lotion train` printed")
    return opened[-1]


def _opened(stored: Checkpoint) -> Opened:
    """What a checkpoint holds; :class:`Damaged` if that is no run."""
    try:
        config = changed(TrainConfig(), stored.facts["config"], str(stored.path))
        model = Decoder(config.model)
        names = quantized_names(model, config.method.include, config.method.exclude)
        plain = config.method.name == "none"
        casting = None if plain else Casting.fitting(model, names, config.method.format)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{stored.path / 'manifest.json'} tells no configuration of a run ({error})") from None
    check_facts(stored, config.steps, config.batch)
    check_model(stored, model)
    model.load_state_dict(stored.part("model"))
    if casting is not None and config.method.name in OWN_GRID:
        casting = replace(casting, grid=_own_grid(stored, config, model, casting))
    return Opened(stored.step, config, model, casting, stored.facts)


def _own_grid(stored: Checkpoint, config: TrainConfig, model: Decoder, casting: Casting) -> Grid:
    from ..model.quantized import own_grid

    method, weights = config.method, {name: model.get_parameter(name) for name in casting.names}
    try:
        through = own_grid(method.name, weights, casting.quantizer, method.settings, config.steps)
    except (ValueError, TypeError) as error:
        raise Damaged(f"{stored.path / 'manifest.json'} tells no configuration of a run ({error})") from None
    state = {key: value for key, value in stored.part("method").items() if key != "optimizer"}
    take_method(stored._replace(parts={"method": state}), through)
    return through.quantizer
