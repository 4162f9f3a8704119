#!/usr/bin/env python3
"""Make the embedded handwritten digits again, from scikit-learn or from a table of the same form.

Usage:
    python scripts/rebuild_digits.py                      # needs scikit-learn, which ships a copy
    python scripts/rebuild_digits.py --table FILE.csv     # 64 pixels and a label a line; the standard library does
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import os
import sys
from collections.abc import Iterable
from pathlib import Path

TABLE_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
OUTPUT = Path(__file__).resolve().parents[1] / "testbeds" / "data" / "digits.csv.xz"


def from_package() -> list[list[int]]:
    """Rows of 64 pixels and the label, from the installed scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("rebuild_digits: scikit-learn is not installed; install it, or give the table by --table")
    digits = load_digits()
    return [[int(p) for p in pixels] + [int(label)] for pixels, label in zip(digits.data, digits.target, strict=True)]


def from_table(path: Path) -> list[list[int]]:
    """Rows of comma-separated integers; white space and empty lines do not count."""
    try:
        lines = path.read_text(encoding="utf-8").split()
        return [[int(number) for number in line.split(",")] for line in lines]
    except (OSError, ValueError) as error:
        sys.exit(f"rebuild_digits: {path} is not a readable table of integers: {error}")


def table(rows: Iterable[Iterable[int]]) -> bytes:
    """The embedded form: one line of comma-separated integers per image."""
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, help="comma-separated table (default: taken from scikit-learn)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write (default: the embedded digits)")
    options = parser.parse_args(arguments)
    content = table(from_table(options.table) if options.table else from_package())
    found = hashlib.sha256(content).hexdigest()
    if found != TABLE_SHA256:
        sys.exit(f"rebuild_digits: the table has the digest {found}, expected {TABLE_SHA256}; nothing was written")
    unfinished = options.output.with_name(options.output.name + ".part")
    unfinished.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    os.replace(unfinished, options.output)
    print(f"rebuild_digits: {options.output}: {len(content):,} bytes of table, SHA-256 {TABLE_SHA256}")


if __name__ == "__main__":
    main()
