"""Loader of the embedded corpus; PROVENANCE.md beside this file says where it comes from."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

SOTU_FILE = Path(__file__).with_name("sotu-2mb.txt.xz")
SOTU_SHA256 = "9780108cc98b3a692e21b42feb38b0a7319ca321cb900db3604219ecf98a2798"
"""SHA-256 of the unpacked text, 1,998,893 bytes of UTF-8."""

_CURE = "restore it from version control, or make it again with: python scripts/rebuild_sotu.py"


def load_sotu(path: Path = SOTU_FILE) -> str:
    """58 State of the Union addresses, newest first, separated by blank lines; 1,998,893 bytes as UTF-8.

    Raises FileNotFoundError where the file is missing, and ValueError where its text is not the pinned one; both name
    the file and the cure.
    """
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"the embedded corpus {path} is missing: {_CURE}") from None
    try:
        # The format is stated: left to guess, lzma would take a damaged header for the older .lzma format.
        text = lzma.decompress(packed, format=lzma.FORMAT_XZ)
    except lzma.LZMAError as error:
        raise ValueError(f"the embedded corpus {path} is damaged ({error}): {_CURE}") from None
    found = hashlib.sha256(text).hexdigest()
    if found != SOTU_SHA256:
        digests = f"SHA-256 of its text is {found}, not {SOTU_SHA256}"
        raise ValueError(f"the embedded corpus {path} is damaged ({digests}): {_CURE}")
    return text.decode()
