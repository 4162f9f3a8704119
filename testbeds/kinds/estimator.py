"""How far the direction that a method follows is from the exact gradient of the smoothed loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lotion_theory import Stream
from lotion_theory.methods import method as training_method
from lotion_theory.smoothing.sampling import mirrored

from ..descent import plain, prepare
from ..descent.methods import follows_gradient, method_of
from ..descent.run import measuring_point
from ..descent.runs import check_instances
from ..figures import estimators as drawn
from ..problems import training_problem
from ..problems.base import TrainingProblem
from ..problems.descriptor import Config
from ..results import studies
from ..results.estimators import estimator_lines
from ..values import METHOD, NAME, PROBLEM
from .base import Kind


def estimator_run(config: Config, seed: int) -> dict[str, Any]:
    """Bias and deviation of the direction a method follows against the exact gradient of the smoothed loss.

    ``config``: problem, format, method, ``draws``, ``spread`` (deviation of the point around the optimum), ``fixed``
    (1: the exact gradient is that on a fixed lattice), ``pairs`` (1: draws are means of antithetic pairs, half as
    many). All is relative to the norm of the exact gradient at that point; ``bias_standard_error`` belongs to the
    sampled bias.
    """
    problem = training_problem(config["problem"], seed)
    rng = Stream(seed, "estimators/point").numpy_generator()
    assert problem.optimum is not None, "estimators are compared around a known optimum"
    w = problem.optimum + config["spread"] * rng.standard_normal(problem.shape)
    scale = "detached" if config.get("fixed") else "attached"
    truth = {"name": "lotion", "curvature": "exact", "scale": scale}
    exact = _direction(problem, truth, config["format"], w, _uniforms(seed, 0))
    signs = (False, True) if config.get("pairs") else (False,)
    count = config["draws"] // len(signs) if _direction_is_noisy(config["method"]) else 1

    def draw(k: int) -> np.ndarray:
        found = [_direction(problem, config["method"], config["format"], w, _uniforms(seed, k, s)) for s in signs]
        return np.mean(found, axis=0)

    draws = np.stack([draw(k) for k in range(count)])
    norm = float(np.linalg.norm(exact))
    bias = float(np.linalg.norm(draws.mean(axis=0) - exact)) / norm
    spread = float(np.sqrt(draws.var(axis=0, ddof=1).sum())) / norm if count > 1 else 0.0
    return {"bias": bias, "bias_standard_error": float(spread / np.sqrt(count)), "deviation": spread}


def _direction_is_noisy(method: Config) -> bool:
    name, settings = method_of(method)
    rule = training_method(name)(**settings)
    return bool(rule.noise) or rule.measured != "weight"


Uniforms = Callable[[str, int], np.ndarray]
"""So many uniforms for a purpose."""


def _uniforms(seed: int, k: int, mirror: bool = False) -> Uniforms:
    """Those of draw ``k``, or of the other half of its antithetic pair."""

    def drawn(purpose: str, count: int) -> np.ndarray:
        u = Stream(seed, f"estimators/{purpose}").uniforms(count, step=k, dtype="float64")
        return mirrored(u) if mirror else u

    return drawn


def _direction(problem: TrainingProblem, method: Config, text: str, w: np.ndarray, uniforms: Uniforms) -> np.ndarray:
    name, settings = method_of(method)
    rule = training_method(name)(**settings)
    state = prepare(problem, rule, text, start=w)
    state.h[:] = problem.curvature_at(measuring_point(state, lambda count: uniforms("curvature", count)))
    # The end of training, where every schedule has reached its full weight.
    rule = state.rule
    a = rule.parameters(np.array([1 - 1e-9]))[0]
    u = np.zeros_like(w)
    if rule.noise:
        u = np.repeat(uniforms("draws", w.size), rule.noise)[: w.size]
    x, variance = plain.before(state, u, a)
    g = problem.gradient(x[None])[0]
    parts = problem.expected_parts(w, variance) if rule.curvature == "exact" else None
    if parts is not None:
        g, state.h = parts[0], parts[1]
    return plain.direction(state, plain.place(state, u), g, a)[0]


def check(configs: Sequence[Config]) -> None:
    """ValueError for problems, formats and methods that do not fit, and for methods that follow no gradient."""
    for config in configs:
        name, _ = method_of(config["method"])
        if not follows_gradient(name):
            raise ValueError(f"method {name} follows no gradient; kind estimator compares gradients")
    check_instances(configs)


KIND = Kind(
    "estimator",
    estimator_run,
    check,
    takes=lambda problem: problem.make is not None,
    settings={"draws": int, "spread": float, "fixed": int, "pairs": int},
    required=("draws", "spread"),
    config={"problem": PROBLEM, "format": NAME, "method": METHOD},
    words="gradient estimators",
    table=lambda rows, experiment, reference: estimator_lines(rows, experiment),
    figures=studies.of_estimators,
    pictures=drawn.pictures,
)
