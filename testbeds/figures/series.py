"""How the methods of a sweep are drawn: one colour and marker each, intervals, and a legend beside the data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..results.statistics import Interval
from .style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Yellow is left out: on white it is too pale for lines.
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
MARKERS = ("D", "s", "P", "^", "X", "d", "o", "v", "<", ">", "p", "h", "*", "8", "H", "1")
PREFERRED = {
    "lotion": BLUE, "qat": VERMILLION, "rtn_straight_through": VERMILLION, "rat": ORANGE, "straight_through": ORANGE,
    "cage": GREEN, "ptq": BLACK, "rtn": BLACK, "float": GREY,
}  # fmt: skip
"""Colours that methods keep in all figures where no other variant of theirs has them."""

SUBS = ((0.4, tuple(range(1, 10))), (0.8, (1, 2, 3, 4, 6, 8)), (1.4, (1, 2, 5)), (2.2, (1, 3)), (4.0, (1,)))
"""Multiples of powers of ten that get a tick, on an axis of up to so many decades."""


class Picture(NamedTuple):
    """A figure for a file: ``name``: parts of the file's name, the experiment first; ``caption``: what it shows."""

    figure: Figure
    name: tuple[str, ...]
    caption: str


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look per label: eight colours with full lines, then the same with dashes; markers all differ.

    They follow the alphabet, so that figures of the same methods agree, and are returned in the order given. Raises
    ValueError for more labels than markers.
    """
    given = list(dict.fromkeys(labels))
    labels = sorted(given)
    if len(labels) > len(MARKERS):
        raise ValueError(f"{len(labels)} methods in one figure; valid: up to {len(MARKERS)}; leave some rows out")
    colours: dict[str, str] = {}
    for label in labels:
        wanted = PREFERRED.get(label.split(" (")[0].split(",")[0])
        if wanted is not None and wanted not in colours.values():
            colours[label] = wanted
    rest = [c for c in COLOURS if c not in colours.values()]
    others = [label for label in labels if label not in colours]
    for k, label in enumerate(others):
        colours[label] = rest[k] if k < len(rest) else COLOURS[(k - len(rest)) % len(COLOURS)]
    dashed = set(others[len(rest) :])
    return {
        label: Look(
            label, label, colours[label], (0, (4, 1.5)) if label in dashed else "-", MARKERS[labels.index(label)]
        )
        for label in given
    }


def marks(look: Look) -> dict[str, Any]:
    """The marker, for ``plot``; hollow for looks that repeat a colour."""
    return {"marker": look.marker, "ms": 4.5, "mfc": look.color if look.dash == "-" else "white"}


def draw_intervals(
    ax: Any, x: Sequence[float] | np.ndarray, found: Sequence[Interval | None], look: Look, **more: Any
) -> None:
    """A line through estimates, with bars where they have intervals; None is a gap. ``more``: for ``plot``."""
    at = np.array(x, dtype=np.float64)
    values = np.array([np.nan if i is None else i.value for i in found])
    low = np.array([np.nan if i is None or i.low is None else i.low for i in found])
    high = np.array([np.nan if i is None or i.high is None else i.high for i in found])
    given = {"ls": look.dash, "lw": 1.5, "zorder": 3, **marks(look), **more}
    ax.plot(at, values, color=look.color, label=look.label, **given)
    ax.vlines(at, low, high, color=look.color, lw=1.1, alpha=0.65, zorder=2.5)


def dodged(x: Sequence[float], k: int, count: int, logarithmic: bool, share: float = 0.3) -> np.ndarray:
    """Places of series ``k`` of ``count``: their bars stay apart, spread over ``share`` of the closest spacing."""
    at = np.log(np.array(x, dtype=np.float64)) if logarithmic else np.array(x, dtype=np.float64)
    spacing = np.diff(np.unique(at)).min() if len(np.unique(at)) > 1 else 0.1
    at = at + spacing * share * ((k + 0.5) / count - 0.5)
    return np.exp(at) if logarithmic else at


def ticks_at(axis: Any, places: Sequence[float], most: int = 9) -> None:
    """Ticks at these places, with plain numbers; of more than ``most`` only powers of ten are named, or every other."""
    tens = [v for v in places if v > 0 and math.log10(v).is_integer()]
    kept = set(places if len(places) <= most else tens if len(tens) > 1 else places[::2])
    axis.set_ticks(list(places), [f"{v:g}" if v in kept else "" for v in places])
    axis.set_ticks([], minor=True)


def plain_numbers(axis: Any) -> None:
    """Numbers such as 0.03 rather than powers on a logarithmic axis, with more of them on a short one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades > 4:
        return
    if decades <= 0.3:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=next(subs for most, subs in SUBS if decades <= most)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axes: Iterable[Any], extra: Sequence[Any] = ()) -> None:
    """One legend of all series below the panels, in as many columns as fit; ``extra``: further handles.

    The figure grows by the legend's height.
    """
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles.update({handle.get_label(): handle for handle in extra})
    # About fifteen letters an inch at this size, and half an inch for the sample of the line.
    longest = max(map(len, handles), default=1)
    columns = max(1, int(figure.get_figwidth() / (0.6 + longest / 15)))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.19 * math.ceil(len(handles) / columns))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=min(columns, len(handles)))
