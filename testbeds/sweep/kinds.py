"""What a run of each kind computes. ``run(kind, config, seed)`` is what the workers of a sweep call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from lotion_theory import Stream
from lotion_theory.landscape import local_minima_quantized
from lotion_theory.methods import method as training_method
from lotion_theory.rounders import Case, rounder

from ..descent import Optimizer, Run, evaluate, plain, prepare, train
from ..lm import runs as language
from ..problems import linear_regression, training_problem
from ..problems.base import TrainingProblem
from ..problems.mlp import Classifier
from .task import Diverged

Config = Mapping[str, Any]


def run(kind: str, config: Config, seed: int) -> dict[str, Any]:
    """The metrics of one run. Raises :class:`Diverged` for a method that left the finite range, ValueError for a
    configuration that cannot be run."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; valid: {', '.join(KINDS)}")
    return KINDS[kind](config, seed)


# --- training --------------------------------------------------------------------------------------------------------


def method_of(config: Config) -> tuple[str, dict[str, Any]]:
    """Name and settings of ``{"name": ..., setting: value, ...}``."""
    settings = dict(config)
    return settings.pop("name"), settings


def _train(config: Config, seed: int, steps: int | None = None) -> tuple[TrainingProblem, Run]:
    problem = training_problem(config["problem"], seed)
    name, settings = method_of(config["method"])
    steps = config["steps"] if steps is None else steps
    if name == "cbo":
        from ..descent.cbo import run_cbo

        return problem, run_cbo(problem, config["format"], seed, settings)
    optimizer = Optimizer(config.get("optimizer", "adam"), config["lr"], config.get("schedule", "cosine"))
    return problem, train(problem, training_method(name)(**settings), config["format"], optimizer, steps, seed)


def train_run(config: Config, seed: int) -> dict[str, Any]:
    """Train one method on one instance: float, RTN and RR loss, the gap, and their curves."""
    if config["problem"]["name"] == language.NAME:
        return language.train_run(config, seed)
    problem, result = _train(config, seed)
    losses = result.losses
    metrics: dict[str, Any] = {
        "float_loss": losses.full, "rtn_loss": losses.rtn, "rr_loss": losses.rr, "rr_standard_error": losses.rr_error,
        "gap": losses.gap, "noise_floor": float(getattr(problem, "floor", 0.0) or 0.0),
        "rtn_of_optimum": _rtn_of_optimum(problem, config["format"]), "train_seconds": result.seconds,
        "curve": result.curve,
    }  # fmt: skip
    if result.diverged:
        raise Diverged(f"after {result.steps} steps", metrics)
    if isinstance(problem, Classifier):
        rounded = plain.place(result.state, np.zeros_like(result.state.w)).near
        points = np.stack([result.state.w, rounded])
        metrics["test_float_loss"], metrics["test_rtn_loss"] = problem.test_loss(points).tolist()
        metrics["test_float_accuracy"], metrics["test_rtn_accuracy"] = problem.test_accuracy(points).tolist()
    return metrics


def _rtn_of_optimum(problem: TrainingProblem, text: str) -> float | None:
    """Loss of the unquantized optimum rounded to nearest on the format's own grid."""
    if problem.optimum is None:
        return None
    state = prepare(problem, training_method("ptq")(), text, start=problem.optimum)
    return evaluate(problem, state, Stream(0, "unused")).rtn


def timing_run(config: Config, seed: int) -> dict[str, Any]:
    """Median seconds per step of several methods on one problem, measured in turns within one process."""
    rounds, steps = config["rounds"], config["steps"]
    seconds: dict[str, list[float]] = {str(i): [] for i in range(len(config["methods"]))}
    # The first round is not counted: it compiles, and brings the data into the cache.
    for turn in range(rounds + 1):
        for i, method in enumerate(config["methods"]):
            per_step = _seconds_per_step({**config, "method": method, "lr": 1e-4}, seed, steps)
            if turn:
                seconds[str(i)].append(per_step)
    return {"seconds_per_step": [float(np.median(seconds[str(i)])) for i in range(len(config["methods"]))]}


def _seconds_per_step(config: Config, seed: int, steps: int) -> float:
    if config["problem"]["name"] == language.NAME:
        return language.seconds_per_step(config, seed)
    _, result = _train(config, seed, steps)
    return result.seconds / result.steps


# --- rounding --------------------------------------------------------------------------------------------------------


def rounding_case(config: Config, seed: int) -> Case:
    """The case of ``config["problem"]``: ``power_law`` (as linear_regression) or ``real_layer`` (layer, rows)."""
    problem = dict(config["problem"])
    name = problem.pop("name")
    if name == "power_law":
        made = linear_regression(**{"rotation": "dense", **problem}, seed=seed)
        return Case.make(made.hessian, made.optimum, config["format"])
    if name == "real_layer":
        layer, rows = problem["layer"], problem["rows"]
        matrix, moment = _layer(layer)
        chosen = Stream(seed, "rounding/rows").numpy_generator().permutation(len(matrix))[:rows]
        return Case.make(moment, matrix[np.sort(chosen)], config["format"])
    raise ValueError(f"unknown problem {name!r} for rounding; valid: power_law, real_layer")


@lru_cache(maxsize=2)
def _layer(name: str) -> tuple[np.ndarray, np.ndarray]:
    from ..problems.minilm import user_cache
    from ..problems.real_layer import real_layer

    layer = real_layer(name, folder=user_cache())
    return layer.center, layer.moment


def round_run(config: Config, seed: int) -> dict[str, Any]:
    """Round one instance by one scheme: loss, seconds, and the loss over that of all-zero weights."""
    case = rounding_case(config, seed)
    name, settings = method_of(config["method"])
    scheme = rounder(name)
    begin = time.perf_counter()
    point = scheme(case, Stream(seed, f"round/{name}"), **settings)
    seconds = time.perf_counter() - begin
    if scheme.grid == "fixed" and not np.array_equal(case.grid.nearest(point), point):
        raise AssertionError(f"{name} returned weights that are not on the grid")
    power = float(case.loss(np.zeros_like(point)[None])[0])
    loss = float(case.loss(point[None])[0])
    return {"loss": loss, "relative": loss / power, "seconds": seconds, "grid": scheme.grid}


def oracle_run(config: Config, seed: int) -> dict[str, Any]:
    """The exact optimum of one instance over the whole grid, and over the cell of the weights."""
    from ..oracles.closest_vector import closest_vector
    from ..oracles.enumeration import best_in_cell

    case = rounding_case(config, seed)
    found = closest_vector(case, seconds=config.get("limit", 60.0))
    metrics = {"loss": found.loss, "proven": found.proven, "nodes": found.nodes, "seconds": found.seconds}
    if case.weights.shape[1] <= 16:
        metrics["in_cell"] = best_in_cell(case).loss
    return metrics


# --- studies ---------------------------------------------------------------------------------------------------------


def estimator_run(config: Config, seed: int) -> dict[str, Any]:
    """Bias and deviation of the direction a method follows against the exact gradient of the smoothed loss.

    ``config``: problem, format, method, ``draws``, ``spread`` (deviation of the point around the optimum). All is
    relative to the norm of the exact gradient at that point; ``bias_standard_error`` belongs to the sampled bias.
    """
    problem = training_problem(config["problem"], seed)
    rng = Stream(seed, "estimators/point").numpy_generator()
    assert problem.optimum is not None, "estimators are compared around a known optimum"
    w = problem.optimum + config["spread"] * rng.standard_normal(problem.shape)
    exact = _direction(problem, {"name": "lotion", "curvature": "exact"}, config["format"], w, None)
    stream = Stream(seed, "estimators/draws")
    noisy = _direction_is_noisy(config["method"])
    count = config["draws"] if noisy else 1
    draws = np.stack(
        [_direction(problem, config["method"], config["format"], w, stream.uniforms(w.shape, step=k, dtype="float64"))
         for k in range(count)]
    )  # fmt: skip
    norm = float(np.linalg.norm(exact))
    bias = float(np.linalg.norm(draws.mean(axis=0) - exact)) / norm
    spread = float(np.sqrt(draws.var(axis=0, ddof=1).sum())) / norm if count > 1 else 0.0
    return {"bias": bias, "bias_standard_error": float(spread / np.sqrt(count)), "deviation": spread}


def _direction_is_noisy(method: Config) -> bool:
    name, settings = method_of(method)
    return bool(training_method(name)(**settings).noise)


def _direction(
    problem: TrainingProblem, method: Config, text: str, w: np.ndarray, uniforms: np.ndarray | None
) -> np.ndarray:
    name, settings = method_of(method)
    rule = training_method(name)(**settings)
    state = prepare(problem, rule, text, start=w)
    state.h[:] = problem.curvature_at(w)
    # The end of training, where every schedule has reached its full weight.
    rule = state.rule
    a = rule.parameters(np.array([1 - 1e-9]))[0]
    u = np.zeros_like(w)
    if rule.noise and uniforms is not None:
        u = np.repeat(uniforms, rule.noise)[: w.size]
    x, variance = plain.before(state, u, a)
    g = problem.gradient(x[None])[0]
    parts = problem.expected_parts(w, variance) if rule.curvature == "exact" else None
    if parts is not None:
        g, state.h = parts[0], parts[1]
    return plain.direction(state, plain.place(state, u), g, a)[0]


def minima_run(config: Config, seed: int) -> dict[str, Any]:
    """Count local minima of one small quadratic on a frozen lattice, by enumeration (claim C11).

    ``local_minima_raw``: plateaus of the quantized loss with no lower plateau touching them, corners included.
    ``local_minima_smoothed``: lattice points that no single step improves. ``descents``: how many of ``starts``
    coordinate descents on the smoothed loss from random points end in one of those (all, by C11).
    """
    case = rounding_case(config, seed)
    levels = list(case.grid.levels[0])
    found = local_minima_quantized(lambda points: case.loss(points[:, None, :]), levels)
    strict = found.points[found.strict]
    grids = np.stack(np.meshgrid(*levels, indexing="ij"), axis=-1).reshape(-1, len(levels))
    values = case.loss(grids[:, None, :])
    raw = _touching_minima(values.reshape([len(level) for level in levels]))
    smoothed_least, quantized_least = float(found.values.min()), float(values.min())
    ends = _descents(case, config.get("starts", 32), Stream(seed, "minima/starts"))
    known = {tuple(point) for point in found.points.reshape(len(found.points), -1)}
    return {
        "points": int(values.size), "local_minima_raw": raw, "local_minima_smoothed": len(strict),
        "global_kept": smoothed_least == quantized_least, "starts": len(ends),
        "descents": sum(tuple(end) in known for end in ends), "distinct_ends": len({tuple(end) for end in ends}),
    }  # fmt: skip


def _touching_minima(values: np.ndarray) -> int:
    """Entries of a d-dimensional table that no neighbour, diagonal ones included, is below."""
    from scipy.ndimage import minimum_filter

    return int((values <= minimum_filter(values, size=3, mode="nearest")).sum())


def _descents(case: Case, starts: int, stream: Stream) -> list[np.ndarray]:
    """Ends of coordinate descent on the smoothed loss from random points within the grid.

    On a frozen lattice the smoothed loss is affine in one weight between two levels (claim C10), so along a coordinate
    its minimum is at a level; descent stops where no level of any coordinate is lower.
    """
    h, w = case.hessian, case.weights[0]
    levels = case.grid.levels[0]
    ends = []
    for k in range(starts):
        u = stream.uniforms(len(w), step=k, dtype="float64")
        x = levels[:, 0] + u * (levels[:, -1] - levels[:, 0])
        moved = True
        while moved:
            moved = False
            for i in range(len(w)):
                # In one coordinate the expectation over the others depends on their means only.
                rest = h[i] @ (x - w) - h[i, i] * (x[i] - w[i])
                costs = rest * levels[i] + h[i, i] / 2 * (levels[i] - w[i]) ** 2
                best = _next_down(costs, levels[i], x[i])
                if best != x[i]:
                    x[i], moved = best, True
        ends.append(x)
    return ends


def _next_down(costs: np.ndarray, levels: np.ndarray, x: float) -> float:
    """The local minimum along one coordinate that descent from ``x`` reaches: downhill from level to level."""
    above = int(np.searchsorted(levels, x))
    if levels[above] == x:
        k = above
    else:
        k = above if costs[above] < costs[above - 1] else above - 1
    while True:
        near = [j for j in (k - 1, k + 1) if 0 <= j < len(levels) and costs[j] < costs[k]]
        if not near:
            return float(levels[k])
        k = min(near, key=lambda j: costs[j])


SETTINGS: Mapping[str, Mapping[str, type]] = {
    "train": {},
    "round": {"limit": float},
    "estimator": {"draws": int, "spread": float},
    "minima": {"starts": int},
}
"""What an experiment of a kind may set beside its problem and methods: positive numbers."""

KINDS: dict[str, Callable[[Config, int], dict[str, Any]]] = {
    "train": train_run,
    "timing": timing_run,
    "round": round_run,
    "oracle": oracle_run,
    "estimator": estimator_run,
    "minima": minima_run,
}
