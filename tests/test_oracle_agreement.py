"""Casts against other libraries: equal bit for bit, or different exactly where and how the library's arithmetic says.

Each format sees about a million values, half of the blocks directed at breakpoints. Where a library multiplies by a
rounded reciprocal, a weight within a few ulp of the midpoint of two levels may go to either; that set is computed, and
outside it nothing may differ.
"""

import numpy as np
import pytest

from lotion_theory import Quantizer, codebook
from tests import oracles, properties, strategies
from tests.tolerances import ulp

MINIFLOATS = ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2")
TOP_EXPONENT = {"e2m1": 2, "e2m3": 2, "e3m2": 4, "e4m3": 8, "e5m2": 15}
VALUES = 1_000_000


def weights(text, size, values=VALUES, seed=0, low=2.0**-100, high=2.0**100, directed=0.1):
    """Float32 blocks (rows, size): a tenth directed with magnitudes in [low, high], the rest normal with scales over
    six binades."""
    rows = values // size
    some = strategies.probes(text, "float32", int(rows * directed), size, seed)
    lead = np.abs(some).max(axis=1)
    some = some[(lead >= low) & (lead <= high)]
    rng = np.random.default_rng(seed)
    plain = rng.standard_normal((rows - len(some), size)) * 2.0 ** rng.uniform(-3, 3, (rows - len(some), 1))
    return np.concatenate([some, plain.astype(np.float32), np.zeros((1, size), np.float32)])


def near_midpoint(levels, y, ulps):
    """Whether y, in units of the levels, lies within ``ulps`` float32 ulp of the middle of two of them."""
    middles = (levels[1:] + levels[:-1]) / 2
    place = np.clip(np.searchsorted(middles, y), 1, middles.size - 1)
    nearest = np.where(np.abs(middles[place] - y) < np.abs(middles[place - 1] - y), middles[place], middles[place - 1])
    return np.abs(y - nearest) <= ulps * ulp(np.maximum(np.abs(y), np.abs(nearest)), "float32")


def scales(q, w):
    """The scale of each block, (blocks, 1), float64."""
    return q.branches(w)[0].draw.lattice.top.astype(np.float64)


def steps_apart(levels, ours, theirs, scale):
    """Number of levels between two results, by position in the codebook."""
    index = [np.abs(levels[:, None, None] - (v / scale)[None]).argmin(axis=0) for v in (ours, theirs)]
    return np.abs(index[0] - index[1])


# --- elementwise -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MINIFLOATS, "int2", "int4", "int8", "int4full", "uint4"])
def test_nearest_on_a_fixed_lattice_is_gfloats(name):
    """float64 throughout on both sides: every level, every midpoint, both neighbours of each, a million random values
    over and beyond the range, uniform and log-uniform. No mismatch."""
    levels = codebook(name).values
    middles = (levels[1:] + levels[:-1]) / 2
    edges = np.concatenate([levels, middles])
    rng = np.random.default_rng(1)
    half = VALUES // 2
    uniform = rng.uniform(1.2 * levels[0] - 1, 1.2 * levels[-1] + 1, half)
    spread = levels[-1] * 2.0 ** rng.uniform(-40, 1, VALUES - half) * rng.choice([-1, 1], VALUES - half)
    x = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf), uniform, spread])
    np.testing.assert_array_equal(Quantizer.parse(name).with_scale(1.0).cast(x), oracles.nearest_elementwise(name, x))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MINIFLOATS)
def test_nearest_in_narrow_types_is_ml_dtypes(name, dtype):
    """Every 16-bit number, or a million float32 ones, in range; the library converts float32 directly."""
    ml_dtypes = oracles.library("ml_dtypes")
    kind = strategies.numpy_type(dtype)
    if dtype == "float32":
        rng = np.random.default_rng(2)
        x = (2.0 ** rng.uniform(-20, 17, VALUES) * rng.choice([-1, 1], VALUES)).astype(kind)
        middles = (codebook(name).values[1:] + codebook(name).values[:-1]).astype(kind) / 2
        x = np.concatenate([x, middles, strategies.shifted(middles, 1), strategies.shifted(middles, -1)])
    else:
        x = np.arange(2**16, dtype=np.uint16).view(kind)
    top = float(codebook(name).high)
    with np.errstate(invalid="ignore"):
        x = x[np.abs(x.astype(np.float64)) <= top]
    theirs = x.astype(np.float32).astype(getattr(ml_dtypes, oracles._ML_DTYPES[name])).astype(np.float64)
    ours = Quantizer.parse(name).with_scale(1.0).cast(x).astype(np.float64)
    # e5m2's smallest values fall below float16's and are rounded again when stored; nowhere else do levels round.
    np.testing.assert_array_equal(ours, theirs.astype(kind).astype(np.float64))


# --- MX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", ["floor", "even", "ceil"])
@pytest.mark.parametrize("elem", MINIFLOATS)
def test_mx_casts_are_torchaos(elem, rule, inputs):
    """Bit for bit, but for two places where the library is off: the smallest scale, 2^-127, divides by 2^-126 but
    multiplies by 2^-127 ("ceil": divides by 1, so all become 0); near the float maximum it overflows where we clip.

    Our ``ceil`` is its "rceil", the least scale that does not clip (its "ceil" wastes a binade between c_max and the
    next power of two). It takes the ceiling of a float32 logarithm, a few ulp above a power of two one too low.
    """
    text = f"{elem}/e8m0-{rule}"
    # The whole million in float32 under the rule of the specification; the others share the code.
    w = weights(
        text,
        32,
        VALUES if (rule, inputs) == ("floor", "float32") else VALUES // 8,
        seed=3,
        low=0,
        high=np.inf,
        directed=0.5,
    )
    if inputs == "bfloat16":
        w = np.unique((w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32), axis=0)
    theirs_rule = {"ceil": "rceil"}.get(rule, rule)
    amax = np.abs(w).max(axis=1, keepdims=True).astype(np.float64)
    q = Quantizer.parse(text + "/row")
    x = w.astype(strategies.numpy_type(inputs))
    ours, scale = strategies.wide(q.cast(x)), scales(q, x)
    theirs = oracles.mx_quantize_dequantize(w, elem, theirs_rule, inputs)
    their_scale = oracles.mx_scales(w, elem, theirs_rule, inputs)

    smallest = (scale <= 2.0**-127)[:, 0] & (amax > 0)[:, 0]
    divisor = 1.0 if rule == "ceil" else 2.0**-126
    halved = oracles.nearest_elementwise(elem, w[smallest].astype(np.float64) / divisor) * 2.0**-127
    if inputs == "float32":
        np.testing.assert_array_equal(theirs[smallest], halved)
    top = float(codebook(elem).high)
    lowered = np.zeros(len(w), bool)
    if rule == "ceil":
        lowered = (their_scale < scale)[:, 0] & ~smallest & (amax > 0)[:, 0]
        just_above = amax / (top * their_scale)
        # Up to 22 ulp where the exponent reaches 64; twice that beyond.
        assert (just_above[lowered] > 1).all() and (just_above[lowered] <= 1 + 44 * 2.0**-23).all()
    overflowed = ~np.isfinite(theirs).all(axis=1) | (scale * top > strategies.LARGEST[inputs])[:, 0]
    assert (np.abs(ours[overflowed]) <= strategies.LARGEST[inputs]).all()
    same = ~(smallest | lowered | overflowed)
    assert same.sum() > 0.8 * len(w)
    np.testing.assert_array_equal(ours[same], theirs[same])
    positive = same & (amax > 0)[:, 0]
    np.testing.assert_array_equal(scale[positive], their_scale[positive])


def test_mx_floor_just_below_a_power_of_two_matches_torchao():
    """Where a float32 logarithm errs, both read the exponent field: amax = 8 - ulp has the scale of 4, not of 8."""
    edge = 2.0 ** np.arange(-60, 60).astype(np.float32)
    w = np.zeros((edge.size, 32), np.float32)
    w[:, 0] = np.nextafter(edge, np.float32(0))
    q = Quantizer.parse("mxfp4")
    np.testing.assert_array_equal(q.cast(w), oracles.mx_quantize_dequantize(w, "e2m1", "floor"))
    np.testing.assert_array_equal(q.cast(w)[:, 0], edge * 0.75)


# --- NVFP4 -----------------------------------------------------------------------------------------------------------


def test_nvfp4_one_level_is_torchaos_but_for_its_clamp_and_reciprocal():
    """The library keeps scales at 2^-6 or more and multiplies by fl(1/s); we use E4M3's subnormal scales and divide."""
    w = weights("e2m1/e4m3-nearest", 16, seed=4)
    q = Quantizer.parse("nvfp4/row")
    ours, scale = q.cast(w).astype(np.float64), scales(q, w)
    theirs, their_scale = oracles.nvfp4_quantize_dequantize(w), oracles.nvfp4_scales(w)
    np.testing.assert_array_equal(their_scale, np.maximum(scale, 2.0**-6))
    clamped = (scale < 2.0**-6)[:, 0]
    assert 100 < clamped.sum() < 0.2 * len(w)
    levels = codebook("e2m1").values
    at_clamp = q.with_scale(2.0**-6).cast(w[clamped]).astype(np.float64)
    np.testing.assert_array_equal(theirs[clamped], at_clamp)  # 1/s is exact, so is everything else
    ours, theirs, scale, w = ours[~clamped], theirs[~clamped], scale[~clamped], w[~clamped].astype(np.float64)
    near = near_midpoint(levels, w / scale, 2)
    np.testing.assert_array_equal(ours[~near], theirs[~near])
    moved = ours != theirs
    assert (steps_apart(levels, ours, theirs, scale) <= 1).all()
    assert (np.abs(ours - w)[moved] <= np.abs(theirs - w)[moved]).all()
    exact = (np.frexp(scale)[0] == 0.5)[:, 0]
    np.testing.assert_array_equal(ours[exact], theirs[exact])


def test_nvfp4_two_levels_is_torchaos_but_for_roundings():
    """Both scale by t = fl(max / 2688). The library's block scale is E4M3 of fl(fl(A/6) / t), ours of fl(fl(A/t) / 6):
    they may part where A / (6t) is within 2 ulp of a tie; its codes use fl(fl(1/t) / s), off by 2 ulp."""
    rng = np.random.default_rng(5)
    w = (rng.standard_normal((50, 1250, 16)) * 2.0 ** rng.uniform(-4, 4, (50, 1250, 1))).astype(np.float32)
    q = Quantizer.parse("nvfp4/nearest-2level")
    levels, grid = codebook("e2m1").values, oracles.code_values("ue4m3", "gfloat")
    differ = 0
    for x in w:
        outer = np.float32(np.abs(x).max() / np.float32(2688))
        scale = scales(q, x)
        theirs, their_scale = oracles.nvfp4_quantize_dequantize(x, float(outer)), oracles.nvfp4_scales(x, float(outer))
        ideal = np.abs(x).max(axis=1, keepdims=True).astype(np.float64) / 6 / float(outer)
        tie = near_midpoint(grid, ideal, 2) | (ideal < 2.0**-6)
        np.testing.assert_array_equal(scale[~tie], their_scale[~tie])
        kept = (scale == their_scale)[:, 0]
        ours = q.cast(x).astype(np.float64)
        near = near_midpoint(levels, x[kept] / scale[kept], 4)
        np.testing.assert_array_equal(ours[kept][~near], theirs[kept][~near])
        differ += (ours != theirs).sum()
    assert differ < 1e-4 * w.size


# --- integers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_at_half_offset_are_torchaos_symmetric_mapping(bits):
    """``absmax / 7.5`` on [-8, 7] (and its kin): same scale, same levels; codes by a rounded reciprocal."""
    divisor = (2**bits - 1) / 2
    text = f"int{bits}full/absmax{divisor:g}"
    w = weights(text, 32, seed=6)
    q = Quantizer.parse(text + "/row")
    result = oracles.int_affine(w, bits, "symmetric", 32)
    compare_affine(q, w, result, np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)))


def compare_affine(q, w, result, codes, level_ulps=0):
    """Scale equal, values too but within 2 ulp of midpoints, where they are one step apart and ours is not farther."""
    ours, scale = q.cast(w).astype(np.float64), scales(q, w)
    live = scale[:, 0] > 0
    assert not result.values[~live].any()
    np.testing.assert_array_equal(result.scale[live], scale[live])
    ours, theirs, scale, x = ours[live], result.values[live], scale[live], w[live].astype(np.float64)
    near = near_midpoint(codes.astype(np.float64), x / scale, 2)
    apart = np.abs(ours - theirs)
    assert (apart[~near] <= level_ulps * ulp(ours[~near], "float32")).all()
    assert (apart <= 1.001 * scale).all()
    moved = apart > 0
    if not level_ulps:
        assert (np.abs(ours - x)[moved] <= np.abs(theirs - x)[moved]).all()
    assert moved.mean() < 0.05


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_integers_have_torchaos_codes_on_better_levels(bits):
    """``absmax / 7`` on [-7, 7]: its level is fl(fl(A/7) c), ours fl(A fl(c/7)): 2 roundings each, 2 ulp apart."""
    w = weights(f"int{bits}/absmax", 32, seed=7)
    q = Quantizer.parse(f"int{bits}/absmax/row")
    result = oracles.int_affine(w, bits, "symmetric", 32, narrow=True)
    ours, top = q.cast(w).astype(np.float64), 2 ** (bits - 1) - 1
    amax = np.abs(w).max(axis=1, keepdims=True).astype(np.float64)
    live = amax[:, 0] > 0
    y = w[live].astype(np.float64) / amax[live] * top
    near = near_midpoint(np.arange(-top, top + 1.0), y, 3)
    close = np.abs(ours - result.values)[live] <= 2 * ulp(amax[live], "float32")
    assert close[~near].all()
    assert (np.abs(ours - result.values)[live] <= 1.001 * amax[live] / top).all()
    assert (np.abs(ours).max(axis=1) == amax[:, 0]).all()
    # The library's own maximum is often not the weight it came from.
    assert bits == 2 or (np.abs(result.values).max(axis=1) != amax[:, 0]).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_gauge_is_torchaos_mapping_without_clipping(bits):
    """Scale max(max/7, -min/8); levels by anchor here, by product there, up to 3 roundings apart."""
    w = weights(f"int{bits}full/gauge", 32, seed=8)
    q = Quantizer.parse(f"int{bits}full/gauge/row")
    result = oracles.int_affine(w, bits, "no-clipping", 32)
    live = result.scale[:, 0] > 2.0**-120
    high = 2 ** (bits - 1) - 1
    ours = strategies.wide(q.cast(w))
    near = near_midpoint(np.arange(-high - 1, high + 1.0), w.astype(np.float64) / result.scale, 4)
    apart = np.abs(ours - result.values)[live]
    assert (apart <= 3 * ulp((high + 1) * result.scale[live], "float32"))[~near[live]].all()
    assert (apart <= 1.001 * result.scale[live]).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_zero_point_is_torchaos_asymmetric_mapping(bits):
    """Same scale and zero point; blocks on both sides of 0 and on one. Codes by a rounded reciprocal."""
    w = weights(f"uint{bits}/zp-int", 32, seed=9)
    w[::5] = np.abs(w[::5])
    w[1::5] -= np.float32(0.75) * w[1::5].max(axis=1, keepdims=True)
    q = Quantizer.parse(f"uint{bits}/zp-int/row")
    result = oracles.int_affine(w, bits, "asymmetric", 32)
    zero = q.branches(w)[0].draw.lattice.bottom.astype(np.float64)
    live = scales(q, w)[:, 0] > 0
    np.testing.assert_array_equal(result.zero_point[live], zero[live])
    compare_affine(q, w, result, np.arange(-(2**bits), 2**bits + 1))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_real_zero_point_is_tinygemms(bits):
    """Levels from minimum to maximum; the library centres them at m + s h, which cancels: some ulp of the leader."""
    w = weights(f"uint{bits}/zp-real", 32, seed=10, low=2.0**-60, high=2.0**60)[:-1]
    result = oracles.int_affine(w, bits, "asymmetric", 32, zero="float")
    x = w.astype(np.float64)
    span = np.ptp(x, axis=1, keepdims=True)
    wide = (span > 2.0**-12 * np.abs(x).max(axis=1, keepdims=True))[:, 0]
    y = (x - x.min(axis=1, keepdims=True))[wide] / span[wide] * (2**bits - 1)
    # Cancellation: each of about six operations is off by half an ulp of the block's largest magnitude.
    error = 8 * ulp(np.abs(x).max(axis=1, keepdims=True), "float32")[wide]
    clear = np.abs(y - np.floor(y) - 0.5) * span[wide] / (2**bits - 1) > error
    apart = np.abs(strategies.wide(Quantizer.parse(f"uint{bits}/zp-real/row").cast(w)) - result.values)[wide]
    assert (apart <= error)[clear].all()
    assert clear.mean() > 0.9


# --- NF4 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [32, 64])
def test_nf4_is_bitsandbytes_but_for_ties_and_reciprocal(block):
    """Same level values, fl(level A); the library's midpoints and reciprocal are rounded, and its ties go down."""
    w = weights("nf4/absmax", block, seed=11, low=1e-37)
    q = Quantizer.parse("nf4/absmax/row")
    ours, theirs = q.cast(w).astype(np.float64), oracles.nf4(w, block)
    amax = np.abs(w).max(axis=1, keepdims=True).astype(np.float64)
    levels = codebook("nf4").values
    x = w.astype(np.float64)
    near = near_midpoint(levels, x / np.where(amax > 0, amax, 1), 3)
    np.testing.assert_array_equal(ours[~near], theirs[~near])
    moved = ours != theirs
    assert moved.any() and (np.abs(ours - x)[moved] <= np.abs(theirs - x)[moved]).all()


# --- GGUF ------------------------------------------------------------------------------------------------------------


def gguf_weights(text, seed):
    """Blocks whose scale neither vanishes in half precision nor exceeds it."""
    return weights(text, 32, seed=seed, low=2.0**-10, high=2.0**17)[:-1]


@pytest.mark.parametrize(("kind", "text", "low"), [("Q8_0", "q8_0", -127), ("Q4_0", "q4_0", -8)])
def test_gguf_rounds_to_another_lattice_than_it_stores(kind, text, low):
    """Same stored scale; our cast takes the nearest point of the stored lattice, ggml the code of w over the unrounded
    float32 scale. So ours is never farther from w, and they differ where the scale's rounding, up to 2^-11 of the code,
    moves w across a midpoint."""
    w = gguf_weights(Quantizer.parse(text).canonical.rpartition("/")[0], seed=12)
    if kind == "Q4_0":  # Sign ties: ggml takes the first leader, we take the positive one.
        tied = (w.max(axis=1) == -w.min(axis=1)) & (w.max(axis=1) > 0)
        w = w[~tied]
    q = Quantizer.parse(text)
    x, ours, theirs = w.astype(np.float64), q.cast(w).astype(np.float64), oracles.gguf_quantize_dequantize(w, kind)
    scale = scales(q, w)
    codes = theirs / scale
    assert np.array_equal(codes, np.rint(codes)), "their values lie on our lattice: the stored scales agree"
    leader = np.abs(w).argmax(axis=1)
    lead_code = np.take_along_axis(codes, leader[:, None], 1)
    assert (np.abs(lead_code) == -low).all() if kind == "Q8_0" else (lead_code == low).all()
    assert (np.abs(ours - x) <= np.abs(theirs - x)).all()
    assert (np.abs(ours - theirs) <= np.abs(scale)).all()
    unrounded = np.take_along_axis(x, leader[:, None], 1) / (low if kind == "Q4_0" else -low)
    shift = np.abs(x / unrounded) * np.abs(np.abs(unrounded / scale) - 1)
    y = x / scale
    to_midpoint = np.abs(np.abs(y - np.floor(y)) - 0.5)
    moved = ours != theirs
    assert (to_midpoint[moved] <= shift[moved] + 4 * ulp(y[moved], "float32")).all()
    share = moved.mean()
    assert 0 < share < 0.03
    if kind == "Q4_0":
        assert not moved[y > 7.5].any()


@pytest.mark.parametrize(("kind", "text", "top"), [("Q8_0", "q8_0", 127), ("Q4_0", "q4_0", 8)])
def test_gguf_agrees_where_its_scale_needs_no_rounding(kind, text, top):
    """Leaders c_max times a half-precision number: one lattice for both. Left are ties and the rounded reciprocal."""
    rng = np.random.default_rng(13)
    scale = rng.integers(1024, 2048, (4000, 1)) * 2.0 ** rng.integers(-14, 3, (4000, 1))
    w = rng.uniform(-top, top, (4000, 32)) * scale
    w[:, :1] = -top * scale
    w = w.astype(np.float32)
    ours, theirs = Quantizer.parse(text).cast(w).astype(np.float64), oracles.gguf_quantize_dequantize(w, kind)
    y = w.astype(np.float64) / scale
    # Q4_0 adds 8.5 before it truncates: an absolute error of half an ulp of 16.
    near = near_midpoint(np.arange(-top - 1, top + 2.0), y, 2) | (
        np.abs(np.abs(y - np.floor(y)) - 0.5) <= 2 * ulp(8.0, "float32")
    )
    assert near.mean() < 1e-3
    clipped = (y > 7.5) if kind == "Q4_0" else np.zeros(y.shape, bool)
    np.testing.assert_array_equal(ours[~near & ~clipped], theirs[~near & ~clipped])
    np.testing.assert_array_equal(ours[clipped], (7 * scale).repeat(32, axis=1)[clipped])


def test_gguf_sign_ties():
    """ggml's first leader decides the sign of the scale; ours is positive whatever the order."""
    w = np.zeros((2, 32), np.float32)
    w[0, :2], w[1, :2] = (8, -8), (-8, 8)
    q = Quantizer.parse("q4_0")
    assert q.cast(w)[:, :2].tolist() == [[8, -7], [-7, 8]]
    assert oracles.gguf_quantize_dequantize(w, "Q4_0")[:, :2].tolist() == [[8, -7], [-8, 7]]


def test_drawn_lattices_are_torchaos_two_neighbouring_scales():
    """The fine and the coarse lattice of the SR repair are those of torchao's blocks at the two scales' own maxima."""
    w = weights("e2m1/e8m0-sr", 32, 64_000, seed=14)
    w = w[np.abs(w).max(axis=1) > 0]
    fine, coarse = Quantizer.parse("e2m1/e8m0-sr/row").branches(w)
    for branch in (fine, coarse):
        scale = branch.draw.lattice.top.astype(np.float64)
        at_top = np.zeros_like(w)
        at_top[:, 0] = 6 * scale[:, 0]
        np.testing.assert_array_equal(oracles.mx_scales(at_top, "e2m1", "floor"), scale)
        block = np.concatenate([at_top[:, :1], np.clip(w[:, 1:], -6 * scale, 6 * scale).astype(np.float32)], axis=1)
        theirs = oracles.mx_quantize_dequantize(block, "e2m1", "floor")
        np.testing.assert_array_equal(theirs, Quantizer.parse("e2m1/e8m0-floor/row").cast(block))
        assert not properties.not_fixed(Quantizer.parse("e2m1/e8m0-sr/row"), theirs.astype(np.float32)).any()
