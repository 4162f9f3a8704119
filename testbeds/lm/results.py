"""The folder of a run: held by one process at a time, and its finished result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lotion_theory.files import write_text


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; the system lets go of it however the process ends.

    Raises BlockingIOError naming the folder if another process holds it. Without effect where the system has no flock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f"another process is training in {folder}") from None
        yield
