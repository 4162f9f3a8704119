"""Tables of the rounding benchmark, each number from a stored row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from testbeds.report.speeds import OPERATIONS, by_format, by_kind, by_library, main_rows
from testbeds.results.statistics import format_number

STORED = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "rounding.json"
COMMAND = "Command: `python3 bootstrap.py bench`; rows: `results/benchmarks/rounding.json`."


@cache
def stored() -> dict[str, Any]:
    """The file of rows."""
    return dict(json.loads(STORED.read_text(encoding="utf-8")))


def table(records: Sequence[Mapping[str, Any]], digits: int = 2) -> str:
    """Records as a table: numbers to as many digits, shares to four, formats and functions as code."""
    keys = list(records[0])
    words = {key for key in keys if any(isinstance(record[key], str) for record in records)}

    def cell(key: str, value: Any) -> str:
        if isinstance(value, float):
            exact = 4 if key.startswith("same") else digits
            return f"{value:.0f}" if value >= 10**exact else format_number(value, exact)
        if isinstance(value, int):
            return f"{value:,}"
        return f"`{value}`" if value and key in ("format", "function") else str(value or "")

    head = ["| " + " | ".join(keys) + " |", "|" + "|".join("---" if key in words else "---:" for key in keys) + "|"]
    return "\n".join([*head, *("| " + " | ".join(cell(k, record[k]) for k in keys) + " |" for record in records)])


def speed() -> str:
    """One paragraph: the range of each operation, first calls, and the other libraries."""
    about, records = stored()["machine"], by_format(stored()["rows"])
    weights = main_rows(stored()["rows"])[0]["weights"]
    parts = []
    for op in OPERATIONS:
        times = [r[f"{op}, ns"] for r in records if r[f"{op}, ns"] is not None]
        parts.append(f"`{op}` {min(times):.1f} to {max(times):.1f} ns a weight (median {median(times):.1f})")
    firsts = [r["first call, ms"] for r in records if r["first call, ms"] is not None]
    return (
        f"Speed, {about['machine']}, one thread, {weights:,} float32 weights, over {len(records)} formats: {', '.join(parts)}; "
        f"the first call of a process takes {min(firsts):.0f} to {max(firsts):.0f} ms more with code that an earlier one left. "
        f"{' '.join(map(beaten, OPERATIONS))} {COMMAND}"
    )


def beaten(op: str) -> str:
    """On how many of the formats that another library has this package is faster, and where it is not."""
    both = [r for r in by_format(stored()["rows"]) if r[f"its {op}, ns"] is not None and r[f"{op}, ns"] is not None]
    behind = [r for r in both if r[f"its {op}, ns"] <= r[f"{op}, ns"]]
    but = "; ".join(
        f"`{r['format']}` {r[f'{op}, ns']:.1f} against {r[f'its {op}, ns']:.1f} ns ({r[f'fastest other {op}']})"
        for r in behind
    )
    return (
        f"`{op}` is faster than every other library timed on {len(both) - len(behind)} of {len(both)} formats"
        + (f", not on {but}." if but else ".")
    )  # fmt: skip


def speed_formats() -> str:
    """Every format: this package and the fastest other library."""
    return f"{table(by_format(stored()['rows']))}\n\n{COMMAND}"


def speed_kinds() -> str:
    """Some formats at every size, type and number of threads."""
    return table(by_kind(stored()["rows"]))


def speed_libraries() -> str:
    """The other libraries, and how their results differ."""
    differs = [f"* {line['library']}: {line['differs']}." for line in stored()["libraries"]]
    return "\n".join([table(by_library(stored()["rows"])), "", "Where results are not the same:", "", *differs])
