"""Leaderboards of training methods, rounding schemes and tuning grids, from the rows of a sweep and nothing else."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, ClassVar

from .rows import (
    Row,
    by_method,
    canonical,
    excess,
    grouped,
    instance,
    latest,
    method_name,
    of_kind,
    ratio,
    tuned_settings,
    values,
)  # fmt: skip
from .statistics import (
    Interval,
    Paired,
    average,
    format_ends,
    format_interval,
    format_number,
    format_p,
    holm,
    mean_interval,
    paired,
    proportion_interval,
)
from .table import Column, Table, count, where

BOARDS = {"final": "equal steps", "equal_time": "equal time"}
"""Phases that are compared, and in what their runs are equal; in the order of their tables."""


def _settings(line: Line | TuningLine) -> str:
    names = {"weight": "λ"}
    return ", ".join(f"{names.get(k, k)}={v:g}" if isinstance(v, float) else f"{names.get(k, k)}={v}"
                     for k, v in line.tuned.items())  # fmt: skip


def _line_title(line: Line) -> str:
    floor = "" if not line.noise_floor else f", noise floor {format_number(line.noise_floor, 3)}"
    return f"{where(line)}, {BOARDS[line.phase]}{floor}"


def _line_cautions(lines: Sequence[Line]) -> list[str]:
    """Missing seeds, and seeds too few for a small p-value."""
    out = []
    lost = [line for line in lines if line.diverged + line.failed]
    if lost:
        listed = "; ".join(
            f"{x.method} on {x.problem}, {x.format}: {x.seeds} of {x.seeds + x.diverged + x.failed}" for x in lost
        )
        out.append(f"Means leave out runs that diverged or failed, which flatters a method: {listed}.")
    for (n, m), group in sorted(grouped(_comparisons(lines), lambda pair: pair).items()):
        if m * 2 / 2**n > 0.05:
            out.append(
                f"With {n} common seeds and {m} methods compared, no adjusted p-value can be below "
                f"{min(1.0, m * 2 / 2**n):.2g} ({len(group)} comparisons)."
            )
    return out


def _comparisons(lines: Sequence[Line]) -> list[tuple[int, int]]:
    """Common seeds of each comparison, and how many comparisons it was adjusted for."""
    out = []
    for group in grouped(lines, lambda line: (line.phase, line.problem, line.format)).values():
        found = [line.comparison.n for line in group if line.comparison is not None]
        out += [(n, len(found)) for n in found]
    return out


@dataclass(frozen=True)
class Line:
    """A method on one problem and format; intervals are over seeds, at 95 %.

    ``seeds`` runs succeeded; the means are over these alone. Losses are as reported, noise floor included.
    ``over_reference`` and ``over_best``: geometric means of the ratio of RTN losses above the noise floor to those of
    the reference method and to the lowest known of the same instance (its optimum where that is known, else the
    lowest RTN loss in any row); ratios of means, without an interval, where a loss is not above the floor.
    ``comparison``: paired with the reference on RTN losses; ``p_holm``: its p-value, adjusted for the number of methods
    compared on this problem and format. ``seconds``: median training time.
    """

    phase: str
    problem: str
    format: str
    method: str
    tuned: Mapping[str, Any]
    seeds: int
    diverged: int
    failed: int
    float_loss: Interval | None
    rtn_loss: Interval | None
    rr_loss: Interval | None
    gap: Interval | None
    noise_floor: float | None
    over_best: Interval | None
    seconds: float | None
    over_reference: Interval | None = None
    comparison: Paired | None = None
    p_holm: float | None = None
    reference: bool = False
    experiment: str = ""

    table: ClassVar = Table(
        columns=(
            Column("method", "method", lambda x: x.method + (" (reference)" if x.reference else "")),
            Column("RTN loss", "rtn_loss", lambda x: format_interval(x.rtn_loss)),
            Column("RR loss", "rr_loss", lambda x: format_interval(x.rr_loss)),
            Column("float loss", "float_loss", lambda x: format_interval(x.float_loss)),
            Column("gap", "gap", lambda x: format_interval(x.gap)),
            Column("RTN / reference", "over_reference", lambda x: "" if x.reference else format_ends(x.over_reference)),
            Column("RTN / best known", "over_best", lambda x: format_ends(x.over_best)),
            Column("wins", "paired_wins",
                   lambda x: "" if x.comparison is None else f"{x.comparison.wins} of {x.comparison.n}"),
            Column("p (Holm)", "p_holm", lambda x: format_p(x.p_holm)),
            Column("tuned", "lr", _settings),
            Column("seconds", "seconds", lambda x: format_number(x.seconds, 3)),
            Column("seeds", "seeds", lambda x: str(x.seeds)),
            Column("diverged", "diverged", lambda x: count(x.diverged)),
            Column("failed", "failed", lambda x: count(x.failed)),
        ),
        legend="±: 95 % t interval of the mean over seeds. [ ]: 95 % interval of the geometric mean of ratios of RTN "
        "losses, above the noise floor where there is one, on the same seeds. Best known: the lowest RTN loss of any "
        "run on the same instance, or its optimum. Wins: seeds with a lower RTN loss than the reference; p: sign-flip "
        "test of these differences.",
        place=("experiment", "problem", "format", "phase"),
        title=_line_title,
        cautions=_line_cautions,
    )  # fmt: skip


def _ratio(line: RoundingLine) -> str:
    found = line.ratio
    short = "" if found is None or found.n == line.instances else f" (n={found.n})"
    return format_interval(found) + short


def _share(found: Interval | None) -> str:
    if found is None:
        return ""
    low, high = (f"{100 * end:.0f}" for end in (found.low or 0.0, found.high or 0.0))
    return f"{100 * found.value:.0f} % [{low}, {high}] of {found.n}"


@dataclass(frozen=True)
class RoundingLine:
    """A rounding scheme on instances of one problem and format.

    ``optimal``: share of instances with a known optimum on which it was found, with Wilson's interval. ``ratio``: mean
    of loss over optimum. ``seconds``: median per instance. ``grid``: "fixed", or "searched" for a scheme that may
    choose other scales: its loss may be below the optimum on the given ones, and its ``optimal`` is None.
    """

    problem: str
    format: str
    method: str
    instances: int
    failed: int
    optimal: Interval | None
    ratio: Interval | None
    seconds: float | None
    grid: str = "fixed"
    experiment: str = ""

    table: ClassVar = Table(
        columns=(
            Column("method", "method", lambda x: x.method),
            Column("optimum found", "optimal", lambda x: _share(x.optimal)),
            Column("loss / optimum", "ratio", _ratio),
            Column("grid", "grid", lambda x: "" if x.grid == "fixed" else x.grid),
            Column("seconds", "seconds", lambda x: format_number(x.seconds, 3)),
            Column("instances", "instances", lambda x: str(x.instances)),
            Column("failed", "failed", lambda x: count(x.failed)),
        ),
        legend="±: 95 % t interval of the mean over instances. [ ]: 95 % Wilson interval, in per cent. Where no "
        "optimum is proven, loss / optimum is relative to the lowest loss that was found. A searched grid may beat the "
        "optimum on the given one.",
    )


def _chosen(line: TuningLine) -> str:
    if not line.chosen:
        return ""
    return "← EDGE: " + "; ".join(line.edges) if line.edges else "←"


def _edge_cautions(lines: Sequence[TuningLine]) -> list[str]:
    edges = [f"{line.method}, {line.format}: {', '.join(line.edges)}" for line in lines if line.edges]
    if not edges:
        return []
    return [f"Chosen at the edge of its grid, so that a better value may lie beyond: {'; '.join(edges)}."]


@dataclass(frozen=True)
class TuningLine:
    """One configuration of a tuning grid.

    ``chosen``: the one used in the final runs, or, where there are none, that of the lowest mean RTN loss among those
    without a failure. ``edges``: on a chosen line, the settings whose value is the lowest or highest that was tried.
    """

    experiment: str
    problem: str
    format: str
    method: str
    tuned: Mapping[str, Any]
    seeds: int
    failed: int
    rtn_loss: Interval | None
    chosen: bool
    edges: tuple[str, ...]

    table: ClassVar = Table(
        columns=(
            Column("method", "method", lambda x: x.method),
            Column("settings", "lr", _settings),
            Column("RTN loss", "rtn_loss", lambda x: format_interval(x.rtn_loss)),
            Column("seeds", "seeds", lambda x: str(x.seeds)),
            Column("failed", "failed", lambda x: count(x.failed)),
            Column("chosen", "chosen", _chosen),
        ),
        legend="±: 95 % t interval of the mean over seeds. ←: used in the final runs, or lowest where there are none.",
        title=lambda line: f"Tuning, {where(line)}",
        cautions=_edge_cautions,
    )


# --- training --------------------------------------------------------------------------------------------------------


def leaderboard(
    rows: Iterable[Row], experiment: str, reference: str | None = None, tuned: Collection[str] | None = None
) -> list[Line]:
    """Lines of an experiment's final and equal-time runs by phase, problem and format, lowest mean RTN loss first.

    ``reference``: the name or label of the method that the others are compared with; a label used with several tuned
    settings stands for its best. ``tuned``: names of tuned settings, which do not tell methods apart; by default those
    that each method declares, the weight and the learning rate. Raises ValueError for an experiment without such runs,
    and for a reference that is nowhere or that names several methods of one group.
    """
    rows = list(rows)
    found = [r for r in of_kind(rows, "train", experiment) if r["phase"] in BOARDS]
    if not found:
        raise ValueError(f"experiment {experiment!r} has no runs of phase {' or '.join(BOARDS)}")
    best = _best_known(latest(r for r in rows if r["kind"] == "train"))
    out: list[Line] = []
    met = reference is None
    for (phase, problem, format), group in grouped(found, lambda r: (r["phase"], *instance(r))).items():
        methods = [
            (label, runs)
            for label, of_label in by_method(group, tuned).items()
            for runs in _by_settings(of_label, tuned).values()
        ]
        known = best[problem, format]
        lines = [_line((phase, problem, format), label, runs, known, tuned) for label, runs in methods]
        at = _find(reference, lines, [runs for _, runs in methods])
        if at is not None:
            met, lines = True, _compare(lines, [excess(runs) for _, runs in methods], at)
        out += sorted(lines, key=lambda line: _rank(line.rtn_loss))
    if not met:
        names = ", ".join(sorted({line.method for line in out}))
        raise ValueError(f"reference={reference!r} is not in experiment {experiment!r}; valid: {names}")
    return [replace(line, experiment=experiment) for phase in BOARDS for line in out if line.phase == phase]


def training_table(rows: Sequence[Row], experiment: str, reference: str | None = None) -> list[Line]:
    """The leaderboard of an experiment against ``reference``, by default :func:`default_reference`."""
    return leaderboard(rows, experiment, reference or default_reference(rows))


def default_reference(rows: Iterable[Row]) -> str | None:
    """QAT, with a detached scale where there are several, or else the first method."""
    labels = list(by_method([row for row in rows if row["kind"] == "train" and row["phase"] == "final"]))
    found = [label for label in labels if label.split(" ")[0] == "qat"]
    plain = [label for label in found if "attached" not in label.replace("detached", "")]
    return next(iter([*plain, *found, *labels]), None)


def _line(
    place: tuple[str, str, str], label: str, runs: list[Row], best: Mapping[int, float], tuned: Collection[str] | None
) -> Line:
    seconds, floor = values(runs, "train_seconds"), values(runs, "noise_floor")
    return Line(
        *place,
        label,
        tuned_settings(runs[0], tuned),
        seeds=len(values(runs, "rtn_loss")),
        diverged=sum(r["status"] == "diverged" for r in runs),
        failed=sum(r["status"] not in ("ok", "diverged") for r in runs),
        float_loss=_mean(values(runs, "float_loss")),
        rtn_loss=_mean(values(runs, "rtn_loss")),
        rr_loss=_mean(values(runs, "rr_loss")),
        gap=_mean(values(runs, "gap")),
        noise_floor=average(floor.values()) if floor else None,
        over_best=ratio(excess(runs), best),
        seconds=median(seconds.values()) if seconds else None,
    )  # fmt: skip


def _best_known(rows: Iterable[Row]) -> dict[tuple[str, str], dict[int, float]]:
    """Per problem and format the lowest loss known of each seed's instance, above the noise floor."""
    best: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        known = best.setdefault(instance(row), {})
        for found in (excess([row]), excess([row], "optimum")):
            for seed, value in found.items():
                known[seed] = min(value, known.get(seed, math.inf))
    return best


def _find(reference: str | None, lines: list[Line], methods: list[list[Row]]) -> int | None:
    """Which line is the reference: by label, else by the method's name; of several settings, the best."""
    names = [method_name(runs[0]["config"]["method"]) for runs in methods]
    at = [k for k, line in enumerate(lines) if line.method == reference]
    at = at or [k for k, name in enumerate(names) if name == reference]
    several = sorted({lines[k].method for k in at})
    if len(several) > 1:
        raise ValueError(f"reference={reference!r} names several methods; valid: {', '.join(several)}")
    return min(at, key=lambda k: _rank(lines[k].rtn_loss), default=None)


def _compare(lines: list[Line], losses: list[dict[int, float]], at: int) -> list[Line]:
    tests: dict[int, Paired] = {}
    for k, found in enumerate(losses):
        if k != at and found.keys() & losses[at].keys():
            tests[k] = paired(found, losses[at])
    adjusted = dict(zip(tests, holm([t.p_value for t in tests.values()]), strict=True))
    return [
        replace(
            line, reference=k == at, over_reference=ratio(losses[k], losses[at]), comparison=tests.get(k),
            p_holm=adjusted.get(k),
        )
        for k, line in enumerate(lines)
    ]  # fmt: skip


# --- rounding and tuning ---------------------------------------------------------------------------------------------


def rounding_table(rows: Iterable[Row], experiment: str = "") -> list[RoundingLine]:
    """Rounding schemes by problem (with its dimension) and format, lowest mean ratio to the optimum first.

    ``experiment``: what the lines call it. Tuning and timing runs are left out. Raises ValueError where there are no
    others.
    """
    found = [r for r in of_kind(rows, "round") if r["phase"] not in ("tune", "timing")]
    if not found:
        raise ValueError("rows: of kind 'round' there are only tuning and timing runs")
    out = []
    for (problem, format), group in grouped(found, instance).items():
        lines = [rounding_line(problem, format, label, runs) for label, runs in by_method(group, ()).items()]
        out += sorted(lines, key=lambda line: _rank(line.ratio))
    return [replace(line, experiment=experiment) for line in out]


def rounding_line(problem: str, format: str, label: str, runs: Sequence[Row]) -> RoundingLine:
    """The line of one scheme's runs on instances that differ in their seeds only."""
    grid = next((r["metrics"]["grid"] for r in runs if "grid" in r["metrics"]), "fixed")
    hits = values(runs, "optimal") if grid == "fixed" else {}
    seconds = values(runs, "seconds")
    return RoundingLine(
        problem, format, label, len(values(runs, "loss")), sum(r["status"] != "ok" for r in runs),
        proportion_interval(int(sum(hits.values())), len(hits)) if hits else None,
        _mean(values(runs, "ratio")), median(seconds.values()) if seconds else None, grid,
    )  # fmt: skip


def tuning_table(rows: Iterable[Row], tuned: Collection[str] | None = None) -> list[TuningLine]:
    """Every configuration that was tried per experiment, problem, format and method, in order of its settings.

    Raises ValueError where nothing was tuned.
    """
    rows = list(rows)
    there = [kind for kind in ("train", "round") if any(r["kind"] == kind for r in rows)] or ["train"]
    found = [r for kind in there for r in of_kind(rows, kind) if r["phase"] in ("tune", "final")]
    if not any(r["phase"] == "tune" for r in found):
        raise ValueError("rows: none of phase 'tune'")
    out = []
    for place, group in grouped(found, lambda r: (r["experiment"], *instance(r))).items():
        # Tuning runs may be shorter than final ones: only steps that vary among themselves tell them apart.
        if len({r["config"].get("steps") for r in group if r["phase"] == "tune"}) == 1:
            group = [{**r, "config": {**r["config"], "steps": None}} for r in group]
        for label, runs in by_method(group, tuned).items():
            if not any(r["phase"] == "tune" for r in runs):
                continue  # A scheme with nothing to tune.
            grid = _by_settings([r for r in runs if r["phase"] == "tune"], tuned)
            used = _by_settings([r for r in runs if r["phase"] == "final"], tuned).keys()
            out += _grid_lines(place, label, grid, used, tuned)
    return out


def _grid_lines(
    place: tuple[str, str, str],
    label: str,
    grid: Mapping[str, list[Row]],
    used: Collection[str],
    tuned: Collection[str] | None,
) -> list[TuningLine]:
    means = {k: _mean(values(runs, _score(runs))) for k, runs in grid.items()}
    bad = {k: sum(r["status"] != "ok" for r in runs) for k, runs in grid.items()}
    settings = {k: tuned_settings(runs[0], tuned) for k, runs in grid.items()}
    sound = [k for k in grid if means[k] is not None and not bad[k]]
    chosen = used or sorted(sound, key=lambda k: _rank(means[k]))[:1]
    return [
        TuningLine(
            *place, label, settings[k], len(grid[k]) - bad[k], bad[k], means[k], k in chosen,
            _edges(settings[k], list(settings.values())) if k in chosen else (),
        )
        for k in sorted(grid, key=lambda k: [(isinstance(v, str), v) for v in settings[k].values()])
    ]  # fmt: skip


def _score(runs: Sequence[Row]) -> str:
    """What tuning lowers: the loss after rounding to nearest in training, the loss of the scheme in rounding."""
    return "rtn_loss" if runs[0]["kind"] == "train" else "loss"


def _edges(chosen: Mapping[str, Any], grid: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Numeric settings whose chosen value has no tried neighbour on one side; a single value is no grid."""
    out = []
    for key, value in chosen.items():
        tried = sorted({g[key] for g in grid if isinstance(g.get(key), int | float)})
        if len(tried) > 1 and value in (tried[0], tried[-1]):
            out.append(f"{key} {'lowest' if value == tried[0] else 'highest'} of {len(tried)}")
    return tuple(out)


def _by_settings(rows: Iterable[Row], tuned: Collection[str] | None) -> dict[str, list[Row]]:
    return grouped(rows, lambda r: canonical(tuned_settings(r, tuned)))


def _mean(found: Mapping[int, float]) -> Interval | None:
    return mean_interval(found.values()) if found else None


def _rank(interval: Interval | None) -> float:
    return math.inf if interval is None else interval.value
