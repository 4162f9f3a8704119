"""A model as it was read, with its tokenizer, and where each of its weights lies in the file that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Tokenizer(Protocol):
    """Texts to ids and back. ``vocabulary`` counts ids; ``end_of_text``: the id that ends a text, or None; ``first``:
    the id that the model expects before a text, or None."""

    name: str
    vocabulary: int
    end_of_text: int | None
    first: int | None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text; neither ``first`` nor ``end_of_text`` is added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """What ``tokenizer.json`` of the library ``tokenizers`` says."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files from which transformers makes this tokenizer, ``tokenizer.json`` among them."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a weight lies: the tensor ``name`` of a file; ``heads``: None if its rows are in the model's order, else
    the number of heads within which row ``2 i + j`` of the file is row ``i + j n / 2`` of the ``n`` of the model."""

    name: str
    heads: int | None = None

    def to_file(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the model in the order of the file."""
        return rows if self.heads is None else rows[self._order(len(rows), (2, -1))]

    def to_model(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the file in the order of the model."""
        return rows if self.heads is None else rows[self._order(len(rows), (-1, 2))]

    def _order(self, rows: int, halves: tuple[int, int]) -> np.ndarray:
        return np.arange(rows).reshape(self.heads or 1, *halves).swapaxes(1, 2).reshape(-1)


@dataclass(frozen=True)
class Source:
    """A model that was read by :func:`open_source`.

    ``model``: a torch module in float32 on the CPU, in evaluation mode. ``tokenizer``: None if the source has none;
    :meth:`encode` then says so. ``kind``: "folder" (Hugging Face), "gguf" or "run" (of ``lotion train``); ``path``: of
    the folder or file. ``names``: for each parameter its :class:`Place` in a file of the kind (of a run: in one of
    transformers); tied ones have one place, and one that the file stores in another form has none. ``config``: what
    ``config.json`` of transformers says about the model. ``refused``: why it cannot be written, by kind of output.
    """

    model: Any
    tokenizer: Tokenizer | None
    kind: str
    path: Path
    names: Mapping[str, Place]
    config: Mapping[str, Any]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens; None if the model does not say."""
        return self.config.get("max_position_embeddings")

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (tokens,) int64; ValueError for a source without a tokenizer."""
        return np.asarray(self._tokenizer().encode([text])[0], np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; ValueError for a source without a tokenizer."""
        return self._tokenizer().decode([int(i) for i in ids])

    def logits(self, ids: Any) -> Any:
        """Logits (B, T, V) of token ids (B, T), both torch tensors; ValueError for a model without an output layer."""
        out = self.model(ids)
        out = getattr(out, "logits", out)
        if not hasattr(out, "shape"):
            raise ValueError(f"{self.path}: the model {type(self.model).__name__} gives no logits")
        return out

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{self.path} has no tokenizer, so texts cannot be made ids; give ids instead")
        return self.tokenizer
