"""``lotion reproduce``: every check and figure of the theory, stage by stage, each finished stage kept on disk."""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from lotion_theory import csv_text
from lotion_theory.files import write_text
from lotion_theory.theory.verification import Row, row_of, source_fingerprint, surprises, to_csv, to_json
from lotion_theory.workers import Call, answers

from .documents import write_json
from .machine import cores, machine

T = TypeVar("T")
# (format, dimensions, resolution): a drawn scale has twice the lattices to enumerate.
LANDSCAPES = (("int4", 1, None), ("int4", 2, None), ("nf4", 2, None), ("mxfp4/sr", 2, 81))


def reproduce(
    out: Path, processes: int | None, skip_real: bool, console: Console, presets: Sequence[str] = ("quick",)
) -> int:
    """Run everything into ``out``; returns the exit status, 1 if anything contradicts the theory or a run failed.

    ``presets``: of the experiments. Writes ``verify.json/.csv``, ``real.json/.csv``, ``real_losses.csv``,
    ``sweep.sqlite`` and an archive of it per preset, ``boards.md``, ``figures/``, ``summary.md`` and ``report.html``.
    Stages whose code and inputs have not changed, and runs of experiments that are stored, are not computed again.
    """
    from .progress import verification_rows
    from .text.summary import summary_text
    from .text.tables import print_verdicts

    start = time.perf_counter()
    workers = cores() if processes is None else processes
    # A run that goes on from an earlier one says nothing about how long the whole takes.
    fresh = not (out / "cache").exists()
    out.mkdir(parents=True, exist_ok=True)
    console.print(f"[bold]1/5[/] claims on {platform.machine()} ({cores()} cores)")
    rows = verification_rows(None, None, None, processes, out / "cache" / "verify")
    write_text(out / "verify.json", to_json(rows))
    write_text(out / "verify.csv", to_csv(rows))

    real: list[Row] = []
    losses: list[dict[str, Any]] = []
    absent = "left out on request" if skip_real else ""
    for name in ("real.json", "real.csv", "real_losses.csv"):
        (out / name).unlink(missing_ok=True)  # Not to stand beside a summary that leaves them out.
    if not skip_real:
        console.print("[bold]2/5[/] claims on trained weights")
        try:
            real, losses = _real(out, workers, console)
        except FileNotFoundError as error:
            absent = str(error)
            console.print(f"[yellow]left out:[/] {absent}", highlight=False)

    console.print("[bold]3/5[/] experiments")
    failed = run_experiments(out, presets, processes, skip_real or bool(absent), console)
    console.print("[bold]4/5[/] figures")
    figures = _figures(out, rows, losses, workers, console)
    console.print("[bold]5/5[/] summary")
    wrong = surprises(rows) + surprises(real)
    print_verdicts(rows + real, console)
    path = out / "summary.md"
    text = summary_text(rows, real, losses, figures, absent, out.name)
    write_text(path, f"{text}\n## Experiments\n\nLeaderboards: [boards.md](boards.md)\n")
    seconds = round(time.perf_counter() - start) if fresh else None
    write_json(out / "summary.json", {"seconds": seconds, "surprises": len(wrong), **_about()})
    console.print(
        f"{len(rows) + len(real)} rows, {len(figures)} figures in {time.perf_counter() - start:.0f} s", highlight=False
    )
    print(path)
    _report(out, console)
    return 1 if wrong or failed else 0


def _about() -> dict[str, str]:
    """When and where the results were computed."""
    versions = {"python": platform.python_version(), "numpy": version("numpy")}
    return {"date": str(datetime.date.today()), "machine": machine(), **versions}


def _report(out: Path, console: Console) -> None:
    """Write ``report.html`` from the folder's rows and print its path; without its template engine, say so instead."""
    from .report.page import write_report
    from .report.sources import run_sources

    try:
        with console.status("writing the report"):
            print(write_report(run_sources(out), out / "report.html"))
    except ImportError as error:
        console.print(f"[yellow]left out:[/] {error}", highlight=False)


def run_experiments(out: Path, presets: Sequence[str], processes: int | None, skip_real: bool, console: Console) -> int:
    """Run the presets' experiments, without language models where torch is missing; returns how many runs failed."""
    from .figures.sweeps import draw_all
    from .problems import descriptor
    from .progress import sweep
    from .sweep.archive import write_archive
    from .sweep.config import load
    from .sweep.results import stored_rows
    from .text.boards import to_markdown
    from .text.experiments import boards

    store, failed = out / "sweep.sqlite", 0
    texts = []
    for preset in presets:
        known = [(e, descriptor(e.problem["name"])) for e in load(preset)]
        known = [(e, problem) for e, problem in known if not (skip_real and problem.pretrained)]
        absent = {pip: None for _, problem in known for name, pip in problem.needs.items() if find_spec(name) is None}
        if absent:
            console.print("[yellow]left out:[/] " + escape(f"{preset}; to run it: pip install '{', '.join(absent)}'"))
            continue
        experiments = [e for e, _ in known]
        summary = sweep(experiments, store, console, processes=processes)
        failed += summary.failed + summary.crashed
        names = [e.name for e in experiments]
        rows = [r for r in stored_rows(store) if r["experiment"] in names]
        write_archive(rows, out / f"{preset}.jsonl.xz")
        lines, notes = boards(store, names)
        texts += [f"## Preset {preset}", "", to_markdown(lines, notes)]
        with console.status("drawing"):
            draw_all(rows, out / "figures" / preset)
    write_text(out / "boards.md", "\n".join(["# Leaderboards", "", *texts]))
    return failed


def _stored(path: Path, key: str, read: Callable[[Any], T]) -> T | None:
    """What ``read`` gives for the JSON value in ``path`` if it was made under ``key``, else None; ``read`` raises
    ValueError, KeyError or TypeError for a value that is none."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return read(stored["value"]) if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keep(path: Path, key: str, value: Any) -> None:
    """Write what :func:`_stored` reads, whole or not at all."""
    write_text(path, json.dumps({"key": key, "value": value}, ensure_ascii=False))


def _real(out: Path, processes: int, console: Console) -> tuple[list[Row], list[dict[str, Any]]]:
    from .real_claims import real_claim_rows

    def read(value: Any) -> tuple[list[Row], list[dict[str, Any]]]:
        raw, losses = value
        if not losses:
            raise ValueError("no losses")
        return [row_of(r) for r in raw], [{"format": line["format"], "layer": line["layer"], **line} for line in losses]

    path, key = out / "cache" / "real.json", source_fingerprint(Path(__file__).parent)
    found = _stored(path, key, read)
    if found is None:
        with console.status("reading weights") as status:
            made = real_claim_rows(folder=out / "cache" / "moments", progress=status.update, processes=processes)
        value = [[asdict(r) for r in made[0]], made[1]]
        _keep(path, key, value)
        found = read(value)
    rows, losses = found
    write_text(out / "real.json", to_json(rows))
    write_text(out / "real.csv", to_csv(rows))
    write_text(out / "real_losses.csv", csv_text.to_csv(list(losses[0]), losses))
    return rows, losses


def _there(out: Path, names: list[str]) -> list[str]:
    """``names``, of files in ``out``; ValueError where one is not there any more."""
    for name in names:
        if not (out / name).exists():
            raise ValueError(f"{out / name} is absent")
    return list(names)


def _figures(out: Path, rows: list[Row], losses: list[dict[str, Any]], processes: int, console: Console) -> list[str]:
    from .figures import save
    from .figures.real import figure_real_losses
    from .figures.verdicts import figure_verdicts

    folder, cache = out / "figures", out / "cache"
    key = source_fingerprint(Path(__file__).parent)
    drawn: dict[str, list[str] | None] = {}
    calls: list[Call] = []
    for text, dimension, points in LANDSCAPES:
        stem = text.replace("/", "_") + f"_{dimension}d"
        drawn[stem] = _stored(cache / f"figures_{stem}.json", key, partial(_there, out))
        if drawn[stem] is None:
            # The last take longest, and come first.
            calls.insert(0, (stem, _landscape, (text, folder / stem, dimension, points)))
    with console.status("drawing landscapes") as status, closing(answers(calls, processes)) as fresh:
        for stem, paths in fresh:
            drawn[stem] = [str(p.relative_to(out)) for p in paths]
            _keep(cache / f"figures_{stem}.json", key, drawn[stem])
            status.update(f"drawing; there are landscapes of {stem}")
        names = [name for found in drawn.values() for name in found or ()]
        status.update("verdicts")
        names += [str(p.relative_to(out)) for p in save(figure_verdicts(rows), folder / "verdicts")]
        if losses:
            names += [str(p.relative_to(out)) for p in save(figure_real_losses(losses), folder / "real_losses")]
    return names


def _landscape(text: str, folder: Path, dimension: int, points: int | None) -> list[Path]:
    from .figures import landscape_figures

    return landscape_figures(text, folder, dimension, points=points)
