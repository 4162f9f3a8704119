"""Figures of landscapes, drawn from the arrays of :mod:`lotion_theory.landscape` and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lotion_theory.landscape import Slice1D

from .style import BLACK, BLUE, GREY, LOSSES, METHODS, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_KINKS = 40
"""Lattices finer than this along a slice get no kink marks: they would merge into a bar."""


def figure_1d(slices: Slice1D | Sequence[Slice1D], titles: Sequence[str] = (), xlabel: str = "weight $w$") -> Figure:
    """Losses along a line, above the slopes that methods follow there; one column per slice.

    Slices without fields get the upper panels only. Marks on the upper edge are the kinks of the smoothed loss.
    """
    slices = [slices] if isinstance(slices, Slice1D) else list(slices)
    rows = 2 if any(s.fields for s in slices) else 1
    with styled():
        figure, axes = new_figure(rows, len(slices), 2.45 * rows + 0.75, sharex="col")
        for column, s in enumerate(slices):
            _losses_1d(axes[0, column], s)
            panel(axes[0, column], column, titles[column] if column < len(titles) else "losses")
            if rows == 2:
                _slopes_1d(axes[1, column], s)
                panel(axes[1, column], len(slices) + column, "slopes followed")
            axes[-1, column].set_xlabel(xlabel)
        axes[0, 0].set_ylabel("loss")
        if rows == 2:
            axes[1, 0].set_ylabel("slope")
        _legends(figure, axes)
        return figure


def _legends(figure: Figure, axes: Any) -> None:
    """The losses' legend above all panels, the methods' below."""
    places: Any = ("outside upper center", "outside lower center")
    for row, place in zip(axes, places, strict=False):
        handles: dict[str, Any] = {}
        for ax in row:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            list(handles.values()), list(handles), loc=place, ncols=3 if place.endswith("upper center") else 5
        )


def _losses_1d(ax: Any, s: Slice1D) -> None:
    for order, (name, width) in enumerate(
        (("quantized", 1.2), ("loss", 1.6), ("smoothed", 2.4), ("second_order", 1.5)), start=2
    ):
        values = getattr(s, name)
        if values is not None:
            look = LOSSES[name]
            ax.plot(s.t, values, color=look.color, ls=look.dash, lw=width, label=look.label, zorder=order)
    shown = np.concatenate([s.loss, s.smoothed])
    top, bottom = shown.max(), min(shown.min(), s.quantized.min())
    ax.set(xlim=(s.t[0], s.t[-1]), ylim=(bottom - 0.06 * (top - bottom), top + 0.04 * (top - bottom)))
    _mark_kinks(ax, s)


def _mark_kinks(ax: Any, s: Slice1D) -> None:
    if 0 < len(s.kinks) <= MOST_KINKS:
        ax.plot(
            s.kinks, np.ones_like(s.kinks), ls="none", marker="v", ms=4, color=BLUE, clip_on=False,
            transform=ax.get_xaxis_transform(), label="kink of the smoothed loss",
        )  # fmt: skip


def _slopes_1d(ax: Any, s: Slice1D) -> None:
    ax.axhline(0, color=GREY, lw=0.8)
    for name, values in s.fields.items():
        look, main = METHODS[name], name == "lotion"
        label = f"{look.label}, $\\lambda={s.strength:g}$" if name.startswith("cage") else look.label
        ax.plot(
            s.t, values, color=look.color, ls=look.dash, lw=2.4 if main else 1.5, label=label, zorder=4 if main else 3
        )
    # CAGE's sawtooth may be far higher than everything else: it is cut off rather than allowed to flatten the rest.
    others = [v for k, v in s.fields.items() if not k.startswith("cage")] or list(s.fields.values())
    reach = 1.2 * np.quantile(np.abs(np.concatenate(others)), 0.99)
    ax.set_ylim(-reach, reach)


def figure_lambda(s: Slice1D, xlabel: str = "weight $w$", title: str = "") -> Figure:
    """The losses between float (λ = 0) and smoothed (λ = 1), and the path of their lowest point on the slice."""
    import matplotlib as mpl

    with styled():
        figure, axes = new_figure(1, 2, 3.1, width_ratios=(1.7, 1))
        left, right = axes[0]
        shades = mpl.colormaps["viridis_r"](np.linspace(0.12, 1.0, len(s.lambdas)))
        lowest = s.blends.argmin(axis=1)
        for shade, values in zip(shades, s.blends, strict=True):
            left.plot(s.t, values, color=shade, lw=1.5)
        places, heights = s.t[lowest], s.blends[np.arange(len(lowest)), lowest]
        left.scatter(places, heights, c=shades, edgecolors=BLACK, linewidths=0.8, s=24, zorder=5, label="lowest point")
        left.set(xlabel=xlabel, ylabel=r"$L+\lambda\,(L_{\mathrm{smooth}}-L)$", xlim=(s.t[0], s.t[-1]))
        _mark_kinks(left, s)
        left.legend(loc="upper center")
        panel(left, 0, title or "from float to smoothed")
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), mpl.colors.ListedColormap(shades))
        bar = figure.colorbar(scale, ax=left, pad=0.02, aspect=28)
        bar.set_label(r"weight $\lambda$ of the smoothing")
        bar.outline.set_visible(False)
        for kink in s.kinks[(s.kinks > places.min() - 0.1) & (s.kinks < places.max() + 0.1)]:
            right.axhline(kink, color=GREY, lw=1.0, ls=(0, (2, 2)), label="lattice level")
        right.plot(s.lambdas, places, color=BLUE, marker="D", ms=4, lw=1.5)
        right.set(xlabel=r"weight $\lambda$", ylabel="lowest point", xlim=(-0.02, 1.02))
        if right.get_legend_handles_labels()[1]:
            handles, names = right.get_legend_handles_labels()
            right.legend(handles[:1], names[:1], loc="upper right")
        panel(right, 1, "path of the minimum")
        return figure
