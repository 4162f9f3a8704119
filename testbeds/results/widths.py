"""The advantage of one method over others against the width of a problem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .rows import Row, at_best, excess, final_runs, grouped, method_name, ratio
from .statistics import Interval


class Widths(NamedTuple):
    """``labels``: what the asked names were found as. ``ratios``: per (asked reference, format), by width."""

    labels: dict[str, str]
    ratios: dict[tuple[str, str], dict[float, Interval]]


def width_ratios(
    rows: Iterable[Row], method: str, references: Sequence[str] = ("qat", "ptq"), width: str = "k"
) -> Widths:
    """Ratios of RTN losses above the noise floor on the same seeds, geometric means, by the problem's ``width``.

    ``method`` and ``references``: labels or names of methods; each is taken at its best tuned settings. Raises
    ValueError for a name that several methods of one problem and format share.
    """
    runs = [r for r in final_runs(rows, "train") if width in r["config"]["problem"]]
    labels: dict[str, str] = {}
    ratios: dict[tuple[str, str], dict[float, Interval]] = {}
    places = grouped(runs, lambda r: (str(r["config"]["format"]), r["config"]["problem"][width]))
    for (format, k), mine in places.items():
        methods = at_best(mine)
        picked = {name: _pick(name, methods) for name in (method, *references)}
        for reference in references:
            a, b = picked[method], picked[reference]
            value = ratio(excess(methods[a]), excess(methods[b])) if a and b else None
            if a and b and value is not None:
                labels |= {method: a, reference: b}
                ratios.setdefault((reference, format), {})[k] = value
    return Widths(labels, ratios)


def varies(rows: Iterable[Row], width: str = "k") -> bool:
    """Whether the training runs' problems have several values of ``width``."""
    return len({r["config"]["problem"].get(width) for r in final_runs(rows, "train")} - {None}) > 1


def compared(rows: Iterable[Row]) -> tuple[str, tuple[str, ...]]:
    """The labels that are compared: LOTION with attached scale if it was run, else its first variant; QAT with the same
    scale where there are several; PTQ. Plain names stand for what was not run."""
    labels = list(at_best(final_runs(rows, "train")))
    ours = [label for label in labels if label.split(" ")[0] == "lotion"]
    method = "lotion (attached)" if "lotion (attached)" in ours else next(iter(ours), "lotion")
    scale = "attached" if method == "lotion (attached)" else "detached"
    same = next((label for label in (f"qat ({scale})", "qat (detached)") if label in labels), "qat")
    return method, (same, "ptq")


def _pick(name: str, methods: dict[str, list[Row]]) -> str | None:
    """The label that is ``name``, else the only one of a method of that name, None where there is none."""
    if name in methods:
        return name
    found = [label for label, runs in methods.items() if method_name(runs[0]["config"]["method"]) == name]
    if len(found) > 1:
        raise ValueError(f"{name!r} names several methods; valid: {', '.join(found)}")
    return found[0] if found else None
