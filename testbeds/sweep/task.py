"""One run of a sweep: what is computed, how it is named, and what came of it."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lotion_theory.arguments import is_integer

from ..documents import canonical
from ..machine import code_version, machine
from ..problems.descriptor import Diverged

STATUSES = ("ok", "diverged", "failed", "crashed")
_TEXT_LIMIT = 500


@dataclass(frozen=True, eq=False)
class Task:
    """One run. ``kind``, ``config`` and ``seed`` say what is computed, ``experiment`` and ``phase`` what it is for.

    ``config``: JSON values (None, booleans, finite numbers, strings, lists, objects); tuples become lists.
    ``seed``: an integer in [0, 2**63). Equal are tasks with the same experiment, phase and key.
    Raises ValueError for anything else, naming the place in ``config``.
    """

    experiment: str
    phase: str
    kind: str
    config: Mapping[str, Any]
    seed: int

    def __post_init__(self) -> None:
        for name in ("experiment", "phase", "kind"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a non-empty string")
        if not is_integer(self.seed) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed!r}: must be an integer in [0, 2**63)")
        object.__setattr__(self, "seed", int(self.seed))
        if not isinstance(self.config, Mapping):
            raise ValueError(f"config={self.config!r}: must be a mapping")
        object.__setattr__(self, "config", _plain(self.config, "config"))

    @cached_property
    def key(self) -> str:
        """Name of what is computed: 32 hexadecimal digits, a hash of kind, config and seed.

        Numbers are told apart as Python writes them, so 1 and 1.0 are two configurations.
        """
        return hashlib.sha256(canonical([self.kind, self.config, self.seed]).encode()).hexdigest()[:32]

    @cached_property
    def family(self) -> str:
        """What runs the same code: the kind, and the names and other words within the configuration."""
        words = {
            name: {key: word for key, word in part.items() if isinstance(word, str)}
            for name, part in self.config.items()
            if isinstance(part, Mapping)
        }
        return canonical([self.kind, words])

    @property
    def name(self) -> tuple[str, str, str]:
        """(experiment, phase, key): where the store keeps the run."""
        return self.experiment, self.phase, self.key

    def __eq__(self, other: object) -> bool:
        return self.name == other.name if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    ``status``: ok, diverged, failed (the task raised an exception, or ran out of time) or crashed (its process died).
    ``metrics``: JSON values, numbers that are not finite as None. ``seconds``: wall time of the task itself.
    ``version``, ``machine``: of the process that ran it.
    """

    status: str
    message: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    version: str = field(default_factory=code_version)
    machine: str = field(default_factory=machine)


def _plain(value: Any, where: str, lenient: bool = False) -> Any:
    """``value`` as plain JSON values, tuples as lists and numpy values as Python ones.

    Numbers that are not finite become None if ``lenient``. Raises ValueError naming the place of what is left.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        if lenient:
            return None
        raise ValueError(f"{where}={value}: must be finite")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r} must be a string")
        return {str(key): _plain(item, f"{where}.{key}", lenient) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", lenient) for i, item in enumerate(value)]
    raise ValueError(f"{where}={value!r}: a {type(value).__name__} is not a JSON value")


def resolve(reference: str) -> Callable[[str, Mapping[str, Any], int], Mapping[str, Any]]:
    """The function ``"module:function"`` names; ValueError if there is none."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise ValueError(f"reference={reference!r}: must be 'module:function'")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reference={reference!r}: {error}") from error
    if not callable(function):
        raise ValueError(f"reference={reference!r}: is not a function")
    return function


def prepare(reference: str) -> None:
    """Import and compute what every task of this process needs, so that no task is charged with it."""
    resolve(reference)
    code_version()
    machine()


def execute(reference: str, task: Task) -> Outcome:
    """Run ``task`` by the function ``reference`` names, called with (kind, config, seed), and say what came of it.

    The function returns a mapping of metrics or raises :class:`Diverged`. Whatever else it raises is reported as
    status ``failed``; only interruptions pass.
    """
    start = time.perf_counter()
    status, message = "ok", ""
    try:
        function = resolve(reference)
        start = time.perf_counter()  # The first import is not the task's time.
        try:
            # A copy: a task that edits its configuration must not rename itself.
            metrics = function(task.kind, json.loads(canonical(task.config)), task.seed)
        except Diverged as error:
            status, message, metrics = "diverged", _line(str(error)), error.metrics
        seconds = time.perf_counter() - start
        if not isinstance(metrics, Mapping):
            raise TypeError(f"{reference} returned a {type(metrics).__name__} instead of a mapping of metrics")
        return Outcome(status, message, _plain(metrics, "metrics", lenient=True), seconds)
    except (Exception, SystemExit) as error:
        return Outcome("failed", _described(error), {}, time.perf_counter() - start)


def _line(text: str) -> str:
    """``text`` in one line of bounded length that any file can hold."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"


def _described(error: BaseException) -> str:
    """Type, text and place of an exception, in one line and without the folders of this machine."""
    text = _line(f"{type(error).__name__}: {error}")
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return text
    last = frames[-1]
    return text + " " + _line(f"(at {Path(last.filename).name}:{last.lineno} in {last.name}: {last.line or ''})")
