"""Training methods of test problems: those of :mod:`lotion_theory.methods`, and searches that follow no gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lotion_theory import methods

if TYPE_CHECKING:
    from ..problems.base import TrainingProblem
    from .run import Run

# A search is known by its name here; its file has the same name.
SEARCHES = ("cbo", "best_scale")


@dataclass(frozen=True)
class Search:
    """A method that follows no gradient, so has no learning rate and no steps but its own.

    ``source``: paper. ``information``: what it sees of the problem. ``settings``: defaults; ``tuning``: values tried
    per setting. ``run(problem, format, seed, settings)``: one training run. ``check(settings)``: ValueError for what is
    not valid.
    """

    name: str
    source: str
    information: str
    settings: Mapping[str, Any]
    tuning: Mapping[str, tuple[Any, ...]]
    run: Callable[[TrainingProblem, str, int, Mapping[str, Any]], Run]
    check: Callable[[Mapping[str, Any]], object]


def names() -> tuple[str, ...]:
    """All methods, searches last."""
    return (*methods.names(), *SEARCHES)


def search(name: str) -> Search | None:
    """The search called ``name``; None for another name."""
    return import_module(f".{name}", __package__).SEARCH if name in SEARCHES else None


def tuning(name: str) -> Mapping[str, tuple[Any, ...]]:
    """Settings of a method that are tuned beside a learning rate, with the values to try.

    Raises ValueError for an unknown method.
    """
    found = search(name)
    return methods.method(name).tuning if found is None else found.tuning


def follows_gradient(name: str) -> bool:
    """Whether a method goes along a gradient, and so has a learning rate."""
    return search(name) is None


def method_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of ``{"name": ..., setting: value, ...}``."""
    settings = dict(config)
    return settings.pop("name"), settings
