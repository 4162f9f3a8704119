"""Nested rows as flat tables: CSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lotion_theory.csv_text import cell
from lotion_theory.files import whole_file

from ..documents import canonical


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested objects; lists and empty objects as JSON text."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}")
    else:
        yield name, canonical(value) if isinstance(value, list | dict) else value


def export_rows(rows: Sequence[dict[str, Any]], path: Path, plain: Sequence[str]) -> None:
    """Write rows of nested dictionaries to a .csv or .parquet file, whole or not at all.

    The columns ``plain`` come first, the dotted names of all others after them in alphabetical order. In CSV a text
    that a spreadsheet would run as a formula gets an apostrophe in front.
    Raises ValueError for another ending, ModuleNotFoundError if Parquet is asked for and polars is absent.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: the name must end in .csv or .parquet")
    # A run without metrics has none of these columns, rather than one of its own.
    flat = [dict(pair for name, value in row.items() if value != {} for pair in _flat(value, name)) for row in rows]
    nested = sorted({name for row in flat for name in row} - set(plain))
    table = {name: [row.get(name) for row in flat] for name in (*plain, *nested)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        if path.suffix == ".csv":
            with part.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(map(cell, table))
                for values in zip(*table.values(), strict=True):
                    writer.writerow([str(v).lower() if isinstance(v, bool) else cell(v) for v in values])
        else:
            try:
                import polars
            except ImportError:
                raise ModuleNotFoundError(f"{path}: Parquet needs polars: pip install 'lotion-theory[sweep]'") from None
            columns = [polars.Series(name, *_typed(values)) for name, values in table.items()]
            polars.DataFrame(columns).write_parquet(part)


def _typed(values: list) -> tuple[list, Any]:
    """A column's values and polars type: one type for all; JSON text where they differ in kind."""
    import polars

    types = {type(v) for v in values if v is not None}
    if types == {bool}:
        return values, polars.Boolean
    if types == {int} and all(-(2**63) <= v < 2**63 for v in values if v is not None):
        return values, polars.Int64
    if types <= {int, float}:
        return [None if v is None else float(v) for v in values], polars.Float64
    return [v if v is None or isinstance(v, str) else canonical(v) for v in values], polars.String
