"""Tokenizers of transformers, as sources hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import library, read_by_others
from .container import Container
from .splitting import splitter

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")
"""A folder with none of them has no tokenizer."""


class Fast:
    """A tokenizer of transformers; see :class:`~lotion_theory.sources.Tokenizer`. ``library``: the tokenizer itself."""

    def __init__(self, tokenizer: Any) -> None:
        self.library = tokenizer
        self.name = type(tokenizer).__name__
        self.vocabulary = len(tokenizer)
        self.end_of_text: int | None = tokenizer.eos_token_id
        # What it puts before a text by itself.
        begin = tokenizer("")["input_ids"]
        self.first: int | None = begin[0] if begin and begin[0] == tokenizer.bos_token_id else None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, nothing added."""
        found = self.library(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(ids, np.int64) for ids in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self.library.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    @property
    def description(self) -> dict[str, Any]:
        """What ``tokenizer.json`` says."""
        return json.loads(self.library.backend_tokenizer.to_str())

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
        self.library.save_pretrained(folder)


def from_gguf(container: Container) -> Fast | None:
    """The tokenizer in a GGUF file; None for one whose model has ids only. ValueError for one that is not read."""
    kind = container.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return None
    what = f"{container.path}: its tokenizer"
    words = splitter(container.get("tokenizer.ggml.pre", "gpt-2"), what) if kind == "gpt2" else None
    made = _made(container.path.parent, f"{what} {kind!r}", gguf_file=container.path.name)
    return made if words is None else _splitting(made.library, words)


def _splitting(tokenizer: Any, words: Any) -> Fast:
    """``tokenizer`` splitting texts as ``words`` does, of a class that keeps that when it is saved and loaded.

    transformers knows only some of GGUF's names, and its classes for one architecture have a way of their own.
    """
    transformers = library("transformers", "reading tokenizers", "models")
    tokenizer.backend_tokenizer.pre_tokenizer = words
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template")
    options = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}
    return Fast(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **options))


def from_folder(folder: Path) -> Fast | None:
    """The tokenizer of a Hugging Face folder; None if there is none. ValueError for one that is not read."""
    if not any((folder / name).exists() for name in FILES):
        return None
    return _made(folder, f"{folder}: its tokenizer")


def _made(folder: Path, what: str, **options: Any) -> Fast:
    transformers = library("transformers", "reading tokenizers", "models")
    with read_by_others(f"{what} cannot be read"):
        return Fast(transformers.AutoTokenizer.from_pretrained(os.fspath(folder), local_files_only=True, **options))
