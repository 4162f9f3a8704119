"""Rows as CSV that a spreadsheet shows as it is, and back."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# A spreadsheet runs a cell that starts with one of these as a formula. Apostrophes before it may be ours.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def cell(value: Any) -> Any:
    """``value`` for a CSV cell: text that a spreadsheet would run as a formula gets an apostrophe in front.

    Numbers, and text that reads as a number, stay as they are; :func:`text_of` takes the apostrophe off again.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value):
        return f"'{value}"
    return value


def text_of(found: str) -> str:
    """The text that :func:`cell` made into ``found``."""
    return found[1:] if found.startswith("'") and _FORMULA.match(found) else found


def to_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A header line with ``names`` and one line per row; None and a missing value are empty cells."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(cell(name) for name in names)
    writer.writerows([cell(row.get(name)) for name in names] for row in rows)
    return out.getvalue()


def lines(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbers of the lines of a CSV file with a header, and their cells by name, as they were given to :func:`to_csv`.

    Raises OSError, and ValueError naming the file if it is no such table.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for line in reader:
                if None in line or None in line.values():
                    raise ValueError(f"line {reader.line_num} has not as many cells as the header")
                yield reader.line_num, {name: text_of(value) for name, value in line.items()}
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is not readable CSV ({error})") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
