"""Stored rows of ``benchmarks/rounding.py`` in three tables: by format, by kind of array, and by other library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..results.rows import grouped

Row = Mapping[str, Any]
OURS = "lotion-theory"
OPERATIONS = ("cast", "round", "variance")


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of float32 arrays of numpy, one thread and the main number of weights, which is that of the first row."""
    fields = {"arrays": "numpy", "dtype": "float32", "threads": 1, "weights": rows[0]["weights"]}
    return [r for r in rows if all(r[k] == v for k, v in fields.items())]


def ours(rows: Sequence[Row], operation: str, contender: str = "compiled", state: str = "warm") -> Row | None:
    """The first of the rows that is about a contender of this package; None where there is none."""
    wanted = (OURS, contender, operation, state)
    return next((r for r in rows if (r["library"], r["contender"], r["operation"], r["state"]) == wanted), None)


def others(rows: Sequence[Row], operation: str) -> list[Row]:
    """Those of other libraries."""
    return [r for r in rows if r["library"] not in (OURS, "numpy") and r["operation"] == operation]


def by_format(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One record per format: nanoseconds per weight, ``copies`` times that of a copy; first calls in milliseconds more
    than others. The fastest other library of an operation, where any has the format."""
    out = []
    for text, mine in grouped(main_rows(rows), lambda r: r["format"]).items():
        found = {op: ours(mine, op) for op in OPERATIONS}
        plain = ours(mine, "cast", "plain path")
        record: dict[str, Any] = {"format": text}
        record |= {f"{op}, ns": row and row["ns_per_weight"] for op, row in found.items()}
        record["cast, copies"] = found["cast"] and found["cast"]["ratio"]
        record["plain cast, ns"] = plain and plain["ns_per_weight"]
        for name, state in (("first call, ms", "kept code"), ("first call compiling, ms", "empty folder")):
            first = ours(mine, "cast", state=f"first, {state}")
            record[name] = first and first["more_ms"]
        for op in OPERATIONS:
            best = min(others(mine, op), key=lambda r: r["ns_per_weight"], default=None)
            record[f"fastest other {op}"] = best and _name(best)
            record[f"its {op}, ns"] = best and best["ns_per_weight"]
        out.append(record)
    return out


def by_kind(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One record per format, size, type and number of threads, of formats with more than the main kind."""
    out = []
    warm = [r for r in rows if (r["library"], r["contender"], r["state"]) == (OURS, "compiled", "warm")]
    kinds = grouped(warm, lambda r: (r["format"], r["arrays"], r["dtype"], r["weights"], r["threads"]))
    many = {key[0] for key in kinds if key[1] == "torch"}
    for (text, arrays, dtype, size, threads), some in kinds.items():
        if text in many:
            times = {r["operation"]: r["ns_per_weight"] for r in some}
            record = {"format": text, "arrays": arrays, "type": dtype, "weights": size, "threads": threads}
            record |= {f"{op}, ns": times.get(op) for op in (*OPERATIONS, "uniforms and round")}
            out.append(record)
    return out


def by_library(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One record per other library's function and operation: in how many formats, how many times as long as compiled
    code it takes at least and at most, and the least share of its results that are the same."""
    out = []
    main = main_rows(rows)
    formats = grouped(main, lambda r: r["format"])
    for op in OPERATIONS:
        for (library, name), mine in grouped(others(main, op), lambda r: (r["library"], r["contender"])).items():
            pairs = [(r, ours(formats[r["format"]], op)) for r in mine]
            ratios = [r["ns_per_weight"] / own["ns_per_weight"] for r, own in pairs if own is not None]
            shares = [r["agrees"] for r in mine if "agrees" in r]
            out.append({
                "library": library, "version": mine[0]["version"], "function": name, "operation": op,
                "formats": len(mine), "least, times ours": min(ratios, default=None),
                "most, times ours": max(ratios, default=None), "same, least": min(shares, default=None),
            })  # fmt: skip
    return out


def _name(row: Row) -> str:
    kind = " compile" if row["contender"].endswith("compile") else ""
    return f"{row['library']}{kind}"


TABLES = {"by format": by_format, "by kind of array": by_kind, "by library": by_library}
"""The tables by title."""
