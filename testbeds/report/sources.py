"""Where a report takes its rows from, and what is read there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lotion_theory import csv_text
from lotion_theory.theory.verification import Row as Verdict
from lotion_theory.theory.verification import row_of

from ..sweep.archive import SUFFIX

RESULTS = Path("results")
T = TypeVar("T")


@dataclass(frozen=True)
class Sources:
    """``theory``: a folder with ``verify.csv``, and ``real.csv``, ``real_losses.csv``, ``summary.json`` where it has
    them. ``stores``: SQLite files or archives of runs. ``benchmarks``: a folder of ``*.json``. None and () stand for
    what there is not; the page then says so."""

    theory: Path | None = None
    stores: tuple[Path, ...] = ()
    benchmarks: Path | None = None


@dataclass
class Material:
    """What was read. ``stores``: per experiment, the stores that hold its rows, as the reader would write them."""

    verify: list[Verdict] = field(default_factory=list)
    real: list[Verdict] = field(default_factory=list)
    real_losses: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    stores: dict[str, list[str]] = field(default_factory=dict)
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)


def default_sources(root: Path = RESULTS) -> Sources:
    """What a checkout keeps under ``results/``, as far as it is there."""
    theory, benchmarks = root / "theory", root / "benchmarks"
    return Sources(
        theory if (theory / "verify.csv").exists() else None,
        tuple(sorted((root / "sweeps").glob(f"*{SUFFIX}"))),
        benchmarks if benchmarks.is_dir() else None,
    )


def run_sources(folder: Path) -> Sources:
    """What ``lotion reproduce --out folder`` left. Raises FileNotFoundError for a folder that holds none of it."""
    archives = tuple(sorted(folder.glob(f"*{SUFFIX}")))
    store = folder / "sweep.sqlite"
    theory = folder if (folder / "verify.csv").exists() else None
    if theory is None and not archives and not store.exists():
        raise FileNotFoundError(f"{folder} is no output folder of lotion reproduce: no verify.csv and no sweep in it")
    return Sources(theory, archives or ((store,) if store.exists() else ()))


def read(sources: Sources) -> Material:
    """Read every source.

    Raises FileNotFoundError naming a path that is not there, and ValueError for a file that is not what its name says
    and where no source at all is given.
    """
    if sources == Sources():
        raise ValueError(
            "nothing to report: no theory folder, store or benchmark given, and none under results/; "
            "run lotion reproduce, or name them with --theory and --store"
        )
    found = Material()
    if sources.theory is not None:
        _read_theory(sources.theory, found)
    for store in sources.stores:
        _read_store(store, found)
    if sources.benchmarks is not None:
        if not sources.benchmarks.is_dir():
            raise FileNotFoundError(f"no such folder of benchmarks: {sources.benchmarks}")
        for path in sorted(sources.benchmarks.glob("*.json")):
            found.benchmarks[path.stem] = _benchmark(path)
    return found


def shown(path: Path) -> str:
    """A path as a page may show it: an absolute one by its name alone, which says nothing of the machine."""
    return path.name if path.is_absolute() else path.as_posix()


def _read_theory(folder: Path, found: Material) -> None:
    path = folder / "verify.csv"
    if not path.exists():
        raise FileNotFoundError(f"no verify.csv in {folder}: expected a folder written by lotion reproduce")
    found.verify = _verdicts(path)
    if (folder / "real.csv").exists():
        found.real = _verdicts(folder / "real.csv")
    if (folder / "real_losses.csv").exists():
        path = folder / "real_losses.csv"
        found.real_losses = [_checked(path, n, line, _layer, "lotion reproduce") for n, line in csv_text.lines(path)]
    if (folder / "summary.json").exists():
        found.summary = _json(folder / "summary.json")


def _read_store(path: Path, found: Material) -> None:
    from ..sweep.results import stored_rows

    if not path.exists():
        raise FileNotFoundError(f"no such store of runs: {path}")
    rows = stored_rows(path)
    found.rows += rows
    for experiment in sorted({row["experiment"] for row in rows}):
        found.stores.setdefault(experiment, []).append(shown(path))


def _verdicts(path: Path) -> list[Verdict]:
    return [_checked(path, number, line, row_of, "lotion verify") for number, line in csv_text.lines(path)]


LAYERS = ("rtn_relative", "rr_relative", "conditional_relative", "rr_over_rtn_diagonal")
"""Columns of ``real_losses.csv`` that the page averages: positive numbers, the third empty where a format has none."""


def _layer(line: dict[str, str]) -> dict[str, Any]:
    found = {k: _number(v) for k, v in line.items()}
    for name in LAYERS:
        value = found[name]
        good = isinstance(value, float) and 0 < value < math.inf
        if not good and (name != "conditional_relative" or value is not None):
            raise ValueError(f"{name} = {line.get(name)!r} is no positive number")
    return {**found, "format": line["format"], "layer": line["layer"]}


def _checked(path: Path, number: int, line: dict[str, str], read: Callable[[dict[str, str]], T], writer: str) -> T:
    try:
        return read(line)
    except KeyError as error:
        raise ValueError(f"{path}, line {number}: not a row of {writer} ({error} is missing)") from None
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: not a row of {writer} ({error})") from None


def _number(text: str) -> Any:
    if text == "":
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return value


def _benchmark(path: Path) -> dict[str, Any]:
    """Settings, and lists of records of plain values."""
    found = _json(path)
    for name, part in found.items():
        records = part if isinstance(part, list) else []
        if any(not isinstance(record, dict) for record in records):
            raise ValueError(f"{path}: {name}: expected a list of objects")
        if path.stem == "exact_solvers" and any(not _is_solved(record) for record in records):
            raise ValueError(f"{path}: {name}: expected objects with solver, d, seconds and proven")
    return found


def _is_solved(record: dict[str, Any]) -> bool:
    types = {"solver": str, "d": int, "seconds": int | float, "proven": bool}
    return all(isinstance(record.get(name), wanted) for name, wanted in types.items())


def distinct(values: Iterable[Any]) -> Sequence[str]:
    """Different values as text, sorted."""
    return sorted({str(v) for v in values if v not in (None, "")})
