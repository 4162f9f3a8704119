"""What notebooks show: figures as small PNG files, tables and single numbers as Markdown. Needs IPython when called."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from .figures.style import styled
from .results.statistics import Interval

if TYPE_CHECKING:
    from IPython.display import Image, Markdown
    from matplotlib.figure import Figure

COLOURS = 96
"""Colours kept of a figure: enough for flat plots and maps, and a third of the bytes."""


def picture(figure: Figure, alt: str, dpi: int = 110) -> Image:
    """The figure as a PNG of :data:`COLOURS` colours, without date or version; ``alt``: what it shows, in words.

    Raises ValueError for an empty ``alt``.
    """
    from IPython.display import Image
    from PIL import Image as Pixels

    if not alt.strip():
        raise ValueError(f"alt={alt!r}: a picture needs a description, for those who cannot see it")
    full, small = io.BytesIO(), io.BytesIO()
    with styled():
        figure.savefig(full, format="png", dpi=dpi, metadata={"Software": None})
    pixels = Pixels.open(full).convert("RGB")
    pixels.quantize(COLOURS, dither=Pixels.Dither.NONE).save(small, format="png", optimize=True)
    return Image(small.getvalue(), format="png", alt=alt)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], digits: int = 3) -> Markdown:
    """A Markdown table: text to the left, numbers to the right with ``digits`` significant ones, None as a blank.

    An :class:`~testbeds.results.statistics.Interval` is written with its bounds. Raises ValueError for a row whose
    length is not that of the header.
    """
    from IPython.display import Markdown

    rows = [list(row) for row in rows]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
    # A column is numeric if all it holds are numbers.
    right = [
        all(v is None or (isinstance(v, Real | Interval) and not isinstance(v, bool)) for v in c)
        for c in zip(*rows, strict=True)
    ] or [False] * len(header)
    lines = [_line([_cell(h, digits) for h in header]), _line(["---:" if r else "---" for r in right])]
    lines += [_line([_cell(v, digits) for v in row]) for row in rows]
    return Markdown("\n".join(lines))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, Interval):
        low, high = value.low, value.high
        ends = "" if low is None or high is None else f" [{low:.{digits}g}, {high:.{digits}g}]"
        return f"{value.value:.{digits}g}{ends}"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    # A vertical bar would end the cell.
    return f"{float(value):.{digits}g}" if isinstance(value, Real) else str(value).replace("|", "\\|")
