"""Tables about where curvature is measured, each number computed from a stored run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from experiments_digest import name, ratio

from testbeds.results.estimators import estimator_lines
from testbeds.results.findings import span
from testbeds.results.leaderboard import Line, leaderboard, tuning_table
from testbeds.results.rows import by_method, final_runs, values
from testbeds.results.statistics import format_interval, paired
from testbeds.sweep.results import stored_rows

ARCHIVE = Path(__file__).resolve().parent.parent / "results" / "sweeps" / "curvature.jsonl.xz"
STEPS = (300, 30)
REFERENCE = "qat (detached)"
PLACES = ("weight", "rounded", "mixture")


@cache
def rows() -> list[dict[str, Any]]:
    """All stored runs of the preset."""
    return stored_rows(ARCHIVE)


def of(experiment: str) -> list[dict[str, Any]]:
    """Those of one experiment."""
    return [row for row in rows() if row["experiment"] == experiment]


def bits(format: str) -> str:
    """The codebook as it is spoken of."""
    return format.split("/")[0].upper()


def losses(steps: int) -> list[str]:
    """The table of one number of steps: float, RTN and RR loss and the gap by format."""
    experiment = f"fine-tuning-{steps}"
    lines = leaderboard(of(experiment), experiment, REFERENCE)
    edges = {(x.format, x.method): bool(x.edges) for x in tuning_table(of(experiment)) if x.chosen}
    out = [
        f"| {steps} steps | format | RTN loss | RR loss | float loss | gap | RTN ÷ QAT's | learning rate |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for format in dict.fromkeys(line.format for line in lines):
        for line in (one for one in lines if one.format == format):
            edge = ", edge" if edges.get((format, line.method)) else ""
            out.append(
                f"| {name(line.method)} | {bits(format)} | {format_interval(line.rtn_loss)} | {format_interval(line.rr_loss)} "
                f"| {format_interval(line.float_loss)} | {format_interval(line.gap)} | {ratio(line)} | {line.tuned['lr']:g}{edge} |"
            )
    return out


def fine_tuning() -> str:
    """All numbers of steps."""
    out = [line for steps in STEPS for line in (*losses(steps), "")]
    line = leaderboard(of("fine-tuning-300"), "fine-tuning-300", REFERENCE)[0]
    return "\n".join([
        *out,
        f"`{line.problem}`, training losses, {line.seeds} seeds, mean ± 95 % t interval, ratios geometric; one scale per row, Adam with a cosine schedule. Every method had 6 learning rates",
        "on another instance; \"edge\" marks those chosen at an end of that grid. LOTION: λ = 1, attached scale, exact Gauss-Newton diagonal on all training images every 5 steps.",
    ])  # fmt: skip


def verdict() -> str:
    """LOTION at each place over the better QAT, by format and number of steps: RTN, RR and float loss."""
    out = [
        "| ratio to the better of both QATs | "
        + " | ".join(f"curvature at {p}" for p in PLACES)
        + " | sampled gradient |",
        "|---|---:|---:|---:|---:|",
    ]
    for steps in STEPS:
        runs = final_runs(of(f"fine-tuning-{steps}"), "train")
        for format in dict.fromkeys(r["config"]["format"] for r in runs):
            methods = by_method([r for r in runs if r["config"]["format"] == format])
            for metric, words in (("rtn_loss", "RTN"), ("rr_loss", "RR"), ("float_loss", "float")):
                other = methods[best_qat(methods, metric)]
                cells = [over(methods, place, other, metric) for place in (*PLACES, "sampled")]
                out.append(f"| {bits(format)}, {steps} steps, {words} loss | {' | '.join(cells)} |")
    return "\n".join(out)


def over(methods: Mapping[str, Sequence[Any]], place: str, other: Sequence[Any], metric: str) -> str:
    """Geometric ratio by seed with its interval; empty where the method was not run."""
    mine = next((rows for label, rows in methods.items() if is_place(label, place)), None)
    return "" if mine is None else span(paired(values(mine, metric), values(other, metric)).geometric)


def is_place(label: str, place: str) -> bool:
    """Whether a label is LOTION with its curvature at ``place``; "sampled": with the gradient at RR(w) too."""
    settings = label.partition("(")[2].rstrip(")").split(", ")
    sampled = settings.count("rounded") > 1
    return label.startswith("lotion") and (sampled if place == "sampled" else not sampled and place in settings)


def best_qat(methods: Mapping[str, Sequence[Any]], metric: str) -> str:
    """The QAT of the lower mean loss."""
    labels = [label for label in methods if label.startswith("qat")]
    return min(labels, key=lambda label: sum(values(methods[label], metric).values()))


def followed() -> str:
    """Bias and deviation of the gradients, on a moving and on a fixed lattice."""
    moving, fixed, pairs = (
        {line.method: line for line in estimator_lines(of(e), e)}
        for e in ("estimators-path", "estimators-path-fixed", "estimators-path-pairs")
    )
    out = [
        "| method | bias, moving lattice | bias, fixed lattice | deviation of a draw | of an antithetic pair |",
        "|---|---:|---:|---:|---:|",
    ]
    for label, line in moving.items():
        pair = pairs.get(label)
        out.append(
            f"| {name(label)} | {format_interval(line.bias)} | {format_interval(fixed[label].bias)} | {format_interval(line.deviation)} "
            f"| {'' if pair is None else format_interval(pair.deviation)} |"
        )
    line = next(iter(moving.values()))
    return "\n".join([
        *out, "",
        f"Over the norm of the exact gradient of the smoothed loss; `{line.problem}`, INT3, one scale per matrix, {line.instances} instances, 200 draws each: an unbiased method shows a bias of",
        "its deviation over √200, or over √100 for pairs. Two independent draws would spread by 1/√2 of one.",
    ])  # fmt: skip


__all__ = ["ARCHIVE", "Line", "fine_tuning", "followed", "verdict"]
