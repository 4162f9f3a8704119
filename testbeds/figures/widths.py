"""How the advantage of a method changes with the width of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..results.rows import Row, at_best, excess, grouped, method_name, of_kind, ratio
from ..results.statistics import Interval
from .series import dodged, draw_intervals, legend_below, looks, plain_numbers, ticks_at
from .style import GREY, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Ratio of the RTN loss of one method to that of another, trained on the same instances, against the width k of a "
    "two-layer network; below the line at 1 the first method is better. Geometric means of the ratios over seeds with "
    "95 % t intervals, of losses above the smallest possible where that is known; each method at its tuned settings. "
    "Points of different formats are moved apart sideways."
)


def figure_widths(
    rows: Iterable[Row], method: str = "lotion", references: Sequence[str] = ("qat", "ptq"), width: str = "k"
) -> Figure:
    """One panel per reference: ratio of RTN losses against the problem's setting ``width``, a line per format.

    ``method`` and ``references``: labels or names of methods. Takes final runs of problems that have the setting.
    Raises ValueError where there are none, for a method that is nowhere, and for a name that several methods share.
    """
    runs = [r for r in of_kind(rows, "train") if r["phase"] == "final" and width in r["config"]["problem"]]
    if not runs:
        raise ValueError(f"width={width!r}: no final run's problem has this setting")
    formats = list(dict.fromkeys(str(r["config"]["format"]) for r in runs))
    found: dict[tuple[str, str], dict[float, Interval]] = {}
    names: dict[str, str] = {}
    places = grouped(runs, lambda r: (str(r["config"]["format"]), r["config"]["problem"][width]))
    for (format, k), mine in places.items():
        methods = at_best(mine)
        picked = {name: _pick(name, methods) for name in (method, *references)}
        for reference in references:
            a, b = picked[method], picked[reference]
            value = ratio(excess(methods[a]), excess(methods[b])) if a and b else None
            if value is not None:
                names |= {method: a or method, reference: b or reference}
                found.setdefault((reference, format), {})[k] = value
    shown = [name for name in references if any(reference == name for reference, _ in found)]
    if not shown:
        raise ValueError(f"method={method!r}, references={tuple(references)!r}: never run on the same seeds")
    style = looks(formats)
    with styled():
        figure, axes = new_figure(1, len(shown), 2.9, sharey=True)
        for at, (ax, reference) in enumerate(zip(axes[0], shown, strict=True)):
            for n, format in enumerate(formats):
                line = sorted(found.get((reference, format), {}).items())
                if line:
                    x = dodged([k for k, _ in line], n, len(formats), logarithmic=True)
                    draw_intervals(ax, x, [i for _, i in line], style[format])
            ax.axhline(1.0, color=GREY, lw=0.9, zorder=1)
            ax.set(xscale="log", yscale="log", xlabel=f"width {width}")
            ticks_at(ax.xaxis, sorted({k for (r, _), line in found.items() if r == reference for k in line}))
            panel(ax, at, f"{names[method]} over {names[reference]}")
        axes[0, 0].set_ylabel("ratio of RTN losses")
        plain_numbers(axes[0, 0].yaxis)
        legend_below(figure, axes[0])
    return figure


def _pick(name: str, methods: dict[str, list[Row]]) -> str | None:
    """The label that is ``name``, else the only one of a method of that name, None where there is none."""
    if name in methods:
        return name
    found = [label for label, runs in methods.items() if method_name(runs[0]["config"]["method"]) == name]
    if len(found) > 1:
        raise ValueError(f"{name!r} names several methods; valid: {', '.join(found)}")
    return found[0] if found else None
