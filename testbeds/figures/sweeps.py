"""Every figure that a store's rows allow."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lotion_theory.files import file_name, write_text

from .. import kinds
from ..results.rows import Row, grouped
from .plain import pictures as plain_pictures
from .series import Picture
from .style import save

CAPTIONS = "captions.json"


def draw_all(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw what the rows of each experiment allow into ``out``; returns the paths, ``captions.json`` last.

    Each kind of experiment says which figures its runs have. Raises ValueError where there is nothing to draw.
    """
    from matplotlib import pyplot

    paths: list[Path] = []
    captions: dict[str, str] = {}
    for experiment, mine in grouped(rows, lambda r: r["experiment"]).items():
        for picture in _pictures(experiment, mine):
            name = file_name(_stem(*picture.name))
            if name in captions:  # Other labels that differ in signs which file names do not have.
                name = next(other for k in itertools.count(2) if (other := f"{name}-{k}") not in captions)
            paths += save(picture.figure, out / name)
            captions[name] = picture.caption
            pyplot.close(picture.figure)
    if not paths:
        raise ValueError("the store has no finished runs to draw")
    write_text(out / CAPTIONS, json.dumps(captions, indent=1, ensure_ascii=False) + "\n")
    return [*paths, out / CAPTIONS]


def _pictures(experiment: str, rows: Sequence[Row]) -> Iterator[Picture]:
    """Those of every kind that ran, a kind's own where it has such."""
    ran = {row["kind"] for row in rows if row["status"] == "ok"}
    for name in kinds.names():
        kind = kinds.kind(name)
        if name not in ran:
            continue
        if kind.pictures is not None:
            yield from kind.pictures(experiment, rows)
        elif kind.figures is not None:
            yield from plain_pictures(experiment, kind.figures(rows))


def _stem(*parts: str) -> str:
    """A file name from labels, as far as their letters go."""
    return "".join(c if c.isalnum() or c in "-." else "-" for c in "-".join(parts)).replace("--", "-")
