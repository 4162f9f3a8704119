"""What a folder's token files were made from, kept beside them: another preparation never continues or mixes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ...documents import read_json, write_json
from ...settings import differences
from .tokens import SUFFIX, read_header

RECORD = "prepared.json"
FIRST = 10
"""Documents hashed of every source: all that can be told of a stream."""


def begin(out: Path, wanted: Mapping[str, Any], learned: Path | None = None) -> None:
    """Note in the folder ``out`` what its token files are made from, before they are.

    ``wanted``: plain data; a value of None under ``sources`` is unknown and agrees with any. ``learned``: a file that
    the preparation makes beside the tokens. Raises ValueError if the folder holds files that were made otherwise, or
    that nothing is known of.
    """
    path = out / RECORD
    begun = sorted(out.glob(f"*{SUFFIX}"))
    if learned is not None and learned.exists():
        begun.append(learned)
    cure = "choose another folder, or remove its files"
    if path.exists():
        stored = read_json(path)
        if not isinstance(stored, dict) or not isinstance(stored.get("sources"), dict):
            raise ValueError(f"{path} is damaged (no record of sources): {cure}")
        plain = json.loads(json.dumps(wanted))
        unlike = _unlike(stored, plain)
        if not unlike:
            if stored["sources"] != plain["sources"]:
                write_json(path, _joined(stored, plain))
            return
        if begun:
            raise ValueError(f"{out} holds tokens that were made otherwise ({'; '.join(unlike)}): {cure}")
    elif begun:
        for file in begun:
            if file.suffix == SUFFIX and read_header(file).tokenizer != wanted["tokenizer"]:
                name = read_header(file).tokenizer
                raise ValueError(f"{file} was made with tokenizer {name!r}, not {wanted['tokenizer']!r}: remove it")
        raise ValueError(f"{begun[0]} is there, but no {RECORD} that tells what it was made from: {cure}")
    write_json(path, wanted)


def source_of(documents: Any) -> Any:
    """What tells this source of documents from others: its own ``describe()`` if it has one, else None (unknown)."""
    describe = getattr(documents, "describe", None)
    return None if describe is None else describe()


def first_of(documents: Callable[[int], Iterator[str]]) -> str:
    """SHA-256 of the first documents."""
    digest = hashlib.sha256()
    for text in islice(documents(0), FIRST):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def file_source(path: Path) -> str:
    """Name, size and SHA-256 of a file. The folder does not count: a corpus may move."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{path.name}, {path.stat().st_size} bytes, SHA-256 {digest}"


def _unlike(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    mine, theirs = stored["sources"], wanted["sources"]
    known = [name for name in mine.keys() & theirs.keys() if None not in (mine[name], theirs[name])]
    return differences(
        {**stored, "sources": {name: mine[name] for name in known}},
        {**wanted, "sources": {name: theirs[name] for name in known}},
    )


def _joined(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """``stored`` with the sources that only ``wanted`` knows."""
    known = {name: value for name, value in wanted["sources"].items() if value is not None}
    return {**stored, "sources": {**stored["sources"], **known}}
