"""The verdict matrix as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lotion_theory.theory.verification import NO_FORMAT, Row

from .style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe-Ito blue and vermilion: apart in every common colour blindness, and in grey.
HOLDS, FAILS, ABSENT = "#56B4E9", "#D55E00", "#F4F4F4"
LETTERS = {"proved": "P", "exhaustive": "E", "property": "T"}


def figure_verdicts(rows: list[Row]) -> Figure:
    """Formats down, claims across; colour says the verdict, letters the evidence (P proved, E exhaustive, T tested)."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    claims = list(dict.fromkeys(r.claim for r in rows if r.format != NO_FORMAT))
    formats = [f for f in dict.fromkeys(r.format for r in rows) if f != NO_FORMAT]
    cells: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        cells.setdefault((r.format, r.claim), []).append(r)
    with styled():
        figure = Figure(figsize=(8.2, 0.8 + 0.215 * len(formats)), layout="constrained")
        ax = figure.add_subplot()
        for y, name in enumerate(formats):
            for x, claim in enumerate(claims):
                found = cells.get((name, claim), [])
                failed = any(r.verdict == "fails" for r in found)
                colour = ABSENT if not found else FAILS if failed else HOLDS
                ax.add_patch(Rectangle((x, y), 0.94, 0.9, facecolor=colour, linewidth=0))
                letters = "".join(dict.fromkeys(LETTERS[r.evidence] for r in found))
                ax.text(
                    x + 0.47,
                    y + 0.47,
                    letters,
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color="white" if failed else "black",
                )
        ax.set_xlim(0, len(claims))
        ax.set_ylim(len(formats), 0)
        ax.set_xticks([x + 0.47 for x in range(len(claims))], claims, fontsize=7.5)
        ax.set_yticks([y + 0.45 for y in range(len(formats))], formats, fontsize=7.5)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.grid(False)
        for side in ax.spines.values():
            side.set_visible(False)
        handles = [
            Patch(color=HOLDS, label="holds"),
            Patch(color=FAILS, label="fails (counterexample found)"),
            Patch(color=ABSENT, label="does not apply"),
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=3,
            fontsize=8,
            frameon=False,
            title="P proved   E exhaustive, exact   T property-tested",
            title_fontsize=8,
        )
    return figure
