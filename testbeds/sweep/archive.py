"""Runs as a small compressed file that can be kept beside the code: one JSON object per line, packed with xz."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lotion_theory.files import whole_file

from .schema import checked_row

SUFFIX = ".jsonl.xz"
_DIGITS = 6
LIMIT = 128 * 2**20
"""Bytes that an archive may unpack to: some eight times the largest one of this project."""
LINE = 16 * 2**20
"""Bytes of one run: a long training curve takes a hundredth of it."""
MEMORY = 128 * 2**20
"""Bytes that unpacking may take beside; the highest preset of xz takes half."""
_PIECE = 2**16


def write_archive(rows: Iterable[dict[str, Any]], path: Path | str) -> None:
    """Write rows in their order. Curves are kept for final runs only, and rounded to six digits.

    Raises ValueError for rows that take more than :data:`LIMIT` bytes, which could not be read again.
    """
    data = "".join(json.dumps(_lean(row), sort_keys=True, ensure_ascii=False) + "\n" for row in rows).encode()
    if len(data) > LIMIT:
        raise ValueError(f"{path}: the rows take {len(data):,} bytes; an archive holds at most {LIMIT:,}")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as part:
        part.write_bytes(lzma.compress(data, preset=6))


def read_archive(path: Path | str) -> list[dict[str, Any]]:
    """Rows written by :func:`write_archive`.

    Raises ValueError naming a file that is none, with the line that is no run of a sweep, or that unpacks to more than
    :data:`LIMIT` bytes.
    """
    path = Path(path)
    for _ in _pieces(path):
        pass  # A small file that unpacks to a huge one is refused before any of its rows takes memory.
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            rows.append(checked_row(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not a run of a sweep ({error})") from None
    return rows


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a packed file, one after the other."""
    rest = b""
    for piece in _pieces(path):
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > LINE:
            raise ValueError(f"{path} is not an archive of runs (a line is longer than {LINE // 2**20} MiB)")
        yield from whole
    if rest:
        yield rest


def _pieces(path: Path) -> Iterator[bytes]:
    """What a packed file unpacks to, piece by piece; ValueError once it is too much."""
    unpacked = 0
    try:
        with path.open("rb") as file:
            data = file.read(_PIECE)
            while True:  # Several packed streams may follow each other, as in any .xz file.
                packed = lzma.LZMADecompressor(memlimit=MEMORY)
                while not packed.eof:
                    piece = packed.decompress(data, _PIECE)
                    unpacked += len(piece)
                    if unpacked > LIMIT:
                        raise lzma.LZMAError(f"it unpacks to more than {LIMIT // 2**20} MiB")
                    yield piece
                    data = file.read(_PIECE) if packed.needs_input and not packed.eof else b""
                    if packed.needs_input and not data and not packed.eof:
                        raise lzma.LZMAError("it ends too early")
                data = packed.unused_data or file.read(_PIECE)
                if not data:
                    return
    except lzma.LZMAError as error:
        raise ValueError(f"{path} is not an archive of runs ({error})") from None


def _lean(row: dict[str, Any]) -> dict[str, Any]:
    metrics = dict(row["metrics"])
    curve = metrics.pop("curve", None)
    if curve is not None and row["phase"] == "final":
        metrics["curve"] = {name: [_rounded(v) for v in values] for name, values in curve.items()}
    return {**row, "metrics": metrics}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
