"""Storage formats of scales, against the list of all their values."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from lotion_theory.formats.scale_formats import SCALE_FORMATS
from tests import oracles, reference, strategies

TOPS = (1, 6, 7, Fraction(15, 2), 28, 127, 448)
ORACLE_NAMES = {"e4m3": "ue4m3", "ue5m3": "ue5m3"}


def values(fmt):
    """Every value from 0 up, float64."""
    return np.array([float(v) for v in reference.stored_values(fmt)])


@pytest.mark.parametrize("fmt", SCALE_FORMATS)
def test_reference_lists_agree_with_other_libraries(fmt):
    if fmt == "fp16":
        theirs = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    elif fmt == "e8m0":
        theirs = np.concatenate([[0.0], oracles.code_values("e8m0")])
    else:
        theirs = oracles.code_values(ORACLE_NAMES[fmt], "gfloat")
    np.testing.assert_array_equal(values(fmt), theirs)


def probes(fmt, dtype, top, count=20_000, seed=0):
    """Every value times ``top`` and every midpoint, each with both neighbours, and log-uniform random numbers."""
    table = values(fmt) * float(top)
    middle = (table[1:] + table[:-1]) / 2
    rng = np.random.default_rng(seed)
    random = 2.0 ** rng.uniform(np.log2(table[1]) - 3, np.log2(table[-1]) + 1, count)
    with np.errstate(over="ignore"):
        x = np.concatenate([table, middle, random, [0.0]]).astype(dtype)
    x = np.concatenate([x, strategies.shifted(x, -1), strategies.shifted(x, 1)])
    return x[(x >= 0) & np.isfinite(x)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fmt", SCALE_FORMATS)
def test_bracket_is_the_search_in_the_list(fmt, dtype):
    """``s_lo``: the largest value with ``top s_lo <= size``, exactly; ``s_hi`` the next. Products are exact in float64:
    at most 11 + 9 significant bits."""
    for top in TOPS:
        x = probes(fmt, dtype, top)
        table = values(fmt)
        place = np.searchsorted(table * float(top), x.astype(np.float64), side="right") - 1
        after = np.minimum(place + 1, table.size - 1)
        with np.errstate(over="ignore"):  # The successor of 2^127 is sought before it is found to be beyond the format.
            lo, hi = SCALE_FORMATS[fmt].bracket(x, top)
        np.testing.assert_array_equal(lo, table[place])
        np.testing.assert_array_equal(hi, table[after])
        for ours, theirs in zip(SCALE_FORMATS[fmt].bracket(torch.from_numpy(x), top), (lo, hi), strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fmt", [f for f in SCALE_FORMATS if f != "e8m0"])
def test_nearest_is_the_search_in_the_list(fmt, dtype):
    """Ties to the even code; beyond the largest value, the largest."""
    x = probes(fmt, dtype, 1)
    table = values(fmt)
    place = np.clip(np.searchsorted(table, x.astype(np.float64), side="right") - 1, 0, table.size - 2)
    twice, total = 2 * x.astype(np.float64), table[place] + table[place + 1]
    up = (twice > total) | ((twice == total) & (place % 2 == 1))
    expected = np.where(up, table[place + 1], table[place])
    np.testing.assert_array_equal(SCALE_FORMATS[fmt].nearest(x), expected)
    np.testing.assert_array_equal(SCALE_FORMATS[fmt].nearest(torch.from_numpy(x)).numpy(), expected)


@pytest.mark.parametrize("fmt", ["e4m3", "ue5m3", "fp16"])
def test_nearest_agrees_with_other_libraries_on_a_million_values(fmt):
    """fp16: numpy's conversion; the others: gfloat. Zero mismatches."""
    x = np.concatenate([probes(fmt, "float64", 1), 2.0 ** np.random.default_rng(1).uniform(-20, 18, 1_000_000)])
    if fmt == "fp16":
        x = x[x < 65520]  # Beyond, numpy overflows where a scale saturates.
        expected = x.astype(np.float16).astype(np.float64)
    else:
        expected = oracles.nearest_elementwise(ORACLE_NAMES[fmt], x)
    np.testing.assert_array_equal(SCALE_FORMATS[fmt].nearest(x), expected)


@pytest.mark.parametrize("fmt", SCALE_FORMATS)
def test_successor_and_predecessor_walk_through_every_value(fmt):
    table = values(fmt)
    f = SCALE_FORMATS[fmt]
    np.testing.assert_array_equal(f._successor(table), np.append(table[1:], table[-1]))
    np.testing.assert_array_equal(f._predecessor(table), np.append(0, table[:-1]))


@pytest.mark.parametrize("fmt", SCALE_FORMATS)
def test_exact_arithmetic_gives_the_same_answers(fmt):
    x = probes(fmt, "float64", 6, count=50)[::97]
    exact = strategies.as_fractions(x)
    for ours, theirs in zip(SCALE_FORMATS[fmt].bracket(exact, 6), SCALE_FORMATS[fmt].bracket(x, 6), strict=True):
        assert [float(v) for v in ours] == theirs.tolist()
    if fmt != "e8m0":
        assert [float(v) for v in SCALE_FORMATS[fmt].nearest(exact)] == SCALE_FORMATS[fmt].nearest(x).tolist()


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("top", [6, 7, 127])
def test_bracket_in_a_storage_type_finds_its_scales_again(kind, top):
    """Every 16-bit magnitude: from the stored reach of either scale, the same scale comes back as the lower one."""
    fmt = SCALE_FORMATS["fp16"]
    stored = np.arange(1, 0x7C00 if kind == "float16" else 0x7F80, dtype=np.uint16).view(strategies.numpy_type(kind))
    size = stored.astype(np.float32)
    size = size[size <= min(top * 65504.0, strategies.LARGEST[kind])]
    with np.errstate(over="ignore"):
        for s in fmt.bracket(size, top, kind):
            reach = (s * np.float32(top)).astype(strategies.numpy_type(kind)).astype(np.float32)
            inside = np.isfinite(reach)
            assert np.array_equal(fmt.bracket(reach[inside], top, kind)[0], s[inside])
