"""Figures across experiments on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import kinds
from ..results.rows import grouped
from ..results.studies import Figure
from .section import Section


def figures(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """Every figure that the rows allow, as their kinds of experiment make them, with its ``experiment``."""
    out: list[Figure] = []
    for experiment, mine in grouped(rows, lambda r: r["experiment"]).items():
        ran = {r["kind"] for r in mine if r["status"] == "ok"}
        for name in kinds.names(lambda kind: kind.figures):
            make = kinds.kind(name).figures
            if name in ran and make is not None:
                out += [{**figure, "experiment": experiment} for figure in make(mine)]
    return out


SECTION = Section(
    "figures",
    "Figures across experiments",
    "Figures",
    data=lambda contents: {"figures": figures(contents.others)},
    template="studies",
)
