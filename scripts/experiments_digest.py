"""Tables of experiments, each number computed from a stored run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from testbeds.results.budgets import budget
from testbeds.results.estimators import estimators
from testbeds.results.findings import over_best_other
from testbeds.results.leaderboard import Line, default_reference, leaderboard, rounding_table
from testbeds.results.lines import span
from testbeds.results.rounders import case_ratios
from testbeds.results.rows import at_best, by_method, excess, final_runs, values
from testbeds.results.rows import ratio as row_ratio
from testbeds.results.statistics import (
    Interval,
    average,
    format_interval,
    geometric_interval,
    mean_interval,
    paired,
)
from testbeds.results.widths import compared, width_ratios
from testbeds.sweep.results import stored_rows

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "results" / "sweeps" / "paper.jsonl.xz"
_rows: dict[str, list[dict[str, Any]]] = {}


def of(experiment: str) -> list[dict[str, Any]]:
    """The stored runs of one experiment."""
    if not _rows:
        for row in stored_rows(ARCHIVE):
            _rows.setdefault(row["experiment"], []).append(row)
    return _rows[experiment]


@cache
def board(experiment: str) -> list[Line]:
    """Its leaderboard against detached QAT."""
    rows = of(experiment)
    return leaderboard(rows, experiment, default_reference(rows))


def ratio(line: Line) -> str:
    """RTN loss over that of the reference, with its interval."""
    return "1" if line.reference else span(line.over_reference)


def name(method: str) -> str:
    """A method's label, the toolkit's own in bold."""
    return f"**{method}**" if method.startswith("lotion") else method


def training() -> str:
    """Linear regression at d = 12,000: every method at INT4 and INT8."""
    lines = board("linear-regression")
    problem = lines[0].problem
    found = {(line.phase, line.format, line.method): line for line in lines}
    order = [line for line in lines if line.phase == "final" and line.format == "int4"]
    out = [
        "| method | INT4: RTN loss | RR loss | float loss | RTN ÷ attached QAT's | RTN ÷ detached QAT's | the same, equal time | INT8: RTN ÷ attached QAT's | RTN ÷ detached QAT's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in order:
        same_time = found.get(("equal_time", "int4", line.method))
        eight = found.get(("final", "int8", line.method))
        losses = (format_interval(x) for x in (line.rtn_loss, line.rr_loss, line.float_loss))
        over = (
            over_attached(line), ratio(line), "" if same_time is None else ratio(same_time),
            "" if eight is None else over_attached(eight), "" if eight is None else ratio(eight),
        )  # fmt: skip
        out.append(f"| {name(line.method)} | {' | '.join((*losses, *over))} |")
    seeds = order[0].seeds
    return "\n".join([
        *out, "",
        f"`{problem}`, one scale for all weights, Adam with a cosine schedule, 3,000 steps, {seeds} seeds; mean ± 95 % t interval, ratios geometric with 95 % intervals.",
        f"{spent('linear-regression')} Equal time: as many steps as detached QAT's time allows.",
    ])  # fmt: skip


def over_attached(line: Line) -> str:
    """RTN loss over that of QAT whose gradient goes through the scale, with its interval."""
    runs = at_best([r for r in final_runs(of(line.experiment), "train") if r["config"]["format"] == line.format])
    mine, theirs = runs.get(line.method), runs.get("qat (attached)")
    if mine is None or theirs is None:
        return ""
    return "1" if line.method == "qat (attached)" else span(row_ratio(excess(mine), excess(theirs)))


def spent(experiment: str) -> str:
    """The tuning budget of an experiment, and whose choices lie at an edge."""
    found = budget(of(experiment), experiment)
    assert found is not None, "an experiment that was tuned"
    return f"{found.words} {found.at_edges}".strip()


def rivals() -> str:
    """Methods that appeared since, and the best single scale, beside QAT and LOTION."""
    runs = final_runs(of("rivals"), "train")
    formats = sorted({r["config"]["format"] for r in runs})
    boards = {f: at_best([r for r in runs if r["config"]["format"] == f]) for f in formats}
    first = boards[formats[0]]
    order = sorted(first, key=lambda label: average(values(first[label], "rtn_loss").values()))
    heads = ["RTN loss", "RR loss", "float loss", "RTN ÷ attached QAT's", "RTN ÷ the best scale's"]
    out = [
        "| method | " + " | ".join(f"{f.upper()}: {heads[0]} | {' | '.join(heads[1:])}" for f in formats) + " |",
        "|---|" + "---:|" * len(heads) * len(formats),
    ]
    for label in order:
        cells = []
        for f in formats:
            mine = boards[f].get(label)
            for loss in ("rtn_loss", "rr_loss", "float_loss"):
                cells.append("" if mine is None else format_interval(mean_interval(values(mine, loss).values())))
            for other in ("qat (attached)", "best_scale"):
                same = "" if mine is None else span(row_ratio(excess(mine), excess(boards[f][other])))
                cells.append("1" if label == other else same)
        out.append(f"| {name(label)} | {' | '.join(cells)} |")
    return "\n".join([
        *out, "",
        f"The same problem, steps and instances as above. `best_scale`: the float optimum, rounded to nearest on the best single scale; nothing is trained. {spent('rivals')}",
    ])  # fmt: skip


def network() -> str:
    """The ReLU network on digits: every method by format."""
    formats = ("int2", "int3", "int4")
    boards = {f: at_best([r for r in final_runs(of("digits"), "train") if r["config"]["format"] == f]) for f in formats}
    order = sorted(boards["int2"], key=lambda label: average(values(boards["int2"][label], "rtn_loss").values()))
    out = [
        "| method | " + " | ".join(f"{f.upper()}: RTN loss | RR loss | accuracy (RTN), test" for f in formats) + " |",
        "|---|" + "---:|---:|---:|" * len(formats),
    ]
    for label in order:
        cells = []
        for f in formats:
            runs = boards[f].get(label, [])
            rtn, rr, right = (values(runs, m) for m in ("rtn_loss", "rr_loss", "test_rtn_accuracy"))
            cells += [format_interval(mean_interval(x.values())) if x else "" for x in (rtn, rr)]
            cells.append(f"{average(right.values()):.1%}" if right else "")
        out.append(f"| {name(label)} | {' | '.join(cells)} |")
    return "\n".join([
        *out, "",
        f"Training loss of a ReLU network with 32 hidden units, batches of 64, 1,500 steps, 10 seeds; mean ± 95 % t interval; accuracies are means on held-out digits. {spent('digits')}",
    ])  # fmt: skip


def ramp() -> str:
    """What the ramp is worth on a rotated problem."""
    told = []
    for format in ("int4", "int2"):
        runs = by_method([r for r in of("rotated") if r["phase"] == "final" and r["config"]["format"] == format])
        found = paired(excess(runs["lotion (ramp=1, attached)"]), excess(runs["lotion (attached)"])).geometric
        told.append(f"{span(found)} ({format.upper()})")
    return f"LOTION with one has {' and '.join(told)} times the RTN loss of LOTION without"


def formats() -> str:
    """LOTION with the moving scale against the best other method, format by format."""
    out = [
        "| format | LOTION, attached scale | LOTION, detached | best other method | attached ÷ best other |",
        "|---|---:|---:|---|---:|",
    ]
    for format, (best, versus) in over_best_other(of("formats"), "formats", "lotion (attached)").items():
        lines = {x.method: x for x in board("formats") if x.format == format and x.phase == "final"}
        attached, detached, other = (lines[m] for m in ("lotion (attached)", "lotion (detached)", best))
        out.append(
            f"| `{format}` | {format_interval(attached.rtn_loss)} | {format_interval(detached.rtn_loss)} "
            f"| {other.method}: {format_interval(other.rtn_loss)} | {span(versus)} |"
        )
    return "\n".join(
        [
            *out,
            "",
            f"RTN losses, d = 12,288, 2,000 steps, 10 seeds; LOTION without a ramp; other methods: PTQ, QAT with detached and attached scale, RR-STE, CAGE. {spent('formats')}",
        ]
    )


def widths() -> str:
    """The two-layer network by width: LOTION over the others, and the differences."""
    runs = final_runs(of("two-layer"), "train")
    sizes = sorted({r["config"]["problem"]["k"] for r in runs})
    method, references = compared(runs)
    _, ratios = width_ratios(runs, method, references)
    out = ["| format | | " + " | ".join(f"k = {k}" for k in sizes) + " |", "|---|---|" + "---:|" * len(sizes)]
    for format in dict.fromkeys(r["config"]["format"] for r in runs):
        cells: dict[str, list[str]] = {}
        for k in sizes:
            mine = at_best([r for r in runs if r["config"]["format"] == format and r["config"]["problem"]["k"] == k])
            losses = {m: excess(mine[m]) for m in (method, *references)}
            names = dict(zip(losses, ("LOTION", "QAT", "PTQ"), strict=True))
            for other in references:
                cells.setdefault(f"LOTION ÷ {names[other]}", []).append(span(ratios[other, format].get(k)))
            found = paired(losses[references[0]], losses[method]).difference
            cells.setdefault("QAT - LOTION", []).append(format_interval(found))
            for m, name in names.items():
                cells.setdefault(name, []).append(format_interval(mean_interval(losses[m].values())))
        out += [f"| `{format}` | {what} | " + " | ".join(line) + " |" for what, line in cells.items()]
    return "\n".join(
        [
            *out,
            "",
            "RTN loss above the smallest possible, d = m = 32; LOTION with attached scale and Gauss-Newton curvature, no ramp; QAT with detached scale. Ratios are geometric means, ± and [ ] 95 % intervals over 10 seeds.",
        ]
    )


def rounders() -> str:
    """Share of exact optima and mean ratio, by dimension, INT4."""
    lines = [x for x in rounding_table(of("rounding")) if x.format == "int4"]
    sizes = list(dict.fromkeys(x.problem for x in lines))
    labels = sorted(dict.fromkeys(x.method for x in lines), key=lambda m: -_share(lines, m, sizes[-1]))
    heads = [s.split("d=")[1].split(" ")[0] for s in sizes]
    out = [
        "| scheme | " + " | ".join(f"d = {h}: optimum found | loss ÷ optimum" for h in heads) + " |",
        "|---|" + "---:|---:|" * len(sizes),
    ]
    for label in labels:
        cells = []
        for size in sizes:
            x = next(x for x in lines if x.method == label and x.problem == size)
            cells += [
                "" if x.optimal is None else f"{x.optimal.value:.0%} [{x.optimal.low:.0%}, {x.optimal.high:.0%}]",
                format_interval(x.ratio),
            ]
        out.append(f"| {name(label)} | " + " | ".join(cells) + " |")
    count = lines[0].instances
    return "\n".join(
        [
            *out,
            "",
            f"INT4, one scale, H with spectrum i^-1.1 and Haar eigenvectors, w* ~ N(0, I), {count} instances; optimum over the whole grid by exact search. `clip_search` changes the scale, so it may lie below 1.",
        ]
    )


def layers() -> str:
    """Trained layers and d = 256: loss over round-to-nearest's, by scheme."""
    places = [
        (e, f)
        for e, fs in (
            ("real-layers", ("int4/absmax/row", "int3/absmax/block=32")),
            ("rounding-large", ("int4", "int3")),
        )
        for f in fs
    ]
    found: dict[str, dict[tuple[str, str], Interval]] = {}
    for experiment, format in places:
        mine = [r for r in of(experiment) if r["config"]["format"] == format]
        for label, ratios in case_ratios(mine, "rtn").items():
            found.setdefault(_short(label), {})[experiment, format] = geometric_interval(one.value for one in ratios)
    order = sorted(found, key=lambda label: min(i.value for i in found[label].values()))
    heads = [f"{'trained layers' if e == 'real-layers' else 'd = 256'}, `{f}`" for e, f in places]
    out = ["| scheme | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(places)]
    for label in order:
        if label != "rtn" and len(found[label]) == len(places):
            out.append(f"| {name(label)} | " + " | ".join(span(found[label][p]) for p in places) + " |")
    return "\n".join(
        [
            *out,
            "",
            "Loss over that of round-to-nearest on the same weights, geometric means: three layers of all-MiniLM-L6-v2 (0.query, 2.mix, 3.up), 5 choices of 32 rows each, with the second moment of real inputs (intervals over all 15: they say nothing of other layers), and 10 random instances. GPTQ has damping 0.01 on trained layers and none on random instances. `clip_search` changes the scale.",
        ]
    )


def _short(label: str) -> str:
    """Settings that the two experiments do not share are left out of the name."""
    return {"gptq (damping=0, natural)": "gptq (natural)", "gptq (damping=0, curvature)": "gptq (curvature)"}.get(
        label, label
    )


def _share(lines: Sequence[Any], label: str, size: str) -> float:
    found = next(x for x in lines if x.method == label and x.problem == size)
    return -1.0 if found.optimal is None else found.optimal.value - found.ratio.value / 1e3


def studies() -> str:
    """One line per smaller study."""
    steps = json.loads((ROOT / "results/benchmarks/descent.json").read_text(encoding="utf-8"))
    cost = {(r["method"], r["contender"]): r for r in steps["steps"]}
    fast, plain, torch = (cost["lotion", c] for c in ("compiled", "plain numpy", "torch eager"))
    sizes = steps["sizes"]
    solvers = json.loads((ROOT / "results/benchmarks/exact_solvers.json").read_text(encoding="utf-8"))["rows"]

    def seconds(solver: str, d: int) -> float:
        return median(r["seconds"] for r in solvers if r["solver"].startswith(solver) and r["d"] == d)

    minima = [r for e in ("minima", "minima-steep") for r in of(e) if r["status"] == "ok"]
    starts, ends = (sum(r["metrics"][k] for r in minima) for k in ("starts", "descents"))
    kept = sum(r["metrics"]["global_kept"] for r in minima)
    bias = {label: e.spreads["bias"]["int4"].median for label, e in estimators(of("estimators")).items()}
    attached = next(v for k, v in bias.items() if k.startswith("lotion") and "detached" not in k)
    return "\n".join([
        "| study | measured | command |",
        "|---|---|---|",
        f"| Descent on the smoothed loss of a frozen lattice ends in the enumerated minima (C11) | {ends:,} of {starts:,} descents; the global minimum is kept on {kept} of {len(minima)} instances | `lotion sweep paper --only minima minima-steep` |",
        f"| Which gradient a method follows: distance of its mean direction from the exact gradient, over the gradient's norm (INT4, median) | LOTION attached {attached:.1g}, detached {bias['lotion (detached)']:.2f}, RR-STE {bias['rr_ste']:.2f}, no smoothing at all {bias['ptq']:.2f}, QAT {bias['qat (detached)']:.2f} | `lotion sweep paper --only estimators` |",
        f"| Exact search against SCIP and CP-SAT on the same instances (d = 16, INT4; d = 40) | {seconds('closest_vector', 16):.2g} s, {seconds('scip', 16):.2g} s, {seconds('cp-sat', 16):.2g} s; at d = 40 {seconds('closest_vector', 40):.2g} s, SCIP stops at its limit of {seconds('scip', 40):.0f} s | `python benchmarks/exact_solvers.py` |",
        f"| One LOTION step with Adam, d = 12,000 | {fast['microseconds_per_step']:.0f} µs; the plain numpy step with the same bits × {plain['ratio']:.0f}, eager torch × {torch['ratio']:.0f}; {min(r['nanoseconds_per_weight'] for r in sizes):.1f} to {max(r['nanoseconds_per_weight'] for r in sizes):.1f} ns per weight from {sizes[0]['weights']:,} to {sizes[-1]['weights']:,} weights | `python benchmarks/descent.py` |",
    ])  # fmt: skip


__all__ = ["ARCHIVE", "formats", "layers", "network", "rivals", "rounders", "studies", "training", "widths"]
