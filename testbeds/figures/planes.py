"""Figures of two-dimensional slices: surfaces, flows, minima and trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lotion_theory.landscape import Minima, Slice2D, Trajectory

from .style import BLACK, GREY, METHODS, VERMILLION, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = ("$w_1$", "$w_2$")
PANELS = (("loss", "float"), ("quantized", "raw quantized"), ("smoothed", "smoothed"))


def figure_2d(
    s: Slice2D, rays: np.ndarray | None = None, lattice: np.ndarray | None = None, title: str = "", labels=AXES
) -> Figure:
    """Float, raw quantized and smoothed loss side by side, on one colour scale with the same contour levels.

    Over the smoothed loss: ``rays``, (n, 2) directions from 0 on which the quantized points of a moving lattice lie, or
    ``lattice``, the (n, 2) points of a fixed one.
    """
    with styled():
        figure, axes = new_figure(1, 3, 2.75 if title else 2.55, compressed=True, sharex=True, sharey=True)
        levels = _levels(s)
        for k, (ax, (name, text)) in enumerate(zip(axes[0], PANELS, strict=True)):
            image = _surface(ax, s, getattr(s, name), levels, contours=name != "quantized")
            ax.set_xlabel(labels[0])
            panel(ax, k, text)
        axes[0, 0].set_ylabel(labels[1])
        _draw_quantized(axes[0, 2], s, rays, lattice)
        _bar(figure, image, axes[0].tolist(), levels)
        if title:
            figure.suptitle(title)
        return figure


def figure_fields(
    s: Slice2D,
    minimum: np.ndarray | None = None,
    rays: np.ndarray | None = None,
    lattice: np.ndarray | None = None,
    labels=AXES,
) -> Figure:
    """Where each method flows: stream lines of minus its field, over the smoothed loss.

    ``minimum``: the least quantized point, drawn as a star. ``rays``, ``lattice``: as for :func:`figure_2d`.
    """
    names = list(s.fields)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with styled():
        figure, axes = new_figure(rows, columns, 2.33 * rows + 0.1, compressed=True, sharex=True, sharey=True)
        levels = _levels(s)
        for ax in axes.ravel()[len(names) :]:
            ax.set_axis_off()
        for k, (ax, name) in enumerate(zip(axes.ravel(), names, strict=False)):
            image = _surface(ax, s, s.smoothed, levels, contours=False)
            _draw_quantized(ax, s, rays, lattice)
            down = -s.fields[name]
            ax.streamplot(
                s.field_s, s.field_t, down[..., 0], down[..., 1], color=BLACK, linewidth=0.8, arrowsize=0.6,
                density=0.85, arrowstyle="-|>", zorder=4,
            )  # fmt: skip
            if minimum is not None:
                ax.plot(*np.ravel(minimum)[:2], **_STAR)
            look = METHODS[name]
            panel(ax, k, f"{look.label}, $\\lambda={s.strength:g}$" if name.startswith("cage") else look.label)
            _frame(ax, s)
        _label(axes, labels)
        _bar(figure, image, axes.ravel().tolist(), levels)
        return figure


def figure_minima(
    slices: Sequence[Slice2D],
    minima: Sequence[Minima],
    titles: Sequence[str],
    rays: Sequence[np.ndarray | None] = (),
    lattices: Sequence[np.ndarray | None] = (),
    labels=AXES,
) -> Figure:
    """All local minima over the smoothed loss, one panel per slice.

    ``rays``, ``lattices``: the quantized points of each, as for :func:`figure_2d`.
    """
    with styled():
        figure, axes = new_figure(1, len(slices), 3.75, compressed=True, sharex=True, sharey=True)
        levels = _levels(slices[0])
        for k, (ax, s, found) in enumerate(zip(axes[0], slices, minima, strict=True)):
            image = _surface(ax, s, s.smoothed, levels)
            _draw_quantized(ax, s, rays[k] if k < len(rays) else None, lattices[k] if k < len(lattices) else None)
            points = found.points.reshape(len(found), -1)
            ax.plot(*points[1:, :2].T, **_CIRCLE, label="local minimum")
            ax.plot(*points[:1, :2].T, **_STAR, label="global minimum")
            panel(ax, k, titles[k])
        _label(axes, labels)
        _bar(figure, image, axes[0].tolist(), levels)
        handles: dict[str, Any] = {}
        for ax in axes[0]:
            handles.update(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
        return figure


def figure_trajectories(
    s: Slice2D, paths: Sequence[Trajectory], best: tuple[np.ndarray, float] | None = None, window: int = 15, labels=AXES
) -> Figure:
    """Paths of gradient descent over the smoothed loss, and the quantized loss along them.

    The loss is drawn pale at every step and full as its median over ``window`` steps, since straight-through methods
    flicker between lattice points. ``best``: point and value of the least quantized loss there is.
    """
    with styled():
        figure, axes = new_figure(1, 2, 3.75, width_ratios=(1, 1))
        left, right = axes[0]
        _surface(left, s, s.smoothed, _levels(s))
        left.set(xlabel=labels[0], ylabel=labels[1])
        panel(left, 0, "paths over the smoothed loss")
        for path in paths:
            look = METHODS[path.method]
            way = path.positions.reshape(len(path.positions), -1)[:, :2]
            wild = path.method in ("rtn_straight_through", "straight_through")
            left.plot(
                *way.T,
                color=look.color,
                ls="-" if wild else look.dash,
                lw=0.7 if wild else 1.7,
                zorder=3 if wild else 4,
            )
            left.plot(*way[-1], marker=look.marker, ms=7, mfc=look.color, mec="white", mew=0.9, zorder=6)
            steps = np.arange(len(way))
            right.plot(steps, path.quantized, color=look.color, lw=0.6, alpha=0.35, zorder=2)
            right.plot(
                steps, _median(path.quantized, window), color=look.color, ls=look.dash, lw=1.9, marker=look.marker,
                ms=5, markevery=(len(way) // 12, max(1, len(way) // 5)), mec="white", mew=0.6, label=look.label,
                zorder=3,
            )  # fmt: skip
        left.plot(*paths[0].positions[0].ravel()[:2], **{**_CIRCLE, "ms": 7, "zorder": 7}, label="start")
        if best is not None:
            left.plot(*np.ravel(best[0])[:2], **{**_STAR, "ms": 18, "zorder": 5}, label="global minimum")
            right.axhline(best[1], color=BLACK, lw=1.0, ls=(0, (2, 2)), label="global minimum")
        left.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")
        right.set(xlabel="step", ylabel=r"quantized loss $L(\mathrm{cast}(w))$", yscale="log")
        _plain_log(right)
        right.set_xlim(0, max(len(p.quantized) for p in paths) - 1)
        panel(right, 1, "quantized loss along the paths")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return figure


_STAR = {"ls": "none", "marker": "*", "ms": 12, "mfc": VERMILLION, "mec": "white", "mew": 0.8, "zorder": 6}
_CIRCLE = {"ls": "none", "marker": "o", "ms": 5.5, "mfc": "white", "mec": BLACK, "mew": 1.2, "zorder": 6}


def _plain_log(ax: Any) -> None:
    """Decimal labels at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _median(values: np.ndarray, window: int) -> np.ndarray:
    """Running median, the window cut off at the ends."""
    half = window // 2
    return np.array([np.median(values[max(0, k - half) : k + half + 1]) for k in range(len(values))])


def _levels(s: Slice2D) -> np.ndarray:
    """Contour levels that thin out upwards, so that the valley and its walls are both seen."""
    low = min(float(a.min()) for a in (s.loss, s.quantized, s.smoothed))
    high = max(float(np.quantile(a, 0.97)) for a in (s.loss, s.smoothed))
    if 0 <= low < 0.02 * high:
        low = 0.0
    return low + (high - low) * np.linspace(0, 1, 13) ** 2.3


def _surface(ax: Any, s: Slice2D, values: np.ndarray, levels: np.ndarray, contours: bool = True) -> Any:
    import matplotlib as mpl

    # Light enough everywhere for lines and markers on top.
    ramp = mpl.colors.ListedColormap(mpl.colormaps["YlGnBu_r"](np.linspace(0.32, 1.0, 256)))
    norm = mpl.colors.PowerNorm(0.5, levels[0], levels[-1], clip=True)
    half_s, half_t = (s.s[1] - s.s[0]) / 2, (s.t[1] - s.t[0]) / 2
    box = (s.s[0] - half_s, s.s[-1] + half_s, s.t[0] - half_t, s.t[-1] + half_t)
    # One bitmap in the vector formats: thousands of little squares would show seams.
    image = ax.imshow(values, extent=box, origin="lower", cmap=ramp, norm=norm, interpolation="nearest", aspect="equal")
    if contours:
        ax.contour(s.s, s.t, values, levels=levels[1:], colors=BLACK, linewidths=0.5, alpha=0.5)
    _frame(ax, s)
    return image


def _frame(ax: Any, s: Slice2D) -> None:
    ax.set(xlim=(s.s[0], s.s[-1]), ylim=(s.t[0], s.t[-1]))
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)


def _label(axes: Any, labels: tuple[str, str]) -> None:
    for column in axes.T:
        # The last panel of a column that ends early stands for the shared axis.
        lowest = [ax for ax in column if ax.axison][-1]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel(labels[0])
    for ax in axes[:, 0]:
        ax.set_ylabel(labels[1])


def _bar(figure: Figure, image: Any, axes: list[Any], levels: np.ndarray) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=26, extend="max")
    bar.set_label("loss (same scale in all panels)" if len(axes) > 3 else "loss")
    bar.outline.set_visible(False)
    shown = levels[[0, 4, 6, 8, 10, 12]]
    bar.set_ticks(shown.tolist(), labels=[f"{v:.2g}" for v in shown])
    bar.minorticks_off()


def _draw_quantized(ax: Any, s: Slice2D, rays: np.ndarray | None, lattice: np.ndarray | None) -> None:
    """Quantized points: rays, left open around 0 where they would merge into a blot, or dots."""
    if rays is not None:
        reach = 4 * max(abs(s.s).max(), abs(s.t).max())
        # Many rays are drawn thinner and start further out.
        crowd = max(1.0, len(rays) / 28)
        gap = 0.05 * crowd * (s.s[-1] - s.s[0])
        lines = np.array([np.outer((gap / np.linalg.norm(r), reach / np.abs(r).max()), r) for r in rays])
        for k, line in enumerate(lines):
            ax.plot(
                *line.T,
                color=GREY,
                lw=0.7 / crowd**0.5,
                ls=(0, (4, 2)),
                zorder=3,
                label=None if k else "quantized points",
            )
    if lattice is not None:
        inside = (np.abs(lattice - [s.s.mean(), s.t.mean()]) <= [np.ptp(s.s) / 2, np.ptp(s.t) / 2]).all(axis=1)
        ax.plot(*lattice[inside].T, ls="none", marker=".", ms=3.5, color=BLACK, zorder=3, label="lattice points")
