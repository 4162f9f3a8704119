"""Where the numbers of a block stand in its bytes: one description, read by packing and unpacking both.

Arrays are (blocks, bytes of a block) and (blocks, numbers of a field), uint8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Part(Protocol):
    """Some numbers of a field, or some of their bits, in some of a block's bytes."""

    def read(self, block: np.ndarray, numbers: np.ndarray) -> None:
        """Add what stands in ``block`` to ``numbers``, which begin as zeros."""

    def write(self, numbers: np.ndarray, block: np.ndarray) -> None:
        """Add what ``numbers`` hold to ``block``, which begins as zeros."""


@dataclass(frozen=True)
class Bits:
    """Bits ``bit``, ``bit + 1``, ... (``width`` of them) of ``count`` numbers, one per byte, from bit ``shift`` of it.

    The bytes begin at ``at``, the numbers at ``first``; ``stride`` is the distance of neighbours among the numbers.
    """

    at: int
    count: int
    first: int
    width: int
    shift: int = 0
    bit: int = 0
    stride: int = 1

    @property
    def _places(self) -> tuple[slice, slice]:
        end = self.first + (self.count - 1) * self.stride + 1
        return slice(self.at, self.at + self.count), slice(self.first, end, self.stride)

    @property
    def _mask(self) -> np.uint8:
        return np.uint8((1 << self.width) - 1)

    def read(self, block: np.ndarray, numbers: np.ndarray) -> None:
        of_block, of_numbers = self._places
        numbers[:, of_numbers] |= ((block[:, of_block] >> np.uint8(self.shift)) & self._mask) << np.uint8(self.bit)

    def write(self, numbers: np.ndarray, block: np.ndarray) -> None:
        of_block, of_numbers = self._places
        block[:, of_block] |= ((numbers[:, of_numbers] >> np.uint8(self.bit)) & self._mask) << np.uint8(self.shift)


@dataclass(frozen=True)
class Trits:
    """``digits`` numbers of 0, 1 or 2 per byte, ``count`` bytes from ``at``: digit i of byte j is number
    ``first + i * count + j``.

    A byte is ``ceil(256 v / 243)`` for the five-digit number v in base 3, first digit first; its top digit is then the
    whole part of ``3 byte / 256``. With four digits the last one is 0. Every byte can be read; those that are no such
    ceiling read as the digits of one that is.
    """

    at: int
    count: int
    first: int
    digits: int = 5

    def _of(self, digit: int) -> slice:
        return slice(self.first + digit * self.count, self.first + (digit + 1) * self.count)

    def read(self, block: np.ndarray, numbers: np.ndarray) -> None:
        rest = block[:, self.at : self.at + self.count].astype(np.uint16)
        for digit in range(self.digits):
            rest = rest * np.uint16(3)
            numbers[:, self._of(digit)] |= (rest >> np.uint16(8)).astype(np.uint8)
            rest &= np.uint16(0xFF)

    def write(self, numbers: np.ndarray, block: np.ndarray) -> None:
        value = np.zeros((len(block), self.count), np.uint16)
        for digit in range(self.digits):
            value = value * np.uint16(3) + numbers[:, self._of(digit)]
        value = value * np.uint16(3 ** (5 - self.digits))
        block[:, self.at : self.at + self.count] |= (
            (value * np.uint16(256) + np.uint16(242)) // np.uint16(243)
        ).astype(np.uint8)


def planes(at: int, size: int, width: int, chunk: int, bit: int = 0) -> tuple[Bits, ...]:
    """``size`` bytes from ``at`` on, in chunks: the lowest ``width`` bits of a chunk's bytes belong to the first
    ``chunk`` numbers, the next bits to the ``chunk`` numbers after them, and so on; the next chunk goes on from there.

    The bits are ``bit``, ``bit + 1``, ... of the numbers.
    """
    per_byte = 8 // width
    if chunk == 1:
        return tuple(Bits(at, size, place, width, place * width, bit, per_byte) for place in range(per_byte))
    return tuple(
        Bits(at + start, chunk, start * per_byte + place * chunk, width, place * width, bit)
        for start in range(0, size, chunk)
        for place in range(per_byte)
    )


@dataclass(frozen=True)
class Field:
    """``count`` numbers of one meaning in a block, as bytes ``raw`` in ``parts``; ``dtype`` is what these bytes are."""

    name: str
    raw: int
    parts: tuple[Part, ...]
    dtype: str = "u1"

    @property
    def count(self) -> int:
        """Numbers per block."""
        return self.raw // np.dtype(self.dtype).itemsize

    def read(self, block: np.ndarray) -> np.ndarray:
        """The numbers, (blocks, count), of type ``dtype``."""
        numbers = np.zeros((len(block), self.raw), np.uint8)
        for part in self.parts:
            part.read(block, numbers)
        return numbers.view(self.dtype)

    def write(self, numbers: np.ndarray, block: np.ndarray) -> None:
        """Put ``numbers``, (blocks, count), into ``block``."""
        raw = np.ascontiguousarray(numbers, dtype=self.dtype).view(np.uint8)
        for part in self.parts:
            part.write(raw, block)


def whole(name: str, at: int, count: int, dtype: str = "u1") -> Field:
    """``count`` numbers in whole bytes from ``at`` on."""
    raw = count * np.dtype(dtype).itemsize
    return Field(name, raw, (Bits(at, raw, 0, 8),), dtype)


def half(name: str, at: int) -> Field:
    """One fp16 number."""
    return whole(name, at, 1, "<f2")


def pieces(count: int, size: int, most: int = 1 << 18) -> Iterator[slice]:
    """Slices of ``count`` rows of ``size`` numbers, each of about ``most`` numbers, so that work stays in the cache."""
    step = max(1, most // max(size, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
