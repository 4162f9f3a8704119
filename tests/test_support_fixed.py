"""Every support point of randomized rounding, and every cast point, stays where it is: its own scale leads back to it.

The 16-bit types are small enough to try every magnitude of the leading weight, which settles the matter for scales that
depend on it alone. Elsewhere blocks are random or directed; both have found failures the other missed.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer
from lotion_theory.formats import scaling
from tests import properties, strategies

FIXED = strategies.promising("fixed", tuple(f for f in strategies.every_format() if not f.startswith("fairy")))
# One scale of each kind with one codebook of each kind; the other combinations are marked slow.
# Stored scales promise it for levels of one magnitude alone.
ONE_MAGNITUDE = (
    "ternary/fp16-nearest", "binary/fp16-up", "binary/e4m3-nearest", "ternary/e4m3-up", "ternary/ue5m3-nearest",
    "binary/ue5m3-up",
)  # fmt: skip
DEFAULT = [f for f in FIXED if f in strategies.FORMATS or f in ONE_MAGNITUDE]
LEADER_ONLY = [f for f in FIXED if f.split("/")[1] not in ("zp-real", "l2l1")]
BLOCKS = 2000


def rounded_blocks(text, dtype, rows, size, seed, library="numpy"):
    """Directed and normal blocks in equal number."""
    rng = np.random.default_rng(seed)
    directed = strategies.probes(text, dtype, rows // 2, size, seed)
    plain = rng.standard_normal((rows - rows // 2, size)) * np.exp(2 * rng.standard_normal((rows - rows // 2, 1)))
    if text.endswith("signed-absmax"):
        # The scale, down to a 128th of the leader, is rounded among subnormals; the promise is of exact arithmetic.
        directed = directed[np.abs(directed.astype(np.float64)).max(axis=1) >= 2.0**-119]
    plain = np.clip(plain, -strategies.limit(text, dtype), strategies.limit(text, dtype)).astype(directed.dtype)
    w = np.concatenate([directed, plain])
    return strategies.as_torch(w) if library == "torch" else w


@pytest.mark.parametrize(("dtype", "library"), [("float32", "numpy"), ("bfloat16", "torch")])
@pytest.mark.parametrize("text", DEFAULT)
def test_thousands_of_blocks(text, dtype, library):
    """2000 blocks each of 16 and of 32 weights, rounded once: not one weight may move again. More in the slow run."""
    q = Quantizer.parse(text + "/row")
    for seed, size in enumerate((16, 32)):
        w = rounded_blocks(text, dtype, BLOCKS, size, 100 + seed, library)
        properties.support_is_fixed(q, w, seed=seed)


@strategies.examples(100)
@given(strategies.cases(tuple(DEFAULT)), st.integers(0, 2**20))
def test_directed_blocks_of_every_type(case, seed):
    q, w = case
    if q.scale.name != "signed-absmax" or np.abs(w.astype(np.float64)).max() > 1e-30:
        properties.support_is_fixed(q, w, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "library"), [("float32", "numpy"), ("bfloat16", "torch")])
@pytest.mark.parametrize("text", FIXED)
def test_a_million_blocks(text, dtype, library):
    q = Quantizer.parse(text + "/row")
    for seed in range(50):
        w = rounded_blocks(text, dtype, 20_000, 16 + 16 * (seed % 4 == 0), 1000 + seed, library)
        properties.support_is_fixed(q, w, seed=seed)


def every_magnitude(text, dtype):
    """All positive finite numbers of a 16-bit type that the format accepts."""
    codes = np.arange(1, 0x7C00 if dtype == "float16" else 0x7F80, dtype=np.uint16)
    values = codes.view(strategies.numpy_type(dtype))
    return values[values.astype(np.float64) <= strategies.limit(text, dtype)]


def check_every_magnitude(text, dtype, step=1):
    q = Quantizer.parse(text + "/row")
    lead = every_magnitude(text, dtype)
    kept = np.unique(
        np.concatenate(
            [
                np.arange(0, lead.size, step),
                np.arange(min(300, lead.size)),
                np.arange(max(0, lead.size - 300), lead.size),
            ]
        )
    )
    for sign in (1, -1):
        properties.reachable_points_are_fixed(q, (lead[kept].astype(np.float32) * sign).astype(lead.dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("text", [f for f in DEFAULT if f in LEADER_ONLY])
def test_every_eleventh_magnitude_of_a_16_bit_leader(text, dtype):
    """Every eleventh magnitude, and the 300 at either end; all of them in the slow run."""
    count = len(Quantizer.parse(text).codebook.levels)
    check_every_magnitude(text, dtype, step=11 if count <= 32 else 101)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("text", LEADER_ONLY)
def test_every_magnitude_of_a_16_bit_leader(text, dtype):
    check_every_magnitude(text, dtype)


@pytest.mark.parametrize("text", [f for f in strategies.FORMATS if f not in FIXED])
def test_formats_that_do_not_promise_it_are_caught(text):
    """The check bites: each format without the promise has a block that moves again."""
    q = Quantizer.parse(text + "/row")
    if not text.endswith("2level"):
        w = rounded_blocks(text, "float32", 4000, 16, 7)
    else:
        w = np.random.default_rng(7).standard_normal((4000, 16)).astype(np.float32)
    with pytest.raises(AssertionError, match="move again"):
        properties.support_is_fixed(q, w, seed=8)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("text", ["fairy/l1", "fairy/modulus"])
def test_complex_support_is_fixed(text, dtype):
    rng = np.random.default_rng(9)
    w = (rng.standard_normal((2000, 8)) + 1j * rng.standard_normal((2000, 8))).astype(dtype)
    w[::7, :3] = [0, 1, -1j]
    q = Quantizer.parse(text + "/row")
    for point in (q.cast(w), q.round(w, rng.random((2000, 8, 2)))):
        assert not q.variance(point).any()
        assert np.array_equal(q.mean(point), point) and np.array_equal(q.cast(point), point)


def test_every_rule_is_covered():
    names = {f.split("/")[1] for f in DEFAULT}
    promised = {f.split("/")[1] for f in FIXED}
    assert promised - names <= {"absmax7.5", "absmax8"}, "only where the divisor happens to be the top level"
    assert set(strategies.SCALES) - {"l1", "modulus"} == {f.split("/")[1] for f in strategies.FORMATS}
    assert set(scaling.SCALE_FORMATS) == {"e8m0", "e4m3", "ue5m3", "fp16"}
