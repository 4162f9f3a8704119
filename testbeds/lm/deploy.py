"""Runs of the trainer as sources of models: our decoder is the architecture ``qwen3`` of other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lotion_theory.files import write_text
from lotion_theory.sources import Place, Source
from lotion_theory.sources import open_source as open_container

from .loop.folder import CHECKPOINTS
from .loop.opened import Opened, open_run
from .measure.harness import tokenizer_of
from .model.config import ModelConfig
from .model.decoder import ROTATION_BASE, Decoder
from .model.norm import EPSILON
from .text.tokenizer import BytePairs, Bytes, Tokenizer, byte_tokenizer

_PARTS = {
    "mixer.query": "self_attn.q_proj", "mixer.key": "self_attn.k_proj", "mixer.value": "self_attn.v_proj",
    "mixer.out": "self_attn.o_proj", "mixer.query_norm": "self_attn.q_norm", "mixer.key_norm": "self_attn.k_norm",
    "mixer_norm": "input_layernorm", "feed_norm": "post_attention_layernorm", "feed.gate": "mlp.gate_proj",
    "feed.up": "mlp.up_proj", "feed.down": "mlp.down_proj",
}  # fmt: skip
_ENDS = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def open_source(path: str | Path, tokenizer_file: str | None = None, fall_back: bool = False) -> Source:
    """A run of ``lotion train``, or whatever :func:`lotion_theory.sources.open_source` reads.

    ``tokenizer_file``, ``fall_back``: of a run, see :func:`run_source`.
    """
    path = Path(path)
    return run_source(path, tokenizer_file, fall_back) if (path / CHECKPOINTS).is_dir() else open_container(path)


def run_source(folder: Path, tokenizer_file: str | None = None, fall_back: bool = False) -> Source:
    """The model of a run's newest checkpoint; its weights are those of training, not yet cast.

    ``tokenizer_file``: where the run's tokenizer is, if it is neither bytes nor beside the token files; without it the
    source has no tokenizer. ``fall_back``: if the newest checkpoint is damaged, take the one before. Errors as
    :func:`open_run`, and ValueError for a file of another tokenizer.
    """
    return opened_source(open_run(folder, fall_back), folder, tokenizer_file)


def opened_source(opened: Opened, folder: Path, tokenizer_file: str | None = None) -> Source:
    """The same of a run that is open."""
    try:
        texts = RunTokenizer(tokenizer_of(opened, tokenizer_file))
    except FileNotFoundError:
        if tokenizer_file is not None:
            raise
        texts = None
    return decoder_source(opened.model, texts, folder)


def decoder_source(model: Decoder, tokenizer: RunTokenizer | None, path: Path) -> Source:
    """A decoder as a source; one with recurrence is written to packed files only, as no runtime has its layers."""
    refused = {}
    if model.config.mixer != "attention":
        reason = (
            f"{path}: no runtime has layers like its mixer {model.config.mixer!r}; valid: attention, or kind = 'packed'"
        )
        refused = dict.fromkeys(("gguf", "folder", "compressed-tensors"), reason)
    names = {name: Place(container_name(name)) for name, _ in model.named_parameters()} if not refused else {
        name: Place(name) for name, _ in model.named_parameters()
    }  # fmt: skip
    ends = None if tokenizer is None else tokenizer.end_of_text
    return Source(model.eval(), tokenizer, "run", path, names, {**container_config(model.config),
                  "bos_token_id": ends, "eos_token_id": ends}, refused)  # fmt: skip


def container_name(name: str) -> str:
    """What transformers calls a parameter of the decoder: ``blocks.0.feed.up.weight`` is
    ``model.layers.0.mlp.up_proj.weight``."""
    module, _, end = name.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{end}"
    _, number, part = module.split(".", 2)
    return f"model.layers.{number}.{_PARTS[part]}.{end}"


def container_config(config: ModelConfig) -> dict[str, Any]:
    """``config.json`` of transformers for the decoder."""
    return {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": config.width,
        "intermediate_size": config.hidden, "num_hidden_layers": config.depth, "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads, "head_dim": config.width // config.heads, "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context, "rms_norm_eps": EPSILON, "rope_theta": ROTATION_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTATION_BASE}, "hidden_act": "silu",
        "attention_bias": False, "tie_word_embeddings": config.tied, "use_sliding_window": False, "dtype": "float32",
    }  # fmt: skip


class RunTokenizer:
    """A tokenizer of the trainer with what other programs need; see :class:`lotion_theory.sources.Tokenizer`. Texts
    begin after the end of text, as documents do in training."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._own = tokenizer
        self.name, self.vocabulary = tokenizer.name, tokenizer.vocabulary
        self.end_of_text = self.first = tokenizer.end_of_text

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text."""
        return self._own.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._own.decode(ids)

    @property
    def description(self) -> dict[str, Any]:
        """What ``tokenizer.json`` says; a tokenizer of bytes is one of byte pairs without pairs."""
        if isinstance(self._own, Bytes):
            return json.loads(byte_tokenizer().to_str())
        assert isinstance(self._own, BytePairs)
        return json.loads(self._own.text)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
        made = self.description
        tokens = {i: text for text, i in made["model"]["vocab"].items()}
        tokens |= {token["id"]: token["content"] for token in made.get("added_tokens") or []}
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.end_of_text is not None:
            settings |= {"bos_token": tokens[self.end_of_text], "eos_token": tokens[self.end_of_text]}
        write_text(folder / "tokenizer.json", json.dumps(made, ensure_ascii=False, indent=2))
        write_text(folder / "tokenizer_config.json", json.dumps(settings, ensure_ascii=False, indent=2))
