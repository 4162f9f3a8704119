"""C1-C6: the law of randomized rounding itself."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np

from ...formats.quantizer import Quantizer
from ._base import Outcome, always, claim, is_continuous, keeps_support, real_only, unbiased, worst
from .blocks import Batch, batches, describe, describe_case, frozen, real_blocks, supports

C1 = claim("C1", "unbiased", "equality", "E[RR(w)] = w", unbiased)
C2 = claim("C2", "variance", "equality", "Var RR(w) = (hi - w)(w - lo), mixed over drawn lattices", always)
C3 = claim("C3", "on-grid points stay", "equality", "w on its own lattice: RR(w) = w almost surely", always)
C4 = claim(
    "C4", "support points are fixed", "equality",
    "every support point q of RR(w), with its own scale: RR(q) = q almost surely",
    keeps_support,
)  # fmt: skip
C5 = claim(
    "C5", "Wasserstein isometry", "equality",
    "fixed lattice, one weight: W₁(RR(w), RR(w')) = |w - w'| inside the range", always, real_only,
)  # fmt: skip
C6 = claim(
    "C6", "continuous law", "bound", "W₁(RR(w), RR(w + ε)) → 0 as ε → 0, scale included",
    is_continuous,
)  # fmt: skip


@C1.check("exhaustive", "exact mean on small blocks")
def exact_mean(q: Quantizer) -> Outcome:
    checked = 0
    last = (0.0, 0.0)
    for batch in batches(q):
        mean, x = batch.law.mean(), batch.x
        broken = mean != x
        checked += len(x)
        if broken.any():
            i = int(np.argmax(broken.any(axis=1)))
            return Outcome(
                *worst(mean[i], x[i], broken[i]), checked,
                f"{describe_case(batch, i)} → {describe(real_blocks(q, mean[i : i + 1])[0])} on average",
            )  # fmt: skip
        last = worst(mean, x, broken)
    return Outcome(*last, checked)


@C2.check("exhaustive", "second moment by enumeration")
def exact_variance(q: Quantizer) -> Outcome:
    checked, last = 0, (0.0, 0.0)
    for batch in batches(q):
        points, probs = supports(batch)
        weight = probs[:, :, None]
        mean = (weight * points).sum(axis=0)
        spread = (weight * (points - mean) ** 2).sum(axis=0)
        stated = batch.law.variance()
        broken = spread != stated
        checked += len(batch.w)
        last = worst(spread, stated, broken)
        if broken.any():
            i = int(np.argmax(broken.any(axis=1)))
            return Outcome(*worst(spread[i], stated[i], broken[i]), checked, describe_case(batch, i))
    return Outcome(*last, checked)


@C3.check("exhaustive", "membership in the enumerated levels")
def exact_on_grid(q: Quantizer) -> Outcome:
    checked = 0
    index = np.arange(len(q.codebook.levels))
    for batch in batches(q):
        x = batch.x
        on_grid = np.ones(x.shape, dtype=bool)
        for draw, _ in batch.branches:
            possible = np.ones(len(x), dtype=bool) if draw.prob is None else np.asarray(draw.prob[:, 0] > 0, dtype=bool)
            levels = draw.lattice.level(np.broadcast_to(index, (len(x), len(index))))
            member = (x[:, :, None] == levels[:, None, :]).any(axis=2)
            on_grid &= member | ~possible[:, None]
        spread = batch.law.variance()
        mean = batch.law.mean()
        broken = on_grid & ((spread != 0) | (mean != x))
        checked += int(on_grid.sum())
        if broken.any():
            i = int(np.argmax(broken.any(axis=1)))
            return Outcome(float(spread[i].max()), 0.0, checked, describe_case(batch, i))
    return Outcome(0.0, 0.0, checked)


def unfixed(q: Quantizer, batch: Batch, points: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Which support points are not fixed points of RR, their own scale included: (k, n), as ``probs``.

    ``points`` (k, n, coordinates) and ``probs`` are those of :func:`supports`; a point that is never drawn is none.
    """
    drawn = np.asarray(probs > 0, dtype=bool)
    if q.scale.couples_blocks:
        # The rows of a batch share a scale: a support point is one tensor of as many rows, and moves as a whole.
        moved = np.array([moved_blocks(batch.q, point).any() for point in points])
        return drawn & moved[:, None]
    moved = np.zeros(drawn.shape, dtype=bool)
    moved[drawn] = moved_blocks(batch.q, real_blocks(q, points[drawn]))
    return moved


def moved_blocks(q: Quantizer, w: np.ndarray) -> np.ndarray:
    """Which blocks (rows) of ``w`` are not fixed points of RR with their own scale; exact or float."""
    law = q.block_law(w)
    x = law.x
    out = np.zeros(len(x), dtype=bool)
    for draw, cell in law.branches:
        possible = np.ones(len(x), dtype=bool) if draw.prob is None else np.asarray(draw.prob[:, 0] > 0, dtype=bool)
        out |= possible & np.asarray(((cell.lo != x) | (cell.hi != x)).any(axis=1), dtype=bool)
    return out


@C4.check("exhaustive", "every support point of small blocks")
def exact_support_fixed(q: Quantizer) -> Outcome:
    checked = 0
    for batch in batches(q):
        points, probs = supports(batch)
        broken = unfixed(q, batch, points, probs)
        checked += int((probs > 0).sum())
        if broken.any():
            i = int(np.argmax(broken.any(axis=0)))
            k_bad = int(np.argmax(broken[:, i]))
            # All rows of the batch: on a two-level scale a block's own lattice depends on its neighbours.
            point = real_blocks(q, points[k_bad])
            law = batch.q.block_law(point)
            size = law.variance().max(axis=1) + abs(law.mean() - points[k_bad]).max(axis=1)
            if q.scale.couples_blocks:
                i = int(np.argmax(np.asarray(size, dtype=float)))
            return Outcome(
                float(size[i]), 0.0, checked,
                f"{describe_case(batch, i)} → {describe(point[i])}, which rounds again",
            )  # fmt: skip
    return Outcome(0.0, 0.0, checked)


def marginal_w1(a: list[tuple[Fraction, Fraction]], b: list[tuple[Fraction, Fraction]]) -> Fraction:
    """W₁ between two finite laws on the line, ``∫ |F_a - F_b|``, exactly; lists of (point, probability)."""
    steps: dict[Fraction, Fraction] = {}
    for law, sign in ((a, 1), (b, -1)):
        for v, p in law:
            steps[v] = steps.get(v, 0) + sign * p
    total = cdf = Fraction(0)
    for left, right in pairwise(sorted(steps)):
        cdf += steps[left]
        total += abs(cdf) * (right - left)
    return total


@C5.check("exhaustive", "exact W₁ on a fixed lattice")
def exact_isometry(q: Quantizer) -> Outcome:
    fixed = frozen(q, 1)
    levels = q.codebook.levels
    inner = sorted({*levels[:4], *levels[-4:], *((a + b) / 2 for a, b in pairwise(levels[:5]))})
    inner += [v + (levels[1] - levels[0]) * Fraction(k, 7) for v in levels[:2] for k in (1, 3)]
    inner = [v for v in inner if levels[0] <= v <= levels[-1]]
    column = np.array([[v] for v in inner], dtype=object)
    cell = fixed.branches(column)[0].cell
    laws = []
    for lo, hi, w in zip(cell.lo[:, 0], cell.hi[:, 0], column[:, 0], strict=True):
        p = (w - lo) / (hi - lo) if hi > lo else Fraction(0)
        laws.append([(lo, 1 - p), (hi, p)])
    checked, last = 0, (0.0, 0.0)
    for i, a in enumerate(laws):
        for j in range(i):
            found, stated = marginal_w1(a, laws[j]), abs(inner[i] - inner[j])
            checked += 1
            last = (float(found), float(stated))
            if found != stated:
                return Outcome(*last, checked, f"w={inner[i]}, w'={inner[j]}")
    return Outcome(*last, checked)


_STEP = Fraction(1, 2**40)
_JUMP = Fraction(1, 2**14)


@C6.check("exhaustive", "exact W₁ across directed steps of 2⁻⁴⁰")
def exact_continuity(q: Quantizer) -> Outcome:
    """A law with Lipschitz constant K moves by at most K 2⁻⁴⁰; a jump moves by a share of a level's gap.

    2⁻¹⁴ of the block's magnitude (of 1, if that is larger) separates the two: it allows K up to 2²⁶. Each weight is
    stepped up and down, so every breakpoint among the probes is crossed from both sides. The sum of the marginal
    distances is exact where weights are rounded independently; on drawn lattices, where it only bounds W₁ from below,
    the draw's own probability is compared too.
    """
    if not q.scale.is_rational:
        return Outcome(0.0, 0.0, 0, note="a step makes the modulus irrational: see the float check")
    checked, largest = 0, Fraction(0)
    for batch in batches(q):
        n, d = batch.x.shape
        if d > 2 and not q.codebook.is_complex:
            continue  # A second weight already sees every breakpoint of the first.
        size = np.maximum(abs(batch.x).max(axis=1), 1 + 0 * batch.x[:, 0])
        for j in range(d):
            for sign in (1, -1):
                moved = batch.x.copy()
                moved[:, j] = moved[:, j] + sign * _STEP
                other = batch.q.branches(real_blocks(q, moved))
                distance = _marginal_distances(batch.branches, other)
                if q.scale.is_drawn:
                    distance = distance + _draw_distance(batch.branches, other)
                jump = np.asarray(distance > _JUMP * size, dtype=bool)
                checked += n
                largest = max(largest, *((distance / size).tolist()))
                if jump.any():
                    i = int(np.argmax(jump))
                    step = "⁺" if sign > 0 else "⁻"
                    return Outcome(
                        float(distance[i]), 0.0, checked,
                        f"{describe_case(batch, i)}, weight {j + 1}{step}: W₁ jumps by {float(distance[i]):.4g}",
                        float(_JUMP * size[i]),
                    )  # fmt: skip
    return Outcome(float(largest), 0.0, checked, None, float(_JUMP))


def _marginal_distances(a: list, b: list) -> np.ndarray:
    n, d = a[0].cell.lo.shape
    return np.array(
        [sum(marginal_w1(_marginal(a, i, j), _marginal(b, i, j)) for j in range(d)) for i in range(n)], dtype=object
    )


def _marginal(branches: list, i: int, j: int) -> list[tuple[Fraction, Fraction]]:
    out = []
    for draw, cell in branches:
        lo, hi, m = cell.lo[i, j], cell.hi[i, j], cell.target[i, j]
        weight = Fraction(1) if draw.prob is None else draw.prob[i, 0]
        p = (m - lo) / (hi - lo) if hi > lo else Fraction(0)
        out += [(lo, weight * (1 - p)), (hi, weight * p)]
    return out


def _draw_distance(a: list, b: list) -> np.ndarray:
    """How far the probability of a lattice moves while that lattice stays, times the block's magnitude."""
    same = np.asarray(a[1].draw.lattice.top == b[1].draw.lattice.top, dtype=bool)[:, 0]
    shift = abs(a[1].draw.prob - b[1].draw.prob)[:, 0] * abs(a[1].cell.hi).max(axis=1)
    return np.where(same, shift, 0 * shift)
