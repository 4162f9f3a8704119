"""The tables of stored experiments: which each has, and how they are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import kinds
from ..results.leaderboard import tuning_table
from ..results.rows import grouped
from ..sweep.results import stored_rows
from .boards import cautions, print_lines, to_csv, to_json, to_markdown

Boards = Mapping[str, tuple[list[Any], list[str]]]
"""Lines and cautions by experiment."""


def print_boards(
    path: Path,
    names: Sequence[str],
    console: Console,
    reference: str | None = None,
    tuning: bool = False,
    output: str = "text",
) -> None:
    """Print the tables of experiments (all by default); ValueError for a name the store does not hold."""
    lines, notes = boards(path, names, reference, tuning)
    if output == "text":
        print_lines(lines, console, notes)
    elif output == "markdown":
        sys.stdout.write(to_markdown(lines, notes))
    else:
        sys.stdout.write(to_csv(lines) if output == "csv" else to_json(lines))


def boards(
    path: Path, names: Sequence[str], reference: str | None = None, tuning: bool = False
) -> tuple[list, list[str]]:
    """Lines of the tables of experiments in a store, and the cautions that belong to them."""
    rows = stored_rows(path)
    stored = sorted({row["experiment"] for row in rows})
    for name in names:
        if name not in stored:
            raise ValueError(f"experiment {name!r} is not in {path}; valid: {', '.join(stored) or 'none'}")
    return boards_of(rows, names or stored, reference, tuning)


def boards_of(
    rows: Sequence[dict[str, Any]], names: Sequence[str], reference: str | None = None, tuning: bool = False
) -> tuple[list, list[str]]:
    """:func:`boards` of experiments among ``rows``."""
    lines: list[Any] = []
    used: list[dict[str, Any]] = []
    for name in names:
        mine = [row for row in rows if row["experiment"] == name]
        kind = shown_kind(mine)
        if tuning:
            lines += tuning_table(mine) if any(row["phase"] == "tune" for row in mine) else []
        elif kind is not None and kind.table is not None:
            lines += kind.table(mine, name, reference)
        used += mine
    return lines, cautions(used, lines)


def all_boards(rows: Sequence[dict[str, Any]]) -> Boards:
    """:func:`boards_of` each experiment that has a line."""
    found = {}
    for name, mine in grouped(rows, lambda row: row["experiment"]).items():
        try:
            found[name] = boards_of(mine, [name])
        except ValueError:
            continue  # Only tuning runs: nothing to compare yet.
    return {name: (lines, notes) for name, (lines, notes) in found.items() if lines}


def shown_kind(rows: Iterable[Mapping[str, Any]]) -> kinds.Kind | None:
    """The kind of experiment whose table shows these rows of one experiment; None for tuning runs alone, and where no
    kind with a table ran."""
    found = {row["kind"] for row in rows if row["phase"] != "tune"}
    shown = (name for name in kinds.names(lambda kind: kind.table) if name in found)
    return next(map(kinds.kind, shown), None)
