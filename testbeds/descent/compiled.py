"""The training step as numba loops around the functions of a rule and of ``lotion_theory._kernels``.

No formula of a method is written here. What is particular to this file is how a weight's levels are found, and the
order of sums; both give the bits of :mod:`.plain`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from lotion_theory import _kernels
from lotion_theory.compiled import plan as lattice_plan
from lotion_theory.grids import Codebook

from .rule import Place, Rule
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
    """Scalars of a run."""

    adam: bool
    beta1: float
    beta2: float
    epsilon: float
    rms: float
    span: float
    noise: int
    fisher: float
    scale: float


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
    fisher = rule.fisher if rule.curvature == "fisher" else -1.0
    return Numbers(
        optimizer.kind == "adam", optimizer.beta1, optimizer.beta2, optimizer.epsilon, float(rule.rms), span,
        max(rule.noise, 1), fisher, scale,
    )  # fmt: skip


def loops(rule: Rule) -> Loops:
    """The compiled loops of a rule, made once per process for the same functions. Raises ImportError without numba."""
    return _loops(rule.point, rule.direction, rule.anchor, rule.decay, KINDS[rule.top])


@lru_cache(maxsize=1)
def _shared() -> tuple[Any, Any, Any]:
    """Compiled parts that no rule changes: levels around a weight, sums in lanes, the optimizer."""
    import numba
    from numba.extending import register_jitable

    for name in dir(_kernels):
        value = getattr(_kernels, name)
        if callable(value) and not name.startswith("__"):
            register_jitable(value)
    compiled = numba.njit(error_model="numpy", nogil=True)
    return compiled(_locate), compiled(_lane_sum), compiled(_optimize)


def _locate(x, top, inverse, accurate, grid):
    """``(lo, hi, near, unit_lo, unit_hi, unit_near)`` of a weight."""
    last = grid.units.size - 1
    if accurate and grid.high > 0:
        k = min(max(np.rint(x * inverse), -grid.high), grid.high)
        unit = k * grid.step_high + k * grid.step_low
        level = top * unit
        side = 1.0 if x > level else -1.0
        # On a level, and beyond the ends, both neighbours are that level.
        other_k = k if x == level or abs(k + side) > grid.high else k + side
        other_unit = other_k * grid.step_high + other_k * grid.step_low
        other = top * other_unit
        up = other_k > k
        lo, hi = (level, other) if up else (other, level)
        unit_lo, unit_hi = (unit, other_unit) if up else (other_unit, unit)
        even = grid.even[int((other_k if up else k) + grid.high)]
    else:
        below, above = 0, last
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
        lo, hi, even = top * unit_lo, top * unit_hi, grid.even[above]
    target = min(max(x, lo), hi)
    nearer, tie = _kernels.compare_distances(target, lo, hi)
    if nearer | (tie & even):
        return lo, hi, hi, unit_lo, unit_hi, unit_hi
    return lo, hi, lo, unit_lo, unit_hi, unit_lo


def _lane_sum(x):
    """Sum of ``x`` in the order of :func:`.plain.lane_sum`."""
    lanes = np.zeros(8)
    whole = x.size // 8 * 8
    for i in range(0, whole, 8):
        for j in range(8):
            lanes[j] += x[i + j]
    for j in range(x.size - whole):
        lanes[j] += x[whole + j]
    total = 0.0
    for j in range(8):
        total += lanes[j]
    return total


def _optimize(x, m, v, d, n, rate, power1, power2):
    """The optimizer's step on one number: its new value and moments. The powers are those after this step."""
    if not n.adam:
        return x - rate * d, m, v
    m = n.beta1 * m + (1 - n.beta1) * d
    v = n.beta2 * v + (1 - n.beta2) * (d * d)
    step = (m / (1 - power1)) / (np.sqrt(v / (1 - power2)) + n.epsilon)
    return x - rate * step, m, v


@lru_cache(maxsize=64)
def _loops(point, direction, anchor, decay, kind) -> Loops:
    import numba

    locate, lane_sum, optimize = _shared()
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
        peak, leader = 0.0, 0
        for i in range(w.size):
            if abs(w[i]) > peak:
                peak, leader = abs(w[i]), i
        return peak, leader

    @compiled
    def inverse_of(top, grid):
        accurate = top == 0 or (grid.lowest <= top and top <= grid.highest)
        return accurate, (grid.high / top if accurate and top > 0 else 0.0)

    @compiled
    def spot(x, top, inverse, accurate, grid, u):
        lo, hi, near, unit_lo, unit_hi, unit_near = locate(x, top, inverse, accurate, grid)
        return Place(x, lo, hi, near, unit_lo, unit_hi, unit_near, top, u, grid.units)

    @compiled
    def before(starts, grid, n, a, uniforms, w, top, x, variance):
        for b in range(starts.size - 1):
            first, last = starts[b], starts[b + 1]
            peak, _ = top_of(w[first:last], top[b], n)
            accurate, inverse = inverse_of(peak, grid)
            for i in range(first, last):
                p = spot(w[i], peak, inverse, accurate, grid, uniforms[i // n.noise] if uniforms.size else 0.0)
                x[i] = point(p, a)
                variance[i] = _kernels.variance(min(max(p.w, p.lo), p.hi), p.lo, p.hi)

    @compiled
    def update(w, m, v, d, off, n, rate, power1, power2):
        for i in range(w.size):
            moved, m[i], v[i] = optimize(w[i], m[i], v[i], d[i], n, rate, power1, power2)
            w[i] = moved - rate * off[i] if has_decay else moved

    @compiled
    def through_top(through, w, d, top, top_m, top_v, top_factor, b, leader, n, rate, power1, power2):
        """Hand a block's sum over ``through`` to the weight or the parameter that sets its top."""
        total = lane_sum(through)
        if kind == 0:
            d[leader] += total if w[leader] >= 0 else -total
        elif kind == 2:
            floor = top[b] * 1e-3
            moved, top_m[b], top_v[b] = optimize(
                top[b], top_m[b], top_v[b], total * top_factor[b], n, rate, power1, power2
            )
            top[b] = max(moved, floor)

    @compiled
    def after(starts, grid, n, a, uniforms, g, rate, w, m, v, h, top, top_m, top_v, top_factor, powers, d, off, through):
        powers[0] *= n.beta1
        powers[1] *= n.beta2
        for b in range(starts.size - 1):
            first, last = starts[b], starts[b + 1]
            peak, leader = top_of(w[first:last], top[b], n)
            accurate, inverse = inverse_of(peak, grid)
            for i in range(first, last):
                if n.fisher >= 0:
                    h[i] = n.fisher * h[i] + (1 - n.fisher) * (n.scale * g[i] * g[i])
                p = spot(w[i], peak, inverse, accurate, grid, uniforms[i // n.noise] if uniforms.size else 0.0)
                d[i] = direction(p, g[i], h[i], a)
                if has_anchor:
                    through[i] = anchor(p, g[i], h[i], a)
                if has_decay:
                    off[i] = decay(p, h[i], a)
            block = slice(first, last)
            if has_anchor:
                through_top(
                    through[block], w[block], d[block], top, top_m, top_v, top_factor, b, leader, n, rate,
                    powers[0], powers[1],
                )  # fmt: skip
            update(w[block], m[block], v[block], d[block], off[block], n, rate, powers[0], powers[1])

    @compiled
    def fused(
        starts, grid, n, rows, uniforms, hessian, center, rates, w, m, v, h, top, top_m, top_v, top_factor, powers,
        d, off, through,
    ):  # fmt: skip
        for t in range(rates.size):
            a, rate = rows[t], rates[t]
            powers[0] *= n.beta1
            powers[1] *= n.beta2
            for b in range(starts.size - 1):
                first, last = starts[b], starts[b + 1]
                peak, leader = top_of(w[first:last], top[b], n)
                accurate, inverse = inverse_of(peak, grid)
                for i in range(first, last):
                    u = uniforms[t, i // n.noise] if uniforms.size else 0.0
                    p = spot(w[i], peak, inverse, accurate, grid, u)
                    g = (point(p, a) - center[i]) * hessian[i]
                    if n.fisher >= 0:
                        h[i] = n.fisher * h[i] + (1 - n.fisher) * (n.scale * g * g)
                    d[i] = direction(p, g, h[i], a)
                    if has_anchor:
                        through[i] = anchor(p, g, h[i], a)
                    if has_decay:
                        off[i] = decay(p, h[i], a)
                block = slice(first, last)
                if has_anchor:
                    through_top(
                        through[block], w[block], d[block], top, top_m, top_v, top_factor, b, leader, n, rate,
                        powers[0], powers[1],
                    )  # fmt: skip
                update(w[block], m[block], v[block], d[block], off[block], n, rate, powers[0], powers[1])

    return Loops(before, after, fused)


def _nothing(p, g, h, a):
    return 0.0


def _no_decay(p, h, a):
    return 0.0


def scratch(state: State) -> tuple[np.ndarray, ...]:
    """Work arrays for :attr:`Loops.after` and :attr:`Loops.fused`."""
    return np.empty_like(state.w), np.zeros_like(state.w), np.empty_like(state.w)


__all__ = ["Loops", "arguments", "lattice", "loops", "numbers", "scratch"]
