"""What the sections of the page are made of: the material, split in two, and the leaderboards of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..problems import descriptor, names
from ..text.experiments import Boards, all_boards
from .sources import Material


class Contents:
    """``material``: what was read. ``language``: its runs of language models; ``others``: all other runs."""

    def __init__(self, material: Material) -> None:
        self.material = material
        self.language, self.others = split(material.rows)

    @cached_property
    def language_boards(self) -> Boards:
        """Lines and cautions of the language models' experiments."""
        return all_boards(self.language)

    @cached_property
    def other_boards(self) -> Boards:
        """Lines and cautions of all other experiments."""
        return all_boards(self.others)

    @cached_property
    def lines(self) -> dict[str, list[Any]]:
        """Lines of every experiment."""
        return {name: lines for name, (lines, _) in {**self.other_boards, **self.language_boards}.items()}


def is_language(row: dict[str, Any]) -> bool:
    """Whether a row's problem is a language model."""
    problem = row["config"].get("problem")
    name = problem.get("name") if isinstance(problem, dict) else None
    return name in names() and descriptor(name).language


def split(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``(language, others)``."""
    return [r for r in rows if is_language(r)], [r for r in rows if not is_language(r)]
