"""The training step as numba loops around the functions of a rule and of ``lotion_theory.kernels``.

No formula of a method is written here. What is particular to this file is how a weight's levels are found, and the
order of sums; both give the bits of :mod:`.plain`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from lotion_theory import _arrays, kernels
from lotion_theory.formats.codebooks import Codebook
from lotion_theory.formats.compiled import plan as lattice_plan
from lotion_theory.methods import Place, Rule
from lotion_theory.methods.rule import LEAST_LEFT

from .records import TOP_CODES, Arrays, Form, Lattice, Loss, Numbers, Out, Pace, Point, Setup, Site, Steps
from .state import Optimizer, State


class Loops(NamedTuple):
    """``before(setup, step, arrays, x, variance)`` and ``after(setup, step, arrays, g)`` as in :mod:`.plain`, and
    ``fused(setup, steps, loss, arrays)``: whole steps on a loss with diagonal Hessian."""

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
    functions = (rule.point, rule.direction, rule.anchor, rule.decay)
    return _loops(
        Form(*functions, TOP_CODES[rule.top], rule.noise, rule.curvature == "fisher", optimizer.kind == "adam")
    )


def arrays(state: State) -> Arrays:
    """The arrays of ``state``, which the loops write to, with scratch of their own."""
    w = state.w
    scratch = np.empty_like(w), np.zeros_like(w), np.empty_like(w)
    learned = state.top, state.top_m, state.top_v, state.top_factor
    return Arrays(w, state.m, state.v, state.h, *scratch, *learned, state.powers)


@lru_cache(maxsize=1)
def _shared() -> tuple[Any, ...]:
    """Compiled parts that no rule changes: levels around a weight, sums in lanes, the optimizer."""
    import llvmlite.binding
    from numba.extending import overload, register_jitable

    # A loop over some ten arrays is vectorised only if LLVM may check at run time that none overlaps another; its
    # default stops at eight such checks.
    llvmlite.binding.set_option("", "-runtime-memory-check-threshold=128")
    for name in dir(kernels):
        value = getattr(kernels, name)
        if callable(value) and not name.startswith("__"):
            register_jitable(value)
    overload(_arrays.exp)(lambda x: _exp)
    overload(_arrays.tanh)(lambda x: _tanh)
    overload(_arrays.cos)(lambda x: _cos)
    return tuple(map(_compiler(), (_quotient, _search, _lane_sum, _peak, _adam)))


def _exp(x):
    return np.exp(x)


def _tanh(x):
    return np.tanh(x)


def _cos(x):
    return np.cos(x)


def _quotient(x, top, inverse, grid):
    """``(lo, hi, near, unit_lo, unit_hi, unit_near)`` of a weight on a lattice of integers, without a branch.

    The integer nearest to ``x / step`` bounds the cell on one side (see :mod:`lotion_theory.formats.compiled`), its
    neighbour on the weight's side on the other. On a level, and beyond the ends, both are that level.
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
    nearer, tie = kernels.compare_distances(min(max(x, lo), hi), lo, hi)
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
    nearer, tie = kernels.compare_distances(min(max(x, lo), hi), lo, hi)
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


def _adam(x, m, v, d, n, pace):
    """Adam's step on one number: its new value and moments."""
    m = n.beta1 * m + (1 - n.beta1) * d
    v = n.beta2 * v + (1 - n.beta2) * (d * d)
    return x - pace.rate * ((m * pace.first) / (np.sqrt(v * pace.second) + n.epsilon)), m, v


@lru_cache(maxsize=128)
def _loops(form: Form) -> Loops:
    site_of = _site_of(form)
    points, directions, both = _sweeps(form)
    finish = _finish(form)
    fisher = form.fisher
    compiled = _compiler()

    @compiled
    def before(setup, step, arrays, x, variance):
        for b in range(setup.starts.size - 1):
            points(arrays.w, site_of(b, setup, arrays), setup.grid, step, Point(x, variance))

    @compiled
    def after(setup, step, arrays, g):
        n, h = setup.n, arrays.h
        arrays.powers[0] *= n.beta1
        arrays.powers[1] *= n.beta2
        if fisher:
            for i in range(h.size):
                h[i] = n.fisher * h[i] + (1 - n.fisher) * (n.scale * g[i] * g[i])
        for b in range(setup.starts.size - 1):
            site = site_of(b, setup, arrays)
            directions(arrays, site, setup.grid, step, g)
            finish(arrays, site, n, step.rate)

    @compiled
    def fused(setup, steps, loss, arrays):
        n = setup.n
        for t in range(steps.rate.size):
            step = Steps(steps.a[t], steps.u[t], steps.rate[t])
            arrays.powers[0] *= n.beta1
            arrays.powers[1] *= n.beta2
            for b in range(setup.starts.size - 1):
                site = site_of(b, setup, arrays)
                both(arrays, site, setup, step, loss)
                finish(arrays, site, n, step.rate)

    return Loops(before, after, fused)


def _compiler() -> Callable:
    import numba

    return numba.njit(error_model="numpy", nogil=True)


def _site_of(form: Form) -> Callable:
    """``site_of(number, setup, arrays)``: where a block is."""
    _, _, lane_sum, largest, _ = _shared()
    top_code, has_anchor = form.top, form.anchor is not None
    compiled = _compiler()

    @compiled
    def top_of(w, top, n):
        """``(top, number of the weight that sets it)`` of a block."""
        if top_code == 2:
            return top * n.span, 0
        if top_code == 1:
            return n.rms * np.sqrt(lane_sum(w * w) / w.size), 0
        if top_code == 3:
            return n.rms * (lane_sum(np.abs(w)) / w.size), 0
        peak = largest(w)
        leader = 0
        if has_anchor:
            while abs(w[leader]) < peak:
                leader += 1
        return peak, leader

    @compiled
    def site_of(b, setup, arrays):
        first, last = setup.starts[b], setup.starts[b + 1]
        peak, leader = top_of(arrays.w[first:last], arrays.top[b], setup.n)
        return Site(b, first, last, peak, leader)

    return site_of


def _sweeps(form: Form) -> tuple[Callable, Callable, Callable]:
    """Loops over the weights of a block: ``points`` (where the loss gradient is taken), ``directions`` (what becomes of
    it), ``both`` (on a loss with diagonal Hessian).

    All run from 0 over slices: LLVM then knows that no index is negative, and vectorises.
    """
    quotient, search, *_ = _shared()
    point, _, _, _ = _functions(form)
    one = _one(form)
    noise = form.noise
    compiled = _compiler()

    @compiled
    def own(u, site):
        return u[site.first : site.last] if noise == 1 else u

    @compiled
    def uniform(u, site, i):
        if noise == 0:
            return 0.0
        return u[i] if noise == 1 else u[(site.first + i) // noise]

    @compiled
    def usable(peak, grid):
        """Whether the quotient by ``peak`` is accurate."""
        return grid.high > 0 and (peak == 0 or (grid.lowest <= peak and peak <= grid.highest))

    @compiled
    def points(w, site, grid, step, out):
        k = slice(site.first, site.last)
        w, x, variance, u, a, peak = w[k], out.x[k], out.variance[k], own(step.u, site), step.a, site.peak
        if usable(peak, grid):
            inverse = grid.high / peak if peak > 0 else 0.0
            for i in range(w.size):
                p = Place(w[i], *quotient(w[i], peak, inverse, grid), peak, uniform(u, site, i), w.size)
                x[i] = point(p, a)
                variance[i] = kernels.variance(min(max(p.w, p.lo), p.hi), p.lo, p.hi)
        else:
            for i in range(w.size):
                p = Place(w[i], *search(w[i], peak, grid), peak, uniform(u, site, i), w.size)
                x[i] = point(p, a)
                variance[i] = kernels.variance(min(max(p.w, p.lo), p.hi), p.lo, p.hi)

    @compiled
    def directions(arrays, site, grid, step, g):
        k = slice(site.first, site.last)
        w, h, g, out = arrays.w[k], arrays.h[k], g[k], Out(arrays.d[k], arrays.off[k], arrays.through[k])
        u, a, peak = own(step.u, site), step.a, site.peak
        if usable(peak, grid):
            inverse = grid.high / peak if peak > 0 else 0.0
            for i in range(w.size):
                p = Place(w[i], *quotient(w[i], peak, inverse, grid), peak, uniform(u, site, i), w.size)
                one(i, p, g[i], h[i], a, out)
        else:
            for i in range(w.size):
                one(i, Place(w[i], *search(w[i], peak, grid), peak, uniform(u, site, i), w.size), g[i], h[i], a, out)

    return points, directions, _both(form, own, uniform, usable, one)


def _both(form: Form, own: Callable, uniform: Callable, usable: Callable, one: Callable) -> Callable:
    quotient, search, *_ = _shared()
    point, _, _, _ = _functions(form)
    fisher = form.fisher

    @_compiler()
    def both(arrays, site, setup, step, loss):
        k, n, grid = slice(site.first, site.last), setup.n, setup.grid
        w, h, out = arrays.w[k], arrays.h[k], Out(arrays.d[k], arrays.off[k], arrays.through[k])
        hessian, center, u, a, peak = loss.hessian[k], loss.center[k], own(step.u, site), step.a, site.peak
        if usable(peak, grid):
            inverse = grid.high / peak if peak > 0 else 0.0
            for i in range(w.size):
                p = Place(w[i], *quotient(w[i], peak, inverse, grid), peak, uniform(u, site, i), w.size)
                g = (point(p, a) - center[i]) * hessian[i]
                if fisher:
                    h[i] = n.fisher * h[i] + (1 - n.fisher) * (n.scale * g * g)
                one(i, p, g, h[i], a, out)
        else:
            for i in range(w.size):
                p = Place(w[i], *search(w[i], peak, grid), peak, uniform(u, site, i), w.size)
                g = (point(p, a) - center[i]) * hessian[i]
                if fisher:
                    h[i] = n.fisher * h[i] + (1 - n.fisher) * (n.scale * g * g)
                one(i, p, g, h[i], a, out)

    return both


def _one(form: Form) -> Callable:
    """``one(i, p, g, h, a, out)``: what the rule makes of the gradient of weight ``i``."""
    _, direction, anchor, decay = _functions(form)
    has_anchor, has_decay = form.anchor is not None, form.decay is not None

    @_compiler()
    def one(i, p, g, h, a, out):
        out.d[i] = direction(p, g, h, a)
        if has_anchor:
            out.through[i] = anchor(p, g, h, a)
        if has_decay:
            out.off[i] = decay(p, h, a)

    return one


def _finish(form: Form) -> Callable:
    """``finish(arrays, site, n, rate)``: hands the sum over ``through`` to what sets the block's highest level, and
    moves the block."""
    _, _, lane_sum, _, adam = _shared()
    top_code, is_adam = form.top, form.adam
    has_anchor, has_decay = form.anchor is not None, form.decay is not None
    compiled = _compiler()

    @compiled
    def move(arrays, site, n, pace):
        k = slice(site.first, site.last)
        w, m, v, d, off = arrays.w[k], arrays.m[k], arrays.v[k], arrays.d[k], arrays.off[k]
        for i in range(w.size):
            if is_adam:
                moved, m[i], v[i] = adam(w[i], m[i], v[i], d[i], n, pace)
            else:
                moved = w[i] - pace.rate * d[i]
            w[i] = moved - pace.rate * off[i] if has_decay else moved

    @compiled
    def learn(x, b, total, n, pace):
        floor, slope = x.top[b] * LEAST_LEFT, total * x.top_factor[b] + n.top_decay * x.top[b]
        if is_adam:
            moved, x.top_m[b], x.top_v[b] = adam(x.top[b], x.top_m[b], x.top_v[b], slope, n, pace)
        else:
            moved = x.top[b] - pace.rate * slope
        x.top[b] = max(moved, floor)

    @compiled
    def finish(arrays, site, n, rate):
        pace = Pace(rate, 1 / (1 - arrays.powers[0]), 1 / (1 - arrays.powers[1]))
        if has_anchor:
            total = lane_sum(arrays.through[site.first : site.last])
            if top_code == 0:
                leader = site.first + site.leader
                arrays.d[leader] += total if arrays.w[leader] >= 0 else -total
            elif top_code == 2:
                learn(arrays, site.number, total, n, pace)
            elif top_code == 3:
                w, d = arrays.w[site.first : site.last], arrays.d[site.first : site.last]
                share = total * n.rms / w.size
                for i in range(w.size):
                    d[i] += share * np.sign(w[i])
        move(arrays, site, n, pace)

    return finish


@lru_cache(maxsize=128)
def _functions(form: Form) -> tuple[Callable, ...]:
    """The functions of a rule compiled, with stand-ins for those that it lacks."""
    for function in (form.point, form.direction, form.anchor, form.decay):
        _register_helpers(function)
    anchor, decay = form.anchor or _nothing, form.decay or _no_decay
    return tuple(map(_compiler(), (form.point, form.direction, anchor, decay)))


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


__all__ = ["Arrays", "Loops", "Loss", "Setup", "Steps", "arrays", "lattice", "loops", "numbers"]
