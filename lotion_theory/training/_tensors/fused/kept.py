"""Where compiled code is kept from one process to the next."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType

from .... import kernels
from ....formats import compiled
from .. import blocks as _blocks
from . import rows


def kept_in() -> Path:
    """A folder of its own for each state of what is compiled: sources, the functions as they are in this process, which
    may have been exchanged, and the versions of libraries. So no code is ever taken for another. Numba adds the CPU.

    Raises OSError, RuntimeError or PackageNotFoundError where there is nothing to read, no home, or no numba.
    """
    digest = hashlib.sha256()
    for module in (kernels, compiled, _blocks, rows):
        digest.update(Path(module.__file__ or "").read_bytes())
    digest.update(Path(__file__).with_name("pointers.py").read_bytes())
    for function in rows.CALLEES:
        digest.update(_told(function.__code__).encode())
    digest.update("".join(version(name) for name in ("numba", "llvmlite", "numpy")).encode())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "lotion-theory" / "compiled" / digest.hexdigest()[:16]


def _told(code: CodeType) -> str:
    constants = [_told(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return f"{code.co_code!r} {code.co_names} {constants}"


@lru_cache(maxsize=1)
def is_kept() -> bool:
    """Whether a process before this one has left compiled code."""
    try:
        return any(kept_in().rglob("*.nbc"))
    except (OSError, RuntimeError, PackageNotFoundError):
        return False
