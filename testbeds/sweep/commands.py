"""The commands ``lotion sweep``, ``leaderboard`` and ``figures``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from ..results.rows import by_method

DEFAULT_STORE = Path("runs/sweep.sqlite")
STORE_HELP = "SQLite file with the runs, or an archive of them (.jsonl.xz)"


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
        from .archive import SUFFIX
        from .check import check
        from .config import load

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
        return 1 if failures(self.store, [e.name for e in experiments], console) else 0


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
        print_boards(self.store, self.experiment, console, self.reference, self.tuning, self.output)
        return 0


@dataclass(frozen=True)
class Figures:
    """Draw the figures of stored runs: loss curves, λ sensitivity, width sweep, rounding schemes, estimators, minima.

    Example: lotion figures --store runs/sweep.sqlite --out figures
    """

    store: Annotated[Path, tyro.conf.arg(help=STORE_HELP)] = DEFAULT_STORE
    out: Annotated[Path, tyro.conf.arg(help="folder for the figures")] = Path("figures")

    def run(self, console: Console) -> int:
        from ..figures.sweeps import draw_all
        from .results import stored_rows

        for path in draw_all(stored_rows(self.store), self.out):
            print(path)
        return 0


def sweep(experiments: Sequence[Any], path: Path, console: Console, **options: Any) -> Any:
    """Run experiments into a store with a progress bar on standard error; returns the driver's summary."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .driver import run_sweep
    from .plan import plan
    from .store import Store

    names = {e.name for e in experiments}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Store(path) as store, Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task("sweep", total=None)

        def show(done: int, total: int, row: dict[str, Any] | None) -> None:
            text = "planning" if row is None else f"{row['experiment']} {_label(row)}"
            bar.update(line, completed=done, total=total, description=text[:60])

        def tasks(current: Store) -> list:
            return plan(experiments, [r for r in current.rows() if r["experiment"] in names])

        summary = run_sweep(tasks, store, progress=show, **options)
    console.print(
        f"{summary.done} runs added ({summary.copied} copied), {summary.skipped} stored before; "
        f"{summary.diverged} diverged, {summary.failed} failed, {summary.crashed} crashed; {summary.seconds:.0f} s",
        highlight=False,
    )  # fmt: skip
    return summary


def failures(path: Path, names: Sequence[str], console: Console) -> int:
    """Say what failed or crashed in these experiments, each message once, and how to run it again; how many."""
    from collections import Counter

    from .store import Store

    with Store(path, readonly=True) as store:
        rows = [r for r in store.rows(status=("failed", "crashed")) if r["experiment"] in names]
    for (experiment, message), count in Counter((r["experiment"], r["message"]) for r in rows).most_common(10):
        console.print(f"[red]{count} failed[/] in {experiment}: ", end="")
        console.print(message, markup=False, highlight=False)
    if rows:
        console.print(f"{len(rows)} runs failed; they are kept. Run them again with --retry-failed.", highlight=False)
    return len(rows)


def _label(row: dict[str, Any]) -> str:
    method = row["config"].get("method", {})
    return f"{row['phase']} {method.get('name', row['kind'])} {row['config'].get('format', '')}"


def print_boards(
    path: Path,
    names: Sequence[str],
    console: Console,
    reference: str | None = None,
    tuning: bool = False,
    output: str = "text",
) -> None:
    """Print the tables of experiments (all by default); ValueError for a name the store does not hold."""
    from ..text import boards as board_text

    lines, notes = boards(path, names, reference, tuning)
    if output == "text":
        board_text.print_lines(lines, console, notes)
    elif output == "markdown":
        sys.stdout.write(board_text.to_markdown(lines, notes))
    else:
        sys.stdout.write(board_text.to_csv(lines) if output == "csv" else board_text.to_json(lines))


def boards(
    path: Path, names: Sequence[str], reference: str | None = None, tuning: bool = False
) -> tuple[list, list[str]]:
    """Lines of the tables of experiments in a store, and the cautions that belong to them."""
    from .results import stored_rows

    rows = stored_rows(path)
    stored = sorted({row["experiment"] for row in rows})
    for name in names:
        if name not in stored:
            raise ValueError(f"experiment {name!r} is not in {path}; valid: {', '.join(stored) or 'none'}")
    return boards_of(rows, names or stored, reference, tuning)


def boards_of(
    rows: Sequence[dict[str, Any]], names: Sequence[str], reference: str | None = None, tuning: bool = False
) -> tuple[list, list[str]]:
    """:func:`boards` of experiments among ``rows``."""
    from ..results.leaderboard import leaderboard, rounding_table, tuning_table
    from ..text.boards import cautions

    lines: list[Any] = []
    used: list[dict[str, Any]] = []
    for name in names:
        mine = [row for row in rows if row["experiment"] == name]
        kinds = {row["kind"] for row in mine if row["phase"] != "tune"}
        if tuning:
            lines += tuning_table(mine) if any(row["phase"] == "tune" for row in mine) else []
        elif "train" in kinds:
            lines += leaderboard(mine, name, reference or default_reference(mine))
        elif "round" in kinds:
            lines += [replace(line, experiment=name) for line in rounding_table(mine)]
        used += mine
    return lines, cautions(used, lines)


def default_reference(rows: Sequence[dict[str, Any]]) -> str | None:
    """QAT, with a detached scale where there are several, or else the first method."""
    labels = list(by_method([row for row in rows if row["kind"] == "train" and row["phase"] == "final"]))
    found = [label for label in labels if label.split(" ")[0] == "qat"]
    plain = [label for label in found if "attached" not in label.replace("detached", "")]
    return next(iter([*plain, *found, *labels]), None)
