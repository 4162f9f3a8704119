"""The command ``lotion reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Reproduce:
    """Run every check and draw every figure, then write a summary. An interrupted run goes on where it stopped.

    Example: lotion reproduce --preset quick --out reproduced
    """

    preset: Annotated[
        Literal["quick", "paper"], tyro.conf.arg(help="quick: minutes on 2 cores; paper: some two hours")
    ] = "quick"
    out: Annotated[Path, tyro.conf.arg(help="folder for rows, figures and the summary")] = Path("reproduced")
    processes: Annotated[int | None, tyro.conf.arg(help="worker processes; default: the number of cores")] = None
    skip_real: Annotated[bool, tyro.conf.arg(help="leave out the pretrained weights")] = False

    def run(self, console: Console) -> int:
        from lotion_theory.workers import worker_count

        from ..reproduce import reproduce

        worker_count(self.processes, "--processes ")
        presets = ("quick", "lm-quick") if self.preset == "quick" else ("quick", "lm-quick", "paper", "lm")
        return reproduce(self.out, self.processes, self.skip_real, console, presets)


COMMAND = Reproduce
