"""Long work that shows its progress on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console


class Bar:
    """A progress bar on standard error, for a ``with`` block; ``total``: None where it is not known yet.

    It is drawn from the first call of :meth:`begin` or :meth:`show` on: what is refused before leaves no bar.
    """

    def __init__(self, text: str, total: int | None = None, shown: bool = True) -> None:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(), progress.TimeRemainingColumn(),
        )  # fmt: skip
        self._progress = progress.Progress(*columns, console=Console(stderr=True), disable=not shown)
        self._task = self._progress.add_task(text, total=total)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def begin(self, done: int = 0) -> None:
        """Draw the bar, ``done`` being done already."""
        self._progress.update(self._task, completed=done)
        self._progress.start()

    def show(self, done: int, total: int, text: str) -> None:
        """``done`` of ``total``, and what is done."""
        self._progress.start()
        self._progress.update(self._task, completed=done, total=total, description=text)


def verification_rows(formats: Any, claims: Any, evidence: Any, processes: int | None, cache: Path | None) -> list:
    """:func:`lotion_theory.theory.verification.verify` of these formats, claims and levels of evidence."""
    from lotion_theory import Quantizer
    from lotion_theory.theory.verification import select, verify

    # Bad names are answered before the bar appears.
    for text in formats or ():
        Quantizer.parse(text)
    select(claims)
    with Bar("checking") as bar:
        bar.begin()
        return verify(
            formats, claims, evidence, processes, cache=cache,
            progress=lambda label, done, total: bar.show(done, total, f"checked {label}"),
        )  # fmt: skip


def sweep(experiments: Sequence[Any], path: Path, console: Console, **options: Any) -> Any:
    """Run experiments into a store and say what came of them; returns the driver's summary."""
    from .sweep.driver import run_sweep
    from .sweep.plan import plan
    from .sweep.store import Store

    names = {e.name for e in experiments}
    with Store(path) as store, Bar("sweep") as bar:
        bar.begin()

        def show(done: int, total: int, row: dict[str, Any] | None) -> None:
            text = "planning" if row is None else f"{row['experiment']} {_label(row)}"
            bar.show(done, total, text[:60])

        def tasks(current: Store) -> list:
            return plan(experiments, [r for r in current.rows() if r["experiment"] in names])

        summary = run_sweep(tasks, store, progress=show, **options)
    console.print(
        f"{summary.done} runs added ({summary.copied} copied), {summary.skipped} stored before; "
        f"{summary.diverged} diverged, {summary.failed} failed, {summary.crashed} crashed; {summary.seconds:.0f} s",
        highlight=False,
    )  # fmt: skip
    return summary


def _label(row: dict[str, Any]) -> str:
    method = row["config"].get("method", {})
    return f"{row['phase']} {method.get('name', row['kind'])} {row['config'].get('format', '')}"
