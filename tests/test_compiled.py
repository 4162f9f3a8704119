"""The compiled loops against the plain path: the same bits, the same errors, and no trace of which one ran."""

import sys
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer
from lotion_theory.formats import compiled
from tests.strategies import cases, probes, shifted, uniforms

BOOKS = (
    *(f"int{b}" for b in range(2, 9)), "ternary", "binary", "e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "nf4", "pot2",
    "pot4",
)  # fmt: skip
INTEGERS = BOOKS[:8]
FORMATS = (*(f"{book}/absmax" for book in BOOKS), "int4/gauge", "nf4/gauge")
DTYPES = ("float32", "float64")

needs_numba = pytest.mark.skipif(compiled._loops() is None, reason="numba is not installed")
# The loops also run as plain Python, so that what they compute is tested where numba is missing.
RUNS = (pytest.param(True, marks=needs_numba, id="compiled"), pytest.param(False, id="interpreted"))


def plain(q, w, u=None):
    with patch.object(compiled, "quantize", lambda *_: None):
        return q.cast(w) if u is None else q.round(w, u)


def fast(q, w, u=None, out=None, *, with_numba=True):
    """From the loops, however small the array; None where they decline."""
    loops = compiled._loops() if with_numba else (compiled._cast_rows, compiled._round_rows)
    with patch.multiple(compiled, _SMALLEST=1, _in_demand=lambda _: loops):
        return compiled.quantize(q, w, u, out)


def agree(a, b):
    """Equal bits, hence equal signs of zeros."""
    integer = f"u{a.itemsize}"
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a.view(integer), b.view(integer))


def check(q, w, u, with_numba=True):
    kept = w.copy(), u.copy()
    assert agree(fast(q, w, with_numba=with_numba), plain(q, w))
    assert agree(fast(q, w, u, with_numba=with_numba), plain(q, w, u))
    assert agree(w, kept[0]) and agree(u, kept[1])


def borderline(q, w, rng):
    """Uniforms of which about half are the probability of going up, or a neighbour of it."""
    (branch,) = q.branches(w)
    cell = branch.cell
    part = np.where(np.maximum(np.abs(cell.lo), np.abs(cell.hi)) > 1, 0.25, 1).astype(w.dtype)
    gap = cell.hi * part - cell.lo * part
    share = (cell.target * part - cell.lo * part) / np.where(gap == 0, np.ones_like(gap), gap)
    share = shifted(share.reshape(w.shape), rng.integers(-1, 2, w.shape))
    u = uniforms(rng, w.shape, w.dtype.name)
    return np.where((rng.random(w.shape) < 0.5) & (share >= 0) & (share < 1), share, u)


@pytest.mark.parametrize("with_numba", RUNS)
@given(case=cases(FORMATS, DTYPES, max_rows=4, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_same_bits_on_adversarial_blocks(with_numba, case, seed):
    q, w = case
    rng = np.random.default_rng(seed)
    check(q, w, np.abs(borderline(q, w, rng)), with_numba)


@needs_numba
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", FORMATS)
def test_same_bits_for_every_block_size(text, dtype):
    # Sizes around the vector widths (4 to 64 values) and around the 128 weights that are decided together.
    for seed, size in enumerate((1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 257)):
        w = probes(text, dtype, 40, size, seed)
        u = np.abs(borderline(Quantizer.parse(f"{text}/row"), w, np.random.default_rng(seed)))
        for partition in ("row", "tensor"):
            check(Quantizer.parse(f"{text}/{partition}"), w, u)
        check(Quantizer.parse(f"{text}/block={size}"), w.reshape(2, 20 * size), u.reshape(2, 20 * size))


@needs_numba
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("book", INTEGERS)
def test_same_bits_beside_every_midpoint_and_level(book, dtype):
    # The quotient is trusted up to 3 eps high steps from a midpoint: about 3 ulp of the largest weight. One block per
    # largest weight, with every level and midpoint moved by up to 12 ulp.
    q = Quantizer.parse(f"{book}/absmax/row")
    rng = np.random.default_rng(5)
    tops = np.concatenate([np.exp(rng.standard_normal(60)), [1, 7, 127, 1 / 3, 2 - 2**-23, 1 + 2**-22]]).astype(dtype)
    units = q.codebook.values / float(q.codebook.high)
    points = np.concatenate([units, (units[1:] + units[:-1]) / 2])
    w = (tops[:, None].astype(np.float64) * points).astype(dtype)
    moved = [w]
    for step in (-1, 1):
        near = w
        for _ in range(12):
            near = np.clip(shifted(near, step), -tops[:, None], tops[:, None])
            moved.append(near)
    w = np.concatenate([tops[:, None], *moved], axis=1)
    check(q, w, uniforms(rng, w.shape, dtype))


@needs_numba
def test_same_bits_on_large_random_arrays():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((512, 384), dtype=np.float32)
    u = rng.random(w.shape, dtype=np.float32)
    for text in ("int4/absmax/block=32", "int8/absmax/row", "int8", "ternary", "nf4/absmax/block=64"):
        check(Quantizer.parse(text), w, u)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("book", BOOKS)
def test_integers_take_the_quotient_and_its_levels_are_the_table(book, dtype):
    codebook = Quantizer.parse(book).codebook
    plan = compiled.plan(codebook, dtype)
    assert (plan.high > 0) == (book in INTEGERS)
    if plan.high:
        k = codebook.values.astype(dtype)
        # The table holds correctly rounded quotients, which is also what IEEE division gives.
        assert agree(k * plan.step_high + k * plan.step_low + plan.zero, k / plan.high + plan.zero)
        assert np.array_equal(k / plan.high, plan.units)
        assert np.array_equal((k.astype(np.float64) * float(plan.step_high)).astype(dtype), k * plan.step_high)


# --- refusals --------------------------------------------------------------------------------------------------------


def outcome(call):
    """The bits of the result, or the error with its message."""
    try:
        return call().tobytes()
    except (TypeError, ValueError) as error:
        return type(error), str(error)


BAD_WEIGHTS = {"nan": np.nan, "negative nan": -np.nan, "inf": np.inf, "-inf": -np.inf}
BAD_UNIFORMS = {"1": 1.0, "-1": -1.0, "nan": np.nan, "inf": np.inf, "tiny below 0": -1e-45, "-0 is 0": -0.0}


@needs_numba
@pytest.mark.parametrize("text", ["int4/absmax/block=32", "int4", "nf4/absmax/row"])
@pytest.mark.parametrize("place", [0, 31, 1000, 2047])
def test_errors_are_those_of_the_plain_path(text, place):
    q = Quantizer.parse(text)
    rng = np.random.default_rng(1)
    w, u = rng.standard_normal((32, 64), dtype=np.float32), rng.random((32, 64), dtype=np.float32)
    pairs = []
    for value in BAD_WEIGHTS.values():
        bad = w.copy()
        bad.flat[place] = value
        pairs.append((bad, u))
    for value in BAD_UNIFORMS.values():
        bad = u.copy()
        bad.flat[place] = value
        pairs.append((w, bad))
    pairs += [(w, u[:, :-1]), (w, u.ravel()), (w, u > 0.5), (w[:, :33].copy(), u[:, :33].copy()), (w[:0], u[:0])]
    with patch.multiple(compiled, _SMALLEST=1, _COMPILE_AFTER=0):
        for a, b in pairs:
            assert outcome(lambda a=a, b=b: q.round(a, b)) == outcome(lambda a=a, b=b: plain(q, a, b))
            assert outcome(lambda a=a: q.cast(a)) == outcome(lambda a=a: plain(q, a))


def test_declines_what_it_does_not_cover():
    w = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
    u = np.full_like(w, 0.5)
    q = Quantizer.parse("int4/absmax/block=32")

    def declines(q, *arrays):
        return fast(q, *arrays, with_numba=False) is None

    assert not declines(q, w, u)
    for text in ("int4full/absmax/row", "int4/absmax7.5/row", "uint4", "dynamic8", "mxfp4", "nvfp4", "bitnet", "q8_0"):
        assert declines(Quantizer.parse(text), w)
    assert declines(q.freeze(w), w)
    swapped = w.astype(w.dtype.newbyteorder())
    for odd in (w.T, w[::2], w[:, ::-1], w.astype(np.float16), swapped, np.ma.array(w), w.tolist(), w[:, :40].copy()):
        assert declines(q, odd)
    for odd in (u.T, u.astype(np.float64), u.ravel(), u.tolist()):
        assert declines(q, w, odd)
    buffer = np.empty_like(w)
    buffer.flags.writeable = False
    for odd in (buffer, np.empty_like(w).T, np.empty(w.shape)):
        assert declines(q, w, None, odd)


def test_without_numba_nothing_is_compiled(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert compiled._loops.__wrapped__() is None
    w = np.linspace(-1, 1, 4096, dtype=np.float32)
    q = Quantizer.parse("int4/absmax/block=32")
    with patch.multiple(compiled, _COMPILE_AFTER=0, _loops=compiled._loops.__wrapped__):
        assert compiled.quantize(q, w) is None
        assert agree(q.cast(w), plain(q, w))


@needs_numba
def test_compiling_waits_for_demand():
    q = Quantizer.parse("int4/absmax/block=32")
    w = np.linspace(-1, 1, 4096, dtype=np.float32)
    with patch.multiple(compiled, _demand=0, _COMPILE_AFTER=2.5 * compiled._CALL_COST):
        served = [compiled.quantize(q, w) is not None for _ in range(4)]
        assert served == [False, False, True, True]
        assert compiled.quantize(q, w[: compiled._SMALLEST - 32]) is None


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_numba", RUNS)
def test_out_is_filled_and_returned(with_numba):
    rng = np.random.default_rng(2)
    w, u = rng.standard_normal((4, 64), dtype=np.float32), rng.random((4, 64), dtype=np.float32)
    w.flags.writeable = u.flags.writeable = False
    q = Quantizer.parse("int4/absmax/block=32")
    out = np.full_like(w, np.nan)
    for uniform in (None, u):
        out[...] = np.nan
        assert fast(q, w, uniform, out, with_numba=with_numba) is out
        assert agree(out, plain(q, w, uniform))
        out[...] = np.nan
        with patch.object(compiled, "quantize", lambda *_: None):
            assert (q.cast(w, out=out) if uniform is None else q.round(w, uniform, out=out)) is out
        assert agree(out, plain(q, w, uniform))


def test_out_of_a_tensor_or_of_exact_weights():
    torch = pytest.importorskip("torch")
    w = torch.linspace(-1, 1, 64)
    q = Quantizer.parse("int4/absmax/block=32")
    out = torch.full_like(w, torch.nan)
    assert q.round(w, torch.full_like(w, 0.3), out=out) is out
    assert torch.equal(out, q.round(w, torch.full_like(w, 0.3)))
    with pytest.raises(ValueError, match="overlaps w"):
        q.cast(w, out=w)
    with pytest.raises(ValueError, match="one library"):
        q.cast(w, out=np.empty(64, np.float32))


@pytest.mark.parametrize("text", ["int4/absmax/row", "mxfp4"])
def test_unfit_out_is_refused(text):
    q = Quantizer.parse(text)
    memory = np.ones((3, 2, 32), np.float32) / 2
    w, u = memory[0], memory[1]
    for out, message in (
        (w, "overlaps w"), (memory[0, ::-1], "overlaps w"), (u, "overlaps uniforms"), (memory[2, 0], "shape"),
        (np.empty(w.shape), "type"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            q.round(w, u, out=out)
    with pytest.raises(TypeError, match="out must be an array"):
        q.cast(w, out=w.tolist())
    assert np.all(memory == 0.5)
