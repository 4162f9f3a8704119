"""The command ``lotion figures``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from .options import DEFAULT_STORE, STORE_HELP


@dataclass(frozen=True)
class Figures:
    """Draw the figures of stored runs: loss curves, λ sensitivity, width sweep, rounding schemes, estimators, minima.

    Example: lotion figures --store runs/sweep.sqlite --out figures
    """

    store: Annotated[Path, tyro.conf.arg(help=STORE_HELP)] = DEFAULT_STORE
    out: Annotated[Path, tyro.conf.arg(help="folder for the figures")] = Path("figures")

    def run(self, console: Console) -> int:
        from ..figures.sweeps import draw_all
        from ..sweep.results import stored_rows

        for path in draw_all(stored_rows(self.store), self.out):
            print(path)
        return 0


COMMAND = Figures
