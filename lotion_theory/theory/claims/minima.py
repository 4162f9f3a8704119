"""C7, C10-C13: where the minima are, and what a fixed lattice makes of any loss."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np

from ...formats.quantizer import Quantizer
from ...rounding import conditional_expectation
from ...smoothing import Quadratic, exact
from ...streams import Stream
from ._base import Outcome, claim, keeps_support, real_only
from .blocks import batches, describe, frozen, key, real_blocks
from .rational import rational


def _where_fixed(q: Quantizer) -> bool | None:
    # C3 and C4 suffice. Without C4 the value survives exactly if each support point is reached with certainty from
    # somewhere.
    return True if keeps_support(q) else None


C7 = claim(
    "C7", "global minima kept", "equality", "min over w of E[L(RR(w))] = min of L over the quantized points",
    _where_fixed,
)  # fmt: skip
C10 = claim(
    "C10", "multilinear in a cell", "equality",
    "fixed lattice, any L: E[L(RR(w))] is the multilinear interpolation of L at the cell's vertices",
    applies=real_only,
)  # fmt: skip
C11 = claim(
    "C11", "local minima are lattice points", "equality",
    "fixed lattice: zero Laplacian inside cells; strict local minima = lattice points no single step improves",
    applies=real_only,
)  # fmt: skip
C12 = claim(
    "C12",
    "conditional-expectation rounding",
    "bound",
    "coordinate-wise conditional expectations give L(x) <= E[L(RR(w))]",
    applies=real_only,
)
C13 = claim(
    "C13",
    "derivative as a difference",
    "equality",
    "fixed lattice: dE/dw_i = E[L(q: i→hi) - L(q: i→lo)] / (hi - lo)",
    applies=real_only,
)


def rationals(purpose: str, shape: tuple[int, ...], low: int, high: int, denominator: int = 1) -> np.ndarray:
    """Reproducible random Rationals ``k / denominator`` with ``low <= k <= high``."""
    generator = Stream(0, f"claims/{purpose}").numpy_generator()
    numbers = generator.integers(low, high + 1, size=shape)
    out = np.empty(shape, dtype=object)
    for i in np.ndindex(shape):
        out[i] = rational(int(numbers[i]), denominator)
    return out


def quadratic(purpose: str, d: int) -> Quadratic:
    """A random integer quadratic, indefinite in general: the identities need no convexity."""
    half = rationals(f"{purpose}/hessian", (d, d), -4, 4)
    return Quadratic(half + half.T, rationals(f"{purpose}/center", (d,), -12, 12, 8))


def inner_points(q: Quantizer, purpose: str, count: int, d: int) -> tuple[Quantizer, np.ndarray]:
    """A fixed unit lattice of the codebook, and random points strictly inside cells near the middle of its range."""
    levels = q.codebook.levels
    middle = len(levels) // 2
    cells = rationals(f"{purpose}/cell", (count, d), 0, min(6, len(levels) - 2))
    share = rationals(f"{purpose}/share", (count, d), 1, 12, 13)
    start = max(0, min(middle - 3, len(levels) - 2 - min(6, len(levels) - 2)))
    points = np.empty((count, d), dtype=object)
    for i in np.ndindex(count, d):
        k = start + int(cells[i])
        points[i] = levels[k] + share[i] * (levels[k + 1] - levels[k])
    return frozen(q), points


@C7.check("exhaustive", "losses centred on every support point of small blocks")
def exact_minima(q: Quantizer) -> Outcome:
    """For ``L = |w - x|²`` with ``x`` a support point the quantized minimum is 0; the smoothed one is 0 only if some
    ``w`` is rounded to ``x`` with certainty. ``x`` itself is tried first, then every probe block, then multiples of
    ``x``."""
    checked = 0
    for batch in batches(q):
        if batch.x.shape[1] > 2:
            continue
        points, probs = batch.supports
        moved = batch.unfixed
        checked += int((probs > 0).sum())
        if not moved.any():
            continue
        if q.scale.couples_blocks:
            # Which tensors of two blocks are reached with certainty is not searched: no verdict, not an empty one.
            return Outcome(0.0, 0.0, 0)
        mean, spread = batch.law.mean(), batch.law.variance()
        reached = {key(m) for m, v in zip(mean, spread, strict=True) if not v.any()}
        for k, i in np.argwhere(moved)[:400]:
            x = points[k, i]
            if key(x) in reached:
                continue
            least = _least_distance(batch.q, x)
            if least > 0:
                # No probe block reaches x either: they only tell how near one comes.
                least = min(least, *(spread + (mean - x) ** 2).sum(axis=1).tolist())
                return Outcome(
                    float(least), 0.0, checked,
                    f"L = |w - x|², x = {describe(real_blocks(q, x[None])[0])} (from {describe(batch.w[i])}): "
                    "nothing tried rounds to x with certainty",
                )  # fmt: skip
            reached.add(key(x))
    return Outcome(0.0, 0.0, checked)


def _multiples() -> list[Fraction]:
    """Factors from 6/33 to 33/6, the simplest first."""
    found = {Fraction(a, b) for a, b in itertools.product((6, 7, 8, 15, 16, 17, 32, 33), repeat=2)}
    return sorted(found, key=lambda v: (v.denominator, v.numerator))


def _least_distance(q: Quantizer, x: np.ndarray) -> Fraction:
    """Least smoothed loss ``|w - x|²`` among multiples ``w`` of ``x``; where it is 0 the rest is not tried."""
    least: list[Fraction] = []
    factors = _multiples()
    for start in range(0, len(factors), 8):
        law = q.block_law(real_blocks(q, np.array([x * f for f in factors[start : start + 8]], dtype=object)))
        least += (law.variance() + (law.mean() - x) ** 2).sum(axis=1).tolist()
        if min(least) == 0:
            break
    return min(least)


def _interpolate(values: dict[tuple[int, ...], Fraction], shares: list[Fraction]) -> Fraction:
    """Multilinear interpolation by repeated linear interpolation, one axis at a time."""
    if not shares:
        return values[()]
    low = {k[1:]: v for k, v in values.items() if k[0] == 0}
    high = {k[1:]: v for k, v in values.items() if k[0] == 1}
    a, b = _interpolate(low, shares[1:]), _interpolate(high, shares[1:])
    return a + shares[0] * (b - a)


@C10.check("exhaustive", "random values at the vertices, exact")
def exact_multilinear(q: Quantizer) -> Outcome:
    fixed, points = inner_points(q, "C10", 12, 3)
    last = (0.0, 0.0)
    for n, w in enumerate(points):
        lo, hi = fixed.bracket(w)
        heights = rationals(f"C10/{n}", (2, 2, 2), -9, 9)
        found = exact.smoothed_loss(lambda p, lo=lo, heights=heights: heights[tuple((p > lo).astype(int).T)], w, fixed)
        table = {k: heights[k] for k in itertools.product((0, 1), repeat=3)}
        stated = _interpolate(table, list((w - lo) / (hi - lo)))
        last = (float(found), float(stated))
        if found != stated:
            return Outcome(*last, n + 1, describe(w))
    return Outcome(*last, len(points))


@C11.check("exhaustive", "all lattice points of a window, exact")
def exact_local_minima(q: Quantizer) -> Outcome:
    """Around a lattice point the smoothed loss is tried in all 3^d - 1 directions, or up to one where it falls; inside
    cells the axis-wise second difference is taken. Both must agree with comparing single steps on the lattice."""
    levels = np.array([rational(level) for level in q.codebook.levels], dtype=object)
    start = max(0, len(levels) // 2 - 2)
    window = levels[start : start + 5]
    fixed = frozen(q)
    checked = agreeing_minima = 0
    for trial in range(2):
        loss = quadratic(f"C11/{trial}", 2)
        loss.hessian = loss.hessian + np.array([[Fraction(9), Fraction(0)], [Fraction(0), Fraction(9)]], dtype=object)
        loss.center = np.array([window[len(window) // 2] * Fraction(9, 10), window[0]], dtype=object)
        for i, j in itertools.product(range(len(window)), repeat=2):
            here = np.array([window[i], window[j]], dtype=object)
            value = loss(here[None])[0]
            steps = [
                np.array([levels[start + i + a], levels[start + j + b]], dtype=object)
                for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))
                if 0 <= start + i + a < len(levels) and 0 <= start + j + b < len(levels)
            ]
            on_lattice = all(loss(s[None])[0] > value for s in steps)
            others = [
                np.array([levels[start + i + a], levels[start + j + b]], dtype=object)
                for a, b in itertools.product((-1, 0, 1), repeat=2)
                if (a, b) != (0, 0) and 0 <= start + i + a < len(levels) and 0 <= start + j + b < len(levels)
            ]
            # A thousandth of the cell: the bilinear term cannot outweigh integer-sized slopes from there.
            smoothed = (exact.smoothed_loss(loss, here + (other - here) / 4096, fixed) for other in others)
            near = all(nearby > value for nearby in smoothed)
            checked += 1
            agreeing_minima += on_lattice
            if on_lattice != near:
                return Outcome(float(near), float(on_lattice), checked, f"lattice point {describe(here)}")
    fixed, points = inner_points(q, "C11/inside", 4, 2)
    loss = quadratic("C11/inside", 2)
    for w in points:
        lo, hi = fixed.bracket(w)
        for axis in range(2):
            h = np.zeros(2, dtype=object) + rational(0)
            h[axis] = min(hi[axis] - w[axis], w[axis] - lo[axis]) / 2
            bend = (
                exact.smoothed_loss(loss, w + h, fixed)
                + exact.smoothed_loss(loss, w - h, fixed)
                - 2 * exact.smoothed_loss(loss, w, fixed)
            )
            checked += 1
            if bend != 0:
                return Outcome(float(bend), 0.0, checked, f"second difference at {describe(w)}")
    return Outcome(float(agreeing_minima), float(agreeing_minima), checked)


@C12.check("exhaustive", "random quadratics, exact")
def exact_conditional_expectation(q: Quantizer) -> Outcome:
    worse, checked = 0, 0
    margin: tuple[Any, Any] | None = None
    for trial in range(12):
        loss = quadratic(f"C12/{trial}", 3)
        w = rationals(f"C12/{trial}/w", (3,), 1, 96, 16)
        fixed = q.with_partition("tensor").freeze(w) if not q.scale.is_frozen else frozen(q)
        smooth = exact.smoothed_loss(loss, w, fixed)
        rounded = conditional_expectation(loss, w, fixed)
        value = loss(rounded[None])[0]
        worse += loss(fixed.cast(w)[None])[0] > smooth
        checked += 1
        if margin is None or value - smooth > margin[0] - margin[1]:
            margin = (value, smooth)
        if value > smooth:
            return Outcome(float(value), float(smooth), checked, describe(w))
    assert margin is not None, "the loop ran"
    return Outcome(
        float(margin[0]),
        float(margin[1]),
        checked,
        note=f"round-to-nearest exceeded the smoothed loss in {worse} of {checked} cases",
    )


@C13.check("exhaustive", "exact difference quotients inside a cell")
def exact_difference(q: Quantizer) -> Outcome:
    from ...smoothing.gradients import conditional_difference
    from ...smoothing.gradients import exact as exact_gradient

    fixed, points = inner_points(q, "C13", 5, 3)
    last, checked = (0.0, 0.0), 0
    for n, w in enumerate(points):
        loss = quadratic(f"C13/{n}", 3)
        lo, hi = fixed.bracket(w)
        found = exact.law(w, fixed)
        gaps = hi - lo
        mean_difference = np.zeros(3, dtype=object)
        for i in range(3):
            ends = []
            for level in (hi, lo):
                moved = found.points.copy()
                moved[:, i] = level[i]
                ends.append(exact.expectation(found, loss(moved)))
            mean_difference[i] = (ends[0] - ends[1]) / gaps[i]
            h = np.zeros(3, dtype=object) + rational(0)
            h[i] = (hi[i] - w[i]) / 3
            quotient = (exact.smoothed_loss(loss, w + h, fixed) - exact.smoothed_loss(loss, w, fixed)) / h[i]
            checked += 1
            last = (float(mean_difference[i]), float(quotient))
            if mean_difference[i] != quotient:
                return Outcome(*last, checked, f"weight {i + 1} of {describe(w)}")
        # The estimators of the library must agree with what was just derived.
        gradient = exact_gradient(_as_float(loss), w.astype(float), fixed_float(q), moving=False)
        float_points = found.points.astype(float)
        each = conditional_difference(_as_float(loss), fixed_float(q), w.astype(float), float_points)
        estimate = (found.probs.astype(float)[:, None] * each).sum(axis=0)
        scale = 1 + abs(mean_difference.astype(float)).max()
        if (
            max(
                abs(gradient - mean_difference.astype(float)).max(), abs(estimate - mean_difference.astype(float)).max()
            )
            > 1e-9 * scale
        ):
            return Outcome(float(gradient[0]), float(mean_difference[0]), checked, f"estimators at {describe(w)}")
    return Outcome(*last, checked)


def fixed_float(q: Quantizer) -> Quantizer:
    """The unit lattice of a codebook for float64 weights."""
    return q.with_partition("tensor").with_scale(1.0)


def _as_float(loss: Quadratic) -> Quadratic:
    return Quadratic(loss.hessian.astype(float), loss.center.astype(float), float(loss.offset))
