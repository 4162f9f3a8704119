"""Architectures that GGUF and transformers both know: their metadata and the names of their tensors, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..files import library
from .source import Place

FAMILIES = ("llama", "qwen2", "qwen3")
"""Names of the architecture in GGUF and of the model in transformers."""

COUNTS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}  # fmt: skip
"""Metadata of GGUF, without the architecture, and what ``config.json`` calls them."""
EPSILON, BASE = "attention.layer_norm_rms_epsilon", "rope.freq_base"
HEAD_SIZES = ("attention.key_length", "attention.value_length", "rope.dimension_count")
"""Metadata that all hold the size of a head here."""
ROPE_FACTORS = "rope_freqs.weight"
"""A tensor that holds what each frequency of the rotation is divided by."""


def config_of(get: Any, tensors: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What ``config.json`` would say of a GGUF model.

    ``get``: metadata by key, None where absent; ``tensors``: gguf's tensors by name; ``where``: names the file in
    errors. Raises ValueError for an architecture of another family, metadata that lacks a number, and for rotations
    that transformers would compute otherwise.
    """
    family = get("general.architecture")
    if family not in FAMILIES:
        raise ValueError(f"{where} has architecture {family!r}; valid: {', '.join(FAMILIES)}")
    missing = [key for key in (*COUNTS, EPSILON) if get(f"{family}.{key}") is None and key != "attention.head_count_kv"]
    if missing or "token_embd.weight" not in tensors:
        raise ValueError(f"{where} does not say its {missing[0] if missing else 'token_embd.weight'}")
    config = {name: get(f"{family}.{key}") for key, name in COUNTS.items()}
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = config["num_key_value_heads"] or heads
    if not all(isinstance(value, int) and value > 0 for value in config.values()):
        raise ValueError(f"{where} has sizes that are not the same in all layers, which is not read")
    sizes = {get(f"{family}.{key}") or config["hidden_size"] // heads for key in HEAD_SIZES}
    scaling = get(f"{family}.rope.scaling.type")
    if len(sizes) > 1:
        raise ValueError(f"{where} rotates a part of each head only, or has values of another size, which is not read")
    if scaling not in (None, "none"):
        raise ValueError(f"{where} has rotations of type {scaling!r}, which is not read; valid: none")
    base = float(get(f"{family}.{BASE}") or 10000.0)
    config |= {
        "model_type": family, "architectures": [f"{family.capitalize()}ForCausalLM"], "head_dim": sizes.pop(),
        "vocab_size": int(tensors["token_embd.weight"].shape[1]), "rms_norm_eps": float(get(f"{family}.{EPSILON}")),
        "rope_theta": base, "rope_parameters": {"rope_type": "default", "rope_theta": base}, "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors, "dtype": "float32",
        "attention_bias": "blk.0.attn_output.bias" in tensors, "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
    }  # fmt: skip
    for name in ("bos", "eos"):
        config[f"{name}_token_id"] = get(f"tokenizer.ggml.{name}_token_id")
    return config


def fields_of(config: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    """Metadata of GGUF for a model of ``config.json``: keys with their values, numbers of 32 bits.

    Raises ValueError for a model of another family and for rotations that the metadata do not say.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{where} is a model of type {family!r}; GGUF is written for {', '.join(FAMILIES)}")
    rotation = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rotation.get("rope_type", "default")
    if kind != "default" or config.get("use_sliding_window"):
        raise ValueError(f"{where} has rotations of type {kind!r} or a sliding window, which is not written to GGUF")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where} has activations {config['hidden_act']!r}; runtimes take silu for {family}")
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    counts = {"num_key_value_heads": heads, **{name: value for name, value in config.items() if value is not None}}
    base = rotation.get("rope_theta") or config.get("rope_theta") or 10000.0
    return [
        *((f"{family}.{key}", int(counts[name])) for key, name in COUNTS.items()),
        *((f"{family}.{key}", int(size)) for key in HEAD_SIZES),
        (f"{family}.{EPSILON}", float(config["rms_norm_eps"])), (f"{family}.{BASE}", float(base)),
        (f"{family}.vocab_size", int(config["vocab_size"])),
    ]  # fmt: skip


def place_of(name: str, config: Mapping[str, Any]) -> Place | None:
    """Where a parameter of transformers lies in a GGUF file, e.g. ``model.layers.0.self_attn.q_proj.weight`` in
    ``blk.0.attn_q.weight``; None for one that has no place there."""
    family = config["model_type"]
    module, _, end = name.rpartition(".")
    found = _names(family, config["num_hidden_layers"]).get_name(module)
    if found is None or end not in ("weight", "bias"):
        return None
    # Runtimes turn adjacent pairs of rows for llama, transformers the two halves of a head.
    kind = re.fullmatch(r".*\.self_attn\.([qk])_proj", module) if family == "llama" else None
    heads = None if kind is None else config["num_attention_heads" if kind[1] == "q" else "num_key_value_heads"]
    return Place(f"{found}.{end}", heads)


@cache
def _names(family: str, blocks: int) -> Any:
    gguf = library("gguf", "GGUF models", "models")
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], blocks)
