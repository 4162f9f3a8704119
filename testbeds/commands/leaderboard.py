"""The command ``lotion leaderboard``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from .options import DEFAULT_STORE, STORE_HELP


@dataclass(frozen=True)
class Leaderboard:
    """Print tables from stored runs: losses with 95 % intervals, paired tests, wall time, or the tuning grids.

    Example: lotion leaderboard --store results/sweeps/paper.jsonl.xz --experiment rotated --output markdown
    """

    store: Annotated[Path, tyro.conf.arg(help=STORE_HELP)] = DEFAULT_STORE
    experiment: Annotated[tuple[str, ...], tyro.conf.arg(help="names; default: all", help_behavior_hint="")] = ()
    reference: Annotated[str | None, tyro.conf.arg(help="method to compare with; default: qat")] = None
    tuning: Annotated[bool, tyro.conf.arg(help="show the tuning grids instead")] = False
    output: Annotated[Literal["text", "markdown", "csv", "json"], tyro.conf.arg(help="form of the tables")] = "text"

    def run(self, console: Console) -> int:
        from ..text.experiments import print_boards

        print_boards(self.store, self.experiment, console, self.reference, self.tuning, self.output)
        return 0


COMMAND = Leaderboard
