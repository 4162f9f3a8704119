"""Consensus-based optimization (CBO; Riedl et al., arXiv 2306.09778, with anisotropic noise and losses in units of
their first spread): particles drift to a mean weighted by their losses after rounding.

No gradients are used, so the raw quantized loss ``E(w) = L(RTN(w))`` itself is what is minimised. Not a
:class:`~lotion_theory.methods.Method`: its own function, and a :class:`~testbeds.descent.methods.Search` for a sweep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lotion_theory import Quantizer, Stream
from lotion_theory.arguments import count
from lotion_theory.methods import Rule

from ..problems.base import TrainingProblem
from .methods import Search
from .run import Run, evaluate, prepare
from .state import block_starts

SETTINGS: Mapping[str, Any] = {
    "particles": 200, "steps": 250, "kind": "drift", "noise": "anisotropic", "spread": 1.0, "dt": 0.1, "drift": 1.0,
    "sigma": 1.0, "alpha": 100.0, "normalized": True,
}  # fmt: skip

_VALID = {"kind": ("drift", "hopping"), "noise": ("anisotropic", "isotropic")}
# Hopping narrows by this factor every _NARROWED steps, as in the released script.
_NARROWING, _NARROWED = 0.98, 100

Energies = Callable[[np.ndarray], np.ndarray]


class Found(NamedTuple):
    """What a search ended with: the last consensus point and the best particle of all steps, both unquantized (P,).

    ``history``, a list per step and one entry for the first particles: "evaluations" (particles so far), and the losses
    "consensus" and "best", both after rounding.
    """

    consensus: np.ndarray
    best: np.ndarray
    history: dict[str, list[float]]

    @property
    def weights(self) -> np.ndarray:
        """The better of the two."""
        # Slices, as both are empty where not even the first losses were finite.
        return self.best if self.history["best"][-1:] < self.history["consensus"][-1:] else self.consensus


def consensus_point(particles: np.ndarray, energies: np.ndarray, alpha: float) -> np.ndarray:
    """Mean (P,) of ``particles`` (n, P) with weights ``exp(-α E_i)``; equal particles have themselves as their mean."""
    shares = np.exp(-alpha * (energies - energies.min()))
    center = particles[np.argmin(energies)]
    return center + shares @ (particles - center) / shares.sum()


def move(particles: np.ndarray, center: np.ndarray, normals: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """``w - λ dt (w - m) + σ √dt |w - m| ξ``, with ``|.|`` per weight (anisotropic) or the norm (isotropic).

    ``settings``: ``dt``, ``drift`` (λ), ``sigma`` (σ) and ``noise`` of :func:`consensus`.
    """
    dt, drift, sigma, noise = (settings[name] for name in ("dt", "drift", "sigma", "noise"))
    away = particles - center
    reach = np.abs(away) if noise == "anisotropic" else np.linalg.norm(away, axis=1, keepdims=True)
    return particles - drift * dt * away + sigma * np.sqrt(dt) * reach * normals


def cast_rows(problem: TrainingProblem, q: Quantizer | str) -> Callable[[np.ndarray], np.ndarray]:
    """RTN of many weight vectors (n, P), each part in its own blocks."""
    q = Quantizer.parse(q)
    starts = block_starts(q, problem.parts)
    rows = q.with_partition("row")
    ends = np.cumsum([part.size for part in problem.parts])
    pieces = []
    for part, end in zip(problem.parts, ends, strict=True):
        first = np.searchsorted(starts, end - part.size)
        pieces.append((end - part.size, end, int(starts[first + 1] - starts[first])))

    def cast(points: np.ndarray) -> np.ndarray:
        out = np.empty_like(points)
        for begin, end, size in pieces:
            out[:, begin:end] = rows.cast(points[:, begin:end].reshape(-1, size)).reshape(len(points), -1)
        return out

    return cast


def consensus(
    problem: TrainingProblem,
    q: Quantizer | str | None,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    start: np.ndarray | None = None,
    watch: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> Found:
    """Search for weights whose RTN cast has a small loss, from particles around ``start`` (by default the problem's).

    ``q``: format as for :func:`~testbeds.descent.train`; None for the loss of the particles themselves.
    ``watch(step, consensus, best)`` is called after each step, and at step 0.

    Settings: ``particles``, ``steps``. ``spread``: standard deviation of the first particles, over the root mean square
    of ``start`` (over 1 if that is zero). ``kind``: "drift", with ``dt``, ``drift`` (λ), ``sigma`` (σ) and ``noise``
    "anisotropic" or "isotropic", converging where ``2 λ > σ²`` (anisotropic); or "hopping": all particles are drawn
    anew around the consensus point, with that same standard deviation, narrowed by 2 % every 100 steps. ``alpha``:
    inverse temperature, with ``normalized`` in units of the standard deviation of the first losses.
    Each step costs ``particles`` losses, and one for the record. The search ends early if no loss is finite. Raises
    ValueError for what is not valid.
    """
    s = resolve(settings or {})
    w = np.array(problem.start if start is None else start, dtype=np.float64)
    cast = None if q is None else cast_rows(problem, q)

    def energies(points: np.ndarray) -> np.ndarray:
        return np.asarray(problem(points if cast is None else cast(points)))

    stream = Stream(seed, "cbo")
    width = s["spread"] * (float(np.sqrt(np.mean(w * w))) or 1.0)
    shape = (s["particles"], w.size)
    particles = w + width * stream.numpy_generator(0).standard_normal(shape)
    found = Found(w, w, {name: [] for name in ("evaluations", "consensus", "best")})
    unit = 1.0
    for step in range(s["steps"] + 1):
        if step:
            normals = stream.numpy_generator(step).standard_normal(shape)
            if s["kind"] == "hopping":
                particles = found.consensus + width * _NARROWING ** ((step - 1) // _NARROWED) * normals
            else:
                particles = move(particles, found.consensus, normals, s)
        values = energies(particles) if np.isfinite(particles).all() else np.full(len(particles), np.inf)
        if not np.isfinite(values).any():
            break
        if not step and s["normalized"]:
            unit = float(values.std()) or 1.0
        found = _advance(found, particles, values, s["alpha"] / unit, energies)
        if watch is not None:
            watch(step, found.consensus, found.best)
    return found


def _advance(found: Found, particles: np.ndarray, values: np.ndarray, alpha: float, energies: Energies) -> Found:
    """The new consensus point and best particle, with a line of the record."""
    history, k = found.history, int(np.argmin(values))
    better = not history["best"] or values[k] < history["best"][-1]
    center = consensus_point(particles, values, alpha)
    history["evaluations"].append((history["evaluations"] or [0])[-1] + len(values))
    history["consensus"].append(float(energies(center[None])[0]))
    history["best"].append(float(values[k]) if better else history["best"][-1])
    return Found(center, particles[k].copy() if better else found.best, history)


def resolve(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` over the defaults; ValueError for an unknown one or a value that is not valid."""
    for key in settings:
        if key not in SETTINGS:
            raise ValueError(f"cbo has no setting {key!r}; valid: {', '.join(SETTINGS)}")
    s = {**SETTINGS, **settings}
    for name, valid in _VALID.items():
        if s[name] not in valid:
            raise ValueError(f"{name} = {s[name]!r}; valid: {', '.join(valid)}")
    for name in ("particles", "steps"):
        s[name] = count(name, s[name])
    for name in ("spread", "dt", "drift", "sigma", "alpha"):
        if not s[name] >= 0:
            raise ValueError(f"{name} = {s[name]!r}; must not be negative")
    return s


def run_cbo(problem: TrainingProblem, q: Quantizer | str, seed: int, settings: Mapping[str, Any] | None = None) -> Run:
    """:func:`consensus` as a run of a sweep: the losses of its weights, and their curve.

    ``seconds``: of the whole search, evaluations for the curve left out. A step is one round of all particles.
    ``diverged``: it ended early, with no finite loss.
    """
    s = resolve(settings or {})
    state = prepare(problem, Rule(), q)
    evaluation = Stream(seed, "descent/evaluation")
    marks = {0, *np.geomspace(1, s["steps"], 24).round().astype(int).tolist()}
    curve: dict[str, list[float]] = {k: [] for k in ("step", "seconds", "float", "rtn", "rr")}
    begin, spent = time.perf_counter(), 0.0

    def watch(step: int, center: np.ndarray, best: np.ndarray) -> None:
        nonlocal spent
        if step not in marks:
            return
        now = time.perf_counter()
        state.w[:] = center
        losses = evaluate(problem, state, evaluation)
        for name, value in (("step", step), ("seconds", now - begin - spent), ("float", losses.full)):
            curve[name].append(value)
        curve["rtn"].append(losses.rtn)
        curve["rr"].append(losses.rr)
        spent += time.perf_counter() - now

    with np.errstate(over="ignore", invalid="ignore"):
        found = consensus(problem, q, seed, s, watch=watch)
    seconds = time.perf_counter() - begin - spent
    state.step = max(len(found.history["best"]) - 1, 0)
    state.w[:] = found.weights
    return Run(evaluate(problem, state, evaluation), seconds, state.step, state.step < s["steps"], state, curve)


SEARCH = Search(
    "cbo",
    "Riedl et al., arXiv 2306.09778; anisotropic noise, losses in units of their first spread",
    "losses of RTN(w)",
    SETTINGS,
    {"spread": (0.1, 0.3, 1.0), "alpha": (10.0, 100.0)},
    run_cbo,
    resolve,
)
