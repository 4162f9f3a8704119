"""Deliberate errors, put into the running program: do the tests notice?

A mutant is a change of a few characters of one module's text. The functions whose code it changes get the changed code,
in place, so that every name under which anybody holds them sees it.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from lotion_theory import _lookups
from lotion_theory.formats import fast, passes

_APPLIED: list[Mutant] = []


@dataclass(frozen=True)
class Mutant:
    """In ``module`` the text ``old``, which stands there once, becomes ``new``; ``tests`` are to notice.

    ``tests``: functions without arguments (use ``functools.partial``) that raise if something is wrong.
    """

    module: ModuleType
    old: str
    new: str
    tests: tuple[Callable[[], Any], ...]


@contextlib.contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The program with the mutant in it; AssertionError if the text is not there once or no function changes."""
    source = inspect.getsource(mutant.module)
    assert source.count(mutant.old) == 1, f"{mutant.old!r} stands {source.count(mutant.old)} times"
    changed = source.replace(mutant.old, mutant.new)
    before, after = (_codes(compile(text, mutant.module.__file__ or "", "exec")) for text in (source, changed))
    functions = [
        (function, after[name])
        for name, code in before.items()
        if name in after and not _alike(code, after[name]) and (function := _function(mutant.module, name)) is not None
    ]
    assert functions, f"{mutant.old!r} is in no function that can be exchanged"
    kept = [function.__code__ for function, _ in functions]
    try:
        for function, code in functions:
            function.__code__ = code
        forget_compiled()
        _APPLIED.append(mutant)
        yield
    finally:
        _APPLIED.clear()
        for (function, _), code in zip(functions, kept, strict=True):
            function.__code__ = code
        forget_compiled()


def forget_compiled() -> None:
    """Compiled formats hold what the formulas were when they were recorded."""
    for known in (passes._compiled, _lookups.on_line, _lookups.bins):
        known.cache_clear()
    fast._demand.clear()


def whole() -> bool:
    """Whether the program is as it is written: no mutant is in it."""
    return not _APPLIED


@cache
def _passes(test: Callable[[], Any]) -> None:
    test()


def noticed(mutant: Mutant) -> bool:
    """Whether a test of the mutant raises while it is applied, and does not without it."""
    for test in mutant.tests:
        # Before: what the program keeps for later must not come from the mutant.
        _passes(test)
        with applied(mutant):
            try:
                test()
            except (Exception, SystemExit, pytest.fail.Exception):
                return True
    return False


def examples(test: Any, *cases: tuple[Any, ...]) -> tuple[Callable[[], Any], ...]:
    """A property on given examples: it would search and shrink failures for minutes."""
    return tuple(partial(test.hypothesis.inner_test, *case) for case in cases)


def by_hand(test: Callable[..., Any], **arguments: Any) -> Callable[[], None]:
    """``test`` with these arguments and, where it takes them, a ``tmp_path`` and a ``monkeypatch`` of its own."""
    wanted = inspect.signature(test).parameters

    def call() -> None:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            made = {"tmp_path": Path(folder), "monkeypatch": patch}
            test(**{name: value for name, value in made.items() if name in wanted}, **arguments)

    return call


def _codes(code: CodeType, inside: str = "") -> dict[str, CodeType]:
    """Code of functions and methods by qualified name; functions inside functions are part of the outer code."""
    found = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            name = inside + constant.co_name
            if constant.co_flags & inspect.CO_NEWLOCALS:
                found[name] = constant
            else:  # the body of a class
                found |= _codes(constant, f"{name}.")
    return found


def _alike(a: CodeType, b: CodeType) -> bool:
    """Whether two codes do the same: places in the file may differ."""
    if a.co_code != b.co_code or a.co_names != b.co_names or len(a.co_consts) != len(b.co_consts):
        return False
    for x, y in zip(a.co_consts, b.co_consts, strict=True):
        if isinstance(x, CodeType) and isinstance(y, CodeType):
            if not _alike(x, y):
                return False
        elif type(x) is not type(y) or x != y:
            return False
    return True


def _function(module: ModuleType, name: str) -> FunctionType | None:
    """The function that the module holds under a qualified name, without its wrappers."""
    found: Any = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None)
    for wrapper in ("__func__", "fget", "func", "__wrapped__"):
        found = getattr(found, wrapper, found)
    return found if isinstance(found, FunctionType) else None
