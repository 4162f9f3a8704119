"""C1-C6: the law of randomized rounding itself."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from operator import itemgetter

import numpy as np

from ...formats.lattice import Lattice
from ...formats.law import Branch
from ...formats.quantizer import Quantizer
from ._base import Outcome, always, claim, is_continuous, keeps_support, real_only, unbiased, worst
from .blocks import batches, describe, describe_case, frozen, key, real_blocks
from .rational import rational

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
        points, probs = batch.supports
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
    for batch in batches(q):
        x = batch.x
        on_grid = np.ones(x.shape, dtype=bool)
        for draw, _ in batch.branches:
            possible = np.ones(len(x), dtype=bool) if draw.prob is None else np.asarray(draw.prob[:, 0] > 0, dtype=bool)
            on_grid &= _members(x, draw.lattice) | ~possible[:, None]
        spread = batch.law.variance()
        mean = batch.law.mean()
        broken = on_grid & ((spread != 0) | (mean != x))
        checked += int(on_grid.sum())
        if broken.any():
            i = int(np.argmax(broken.any(axis=1)))
            return Outcome(float(spread[i].max()), 0.0, checked, describe_case(batch, i))
    return Outcome(0.0, 0.0, checked)


def _members(x: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Which entries of ``x`` (n, coordinates) are levels of their own row's lattice."""
    anchors = [np.broadcast_to(a, (len(x), 1)) for a in (lattice.top, lattice.bottom) if a is not None]
    rows: dict[tuple, list[int]] = {}
    for i, row in enumerate(np.concatenate(anchors, axis=1)):
        rows.setdefault(key(row), []).append(i)
    # The levels of each lattice are listed once, not once for every row on it.
    first = [numbers[0] for numbers in rows.values()]
    top, *bottom = [a[first] for a in anchors]
    index = np.arange(len(lattice.book.levels))
    levels = replace(lattice, top=top, bottom=bottom[0] if bottom else None).level(
        np.broadcast_to(index, (len(first), len(index)))
    )
    out = np.zeros(x.shape, dtype=bool)
    for numbers, there in zip(rows.values(), map(set, map(key, levels)), strict=True):
        out[numbers] = [[value in there for value in key(x[i])] for i in numbers]
    return out


@C4.check("exhaustive", "every support point of small blocks")
def exact_support_fixed(q: Quantizer) -> Outcome:
    checked = 0
    for batch in batches(q):
        points, probs = batch.supports
        broken = batch.unfixed
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
    events = sorted([*a, *((v, -p) for v, p in b)], key=itemgetter(0))
    total = difference = rational(0)
    for (left, p), (right, _) in pairwise(events):
        difference += p
        total += abs(difference) * (right - left)
    return total


@C5.check("exhaustive", "exact W₁ on a fixed lattice")
def exact_isometry(q: Quantizer) -> Outcome:
    fixed = frozen(q, 1)
    levels = q.codebook.levels
    inner = sorted({*levels[:4], *levels[-4:], *((a + b) / 2 for a, b in pairwise(levels[:5]))})
    inner += [v + (levels[1] - levels[0]) * Fraction(k, 7) for v in levels[:2] for k in (1, 3)]
    inner = [v for v in inner if levels[0] <= v <= levels[-1]]
    column = np.array([[rational(v)] for v in inner], dtype=object)
    cell = fixed.branches(column)[0].cell
    laws = []
    for lo, hi, w in zip(cell.lo[:, 0], cell.hi[:, 0], column[:, 0], strict=True):
        p = (w - lo) / (hi - lo) if hi > lo else rational(0)
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
        here = _marginals(batch.branches)
        for j in range(d):
            for sign in (1, -1):
                moved = batch.x.copy()
                moved[:, j] = moved[:, j] + sign * _STEP
                other = batch.q.branches(real_blocks(q, moved))
                distance = _distances(here, _marginals(other))
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


# A finite law on the line: its points and their probabilities.
_Marginal = list[tuple[Fraction, Fraction]]


def _distances(a: list[list[_Marginal]], b: list[list[_Marginal]]) -> np.ndarray:
    """Per block, the sum over its weights of W₁ between their marginal laws."""
    return np.array(
        [
            # Most weights do not notice the step of their neighbour.
            sum((marginal_w1(p, r) for p, r in zip(mine, theirs, strict=True) if p != r), rational(0))
            for mine, theirs in zip(a, b, strict=True)
        ],
        dtype=object,
    )


def _marginals(branches: list[Branch]) -> list[list[_Marginal]]:
    """The marginal law of every weight of every block."""
    n, d = branches[0].cell.lo.shape
    out: list[list[_Marginal]] = [[[] for _ in range(d)] for _ in range(n)]
    for draw, cell in branches:
        gap = cell.hi - cell.lo
        up = (cell.target - cell.lo) / (gap + (gap == 0))
        down = 1 - up
        if draw.prob is not None:
            up, down = draw.prob * up, draw.prob * down
        for i, j in np.ndindex(n, d):
            out[i][j] += [(cell.lo[i, j], down[i, j]), (cell.hi[i, j], up[i, j])]
    return out


def _draw_distance(a: list, b: list) -> np.ndarray:
    """How far the probability of a lattice moves while that lattice stays, times the block's magnitude."""
    same = np.asarray(a[1].draw.lattice.top == b[1].draw.lattice.top, dtype=bool)[:, 0]
    shift = abs(a[1].draw.prob - b[1].draw.prob)[:, 0] * abs(a[1].cell.hi).max(axis=1)
    return np.where(same, shift, 0 * shift)
