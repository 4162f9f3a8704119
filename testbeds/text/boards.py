"""Leaderboards as text: tables for the terminal, GitHub Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lotion_theory import csv_text

from ..results.leaderboard import Line, RoundingLine, TuningLine
from ..results.rows import Row, grouped, latest
from ..results.statistics import Interval, Paired, format_ends, format_interval, format_number, format_p

AnyLine = Line | RoundingLine | TuningLine
Cell = Callable[[Any], str]

LEGENDS: dict[type, str] = {
    Line: "±: 95 % t interval of the mean over seeds. [ ]: 95 % interval of the geometric mean of ratios of RTN "
    "losses, above the noise floor where there is one, on the same seeds. Best known: the lowest RTN loss of any run "
    "on the same instance, or its optimum. Wins: seeds with a lower RTN loss than the reference; p: sign-flip test of "
    "these differences.",
    RoundingLine: "±: 95 % t interval of the mean over instances. [ ]: 95 % Wilson interval, in per cent. Where no "
    "optimum is proven, loss / optimum is relative to the lowest loss that was found. A searched grid may beat the "
    "optimum on the given one.",
    TuningLine: "±: 95 % t interval of the mean over seeds. ←: used in the final runs, or lowest where there are none.",
}
PHASES = {"final": "equal steps", "equal_time": "equal time"}


@dataclass(frozen=True)
class Sheet:
    """A table ready to be written: the first column is text, the others are numbers."""

    title: str
    headings: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


def _settings(line: Line | TuningLine) -> str:
    names = {"weight": "λ"}
    return ", ".join(f"{names.get(k, k)}={v:g}" if isinstance(v, float) else f"{names.get(k, k)}={v}"
                     for k, v in line.tuned.items())  # fmt: skip


def _count(n: int) -> str:
    return str(n) if n else ""


def _ratio(line: RoundingLine) -> str:
    found = line.ratio
    short = "" if found is None or found.n == line.instances else f" (n={found.n})"
    return format_interval(found) + short


def _share(found: Interval | None) -> str:
    if found is None:
        return ""
    low, high = (f"{100 * end:.0f}" for end in (found.low or 0.0, found.high or 0.0))
    return f"{100 * found.value:.0f} % [{low}, {high}] of {found.n}"


COLUMNS: dict[type, tuple[tuple[str, Cell], ...]] = {
    Line: (
        ("method", lambda x: x.method + (" (reference)" if x.reference else "")),
        ("RTN loss", lambda x: format_interval(x.rtn_loss)),
        ("RR loss", lambda x: format_interval(x.rr_loss)),
        ("float loss", lambda x: format_interval(x.float_loss)),
        ("gap", lambda x: format_interval(x.gap)),
        ("RTN / reference", lambda x: "" if x.reference else format_ends(x.over_reference)),
        ("RTN / best known", lambda x: format_ends(x.over_best)),
        ("wins", lambda x: "" if x.comparison is None else f"{x.comparison.wins} of {x.comparison.n}"),
        ("p (Holm)", lambda x: format_p(x.p_holm)),
        ("tuned", _settings),
        ("seconds", lambda x: format_number(x.seconds, 3)),
        ("seeds", lambda x: str(x.seeds)),
        ("diverged", lambda x: _count(x.diverged)),
        ("failed", lambda x: _count(x.failed)),
    ),
    RoundingLine: (
        ("method", lambda x: x.method),
        ("optimum found", lambda x: _share(x.optimal)),
        ("loss / optimum", _ratio),
        ("grid", lambda x: "" if x.grid == "fixed" else x.grid),
        ("seconds", lambda x: format_number(x.seconds, 3)),
        ("instances", lambda x: str(x.instances)),
        ("failed", lambda x: _count(x.failed)),
    ),
    TuningLine: (
        ("method", lambda x: x.method),
        ("settings", _settings),
        ("RTN loss", lambda x: format_interval(x.rtn_loss)),
        ("seeds", lambda x: str(x.seeds)),
        ("failed", lambda x: _count(x.failed)),
        ("chosen", lambda x: "" if not x.chosen else "← EDGE: " + "; ".join(x.edges) if x.edges else "←"),
    ),
}


def _title(line: AnyLine) -> str:
    where = f"{line.experiment}: " if line.experiment else ""
    where += f"{line.problem}, {line.format}"
    if isinstance(line, Line):
        floor = "" if not line.noise_floor else f", noise floor {format_number(line.noise_floor, 3)}"
        return f"{where}, {PHASES[line.phase]}{floor}"
    return where if isinstance(line, RoundingLine) else f"Tuning, {where}"


def sheets(lines: Sequence[AnyLine]) -> list[Sheet]:
    """One table per experiment, problem and format (and phase); columns that would be empty are left out."""

    def place(line: AnyLine) -> tuple[str, ...]:
        return (line.experiment, line.problem, line.format, line.phase if isinstance(line, Line) else "")

    out = []
    for group in grouped(lines, place).values():
        columns = COLUMNS[type(group[0])]
        cells = [[cell(line) for _, cell in columns] for line in group]
        kept = [k for k in range(len(columns)) if any(row[k] for row in cells)]
        out.append(
            Sheet(
                _title(group[0]),
                tuple(columns[k][0] for k in kept),
                tuple(tuple(row[k] for k in kept) for row in cells),
            )
        )
    return out


def cautions(rows: Iterable[Row], lines: Sequence[AnyLine] = ()) -> list[str]:
    """What a reader should know before trusting the tables: mixed code versions and machines, missing seeds, few seeds.

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
    boards = [line for line in lines if isinstance(line, Line)]
    lost = [line for line in boards if line.diverged + line.failed]
    if lost:
        listed = "; ".join(
            f"{x.method} on {x.problem}, {x.format}: {x.seeds} of {x.seeds + x.diverged + x.failed}" for x in lost
        )
        out.append(f"Means leave out runs that diverged or failed, which flatters a method: {listed}.")
    for (n, m), group in sorted(grouped(_comparisons(boards), lambda pair: pair).items()):
        if m * 2 / 2**n > 0.05:
            out.append(
                f"With {n} common seeds and {m} methods compared, no adjusted p-value can be below "
                f"{min(1.0, m * 2 / 2**n):.2g} ({len(group)} comparisons)."
            )
    edges = [f"{line.method}, {line.format}: {', '.join(line.edges)}"
             for line in lines if isinstance(line, TuningLine) and line.edges]  # fmt: skip
    if edges:
        out.append(f"Chosen at the edge of its grid, so that a better value may lie beyond: {'; '.join(edges)}.")
    return out


def _comparisons(boards: Sequence[Line]) -> list[tuple[int, int]]:
    """Common seeds of each comparison, and how many comparisons it was adjusted for."""
    out = []
    for group in grouped(boards, lambda line: (line.phase, line.problem, line.format)).values():
        found = [line.comparison.n for line in group if line.comparison is not None]
        out += [(n, len(found)) for n in found]
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
    for kind in dict.fromkeys(map(type, lines)):
        console.print(Text(LEGENDS[kind], style="dim"))
    for note in notes:
        console.print(Text(f"Warning: {note}", style="yellow"))


def to_markdown(lines: Sequence[AnyLine], notes: Sequence[str] = (), level: int = 3) -> str:
    """GitHub Markdown, a heading of ``level`` above each table; what the signs mean and the cautions below."""
    parts = []
    for sheet in sheets(lines):
        rule = "|".join(["---", *["---:"] * (len(sheet.headings) - 1)])
        body = "\n".join(_bar(row) for row in sheet.cells)
        parts.append(f"{'#' * level} {_plain(sheet.title)}\n\n{_bar(sheet.headings)}\n|{rule}|\n{body}\n")
    parts += [f"{_plain(LEGENDS[kind])}\n" for kind in dict.fromkeys(map(type, lines))]
    if notes:
        parts.append("\n".join(f"> **Warning:** {_plain(note)}\n>" for note in notes).removesuffix("\n>") + "\n")
    return "\n".join(parts)


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
