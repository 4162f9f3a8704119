"""The training step as numba loops around the functions of a rule and of ``lotion_theory._kernels``.

No formula of a method is written here. What is particular to this file is how a weight's levels are found, and the
order of sums; both give the bits of :mod:`.plain`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from lotion_theory import _arrays, _kernels
from lotion_theory.compiled import plan as lattice_plan
from lotion_theory.grids import Codebook
from lotion_theory.methods import Place, Rule
from lotion_theory.methods.rule import LEAST_LEFT

from .state import Optimizer, State, arguments

KINDS = {"absmax": 0, "rms": 1, "learned": 2}


class Lattice(NamedTuple):
    """What the loops know of a codebook: see :class:`lotion_theory.compiled.Plan`."""

    high: float
    step_high: float
    step_low: float
    lowest: float
    highest: float
    units: np.ndarray
    even: np.ndarray


class Numbers(NamedTuple):
    """Scalars of a run: those of the optimizer, of a scale that is not absmax (``rms``, ``span``), of the Fisher."""

    beta1: float
    beta2: float
    epsilon: float
    rms: float
    span: float
    fisher: float
    scale: float
    top_decay: float


class Loops(NamedTuple):
    """``before`` and ``after`` as in :mod:`.plain`, and ``fused``: whole steps on a loss with diagonal Hessian."""

    before: Callable
    after: Callable
    fused: Callable


@lru_cache(maxsize=32)
def lattice(book: Codebook) -> Lattice:
    """The lattice data of a balanced codebook in float64."""
    found = lattice_plan(book, "float64")
    return Lattice(
        float(found.high), float(found.step_high), float(found.step_low), float(found.lowest), float(found.highest),
        np.ascontiguousarray(found.units), found.even,
    )  # fmt: skip


def numbers(rule: Rule, optimizer: Optimizer, span: float, scale: float) -> Numbers:
    """The scalars of a rule and an optimizer; ``scale``: samples per batch, for the Fisher (C20)."""
    top_decay = 0.0 if rule.learned is None else rule.learned.decay
    return Numbers(
        optimizer.beta1, optimizer.beta2, optimizer.epsilon, float(rule.rms), span, rule.fisher, scale, top_decay
    )  # fmt: skip


def loops(rule: Rule, optimizer: Optimizer) -> Loops:
    """The compiled loops of a rule, made once per process for the same functions. Raises ImportError without numba."""
    fisher = rule.curvature == "fisher"
    adam = optimizer.kind == "adam"
    return _loops(rule.point, rule.direction, rule.anchor, rule.decay, KINDS[rule.top], rule.noise, fisher, adam)


@lru_cache(maxsize=1)
def _shared() -> tuple[Any, ...]:
    """Compiled parts that no rule changes: levels around a weight, sums in lanes, the optimizer."""
    import llvmlite.binding
    import numba
    from numba.extending import overload, register_jitable

    # A loop over some ten arrays is vectorised only if LLVM may check at run time that none overlaps another; its
    # default stops at eight such checks.
    llvmlite.binding.set_option("", "-runtime-memory-check-threshold=128")
    for name in dir(_kernels):
        value = getattr(_kernels, name)
        if callable(value) and not name.startswith("__"):
            register_jitable(value)
    overload(_arrays.exp)(lambda x: _exp)
    overload(_arrays.tanh)(lambda x: _tanh)
    compiled = numba.njit(error_model="numpy", nogil=True)
    return tuple(map(compiled, (_quotient, _search, _lane_sum, _peak, _adam)))


def _exp(x):
    return np.exp(x)


def _tanh(x):
    return np.tanh(x)


def _quotient(x, top, inverse, grid):
    """``(lo, hi, near, unit_lo, unit_hi, unit_near)`` of a weight on a lattice of integers, without a branch.

    The integer nearest to ``x / step`` bounds the cell on one side (see :mod:`lotion_theory.compiled`), its neighbour
    on the weight's side on the other. On a level, and beyond the ends, both are that level.
    """
    k = min(max(np.rint(x * inverse), -grid.high), grid.high)
    unit = k * grid.step_high + k * grid.step_low
    level = top * unit
    side = np.copysign(1.0, x - level)
    off = (x != level) & (abs(k + side) <= grid.high)
    other_k = k + side * off
    other_unit = other_k * grid.step_high + other_k * grid.step_low
    other = top * other_unit
    k_hi = max(k, other_k)
    lo, hi = min(level, other), max(level, other)
    unit_lo, unit_hi = min(unit, other_unit), max(unit, other_unit)
    nearer, tie = _kernels.compare_distances(min(max(x, lo), hi), lo, hi)
    up = nearer | (tie & (k_hi == 2 * np.floor(k_hi * 0.5)))
    return lo, hi, hi if up else lo, unit_lo, unit_hi, unit_hi if up else unit_lo


def _search(x, top, grid):
    """The same on any lattice, by bisection."""
    below, above = 0, grid.units.size - 1
    while above - below > 1:
        middle = (below + above) // 2
        if x >= top * grid.units[middle]:
            below = middle
        else:
            above = middle
    if x <= top * grid.units[below]:
        above = below
    elif x >= top * grid.units[above]:
        below = above
    unit_lo, unit_hi = grid.units[below], grid.units[above]
    lo, hi = top * unit_lo, top * unit_hi
    nearer, tie = _kernels.compare_distances(min(max(x, lo), hi), lo, hi)
    if nearer | (tie & grid.even[above]):
        return lo, hi, hi, unit_lo, unit_hi, unit_hi
    return lo, hi, lo, unit_lo, unit_hi, unit_lo


def _lane_sum(x):
    """Sum of ``x`` in the order of :func:`.plain.lane_sum`. Lanes with names, as LLVM keeps an array in memory."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = x.size // 8 * 8
    for i in range(0, whole, 8):
        s0 += x[i]
        s1 += x[i + 1]
        s2 += x[i + 2]
        s3 += x[i + 3]
        s4 += x[i + 4]
        s5 += x[i + 5]
        s6 += x[i + 6]
        s7 += x[i + 7]
    rest = x.size - whole
    s0 += x[whole] if rest > 0 else 0.0
    s1 += x[whole + 1] if rest > 1 else 0.0
    s2 += x[whole + 2] if rest > 2 else 0.0
    s3 += x[whole + 3] if rest > 3 else 0.0
    s4 += x[whole + 4] if rest > 4 else 0.0
    s5 += x[whole + 5] if rest > 5 else 0.0
    s6 += x[whole + 6] if rest > 6 else 0.0
    return s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7


def _peak(x):
    """Largest magnitude."""
    lanes = np.zeros(8)
    whole = x.size // 8 * 8
    for i in range(0, whole, 8):
        for j in range(8):
            size = abs(x[i + j])
            lanes[j] = size if size > lanes[j] else lanes[j]
    peak = 0.0
    for j in range(8):
        peak = max(peak, lanes[j])
    for i in range(whole, x.size):
        peak = max(peak, abs(x[i]))
    return peak


def _adam(x, m, v, d, n, rate, correct1, correct2):
    """Adam's step on one number: its new value and moments, the corrections being those of this step."""
    m = n.beta1 * m + (1 - n.beta1) * d
    v = n.beta2 * v + (1 - n.beta2) * (d * d)
    return x - rate * ((m * correct1) / (np.sqrt(v * correct2) + n.epsilon)), m, v


@lru_cache(maxsize=128)
def _loops(point, direction, anchor, decay, kind, noise, fisher, is_adam) -> Loops:
    import numba

    quotient, search, lane_sum, largest, adam = _shared()
    for function in (point, direction, anchor, decay):
        _register_helpers(function)
    compiled = numba.njit(error_model="numpy", nogil=True)
    point, direction = compiled(point), compiled(direction)
    has_anchor, has_decay = anchor is not None, decay is not None
    anchor = compiled(anchor if has_anchor else _nothing)
    decay = compiled(decay if has_decay else _no_decay)

    @compiled
    def top_of(w, top, n):
        """``(top, number of the weight that sets it)`` of a block."""
        if kind == 2:
            return top * n.span, 0
        if kind == 1:
            return n.rms * np.sqrt(lane_sum(w * w) / w.size), 0
        peak = largest(w)
        leader = 0
        if has_anchor:
            while abs(w[leader]) < peak:
                leader += 1
        return peak, leader

    # All loops run from 0 over slices: LLVM then knows that no index is negative, and vectorises.

    @compiled
    def block_of(u, first, last):
        return u[first:last] if noise == 1 else u

    @compiled
    def uniform(u, first, i):
        if noise == 0:
            return 0.0
        return u[i] if noise == 1 else u[(first + i) // noise]

    @compiled
    def usable(peak, grid):
        """Whether the quotient by ``peak`` is accurate."""
        return grid.high > 0 and (peak == 0 or (grid.lowest <= peak and peak <= grid.highest))

    @compiled
    def one(i, p, g, h, a, d, off, through):
        d[i] = direction(p, g, h, a)
        if has_anchor:
            through[i] = anchor(p, g, h, a)
        if has_decay:
            off[i] = decay(p, h, a)

    @compiled
    def points(w, u, first, peak, grid, a, x, variance):
        if usable(peak, grid):
            inverse = grid.high / peak if peak > 0 else 0.0
            for i in range(w.size):
                p = Place(w[i], *quotient(w[i], peak, inverse, grid), peak, uniform(u, first, i))
                x[i] = point(p, a)
                variance[i] = _kernels.variance(min(max(p.w, p.lo), p.hi), p.lo, p.hi)
        else:
            for i in range(w.size):
                p = Place(w[i], *search(w[i], peak, grid), peak, uniform(u, first, i))
                x[i] = point(p, a)
                variance[i] = _kernels.variance(min(max(p.w, p.lo), p.hi), p.lo, p.hi)

    @compiled
    def directions(w, u, first, peak, grid, a, g, h, d, off, through):
        if usable(peak, grid):
            inverse = grid.high / peak if peak > 0 else 0.0
            for i in range(w.size):
                p = Place(w[i], *quotient(w[i], peak, inverse, grid), peak, uniform(u, first, i))
                one(i, p, g[i], h[i], a, d, off, through)
        else:
            for i in range(w.size):
                p = Place(w[i], *search(w[i], peak, grid), peak, uniform(u, first, i))
                one(i, p, g[i], h[i], a, d, off, through)

    @compiled
    def both(w, u, first, peak, grid, a, n, hessian, center, h, d, off, through):
        if usable(peak, grid):
            inverse = grid.high / peak if peak > 0 else 0.0
            for i in range(w.size):
                p = Place(w[i], *quotient(w[i], peak, inverse, grid), peak, uniform(u, first, i))
                g = (point(p, a) - center[i]) * hessian[i]
                if fisher:
                    h[i] = n.fisher * h[i] + (1 - n.fisher) * (n.scale * g * g)
                one(i, p, g, h[i], a, d, off, through)
        else:
            for i in range(w.size):
                p = Place(w[i], *search(w[i], peak, grid), peak, uniform(u, first, i))
                g = (point(p, a) - center[i]) * hessian[i]
                if fisher:
                    h[i] = n.fisher * h[i] + (1 - n.fisher) * (n.scale * g * g)
                one(i, p, g, h[i], a, d, off, through)

    @compiled
    def move(w, m, v, d, off, n, rate, correct1, correct2):
        for i in range(w.size):
            if is_adam:
                moved, m[i], v[i] = adam(w[i], m[i], v[i], d[i], n, rate, correct1, correct2)
            else:
                moved = w[i] - rate * d[i]
            w[i] = moved - rate * off[i] if has_decay else moved

    @compiled
    def finish(k, b, leader, n, rate, w, m, v, top, top_m, top_v, top_factor, powers, d, off, through):
        """Hand the sum over ``through`` to what sets the block's top, and move the block ``k``."""
        correct1, correct2 = 1 / (1 - powers[0]), 1 / (1 - powers[1])
        if has_anchor:
            total = lane_sum(through[k])
            if kind == 0:
                d[k][leader] += total if w[k][leader] >= 0 else -total
            elif kind == 2:
                floor, slope = top[b] * LEAST_LEFT, total * top_factor[b] + n.top_decay * top[b]
                if is_adam:
                    moved, top_m[b], top_v[b] = adam(top[b], top_m[b], top_v[b], slope, n, rate, correct1, correct2)
                else:
                    moved = top[b] - rate * slope
                top[b] = max(moved, floor)
        move(w[k], m[k], v[k], d[k], off[k], n, rate, correct1, correct2)

    @compiled
    def before(starts, grid, n, a, u, w, top, x, variance):
        for b in range(starts.size - 1):
            first, last = starts[b], starts[b + 1]
            k = slice(first, last)
            peak, _ = top_of(w[k], top[b], n)
            points(w[k], block_of(u, first, last), first, peak, grid, a, x[k], variance[k])

    @compiled
    def after(starts, grid, n, a, u, g, rate, w, m, v, h, top, top_m, top_v, top_factor, powers, d, off, through):
        powers[0] *= n.beta1
        powers[1] *= n.beta2
        if fisher:
            for i in range(w.size):
                h[i] = n.fisher * h[i] + (1 - n.fisher) * (n.scale * g[i] * g[i])
        for b in range(starts.size - 1):
            first, last = starts[b], starts[b + 1]
            k = slice(first, last)
            peak, leader = top_of(w[k], top[b], n)
            directions(
                w[k], block_of(u, first, last), first, peak, grid, a, g[k], h[k], d[k], off[k], through[k]
            )  # fmt: skip
            finish(k, b, leader, n, rate, w, m, v, top, top_m, top_v, top_factor, powers, d, off, through)

    @compiled
    def fused(
        starts, grid, n, rows, uniforms, hessian, center, rates, w, m, v, h, top, top_m, top_v, top_factor, powers,
        d, off, through,
    ):  # fmt: skip
        for t in range(rates.size):
            a, u, rate = rows[t], uniforms[t], rates[t]
            powers[0] *= n.beta1
            powers[1] *= n.beta2
            for b in range(starts.size - 1):
                first, last = starts[b], starts[b + 1]
                k = slice(first, last)
                peak, leader = top_of(w[k], top[b], n)
                both(
                    w[k], block_of(u, first, last), first, peak, grid, a, n, hessian[k], center[k], h[k], d[k], off[k],
                    through[k],
                )  # fmt: skip
                finish(k, b, leader, n, rate, w, m, v, top, top_m, top_v, top_factor, powers, d, off, through)

    return Loops(before, after, fused)


def _register_helpers(function: Callable | None) -> None:
    """Let numba call the plain functions of a rule's own module that ``function`` names, and those that they name."""
    from numba.extending import register_jitable

    if function is None:
        return
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and value.__module__ == function.__module__ and value not in _registered:
            _registered.add(value)
            register_jitable(value)
            _register_helpers(value)


_registered: set[FunctionType] = set()


def _nothing(p, g, h, a):
    return 0.0


def _no_decay(p, h, a):
    return 0.0


def scratch(state: State) -> tuple[np.ndarray, ...]:
    """Work arrays for :attr:`Loops.after` and :attr:`Loops.fused`."""
    return np.empty_like(state.w), np.zeros_like(state.w), np.empty_like(state.w)


__all__ = ["Loops", "arguments", "lattice", "loops", "numbers", "scratch"]
