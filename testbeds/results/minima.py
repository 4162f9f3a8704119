"""How many local minima there are before and after smoothing, by enumeration on a frozen lattice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from .rows import Row, grouped, of_kind, problem_label, values
from .statistics import Interval, format_ends, geometric_interval, proportion_interval
from .table import Column, Table, count

COUNTS = ("local_minima_raw", "local_minima_smoothed", "points")


@dataclass(frozen=True)
class MinimaLine:
    """Counts of local minima on one problem and format: geometric means over instances; ``share``: smoothed ones over
    lattice points; ``kept``: share of instances whose global minimum smoothing keeps."""

    problem: str
    format: str
    raw: Interval | None
    smoothed: Interval | None
    points: Interval | None
    kept: Interval | None
    instances: int
    failed: int
    experiment: str = ""
    share: Interval | None = None

    table: ClassVar = Table(
        columns=(
            Column("problem", "problem", lambda x: x.problem),
            Column("local minima, raw", "raw", lambda x: format_ends(x.raw)),
            Column("local minima, smoothed", "smoothed", lambda x: format_ends(x.smoothed)),
            Column("lattice points", "points", lambda x: format_ends(x.points)),
            Column("global minimum kept", "kept",
                   lambda x: "" if x.kept is None else f"{x.kept.value:.0%} of {x.kept.n}"),
            Column("instances", "instances", lambda x: str(x.instances)),
            Column("failed", "failed", lambda x: count(x.failed)),
        ),
        legend="Geometric means over instances on a frozen lattice, [ ]: 95 % intervals. Raw: flat pieces of the "
        "quantized loss that no touching piece is below. Smoothed: lattice points that no single step improves.",
        place=("experiment", "format"),
    )  # fmt: skip


class Minima(NamedTuple):
    """``lines``: by problem (without its dimension), format and dimension. ``kept``: by problem and format, how many
    instances keep the global minimum, of how many that were looked at."""

    lines: dict[tuple[str, str], dict[int, MinimaLine]]
    kept: dict[tuple[str, str], tuple[int, int]]


def minima(rows: Iterable[Row]) -> Minima:
    """Counts against the number of weights. Raises ValueError where no run of kind "minima" succeeded."""
    runs = [r for r in of_kind(rows, "minima") if r["status"] == "ok"]
    if not runs:
        raise ValueError("rows: no run of kind 'minima' succeeded")
    lines: dict[tuple[str, str], dict[int, MinimaLine]] = {}
    for (problem, format, d), mine in grouped(runs, _place).items():
        lines.setdefault((problem, format), {})[d] = minima_line(problem, format, mine)
    kept = {place: _kept(mine) for place, mine in grouped(runs, lambda r: _place(r)[:2]).items()}
    return Minima(lines, kept)


def minima_lines(rows: Iterable[Row], experiment: str = "") -> list[MinimaLine]:
    """Counts of local minima by problem, its dimension included, and format."""
    groups = grouped(of_kind(rows, "minima"), _whole_place)
    return [minima_line(problem, format, runs, experiment) for (problem, format), runs in groups.items()]


def minima_line(problem: str, format: str, runs: Sequence[Row], experiment: str = "") -> MinimaLine:
    """The line of runs that differ in their seeds only."""
    raw, smoothed, points = ({s: v for s, v in values(runs, name).items() if v > 0} for name in COUNTS)
    shares = {seed: smoothed[seed] / points[seed] for seed in smoothed if seed in points}
    kept, seen = _kept(runs)
    return MinimaLine(
        problem, format, _mean(raw), _mean(smoothed), _mean(points), proportion_interval(kept, seen) if seen else None,
        sum(r["status"] == "ok" for r in runs), sum(r["status"] != "ok" for r in runs), experiment, _mean(shares),
    )  # fmt: skip


def _mean(found: Mapping[int, float]) -> Interval | None:
    return geometric_interval(found.values()) if found else None


def _kept(runs: Iterable[Row]) -> tuple[int, int]:
    found = [bool(r["metrics"]["global_kept"]) for r in runs if r["metrics"].get("global_kept") is not None]
    return sum(found), len(found)


def _place(row: Row) -> tuple[str, str, int]:
    """Problem without its dimension, format, and dimension, which is a setting of the run or of its problem."""
    problem = dict(row["config"].get("problem", {"name": ""}))
    d = problem.pop("d", None)
    return problem_label(problem), str(row["config"]["format"]), row["config"].get("d", d)


def _whole_place(row: Row) -> tuple[str, str]:
    config = row["config"]
    return problem_label(config.get("problem", f"d={config.get('d')}")), str(config["format"])
