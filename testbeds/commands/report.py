"""The command ``lotion report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Report:
    """Write everything stored into one HTML page that works without a network: verdicts, landscapes, leaderboards.

    Without options it takes what is under results/; what is not there is left out, and the page says so.

    Example: lotion report --out report.html; lotion report --reproduced reproduced
    """

    store: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(help="SQLite files or archives; default: results/sweeps/*.jsonl.xz", help_behavior_hint=""),
    ] = ()
    theory: Annotated[
        Path | None,
        tyro.conf.arg(help="folder with verify.csv; default: results/theory", help_behavior_hint=""),
    ] = None
    benchmarks: Annotated[
        Path | None,
        tyro.conf.arg(help="folder of benchmark rows; default: results/benchmarks", help_behavior_hint=""),
    ] = None
    reproduced: Annotated[
        Path | None,
        tyro.conf.arg(help="take rows from this output folder of lotion reproduce instead", help_behavior_hint=""),
    ] = None
    out: Annotated[Path, tyro.conf.arg(help="the page")] = Path("report.html")

    def run(self, console: Console) -> int:
        from ..report.page import write_report
        from ..report.sources import Sources, default_sources, run_sources

        if self.out.suffix not in (".html", ".htm"):
            raise ValueError(f"--out {self.out}: the name must end in .html or .htm")
        if self.out.is_dir():
            raise ValueError(f"--out {self.out}: is a folder")
        sources = default_sources() if self.reproduced is None else run_sources(self.reproduced)
        sources = Sources(
            self.theory or sources.theory, self.store or sources.stores, self.benchmarks or sources.benchmarks
        )
        with console.status("reading rows"):
            path = write_report(sources, self.out)
        print(path)
        return 0


COMMAND = Report
