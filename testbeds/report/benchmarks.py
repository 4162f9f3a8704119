"""Stored benchmarks as tables of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ..results.rows import grouped
from ..results.statistics import format_number
from . import speeds
from .section import Section

MOST = 400
"""Rows of a table; a longer one is cut, and says so."""


def tables(stored: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per file its tables, one per list of records in it, and its settings in words."""
    out = []
    for name, value in stored.items():
        settings = [pair for part in value.values() if isinstance(part, Mapping) for pair in part.items()]
        about = [f"{k.replace('_', ' ')} {_cell(v)[0]}" for k, v in settings if k != "command"]
        # Rows of other options than the script's own tell their command.
        command = dict(settings).get("command", f"python benchmarks/{name}.py")
        lists = {k: v for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], Mapping)}
        parts = [{"title": t, **_table(r)} for k, v in lists.items() for t, r in _digested(name, k, v).items()]
        if parts:
            out.append({"name": name, "about": ", ".join(about), "command": command, "tables": parts})
    return out


def _digested(name: str, title: str, records: list[Mapping[str, Any]]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The tables of one list of records, by title."""
    if name == "exact_solvers":
        return {title: _solvers(records)}
    if name == "rounding" and title == "rows":
        return {t: table(records) for t, table in speeds.TABLES.items()}
    return {title: records}


def _table(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = list(dict.fromkeys(k for record in records for k in record))
    return {
        "columns": [k.replace("_", " ") for k in keys],
        "rows": [[_cell(record.get(k)) for k in keys] for record in records[:MOST]],
        "left_out": max(0, len(records) - MOST),
    }


def _cell(value: Any) -> list[Any]:
    """``[text, sorted by]``."""
    if value is None:
        return ["", None]
    if isinstance(value, bool):
        return ["yes" if value else "no", int(value)]
    if isinstance(value, int):
        return [f"{value:,}", value]
    if isinstance(value, float):
        return [format_number(value), float(f"{value:.6g}")]
    return [str(value), str(value)]


def _solvers(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Medians over instances by solver and dimension."""
    return [
        {
            "solver": solver,
            "d": d,
            "instances": len(mine),
            "median seconds": median(r["seconds"] for r in mine),
            "largest seconds": max(r["seconds"] for r in mine),
            "proven": f"{sum(bool(r['proven']) for r in mine)} of {len(mine)}",
        }
        for (solver, d), mine in grouped(records, lambda r: (r["solver"], r["d"])).items()
    ]


SECTION = Section(
    "speed",
    "Speed",
    "Speed",
    data=lambda contents: {"benchmarks": tables(contents.material.benchmarks)},
    template="benchmarks",
    missing={"benchmarks": "No benchmarks stored: python3 bootstrap.py bench measures them."},
)
