"""One look for every figure: colours that survive colour blindness and grey, sizes for a page, reproducible files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotion_theory.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette (jfly.uni-koeln.de/color), distinguishable under all common colour vision deficiencies.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"

WIDTH = 7.2
"""Inches: a text block of two columns; 800 pixels on a web page leave the 9-point type readable."""

RC: Any = {
    "figure.dpi": 100,
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "figure.titlesize": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "mathtext.fontset": "dejavusans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    # Text as outlines or embedded TrueType: the file looks alike everywhere, whatever fonts are installed.
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "svg.hashsalt": "lotion-theory",
}


@dataclass(frozen=True)
class Look:
    """How one method or loss is drawn, everywhere; ``short`` is for tight legends."""

    label: str
    short: str
    color: str
    dash: Any
    marker: str


LOSSES = {
    "loss": Look("float loss $L(w)$", "float", GREY, (0, (1, 1.2)), "o"),
    "quantized": Look(r"raw quantized $L(\mathrm{cast}(w))$", "raw quantized", BLACK, "-", "s"),
    "smoothed": Look(r"smoothed $\mathbb{E}\,L(\mathrm{RR}(w))$", "smoothed", BLUE, "-", "D"),
    "second_order": Look(r"second order $L+\frac{1}{2}\sum g\,\sigma^2$", "second order", ORANGE, (0, (5, 2)), "^"),
}

METHODS = {
    "float": Look("float training", "float", GREY, (0, (1, 1.2)), "o"),
    "rtn_straight_through": Look("STE (QAT)", "STE", VERMILLION, (0, (5, 1.5)), "s"),
    "straight_through": Look("RR-STE", "RR-STE", ORANGE, (0, (5, 1.5, 1, 1.5)), "^"),
    "detached_noise": Look("detached noise", "noise", YELLOW, (0, (3, 1, 1, 1, 1, 1)), "v"),
    "cage": Look("CAGE", "CAGE", GREEN, (0, (2, 1)), "P"),
    "cage_at_weights": Look("CAGE at $w$", "CAGE at w", PURPLE, (0, (2, 1)), "X"),
    "lotion_detached": Look("LOTION, detached", "LOTION detached", SKY, (0, (8, 2)), "d"),
    "lotion": Look("LOTION", "LOTION", BLUE, "-", "D"),
}


@contextmanager
def styled() -> Iterator[None]:
    """The style, for what is drawn or saved inside."""
    import matplotlib as mpl

    with mpl.rc_context(RC):
        yield


def new_figure(
    rows: int, columns: int, height: float, width: float = WIDTH, compressed: bool = False, **grid: Any
) -> tuple[Figure, Any]:
    """An empty figure with a 2-D array of axes, ``width`` by ``height`` inches; no window, no global state.

    ``compressed``: for panels of fixed aspect, which are then moved together.
    """
    from matplotlib.figure import Figure

    ratios = {"width_ratios": grid.pop("width_ratios")} if "width_ratios" in grid else {}
    figure = Figure(figsize=(width, height), layout="compressed" if compressed else "constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios, **grid)


def panel(ax: Any, index: int, title: str = "") -> None:
    """Title a panel ``(a) title``, flush left."""
    ax.set_title(f"({chr(ord('a') + index)}) {title}".rstrip(), loc="left")


def save(figure: Figure, stem: str | Path, dpi: int = 200) -> list[Path]:
    """Write ``stem.png``, ``stem.pdf`` and ``stem.svg`` and return their paths; folders are made as needed.

    No file holds a date, and the identifiers in SVG are salted alike, so that the same figure gives the same bytes with
    the same version of matplotlib.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    dates = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    paths = []
    with styled():
        for suffix, metadata in dates.items():
            path = stem.with_name(f"{stem.name}.{suffix}")
            with whole_file(path) as part:
                figure.savefig(part, format=suffix, dpi=dpi, metadata=metadata)
            # Panels stay where they are: finding their places takes as long as drawing them.
            figure.set_layout_engine(None)
            paths.append(path)
    return paths
