"""Figures across the runs of an experiment as plain data: against width, λ, dimension; estimators; local minima."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .estimators import METRICS, estimators
from .minima import minima
from .rounders import by_dimension
from .rows import Row, grouped
from .sensitivity import LOSSES, by_weight, is_swept
from .statistics import Interval
from .widths import compared, varies, width_ratios

Figure = dict[str, Any]
"""``title``, ``caption``, axes ``x`` and ``y`` (label, log), ``series`` of ``{name, points: [[x, value, low, high]]}``,
the ends left out where there is no interval. ``y["rule"]``: a level line. ``dots``: points have names, listed
downwards, instead of a place on the horizontal axis, which then is that of the values."""
DIGITS = 4


def of_training(rows: Sequence[Row]) -> Iterator[Figure]:
    """Against the weight λ or the width of a network, where one of them takes several values."""
    if is_swept(rows):
        yield from _lambdas(rows)
    elif varies(rows):
        yield _widths(rows)


def _widths(rows: Sequence[Row]) -> Figure:
    """Ratio of LOTION's RTN loss to that of QAT and of PTQ against a network's width."""
    method, references = compared(rows)
    _, ratios = width_ratios(rows, method, references)
    series: dict[str, list[list[float]]] = {}
    formats = dict.fromkeys(format for _, format in ratios)
    for format in formats:
        for reference in references:
            for k, found in sorted(ratios.get((reference, format), {}).items()):
                add(series, f"{format}, over {reference.split(' ')[0].upper()}", k, found)
    scale = "attached" if references[0] == "qat (attached)" else "detached"
    caption = (
        f"RTN loss of LOTION with attached scale over that of QAT with {scale} scale and of PTQ on the same instances, "
        "above the smallest possible loss; geometric means over seeds with 95 % intervals. Below 1 LOTION is better."
    )
    return figure("Advantage against the width of a two-layer network", caption, ("width k", True),
                   ("ratio of RTN losses", True), series, rule=1.0)  # fmt: skip


def _lambdas(rows: Sequence[Row]) -> Iterator[Figure]:
    """Final RTN, RR and float loss against the weight λ; methods without it as level lines."""
    for (problem, format), found in by_weight(rows).items():
        for metric, name in LOSSES:
            series: dict[str, list[list[float]]] = {}
            weights = sorted({w for line in found.weighted[metric].values() for w in line})
            for label, line in found.weighted[metric].items():
                for weight, value in line.items():
                    add(series, label, weight, value)
            for label, value in found.fixed[metric].items():
                for weight in weights[:1] + weights[-1:]:
                    add(series, label, weight, value)
            caption = (
                f"{name} loss at the end of training on {problem}, {format}; geometric means over seeds, bars for "
                "comparing points (what all methods share is taken out). λ = 1 is the smoothed loss itself."
            )
            yield figure(f"{name} loss against λ, {format}", caption, ("weight λ", True), (f"{name} loss", True),
                          series)  # fmt: skip


def of_rounding(rows: Sequence[Row]) -> Iterator[Figure]:
    """How often rounding schemes find the proven optimum, and their mean loss over it, against the dimension."""
    if not any(r["metrics"].get("optimal") is not None for r in rows):
        return
    order, places = by_dimension(rows)
    problems = {problem for problem, _ in places}
    for (problem, format), schemes in places.items():
        share: dict[str, list[list[float]]] = {}
        loss: dict[str, list[list[float]]] = {}
        for label in order:
            for d, line in sorted(schemes.get(label, {}).items()):
                add(share, label, d, line.optimal)
                add(loss, label, d, line.ratio)
        where = f"{problem}, {format}" if len(problems) > 1 else format
        caption = f"Rounding schemes on {where} against the proven optimum of the same instance; 95 % intervals."
        x = ("dimension d", False)
        yield figure(f"Share of optima found, {where}", caption, x, ("share", False), share)
        yield figure(f"Mean loss over the optimum, {where}", caption, x, ("loss / optimum", True), loss)


def of_estimators(rows: Sequence[Row]) -> Iterator[Figure]:
    """Bias of gradient estimators: median over instances, and the range."""
    found = estimators(rows)
    for metric, words in zip(METRICS, ("bias", "standard deviation of one sample"), strict=True):
        series: dict[str, list[list[Any]]] = {}
        for label, estimator in found.items():
            for name, spread in estimator.spreads[metric].items():
                series.setdefault(name, []).append([label, *map(digits, spread)])
        for points in series.values():
            points.sort(key=lambda point: point[1])
        caption = (
            f"{words.capitalize()} of the direction each method follows against the exact gradient of the smoothed "
            "loss, over that gradient's norm: median over instances, lines from the lowest to the highest."
        )
        made = figure(f"Gradients: {words}", caption, (f"{words} / norm of the gradient", False), ("", False), series)
        yield {**made, "dots": True}


def of_minima(rows: Sequence[Row]) -> Iterator[Figure]:
    """Local minima against the number of weights, raw and smoothed; a figure per problem."""
    lines, _ = minima(rows)
    for problem, places in grouped(sorted(lines), lambda place: place[0]).items():
        series: dict[str, list[list[float]]] = {}
        for place in places:
            for d, line in sorted(lines[place].items()):
                add(series, f"{place[1]}, raw", d, line.raw)
                add(series, f"{place[1]}, smoothed", d, line.smoothed)
        caption = (
            f"Local minima on a frozen lattice ({problem}): flat pieces of the quantized loss that no touching piece "
            "is below (raw), and lattice points that no single step improves (smoothed). Means are geometric."
        )
        yield figure("Local minima", caption, ("number of weights d", False), ("local minima", True), series)


def figure(
    title: str, caption: str, x: tuple[str, bool], y: tuple[str, bool], series: Mapping[str, list[list[Any]]],
    rule: float | None = None,
) -> Figure:  # fmt: skip
    """A :data:`Figure`. ``x``, ``y``: label, and whether the axis is logarithmic. ``series``: points by name, see
    :func:`add`. ``rule``: a level line."""
    return {
        "title": title,
        "caption": caption,
        "x": {"label": x[0], "log": x[1]},
        "y": {"label": y[0], "log": y[1], "rule": rule},
        "series": [{"name": name, "points": points} for name, points in series.items()],
    }


def add(series: dict[str, list[list[float]]], name: str, x: float, found: Interval | None) -> None:
    """Append what was found at ``x`` to the series called ``name``; nothing for None."""
    if found is not None:
        series.setdefault(name, []).append([x, *(interval(found) or [])])


def interval(found: Interval | None) -> list[float] | None:
    """``[value]`` or ``[value, low, high]`` to a few digits; None where there is none."""
    if found is None:
        return None
    ends = [] if found.low is None or found.high is None else [found.low, found.high]
    return [digits(v) for v in (found.value, *ends)]


def digits(value: float) -> float:
    """``value`` to the few digits that a picture can show."""
    return float(f"{value:.{DIGITS}g}")
