"""The tables of stored experiments: which each has, and how they are printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..results.leaderboard import leaderboard, rounding_table, tuning_table
from ..results.rows import by_method
from ..sweep.results import stored_rows
from .boards import cautions, print_lines, to_csv, to_json, to_markdown


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
        kinds = {row["kind"] for row in mine if row["phase"] != "tune"}
        if tuning:
            lines += tuning_table(mine) if any(row["phase"] == "tune" for row in mine) else []
        elif "train" in kinds:
            lines += leaderboard(mine, name, reference or default_reference(mine))
        elif "round" in kinds:
            lines += [replace(line, experiment=name) for line in rounding_table(mine)]
        used += mine
    return lines, cautions(used, lines)


def default_reference(rows: Sequence[dict[str, Any]]) -> str | None:
    """QAT, with a detached scale where there are several, or else the first method."""
    labels = list(by_method([row for row in rows if row["kind"] == "train" and row["phase"] == "final"]))
    found = [label for label in labels if label.split(" ")[0] == "qat"]
    plain = [label for label in found if "attached" not in label.replace("detached", "")]
    return next(iter([*plain, *found, *labels]), None)
