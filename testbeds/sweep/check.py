"""Refuse an experiment that cannot run before any of its runs does."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .. import kinds
from ..problems import descriptor
from ..problems import names as problem_names
from .config import Experiment
from .plan import configurations


def check(experiments: Iterable[Experiment]) -> None:
    """ValueError naming the experiment and what is wrong with its problem, formats, methods or settings.

    Instance 0 of every problem is made, so that its sizes are known to fit the formats' blocks.
    """
    for e in experiments:
        try:
            _experiment(e)
        except (ValueError, TypeError, LookupError, ArithmeticError, FileNotFoundError) as error:
            raise ValueError(f"experiment {e.name}: {error}") from None


def _experiment(e: Experiment) -> None:
    names = [method["name"] for method in e.methods]
    if e.reference and e.reference not in names:
        raise ValueError(f"reference {e.reference!r} is none of its methods: {', '.join(names)}")
    kind = kinds.kind(e.kind)
    _settings(e, kind)
    name = e.problem.get("name")
    problem = descriptor(name, None if name in problem_names() else kind.takes)
    if not kind.takes(problem):
        others = kinds.names(lambda other: other.check and other.takes(problem))
        raise ValueError(f"problem {problem.name} is for kind {', '.join(others)}, not {e.kind}")
    for name in kind.required:
        if name not in e.settings:
            raise ValueError(f"settings.{name} is missing: kind {e.kind} needs it")
    assert kind.check is not None, "experiments name kinds that can be checked"
    kind.check(list(configurations(e)))


def _settings(e: Experiment, kind: kinds.Kind) -> None:
    for name, value in e.settings.items():
        if name not in kind.settings:
            raise ValueError(f"kind {e.kind} has no setting {name!r}; valid: {', '.join(kind.settings) or 'none'}")
        whole = kind.settings[name] is int
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        if not number or (whole and not isinstance(value, int)):
            raise ValueError(f"settings.{name} = {value!r}: must be a positive {'integer' if whole else 'number'}")
