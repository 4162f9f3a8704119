"""Where texts come from: local files, or C4 as the library ``datasets`` streams it; and which of them are held out."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ...documents import read_text, regular_file
from .origin import file_source

C4 = ("allenai/c4", "en")

Documents = Callable[[int], Iterator[str]]
"""Texts from the given document number on, always in the same order."""


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
