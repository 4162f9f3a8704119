"""Loader of the embedded handwritten digits; PROVENANCE.md beside this file says where they come from."""

from __future__ import annotations

import hashlib
import io
import lzma
from pathlib import Path

import numpy as np

DIGITS_FILE = Path(__file__).with_name("digits.csv.xz")
DIGITS_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
"""SHA-256 of the unpacked table, 264,712 bytes."""

_CURE = "restore it from version control, or make it again with: python scripts/rebuild_digits.py"
_INK = 16  # a pixel counts the dark ones among 4 x 4 of the scanned image


def load_digits(path: Path = DIGITS_FILE) -> tuple[np.ndarray, np.ndarray]:
    """1797 handwritten digits: ``(images, labels)``, images (1797, 64) float64 in [0, 1] and labels (1797,) 0 ... 9.

    An image has 8 x 8 pixels, rows one after another, in sixteenths from 0 (paper) to 1 (ink).
    Raises FileNotFoundError where the file is missing, and ValueError where its table is not the pinned one; both name
    the file and the cure.
    """
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"the embedded digits {path} are missing: {_CURE}") from None
    try:
        # The format is stated: left to guess, lzma would take a damaged header for the older .lzma format.
        table = lzma.decompress(packed, format=lzma.FORMAT_XZ)
    except lzma.LZMAError as error:
        raise ValueError(f"the embedded digits {path} are damaged ({error}): {_CURE}") from None
    found = hashlib.sha256(table).hexdigest()
    if found != DIGITS_SHA256:
        digests = f"SHA-256 of the table is {found}, not {DIGITS_SHA256}"
        raise ValueError(f"the embedded digits {path} are damaged ({digests}): {_CURE}")
    rows = np.loadtxt(io.BytesIO(table), delimiter=",", dtype=np.int64)
    return rows[:, :-1] / _INK, rows[:, -1]
