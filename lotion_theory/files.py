"""Files that appear whole or not at all, file names from text, locks, and libraries imported when needed."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def library(name: str, purpose: str, extra: str = "lm") -> Any:
    """The module ``name``; if it is absent, ImportError saying what needs it and which ``extra`` installs it."""
    root = name.partition(".")[0]
    try:
        with warnings.catch_warnings():
            # Deprecations inside other libraries are not the caller's.
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A part that this version of the library lacks is no missing installation.
        detail = "" if error.name == root else f" ({error})"
        raise ImportError(f"{purpose} needs {root}{detail}: pip install 'lotion-theory[{extra}]'") from None


@contextmanager
def read_by_others(what: str) -> Iterator[None]:
    """Within the block any error of a library that reads a file becomes ``ValueError: {what}: {its first words}``.

    For libraries that raise nothing narrower than Exception; panics of Rust code are not even that.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {' '.join(str(error).split())[:300]}") from None


def _places(path: str | Path) -> tuple[Path, Path]:
    """Where ``path`` leads, and a place beside it that no other writer has."""
    target = Path(os.path.realpath(path))
    # The whole name might exceed what file systems allow; no ending, so that no pattern takes it for the real thing.
    return target, target.with_name(f".{target.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.part")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` once it is on the disk, removed if writing fails.

    The file ends with the rights that plainly writing to ``path`` would give it, also where a library makes its files
    private, and a symbolic link keeps pointing to it. Two writers never share the path they write to.
    Raises OSError naming ``path`` where it cannot be written.
    """
    target, part = _places(path)
    try:
        try:
            # An unwritable place shows before any work is done for it.
            part.touch()
            rights = (target if target.exists() else part).stat().st_mode & 0o7777
            yield part
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(part, rights)
            os.replace(part, target)
        except OSError as error:
            if error.errno is None or error.filename not in (None, part, str(part)):
                raise  # something else went wrong while the file was written
            raise OSError(error.errno, f"cannot write {path}: {os.strerror(error.errno)}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder beside ``path`` to write files to; renamed to ``path`` once they are on the disk, removed if that fails.

    Raises FileExistsError if ``path`` holds anything already, OSError naming it where it cannot be written.
    """
    target, part = _places(path)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{path} is there already; name a folder that is not, or remove it")
    try:
        try:
            part.mkdir()
            yield part
            for file in (entry for entry in part.rglob("*") if entry.is_file()):
                with open(file, "rb+") as written:
                    os.fsync(written.fileno())
            os.replace(part, target)
        except OSError as error:
            if error.errno is None or not str(error.filename or part).startswith(str(part)):
                raise  # something else went wrong while the files were written
            raise OSError(error.errno, f"cannot write {path}: {os.strerror(error.errno)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all, in folders made as needed; line ends stay as they are."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


@contextmanager
def lock(path: str | Path, held: str) -> Iterator[None]:
    """Hold the file ``path``, made if absent, for this process; the system lets go of it however the process ends.

    Raises BlockingIOError if another process, or another block of this one, holds it: ``held``, a sentence without its
    full stop, followed by the number and the machine of the holder. Without effect where the system has no flock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(f"{held} (process {file.read().strip() or 'unknown'})") from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:
            # Emptied but not removed: another process may just be opening it.
            with suppress(OSError):
                file.truncate(0)


def file_name(text: str) -> str:
    """``text`` as one part of a path that every system takes: only letters, digits and ``._=+-``, never hidden.

    A text of at most 100 of those, starting with neither a dot nor a dash, stays as it is. Any other text gets a hash
    of itself appended, so that different texts never share a file.
    """
    kept = re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).lstrip(".-")
    if kept == text and 0 < len(text) <= 100:
        return text
    return f"{kept[:90]}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("-")
