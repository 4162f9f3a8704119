"""Texts into token files, tokenized once; an interrupted preparation goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .origin import begin, first_of, source_of
from .sources import Documents, cut_texts, held_out
from .tokenizer import BytePairs, Tokenizer, train_bpe
from .tokens import check_amounts, path_of, read_header, write_tokens

ENCODED_AT_ONCE = 1000

Numbered = tuple[int, np.ndarray]
"""A document's number and its ids."""


def write_split(
    folder: Path,
    split: str,
    documents: Callable[[int], Iterator[tuple[int, str]]],
    tokenizer: Tokenizer,
    tokens_per_file: int = 50_000_000,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write ``{split}-00000.tokens`` and so on, each of about ``tokens_per_file`` ids, and return the number of ids.

    Files that exist are kept and their documents skipped. ``limit``: stop after about this many ids in all.
    ``progress`` is told the number of ids so far. Raises ValueError if the files that exist are of another tokenizer,
    and OSError naming the file that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total, start, index = 0, 0, 0
    while (path := path_of(folder, split, index)).exists():
        header = read_header(path)
        if header.tokenizer != tokenizer.name:
            raise ValueError(f"{path} was made with tokenizer {header.tokenizer!r}, not {tokenizer.name!r}: remove it")
        if header.first_document != start:
            raise ValueError(f"{path} starts at document {header.first_document}, not {start}: remove it")
        total, start, index = total + header.tokens, header.next_document, index + 1
    stream = _encoded(documents(start), tokenizer)
    while (limit is None or total < limit) and (first := next(stream, None)) is not None:
        room = tokens_per_file if limit is None else min(tokens_per_file, limit - total)
        header = write_tokens(
            path_of(folder, split, index), _filled(first, stream, room), tokenizer.vocabulary, tokenizer.name,
            tokenizer.end_of_text, start,
        )  # fmt: skip
        total, start, index = total + header.tokens, header.next_document, index + 1
        if progress is not None:
            progress(total)
    return total


def _filled(first: Numbered, stream: Iterator[Numbered], room: int) -> Iterator[Numbered]:
    """``first`` and what follows it in ``stream``, until ``room`` ids are reached."""
    item: Numbered | None = first
    while item is not None:
        yield item
        room -= len(item[1]) + 1
        item = next(stream, None) if room > 0 else None


def _encoded(documents: Iterator[tuple[int, str]], tokenizer: Tokenizer) -> Iterator[Numbered]:
    while part := list(islice(documents, ENCODED_AT_ONCE)):
        numbers, texts = zip(*part, strict=True)
        try:
            ids = tokenizer.encode(texts)
        except ValueError as error:
            raise ValueError(f"documents {numbers[0]} to {numbers[-1]}: {error}") from None
        yield from zip(numbers, ids, strict=True)


def learned_tokenizer(documents: Documents, vocabulary: int, path: Path, limit: int = 100_000) -> BytePairs:
    """A byte-level BPE learned from the first ``limit`` documents and saved at ``path``; read again if it is there."""
    from . import tokenizer as tokenizers

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train_bpe(islice(documents(0), limit), vocabulary).save(path)
    learned: Any = tokenizers.tokenizer(str(path))
    if learned.vocabulary != vocabulary:
        raise ValueError(f"{path} has a vocabulary of {learned.vocabulary}, not {vocabulary}: remove it")
    return learned


def prepare(
    out: Path,
    train: Documents,
    tokenizer: Tokenizer | int,
    validation: Documents | None = None,
    held_out_every: int = 20,
    held_out_part: float | None = None,
    tokens_per_file: int = 50_000_000,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Token files of both splits in the folder ``out``; the numbers of tokens by split.

    Held out are the documents ``validation`` if given, else the last ``held_out_part`` (in (0, 1)) of every text if
    given, else every ``held_out_every``-th document. ``limit``: of tokens per split. ``tokenizer`` may be a number:
    so many ids are learned from ``train`` then, into ``out/tokenizer.json``.

    What the files are made from is kept in ``out/prepared.json``. Called again with the same sources, in the same
    order, and the same arguments, an interrupted preparation goes on. Raises ValueError for a folder with tokens that
    were made otherwise, naming an argument that is not valid, and if a split is empty; see :func:`write_split` for the
    rest.
    """
    if held_out_part is not None and not 0 < held_out_part < 1:
        raise ValueError(f"held_out_part = {held_out_part}: must lie in (0, 1)")
    check_amounts(held_out_every, tokens_per_file, limit)
    learned = out / "tokenizer.json" if isinstance(tokenizer, int) else None
    if validation is not None:
        split: dict[str, Any] = {"validation": first_of(validation)}
    else:
        split = {"held_out_part": held_out_part} if held_out_part else {"held_out_every": held_out_every}
    sources = {"train": train} if validation is None else {"train": train, "validation": validation}
    wanted = {
        "sources": {name: source_of(documents) for name, documents in sources.items()},
        "first_documents": first_of(train), **split,
        "tokenizer": f"{tokenizer} ids, learned" if isinstance(tokenizer, int) else tokenizer.name,
        "tokens_per_file": tokens_per_file, "limit": limit,
    }  # fmt: skip
    begin(out, wanted, learned)
    encoder = learned_tokenizer(train, tokenizer, out / "tokenizer.json") if isinstance(tokenizer, int) else tokenizer
    if validation is not None:
        splits = {"train": held_out(train, 0, False), "validation": held_out(validation, 0, False)}
    elif held_out_part is not None:
        head, tail = cut_texts(train, held_out_part)
        splits = {"train": held_out(head, 0, False), "validation": held_out(tail, 0, False)}
    else:
        splits = {name: held_out(train, held_out_every, name == "validation") for name in ("train", "validation")}
    counts = {}
    for name, documents in splits.items():
        counts[name] = write_split(out, name, documents, encoder, tokens_per_file, limit, progress)
        if not counts[name]:
            advice = f"with fewer than {held_out_every} documents hold out a part of each text (--held-out-part 0.05)"
            raise ValueError(f"no {name} tokens: the texts are empty or too few; {advice}")
    return counts
