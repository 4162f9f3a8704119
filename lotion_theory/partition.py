"""How weights are grouped into blocks that share a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ._arrays import Array


@dataclass(frozen=True)
class Partition:
    """``tensor`` (one block), ``row`` (one block per row, a row being the last axis) or blocks of ``size`` in a row."""

    kind: str = "tensor"
    size: int | None = None

    @classmethod
    def parse(cls, text: str) -> Partition:
        """``"tensor"``, ``"row"`` or ``"block=N"`` with N >= 1; anything else raises ValueError."""
        if text in ("tensor", "row"):
            return cls(text)
        if text.startswith("block=") and text[6:].isascii() and text[6:].isdigit() and int(text[6:]) >= 1:
            return cls("block", int(text[6:]))
        raise ValueError(f"unknown partition {text!r}; valid: tensor, row, block=N with N >= 1")

    def __str__(self) -> str:
        return f"block={self.size}" if self.kind == "block" else self.kind

    def to_blocks(self, x: Array, reals_per_weight: int = 1) -> Array:
        """``x`` of any shape as a 2-D array (blocks, weights per block).

        ``reals_per_weight`` is 2 where the last axis interleaves the two real coordinates of complex weights.
        Raises ValueError where a block does not divide a row.
        """
        length = x.shape[-1] if x.ndim else 1
        if self.kind == "tensor":
            return x.reshape(1, math.prod(x.shape))
        if self.kind == "row":
            return x.reshape(-1, length)
        assert self.size is not None, "a partition into blocks has their size"
        size = self.size * reals_per_weight
        if length % size:
            raise ValueError(
                f"block={self.size} does not divide the row length {length // reals_per_weight} "
                f"(shape {tuple(x.shape)}); pad the rows, or choose a block that divides"
            )
        return x.reshape(-1, size)
