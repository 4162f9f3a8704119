"""Which tokens a training step sees: a pure function of the seed and one integer, the number of sequences before it.

Every epoch goes through all sequences once, in an order of its own and cut at a place of its own. Neither the number of
processes nor the micro-batches change what a step sees, and resuming needs only the position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from lotion_theory import Stream

from .config import SOTU, DataConfig
from .tokens import CURE, Tokens

ROUNDS = 6
HELD_OUT = 10
"""Of the embedded corpus every tenth address is held out."""


def load_tokens(config: DataConfig) -> tuple[Tokens, Tokens]:
    """Training and held-out tokens.

    Raises ValueError or FileNotFoundError saying which file or folder is missing or damaged.
    """
    if config.tokens == SOTU:
        return _sotu()
    if not config.tokens:
        raise ValueError(f"data.tokens is empty: give a folder made by lotion prepare, or {SOTU!r}")
    folder = Path(config.tokens)
    if not folder.is_dir():
        raise FileNotFoundError(f"data.tokens = {config.tokens!r}: no such folder; valid: {SOTU!r} or a folder")
    train, held_out = (Tokens.open(folder, split, config.verify) for split in ("train", "validation"))
    if (train.vocabulary, train.tokenizer) != (held_out.vocabulary, held_out.tokenizer):
        raise ValueError(f"{folder}: training files are in {train.tokenizer!r}, held-out ones {held_out.tokenizer!r}")
    return train, held_out


@lru_cache(maxsize=1)
def _sotu() -> tuple[Tokens, Tokens]:
    from ...data import load_sotu
    from .tokenizer import Bytes

    addresses, tokenizer = load_sotu().split("\n\n"), Bytes()
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number, address in enumerate(addresses):
        part = parts[number % HELD_OUT == HELD_OUT - 1]
        part += [*tokenizer.encode([address]), np.array([tokenizer.end_of_text])]
    train, held_out = (
        Tokens([np.concatenate(part).astype(np.uint16)], tokenizer.vocabulary, tokenizer.name, tokenizer.end_of_text)
        for part in parts
    )
    return train, held_out


def permuted(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Images of ``index`` under a pseudo-random permutation of 0 ... size - 1, computed one by one.

    A balanced Feistel network on the least even number of bits that holds ``size``, one round per key; values beyond
    the end go through it again until they fall inside (cycle walking: Black and Rogaway 2002), fewer than four times
    on average. ``keys``: uint64.
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    value = np.array(index, dtype=np.uint64)
    todo = np.ones(value.shape, bool)
    while todo.any():
        x = value[todo]
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        value[todo] = (left << half) | right
        todo = value >= size
    return value.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Bits of 64-bit words well mixed: the last steps of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Order:
    """Order of the sequences of ``length`` tokens under ``seed``; ValueError if ``tokens`` hold not even one."""

    def __init__(self, tokens: Tokens, length: int, seed: int) -> None:
        self.tokens = tokens
        self.length = length
        self.size = tokens.sequences(length)
        if not self.size:
            raise ValueError(f"{len(tokens)} tokens are too few for one sequence of context = {length}")
        self._stream = Stream(seed, "lm/data")
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, int]:
        generator = self._stream.numpy_generator(epoch)
        keys = generator.integers(2**64, size=ROUNDS, dtype=np.uint64)
        return keys, int(generator.integers(self.length))

    def places(self, first: int, count: int) -> list[tuple[int, int]]:
        """``(sequence, shift)`` at positions ``first ...``: position p is number p mod size of epoch p // size."""
        out = []
        while count > 0:
            epoch, start = divmod(first, self.size)
            part = min(count, self.size - start)
            keys, shift = self._epoch(epoch)
            numbers = permuted(np.arange(start, start + part), self.size, keys)
            out += [(int(number), shift) for number in numbers]
            first, count = first + part, count - part
        return out

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, (count, length) int64 each, of the positions ``first ... first + count - 1``."""
        places = self.places(first, count)
        return _stacked(self.tokens, [self.tokens.sequence(number, self.length, shift) for number, shift in places])


def fixed_sequences(tokens: Tokens, length: int, count: int, seed: int) -> np.ndarray:
    """Numbers of ``count`` different sequences (all, if there are not as many) drawn by ``seed``, ascending."""
    size = tokens.sequences(length)
    if size < 2:
        raise ValueError(f"{len(tokens)} held-out tokens make {size} sequences of context = {length}: two are needed")
    keys = Stream(seed, "lm/evaluation/windows").numpy_generator().integers(2**64, size=ROUNDS, dtype=np.uint64)
    return np.sort(permuted(np.arange(min(count, size)), size, keys))


def fixed_batch(tokens: Tokens, length: int, numbers: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of the sequences of these numbers, (their count, length) int64 each."""
    return _stacked(tokens, [tokens.sequence(int(number), length) for number in numbers])


def _stacked(tokens: Tokens, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.stack(rows).astype(np.int64)
    if ids.max() >= tokens.vocabulary:
        # Files that were not verified; an accelerator would end the process without saying why.
        raise ValueError(f"the token files hold id {ids.max()} in a vocabulary of {tokens.vocabulary}: {CURE}")
    return ids[:, :-1], ids[:, 1:]
