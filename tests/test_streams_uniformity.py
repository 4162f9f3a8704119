"""Random streams: uniformity of single numbers and of pairs, and independence of the numpy generators."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lotion_theory.streams import Stream

# Each statistical check rejects a sound generator with this probability; seeds are fixed, so a verdict never changes.
FALSE_ALARM = 1e-6


def chi_square_p(cells, count):
    """p-value of the uniform law on ``count`` cells; every cell expects at least 256, so the chi-square law holds."""
    return stats.chisquare(np.bincount(cells, minlength=count)).pvalue


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_single_numbers_are_uniform(dtype):
    u = Stream(11, "uniformity").uniforms(1 << 17, dtype=dtype)
    bits = 24 if dtype == "float32" else 53
    integers = (u * 2.0**bits).astype(np.int64)
    assert chi_square_p(integers >> (bits - 8), 256) > FALSE_ALARM  # leading bits
    assert chi_square_p(integers & 255, 256) > FALSE_ALARM  # trailing bits
    # Every bit is a fair coin: |heads - n/2| has standard deviation sqrt(n)/2; union over the bits.
    heads = ((integers[:, None] >> np.arange(bits)) & 1).sum(0)
    z = np.abs(heads - u.size / 2) / (math.sqrt(u.size) / 2)
    assert z.max() < stats.norm.isf(FALSE_ALARM / (2 * bits))
    assert stats.kstest(u.astype(np.float64), "uniform").pvalue > FALSE_ALARM


N_PAIRS = 1 << 16
BASE = Stream(12, "pairs")
PAIRS = {
    "neighbours": lambda: BASE.uniforms((N_PAIRS, 2)).T,
    "next counter": lambda: BASE.uniforms((N_PAIRS // 4, 2, 4)).swapaxes(0, 1),
    "next step": lambda: (BASE.uniforms(N_PAIRS, 0), BASE.uniforms(N_PAIRS, 1)),
    "far step": lambda: (BASE.uniforms(N_PAIRS, 0), BASE.uniforms(N_PAIRS, 2**32)),
    "far element": lambda: (BASE.uniforms(N_PAIRS), BASE.uniforms(N_PAIRS, start=2**34)),
    "seed": lambda: (BASE.uniforms(N_PAIRS), Stream(13, "pairs").uniforms(N_PAIRS)),
    "purpose": lambda: (BASE.uniforms(N_PAIRS), BASE.spawn("0").uniforms(N_PAIRS)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_are_uniform_on_the_square(pair):
    u, v = (np.ravel(x) for x in PAIRS[pair]())
    cells = (u * 16).astype(np.int64) * 16 + (v * 16).astype(np.int64)
    assert chi_square_p(cells, 256) > FALSE_ALARM


def test_the_uniformity_tests_reject_a_slightly_biased_stream():
    # For u**1.1 the 256 cells have non-centrality 1309 (alarm at 377, standard deviation 76), and the greatest gap of
    # the distribution functions is 12.7 / sqrt(n) (alarm at 2.7): a miss has probability below 1e-30.
    u = Stream(11, "uniformity").uniforms(1 << 17).astype(np.float64) ** 1.1
    assert chi_square_p((u * 256).astype(np.int64), 256) < FALSE_ALARM
    assert stats.kstest(u, "uniform").pvalue < FALSE_ALARM


def test_numpy_generator_is_reproducible_per_step_and_apart_from_the_uniforms():
    stream = Stream(6, "problem")
    n = 1 << 16
    x = stream.numpy_generator(3).standard_normal(n)
    assert np.array_equal(x, stream.numpy_generator(3).standard_normal(n))
    others = [stream.numpy_generator(4), Stream(7, "problem").numpy_generator(3), Stream(6, "p").numpy_generator(3)]
    for other in others:
        # The sum of n products of independent standard normals has variance n.
        assert abs(x @ other.standard_normal(n)) < stats.norm.isf(FALSE_ALARM / 2) * math.sqrt(n)
    assert stats.kstest(x, "norm").pvalue > FALSE_ALARM
    # Corresponding uniforms of the two sources: the centred products have variance 1/144.
    products = (stream.numpy_generator(3).random(n) - 0.5) * (stream.uniforms(n, 3, dtype="float64") - 0.5)
    assert abs(products.sum()) < stats.norm.isf(FALSE_ALARM / 2) * math.sqrt(n / 144)


def test_steps_of_the_numpy_generator_do_not_overlap():
    # 64-bit outputs: two sets of 256 share a value by chance with probability 2**-48; shifted streams would share most.
    draws = [Stream(6, "problem").numpy_generator(step).bit_generator.random_raw(256) for step in (0, 1, 2**64 - 1)]
    assert len(np.unique(np.concatenate(draws))) == 3 * 256
