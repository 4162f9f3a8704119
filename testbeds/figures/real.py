"""Losses of real layers under each format and rounding rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .style import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = (
    ("rtn_relative", "round to nearest", "o", "#0072B2"),
    ("rr_relative", "randomized rounding (smoothed loss)", "s", "#E69F00"),
    ("conditional_relative", "conditional expectation", "^", "#009E73"),
)


def figure_real_losses(losses: list[dict[str, Any]]) -> Figure:
    """Reconstruction loss over output power, one panel per layer, formats down; a logarithmic axis."""
    layers = list(dict.fromkeys(r["layer"] for r in losses))
    formats = list(dict.fromkeys(r["format"] for r in losses))
    with styled():
        figure, axes = new_figure(1, len(layers), 1.4 + 0.22 * len(formats), width=8.2, sharey=True)
        for ax, layer in zip(axes[0], layers, strict=True):
            for key, label, marker, colour in SERIES:
                found = [
                    (formats.index(r["format"]), r[key]) for r in losses if r["layer"] == layer and r[key] is not None
                ]
                ax.plot(
                    [v for _, v in found],
                    [y for y, _ in found],
                    marker,
                    color=colour,
                    label=label,
                    markersize=4.5,
                    fillstyle="full",
                )
            ax.set_xscale("log")
            ax.set_title(f"layer {layer}", fontsize=9)
            ax.set_yticks(range(len(formats)), formats, fontsize=7.5)
            ax.grid(True, axis="both", alpha=0.3)
            ax.tick_params(axis="x", labelsize=7.5)
        axes[0][0].invert_yaxis()
        figure.supxlabel("output error over output power of the layer (no unit)", fontsize=9)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure
