"""How lines of results are shown: the columns of their table, what heads it, and what its signs mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Column(NamedTuple):
    """``heading``; ``key``: the entry of a line's record that sorts it; ``text``: of a cell, empty for none."""

    heading: str
    key: str
    text: Callable[[Any], str]


@dataclass(frozen=True)
class Table:
    """The table of one class of lines, which are dataclasses with a field ``experiment`` and this as ``table``.

    ``columns``: the first is text, the others are numbers. ``legend``: what the signs mean. ``place``: fields whose
    values the lines of one table share and that head it. ``title(line)``: the heading, those values by default.
    ``cautions(lines)``: what a reader should know before trusting these lines.
    """

    columns: tuple[Column, ...]
    legend: str
    place: tuple[str, ...] = ("experiment", "problem", "format")
    title: Callable[[Any], str] | None = None
    cautions: Callable[[Sequence[Any]], list[str]] = lambda lines: []

    def place_of(self, line: Any) -> tuple[str, ...]:
        """What the lines of one table share."""
        return tuple(getattr(line, name) for name in self.place)

    def title_of(self, line: Any) -> str:
        """The heading of the table that a line belongs to."""
        return where(line, self.place) if self.title is None else self.title(line)


def where(line: Any, place: Sequence[str] = ("experiment", "problem", "format")) -> str:
    """``experiment: problem, format``, as far as these fields are among ``place`` and not empty."""
    rest = ", ".join(found for name in place if name != "experiment" and (found := getattr(line, name)))
    return ": ".join(part for part in (getattr(line, "experiment", ""), rest) if part)


def count(n: int) -> str:
    """A count that is worth a word only where it is not zero."""
    return str(n) if n else ""
