"""Rounded weights in a folder, one file each, so that interrupted work goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import file_name, lock, whole_file, write_text

_PLAN, _LOCK = "plan.json", "lock"


def _is_foreign(file: Path) -> bool:
    """Whether a file is none that a process leaves that was killed before it had written its plan."""
    return file.name != _LOCK and not (file.name.startswith(f".{_PLAN}") and file.suffix == ".part")


def digest(x: Any) -> str:
    """SHA-256 of tensors, arrays, numbers and text in mappings and sequences, in their order."""
    found = hashlib.sha256()

    def feed(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(part, np.ndarray):
            feed(torch.from_numpy(np.ascontiguousarray(part)))
        elif isinstance(part, Mapping) or hasattr(part, "keys"):
            for key in part.keys():  # noqa: SIM118 (a BatchEncoding is no mapping)
                found.update(f"key {key!r}".encode())
                feed(part[key])
        elif isinstance(part, Sequence) and not isinstance(part, str | bytes):
            found.update(f"sequence {len(part)}".encode())
            for each in part:
                feed(each)
        else:
            found.update(repr(part).encode())

    feed(x)
    return found.hexdigest()


@dataclass(frozen=True)
class Folder:
    """Files of one piece of work, which ``plan.json`` describes."""

    path: Path

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, plan: Mapping[str, Any]) -> Iterator[Folder]:
        """The folder at ``path``, made if absent, held for this process within the block.

        Raises ValueError if it was begun for something else, naming what, and BlockingIOError if another process holds
        it.
        """
        path = Path(path)
        if not (path / _PLAN).exists() and path.exists() and any(_is_foreign(file) for file in path.iterdir()):
            raise ValueError(f"folder {path} holds other files; give an empty or a new one")
        path.mkdir(parents=True, exist_ok=True)
        with lock(path / _LOCK, f"folder {path} is in use"):
            yield cls._begun(path, plan)

    @classmethod
    def _begun(cls, path: Path, plan: Mapping[str, Any]) -> Folder:
        file = path / _PLAN
        if not file.exists():
            write_text(file, json.dumps(plan, indent=1))
            return cls(path)
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            changed = [key for key in plan if before.get(key) != plan[key]]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{file} cannot be read ({error}); give another folder") from None
        if changed:
            raise ValueError(f"folder {path} was begun with other {', '.join(changed)}; give another folder")
        return cls(path)

    def _file(self, name: str) -> Path:
        return self.path / f"{file_name(name)}.npz"

    def has(self, name: str) -> bool:
        """Whether a weight is done."""
        return self._file(name).exists()

    def read(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and row of a weight, or None; ValueError for a damaged file."""
        file = self._file(name)
        if not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as kept:
                arrays = {key: kept[key] for key in kept.files}
            return arrays, json.loads(arrays.pop("row").item())
        except Exception as error:  # zipfile, zlib and numpy have errors of their own
            raise ValueError(f"{file} cannot be read ({error}); delete it to have the weight rounded again") from None

    def write(self, name: str, arrays: Mapping[str, np.ndarray], row: Mapping[str, Any]) -> None:
        """Keep a weight; OSError where the file cannot be written."""
        with whole_file(self._file(name)) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, row=np.array(json.dumps(row)), **arrays)
