"""The folder of a run: held by one process at a time, and its finished result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lotion_theory.files import lock, write_text


def write_json(path: Path, value: Any) -> None:
    """Write ``value``, all or nothing; OSError naming the file if it cannot be written."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def finished(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in ``folder`` if it is that of exactly this configuration."""
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it") from None
    return result if result.get("config") == json.loads(json.dumps(config)) else None


def locked(folder: Path) -> AbstractContextManager[None]:
    """Hold ``folder`` for this process, see :func:`lotion_theory.files.lock`."""
    return lock(folder / "lock", f"another process is training in {folder}")
