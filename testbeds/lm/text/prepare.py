"""Texts into token files: local files or C4, tokenized once; an interrupted preparation goes on where it stopped."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...documents import read_text, regular_file
from .origin import begin, file_source, first_of, source_of
from .tokenizer import BytePairs, Tokenizer, train_bpe
from .tokens import check_amounts, path_of, read_header, write_tokens

ENCODED_AT_ONCE = 1000
C4 = ("allenai/c4", "en")

Documents = Callable[[int], Iterator[str]]
"""Texts from the given document number on, always in the same order."""

Numbered = tuple[int, np.ndarray]
"""A document's number and its ids."""


@dataclass(frozen=True)
class TextFiles:
    """Documents of local files, see :func:`text_files`."""

    paths: tuple[Path, ...]
    separator: str | None

    def __call__(self, start: int) -> Iterator[str]:
        """The texts from document number ``start`` on."""
        return islice((text for path in self.paths for text in _file_documents(path, self.separator)), start, None)

    def describe(self) -> list[Any]:
        """Names, sizes and hashes of the files, in their order, and the separator."""
        return [*map(file_source, self.paths), *([] if self.separator is None else [{"separator": self.separator}])]


def text_files(paths: Sequence[Path], separator: str | None = None) -> TextFiles:
    """Local texts: ``.txt`` and others as a whole, or cut at ``separator``; ``.jsonl`` and ``.jsonl.gz`` (``.json.gz``,
    as C4 has them) line by line, the field ``text`` of each. They are UTF-8, with or without byte order mark.

    Raises FileNotFoundError for a missing file and ValueError for a pipe or folder at once, and ValueError naming file
    and line for what cannot be read.
    """
    return TextFiles(tuple(regular_file(path) for path in paths), separator)


def _file_documents(path: Path, separator: str | None) -> Iterator[str]:
    if path.name.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
        yield from _json_lines(path)
        return
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    yield from (part for part in text.split(separator) if part.strip()) if separator else (text,)


def _json_lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                text = _json_text(line.decode("utf-8-sig" if not number else "utf-8"))
                number += 1
                if text is not None:
                    yield text
    except (ValueError, EOFError, RecursionError, gzip.BadGzipFile, zlib.error) as error:
        # A truncated archive ends in the middle: EOFError.
        raise ValueError(f"{path} is damaged after line {number}: {error}") from None


def _json_text(line: str) -> str | None:
    """The field ``text`` of a line; None for a blank line. ValueError saying what is there instead."""
    if not line.strip():
        return None
    entry = json.loads(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        shown = json.dumps(entry["text"] if isinstance(entry, dict) and "text" in entry else entry)
        raise ValueError(f"expected an object with a text in the field 'text', not {shown[:60]}")
    try:
        entry["text"].encode()
    except UnicodeEncodeError as error:
        half = entry["text"][error.start]
        raise ValueError(f"half a surrogate pair, {half!a}, is no text (character {error.start + 1})") from None
    return entry["text"]


def c4(split: str = "train", files: Sequence[str] = ()) -> Hub:
    """C4 in English, streamed by the library ``datasets``: nothing is downloaded but what is read.

    ``files``: local shards in its layout (lines of JSON, gzipped) instead of the hub's. Raises ImportError without the
    library, and ConnectionError with the advice to pass files where the hub cannot be reached.
    """
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise ImportError("streaming C4 needs the library datasets: pip install 'lotion-theory[lm]'") from None

    return Hub(split, tuple(files))


@dataclass(frozen=True)
class Hub:
    """Documents of C4, see :func:`c4`."""

    split: str
    files: tuple[str, ...] = ()

    def __call__(self, start: int) -> Iterator[str]:
        """The texts from document number ``start`` on."""
        import datasets

        kind, split = {"split": self.split, "streaming": True}, self.split
        try:
            if self.files:
                stream = datasets.load_dataset("json", data_files={split: list(self.files)}, **kind)
            else:
                stream = datasets.load_dataset(*C4, **kind)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"C4: {error}") from None
        except OSError as error:
            raise ConnectionError(f"C4 cannot be reached ({error}); pass local shards by --files") from None
        for example in stream.skip(start):
            yield example["text"]

    def describe(self) -> list[str]:
        """The files' names, sizes and hashes, or the data set and its split."""
        return [*map(file_source, map(Path, self.files))] if self.files else ["/".join((*C4, self.split))]


def held_out(documents: Documents, every: int, wanted: bool) -> Callable[[int], Iterator[tuple[int, str]]]:
    """Numbered documents: every ``every``-th if ``wanted``, else all others; ``every`` = 0 holds out none."""

    def chosen(start: int) -> Iterator[tuple[int, str]]:
        for number, text in enumerate(documents(start), start):
            if (every > 0 and number % every == every - 1) == wanted:
                yield number, text

    return chosen


def cut_texts(documents: Documents, part: float) -> tuple[Documents, Documents]:
    """The same documents without, and with only, their last ``part``: for a corpus of few long texts."""

    def head(start: int) -> Iterator[str]:
        return (text[: len(text) - round(len(text) * part)] for text in documents(start))

    def tail(start: int) -> Iterator[str]:
        return (text[len(text) - round(len(text) * part) :] for text in documents(start))

    return head, tail


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
