"""The README's tables of experiments, each number computed from a stored run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from testbeds.leaderboard import Line, leaderboard, rounding_table
from testbeds.rows import by_method, excess, grouped, instance, values
from testbeds.statistics import Interval, format_interval, geometric_interval, mean_interval, paired
from testbeds.sweep.commands import default_reference
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


def span(found: Interval | None) -> str:
    """A ratio with the ends of its interval."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


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
        "| method | INT4: RTN loss | RR loss | float loss | RTN ÷ QAT's | the same, equal time | INT8: RTN ÷ QAT's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for line in order:
        same_time = found.get(("equal_time", "int4", line.method))
        eight = found.get(("final", "int8", line.method))
        out.append(
            f"| {name(line.method)} | {format_interval(line.rtn_loss)} | {format_interval(line.rr_loss)} "
            f"| {format_interval(line.float_loss)} | {ratio(line)} | {'' if same_time is None else ratio(same_time)} "
            f"| {'' if eight is None else ratio(eight)} |"
        )
    seeds = order[0].seeds
    return "\n".join([
        *out, "",
        f"`{problem}`, one scale for all weights, Adam with a cosine schedule, 3,000 steps, {seeds} seeds; mean ± 95 % t interval, ratios geometric with 95 % intervals.",
        "Every method had 12 tuning configurations on two other instances. Equal time: as many steps as detached QAT's time allows.",
    ])  # fmt: skip


def headlines() -> list[str]:
    """Rows for the README's table of findings; LOTION is the variant with a ramp over half of training throughout."""
    lines = {(x.format, x.method): x for x in board("linear-regression") if x.phase == "final"}
    four, eight = (lines[f, "lotion (ramp=0.5, attached)"] for f in ("int4", "int8"))
    detached, noisy, plain = (
        lines["int4", "lotion (ramp=0.5, detached)"],
        lines["int4", "diffq (attached)"],
        lines["int4", "ptq"],
    )
    runs = by_method([r for r in of("formats") if r["phase"] == "final" and r["config"]["format"] == "int2"])
    lost = paired(excess(runs["lotion (attached)"]), excess(runs["qat (attached)"])).geometric
    command = "`lotion sweep paper`"
    ratios = {
        f: _layer_ratios("lotion_ramp", "gptq (curvature)", f) for f in ("int4/absmax/row", "int3/absmax/block=32")
    }
    told = "; ".join(f"{f}: " + ", ".join(f"{v:.2f}" for v in by_layer.values()) for f, by_layer in ratios.items())
    return [
        f"| Linear regression, d = 12,000, 10 seeds: LOTION with the gradient through the moving scale, ramped over half of training, against QAT | RTN loss × {span(four.over_reference)} at INT4, × {span(eight.over_reference)} at INT8 | {command} |",
        f"| Without that gradient (detached scale) its RTN loss is that of rounding the float optimum; its RR loss is lower | RTN × {span(detached.over_reference)} of QAT, PTQ × {span(plain.over_reference)}; RR {format_interval(detached.rr_loss)} against {format_interval(plain.rr_loss)} | {command} |",
        f"| Plain noise through the moving scale (DiffQ) does as well at INT4 by RTN loss, not by RR loss | RTN {format_interval(noisy.rtn_loss)} against {format_interval(four.rtn_loss)}; RR {format_interval(noisy.rr_loss)} against {format_interval(four.rr_loss)} | {command} |",
        f"| At INT2 with one scale LOTION without a ramp loses to QAT with an attached scale | × {span(lost)} | {command} |",
        f"| As a rounding scheme, LOTION with its weight ramped up has less output error than GPTQ (by decreasing curvature) on each of three trained layers | ratio by layer, 5 choices of rows each: {told} | {command} |",
    ]


def ramp() -> str:
    """What the ramp is worth on a rotated problem."""
    told = []
    for format in ("int4", "int2"):
        runs = by_method([r for r in of("rotated") if r["phase"] == "final" and r["config"]["format"] == format])
        found = paired(excess(runs["lotion (ramp=1, attached)"]), excess(runs["lotion (attached)"])).geometric
        told.append(f"{span(found)} ({format.upper()})")
    return f"LOTION with one has {' and '.join(told)} times the RTN loss of LOTION without"


def _layer_ratios(label: str, other: str, format: str) -> dict[str, float]:
    """Geometric mean over choices of rows of the loss of one scheme over that of another, by layer."""
    mine = by_method([r for r in of("real-layers") if r["config"]["format"] == format], ())
    losses = [{_case(r): r["metrics"]["loss"] for r in mine[m]} for m in (label, other)]
    layers = dict.fromkeys(r["config"]["problem"]["layer"] for r in mine[label])
    return {
        layer: geometric_interval(
            losses[0][c] / losses[1][c] for c in losses[0] if json.loads(c[0])["layer"] == layer
        ).value
        for layer in layers
    }


def _best_other(lines: Sequence[Line]) -> Line:
    measured = [(x.rtn_loss.value, x) for x in lines if not x.method.startswith("lotion") and x.rtn_loss]
    return min(measured, key=lambda pair: pair[0])[1]


def formats() -> str:
    """LOTION with the moving scale against the best other method, format by format."""
    out = [
        "| format | LOTION, attached scale | LOTION, detached | best other method | attached ÷ best other |",
        "|---|---:|---:|---|---:|",
    ]
    rows = of("formats")
    for (_, format), mine in grouped([r for r in rows if r["phase"] == "final"], instance).items():
        lines = [x for x in board("formats") if x.format == format and x.phase == "final"]
        attached, detached = (next(x for x in lines if x.method == f"lotion ({s})") for s in ("attached", "detached"))
        other = _best_other(lines)
        runs = by_method(mine)
        versus = paired(excess(runs[attached.method]), excess(runs[other.method])).geometric
        out.append(
            f"| `{format}` | {format_interval(attached.rtn_loss)} | {format_interval(detached.rtn_loss)} "
            f"| {other.method}: {format_interval(other.rtn_loss)} | {span(versus)} |"
        )
    return "\n".join(
        [
            *out,
            "",
            "RTN losses, d = 12,288, 2,000 steps, 10 seeds, 6 tuning configurations each; LOTION without a ramp; other methods: PTQ, QAT with detached and attached scale, RR-STE, CAGE.",
        ]
    )


def widths() -> str:
    """The two-layer network by width: LOTION over the others, and the differences."""
    sizes = _widths()
    out = ["| format | | " + " | ".join(f"k = {k}" for k in sizes) + " |", "|---|---|" + "---:|" * len(sizes)]
    runs = [r for r in of("two-layer") if r["phase"] == "final"]
    for format in dict.fromkeys(r["config"]["format"] for r in runs):
        cells: dict[str, list[str]] = {}
        for k in sizes:
            mine = by_method([r for r in runs if r["config"]["format"] == format and r["config"]["problem"]["k"] == k])
            label = next(m for m in mine if m.startswith("lotion") and "(attached)" in m)
            lotion = excess(mine[label])
            for other in ("qat", "ptq"):
                theirs = excess(mine[other])
                versus = paired(lotion, theirs)
                cells.setdefault(f"LOTION ÷ {other.upper()}", []).append(span(versus.geometric))
            difference = mean_interval([-d for d in (lotion[s] - excess(mine["qat"])[s] for s in lotion)])
            cells.setdefault("QAT - LOTION", []).append(format_interval(difference))
            for what, losses in (("LOTION", lotion), ("QAT", excess(mine["qat"])), ("PTQ", excess(mine["ptq"]))):
                cells.setdefault(what, []).append(format_interval(mean_interval(losses.values())))
        out += [f"| `{format}` | {what} | " + " | ".join(line) + " |" for what, line in cells.items()]
    return "\n".join(
        [
            *out,
            "",
            "RTN loss above the smallest possible, d = m = 32; LOTION with attached scale and Gauss-Newton curvature, no ramp. Ratios are geometric means, ± and [ ] 95 % intervals over 10 seeds.",
        ]
    )


def _widths() -> list[int]:
    return sorted({r["config"]["problem"]["k"] for r in of("two-layer")})


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
        mine = by_method([r for r in of(experiment) if r["kind"] == "round" and r["config"]["format"] == format], ())
        nearest = {_case(r): r["metrics"]["loss"] for r in mine["rtn"]}
        for label, runs in mine.items():
            found.setdefault(_short(label), {})[experiment, format] = geometric_interval(
                r["metrics"]["loss"] / nearest[_case(r)] for r in runs
            )
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


def _case(row: Mapping[str, Any]) -> tuple[str, int]:
    return json.dumps(row["config"]["problem"], sort_keys=True), row["seed"]


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
    bias = {
        label: median(values(runs, "bias").values())
        for label, runs in by_method([r for r in of("estimators") if r["config"]["format"] == "int4"], ()).items()
    }
    attached = next(v for k, v in bias.items() if k.startswith("lotion") and "detached" not in k)
    return "\n".join([
        "| study | measured | command |",
        "|---|---|---|",
        f"| Descent on the smoothed loss of a frozen lattice ends in the enumerated minima (C11) | {ends:,} of {starts:,} descents; the global minimum is kept on {kept} of {len(minima)} instances | `lotion sweep paper --only minima minima-steep` |",
        f"| Which gradient a method follows: distance of its mean direction from the exact gradient, over the gradient's norm (INT4, median) | LOTION attached {attached:.1g}, detached {bias['lotion (detached)']:.2f}, RR-STE {bias['rr_ste']:.2f}, no smoothing at all {bias['ptq']:.2f}, QAT {bias['qat (detached)']:.2f} | `lotion sweep paper --only estimators` |",
        f"| Exact search against SCIP and CP-SAT on the same instances (d = 16, INT4; d = 40) | {seconds('closest_vector', 16):.2g} s, {seconds('scip', 16):.2g} s, {seconds('cp-sat', 16):.2g} s; at d = 40 {seconds('closest_vector', 40):.2g} s, SCIP stops at its limit of {seconds('scip', 40):.0f} s | `python benchmarks/exact_solvers.py` |",
        f"| One LOTION step with Adam, d = 12,000 | {fast['microseconds_per_step']:.0f} µs; the plain numpy step with the same bits × {plain['ratio']:.0f}, eager torch × {torch['ratio']:.0f}; {min(r['nanoseconds_per_weight'] for r in sizes):.1f} to {max(r['nanoseconds_per_weight'] for r in sizes):.1f} ns per weight from {sizes[0]['weights']:,} to {sizes[-1]['weights']:,} weights | `python benchmarks/descent.py` |",
    ])  # fmt: skip


__all__ = ["ARCHIVE", "formats", "layers", "rounders", "studies", "training", "widths"]
