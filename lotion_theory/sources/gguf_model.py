"""Models of GGUF files as torch modules of transformers, with gguf's own dequantization of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import library
from .container import Container, companion, read_container
from .families import ROPE_FACTORS, config_of, place_of
from .source import Place, Source
from .tokenizers import from_gguf


def open_gguf(path: Path) -> Source:
    """The model of a GGUF file of the llama, qwen2 or qwen3 architecture, its weights dequantized.

    Raises FileNotFoundError, and ValueError for a file that is not whole, another architecture, and tensors that the
    model has no use for or lacks.
    """
    container = read_container(path)
    config = config_of(container.get, container.tensors, str(path))
    torch = library("torch", "reading models", "models")
    transformers = library("transformers", "reading models", "models")
    made = transformers.AutoConfig.for_model(**config)
    # Names first, in no memory: a file of another model shows before its weights are read.
    with torch.device("meta"):
        blank = transformers.AutoModelForCausalLM.from_config(made)
    names = _places(container, blank, config)
    # Its random weights, all replaced, are none of the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(made)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        values = torch.from_numpy(names[name].to_model(container.values(names[name].name)))
        if values.shape != parameter.shape:
            wanted = tuple(parameter.shape)
            raise ValueError(f"{path}: {name} has shape {tuple(values.shape)}, the metadata say {wanted}")
        parameter.data = values
    refused = {}
    if ROPE_FACTORS in container.tensors:
        reason = f"{path} divides its rotations by factors that config.json does not say; write GGUF, which holds them"
        refused = dict.fromkeys(("folder", "compressed-tensors"), reason)
        factors = torch.from_numpy(container.values(ROPE_FACTORS))
        model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq / factors
    return Source(model.eval(), from_gguf(container), "gguf", path, names, config, refused)


def _places(container: Container, model: Any, config: Mapping[str, Any]) -> dict[str, Place]:
    """Where the weights of ``model`` are; ValueError naming a tensor that one of both lacks."""
    names: dict[str, Place] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        place = place_of(name, config)
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            place = names["model.embed_tokens.weight"]
        if place is None or place.name not in container.tensors:
            raise ValueError(f"{container.path} lacks the tensor of {name} ({place and place.name})")
        names[name] = place
    known = {name for place in names.values() for name in (place.name, companion(place.name))} | {ROPE_FACTORS}
    if extra := [name for name in container.tensors if name not in known]:
        raise ValueError(f"{container.path} has the tensor {extra[0]}, which {type(model).__name__} has no use for")
    return names
