"""The quantizer as a whole: its law in every float type, format strings, shapes, and numerics that often go wrong."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer
from tests import properties, strategies
from tests.strategies import FLOATS, FORMATS, examples
from tests.tolerances import within_ulps

# Reductions whose order differs between numpy and torch; everything else must agree bit for bit.
SUMS = ("absmean", "l2l1", "modulus")


def moderate(w):
    """The blocks of ``w`` whose variances neither overflow nor vanish in the type of ``w``."""
    kind = str(w.dtype)
    size = np.abs(w.astype(np.float64)).max(axis=1)
    return w[size < np.sqrt(strategies.LARGEST[kind]) / 2]


# --- the law in every type -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", FORMATS)
def test_law(text, dtype):
    """On directed blocks of every type: unbiased where promised, uniforms decide at the right probability, variance."""
    q = Quantizer.parse(text + "/row")
    few = strategies.probes(text, dtype, rows=8, size=6, seed=21)
    properties.law_is_unbiased(q, few)
    properties.variance_is_second_moment(q, moderate(few))
    properties.rounding_follows_probability(q, strategies.probes(text, dtype, rows=60, size=16, seed=22))


@examples(80)
@given(strategies.cases())
def test_law_on_directed_blocks(case):
    q, w = case
    properties.law_is_unbiased(q, w)
    properties.rounding_follows_probability(q, w)
    properties.cells_are_tight(q, w)


@examples(100)
@given(st.sampled_from(FORMATS), strategies.exact_blocks(), st.data())
def test_exact_law_through_round_itself(text, w, data):
    """``round`` called between the uniforms where its outcome changes: averaged, it gives ``mean`` and ``variance``.

    Between two consecutive thresholds the outcome is constant, so the integral over u is a finite sum.
    """
    q = Quantizer.parse(text + "/row")
    thresholds = {Fraction(0), Fraction(1)}
    branches = q.branches(w)
    for b in branches:
        gap = b.cell.hi - b.cell.lo
        thresholds |= {p for p in ((b.cell.target - b.cell.lo) / (gap + (gap == 0))).ravel()}
    cuts = sorted(thresholds)
    total, square = 0 * w, 0 * w
    for k, branch in enumerate(branches):
        v = None
        weight = np.full((w.shape[0], 1), Fraction(1), dtype=object)
        if len(branches) == 2:
            v = np.array([Fraction(0) if k else Fraction(10**9 - 1, 10**9)] * w.shape[0], dtype=object)
            weight = branch.prob
            if not k and (branches[1].prob * 10**9 > 10**9 - 1).any() and (branches[1].prob < 1).any():
                return
        for a, b in itertools.pairwise(cuts):
            out = q.round(w, np.full(w.shape, (a + b) / 2, dtype=object), v)
            total, square = total + weight * (b - a) * out, square + weight * (b - a) * out * out
    assert (total == q.mean(w)).all()
    assert (square - total * total == q.variance(w)).all()


def test_variance_overflows_to_infinity_not_to_nonsense():
    w = np.array([3e38, 1e38], np.float32)
    with np.errstate(over="ignore"):
        assert Quantizer.parse("int4").variance(w).tolist() == [0, np.inf]


# --- numpy and torch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", [f for f in FORMATS if f.split("/")[1] not in SUMS])
def test_numpy_and_torch_agree_bit_for_bit(text, dtype):
    w = moderate(strategies.probes(text, dtype, rows=30, size=16, seed=23))
    properties.torch_agrees(Quantizer.parse(text + "/row"), w, seed=24)
    properties.torch_agrees(Quantizer.parse(text + "/tensor"), w[:1], seed=25)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("text", ["ternary/absmean", "ternary/l2l1", "int4/absmean"])
def test_sums_agree_within_their_reordering(text, dtype):
    """16 positive terms added in two orders. A chain of sums could be off by 15 half ulp; both libraries keep eight or
    more partial sums, which leaves 3 or 4 half ulp each, and the quotient and the product with the code one each."""
    w = moderate(strategies.probes(text, dtype, rows=200, size=16, seed=26))
    w = w[np.abs(w.astype(np.float64)).max(axis=1) > 1e-30]
    q = Quantizer.parse(text + "/row")
    ours = strategies.all_levels(q.branches(w)[0].draw.lattice)
    theirs = strategies.all_levels(q.branches(strategies.as_torch(w))[0].draw.lattice)
    assert within_ulps(ours, theirs, 4, dtype)


@pytest.mark.parametrize("text", ["fairy/l1", "fairy/modulus"])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_weights_agree_between_libraries(text, dtype):
    rng = np.random.default_rng(27)
    w = (rng.standard_normal((6, 8)) + 1j * rng.standard_normal((6, 8))).astype(dtype)
    w[0, 0], w[1], w[2, :4] = 0, 0, [1, -1, 1j, -1j]
    u = rng.random((6, 8, 2))
    q = Quantizer.parse(text + "/row")
    # The modulus is the square root of a sum of squares: one reordering and one root, relative to the largest modulus.
    slack = 0 if text.endswith("l1") else 4 * np.finfo(dtype).eps * np.abs(w).max()
    pairs = [
        (q.cast(w), q.cast(torch.from_numpy(w))),
        (q.round(w, u), q.round(torch.from_numpy(w), torch.from_numpy(u))),
    ]
    pairs += [(q.mean(w), q.mean(torch.from_numpy(w)))]
    for ours, theirs in pairs:
        assert str(theirs.dtype).removeprefix("torch.") == str(ours.dtype) == dtype
        assert np.abs(ours - theirs.numpy()).max() <= slack
    assert np.abs(q.variance(w) - q.variance(torch.from_numpy(w)).numpy()).max() <= 4 * slack * np.abs(w).max()


@examples(60)
@given(strategies.exact_blocks(max_rows=1, max_size=3), strategies.exact_blocks(max_rows=1, max_size=3))
def test_complex_law_is_that_of_two_rotated_signs(real, imaginary):
    """Exact complex weights, pairs (Re, Im): the mean is w, results are the four units times |Re| + |Im| at most."""
    n = min(real.shape[1], imaginary.shape[1])
    w = np.stack((real[:, :n], imaginary[:, :n]), axis=-1)
    q = Quantizer.parse("fairy/l1/row")
    assert (q.mean(w) == w).all()
    top = (abs(w[..., 0]) + abs(w[..., 1])).max()
    cell = q.branches(w)[0].cell
    points, total, square = [], 0 * w, 0 * w[..., 0]
    for signs in itertools.product((0, 1), repeat=2):
        high = np.tile(np.array(signs), n)[None] == 1
        ends = np.where(high, cell.hi, cell.lo)
        up = (cell.target - cell.lo) / (cell.hi - cell.lo + (cell.hi == cell.lo))
        chance = np.where(high, up, 1 - up).reshape(1, n, 2).prod(axis=-1)
        point = np.stack(((ends[:, ::2] + ends[:, 1::2]) / 2, (ends[:, ::2] - ends[:, 1::2]) / 2), axis=-1)
        total = total + chance[..., None] * point
        square = square + chance * (point * point).sum(axis=-1)
        points.append(point[chance > 0])
    points = np.concatenate(points)
    assert all(sorted(map(abs, p)) == [0, top] for p in points)
    assert (total == w).all()
    assert (square - (w * w).sum(axis=-1) == q.variance(w)).all()


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [f for f in FORMATS if "2level" not in f])
def test_blocks_do_not_see_each_other(text):
    """Row by row, block by block and at once: the same bits, in any shape that keeps the rows."""
    w = moderate(strategies.probes(text, "float32", rows=16, size=12, seed=28))[:4]
    rng = np.random.default_rng(29)
    u, v = strategies.uniforms(rng, w.shape), strategies.uniforms(rng, (w.shape[0] * 3,))
    for partition, per_row in (("row", 1), ("block=4", 3)):
        q = Quantizer.parse(f"{text}/{partition}")
        drawn = v[: w.shape[0] * per_row] if q.scale.is_drawn else None
        whole = (q.cast(w), q.mean(w), q.variance(w), q.round(w, u, drawn))
        for shape in ((2, -1, 12), (1, w.shape[0], 1, 12)):
            again = w.reshape(shape)
            parts = (q.cast(again), q.mean(again), q.variance(again), q.round(again, u.reshape(shape), drawn))
            for a, b in zip(whole, parts, strict=True):
                assert b.shape == again.shape and np.array_equal(a, b.reshape(w.shape))
        for i in range(w.shape[0]):
            some = None if drawn is None else drawn[i * per_row : (i + 1) * per_row]
            parts = (q.cast(w[i]), q.mean(w[i]), q.variance(w[i]), q.round(w[i], u[i], some))
            for a, b in zip(whole, parts, strict=True):
                assert np.array_equal(a[i], b)
    one = Quantizer.parse(f"{text}/tensor")
    for i in range(w.shape[0]):
        assert np.array_equal(one.cast(w[i]), Quantizer.parse(f"{text}/row").cast(w)[i])


def test_two_level_scales_share_one_factor_per_tensor():
    w = np.array([[1.0, 0.3, -0.2, 0.05], [500.0, -7.0, 3.0, 2.0]])
    q = Quantizer.parse("e2m1/e4m3-nearest-2level/row")
    assert not np.array_equal(q.cast(w)[0], q.cast(w[0]))
    assert np.array_equal(q.cast(w), q.cast(w.reshape(2, 1, 4)).reshape(2, 4))


@pytest.mark.parametrize("text", ["int4", "e2m1/e8m0-floor/row", "nf4/absmax/block=1", "uint4/zp-real", "e2m1/e4m3-sr"])
def test_scalars_and_single_weights(text):
    q = Quantizer.parse(text)
    v = np.array([0.5]) if q.scale.is_drawn else None
    for w in (0.7, np.float32(0.7), np.array(0.7), torch.tensor(0.7)):
        u = torch.tensor(0.3) if isinstance(w, torch.Tensor) else np.array(0.3)
        out = q.round(w, u, torch.from_numpy(v) if v is not None and isinstance(w, torch.Tensor) else v)
        assert out.shape == q.cast(w).shape == q.mean(w).shape == q.variance(w).shape == ()
        assert isinstance(out, torch.Tensor) == isinstance(w, torch.Tensor)
    assert Quantizer.parse("fairy/l1").cast(np.complex128(3 + 4j)) in (7, -7, 7j, -7j)


@pytest.mark.parametrize("text", FORMATS)
def test_strides_do_not_matter_and_inputs_stay(text):
    w = moderate(strategies.probes(text, "float32", rows=16, size=8, seed=30))
    rng = np.random.default_rng(31)
    u, v = strategies.uniforms(rng, w.shape), strategies.uniforms(rng, (w.shape[0],))
    q = Quantizer.parse(text + "/row")
    v = v if q.scale.is_drawn else None
    layouts = [w, np.repeat(w, 2, axis=1)[:, ::2], np.ascontiguousarray(w[::-1])[::-1]]
    if q.scale.name not in SUMS:  # numpy adds along the memory.
        layouts.append(np.asfortranarray(w))
    expected = (q.cast(w), q.round(w, u, v), q.variance(w))
    for x in layouts:
        x.flags.writeable = False
        before = x.tobytes()
        for a, b in zip((q.cast(x), q.round(x, u, v), q.variance(x)), expected, strict=True):
            assert np.array_equal(a, b)
        assert x.tobytes() == before
    t = torch.from_numpy(np.ascontiguousarray(w.T)).T
    copies = [t.clone(), torch.from_numpy(u.copy())]
    if q.scale.name not in SUMS:
        assert np.array_equal(q.cast(t).numpy(), expected[0])
        assert np.array_equal(q.round(t, copies[1], None if v is None else torch.from_numpy(v)).numpy(), expected[1])
    assert torch.equal(t, copies[0]) and np.array_equal(copies[1].numpy(), u)


# --- numerics that go wrong elsewhere --------------------------------------------------------------------------------


def test_dividing_by_a_scale_would_leave_the_grid():
    """Why levels are ``amax * (c / c_max)``: ``w / s`` with ``s = amax / 7`` exceeds 7 in about 8 % of blocks, and grid
    points ``(k s) / s`` are not integers; here both stay where they are."""
    rng = np.random.default_rng(32)
    w = rng.standard_normal((20_000, 16)).astype(np.float32)
    amax = np.abs(w).max(axis=1, keepdims=True)
    s = amax / np.float32(7)
    assert ((amax / s) > 7).mean() > 0.05
    q = Quantizer.parse("int4/absmax/row")
    on_grid = np.concatenate([amax * np.float32(c / 7) for c in range(-7, 8)], axis=1)
    assert ((on_grid / s) % 1 != 0).mean() > 0.02
    out = q.cast(w)
    assert (np.abs(out).max(axis=1) == amax[:, 0]).all() and (np.abs(out) <= amax).all()
    points = strategies.all_levels(q.branches(w)[0].draw.lattice)
    for u in (np.zeros(points.shape, np.float32), np.full(points.shape, np.nextafter(np.float32(1), np.float32(0)))):
        assert np.array_equal(q.round(points, u), points)
    assert not q.variance(points).any()


def test_adding_a_uniform_and_flooring_would_move_grid_points():
    """In bfloat16, 7 + u rounds to 8 for the largest u, so ``floor(k + u)`` leaves the grid; comparing never does."""
    u = torch.arange(256, dtype=torch.float32).div(256).to(torch.bfloat16)
    seven = torch.full((256,), 7.0, dtype=torch.bfloat16)
    assert (torch.floor(seven + u) == 8).float().mean() > 0.01
    assert torch.equal(Quantizer.parse("int4").round(seven, u), seven)


def test_shared_exponent_is_exact_just_below_a_power_of_two():
    """A logarithm in float32 would give 7.9999995 the scale 2; the exponent field gives 1, so it clips to 6."""
    below = np.nextafter(np.float32(8), np.float32(0))
    w = np.array([below, 8], np.float32)[:, None]
    assert Quantizer.parse("e2m1/e8m0-floor/row").cast(w).tolist() == [[6], [8]]
    for k in range(-120, 120):
        edge = np.float32(2.0**k)
        q = Quantizer.parse("e2m1/e8m0-floor/tensor")
        tops = [q.branches(np.array([v]))[0].draw.lattice.top.item() for v in (np.nextafter(edge, np.float32(0)), edge)]
        assert tops[1] == 2 * tops[0]


def test_float64_weights_are_not_rounded_through_float32():
    w = np.array([7.0, 0.5 + 2.0**-40])
    assert Quantizer.parse("int4").cast(w)[1] == 1
    assert Quantizer.parse("int4").cast(w.astype(np.float32))[1] == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", FORMATS)
def test_ends_of_the_float_range(text, dtype):
    """Largest, smallest and mixed blocks: results are finite and of the input's type, zero blocks stay zero."""
    top, tiny = strategies.limit(text, dtype), strategies.SMALLEST[dtype]
    rows = [
        [top, -top / 2, tiny, 0],
        [-top, top, 1, -tiny],
        [tiny, -tiny, 0, -0.0],
        [3 * tiny, 2 * tiny, -tiny, tiny],
        [0, -0.0, 0, 0],
    ]
    q = Quantizer.parse(text + "/row")
    v = np.full(1, 0.4, np.float32) if q.scale.is_drawn else None
    for row in rows:
        w = np.array([row]).astype(strategies.numpy_type(dtype))
        for out in (q.cast(w), q.round(w, np.full(w.shape, 0.3, np.float32), v), q.mean(w)):
            assert out.dtype == w.dtype
            assert np.isfinite(out.astype(np.float64)).all()
        if not any(row):
            assert not out.any() and not q.variance(w).any() and not q.cast(w).any()


@pytest.mark.parametrize("text", [f for f in FORMATS if f.split("/")[1] in ("absmax", "gauge", "zp-real")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_extremes_of_a_block_are_levels(text, dtype):
    """The weight that sets a scale never moves, in any type and at any magnitude (for dynamic8, the upper one)."""
    w = strategies.probes(text, dtype, rows=200, size=8, seed=33)
    q = Quantizer.parse(text + "/row")
    wide = w.astype(np.float64)
    lo, hi = q.bracket(w)
    fixed = (lo == w) & (hi == w)
    top, bottom = wide == wide.max(axis=1, keepdims=True), wide == wide.min(axis=1, keepdims=True)
    if text.endswith("zp-real"):
        assert fixed[top | bottom].all()
    elif text.endswith("absmax"):
        reach = np.abs(wide) == np.abs(wide).max(axis=1, keepdims=True)
        assert fixed[reach & ((wide > 0) | (q.codebook.low <= -q.codebook.high))].all()
    else:  # Which end sets the scale is a matter of rounding where both nearly do.
        assert ((fixed & top & (wide >= 0)) | (fixed & bottom & (wide <= 0))).any(axis=1).all()


@pytest.mark.parametrize("text", [f for f in FORMATS if f.split("/")[0] in ("int4", "e2m1", "binary")])
def test_signs_are_symmetric(text):
    """Symmetric codebooks treat -w as the mirror image of w."""
    w = moderate(strategies.probes(text, "float32", rows=100, size=8, seed=34))
    q = Quantizer.parse(text + "/row")
    assert np.array_equal(q.variance(-w), q.variance(w))
    if q.codebook.has_zero:  # Without a level at 0 a tie there has no symmetric answer.
        assert np.array_equal(q.cast(-w), -q.cast(w))


@pytest.mark.parametrize("text", [f for f in FORMATS if "2level" not in f and "absmean" not in f and "l2l1" not in f])
def test_powers_of_two_only_shift_exponents(text):
    """For real scales: a block times 2^k rounds to the result times 2^k. For stored ones where the format has room."""
    w = np.random.default_rng(35).standard_normal((50, 8)).astype(np.float32)
    q = Quantizer.parse(text + "/row")
    stored = q.scale.storage is not None and q.scale.storage.mantissa_bits > 0
    if stored:
        w *= np.float32(4)  # Away from subnormal scales.
    for k in (1,) if stored else (-40, -3, 2, 40):
        factor = np.float32(2.0**k)
        assert np.array_equal(q.cast(w * factor), q.cast(w) * factor)


@examples(60)
@given(st.sampled_from(FORMATS), st.sampled_from(["float32", "float64"]), st.floats(0.001, 1000), st.data())
def test_frozen_scales_do_not_move(text, dtype, scale, data):
    """``with_scale`` and ``freeze``: the levels of a fixed lattice, clipped outside, whatever the weights."""
    q = Quantizer.parse(text)
    w = data.draw(strategies.blocks(text, dtype, max_rows=1))
    fixed = q.with_scale(scale)
    levels = (np.array(scale, dtype) * q.codebook.values.astype(dtype)).astype(np.float64)
    assert np.isin(fixed.cast(w).astype(np.float64), levels).all()
    assert not properties.not_fixed(fixed, fixed.cast(w)).any()
    frozen = q.freeze(w)
    if not q.scale.is_drawn:
        assert np.array_equal(frozen.cast(w), q.cast(w))
        assert np.array_equal(frozen.bracket(w), q.bracket(w))
    again = frozen.cast(frozen.cast(w))
    assert np.array_equal(again, frozen.cast(w))
