"""Figures across experiments as data of the page: against width, λ, format, dimension; estimators; local minima."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from ..rows import (
    Row,
    at_best,
    by_method,
    excess,
    grouped,
    instance,
    method_name,
    of_kind,
    problem_label,
    ratio,
    tuned_settings,
    values,
)
from ..statistics import Interval, average, comparison_intervals, geometric_interval, mean_interval, proportion_interval
from .curves import interval

Figure = dict[str, Any]
"""``title``, ``caption``, axes ``x`` and ``y`` (label, log), ``series`` of ``{name, points: [[x, value, low, high]]}``
and the ``experiment`` whose rows it shows; ``dots``: points have names, listed downwards, instead of a place."""


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Every figure that the rows allow."""
    out: list[Figure] = []
    for experiment, mine in grouped(rows, lambda r: r["experiment"]).items():
        final = [r for r in mine if r["phase"] not in ("tune", "timing") and r["status"] == "ok"]
        for make in (widths, lambdas, dimensions, estimators, minima):
            out += [{**figure, "experiment": experiment} for figure in make(final)]
    return out


def widths(rows: Sequence[Row], key: str = "k") -> list[Figure]:
    """Ratio of LOTION's RTN loss to that of QAT and of PTQ against a network's width."""
    runs = [r for r in rows if r["kind"] == "train" and r["phase"] == "final" and key in r["config"]["problem"]]
    if len({r["config"]["problem"][key] for r in runs}) < 2:
        return []
    series: dict[str, list[list[float]]] = {}
    for (format, k), mine in grouped(runs, lambda r: (r["config"]["format"], r["config"]["problem"][key])).items():
        methods = at_best(mine)
        lotion = _first(methods, "lotion (attached)", "lotion")
        for name in ("qat", "ptq"):
            other = _first(methods, f"{name} (detached)", name)
            found = ratio(excess(methods[lotion]), excess(methods[other])) if lotion and other else None
            if found is not None:
                _add(series, f"{format}, over {name.upper()}", k, found)
    caption = (
        "RTN loss of LOTION with attached scale over that of QAT and of PTQ on the same instances, above the smallest "
        "possible loss; geometric means over seeds with 95 % intervals. Below 1 LOTION is better."
    )
    return [_figure("Advantage against the width of a two-layer network", caption, (f"width {key}", True),
                    ("ratio of RTN losses", True), series, rule=1.0)]  # fmt: skip


def lambdas(rows: Sequence[Row]) -> list[Figure]:
    """Final RTN, RR and float loss against the weight λ."""
    out = []
    runs = [r for r in rows if r["kind"] == "train" and r["phase"] == "final"]
    for (problem, format), mine in grouped(runs, instance).items():
        labels = by_method(mine)
        weights = {label: {_weight(r) for r in of} - {None, 0.0} for label, of in labels.items()}
        if not any(len(found) > 2 for found in weights.values()):
            continue
        for metric, name in (("rtn_loss", "RTN"), ("rr_loss", "RR"), ("float_loss", "float")):
            cells: dict[tuple[str, float], Mapping[int, float]] = {}
            for label, of in labels.items():
                for weight, at in grouped(of, _weight).items():
                    losses = excess(next(iter(at_best(at).values()), []), metric)
                    if weight and losses and min(losses.values()) > 0:
                        cells[label, weight] = losses
            series: dict[str, list[list[float]]] = {}
            found = comparison_intervals({str(k): v for k, v in enumerate(cells.values())})
            for (label, weight), value in sorted(zip(cells, found.values(), strict=True), key=lambda pair: pair[0][1]):
                _add(series, label, weight, value)
            caption = (
                f"{name} loss at the end of training on {problem}, {format}; geometric means over seeds, bars for "
                "comparing points (what all methods share is taken out). λ = 1 is the smoothed loss itself."
            )
            out.append(_figure(f"{name} loss against λ, {format}", caption, ("weight λ", True),
                               (f"{name} loss", True), series))  # fmt: skip
    return out


def dimensions(rows: Sequence[Row], key: str = "d") -> list[Figure]:
    """How often rounding schemes find the proven optimum, and their mean loss over it, against the dimension."""
    runs = [
        r for r in rows
        if r["kind"] == "round" and key in r["config"]["problem"] and r["metrics"].get("grid", "fixed") == "fixed"
        and r["metrics"].get("optimal") is not None and r["metrics"].get("ratio") is not None
    ]  # fmt: skip
    out = []
    for format, mine in grouped(runs, lambda r: str(r["config"]["format"])).items():
        share: dict[str, list[list[float]]] = {}
        loss: dict[str, list[list[float]]] = {}
        methods = by_method(mine, ())
        mean = {label: average(values(of, "ratio").values()) for label, of in methods.items()}
        for label in sorted(mean, key=lambda label: mean[label]):
            at = grouped(methods[label], lambda r: r["config"]["problem"][key])
            for d in sorted(at):
                hits = values(at[d], "optimal")
                _add(share, label, d, proportion_interval(int(sum(hits.values())), len(hits)))
                above = mean_interval(values(at[d], "ratio").values())
                _add(loss, label, d, above)
        caption = f"Rounding schemes on {format} against the proven optimum of the same instance; 95 % intervals."
        x = (f"dimension {key}", False)
        out += [
            _figure(f"Share of optima found, {format}", caption, x, ("share", False), share),
            _figure(f"Mean loss over the optimum, {format}", caption, x, ("loss / optimum", True), loss),
        ]
    return out


def estimators(rows: Sequence[Row]) -> list[Figure]:
    """Bias of gradient estimators: median over instances, and the range."""
    runs = [r for r in rows if r["kind"] == "estimator"]
    if not runs:
        return []
    out = []
    for metric, words in (("bias", "bias"), ("deviation", "standard deviation of one sample")):
        series: dict[str, list[list[Any]]] = {}
        for format, mine in grouped(of_kind(runs, "estimator"), lambda r: str(r["config"]["format"])).items():
            for label, of in by_method(mine, ()).items():
                found = list(values(of, metric).values())
                if found:
                    series.setdefault(format, []).append(
                        [label, *(float(f"{v:.4g}") for v in (median(found), min(found), max(found)))]
                    )
        caption = (
            f"{words.capitalize()} of the direction each method follows against the exact gradient of the smoothed "
            "loss, over that gradient's norm: median over instances, lines from the lowest to the highest."
        )
        title = f"Gradients: {words}"
        for points in series.values():
            points.sort(key=lambda point: point[1])
        figure = _figure(title, caption, (f"{words} / norm of the gradient", False), ("", False), series)
        out.append({**figure, "dots": True})
    return out


def minima(rows: Sequence[Row]) -> list[Figure]:
    """Local minima against the number of weights, raw and smoothed; a figure per problem."""
    out = []
    runs = [r for r in rows if r["kind"] == "minima"]
    for problem, of in grouped(runs, lambda r: _place(r)[0]).items():
        series: dict[str, list[list[float]]] = {}
        for (_, format, d), mine in sorted(grouped(of, _place).items()):
            for name, words in (("local_minima_raw", "raw"), ("local_minima_smoothed", "smoothed")):
                found = [v for v in values(mine, name).values() if v > 0]
                if found:
                    _add(series, f"{format}, {words}", d, geometric_interval(found))
        caption = (
            f"Local minima on a frozen lattice ({problem}): flat pieces of the quantized loss that no touching piece "
            "is below (raw), and lattice points that no single step improves (smoothed). Means are geometric."
        )
        out.append(_figure("Local minima", caption, ("number of weights d", False), ("local minima", True), series))
    return out


def formats(rows: Iterable[Row], experiment: str, wanted: str, against: Callable[[str], bool]) -> list[list[Any]]:
    """``[format, value, low, high]``: RTN loss of the method labelled ``wanted`` over the lowest mean among the labels
    that ``against`` accepts."""
    runs = [r for r in of_kind(rows, "train", experiment) if r["phase"] == "final"]
    out: list[list[Any]] = []
    for format, mine in grouped(runs, lambda r: str(r["config"]["format"])).items():
        methods = at_best(mine)
        others = {label: of for label, of in methods.items() if against(label)}
        if wanted in methods and others:
            best = min(others, key=lambda label: average(excess(others[label]).values()))
            out.append([format, best, ratio(excess(methods[wanted]), excess(others[best]))])
    return out


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


def _add(series: dict[str, list[list[float]]], name: str, x: float, found: Interval) -> None:
    series.setdefault(name, []).append([x, *(interval(found) or [])])


def _first(methods: Mapping[str, Any], label: str, name: str) -> str | None:
    """The method of that label, else the only one of that name."""
    if label in methods:
        return label
    of_name = [m for m, runs in methods.items() if method_name(runs[0]["config"]["method"]) == name]
    return of_name[0] if len(of_name) == 1 else None


def _weight(row: Row) -> float | None:
    value = tuned_settings(row, ("weight",)).get("weight")
    return None if value is None else float(value)


def _place(row: Row) -> tuple[str, str, int]:
    problem = dict(row["config"].get("problem", {"name": ""}))
    d = problem.pop("d", row["config"].get("d", 0))
    return problem_label(problem), str(row["config"]["format"]), d
