"""The compiled pass against the plain path: the same bits for every format, type, layout of blocks and thread."""

from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer
from lotion_theory.formats.lattice import Lattice
from lotion_theory.fused import threads
from tests.fast_cases import FEW, SERVED, bits, check, compiled, needs_compiler, operations, plain
from tests.strategies import (
    FLOATS,
    FORMATS,
    LARGEST,
    SMALLEST,
    as_torch,
    cases,
    every_format,
    examples,
    limit,
    numpy_type,
    probes,
    shifted,
    uniforms,
)

# --- the same bits ---------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("text", SERVED)
def test_every_catalogued_format_is_served_and_has_the_bits_of_the_plain_path(text):
    q, rng = Quantizer.parse(text), np.random.default_rng(3)
    w = rng.standard_normal((40, 64)).astype(np.float32)
    w[3], w[5, :32], w[7] = 0, -0.0, rng.integers(-8, 9, 64) / 4
    if q.codebook.is_complex:
        w = (w + 1j * w[::-1]).astype(np.complex64)
    check(q, w, rng)


@needs_compiler
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", FEW[:-1])
def test_same_bits_in_every_float_type(text, dtype):
    w = probes(text, dtype, 60, 24, 1)
    check(Quantizer.parse(f"{text}/row"), w, np.random.default_rng(0), always=False)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", [text for text in every_format() if not text.startswith("fairy")])
def test_same_bits_for_every_codebook_under_every_scale(text, dtype):
    for seed, size in enumerate((1, 3, 16, 24, 33)):
        w = probes(text, dtype, 200, size, seed)
        check(Quantizer.parse(f"{text}/row"), w, np.random.default_rng(seed), always=False)


def crowd(q, dtype, blocks, size, seed):
    """Many blocks, a twelfth of them of each kind: random ones and those where quantizers go wrong."""
    rng, kind = np.random.default_rng(seed), numpy_type(dtype)
    top, tiny, least = LARGEST[dtype], float(ml_dtypes.finfo(kind).tiny), SMALLEST[dtype]
    part = (-(-blocks // 12), size)
    x, scale = rng.standard_normal(part), np.exp(rng.standard_normal((part[0], 1)))
    levels = q.codebook.values / float(q.codebook.high)
    beside = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2])
    lone = np.zeros(part)
    lone[np.arange(part[0]), rng.integers(0, size, part[0])] = x[:, 0]
    kinds = [
        x, x * np.exp2(rng.uniform(-20, 20, part)), np.round(x * 4) / 4, rng.integers(-14, 15, part) / 2, lone,
        0 * x, x * least * rng.integers(1, 64, (part[0], 1)), x * tiny * 4, x / abs(x).max(axis=1, keepdims=True) * top,
        np.exp2(np.round(rng.uniform(-8, 8, part))) * rng.choice([-1, 1], part),
        rng.choice(beside, part) * scale, abs(x) + rng.choice([0, 1000], (part[0], 1)),
    ]  # fmt: skip
    kinds[10][:, 0] = scale[:, 0]
    w = np.clip(np.concatenate(kinds), -top, top).astype(kind)[:blocks]
    return shifted(w, rng.integers(-1, 2, w.shape)) if dtype in ("float32", "float64") else w


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", [t for t in SERVED if not t.startswith("fairy")])
def test_same_bits_on_a_million_blocks(text, dtype, monkeypatch):
    torch = pytest.importorskip("torch")
    q = Quantizer.parse(text)
    size = q.partition.size or 32
    q = q.with_partition(f"block={size}")
    for seed in range(8):
        w = crowd(q, dtype, 125_000, size, seed)
        if q.scale.is_drawn:
            w = w[abs(w.astype(np.float64)).max(axis=1) <= limit(f"{q.codebook.name}/{q.scale.name}", dtype)]
        for name, call in operations(q, w, np.random.default_rng(seed), ("cast", "round", "variance")).items():
            with np.errstate(all="ignore"), plain():
                expected = bits(call())
            for count in (1, 2):
                monkeypatch.setattr(threads, "count", lambda count=count: count)
                with np.errstate(all="ignore"), compiled():
                    assert bits(call()) == expected, (name, count)
        t = as_torch(w)
        with np.errstate(all="ignore"), compiled():
            assert bits((q.cast(t), q.variance(t))) == bits((q.cast(w), q.variance(w)))
        with np.errstate(all="ignore"), plain():
            assert torch.equal(q.cast(t[:4096]), as_torch(q.cast(w[:4096])))


@needs_compiler
@examples(40)
@given(case=cases(FORMATS, ("float32", "float64"), max_rows=4, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_same_bits_on_adversarial_blocks(case, seed):
    q, w = case
    check(q, w, np.random.default_rng(seed), names=("cast", "round"), always=False)


@needs_compiler
@pytest.mark.parametrize("text", ["int4/absmax", "e2m1/e4m3-nearest"])
def test_same_bits_for_every_block_size(text):
    # Around the lengths of vectors, and those that have kernels of their own.
    for seed, size in enumerate((1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 128, 257)):
        w = probes(text, "float32", 40, size, seed)
        for partition in ("row", f"block={size}"):
            check(Quantizer.parse(f"{text}/{partition}"), w, np.random.default_rng(seed), ("cast", "round"), False)


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33])
def test_same_bits_for_every_number_of_blocks(rows):
    # Blocks go through in groups of as many as a vector has lanes.
    rng = np.random.default_rng(rows)
    for text in ("q4_0/block=32", "e2m1/e4m3-sr/row", "uint4/zp-int/row"):
        q = Quantizer.parse(text.replace("q4_0/block=32", "q4_0"))
        check(q, rng.standard_normal((rows, 32)).astype(np.float32), rng)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("book", ["int2", "int4", "int8", "e4m3", "dynamic8", "nf4"])
def test_same_bits_beside_every_midpoint_and_level(book, dtype):
    q = Quantizer.parse(f"{book}/absmax/row")
    rng = np.random.default_rng(5)
    tops = np.concatenate([np.exp(rng.standard_normal(30)), [1, 7, 127, 1 / 3, 2 - 2**-23, 1 + 2**-22]]).astype(dtype)
    units = q.codebook.values / float(q.codebook.high)
    points = np.concatenate([units, (units[1:] + units[:-1]) / 2])
    w = np.clip((tops[:, None].astype(np.float64) * points).astype(dtype), -tops[:, None], tops[:, None])
    moved = [w]
    for step in (-1, 1):
        near = w
        for _ in range(4):
            near = np.clip(shifted(near, step), -tops[:, None], tops[:, None])
            moved.append(near)
    check(q, np.concatenate([tops[:, None], *moved], axis=1), rng, ("cast", "bracket"))


@needs_compiler
@pytest.mark.parametrize("text", [t for t in FEW if "fairy" not in t])
def test_tensors_have_the_bits_of_arrays(text):
    torch = pytest.importorskip("torch")
    q, rng = Quantizer.parse(f"{text}/row"), np.random.default_rng(8)
    for dtype in ("float32", "bfloat16"):
        w = rng.standard_normal((20, 48)).astype(numpy_type(dtype))
        u, v = uniforms(rng, w.shape, "float32"), uniforms(rng, (20,), "float32")
        drawn = (v,) if q.scale.is_drawn else ()
        with compiled() as answers:
            here = bits((q.cast(w), q.round(w, u, *drawn), q.variance(w)))
            t = as_torch(w)
            there = (q.cast(t), q.round(t, *map(torch.from_numpy, (u, *drawn))), q.variance(t))
            assert all(x.dtype == t.dtype and x.shape == t.shape for x in there)
            assert bits(there) == here and all(a is not None for a in answers)


@needs_compiler
@pytest.mark.parametrize("text", ["int4/absmax/block=32", "nvfp4/sr", "nvfp4/e4m3-up-2level", "int4full/gauge/tensor"])
def test_same_bits_whatever_the_number_of_threads(text, monkeypatch):
    from lotion_theory.fused import call

    q, rng = Quantizer.parse(text), np.random.default_rng(9)
    w = rng.standard_normal((96, 64), dtype=np.float32)
    calls = operations(q, w, rng)
    monkeypatch.setattr(call, "_PART", 64)
    found = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "count", lambda count=count: count)
        with compiled() as answers:
            found.append([bits(call()) for call in calls.values()])
        assert all(a is not None for a in answers)
    assert found[0] == found[1] == found[2]


@needs_compiler
def test_a_tensor_in_one_block_is_cut_into_pieces(monkeypatch):
    from lotion_theory.fused import call

    rng = np.random.default_rng(10)
    monkeypatch.setattr(call, "_PART", 50)
    monkeypatch.setattr(threads, "count", lambda: 2)
    for text in ("int4/absmax/tensor", "uint4/zp-real/tensor", "nf4/e4m3-sr/tensor", "e2m1/e8m0-sr/row"):
        # 3 rows of 333: pieces of unequal length.
        check(Quantizer.parse(text), rng.standard_normal((3, 333)).astype(np.float32), rng)


# --- the plain path --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [-3, -1, 2])
def test_a_guess_that_is_off_is_corrected(off):
    """As it may be where rounding to the storage type moves levels past it."""
    guess = Lattice._beside
    for text in ("int4/absmax/row", "uint8/zp-real/row", "dynamic8/absmax/row", "e2m1/e8m0-floor/row"):
        q, w = Quantizer.parse(text), probes(text, "float32", 60, 24, 6)
        with plain():
            expected = bits(q.bracket(w))
            wrong = lambda self, x: np.clip(guess(self, x) + off, 0, len(self.units) - 1)  # noqa: E731
            with patch.object(Lattice, "_beside", wrong):
                assert bits(q.bracket(w)) == expected


def test_large_arrays_go_part_by_part():
    from lotion_theory.formats import law, quantizer

    rng = np.random.default_rng(13)
    for text in ("int4/absmax/block=8", "int4/absmax/tensor", "nvfp4/sr", "nvfp4/e4m3-up-2level", "q4_0"):
        q, w = Quantizer.parse(text), rng.standard_normal((33, 64))
        calls = operations(q, w, rng).values()
        found = []
        for size in (1 << 20, 100):
            with plain(), patch.object(law, "PIECE", size), patch.object(quantizer, "PIECE", size):
                found.append([bits(call()) for call in calls])
        assert found[0] == found[1]
