"""Token files from texts that were tokenized elsewhere: raw ids, little-endian uint16, documents ended by an id."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lotion_theory import Stream

from ...documents import regular_file
from .origin import begin, file_source
from .tokens import ID_TYPE, SUFFIX, check_amounts, path_of, write_tokens

GPT2_IDS, GPT2_END = 50257, 50256


def read_ids(path: Path) -> np.ndarray:
    """The ids of a file of uint16, which may be compressed (``.xz``); FileNotFoundError or ValueError naming it."""
    data = regular_file(path).read_bytes()
    if path.suffix == ".xz":
        try:
            data = lzma.decompress(data)
        except lzma.LZMAError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    if len(data) % ID_TYPE.itemsize:
        raise ValueError(f"{path} holds {len(data)} bytes: no whole number of 16-bit ids")
    return np.frombuffer(data, ID_TYPE)


def documents(ids: np.ndarray, end_of_text: int) -> list[np.ndarray]:
    """The documents in ``ids``, without the id that ends each; empty ones are left out."""
    ends = np.append(np.flatnonzero(ids == end_of_text), len(ids))
    starts = np.append(0, ends[:-1] + 1)
    return [ids[a:b] for a, b in zip(starts, ends, strict=True) if b > a]


def prepare_ids(
    out: Path,
    train: Sequence[Path],
    validation: Sequence[Path] = (),
    vocabulary: int = GPT2_IDS,
    end_of_text: int = GPT2_END,
    held_out_every: int = 20,
    tokens_per_file: int = 50_000_000,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Token files of both splits in the folder ``out``, documents in an order drawn from ``seed``; tokens by split.

    Held out are the files ``validation`` if given, else every ``held_out_every``-th document drawn. ``limit``: of
    tokens per split. Files that were made from the same ids are replaced. Raises ValueError naming the argument or the
    file, and for a folder with other tokens.
    """
    check_amounts(held_out_every, tokens_per_file, limit)
    splits = {"train": train, "validation": validation}
    parts: dict[str, list[np.ndarray]] = {}
    for name, paths in splits.items():
        every = [one for path in paths for one in documents(read_ids(path), end_of_text)]
        order = Stream(seed, f"lm/ids/{name}").numpy_generator().permutation(len(every))
        parts[name] = [every[k] for k in order]
    if not validation:
        parts["validation"] = parts["train"][held_out_every - 1 :: held_out_every]
        del parts["train"][held_out_every - 1 :: held_out_every]
    for name, chosen in parts.items():
        if not chosen:
            raise ValueError(f"no {name} tokens: the files hold too few documents ended by id {end_of_text}")
    tokenizer = f"ids-{end_of_text}"
    begin(out, {
        "sources": {name: [file_source(path) for path in paths] for name, paths in splits.items()},
        "tokenizer": tokenizer, "vocabulary": vocabulary, "held_out_every": None if validation else held_out_every,
        "limit": limit, "seed": seed,
    })  # fmt: skip
    # All of them first, so that an interruption leaves no mixture of old and new ones.
    for old in (path for name in parts for path in out.glob(f"{name}-*{SUFFIX}")):
        old.unlink()
    counts = {}
    for name, chosen in parts.items():
        total, rest = 0, enumerate(chosen)
        for number, group in enumerate(_groups(rest, tokens_per_file, limit)):
            header = write_tokens(path_of(out, name, number), group, vocabulary, tokenizer, end_of_text, group[0][0])
            total += header.tokens
            if progress is not None:
                progress(total)
        counts[name] = total
    return counts


def _groups(
    numbered: Iterator[tuple[int, np.ndarray]], size: int, limit: int | None
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Consecutive documents in groups of about ``size`` ids, about ``limit`` in all."""
    group: list[tuple[int, np.ndarray]] = []
    here = total = 0
    for number, ids in numbered:
        if limit is not None and total >= limit:
            break
        group.append((number, ids))
        here, total = here + len(ids) + 1, total + len(ids) + 1
        if here >= size:
            yield group
            group, here = [], 0
    if group:
        yield group
