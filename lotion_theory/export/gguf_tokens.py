"""Tokenizers of byte pairs as metadata of GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..sources.source import Source
from ..sources.splitting import splitting

NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5
"""How runtimes treat a token: as text, never made from text, made from text as a whole, never."""


_NEVER = "þÿ"
"""The letters of the bytes 254 and 255, which UTF-8 does not use."""


def tokenizer_fields(source: Source) -> list[tuple[str, Any]]:
    """Metadata of GGUF from which runtimes make the source's tokenizer: ids only ("none") if it has none.

    Raises ValueError for tokenizers that are not byte pairs at the level of bytes, or that split words in a way that no
    name of a runtime is known for.
    """
    if source.tokenizer is None:
        return [("tokenizer.ggml.model", "none")]
    made, where = source.tokenizer.description, str(source.path)
    model, name = made["model"], splitting(made.get("pre_tokenizer"))
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ValueError(f"{where}: a tokenizer of type {model.get('type')} is not written to GGUF; valid: byte pairs")
    if name is None:
        raise ValueError(f"{where}: its tokenizer splits words in a way that no runtime is known to have a name for")
    vocabulary = int(source.config["vocab_size"])
    tokens, kinds = _tokens(model["vocab"], made.get("added_tokens") or [], vocabulary, source)
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    if not merges:
        # Runtimes want a merge: of two bytes that are in no text, into the token that is in no text either.
        merges, tokens[source.tokenizer.end_of_text or 0] = [" ".join(_NEVER)], "".join(_NEVER)
    fields = [
        ("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", name),
        ("tokenizer.ggml.tokens", tokens), ("tokenizer.ggml.token_type", kinds),
        ("tokenizer.ggml.merges", merges),
        ("tokenizer.ggml.add_bos_token", source.tokenizer.first is not None and source.kind != "run"),
    ]  # fmt: skip
    for name, token in (("bos", source.tokenizer.first), ("eos", source.tokenizer.end_of_text)):
        token = source.config.get(f"{name}_token_id") if token is None else token
        if isinstance(token, int):
            fields.append((f"tokenizer.ggml.{name}_token_id", token))
    template = getattr(getattr(source.tokenizer, "library", None), "chat_template", None)
    return [*fields, ("tokenizer.chat_template", template)] if isinstance(template, str) else fields


def _tokens(
    vocab: Mapping[str, int], added: list[Mapping[str, Any]], vocabulary: int, source: Source
) -> tuple[list[str], list[int]]:
    """Text and kind of every id."""
    tokens, kinds = [f"[PAD{i}]" for i in range(vocabulary)], [UNUSED] * vocabulary
    for text, i in vocab.items():
        tokens[i], kinds[i] = text, NORMAL
    for token in added:
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER
    if source.tokenizer is not None and source.tokenizer.end_of_text is not None:
        kinds[source.tokenizer.end_of_text] = CONTROL
    return tokens, kinds
