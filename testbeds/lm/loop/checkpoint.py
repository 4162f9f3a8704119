"""Checkpoints that are there in full or not at all.

A checkpoint is a folder ``step-00000100`` with one file per part and ``manifest.json``, which tells size and SHA-256 of
each, and the SHA-256 of what it tells itself. It is written under another name, brought to the disk, and renamed:
killing the process at any moment leaves the one before it intact.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...documents import fault, first_line, read_json, sealed, unsealed

PREFIX = "step-"
PARTIAL, REMOVED = ".partial-", ".removed-"
MANIFEST = "manifest.json"


class Damaged(ValueError):
    """A checkpoint that cannot be used; an older one may take its place."""


class Checkpoint(NamedTuple):
    """``facts``: plain data from the manifest; ``parts``: tensors by file; ``skipped``: newer ones that are damaged."""

    path: Path
    step: int
    facts: dict[str, Any]
    parts: dict[str, Any]
    skipped: tuple[str, ...] = ()

    def part(self, name: str) -> dict[str, Any]:
        """The dict in the file ``name`` (without ending); :class:`Damaged` if there is none."""
        if not isinstance(self.parts.get(name), dict):
            raise Damaged(f"{self.path / name}.pt is missing from its checkpoint, or holds no dict")
        return self.parts[name]


def save(folder: Path, step: int, parts: Mapping[str, Any], facts: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint of ``step`` and remove all but the ``keep`` newest.

    ``parts``: by file name without ending, what ``torch.save`` takes and ``torch.load(weights_only=True)`` gives back;
    ``facts``: JSON. Raises OSError naming the file that could not be written, the disk being full for example; the
    older checkpoints are untouched then.
    """
    target = folder / f"{PREFIX}{step:08}"
    partial = folder / f"{PARTIAL}{target.name}"
    path = partial
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _discard_leftovers(folder)
        partial.mkdir()
        files = {}
        for name, value in parts.items():
            path = partial / f"{name}.pt"
            files[path.name] = _write(path, value)
        path = partial / MANIFEST
        with path.open("w", encoding="utf-8") as file:
            json.dump(sealed({"step": step, "files": files, "facts": dict(facts)}), file)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(partial)
        if target.exists():  # damaged, or of a run that went on from an older one
            target.rename(folder / f"{REMOVED}{target.name}")
        partial.rename(target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        older = steps(folder)
        kept = f"the checkpoint of step {older[-1]} is intact" if older else "there is no older checkpoint"
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OSError(error.errno, f"cannot write {path}: {reason}; {kept}") from error
    for old in steps(folder)[:-keep]:
        # Renamed first: a folder that carries a checkpoint's name is whole.
        (folder / f"{PREFIX}{old:08}").rename(folder / f"{REMOVED}{PREFIX}{old:08}")
    _discard_leftovers(folder)
    return target


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    names = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*") if path.is_dir())
    # Only names that save gives: a digit need not be one of ASCII, and other widths name other folders.
    return sorted(int(text) for text in names if text.isdecimal() and text == f"{int(text):08}")


def load(
    folder: Path, fall_back: bool = False, use: Callable[[Checkpoint], None] = lambda stored: None
) -> Checkpoint | None:
    """The newest checkpoint, on the CPU; None if there is none.

    ``use`` is called with it and raises :class:`Damaged` if it does not fit. Raises :class:`Damaged`, a ValueError
    naming the file that is truncated, changed, missing, or does not fit. ``fall_back``: go on with the next older
    checkpoint instead, if there is one.
    """
    known = steps(folder)[::-1]
    skipped: list[str] = []
    for place, step in enumerate(known):
        try:
            stored = _read(folder / f"{PREFIX}{step:08}", step)._replace(skipped=tuple(skipped))
            use(stored)
            return stored
        except Damaged as error:
            older = known[place + 1 :]
            if not older:
                raise
            if not fall_back:
                advice = f"to go on from the checkpoint of step {older[0]}, pass --fall-back"
                raise Damaged(f"{error}; {advice}") from None
            skipped.append(str(error))
    return None


def _read(path: Path, step: int) -> Checkpoint:
    files, facts = _manifest(path / MANIFEST, step)
    parts = {}
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            raise Damaged(f"{file} is missing from its checkpoint")
        if file.stat().st_size != size:
            raise Damaged(f"{file} is truncated or too long: {file.stat().st_size} bytes, not {size}")
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                raise Damaged(f"{file} is damaged: its SHA-256 is not that of the manifest")
        try:
            parts[file.stem] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises errors of many kinds
            raise Damaged(f"{file} is damaged: torch cannot read it ({first_line(error)})") from None
    return Checkpoint(path, step, facts, parts)


def _manifest(path: Path, step: int) -> tuple[dict[str, tuple[int, str]], dict[str, Any]]:
    """Size and SHA-256 by file, and facts; :class:`Damaged` for a manifest that :func:`save` did not write."""
    try:
        manifest = unsealed(read_json(path))
        files, facts = dict(manifest["files"]), dict(manifest["facts"])
        if manifest["step"] != step:
            raise ValueError(f"step {manifest['step']!r} in the folder of step {step}")
        for name, (size, digest) in files.items():
            if Path(name).name != name or not isinstance(size, int) or not isinstance(digest, str):
                raise ValueError(f"no file: {name!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} is damaged or missing ({fault(error)})") from None
    return files, facts


def _write(path: Path, value: Any) -> tuple[int, str]:
    """Size and SHA-256 of the file that ``torch.save`` writes; what the system said if it cannot."""
    with path.open("wb") as file:
        tee: Any = _Tee(file)
        try:
            torch.save(value, tee)
        except Exception:
            # torch turns an error of the disk into one of its own.
            if tee.error is not None:
                raise tee.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return tee.size, tee.digest.hexdigest()


class _Tee:
    """A file that counts and hashes what is written to it."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        size = memoryview(data).nbytes
        self.size += size
        return size

    def flush(self) -> None:
        self.file.flush()


def _discard_leftovers(folder: Path) -> None:
    for pattern in (f"{PARTIAL}*", f"{REMOVED}*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where the system knows how."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)
