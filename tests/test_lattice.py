"""Lattices and the kernels they rest on: cells found, ties decided and levels placed as exact arithmetic says."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer, codebook, kernels
from lotion_theory.formats import codebooks
from lotion_theory.formats.compiled import plan
from lotion_theory.formats.lattice import AffineLattice, MirroredLattice, ScaledLattice, SpanLattice, move_to_nearest
from tests import properties, strategies
from tests.strategies import FLOATS, FORMATS, examples

finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126)


def triples(dtype, seed, count=20_000):
    """``lo <= w <= hi`` of a float type: random, exact midpoints, and one ulp beside them, over 60 binades."""
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(count) * 2.0 ** rng.integers(-30, 30, count) for _ in range(2))
    a, b = a.astype(dtype), b.astype(dtype)
    near = strategies.shifted(a, rng.integers(-1, 2, count))
    b = np.where(rng.random(count) < 0.2, near, np.where(rng.random(count) < 0.1, 0, b)).astype(dtype)
    lo, hi = np.minimum(a, b), np.maximum(a, b)
    middle = (lo.astype(np.longdouble) / 2 + hi.astype(np.longdouble) / 2).astype(dtype)
    w = strategies.shifted(middle, rng.integers(-1, 2, count))
    w = np.where(rng.random(count) < 0.3, lo + (hi - lo) * rng.random(count).astype(dtype), w).astype(dtype)
    return np.clip(w, lo, hi), lo, hi


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distances_are_compared_exactly(dtype):
    w, lo, hi = triples(dtype, seed=1)
    nearer, tie = kernels.compare_distances(w, lo, hi)
    x, a, b = (strategies.as_fractions(v) for v in (w, lo, hi))
    assert np.array_equal(nearer, x - a > b - x)
    assert np.array_equal(tie, x - a == b - x)
    assert tie.sum() > 1000
    # The rounded differences alone would have called some of these ties.
    assert ((w - lo == hi - w) & ~tie).sum() > 100
    for ours, theirs in zip(kernels.compare_distances(*map(torch.from_numpy, (w, lo, hi))), (nearer, tie), strict=True):
        assert np.array_equal(ours.numpy(), theirs)


@examples(200)
@given(finite32, finite32)
def test_difference_error_is_exact(a, b):
    a, b = np.float32(a), np.float32(b)
    d = a - b
    assert Fraction(float(a)) - Fraction(float(b)) == Fraction(float(d)) + Fraction(
        float(kernels.difference_error(a, b))
    )


@examples(200)
@given(*(st.fractions(-9, 9, max_denominator=64) for _ in range(2)), st.fractions(0, 1, max_denominator=64))
def test_kernels_are_the_two_point_law(a, b, share):
    lo, hi = min(a, b), max(a, b)
    w = lo + share * (hi - lo)
    p = kernels.prob_up(w, lo, hi)
    assert p == (share if hi > lo else 0)
    for power, claimed in ((0, 1), (1, w), (2, w * w + kernels.variance(w, lo, hi))):
        assert (1 - p) * lo**power + p * hi**power == claimed
    assert (1 - p) * (lo - w) ** 3 + p * (hi - w) ** 3 == kernels.third_moment(w, lo, hi)
    tiny = Fraction(1, 10**9)
    assert kernels.pick(w, lo, hi, p) == lo
    assert p == 0 or kernels.pick(w, lo, hi, p - tiny) == hi
    assert kernels.variance(w + tiny, lo, hi) - kernels.variance(w - tiny, lo, hi) == 2 * tiny * kernels.variance_dw(
        w, lo, hi
    )
    for partial, moved in ((kernels.variance_dlo, (tiny, 0)), (kernels.variance_dhi, (0, tiny))):
        ahead = kernels.variance(w, lo + moved[0], hi + moved[1])
        behind = kernels.variance(w, lo - moved[0], hi - moved[1])
        assert ahead - behind == 2 * tiny * partial(w, lo, hi)


@examples(100)
@given(
    st.fractions(0, 9, max_denominator=64),
    st.fractions(0, 9, max_denominator=64),
    st.fractions(1, 99, max_denominator=99),
)
def test_mixture_target_keeps_the_mean(threshold, excess, share):
    p = share / 100
    magnitude = threshold + excess
    assert (1 - p) * threshold + p * kernels.mixture_target(magnitude, threshold, p) == magnitude


def test_select_is_exact_and_a_level_never_moves():
    """``lo + (hi - lo)`` is not ``hi`` in floating point, and ``floor(k + u)`` moves points of the grid."""
    w, a, b = triples("float32", seed=2)
    assert (a + (b - a) != b).any()
    assert (kernels.select(a, b, np.ones(a.shape, bool)) == b).all()
    u = strategies.uniforms(np.random.default_rng(3), w.shape)
    out = kernels.pick(w, a, b, u)
    assert np.isin(out, np.concatenate([a, b])).all() and ((out == a) | (out == b)).all()
    assert (kernels.pick(a, a, b, u) == a).all()
    assert (kernels.pick(a, a, a, u) == a).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", FORMATS)
def test_cells_are_tight(text, dtype):
    properties.cells_are_tight(
        Quantizer.parse(text + "/row"), strategies.probes(text, dtype, rows=150, size=16, seed=11)
    )


@examples(60)
@given(st.sampled_from(FORMATS), strategies.exact_blocks())
def test_cells_are_tight_in_exact_arithmetic(text, w):
    properties.cells_are_tight(Quantizer.parse(text + "/row"), w)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", FORMATS)
def test_cast_is_the_nearest_level(text, dtype):
    properties.cast_is_nearest(Quantizer.parse(text + "/row"), strategies.probes(text, dtype, rows=8, size=8, seed=12))


@examples(100)
@given(strategies.cases(max_rows=2))
def test_cast_is_nearest_on_directed_blocks(case):
    properties.cast_is_nearest(*case)


@examples(100)
@given(st.sampled_from(FORMATS), strategies.exact_blocks())
def test_cast_is_nearest_in_exact_arithmetic(text, w):
    properties.cast_is_nearest(Quantizer.parse(text + "/row"), w)


def column(*values, dtype=np.float64):
    return np.array(values, dtype=dtype)[:, None]


@pytest.mark.parametrize("name", ["int4full", "e2m1", "nf4", "pot3"])
def test_span_levels_are_the_anchor_times_the_ratio(name):
    book = codebook(name)
    lattice = SpanLattice(book, "object", np.array([[Fraction(22, 7)]], dtype=object))
    assert list(strategies.all_levels(lattice)[0]) == [Fraction(22, 7) * c / book.high for c in book.levels]


def test_span_with_two_anchors_scales_each_sign():
    book = codebook("int4full")
    lattice = SpanLattice(book, "float64", column(7.0), column(-4.0))
    expected = [c * 0.5 for c in range(-8, 0)] + list(range(8))
    assert strategies.all_levels(lattice)[0].tolist() == expected


def test_scaled_levels_are_shifted_by_a_zero_point():
    book = codebook("uint4")
    lattice = ScaledLattice(book, "float64", column(0.5), column(6.0))
    assert strategies.all_levels(lattice)[0].tolist() == [0.5 * (c - 6) for c in range(16)]
    # Ties go to even multiples of the scale, whatever the zero point: 0.25 lies between 0 and 0.5.
    for zero in (5.0, 6.0):
        moved = ScaledLattice(book, "float64", column(0.5), column(zero))
        assert move_to_nearest(moved.locate(np.array([[0.25, 0.75, -0.25]]))).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_affine_ends_are_the_anchors_exactly(dtype):
    """Also where the ends are huge (their difference overflows), subnormal, equal, or of very different size."""
    big, tiny = strategies.LARGEST[dtype], strategies.SMALLEST[dtype]
    pairs = [
        (big, -big),
        (2.0, tiny),
        (big, tiny),
        (1.0, 1.0),
        (1 + 2.0**-20, 1.0),
        (-tiny, -2.0),
        (3 * tiny, -2 * tiny),
        (0.0, 0.0),
    ]
    for name in ("uint2", "uint8"):
        lattice = AffineLattice(
            codebook(name),
            dtype,
            column(*(p[0] for p in pairs), dtype=dtype),
            column(*(p[1] for p in pairs), dtype=dtype),
        )
        levels = strategies.all_levels(lattice).astype(np.float64)
        assert np.isfinite(levels).all()
        index = np.broadcast_to(np.arange(levels.shape[1]), levels.shape)
        assert np.array_equal(lattice.level(index), levels.astype(dtype)), "levels increase"
        for row, (top, bottom) in zip(levels, pairs, strict=True):
            assert (row[-1], row[0]) == (top, bottom)


@examples(60)
@given(strategies.exact_blocks(max_rows=1), st.fractions(min_value=Fraction(1, 9), max_value=3, max_denominator=9))
def test_a_negative_scale_reads_the_codebook_upside_down(x, scale):
    book = codebook("int4full")
    anchor = np.array([[scale]], dtype=object)
    upright = ScaledLattice(book, "object", anchor).locate(-x)
    mirrored = MirroredLattice(book, "object", -anchor).locate(x)
    assert (mirrored.lo == -upright.hi).all() and (mirrored.hi == -upright.lo).all()
    assert (mirrored.target == -upright.target).all()
    assert (mirrored.index_lo == upright.index_hi).all() and (mirrored.index_hi == upright.index_lo).all()
    assert (move_to_nearest(mirrored) == -move_to_nearest(upright)).all()


@pytest.mark.parametrize(
    "text", ["int4/absmax", "int4full/gauge", "uint4/zp-real", "uint4/zp-int", "e2m1/e8m0-ceil", "nf4/absmax"]
)
def test_coefficients_are_the_derivatives_of_levels(text):
    """Levels are linear in their anchors, so a finite difference in exact arithmetic is exact."""
    w = np.array([[Fraction(7, 3), Fraction(-5, 2), Fraction(1, 9)]], dtype=object)
    (branch,) = Quantizer.parse(text + "/row").branches(w)
    lattice = branch.draw.lattice
    index = np.arange(len(lattice.book.levels))[None]
    by_top, by_bottom = lattice.coefficients(index)
    step = Fraction(1, 10**6)
    moved = type(lattice)(lattice.book, lattice.kind, lattice.top + step, lattice.bottom)
    assert ((moved.level(index) - lattice.level(index)) / step == by_top).all()
    if by_bottom is not None:
        moved = type(lattice)(lattice.book, lattice.kind, lattice.top, lattice.bottom + step)
        assert ((moved.level(index) - lattice.level(index)) / step == by_bottom).all()


def test_one_set_of_levels_for_numpy_and_torch():
    for text in FORMATS:
        w = strategies.probes(text, "float32", rows=20, size=8, seed=13)
        q = Quantizer.parse(text + "/row")
        if q.scale.name in ("absmean", "l2l1"):
            continue  # Sums in another order; see test_quantizer.
        for ours, theirs in zip(q.branches(w), q.branches(strategies.as_torch(w)), strict=True):
            assert np.array_equal(strategies.all_levels(ours.draw.lattice), strategies.all_levels(theirs.draw.lattice))
            assert np.array_equal(ours.cell.hi_even, theirs.cell.hi_even.numpy())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [name for name in codebooks.names() if codebook(name).balanced])
def test_levels_of_integers_are_computed_as_the_table_holds_them(name, dtype):
    """What the loops of training and descent rely on."""
    book = codebook(name)
    known = plan(book, dtype)
    assert (known.high > 0) == (book.step == 1 and book.has_zero)
    if known.high:
        k = book.values.astype(dtype)
        assert np.array_equal(k * known.step_high + k * known.step_low, known.units)
        assert np.array_equal(k / known.high, known.units)
        # The high part of the step is so short that its products with codes are exact.
        assert np.array_equal((k.astype(np.float64) * float(known.step_high)).astype(dtype), k * known.step_high)
