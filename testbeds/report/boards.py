"""Leaderboards as data of the page: every experiment's lines, texts as ``lotion leaderboard`` prints them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..results.estimators import EstimatorLine, estimator_lines
from ..results.leaderboard import Line, RoundingLine
from ..results.minima import MinimaLine, minima_lines
from ..results.rows import grouped
from ..results.statistics import format_ends, format_interval, format_number
from ..text.boards import COLUMNS, LEGENDS, records
from ..text.experiments import boards_of
from .sources import Material, distinct

DIGITS = 6
Boards = Mapping[str, tuple[list[Any], list[str]]]
"""Lines and cautions by experiment."""
Column = tuple[str, str, Callable[[Any], str]]
"""Heading, the record's key that sorts it, and the text of a cell."""


SORTED_BY = {
    Line: ("method", "rtn_loss", "rr_loss", "float_loss", "gap", "over_reference", "over_best", "paired_wins",
           "p_holm", "lr", "seconds", "seeds", "diverged", "failed"),
    RoundingLine: ("method", "optimal", "ratio", "grid", "seconds", "instances", "failed"),
}  # fmt: skip
ESTIMATORS: tuple[Column, ...] = (
    ("method", "method", lambda x: x.method),
    ("bias", "bias", lambda x: format_interval(x.bias)),
    ("bias, median", "bias_median", lambda x: format_number(x.bias_median, 3)),
    ("deviation of a sample", "deviation", lambda x: format_interval(x.deviation)),
    ("instances", "instances", lambda x: str(x.instances)),
    ("failed", "failed", lambda x: str(x.failed or "")),
)
MINIMA: tuple[Column, ...] = (
    ("problem", "problem", lambda x: x.problem),
    ("local minima, raw", "raw", lambda x: format_ends(x.raw)),
    ("local minima, smoothed", "smoothed", lambda x: format_ends(x.smoothed)),
    ("lattice points", "points", lambda x: format_ends(x.points)),
    ("global minimum kept", "kept", lambda x: "" if x.kept is None else f"{x.kept.value:.0%} of {x.kept.n}"),
    ("instances", "instances", lambda x: str(x.instances)),
    ("failed", "failed", lambda x: str(x.failed or "")),
)
WORDS = {
    "estimator": "Bias and standard deviation of one sample, over the norm of the exact gradient of the smoothed loss. "
    "±: 95 % t interval of the mean over instances.",
    "minima": "Geometric means over instances on a frozen lattice, [ ]: 95 % intervals. Raw: flat pieces of the "
    "quantized loss that no touching piece is below. Smoothed: lattice points that no single step improves.",
}


def all_lines(rows: Sequence[dict[str, Any]]) -> Boards:
    """Lines and cautions of every experiment that has any."""
    found = {name: _lines(name, mine) for name, mine in grouped(rows, lambda r: r["experiment"]).items()}
    return {name: (lines, notes) for name, (lines, notes) in found.items() if lines}


def experiments(found: Material, boards: Boards) -> list[dict[str, Any]]:
    """One entry per experiment of ``boards``: what it is, the rows behind it, and its table."""
    out = []
    by_name = grouped(found.rows, lambda r: r["experiment"])
    known = presets()
    # In the order of the presets, which goes from the main question to its variations.
    for name in sorted(boards, key=lambda name: list(known).index(name) if name in known else len(known)):
        lines, notes = boards[name]
        rows = by_name[name]
        kind, columns, legend = _form(lines[0])
        out.append({
            "name": name,
            "kind": kind,
            **about(name, found.stores.get(name, []), known),
            "rows": len(rows),
            "dates": _ends(r["finished"][:10] for r in rows if r.get("finished")),
            "machines": distinct(r.get("machine") for r in rows),
            "versions": distinct(r.get("version") for r in rows),
            "cautions": notes,
            "legend": legend,
            "columns": [[heading, key] for heading, key, _ in columns],
            "lines": [
                {**_short(record), "cells": [text(line) for *_, text in columns]}
                for line, record in zip(lines, records(lines), strict=True)
            ],
        })  # fmt: skip
    return out


def about(name: str, stores: Sequence[str], known: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Title of an experiment, the commands that make its rows and that print them; ``known``: :func:`presets`."""
    store = stores[0] if stores else "runs/sweep.sqlite"
    preset, title = known.get(name, (None, name))
    read = f"lotion leaderboard --store {store} --experiment {name}"
    return {
        "title": title,
        "stores": list(stores),
        "command": f"lotion sweep {preset} --only {name}" if preset else read,
        "print": read,
    }


def presets() -> dict[str, tuple[str, str]]:
    """Preset and title of every experiment that comes with the package; empty without the extra that reads them."""
    from ..sweep import config

    try:
        return {e.name: (preset, e.title) for preset in config.presets() for e in config.load(preset)}
    except ImportError:
        return {}


def _lines(name: str, rows: list[dict[str, Any]]) -> tuple[list[Any], list[str]]:
    kinds = {r["kind"] for r in rows}
    if "estimator" in kinds:
        return estimator_lines(rows, name), []
    if "minima" in kinds:
        return minima_lines(rows, name), []
    try:
        return boards_of(rows, [name])
    except ValueError:
        return [], []  # Only tuning runs: nothing to compare yet.


def _form(line: Any) -> tuple[str, tuple[Column, ...], str]:
    if isinstance(line, EstimatorLine):
        return "estimator", ESTIMATORS, WORDS["estimator"]
    if isinstance(line, MinimaLine):
        return "minima", MINIMA, WORDS["minima"]
    keys = SORTED_BY[type(line)]
    columns = tuple((heading, key, text) for key, (heading, text) in zip(keys, COLUMNS[type(line)], strict=True))
    return ("train" if isinstance(line, Line) else "round"), columns, LEGENDS[type(line)]


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without missing values, and floats to six digits: a page holds thousands of them."""
    kept = {k: v for k, v in record.items() if v is not None and v != ""}
    return {k: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for k, v in kept.items()}


def _ends(dates: Any) -> list[str]:
    found = sorted(set(dates))
    return list(dict.fromkeys([found[0], found[-1]])) if found else []
