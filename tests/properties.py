"""Properties of a quantizer as plain functions that raise AssertionError: tests call them on blocks, ``test_mutations``
calls them on deliberately broken programs.

Weights come as float arrays of shape (rows, size), or as exact object arrays where noted. Every tolerance counts
roundings of the working type (float32 for 16-bit weights): ``eps`` is half a unit in the last place of 1, the largest
relative error of one operation.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from lotion_theory import Quantizer, kernels
from lotion_theory._arrays import dtype_name
from lotion_theory.formats.lattice import ScaledLattice
from tests import reference, strategies

WORKING = {"float64": "float64", "float32": "float32", "float16": "float32", "bfloat16": "float32"}
_BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


def eps(dtype: str) -> float:
    """Largest relative error of one rounding."""
    return 2.0 ** -_BITS[dtype]


def _kind(w: Any) -> str:
    return WORKING[dtype_name(w)]


def _prob(branch: Any, rows: int) -> np.ndarray:
    return np.ones((rows, 1)) if branch.prob is None else strategies.wide(branch.prob)


def blocks_of(q: Quantizer, w: np.ndarray) -> np.ndarray:
    """``w`` as (blocks, weights per block)."""
    return q.partition.to_blocks(w)


def rows(q: Quantizer, w: np.ndarray, values: Any = None) -> list[list[Fraction]]:
    """The blocks of ``w`` (or of ``values``, of its shape) as lists of Fractions."""
    x = blocks_of(q, w if values is None else values)
    return [list(row) for row in (x if x.dtype == object else strategies.as_fractions(x))]


def cells_are_tight(q: Quantizer, w: np.ndarray) -> None:
    """``lo <= target <= hi`` are levels, none lies strictly between; equal only on a level or past an end."""
    for branch in q.branches(w):
        cell, lattice = branch.cell, branch.draw.lattice
        levels = strategies.all_levels(lattice)
        lo, hi, target = (np.asarray(part) for part in (cell.lo, cell.hi, cell.target))
        assert (lo <= target).all() and (target <= hi).all()
        inside = ((levels[:, None, :] > lo[..., None]) & (levels[:, None, :] < hi[..., None])).any(axis=-1)
        assert not inside.any(), "a level lies strictly inside a cell"
        on_level = (levels[:, None, :] == target[..., None]).any(axis=-1)
        assert np.array_equal(on_level, lo == hi), "lo == hi must mean: the weight stands on a level"
        for end, index in ((lo, cell.index_lo), (hi, cell.index_hi)):
            with np.errstate(over="ignore"):
                assert np.array_equal(np.asarray(lattice.level(index)), end), "index and level disagree"
        assert (levels[:, None, 0] <= target).all() and (target <= levels[:, None, -1]).all()
        if branch.draw.mixture is None:
            x = blocks_of(q, w).astype(lo.dtype)
            clipped = np.clip(x, levels[:, :1], levels[:, -1:])
            assert np.array_equal(clipped, target), "a target is the weight, clipped to the lattice"


def scales_follow_reference(q: Quantizer, w: np.ndarray) -> None:
    """Lattices, probabilities and targets equal those of ``reference.law``, exactly. ``w``: exact."""
    blocks = rows(q, w)
    everything = [v for block in blocks for v in block]
    branches = q.branches(w)
    for i, block in enumerate(blocks):
        expected = reference.law(q.codebook, q.scale.name, block, everything)
        assert len(expected) == len(branches)
        for drawn, branch in zip(expected, branches, strict=True):
            prob = 1 if branch.prob is None else branch.prob[i, 0]
            assert prob == drawn.prob
            if prob:
                assert list(strategies.all_levels(branch.draw.lattice)[i]) == drawn.levels
                assert list(branch.cell.target[i]) == drawn.targets
                for j in range(len(block)):
                    assert (branch.cell.lo[i, j], branch.cell.hi[i, j]) == reference.neighbours(drawn, j)


def moments_follow_reference(q: Quantizer, w: np.ndarray) -> None:
    """``mean`` and ``variance`` equal the sums over the reference law's support, exactly. ``w``: exact."""
    blocks = rows(q, w)
    everything = [v for block in blocks for v in block]
    means, variances = rows(q, w, q.mean(w)), rows(q, w, q.variance(w))
    for i, block in enumerate(blocks):
        found = reference.law(q.codebook, q.scale.name, block, everything)
        for j in range(len(block)):
            mean = reference.mean(found, j)
            assert means[i][j] == mean
            assert variances[i][j] == reference.second_moment(found, j) - mean * mean


def law_of(q: Quantizer, w: np.ndarray) -> list[list[list[tuple[Fraction, Fraction, Fraction, Fraction]]]]:
    """Per block and weight, the exact ``(prob, target, lo, hi)`` of each branch of a float ``w``.

    A drawn coarse lattice has its computed probability, the fine one the rest: so ``round`` compares its uniform.
    """
    branches = q.branches(w)
    count = blocks_of(q, w).shape[0]
    probs = [strategies.as_fractions(_prob(b, count))[:, 0] for b in branches]
    if len(branches) == 2:
        probs[0] = 1 - probs[1]
    parts = [
        [strategies.as_fractions(strategies.wide(p)) for p in (b.cell.target, b.cell.lo, b.cell.hi)] for b in branches
    ]
    n = blocks_of(q, w).shape[1]
    return [
        [[(probs[k][i], *(part[i, j] for part in parts[k])) for k in range(len(branches))] for j in range(n)]
        for i in range(count)
    ]


def law_is_unbiased(q: Quantizer, w: np.ndarray) -> None:
    """``E RR(w) = w`` for rules that promise it.

    On one lattice exactly, except that a scale rounded before it is multiplied by the top code may clip by 2 ulp. On
    drawn lattices the threshold, the probability and the conditional mean are rounded: 8 roundings of the lead's size.
    """
    promise = q.scale.promise(q.codebook)
    if not promise.unbiased:
        return
    saturated = None
    if q.scale.name.partition("-")[2] in ("up", "ceil") and "2level" not in q.scale.name:
        saturated = strategies.scaling.SCALE_FORMATS[q.scale.name.partition("-")[0]].largest * q.codebook.high
    everything = rows(q, w)
    for block, weights in zip(law_of(q, w), everything, strict=True):
        lead, tiny = max(map(abs, weights)), Fraction(strategies.SMALLEST[_kind(w)])
        floor = tiny * max(1, q.codebook.high)  # A scale that underflows, times the top code.
        if saturated is not None and lead > saturated:
            continue  # Beyond the storage format's range nothing can be unbiased.
        if q.scale.couples_blocks:
            # A block 2^126 times smaller than the largest may vanish in the quotient of the two.
            lead = max(abs(v) for row in everything for v in row)
            floor = q.codebook.high * 448 * tiny  # The common factor is the largest magnitude over 448 c_max.
        exact = q.scale.name in ("absmax", "gauge", "zp-real")
        slack = 0 if exact else 8 * Fraction(eps(_kind(w))) * lead + floor
        for branches, weight in zip(block, weights, strict=True):
            mean = sum(prob * target for prob, target, _, _ in branches)
            assert abs(mean - weight) <= slack, f"mean {float(mean)} of weight {float(weight)}"


def rounding_follows_probability(q: Quantizer, w: np.ndarray) -> None:
    """``round`` goes up for uniforms below ``(target - lo) / (hi - lo)``, down for those above, and on a level stays.

    ``hi - lo``, ``target - lo`` and their product with u are rounded, and u itself: 4 roundings; where the product or u
    underflows, by half of the smallest number.
    """
    kind, dtype = _kind(w), dtype_name(w)
    shape = blocks_of(q, w).shape
    branches = q.branches(w)
    for k, branch in enumerate(branches):
        target, lo, hi = (strategies.wide(p) for p in (branch.cell.target, branch.cell.lo, branch.cell.hi))
        # Keeps the gap of two huge levels of opposite sign inside float64, and that of small ones exact.
        quarter = np.where(np.maximum(np.abs(hi), np.abs(lo)) > 1e300, 0.25, 1.0)
        gap = hi * quarter - lo * quarter
        safe = np.where(gap > 0, gap, 1.0)
        p = np.where(gap > 0, (target * quarter - lo * quarter) / safe, 0.0)
        slack = (
            8 * eps(kind) * p
            + strategies.SMALLEST[kind]
            + np.where(gap > 0, strategies.SMALLEST[kind] * quarter / safe, 0.0)
        )
        prob = _prob(branch, shape[0])
        one_below = float(np.nextafter(np.ones(1, kind), 0)[0])
        # A uniform that draws this lattice: 0 for the coarse one, the largest for the fine one.
        v = None if len(branches) == 1 else np.full(shape[0], 0.0 if k else one_below, kind)
        drawn = (
            np.ones((shape[0], 1), bool)
            if v is None
            else ((v[:, None] < prob) if k else (v[:, None] >= 1 - prob) & (prob > eps(kind)))
        )
        below, above = np.clip(p - slack, 0, one_below), np.clip(p + slack, 0, one_below)
        for u, expected, known in (
            (below, hi, (p > slack) & (below < p)),
            (above, lo, above > p + slack / 2),
            (0 * p, lo, target == lo),
        ):
            u = u.astype(kind)
            out = strategies.wide(blocks_of(q, q.round(w, u.reshape(w.shape), v)))
            seen = expected.astype(WORKING[dtype]).astype(strategies.numpy_type(dtype)).astype(np.float64)
            wrong = known & drawn & (out != seen)
            assert not wrong.any(), f"{wrong.sum()} of {known.sum()} uniforms went the wrong way (branch {k})"


def _fraction(x: Any) -> Fraction:
    return x if isinstance(x, Fraction) else Fraction(float(x))


def cast_is_nearest(q: Quantizer, w: np.ndarray) -> None:
    """``cast`` takes the nearest level, ties to even; exact comparison.

    For a drawn scale, on the more probable lattice; there the largest weight of a block that is between two scales goes
    to the threshold of the coarse one.
    """
    branches = q.branches(w)
    out, weights = rows(q, w, q.cast(w)), rows(q, w)
    probs = _prob(branches[-1], len(weights))
    for i, row in enumerate(weights):
        branch = branches[-1] if len(branches) == 1 or probs[i, 0] * 2 >= 1 else branches[0]
        lattice = branch.draw.lattice
        index = np.arange(len(q.codebook.levels))[None, :].repeat(len(weights), axis=0)
        with np.errstate(over="ignore"):  # As in strategies.all_levels.
            levels = lattice.level(index)[i]
        levels = list(levels) if levels.dtype == object else list(strategies.as_fractions(strategies.wide(levels)))
        # Even multiples of the scale where a zero point shifts the codes, even codes elsewhere.
        shift = (
            int(strategies.wide(lattice.bottom)[i, 0])
            if isinstance(lattice, ScaledLattice) and lattice.bottom is not None
            else 0
        )
        even = [e ^ (shift % 2 == 1) for e in q.codebook.even]
        mixture = branch.draw.mixture
        for x, got in zip(row, out[i], strict=True):
            if (
                mixture is not None
                and abs(x) == max(map(abs, row))
                and mixture[1][i, 0] < 1
                and abs(x) > _fraction(mixture[0][i, 0])
            ):
                assert abs(got) == _fraction(mixture[2][i, 0]) and got * x > 0
                continue
            distances = [abs(level - x) for level in levels]
            best = min(distances)
            assert abs(got - x) == best, f"cast({float(x)}) = {float(got)} is not nearest"
            tied = {level: e for level, e, d in zip(levels, even, distances, strict=True) if d == best}
            if len(tied) == 2:
                assert tied[got], f"the tie at {float(x)} went to the odd level {float(got)}"


def variance_is_second_moment(q: Quantizer, w: np.ndarray) -> None:
    """``variance`` against the exact variance of the two- or four-point law.

    One lattice: two differences and a product, 3 roundings, one more into 16 bits. Two: 8 roundings of the terms, and
    the mean is off by 8 roundings of the lead, which shifts each term's distance from it.
    """
    dtype, kind = dtype_name(w), _kind(w)
    tiny = Fraction(strategies.SMALLEST[dtype]) + Fraction(strategies.SMALLEST[kind])
    for block, weights, variances in zip(law_of(q, w), rows(q, w), rows(q, w, q.variance(w)), strict=True):
        lead = max(map(abs, weights))
        for branches, got in zip(block, variances, strict=True):
            mean = sum(prob * target for prob, target, _, _ in branches)
            terms = [prob * ((hi - target) * (target - lo) + (target - mean) ** 2) for prob, target, lo, hi in branches]
            exact = sum(terms)
            slack = (
                (4 if len(branches) == 1 else 16) * Fraction(eps(kind)) * exact + Fraction(eps(dtype)) * exact + tiny
            )
            if len(branches) == 2:
                off = 8 * Fraction(eps(kind)) * lead
                slack += off * off + 2 * off * sum(prob * abs(target - mean) for prob, target, _, _ in branches)
            assert abs(got - exact) <= slack, f"variance {float(got)}, exactly {float(exact)}"


def not_fixed(q: Quantizer, points: Any) -> np.ndarray:
    """Per block, whether some weight may move: a branch of positive probability where ``lo``, ``hi`` and it differ."""
    x = strategies.wide(blocks_of(q, points))
    moves = np.zeros(x.shape[0], dtype=bool)
    for branch in q.branches(points):
        lo, hi = strategies.wide(branch.cell.lo), strategies.wide(branch.cell.hi)
        moves |= (((lo != hi) | (lo != x)) & (_prob(branch, x.shape[0]) > 0)).any(axis=1)
    return moves


def support_is_fixed(q: Quantizer, w: Any, seed: int) -> None:
    """One draw of ``RR(w)``, and ``cast(w)``, cannot move again: both levels of its own lattice equal the value."""
    like = np.asarray(strategies.wide(w))
    rng = np.random.default_rng(seed)
    u = strategies.uniforms(rng, like.shape)
    v = strategies.uniforms(rng, (blocks_of(q, like).shape[0],)) if q.scale.is_drawn else None
    if not isinstance(w, np.ndarray):
        u, v = strategies.as_torch(u), None if v is None else strategies.as_torch(v)
    for what, points in (("round", q.round(w, u, v)), ("cast", q.cast(w))):
        moves = not_fixed(q, points)
        first = int(np.argmax(moves))
        assert not moves.any(), (
            f"{what}: {moves.sum()} of {moves.size} blocks move again, first {blocks_of(q, points)[first]}"
        )


def reachable_points_are_fixed(q: Quantizer, lead: np.ndarray) -> None:
    """All that rounding can make of blocks led by ``lead`` (rows,), tried at once; for scales set by the leader alone.

    A row starts with a level that the leader may become and goes on with all levels of the drawn lattice that are no
    larger. If it cannot move, neither can any block made of its entries and led by the same one.
    """
    for branch in q.branches(lead[:, None]):
        live = (_prob(branch, lead.size) > 0)[:, 0]
        if not live.any():
            continue
        levels = strategies.all_levels(branch.draw.lattice)[live]
        for end in (branch.cell.lo[live], branch.cell.hi[live]):
            fill = 0 * end if q.codebook.has_zero else end
            points = np.concatenate([end, np.where(np.abs(levels) <= np.abs(end), levels, fill)], axis=1).astype(
                lead.dtype
            )
            moves = not_fixed(q, points)
            assert not moves.any(), (
                f"{moves.sum()} of {moves.size} leaders move again, the first in {points[np.argmax(moves)]}"
            )


def gradient_is_total(q: Quantizer, w: np.ndarray, weights: np.ndarray) -> None:
    """The kernels' partial derivatives and the rule's Jacobian give ``d/dw Σ weights · variance``, scale included.

    ``w``: exact, one block per row, off the lattice and without ties for the extremes. For anchors linear in ``w`` the
    central difference of a piecewise quadratic is exact; otherwise it is so up to the square of the step.
    """
    step = Fraction(1, 10**40)
    (branch,) = q.branches(w)
    cell, lattice = branch.cell, branch.draw.lattice
    moved = q.scale.jacobian(w, q.codebook, "object")
    lo_top, lo_bottom = lattice.coefficients(cell.index_lo)
    hi_top, hi_bottom = lattice.coefficients(cell.index_hi)
    own = weights * kernels.variance_dw(cell.target, cell.lo, cell.hi)
    total = (weights * kernels.variance_danchor(cell.target, cell.lo, cell.hi, lo_top, hi_top)).sum(
        axis=1, keepdims=True
    ) * moved.top
    if moved.bottom is not None:
        through = kernels.variance_danchor(cell.target, cell.lo, cell.hi, lo_bottom, hi_bottom)
        total = total + (weights * through).sum(axis=1, keepdims=True) * moved.bottom
    for j in range(w.shape[1]):
        ahead, behind = w.copy(), w.copy()
        ahead[:, j] += step
        behind[:, j] -= step
        slope = ((weights * q.variance(ahead)).sum(axis=1) - (weights * q.variance(behind)).sum(axis=1)) / (2 * step)
        analytic = own[:, j] + total[:, j]
        assert all(abs(a - b) <= Fraction(1, 10**30) for a, b in zip(slope, analytic, strict=True)), "gradient differs"


def torch_agrees(q: Quantizer, w: np.ndarray, seed: int) -> None:
    """numpy and torch give the same bits."""
    rng = np.random.default_rng(seed)
    t = strategies.as_torch(w)
    u = strategies.uniforms(rng, w.shape)
    v = strategies.uniforms(rng, (blocks_of(q, w).shape[0],)) if q.scale.is_drawn else None
    pairs = [(q.cast(w), q.cast(t)), (q.mean(w), q.mean(t)), (q.variance(w), q.variance(t))]
    pairs.append((q.round(w, u, v), q.round(t, strategies.as_torch(u), None if v is None else strategies.as_torch(v))))
    if not q.scale.is_drawn:
        pairs += list(zip(q.bracket(w), q.bracket(t), strict=True))
    for ours, theirs in pairs:
        assert strategies.same(ours, theirs)
