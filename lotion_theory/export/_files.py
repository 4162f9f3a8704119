"""Files that appear whole or not at all, and libraries that are imported when they are needed."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def library(name: str, purpose: str) -> Any:
    """The module ``name``; ImportError saying what it is needed for and how to install it, if it is absent."""
    root = name.partition(".")[0]
    try:
        with warnings.catch_warnings():
            # Deprecations inside other libraries are not the caller's.
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A part that this version of the library lacks is no missing installation.
        detail = "" if error.name == root else f" ({error})"
        raise ImportError(f"{purpose} needs {root}{detail}: pip install 'lotion-theory[lm]'") from None


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` once it is on the disk, removed if writing fails."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        # An unwritable place shows before any work is done for it.
        part.touch()
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
