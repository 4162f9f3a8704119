"""The command ``lotion landscape``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from .options import FORMAT_HELP


@dataclass(frozen=True)
class Landscape:
    """Draw the loss landscape of a format: raw, smoothed, second-order losses, gradient fields, minima, trajectories.

    Writes PNG, PDF and SVG files and prints their paths.

    Example: lotion landscape int4 --dimension 2 --out figures
    """

    format: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FORMAT", help=FORMAT_HELP)]
    dimension: Annotated[Literal[1, 2], tyro.conf.arg(help="one weight (and a line through a block), or a plane")] = 1
    out: Annotated[Path, tyro.conf.arg(help="folder for the figures")] = Path("figures")
    seed: Annotated[int, tyro.conf.arg(help="draws the quadratic and the roundings")] = 0
    points: Annotated[int | None, tyro.conf.arg(help="resolution per axis")] = None

    def run(self, console: Console) -> int:
        from ..figures import landscape_figures

        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: must not be negative")
        if self.points is not None and self.points < 9:
            raise ValueError(f"--points {self.points}: must be at least 9")
        with console.status("drawing") as status:
            paths = landscape_figures(
                self.format,
                self.out,
                self.dimension,
                self.seed,
                self.points,
                progress=lambda name: status.update(f"drawing {name}"),
            )
        for path in paths:
            print(path)
        return 0


COMMAND = Landscape
