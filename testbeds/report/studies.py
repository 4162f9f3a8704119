"""Figures across experiments as data of the page: against width, λ, dimension; estimators; local minima."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..results.estimators import METRICS, estimators
from ..results.minima import minima
from ..results.rounders import by_dimension
from ..results.rows import Row, grouped
from ..results.sensitivity import LOSSES, by_weight, is_swept
from ..results.statistics import Interval
from ..results.widths import compared, varies, width_ratios
from .curves import digits, interval

Figure = dict[str, Any]
"""``title``, ``caption``, axes ``x`` and ``y`` (label, log), ``series`` of ``{name, points: [[x, value, low, high]]}``
and the ``experiment`` whose rows it shows; ``dots``: points have names, listed downwards, instead of a place."""


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Every figure that the rows allow."""
    out: list[Figure] = []
    for experiment, mine in grouped(rows, lambda r: r["experiment"]).items():
        kinds = {r["kind"] for r in mine if r["status"] == "ok"}
        made: list[Figure] = []
        if "train" in kinds and is_swept(mine):
            made += _lambdas(mine)
        elif "train" in kinds and varies(mine):
            made.append(_widths(mine))
        if any(r["metrics"].get("optimal") is not None for r in mine):
            made += _dimensions(mine)
        if "estimator" in kinds:
            made += _estimators(mine)
        if "minima" in kinds:
            made += _minima(mine)
        out += [{**figure, "experiment": experiment} for figure in made]
    return out


def _widths(rows: Sequence[Row]) -> Figure:
    """Ratio of LOTION's RTN loss to that of QAT and of PTQ against a network's width."""
    method, references = compared(rows)
    _, ratios = width_ratios(rows, method, references)
    series: dict[str, list[list[float]]] = {}
    formats = dict.fromkeys(format for _, format in ratios)
    for format in formats:
        for reference in references:
            for k, found in sorted(ratios.get((reference, format), {}).items()):
                _add(series, f"{format}, over {reference.split(' ')[0].upper()}", k, found)
    caption = (
        "RTN loss of LOTION with attached scale over that of QAT and of PTQ on the same instances, above the smallest "
        "possible loss; geometric means over seeds with 95 % intervals. Below 1 LOTION is better."
    )
    return _figure("Advantage against the width of a two-layer network", caption, ("width k", True),
                   ("ratio of RTN losses", True), series, rule=1.0)  # fmt: skip


def _lambdas(rows: Sequence[Row]) -> Iterator[Figure]:
    """Final RTN, RR and float loss against the weight λ; methods without it as level lines."""
    for (problem, format), found in by_weight(rows).items():
        for metric, name in LOSSES:
            series: dict[str, list[list[float]]] = {}
            weights = sorted({w for line in found.weighted[metric].values() for w in line})
            for label, line in found.weighted[metric].items():
                for weight, value in line.items():
                    _add(series, label, weight, value)
            for label, value in found.fixed[metric].items():
                for weight in weights[:1] + weights[-1:]:
                    _add(series, label, weight, value)
            caption = (
                f"{name} loss at the end of training on {problem}, {format}; geometric means over seeds, bars for "
                "comparing points (what all methods share is taken out). λ = 1 is the smoothed loss itself."
            )
            yield _figure(f"{name} loss against λ, {format}", caption, ("weight λ", True), (f"{name} loss", True),
                          series)  # fmt: skip


def _dimensions(rows: Sequence[Row]) -> Iterator[Figure]:
    """How often rounding schemes find the proven optimum, and their mean loss over it, against the dimension."""
    order, places = by_dimension(rows)
    problems = {problem for problem, _ in places}
    for (problem, format), schemes in places.items():
        share: dict[str, list[list[float]]] = {}
        loss: dict[str, list[list[float]]] = {}
        for label in order:
            for d, line in sorted(schemes.get(label, {}).items()):
                _add(share, label, d, line.optimal)
                _add(loss, label, d, line.ratio)
        where = f"{problem}, {format}" if len(problems) > 1 else format
        caption = f"Rounding schemes on {where} against the proven optimum of the same instance; 95 % intervals."
        x = ("dimension d", False)
        yield _figure(f"Share of optima found, {where}", caption, x, ("share", False), share)
        yield _figure(f"Mean loss over the optimum, {where}", caption, x, ("loss / optimum", True), loss)


def _estimators(rows: Sequence[Row]) -> Iterator[Figure]:
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
        figure = _figure(
            f"Gradients: {words}", caption, (f"{words} / norm of the gradient", False), ("", False), series
        )
        yield {**figure, "dots": True}


def _minima(rows: Sequence[Row]) -> Iterator[Figure]:
    """Local minima against the number of weights, raw and smoothed; a figure per problem."""
    lines, _ = minima(rows)
    for problem, places in grouped(sorted(lines), lambda place: place[0]).items():
        series: dict[str, list[list[float]]] = {}
        for place in places:
            for d, line in sorted(lines[place].items()):
                _add(series, f"{place[1]}, raw", d, line.raw)
                _add(series, f"{place[1]}, smoothed", d, line.smoothed)
        caption = (
            f"Local minima on a frozen lattice ({problem}): flat pieces of the quantized loss that no touching piece "
            "is below (raw), and lattice points that no single step improves (smoothed). Means are geometric."
        )
        yield _figure("Local minima", caption, ("number of weights d", False), ("local minima", True), series)


def _figure(
    title: str, caption: str, x: tuple[str, bool], y: tuple[str, bool], series: Mapping[str, list[list[Any]]],
    rule: float | None = None,
) -> Figure:  # fmt: skip
    return {
        "title": title,
        "caption": caption,
        "x": {"label": x[0], "log": x[1]},
        "y": {"label": y[0], "log": y[1], "rule": rule},
        "series": [{"name": name, "points": points} for name, points in series.items()],
    }


def _add(series: dict[str, list[list[float]]], name: str, x: float, found: Interval | None) -> None:
    if found is not None:
        series.setdefault(name, []).append([x, *(interval(found) or [])])
