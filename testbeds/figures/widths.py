"""How the advantage of a method changes with the width of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..results.rows import Row, final_runs
from ..results.widths import width_ratios
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
    runs = [r for r in final_runs(rows, "train") if width in r["config"]["problem"]]
    if not runs:
        raise ValueError(f"width={width!r}: no final run's problem has this setting")
    formats = list(dict.fromkeys(str(r["config"]["format"]) for r in runs))
    labels, ratios = width_ratios(runs, method, references, width)
    shown = [name for name in references if any(reference == name for reference, _ in ratios)]
    if not shown:
        raise ValueError(f"method={method!r}, references={tuple(references)!r}: never run on the same seeds")
    style = looks(formats)
    with styled():
        figure, axes = new_figure(1, len(shown), 2.9, sharey=True)
        for at, (ax, reference) in enumerate(zip(axes[0], shown, strict=True)):
            for n, format in enumerate(formats):
                line = sorted(ratios.get((reference, format), {}).items())
                if line:
                    x = dodged([k for k, _ in line], n, len(formats), logarithmic=True)
                    draw_intervals(ax, x, [i for _, i in line], style[format])
            ax.axhline(1.0, color=GREY, lw=0.9, zorder=1)
            ax.set(xscale="log", yscale="log", xlabel=f"width {width}")
            ticks_at(ax.xaxis, sorted({k for (r, _), line in ratios.items() if r == reference for k in line}))
            panel(ax, at, f"{labels[method]} over {labels[reference]}")
        axes[0, 0].set_ylabel("ratio of RTN losses")
        plain_numbers(axes[0, 0].yaxis)
        legend_below(figure, axes[0])
    return figure
