"""The training step as numba loops around the functions of a rule and of ``lotion_theory.kernels``.

No formula of a method is written here. What is particular to this file is how a weight's levels are found, and the
order of sums; both give the bits of :mod:`.plain`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lotion_theory import kernels
from lotion_theory.formats.codebooks import Codebook
from lotion_theory.formats.compiled import plan as lattice_plan
from lotion_theory.methods import Place, Rule
from lotion_theory.methods.rule import LEAST_LEFT

from .primitives import compiler, register_helpers, shared
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
    functions = (rule.point, rule.direction, rule.anchor, rule.decay, rule.reset)
    return _loops(Form(*functions, TOP_CODES[rule.top], rule.noise, rule.averages_gradients, optimizer.kind == "adam"))


def arrays(state: State) -> Arrays:
    """The arrays of ``state``, which the loops write to, with scratch of their own."""
    w = state.w
    scratch = np.empty_like(w), np.zeros_like(w), np.empty_like(w)
    learned = state.top, state.top_m, state.top_v, state.top_factor
    return Arrays(w, state.m, state.v, state.h, *scratch, *learned, state.powers)


@lru_cache(maxsize=128)
def _loops(form: Form) -> Loops:
    site_of = _site_of(form)
    points, directions, both = _sweeps(form)
    finish, settle = _finish(form), _settle(form)
    fisher, has_reset = form.fisher, form.reset is not None
    compiled = compiler()

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
            if has_reset:
                settle(arrays, site_of(b, setup, arrays), setup.grid, step)

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
                if has_reset:
                    settle(arrays, site_of(b, setup, arrays), setup.grid, step)

    return Loops(before, after, fused)


def _site_of(form: Form) -> Callable:
    """``site_of(number, setup, arrays)``: where a block is."""
    _, _, lane_sum, largest, _ = shared()
    top_code, has_anchor = form.top, form.anchor is not None
    compiled = compiler()

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
    quotient, search, *_ = shared()
    point, _, _, _ = _functions(form)
    one = _one(form)
    own, uniform, usable = _reading(form)
    compiled = compiler()

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


@lru_cache(maxsize=128)
def _reading(form: Form) -> tuple[Callable, Callable, Callable]:
    """``own(u, site)``: a block's uniforms. ``uniform(u, site, i)``: that of its weight ``i``. ``usable(peak, grid)``:
    whether the quotient by ``peak`` is accurate."""
    noise = form.noise
    compiled = compiler()

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
        return grid.high > 0 and (peak == 0 or (grid.lowest <= peak and peak <= grid.highest))

    return own, uniform, usable


def _both(form: Form, own: Callable, uniform: Callable, usable: Callable, one: Callable) -> Callable:
    quotient, search, *_ = shared()
    point, _, _, _ = _functions(form)
    fisher = form.fisher

    @compiler()
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

    @compiler()
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
    _, _, lane_sum, _, adam = shared()
    top_code, is_adam = form.top, form.adam
    has_anchor, has_decay = form.anchor is not None, form.decay is not None
    compiled = compiler()

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


def _settle(form: Form) -> Callable:
    """``settle(arrays, site, grid, step)``: what the rule makes of the weights of a block that has moved, at their
    places then."""
    own, uniform, usable = _reading(form)
    quotient, search, *_ = shared()
    reset = compiler()(form.reset or _unmoved)

    @compiler()
    def settle(arrays, site, grid, step):
        w, u, a, peak = arrays.w[site.first : site.last], own(step.u, site), step.a, site.peak
        quick = usable(peak, grid)
        inverse = grid.high / peak if peak > 0 else 0.0
        for i in range(w.size):
            found = quotient(w[i], peak, inverse, grid) if quick else search(w[i], peak, grid)
            w[i] = reset(Place(w[i], *found, peak, uniform(u, site, i), w.size), a)

    return settle


@lru_cache(maxsize=128)
def _functions(form: Form) -> tuple[Callable, ...]:
    """The functions of a rule compiled, with stand-ins for those that it lacks."""
    for function in (form.point, form.direction, form.anchor, form.decay, form.reset):
        register_helpers(function)
    anchor, decay = form.anchor or _nothing, form.decay or _no_decay
    return tuple(map(compiler(), (form.point, form.direction, anchor, decay)))


def _nothing(p, g, h, a):
    return 0.0


def _no_decay(p, h, a):
    return 0.0


def _unmoved(p, a):
    return p.w


__all__ = ["Arrays", "Loops", "Loss", "Setup", "Steps", "arrays", "lattice", "loops", "numbers"]
