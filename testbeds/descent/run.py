"""Train one method on one problem and measure it: float loss, quantized losses (RTN and RR) and their gap."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from lotion_theory import Quantizer, Stream, kernels
from lotion_theory.methods import Rule
from lotion_theory.methods.rule import at_rounded, constant, mixed

from ..problems.base import TrainingProblem
from . import compiled, plain
from .state import Optimizer, State, block_starts

# Uniforms drawn at once: 16 MiB.
_DRAWN = 1 << 21
SAMPLES = 64
"""Roundings behind an RR loss that has no closed form."""

_NO_PARAMETERS = constant()


@dataclass
class Losses:
    """Losses of a set of weights. ``rr`` is the mean over randomized rounding, exact where ``rr_error`` is 0, else from
    :data:`SAMPLES` roundings with that standard error. ``full`` is that of the unrounded weights;
    ``gap`` is ``rtn - full``."""

    full: float
    rtn: float
    rr: float
    rr_error: float

    @property
    def gap(self) -> float:
        return self.rtn - self.full


@dataclass
class Run:
    """A finished run. ``curve``: losses at checkpoints, the start and the end among them; ``seconds``: time spent in
    training steps, without compilation, draws of random numbers and evaluation. ``diverged``: a weight is not finite
    or the float loss is beyond a million times that of the start."""

    losses: Losses
    seconds: float
    steps: int
    diverged: bool
    state: State
    curve: dict[str, list[float]] = field(default_factory=dict)


def train(
    problem: TrainingProblem,
    rule: Rule,
    q: Quantizer | str,
    optimizer: Optimizer,
    steps: int,
    seed: int = 0,
    checkpoints: int = 24,
    engine: str = "compiled",
    start: np.ndarray | None = None,
) -> Run:
    """Train ``rule`` on ``problem`` for ``steps`` steps and evaluate it on its own grid.

    ``q``: an absmax format with a balanced codebook (its codebook may be replaced by the rule's, its scale too).
    ``seed``: of the rounding noise in training and evaluation; under one seed every method sees the same uniforms.
    ``engine``: "compiled" (numba) or "plain" (numpy), bit for bit the same. ``start``: instead of the problem's.
    Raises ValueError for an unknown engine, and where the rule needs an expected loss that the problem has not.
    """
    if engine not in ("compiled", "plain"):
        raise ValueError(f"unknown engine {engine!r}; valid: compiled, plain")
    if steps < 1:
        raise ValueError(f"steps = {steps}; must be at least 1")
    state = prepare(problem, rule, q, start)
    progress = np.arange(steps) / steps
    rows, rates = state.rule.parameters(progress), optimizer.rates(progress)
    marks = _marks(steps, checkpoints)
    noise, evaluation = Stream(seed, "descent/rounding"), Stream(seed, "descent/evaluation")
    stepper = _Compiled if engine == "compiled" else _Plain
    run = stepper(problem, state, optimizer, Stream(seed, "descent/curvature"))
    curve: dict[str, list[float]] = {k: [] for k in ("step", "seconds", "float", "rtn", "rr")}
    seconds, diverged = 0.0, False
    limit = 1e6 * (abs(float(problem(state.w[None])[0])) + 1)
    losses = _record(curve, problem, state, evaluation, 0, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        for first, last in pairwise(marks):
            for t in range(first, last, run.chunk):
                stop = min(t + run.chunk, last)
                uniforms = _uniforms(noise, state, t, stop)
                begin = time.perf_counter()
                run.steps(t, stop, rows, rates, uniforms)
                seconds += time.perf_counter() - begin
            if not np.isfinite(state.w).all() or not float(problem(state.w[None])[0]) < limit:
                diverged = True
                break
            losses = _record(curve, problem, state, evaluation, last, seconds)
    return Run(losses, seconds, state.step, diverged, state, curve)


def prepare(problem: TrainingProblem, rule: Rule, q: Quantizer | str, start: np.ndarray | None = None) -> State:
    """The state before the first step."""
    q = Quantizer.parse(q)
    starts = block_starts(q, problem.parts)
    w = np.array(problem.start if start is None else start, dtype=np.float64)
    if w.shape != problem.shape:
        raise ValueError(f"start has shape {w.shape}, expected {problem.shape}")
    rule, book = rule.on(q.codebook)
    h = np.zeros_like(w)
    if rule.curvature in ("gauss_newton", "exact"):
        h[:] = problem.curvature_at(w)
    return State(w, starts, book, rule, h)


def measuring_point(state: State, uniforms: Callable[[int], np.ndarray]) -> np.ndarray:
    """Where the rule has its curvature measured, (P,): the weights, a randomized rounding, or a mixture of both.
    ``uniforms(n)`` draws n of them."""
    place, size = state.rule.measured, state.w.size
    if place == "weight":
        return state.w
    u = uniforms(2 * size + 1)
    rounded = at_rounded(plain.place(state, u[:size]), ())
    return rounded if place == "rounded" else mixed(state.w, rounded, u[size:-1], u[-1])


def evaluate(problem: TrainingProblem, state: State, stream: Stream) -> Losses:
    """Losses of the state's weights on its own grid; weights beyond a clipping grid are clipped before rounding."""
    p = plain.place(state, np.zeros_like(state.w))
    w = np.clip(p.w, p.lo, p.hi)
    values = problem(np.stack([p.w, p.near]))
    expected = problem.expected_loss(w, kernels.variance(w, p.lo, p.hi))
    if expected is not None:
        return Losses(float(values[0]), float(values[1]), float(expected), 0.0)
    u = stream.uniforms((SAMPLES, w.size), dtype="float64")
    draws = np.asarray(problem(kernels.pick(w, p.lo, p.hi, u)))
    return Losses(float(values[0]), float(values[1]), float(draws.mean()), float(draws.std(ddof=1) / np.sqrt(SAMPLES)))


def _record(curve, problem, state, stream, step, seconds) -> Losses:
    losses = evaluate(problem, state, stream)
    for name, value in (("step", step), ("seconds", seconds), ("float", losses.full), ("rtn", losses.rtn)):
        curve[name].append(value)
    curve["rr"].append(losses.rr)
    return losses


def _marks(steps: int, checkpoints: int) -> list[int]:
    """Steps to evaluate at: 0, then about equally far apart on a log scale, then the end."""
    inner = np.geomspace(1, steps, max(checkpoints, 2)).round().astype(int).tolist()
    return sorted({0, *inner, steps})


def _uniforms(stream: Stream, state: State, t: int, stop: int) -> np.ndarray:
    """(steps, ceil(P / noise)) uniforms, or an empty array for a rule without noise. Row ``t`` depends on t alone."""
    if not state.rule.noise:
        return np.empty((stop - t, 0))
    width = -(-state.w.size // state.rule.noise)
    return stream.uniforms((stop - t, width), dtype="float64", start=t * width)


class _Stepper:
    """Steps ``t ... stop - 1`` of a run; ``chunk``: how many to ask for at once."""

    def __init__(self, problem: TrainingProblem, state: State, optimizer: Optimizer, points: Stream) -> None:
        self.problem, self.state, self.optimizer, self.points = problem, state, optimizer, points
        self.chunk = max(1, _DRAWN // state.w.size)
        self.scale = float(getattr(problem, "batch", None) or 1)

    def gradients(self, t: int, x: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """The loss gradient of step ``t``; refreshes the curvature where it is the rule's turn."""
        rule, state, problem = self.state.rule, self.state, self.problem
        if rule.curvature == "exact":
            parts = problem.expected_parts(state.w, variance)
            if parts is None:
                raise ValueError(f"{problem.name} has no exact expected loss; use curvature='gauss_newton'")
            state.h[:] = parts[1]
            # The curvature side is exact in any case; a sampled gradient keeps the batches that all methods share.
            return parts[0] if self.scale == 1 else problem.batch_gradient(x, t)
        if rule.refresh and t % rule.refresh == 0:
            self.refresh(t)
        return problem.batch_gradient(x, t)

    def refresh(self, t: int) -> None:
        """The curvature of step ``t``, measured where the rule says."""
        rule, state = self.state.rule, self.state
        if rule.curvature not in ("gauss_newton", "fisher") or rule.averages_gradients:
            return
        x = measuring_point(state, lambda count: self.points.uniforms(count, t, dtype="float64"))
        if rule.curvature == "gauss_newton":
            state.h[:] = self.problem.curvature_at(x)
        else:
            self.average(self.problem.batch_gradient(x, t))

    def fisher(self, g: np.ndarray) -> None:
        """The moving average of squared loss gradients; never sees the penalty's gradient."""
        if self.state.rule.averages_gradients:
            self.average(g)

    def average(self, g: np.ndarray) -> None:
        """Take the squares of a batch's gradient into the curvature."""
        rule, h = self.state.rule, self.state.h
        h[:] = rule.fisher * h + (1 - rule.fisher) * (self.scale * g * g)

    def steps(self, t: int, stop: int, rows: np.ndarray, rates: np.ndarray, uniforms: np.ndarray) -> None:
        raise NotImplementedError


class _Plain(_Stepper):
    def steps(self, t: int, stop: int, rows: np.ndarray, rates: np.ndarray, uniforms: np.ndarray) -> None:
        state = self.state
        noise = max(state.rule.noise, 1)
        for k in range(t, stop):
            u = np.zeros_like(state.w)
            if uniforms.size:
                u = np.repeat(uniforms[k - t], noise)[: state.w.size]
            x, variance = plain.before(state, u, rows[k])
            g = self.gradients(k, x, variance)
            self.fisher(g)
            plain.after(state, g, u, rows[k], self.optimizer, float(rates[k]))


class _Compiled(_Stepper):
    def __init__(self, problem: TrainingProblem, state: State, optimizer: Optimizer, points: Stream) -> None:
        super().__init__(problem, state, optimizer, points)
        numbers = compiled.numbers(state.rule, optimizer, state.span, self.scale)
        self.setup = compiled.Setup(state.starts, compiled.lattice(state.book), numbers)
        self.arrays = compiled.arrays(state)
        hessian = getattr(problem, "hessian_diagonal", None)
        # Whole steps at once take no gradient elsewhere; a quadratic's own curvature is the same everywhere.
        passes_only = state.rule.curvature == "fisher" and not state.rule.averages_gradients
        self.diagonal = hessian if getattr(problem, "batch", None) is None and not passes_only else None
        self.loops = _warm(state.rule, optimizer.kind, self.diagonal is not None)

    def steps(self, t: int, stop: int, rows: np.ndarray, rates: np.ndarray, uniforms: np.ndarray) -> None:
        state, arrays = self.state, self.arrays
        if self.diagonal is not None:
            assert self.problem.optimum is not None, "a problem with a diagonal Hessian knows its optimum"
            loss = compiled.Loss(self.diagonal, self.problem.optimum)
            self.loops.fused(self.setup, compiled.Steps(rows[t:stop], uniforms, rates[t:stop]), loss, arrays)
            state.step += stop - t
            return
        x, variance = np.empty_like(state.w), np.empty_like(state.w)
        for k in range(t, stop):
            step = compiled.Steps(rows[k], uniforms[k - t], float(rates[k]))
            self.loops.before(self.setup, step, arrays, x, variance)
            self.loops.after(self.setup, step, arrays, np.ascontiguousarray(self.gradients(k, x, variance)))
            state.step += 1


@lru_cache(maxsize=128)
def _warmed(rule: Rule, optimizer_name: str, diagonal: bool) -> compiled.Loops:
    """The loops of a rule, compiled on a toy problem so that no run's time holds a compilation."""
    from lotion_theory.formats.codebooks import codebook

    optimizer = Optimizer(optimizer_name)
    loops = compiled.loops(rule, optimizer)
    scalars = compiled.numbers(rule, optimizer, 1.0, 1.0)
    setup = compiled.Setup(np.array([0, 2]), compiled.lattice(codebook("int4")), scalars)
    ones, u, rows = np.ones(2), np.zeros((1, 2)), np.zeros((1, 4))
    arrays = compiled.Arrays(*[np.ones(size) for size in (2,) * 7 + (1,) * 4 + (2,)])
    if diagonal:
        loops.fused(setup, compiled.Steps(rows, u, np.ones(1)), compiled.Loss(ones, ones), arrays)
    else:
        step = compiled.Steps(rows[0], u[0], 0.1)
        loops.before(setup, step, arrays, ones.copy(), ones.copy())
        loops.after(setup, step, arrays, ones)
    return loops


def _warm(rule: Rule, optimizer_name: str, diagonal: bool) -> compiled.Loops:
    # Without what the loops do not depend on, so that runs with other settings find them compiled.
    curvature = "fisher" if rule.averages_gradients else "none"
    functions = (rule.point, rule.direction, rule.anchor, rule.decay, rule.reset)
    shape = Rule(*functions, parameters=_NO_PARAMETERS, top=rule.top, noise=rule.noise, curvature=curvature)
    return _warmed(shape, optimizer_name, diagonal)
