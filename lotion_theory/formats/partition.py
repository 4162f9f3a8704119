"""How weights are grouped into blocks that share a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._arrays import Array

_WHOLE = ("tensor", "row", "channel")
_CUT = ("block", "channel-block")
GRAMMAR = "tensor|row|block=N|channel|channel-block=N"
"""The partitions as they are written in format strings."""
_VALID = GRAMMAR.replace("|", ", ") + " with N >= 1"


@dataclass(frozen=True)
class Partition:
    """Which weights share a scale. Blocks follow each other in the order of the weights in memory (C order).

    ``tensor``: one block. ``row``: one block per row, a row being the last axis; ``block=N``: blocks of ``size`` N in a
    row. ``channel``: one block per output channel, the first axis, whose inputs are all other axes, flattened: what the
    weight of a convolution (out, in, height, width) needs, in which a row is no more than the kernel's width.
    ``channel-block=N``: blocks of N along those flattened inputs. The channels of a matrix are its rows; an array of
    one axis or none is a single channel, the weights of one output.

    Raises ValueError for a kind that does not exist, and for a size where there is none or none where there is one.
    """

    kind: str = "tensor"
    size: int | None = None

    def __post_init__(self) -> None:
        whole = self.kind in _WHOLE and self.size is None
        if not whole and not (self.kind in _CUT and self.size is not None and self.size >= 1):
            raise ValueError(f"no partition has kind {self.kind!r} and size {self.size!r}; valid: {_VALID}")

    @classmethod
    def parse(cls, text: str) -> Partition:
        """``"tensor"``, ``"row"``, ``"block=N"``, ``"channel"`` or ``"channel-block=N"`` with N >= 1; anything else
        raises ValueError."""
        kind, _, size = text.partition("=")
        if text in _WHOLE:
            return cls(text)
        if kind in _CUT and size.isascii() and size.isdigit() and int(size) >= 1:
            return cls(kind, int(size))
        raise ValueError(f"unknown partition {text!r}; valid: {_VALID}")

    @staticmethod
    def meant(text: str) -> bool:
        """Whether a part of a format string is to be read as a partition, right or wrong."""
        return text in _WHOLE or text.startswith(("block", "channel"))

    def __str__(self) -> str:
        return self.kind if self.size is None else f"{self.kind}={self.size}"

    @property
    def by_channel(self) -> bool:
        """Whether the first axis is taken for the outputs."""
        return self.kind.startswith("channel")

    def _whole(self, shape: tuple[int, ...]) -> int:
        """Entries of the tensor, row or channel that blocks are cut from."""
        if self.kind == "tensor":
            return math.prod(shape)
        return math.prod(shape[1:] if self.by_channel and len(shape) > 1 else shape[-1:])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of ``shape`` can be cut into these blocks."""
        return self.size is None or self._whole(tuple(shape)) % self.size == 0

    def length(self, shape: tuple[int, ...], reals_per_weight: int = 1) -> int:
        """Entries per block of an array of ``shape``; ValueError where a block does not divide a row or channel.

        ``reals_per_weight`` is 2 where the last axis interleaves the two real coordinates of complex weights.
        """
        shape, whole = tuple(shape), self._whole(tuple(shape))
        if self.size is None:
            return whole
        if whole % (self.size * reals_per_weight):
            what = "inputs of a channel," if self.by_channel else "row length"
            raise ValueError(
                f"{self} does not divide the {what} {whole // reals_per_weight} "
                f"(shape {shape}); pad the rows, or choose a block that divides"
            )
        return self.size * reals_per_weight

    def to_blocks(self, x: Array, reals_per_weight: int = 1) -> Array:
        """``x`` of any shape as a 2-D array (blocks, entries per block); ``reals_per_weight`` and errors as for
        :meth:`length`."""
        # An array without entries has no blocks, of a length that reductions accept.
        n = self.length(x.shape, reals_per_weight) or 1
        return x.reshape(math.prod(x.shape) // n, n)
