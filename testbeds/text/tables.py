"""Tables for the terminal, made from rows."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lotion_theory.formats.catalog import FormatRow
from lotion_theory.theory.verification import NO_FORMAT, Row, summary, surprises

LETTERS = {"proved": "P", "exhaustive": "E", "property": "T"}


def _yes(value: bool) -> str:
    return "[green]yes[/]" if value else "[red]no[/]"


def format_table(rows: Iterable[FormatRow]) -> Table:
    """The catalogue: storage, scale and promises."""
    table = Table(title="Formats and what their scale rules promise (checked by: lotion verify)")
    for name in ("format", "bits", "levels", "unbiased", "continuous", "support fixed", "scale"):
        table.add_column(name, justify="right" if name in ("bits", "levels") else "left", no_wrap=name == "format")
    for r in rows:
        table.add_row(
            escape(r.format),
            f"{r.bits:.3g}",
            str(r.levels),
            _yes(r.unbiased),
            _yes(r.continuous),
            _yes(r.support_fixed),
            escape(r.scale),
        )
    return table


def promise_table(rows: Iterable[Row]) -> Table:
    """The three promises per format as the program found them, each failure with its simplest counterexample."""
    table = Table(title="Which formats keep the promises")
    for name in ("format", "unbiased (C1)", "continuous (C6)", "support fixed (C4)", "simplest counterexample"):
        table.add_column(name, no_wrap=name == "format")
    for line in summary(rows):
        cells, shown = [escape(line["format"])], []
        for column in ("unbiased", "continuous", "support fixed"):
            verdict = line.get(column)
            cells.append("" if verdict is None else _yes(verdict == "yes"))
            if f"{column}: counterexample" in line:
                shown.append(f"{column}: {line[f'{column}: counterexample']}")
        table.add_row(*cells, escape("\n".join(shown)))
    return table


def matrix_table(rows: list[Row]) -> Table:
    """Formats by claims: ✓ or ✗ with the kinds of evidence behind it (P proved, E exhaustive, T tested)."""
    claims = list(dict.fromkeys(r.claim for r in rows))
    table = Table(title="Verdicts: ✓ holds, ✗ fails; P proved, E exhaustive, T property-tested; blank: does not apply")
    table.add_column("format", no_wrap=True)
    for claim in claims:
        table.add_column(claim, no_wrap=True)
    for name in dict.fromkeys(r.format for r in rows):
        cells = []
        for claim in claims:
            found = [r for r in rows if r.format == name and r.claim == claim]
            letters = "".join(dict.fromkeys(LETTERS[r.evidence] for r in found))
            failed = any(r.verdict == "fails" for r in found)
            cells.append("" if not found else f"[red]✗{letters}[/]" if failed else f"[green]✓{letters}[/]")
        table.add_row("(no format)" if name == NO_FORMAT else escape(name), *cells)
    return table


def _wide(console: Console) -> Console:
    """The console itself if these tables fit, else one that lets the terminal wrap: cut-off columns say nothing."""
    if console.width >= 150:
        return console
    return type(console)(width=170, file=console.file, force_terminal=console.is_terminal)


def print_table(table: Table, console: Console) -> None:
    """Print a wide table on any terminal."""
    _wide(console).print(table)


def print_verdicts(rows: list[Row], console: Console) -> None:
    """The matrix, the promises, each failure with its counterexample, and whatever contradicts the theory."""
    wide = _wide(console)
    wide.print(matrix_table(rows))
    if any(r.claim in ("C1", "C4", "C6") and r.format != NO_FORMAT for r in rows):
        wide.print(promise_table(rows))
    others = [r for r in rows if r.verdict == "fails" and r.claim not in ("C1", "C4", "C6")]
    for r in others:
        wide.print(
            f"[red]{escape(r.format)}[/] {r.claim} ({escape(r.title)}) fails: {escape(r.counterexample)}; "
            f"measured {r.measured:.6g}, theory {r.theoretical:.6g}. {escape(r.note)}",
            highlight=False,
        )
    wrong = surprises(rows)
    wide.print(
        f"{len(rows)} rows, {sum(r.checked for r in rows):,} cases; {len(wrong)} against expectation.", highlight=False
    )
    for r in wrong:
        wide.print(
            f"[bold red]UNEXPECTED[/] {escape(r.format)} {r.claim} {escape(r.title)}: {r.verdict}, "
            f"expected {r.expected}. {escape(r.counterexample)}",
            highlight=False,
        )
