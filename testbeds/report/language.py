"""Language models among the rows: split off, and as data of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..problems import descriptor, names
from .sources import Material


def is_language(row: dict[str, Any]) -> bool:
    """Whether a row's problem is a language model."""
    problem = row["config"].get("problem")
    name = problem.get("name") if isinstance(problem, dict) else None
    return name in names() and descriptor(name).language


def split(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``(language, others)``."""
    return [r for r in rows if is_language(r)], [r for r in rows if not is_language(r)]


def without(found: Material, rows: list[dict[str, Any]]) -> Material:
    """The material with these rows only."""
    return Material(**{**vars(found), "rows": rows})
