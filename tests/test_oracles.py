"""The oracles among themselves: they agree where they overlap, and do what their docstrings say they do."""

import numpy as np
import pytest

from tests import oracles
from tests.tolerances import ulp, within_ulps

MINIFLOATS = ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2")
TOP_EXPONENT = {"e2m1": 2, "e2m3": 2, "e3m2": 4, "e4m3": 8, "e5m2": 15}


def f32(x):
    """float64 copy of x rounded to float32."""
    return np.asarray(x, dtype=np.float32).astype(np.float64)


def neighbours(x):
    """x with the float64 numbers just below and above each entry."""
    return np.concatenate([x, np.nextafter(x, -np.inf), np.nextafter(x, np.inf)])


def brute_force_nearest(levels, x):
    """Nearest level by comparing all distances; of two tied neighbours, the one that is a multiple of twice their gap.

    In integer and minifloat grids, across binades too, that is the one with the even code.
    """
    distance = np.abs(x[:, None] - levels)
    tied = distance == distance.min(axis=1, keepdims=True)
    first, last = tied.argmax(axis=1), levels.size - 1 - tied[:, ::-1].argmax(axis=1)
    even = np.fmod(levels[first], 2 * (levels[last] - levels[first] + (first == last))) == 0
    return np.where(first == last, levels[first], np.where(even, levels[first], levels[last]))


def blocks(amax, size, seed):
    """Float32-exact rows of ``size`` entries, the first being ``amax`` and the others random and smaller."""
    amax = f32(amax)
    rest = np.random.default_rng(seed).uniform(-1, 1, (amax.size, size - 1)) * amax[:, None]
    return f32(np.concatenate([amax[:, None], rest], axis=1))


def block_maxima(low=-100, high=100):
    """Maxima at and one float32 beside the places where any block rule changes: k/16 times powers of two."""
    mantissas = np.arange(16, 32) / 16
    amax = (mantissas[:, None] * 2.0 ** np.arange(low, high)).ravel().astype(np.float32)
    zero, far = np.float32(0), np.float32(np.inf)
    return np.concatenate([amax, np.nextafter(amax, zero), np.nextafter(amax, far)]).astype(np.float64)


@pytest.mark.parametrize("name", oracles.ML_DTYPES_NAMES)
def test_two_libraries_decode_the_same_values(name):
    np.testing.assert_array_equal(oracles.code_values(name), oracles.code_values(name, "gfloat"))


@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_formats_are_the_integers(bits):
    half = 2 ** (bits - 1)
    for name, low, high in (("int", 1 - half, half - 1), ("uint", 0, 2 * half - 1)):
        np.testing.assert_array_equal(oracles.code_values(f"{name}{bits}", "gfloat"), np.arange(low, high + 1))
    np.testing.assert_array_equal(oracles.code_values(f"int{bits}full", "gfloat"), np.arange(-half, half))


def test_scale_grids():
    e4m3, ue5m3 = oracles.code_values("e4m3"), oracles.code_values("ue5m3", "gfloat")
    np.testing.assert_array_equal(oracles.code_values("ue4m3", "gfloat"), e4m3[e4m3 >= 0])
    assert (ue5m3[1], ue5m3[-1], ue5m3.size) == (2.0**-17, 114688, 255)
    # One more exponent bit and a bias larger by 8: E4M3's normal numbers are among UE5M3's.
    assert np.isin(e4m3[e4m3 >= 2**-6], ue5m3).all()
    np.testing.assert_array_equal(oracles.code_values("e8m0"), 2.0 ** np.arange(-127, 128))


@pytest.mark.parametrize("name", [*MINIFLOATS, "ue4m3", "ue5m3", "int4", "int4full", "uint4", "int8"])
def test_nearest_agrees_with_brute_force(name):
    levels = oracles.code_values(name, "gfloat")
    middles = (levels[1:] + levels[:-1]) / 2  # exact: at most five significant bits and a common exponent range
    lowest = 0.0 if levels[0] == 0 else 2 * levels[0]
    random = np.random.default_rng(1).uniform(lowest, 2 * levels[-1], 500)
    small = np.random.default_rng(2).uniform(lowest, 2 * levels[-1], 500) * 2.0 ** -np.arange(500)[::-1].clip(0, 30)
    x = np.concatenate([neighbours(np.concatenate([levels, middles])), random, small])
    x = x[x >= lowest]
    np.testing.assert_array_equal(oracles.nearest_elementwise(name, x), brute_force_nearest(levels, x))


@pytest.mark.parametrize("inputs", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", oracles.MX_RULES)
@pytest.mark.parametrize("elem", oracles.MX_ELEMENTS)
def test_mx_scale_rules_and_elements(elem, rule, inputs):
    """Each rule's formula in exact arithmetic, elements by gfloat: away from the deviations, equal bit for bit."""
    levels = oracles.code_values(elem)
    top, mantissa_bits = levels[-1], int(elem[-1])
    x = blocks(block_maxima(), 32, seed=3)
    if inputs == "bfloat16":  # cut the last 16 bits: a maximum just below a breakpoint stays one bfloat16 below it
        x = (x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    mantissa, exponent = np.frexp(np.abs(x).max(axis=1))  # mantissa in [.5, 1)
    if rule == "floor":
        k = exponent - 1 - TOP_EXPONENT[elem]
    elif rule == "ceil":
        k = exponent - (mantissa == 0.5) - TOP_EXPONENT[elem]
    elif rule == "even":
        k = exponent - 1 - TOP_EXPONENT[elem] + (2 * mantissa >= 2 - 2.0 ** -(mantissa_bits + 1))
    else:
        top_mantissa, top_exponent = np.frexp(top)
        k = exponent - top_exponent + (mantissa > top_mantissa)
        # A few float32 ulp above a power of two torchao's log2 rounds down: the known deviation, tested below.
        just_above = (mantissa > top_mantissa) & (mantissa <= top_mantissa * (1 + 32 * 2.0**-23))
        x, k = x[~just_above], k[~just_above]
    scale = 2.0 ** k[:, None].astype(np.float64)
    np.testing.assert_array_equal(oracles.mx_scales(x, elem, rule, inputs), scale)
    expected = oracles.nearest_elementwise(elem, x / scale) * scale
    np.testing.assert_array_equal(oracles.mx_quantize_dequantize(x, elem, rule, inputs), expected)


def test_mx_rceil_is_one_binade_low_just_above_a_power_of_two():
    for exponent, lowered in ((2, False), (70, True)):
        amax = float(np.nextafter(np.float32(6 * 2.0**exponent), np.float32(np.inf)))
        x = np.zeros((1, 32))
        x[0, 0] = amax
        assert oracles.mx_scales(x, "e2m1", "rceil")[0, 0] == 2.0 ** (exponent + (not lowered))


def test_mx_smallest_scale_halves_its_block():
    x = np.zeros((3, 32))
    x[1, :2] = 2.0**-125, -(2.0**-126)
    x[2, :2] = 2.0**-124, -(2.0**-125)  # the first maximum with a scale of 2**-126
    np.testing.assert_array_equal(oracles.mx_scales(x, "e2m1", "floor")[:, 0], [2.0**-127, 2.0**-127, 2.0**-126])
    result = oracles.mx_quantize_dequantize(x, "e2m1", "floor")
    np.testing.assert_array_equal(result, x * [[1], [0.5], [1]])
    assert not oracles.mx_quantize_dequantize(x[:2], "e2m1", "rceil").any()


def test_nvfp4_one_level():
    scales = oracles.code_values("e4m3")
    scales = scales[scales >= 2.0**-6]
    middles = (scales[1:] + scales[:-1]) / 2
    x = blocks(np.concatenate([neighbours(f32(6 * middles)), 6 * scales, [1e-9, 0.01, 2688, 3000, 1e20]]), 16, seed=4)
    amax = np.abs(x).max(axis=1, keepdims=True)
    # amax / 6 in float64 is within 2**-53 of the quotient; a midpoint times 6 is exact, so ties are seen as ties.
    scale = np.clip(oracles.nearest_elementwise("e4m3", amax / 6), 2.0**-6, 448)
    np.testing.assert_array_equal(oracles.nvfp4_scales(x), scale)
    levels = oracles.code_values("e2m1")
    gap = np.abs((x / scale)[..., None] - (levels[1:] + levels[:-1]) / 2).min(axis=-1)
    clear = gap > 2 * ulp(x / scale, "float32")  # a rounded reciprocal and a rounded product: under two ulp in all
    assert clear.mean() > 0.9
    expected = oracles.nearest_elementwise("e2m1", x / scale) * scale
    np.testing.assert_array_equal(oracles.nvfp4_quantize_dequantize(x)[clear], expected[clear])


def test_nvfp4_reciprocal_moves_ties():
    scales = oracles.code_values("e4m3")
    scales = scales[scales >= 2.0**-6]
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]) * scales[:, None]
    x = np.concatenate([6 * scales[:, None], ties, np.zeros((scales.size, 8))], axis=1)
    expected = oracles.nearest_elementwise("e2m1", x / scales[:, None]) * scales[:, None]
    moved = oracles.nvfp4_quantize_dequantize(x) != expected
    assert moved[:, 1:8].any() and not moved[:, [0, *range(8, 16)]].any()
    assert not moved[np.frexp(scales)[0] == 0.5].any()  # reciprocals of powers of two are exact


def test_nvfp4_two_levels_in_float32_steps():
    """The documented sequence of float32 operations, ties and all."""
    one = np.float32(1)
    spread = 10.0 ** -np.arange(0, 6.4, 0.1)[:, None]  # down to blocks below the smallest scale
    x = (np.random.default_rng(5).standard_normal((64, 64)) * spread).astype(np.float32)
    outer = np.float32(np.abs(x).max() / np.float32(2688))
    tiles = x.reshape(64, 4, 16)
    inner = np.abs(tiles).max(axis=-1, keepdims=True) / np.float32(6) / outer
    inner = oracles.nearest_elementwise("e4m3", np.clip(inner, 2.0**-6, 448)).astype(np.float32)
    codes = oracles.nearest_elementwise("e2m1", tiles * ((one / outer) / inner)).astype(np.float32)
    np.testing.assert_array_equal(oracles.nvfp4_scales(x, float(outer)), (outer * inner)[..., 0])
    expected = (codes * (outer * inner)).reshape(x.shape)
    np.testing.assert_array_equal(oracles.nvfp4_quantize_dequantize(x, float(outer)), expected)
    assert within_ulps(expected, (codes * inner).reshape(x.shape) * float(outer), 1.5, "float32")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("mapping", ["symmetric", "narrow", "no-clipping", "asymmetric", "int-any", "float"])
def test_int_affine_in_float32_steps(mapping, bits):
    """The documented sequence of float32 operations; blocks on both sides of 0, on one side, constant and zero."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((40, 2, 32)) + rng.integers(-3, 4, (40, 2, 1))
    x[0], x[1] = 0, 3
    x = x.astype(np.float32)
    tiny, zero = np.finfo(np.float32).tiny, np.float32(0)
    low, high = x.min(axis=-1), x.max(axis=-1)
    if mapping not in ("int-any", "float"):
        low, high = np.minimum(low, zero), np.maximum(high, zero)
    a, b = (
        (0, 2**bits - 1) if mapping in ("asymmetric", "int-any", "float") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    a += mapping == "narrow"
    offset = np.zeros_like(low)
    if mapping in ("symmetric", "narrow"):
        scale = np.maximum(np.maximum(-low, high) / np.float32((b - a) / 2), tiny)
    elif mapping == "no-clipping":
        scale = np.maximum(np.maximum(low / np.float32(a), high / np.float32(b)), tiny)
    else:
        scale = np.maximum((high - low) / np.float32(b - a), tiny)
        offset = np.clip(a - np.rint(low / scale), a, b)
    half = np.float32((a + b + 1) / 2)
    if mapping == "float":
        offset = low + scale * half
        s, z = scale[..., None], offset[..., None]
        codes = np.clip(np.rint((x - (z - s * half)) / s), a, b)
        values = (codes - half) * s + z
    else:
        s, z = scale[..., None], offset[..., None]
        codes = np.clip(np.rint(x * (np.float32(1) / s)) + z, a, b)
        values = (codes - z) * s
    zero_rule = mapping if mapping in ("int-any", "float") else "int"
    kind = {"narrow": "symmetric", "int-any": "asymmetric", "float": "asymmetric"}.get(mapping, mapping)
    result = oracles.int_affine(x, bits, kind, 32, zero=zero_rule, narrow=mapping == "narrow")
    for ours, theirs in ((values, result.values), (codes, result.codes), (scale, result.scale[..., 0])):
        np.testing.assert_array_equal(theirs, ours)
    np.testing.assert_array_equal(result.zero_point[..., 0], offset)


def test_symmetric_int4_is_absmax_over_seven_and_a_half():
    x = np.zeros((1, 32))
    x[0, :3] = 7.5, -7.5, 1
    result = oracles.int_affine(x, 4, "symmetric", 32)
    assert result.scale.item() == 1
    np.testing.assert_array_equal(result.values[0, :3], [7, -8, 1])
    assert oracles.int_affine(x, 4, "symmetric", 32, narrow=True).scale.item() == f32(7.5 / 7)
    assert oracles.int_affine(x, 4, "no-clipping", 32).scale.item() == f32(7.5 / 7)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_nf4_is_nearest_on_its_table(block):
    table = oracles.nf4_table()
    x = f32(np.random.default_rng(7).standard_normal((block, 4 * block)) * 10.0 ** np.arange(-2, 2).repeat(block))
    amax = np.abs(x.reshape(block, 4, block)).max(axis=-1, keepdims=True)
    scaled = (x.reshape(block, 4, block) / amax)[..., None]
    gap = np.abs(scaled - (table[1:] + table[:-1]) / 2).min(axis=-1)
    # Midpoints, the reciprocal and the product are each rounded to float32; all numbers are below 1.
    clear = gap > 4 * ulp(0.75, "float32")
    nearest = table[np.abs(scaled - table).argmin(axis=-1)]
    expected = f32(nearest * amax)  # 24-bit factors: exact in float64, then rounded once
    result = oracles.nf4(x, block).reshape(expected.shape)
    np.testing.assert_array_equal(result[clear], expected[clear])


def test_nf4_ties_go_down_and_zero_blocks_stay():
    table = oracles.nf4_table()
    middles = (table[1:].astype(np.float32) + table[:-1].astype(np.float32)) / np.float32(2)
    x = np.zeros((2, 32))
    x[0, 0], x[0, 1:16] = 1, middles
    result = oracles.nf4(x, 32)
    np.testing.assert_array_equal(result[0, 1:16], table[:-1])
    assert not result[1].any()


def test_bitsandbytes_fp4_is_not_e2m1():
    theirs, e2m1 = 12 * oracles.bitsandbytes_fp4_table(), 2 * oracles.code_values("e2m1")
    differ = np.abs(theirs - e2m1) > 12 * ulp(1.0, "float32")  # the table is divided by 12 in float32
    np.testing.assert_array_equal(e2m1[differ], [-1, 1])
    np.testing.assert_allclose(theirs[differ], [-0.0625, 0.0625], rtol=2.0**-23)


def test_dynamic_map_is_the_tree_of_decades():
    decades = [np.linspace(0.1, 1, 2**i + 1) for i in range(7)]
    magnitudes = np.concatenate([(d[1:] + d[:-1]) / 2 * 10.0 ** (i - 6) for i, d in enumerate(decades)])
    expected = np.sort(np.concatenate([-magnitudes, [0], magnitudes, [1]]))
    # linspace, sum, halving and one product in float32: a rounding each at most, in linspace up to two.
    assert within_ulps(oracles.dynamic_map_8bit(), expected, 3, "float32")


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_gguf_in_float32_steps(kind):
    x = (np.random.default_rng(8).standard_normal((512, 96)) * 10.0 ** np.arange(-1, 2).repeat(32)).astype(np.float32)
    tiles = x.reshape(512, 3, 32)
    extreme = np.take_along_axis(tiles, np.abs(tiles).argmax(axis=-1)[..., None], axis=-1)
    d = extreme / np.float32(-8) if kind == "Q4_0" else np.abs(extreme) / np.float32(127)
    y = tiles * (np.float32(1) / d)
    if kind == "Q4_0":
        codes = np.minimum(np.trunc(y + np.float32(8.5)), 15) - 8
    else:
        codes = np.copysign(np.floor(np.abs(y.astype(np.float64)) + 0.5), y)
    expected = d.astype(np.float16).astype(np.float64) * codes
    np.testing.assert_array_equal(oracles.gguf_quantize_dequantize(x, kind), expected.reshape(x.shape))


def test_gguf_ties_and_signs():
    x = np.zeros((3, 32))
    x[0, :2], x[1, :2], x[2, :5] = (8, -8), (-8, 8), (-8, 0.5, -0.5, 1.5, -1.5)
    result = oracles.gguf_quantize_dequantize(x, "Q4_0")
    np.testing.assert_array_equal(result[:2, :2], [[8, -7], [-8, 7]])
    np.testing.assert_array_equal(result[2, :5], [-8, 1, 0, 2, -1])
    x[0, :5] = 127, 0.5, -0.5, 1.5, -1.5
    np.testing.assert_array_equal(oracles.gguf_quantize_dequantize(x, "Q8_0")[0, :5], [127, 1, -1, 2, -2])
    assert not oracles.gguf_quantize_dequantize(np.zeros(64), "Q4_0").any()


def test_inexact_inputs_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="exact in float32"):
        oracles.nvfp4_quantize_dequantize(np.full((1, 16), 0.1))
    with pytest.raises(ValueError, match="exact in bfloat16"):
        oracles.mx_scales(np.full((1, 32), 1 + 2.0**-10), "e2m1", "floor", "bfloat16")
    with pytest.raises(ValueError, match="finite"):
        oracles.exact([np.inf])
    with pytest.raises(ValueError, match="e9m9"):
        oracles.code_values("e9m9")
    with pytest.raises(ValueError, match="half precision"):
        oracles.gguf_quantize_dequantize(np.full(32, 2.0**20), "Q4_0")


def test_a_missing_library_skips_and_says_so():
    with pytest.raises(pytest.skip.Exception, match="no_such_library"):
        oracles.library("no_such_library.part")
