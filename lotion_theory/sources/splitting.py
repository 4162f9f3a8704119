"""How byte-pair tokenizers split texts into words: the names that GGUF has for it, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..files import library

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"qwen2": _QWEN2, "llama-bpe": _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")}
"""Ways that are one regular expression."""
OTHER_NAMES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
SPLITTINGS = ("gpt-2", "smollm", *PATTERNS, *OTHER_NAMES)
"""All names that are known; of "smollm" each digit is a word, and the rest is split as by GPT-2."""


def splitter(name: str, where: str) -> Any:
    """The pre-tokenizer of the library ``tokenizers`` for a name; ValueError that begins with ``where`` for others."""
    if name not in SPLITTINGS:
        raise ValueError(f"{where} splits words in the way {name!r}, which is not read; valid: {', '.join(SPLITTINGS)}")
    made = library("tokenizers.pre_tokenizers", "reading tokenizers", "models")
    pattern = PATTERNS.get(OTHER_NAMES.get(name, name))
    steps = [made.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if pattern is not None:
        regex = library("tokenizers", "reading tokenizers", "models").Regex(pattern)
        steps.insert(0, made.Split(regex, behavior="isolated"))
    elif name == "smollm":
        steps.insert(0, made.Digits(individual_digits=True))
    return made.Sequence(steps) if len(steps) > 1 else steps[0]


def splitting(description: Mapping[str, Any] | None) -> str | None:
    """The name for the ``pre_tokenizer`` of a ``tokenizer.json``; None if there is none, and for one that does not end
    at the level of bytes."""
    if not description:
        return None
    *before, last = description["pretokenizers"] if description["type"] == "Sequence" else [description]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space") or len(before) > 1:
        return None
    if last.get("use_regex", True):
        digits = bool(before) and before[0]["type"] == "Digits" and before[0].get("individual_digits")
        return "smollm" if digits else None if before else "gpt-2"
    first = before[0] if before else {}
    if first.get("type") != "Split" or first.get("behavior") != "Isolated" or first.get("invert"):
        return None
    return next((name for name, pattern in PATTERNS.items() if pattern == first["pattern"].get("Regex")), None)
