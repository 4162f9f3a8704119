"""Rows of a store as the tables and figures read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import kinds
from .archive import SUFFIX, read_archive
from .store import Store


def stored_rows(path: Path | str) -> list[dict[str, Any]]:
    """All runs of a store or an archive, completed by what kinds know: rounding runs by the exact optima.

    Raises FileNotFoundError for a path that is not there and ValueError for a file that is neither.
    """
    if str(path).endswith(SUFFIX):
        rows = read_archive(path)
    else:
        with Store(path, readonly=True) as store:
            rows = store.rows()
    for name in kinds.names():
        if (joined := kinds.kind(name).joined) is not None:
            rows = joined(rows)
    return rows
