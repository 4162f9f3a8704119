"""Leaderboards as text: tables for the terminal, GitHub Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lotion_theory import csv_text

from ..results.rows import Row, grouped, latest
from ..results.statistics import Interval, Paired

AnyLine = Any
"""A line of any class that has a :class:`~testbeds.results.table.Table`."""


@dataclass(frozen=True)
class Sheet:
    """A table ready to be written: the first column is text, the others are numbers."""

    title: str
    headings: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


def sheets(lines: Sequence[AnyLine]) -> list[Sheet]:
    """One table per experiment, problem and format (and phase); columns that would be empty are left out."""
    out = []
    for group in grouped(lines, lambda line: (type(line), line.table.place_of(line))).values():
        table = group[0].table
        cells = [[column.text(line) for column in table.columns] for line in group]
        kept = [k for k in range(len(table.columns)) if any(row[k] for row in cells)]
        out.append(
            Sheet(
                table.title_of(group[0]),
                tuple(table.columns[k].heading for k in kept),
                tuple(tuple(row[k] for k in kept) for row in cells),
            )
        )
    return out


def cautions(rows: Iterable[Row], lines: Sequence[AnyLine] = ()) -> list[str]:
    """What a reader should know before trusting the tables: mixed code versions and machines, and what their kinds of
    lines say (missing seeds, few seeds, edges of tuning grids).

    ``rows``: those behind the tables.
    """
    rows = latest(rows)
    out = []
    versions = sorted({str(r["version"]) for r in rows})
    if len(versions) > 1:
        out.append(f"Rows come from {len(versions)} versions of the code: {', '.join(versions)}.")
    machines = sorted({str(r["machine"]) for r in rows})
    if len(machines) > 1:
        out.append(f"Seconds come from {len(machines)} machines: {', '.join(machines)}.")
    for line_class, mine in grouped(lines, type).items():
        out += line_class.table.cautions(mine)
    return out


# --- writing ---------------------------------------------------------------------------------------------------------


def rich_tables(lines: Sequence[AnyLine]) -> list[Table]:
    """Tables for the terminal."""
    out = []
    for sheet in sheets(lines):
        table = Table(title=Text(sheet.title), title_justify="left")
        for k, name in enumerate(sheet.headings):
            table.add_column(name, justify="left" if k == 0 else "right", no_wrap=True)
        for row in sheet.cells:
            table.add_row(*(Text(cell) for cell in row))
        out.append(table)
    return out


def print_lines(lines: Sequence[AnyLine], console: Console, notes: Sequence[str] = ()) -> None:
    """All tables, what their signs mean, and the cautions.

    A narrow terminal wraps the lines: cut-off numbers would say nothing.
    """
    for table in rich_tables(lines):
        need = console.measure(table, options=console.options.update(width=1000)).maximum
        wide = type(console)(width=max(need, console.width), file=console.file, force_terminal=console.is_terminal)
        wide.print(table)
    for legend in _legends(lines):
        console.print(Text(legend, style="dim"))
    for note in notes:
        console.print(Text(f"Warning: {note}", style="yellow"))


def to_markdown(lines: Sequence[AnyLine], notes: Sequence[str] = (), level: int = 3) -> str:
    """GitHub Markdown, a heading of ``level`` above each table; what the signs mean and the cautions below."""
    parts = []
    for sheet in sheets(lines):
        rule = "|".join(["---", *["---:"] * (len(sheet.headings) - 1)])
        body = "\n".join(_bar(row) for row in sheet.cells)
        parts.append(f"{'#' * level} {_plain(sheet.title)}\n\n{_bar(sheet.headings)}\n|{rule}|\n{body}\n")
    parts += [f"{_plain(legend)}\n" for legend in _legends(lines)]
    if notes:
        parts.append("\n".join(f"> **Warning:** {_plain(note)}\n>" for note in notes).removesuffix("\n>") + "\n")
    return "\n".join(parts)


def _legends(lines: Sequence[AnyLine]) -> list[str]:
    """Of every class of lines, in order of appearance."""
    return list({type(line): line.table.legend for line in lines}.values())


def _bar(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Text in which no character acts as Markdown, e.g. a bar, which would end the cell."""
    for mark in "\\|*<`":
        text = text.replace(mark, "\\" + mark)
    return text


def records(lines: Sequence[AnyLine]) -> list[dict[str, Any]]:
    """Flat dictionaries: ``name``, ``name_low``, ``name_high`` for an interval; tuned settings under their names."""
    return [_record(line) for line in lines]


def _record(line: AnyLine) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field in fields(line):
        value = getattr(line, field.name)
        if field.name == "tuned":
            out.update(value)
        elif isinstance(value, tuple) and not isinstance(value, Interval | Paired):
            out[field.name] = "; ".join(value)
        elif "Paired" in str(field.type):
            names = ("n", "p_value", "wins", "ties", "losses")
            out.update({f"paired_{name}": getattr(value, name, None) for name in names})
            out.update(_ends("paired_difference", value.difference if value else None))
        elif "Interval" in str(field.type):
            out.update(_ends(field.name, value))
        else:
            out[field.name] = value
    return out


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    ends = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    # What is too large for a number, such as the upper end after a loss of 1e300, is missing: JSON cannot say it.
    kept = [None if end is None or not math.isfinite(end) else end for end in ends]
    return dict(zip((name, f"{name}_low", f"{name}_high"), kept, strict=True))


def to_csv(lines: Sequence[AnyLine]) -> str:
    """Comma-separated records with a header; a missing value is an empty cell, text is as in :mod:`csv_text`."""
    found = records(lines)
    names = list(dict.fromkeys(name for record in found for name in record))
    return csv_text.to_csv(names, found)


def to_json(lines: Sequence[AnyLine]) -> str:
    """Records as a JSON array; a missing value is null."""
    return json.dumps(records(lines), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
