"""The door to sources."""

from __future__ import annotations

from pathlib import Path

from .folder import open_folder
from .gguf_model import open_gguf
from .source import Source


def open_source(path: str | Path) -> Source:
    """A model, its tokenizer and where its weights lie: a Hugging Face folder, or a GGUF file of the llama, qwen2 and
    qwen3 architectures. Nothing is downloaded.

    Weights of a GGUF file are gguf's dequantization, bit for bit. Raises FileNotFoundError for a path that is not
    there, and ValueError naming it for a truncated or damaged file, an unknown architecture, missing weights, or a
    model that is quantized already. A source without a tokenizer opens; its :meth:`Source.encode` says what it lacks.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return open_folder(path) if path.is_dir() else open_gguf(path)
