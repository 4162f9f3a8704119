"""The command ``lotion verify``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from .options import FORMAT_HELP


@dataclass(frozen=True)
class Verify:
    """Check the theory's claims on number formats and print the verdicts, with the simplest counterexample found.

    Exit status 1 if a claim that should hold does not, or if a predicted failure was not found.

    Example: lotion verify --formats int4/absmax/block=32 mxfp4 --claims C1 C4 C6
    """

    formats: Annotated[tuple[str, ...], tyro.conf.arg(help=FORMAT_HELP + "; default: all", help_behavior_hint="")] = ()
    claims: Annotated[tuple[str, ...], tyro.conf.arg(help="C1 ... C22; default: all", help_behavior_hint="")] = ()
    evidence: Annotated[
        tuple[Literal["proved", "exhaustive", "property"], ...],
        tyro.conf.arg(help="levels of evidence; default: all", help_behavior_hint=""),
    ] = ()
    json: Annotated[bool, tyro.conf.arg(help="print the rows as JSON instead of tables")] = False
    csv: Annotated[bool, tyro.conf.arg(help="print the rows as CSV instead of tables")] = False
    out: Annotated[Path | None, tyro.conf.arg(help="also write the rows to this .json or .csv file")] = None
    cache: Annotated[Path | None, tyro.conf.arg(help="keep finished formats here, to resume an interrupted run")] = None
    processes: Annotated[int | None, tyro.conf.arg(help="worker processes; default: the number of cores")] = None

    def run(self, console: Console) -> int:
        from lotion_theory.files import write_text
        from lotion_theory.theory import verification
        from lotion_theory.workers import worker_count

        from ..progress import verification_rows
        from ..text.tables import print_verdicts

        if self.json and self.csv:
            raise ValueError("--json and --csv exclude each other")
        worker_count(self.processes, "--processes ")
        if self.out is not None and self.out.suffix not in (".json", ".csv"):
            raise ValueError(f"--out {self.out}: the name must end in .json or .csv")
        if self.out is not None and self.out.is_dir():
            raise ValueError(f"--out {self.out}: is a folder")
        if self.out is not None:
            # Before the run, so that a folder that cannot be made does not cost its result.
            self.out.parent.mkdir(parents=True, exist_ok=True)
        rows = verification_rows(
            self.formats or None, self.claims or None, self.evidence or None, self.processes, self.cache
        )
        if self.out is not None:
            write_text(
                self.out, verification.to_json(rows) if self.out.suffix == ".json" else verification.to_csv(rows)
            )
        if self.json or self.csv:
            sys.stdout.write(verification.to_json(rows) if self.json else verification.to_csv(rows))
        else:
            print_verdicts(rows, console)
        return 1 if verification.surprises(rows) else 0


COMMAND = Verify
