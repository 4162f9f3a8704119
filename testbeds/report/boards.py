"""Leaderboards as data of the page: every experiment's lines, texts as ``lotion leaderboard`` prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..results.rows import grouped
from ..text.boards import records
from ..text.experiments import Boards, shown_kind
from .contents import Contents
from .curves import training_curves
from .section import Section
from .sources import distinct

DIGITS = 6


def entries(contents: Contents) -> dict[str, Any]:
    """Leaderboards of every experiment that is none of language models, and training curves."""
    boards = experiments(contents.others, contents.material.stores, contents.other_boards)
    return {"boards": boards, "curves": training_curves(contents.others)}


def experiments(
    rows: Sequence[dict[str, Any]], stores: Mapping[str, Sequence[str]], boards: Boards
) -> list[dict[str, Any]]:
    """One entry per experiment of ``boards``: what it is, the rows behind it, and its table.

    ``stores``: per experiment, those that hold its rows.
    """
    out = []
    by_name = grouped(rows, lambda r: r["experiment"])
    known = presets()
    # In the order of the presets, which goes from the main question to its variations.
    for name in sorted(boards, key=lambda name: list(known).index(name) if name in known else len(known)):
        lines, notes = boards[name]
        mine = by_name[name]
        kind, table = shown_kind(mine), lines[0].table
        assert kind is not None, "an experiment with lines has a kind with a table"
        out.append({
            "name": name,
            "kind": kind.name,
            "words": kind.words,
            "curve": kind.curve,
            **about(name, stores.get(name, []), known),
            "rows": len(mine),
            "dates": _ends(r["finished"][:10] for r in mine if r.get("finished")),
            "machines": distinct(r.get("machine") for r in mine),
            "versions": distinct(r.get("version") for r in mine),
            "cautions": notes,
            "legend": table.legend,
            "columns": [[column.heading, column.key] for column in table.columns],
            "lines": [
                {**_short(record), "cells": [column.text(line) for column in table.columns]}
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


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without missing values, and floats to six digits: a page holds thousands of them."""
    kept = {k: v for k, v in record.items() if v is not None and v != ""}
    return {k: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for k, v in kept.items()}


def _ends(dates: Any) -> list[str]:
    found = sorted(set(dates))
    return list(dict.fromkeys([found[0], found[-1]])) if found else []


SECTION = Section(
    "leaderboards",
    "Leaderboards",
    "Leaderboards",
    data=entries,
    template="boards",
    missing={"boards": "No experiments stored: lotion sweep quick makes them (--store)."},
)
