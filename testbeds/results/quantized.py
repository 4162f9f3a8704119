"""Tables of whole networks that were quantized, from the rows of a sweep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import ClassVar

from .rows import Row, by_method, grouped, instance, of_kind, values
from .statistics import Interval, format_interval, format_number, mean_interval
from .table import Column, Table, count

REFERENCES = ("gptq (curvature)", "gptq")
"""Labels of what schemes are compared with, the first that is there."""


@dataclass(frozen=True)
class QuantizedLine:
    """One scheme on one network and format; intervals are over draws of the calibration, at 95 %.

    ``gap``: loss after quantization minus that of the float weights, on the same held-out windows. ``difference``: of
    the gap from that of the ``reference`` scheme, paired by draw. ``error``: geometric mean over matrices of the output
    error over that of RTN, mean over draws. ``bits``: per quantized weight. ``seconds``: median; ``memory``: the most
    bytes of a process.
    """

    problem: str
    format: str
    method: str
    draws: int
    failed: int
    float_loss: float | None
    loss: Interval | None
    gap: Interval | None
    difference: Interval | None
    error: Interval | None
    bits: float | None
    seconds: float | None
    memory: float | None
    reference: bool = False
    experiment: str = ""

    table: ClassVar = Table(
        columns=(
            Column("scheme", "method", lambda x: x.method + (" (reference)" if x.reference else "")),
            Column("loss", "loss", lambda x: format_interval(x.loss)),
            Column("gap to float", "gap", lambda x: format_interval(x.gap)),
            Column("gap − reference's", "difference", lambda x: format_interval(x.difference)),
            Column("output error / RTN's", "error", lambda x: format_interval(x.error)),
            Column("bits", "bits", lambda x: format_number(x.bits, 3)),
            Column("seconds", "seconds", lambda x: format_number(x.seconds, 3)),
            Column("MiB", "memory", lambda x: "" if x.memory is None else f"{x.memory / 2**20:,.0f}"),
            Column("draws", "draws", lambda x: str(x.draws)),
            Column("failed", "failed", lambda x: count(x.failed)),
        ),
        legend="±: 95 % t interval of the mean over draws of the calibration text. The loss is measured on the same "
        "held-out windows for all. Output error: of each matrix on the inputs it gets, geometric mean over matrices.",
        title=lambda line: (
            f"{line.experiment}: " * bool(line.experiment) + f"{line.problem}, {line.format}"
            + ("" if line.float_loss is None else f", float loss {format_number(line.float_loss, 4)}")
        ),
    )  # fmt: skip


def quantized_table(rows: Iterable[Row], experiment: str = "", reference: str | None = None) -> list[QuantizedLine]:
    """Schemes by network and format, least gap first; ``reference``: the scheme to compare with, by default GPTQ in the
    order of curvature, or else as the columns come.

    Raises ValueError where there are no such rows.
    """
    found = of_kind(rows, "quantize")
    if not found:
        raise ValueError("rows: none of kind 'quantize'")
    out = []
    for (problem, format), group in grouped(found, instance).items():
        methods = by_method(group, ())
        base = _reference(methods, reference)
        gaps = {label: values(runs, "gap") for label, runs in methods.items()}
        lines = []
        for label, runs in methods.items():
            paired = {} if base is None or label == base else {
                key: gap - gaps[base][key] for key, gap in gaps[label].items() if key in gaps[base]
            }  # fmt: skip
            lines.append(_line(problem, format, label, runs, paired, label == base))
        out += sorted(lines, key=lambda line: float("inf") if line.gap is None else line.gap.value)
    return [replace(line, experiment=experiment) for line in out]


def _reference(methods: Iterable[str], reference: str | None) -> str | None:
    known = set(methods)
    return next((label for label in ((reference,) if reference else REFERENCES) if label in known), None)


def _line(problem: str, format: str, label: str, runs: list[Row], paired: dict, is_reference: bool) -> QuantizedLine:
    def over_draws(key: str) -> Interval | None:
        found = list(values(runs, key).values())
        return mean_interval(found) if found else None

    def middle(key: str) -> float | None:
        found = list(values(runs, key).values())
        return median(found) if found else None

    return QuantizedLine(
        problem, format, label, len(values(runs, "gap")), sum(r["status"] != "ok" for r in runs), middle("float_loss"),
        over_draws("loss"), over_draws("gap"), mean_interval(list(paired.values())) if paired else None,
        over_draws("error"), middle("bits"), middle("seconds"), max(values(runs, "memory").values(), default=None),
        is_reference,
    )  # fmt: skip
