"""Tables of language models, each number computed from a stored run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments_digest import name

from testbeds.results.rows import at_best, by_method, grouped, tuned_settings, values
from testbeds.results.statistics import Interval, format_interval, format_signed, mean_interval, paired
from testbeds.sweep.results import stored_rows

ARCHIVE = Path(__file__).resolve().parent.parent / "results" / "sweeps" / "lm.jsonl.xz"
LOSSES = ("rtn", "rr", "float")
Row = Mapping[str, Any]


def runs(experiment: str, phase: str = "final") -> list[Row]:
    """The stored runs of one experiment and phase."""
    return [r for r in stored_rows(ARCHIVE) if r["experiment"] == experiment and r["phase"] == phase]


def mean(rows: Sequence[Row], metric: str) -> str:
    """Mean with its interval, in nats."""
    return format_interval(mean_interval(values(rows, metric).values()))


def signed(found: Interval) -> str:
    """A difference with the ends of its interval, to three places, in bold where the interval leaves out zero."""
    text = format_signed(found)
    return f"**{text}**" if (found.low or 0.0) * (found.high or 0.0) > 0 else text


def against(rows: Sequence[Row], other: Sequence[Row], metric: str) -> str:
    """Paired difference by seed."""
    return signed(paired(values(rows, metric), values(other, metric)).difference)


def setting(row: Row) -> str:
    """Tuned settings of a method in short."""
    names = {"weight": "λ"}
    return ", ".join(f"{names.get(k, k)} = {v:.3g}" for k, v in tuned_settings(row).items())


def language() -> str:
    """All methods at INT4, one scale per matrix."""
    methods = at_best(runs("lm-int4"))
    qat = methods["qat"]
    out = [
        "| method | RTN loss | RR loss | float loss | RTN − QAT's | RR − QAT's | tuned |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    order = sorted(methods, key=lambda label: mean_interval(values(methods[label], "rtn_loss").values()).value)
    for label in order:
        mine = methods[label]
        cells = [mean(mine, f"{loss}_loss") for loss in LOSSES]
        cells += ["0"] * 2 if mine is qat else [against(mine, qat, f"{loss}_loss") for loss in LOSSES[:2]]
        out.append(f"| {name(label)} | {' | '.join(cells)} | {setting(mine[0])} |")
    one = qat[0]
    size, steps = one["metrics"]["parameters"], one["config"]["steps"]
    return "\n".join([
        *out, "",
        f"Decoder of {size:,} parameters ({one['metrics']['quantized_parameters']:,} quantized), bytes of the embedded text, {steps:,} steps of "
        f"{one['config']['problem']['batch']} × {one['config']['problem']['context']} tokens, {len(qat)} seeds; nats per byte on held-out text, mean ± 95 % t interval; differences paired by seed, "
        "bold where the 95 % interval leaves out 0. Every method had 4 tuning runs on another seed.",
    ])  # fmt: skip


def language_formats() -> str:
    """By number format, at one learning rate."""
    out = [
        "| format | PTQ: RTN / RR | QAT: RTN / RR | LOTION: RTN / RR | LOTION − QAT: RTN | LOTION − QAT: RR | LOTION − PTQ: RTN |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    found = runs("lm-formats")
    for format, mine in grouped(found, lambda r: r["config"]["format"]).items():
        methods = by_method(mine)
        attached, qat, ptq = (
            next(m for k, m in methods.items() if k.startswith("lotion")),
            methods["qat"],
            methods["ptq"],
        )
        cells = [
            " / ".join(f"{mean_interval(values(m, f'{loss}_loss').values()).value:.3f}" for loss in LOSSES[:2])
            for m in (ptq, qat, attached)
        ]
        cells += [
            against(attached, qat, "rtn_loss"),
            against(attached, qat, "rr_loss"),
            against(attached, ptq, "rtn_loss"),
        ]
        out.append(f"| `{format}` | {' | '.join(cells)} |")
    lr = found[0]["config"]["lr"]
    return "\n".join(
        [
            *out,
            "",
            f"The same model and steps; LOTION with attached scale and λ = 1; learning rate {lr:g} for all (not tuned by format), 5 seeds; differences as above.",
        ]
    )


def language_studies() -> str:
    """λ, the source of curvature, and equal time."""
    out = ["| study | setting | RTN loss | RR loss | float loss |", "|---|---|---:|---:|---:|"]
    for weight, part in sorted(grouped(runs("lm-lambda"), lambda r: r["config"]["method"]["weight"]).items()):
        out.append(f"| λ | {weight:g} | {_losses(part)} |")
    for source, part in grouped(runs("lm-curvature"), lambda r: r["config"]["method"]["curvature"]).items():
        out.append(f"| curvature | {source} | {_losses(part)} |")
    for label, part in by_method(runs("lm-equal-time", "equal_time")).items():
        out.append(f"| QAT's time | {label}: {part[0]['config']['steps']:,} steps | {_losses(part)} |")
    one = runs("lm-lambda")[0]["config"]
    lr, steps = one["lr"], one["steps"]
    return "\n".join(
        [
            *out,
            "",
            f"INT4, one scale per matrix, 5 seeds, mean ± 95 % t interval; attached scale; λ and curvature at learning rate {lr:g}, the curvatures with λ = 1 (fisher: moving average of squared mean gradients; gnb: sampled labels; adam: the optimizer's second moments). QAT's time: steps that fit into the time of QAT's {steps:,}, at tuned settings.",
        ]
    )


def _losses(rows: Sequence[Row]) -> str:
    return " | ".join(mean(rows, f"{loss}_loss") for loss in LOSSES)
