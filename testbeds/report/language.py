"""Language models among the rows: split off, and as data of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .sources import Material

PROBLEM = "decoder"
KIND = "lm"


def is_language(row: dict[str, Any]) -> bool:
    """Whether a row is a language-model run: of kind "lm", or training the decoder."""
    problem = row["config"].get("problem")
    return row["kind"] == KIND or (isinstance(problem, dict) and problem.get("name") == PROBLEM)


def split(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``(language, others)``; language-model rows read as training runs, which is what they are."""
    language = [{**r, "kind": "train"} if r["kind"] == KIND else r for r in rows if is_language(r)]
    return language, [r for r in rows if not is_language(r)]


def without(found: Material, rows: list[dict[str, Any]]) -> Material:
    """The material with these rows only."""
    return Material(**{**vars(found), "rows": rows})
