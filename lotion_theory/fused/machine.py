"""Functions in the language of LLVM made into machine code, which is kept on the disk for other processes.

A file is named by a hash of the text of the function, the processor and its features, and the versions of LLVM and of
this module: no other code can be found under that name. What a file holds is checked before it is used. The folder
belongs to the user alone. Only ``llvmlite`` is needed (it comes with numba), and not even its compiler for code that
was kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .forks import undivided

_LAYOUT = "1"
_MAGIC = b"lotion-theory machine code\n"
Function = Callable[[int, int, Any], int]


@cache
def _target() -> tuple[Any, Any, frozenset[str], str] | None:
    """``(llvmlite.binding, target machine, features, what identifies them)``; None where there is no llvmlite."""
    if os.environ.get("LOTION_COMPILED", "1") == "0":
        return None
    try:
        import llvmlite
        import llvmlite.binding as llvm

        with contextlib.suppress(RuntimeError):  # newer versions do so by themselves
            llvm.initialize()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        cpu, found = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
        machine = _target_machine(llvm)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None
    features = frozenset(name for name, there in found.items() if there)
    version = ".".join(map(str, llvm.llvm_version_info))
    identity = "\n".join([_LAYOUT, llvmlite.__version__, version, machine.triple, cpu, ",".join(sorted(features))])
    return llvm, machine, features, identity


def features() -> frozenset[str] | None:
    """What the processor can do; None where nothing can be compiled."""
    with undivided:
        target = _target()
    return None if target is None else target[2]


_engines: list[Any] = []


@cache
def function(text: str) -> Function | None:
    """The function ``run`` of a module, ``(blocks, n, pointers) -> int``; None where it cannot be compiled."""
    with undivided:
        return _loaded(text)


def _loaded(text: str) -> Function | None:
    target = _target()
    if target is None:
        return None
    llvm, machine, _, identity = target
    path = _folder()
    name = hashlib.blake2b(f"{identity}\n{text}".encode(), digest_size=20).hexdigest()
    code = _kept(path / name) if path is not None else None
    if code is None:
        try:
            module = llvm.parse_assembly(text)
            module.triple, module.data_layout = machine.triple, str(machine.target_data)
            code = machine.emit_object(module)
        except RuntimeError:
            return None
        if path is not None:
            _keep(path / name, code)
    empty = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(empty, _target_machine(llvm))  # an engine takes the one it is given
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)  # the code lives as long as its engine
    address = engine.get_function_address("run")
    if not address:
        return None
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(address)


def _target_machine(llvm: Any) -> Any:
    """A target machine for this processor."""
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2,
        codemodel="jitdefault", jit=True,
    )  # fmt: skip


# --- on the disk -----------------------------------------------------------------------------------------------------


@cache
def _folder() -> Path | None:
    """Where machine code is kept: ``lotion-theory/code`` in ``LOTION_CACHE``, or in the user's folder for caches; None
    where that cannot be had."""
    root = os.environ.get("LOTION_CACHE") or os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(root).expanduser() if root else Path.home() / ".cache"
        path = base / "lotion-theory" / "code"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = path.stat()
    except (OSError, RuntimeError):
        return None
    # Code that others could have written is not run.
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
        return None
    return path


def _kept(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head = len(_MAGIC) + 20
    code = data[head:]
    whole = data.startswith(_MAGIC) and hashlib.blake2b(code, digest_size=20).digest() == data[len(_MAGIC) : head]
    return code if whole else None


# Files that are kept at most: those of other versions and processors are never asked for again.
_MOST = 4096


def _keep(path: Path, code: bytes) -> None:
    """Best effort: a full disk costs the next process some time, no more."""
    try:
        known = list(path.parent.iterdir())
        if len(known) >= _MOST:
            for old in sorted(known, key=lambda p: p.stat().st_mtime)[: _MOST // 2]:
                old.unlink(missing_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.blake2b(code, digest_size=20).digest() + code)
            os.replace(part, path)
        except OSError:
            os.unlink(part)
    except OSError:
        return
