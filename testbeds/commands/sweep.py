"""The command ``lotion sweep``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from .options import DEFAULT_STORE


@dataclass(frozen=True)
class Sweep:
    """Run the experiments of a preset or a YAML file; only what the store does not hold yet is computed.

    Stop it at any moment and start it again: finished runs are kept. Prints the leaderboards at the end.

    Example: lotion sweep quick; lotion sweep paper --only linear-regression; lotion sweep mine.yaml --processes 8
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG", help="a preset or a YAML file")]
    store: Annotated[Path, tyro.conf.arg(help="SQLite file to keep the runs in")] = DEFAULT_STORE
    only: Annotated[
        tuple[str, ...], tyro.conf.arg(help="experiments by name; default: all", help_behavior_hint="")
    ] = ()
    processes: Annotated[int | None, tyro.conf.arg(help="worker processes; default: the number of cores")] = None
    pool: Annotated[
        Literal["processes", "serial", "dask"], tyro.conf.arg(help="where runs are computed; dask: on a cluster")
    ] = "processes"
    address: Annotated[str | None, tyro.conf.arg(help="dask scheduler, or 'local' for one on this machine")] = None
    timeout: Annotated[float | None, tyro.conf.arg(help="seconds after which a run counts as failed")] = None
    retry_failed: Annotated[bool, tyro.conf.arg(help="run again what failed or crashed")] = False

    def run(self, console: Console) -> int:
        from lotion_theory.workers import worker_count

        from ..progress import sweep
        from ..sweep.archive import SUFFIX
        from ..sweep.check import check
        from ..sweep.config import load
        from ..text.experiments import print_boards

        worker_count(self.processes, "--processes ")
        experiments = load(self.config)
        if self.only:
            names = [e.name for e in experiments]
            for name in self.only:
                if name not in names:
                    raise ValueError(f"--only {name}: not in {self.config}; valid: {', '.join(names)}")
            experiments = [e for e in experiments if e.name in self.only]
        if self.store.name.endswith(SUFFIX):
            raise ValueError(f"--store {self.store}: an archive is read only; name a .sqlite file to run into")
        check(experiments)
        sweep(
            experiments, self.store, console, pool=self.pool, processes=self.processes, address=self.address,
            timeout=self.timeout, retry_failed=self.retry_failed,
        )  # fmt: skip
        print_boards(self.store, [e.name for e in experiments], console)
        print(self.store)
        return 1 if _failures(self.store, [e.name for e in experiments], console) else 0


def _failures(path: Path, names: Sequence[str], console: Console) -> int:
    """Say what failed or crashed in these experiments, each message once, and how to run it again; how many."""
    from collections import Counter

    from ..sweep.store import Store

    with Store(path, readonly=True) as store:
        rows = [r for r in store.rows(status=("failed", "crashed")) if r["experiment"] in names]
    for (experiment, message), count in Counter((r["experiment"], r["message"]) for r in rows).most_common(10):
        console.print(f"[red]{count} failed[/] in {experiment}: ", end="")
        console.print(message, markup=False, highlight=False)
    if rows:
        console.print(f"{len(rows)} runs failed; they are kept. Run them again with --retry-failed.", highlight=False)
    return len(rows)


COMMAND = Sweep
