"""The compiled pass against the plain path: the same bits, the same errors, and no trace of which one ran."""

import math
import warnings
import zlib
from contextlib import contextmanager, suppress
from dataclasses import replace
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer
from lotion_theory.formats import fast, passes, scaling
from lotion_theory.formats.catalog import FORMATS as CATALOG
from lotion_theory.formats.lattice import Lattice, SpanLattice
from lotion_theory.fused import machine, threads
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

needs_compiler = pytest.mark.skipif(machine.features() is None, reason="llvmlite, which comes with numba, is absent")
SERVED = [text for text in CATALOG if text != "int4/frozen"]
FEW = ("int4/absmax", "nf4/absmax", "dynamic8/gauge", "e2m1/e4m3-nearest", "e2m1/e8m0-sr", "uint4/zp-real", "fairy/l1")
OPERATIONS = ("cast", "round", "mean", "variance", "bracket")


@contextmanager
def plain():
    with patch.object(fast, "compute", lambda *_, **__: None):
        yield


@contextmanager
def compiled():
    """At once, however few weights; yields the answers, None being one that was left to the plain path."""
    answers, compute = [], fast.compute

    def told(*arguments, **options):
        answers.append(compute(*arguments, **options))
        return answers[-1]

    with patch.multiple(fast, _COMPILE_AFTER=0, compute=told):
        yield answers


def bits(results):
    """The bits of arrays or tensors, and so the signs of zeros."""
    results = results if isinstance(results, tuple) else (results,)
    out = []
    for x in results:
        if not isinstance(x, np.ndarray):
            import torch

            x = x.contiguous().view(torch.uint8).numpy() if x.ndim else x.reshape(1).view(torch.uint8).numpy()
        out.append(x.tobytes())
    return out


def operations(q, w, rng, names=OPERATIONS):
    """Calls of ``q`` on ``w`` by name."""
    real = {"float64": "float64", "complex128": "float64"}.get(w.dtype.name, "float32")
    shape = (*w.shape, 2) if q.codebook.is_complex else w.shape
    u = uniforms(rng, shape, real)
    v = (uniforms(rng, (len(q.blocks(w)[0]),), real),) if q.scale.is_drawn else ()
    calls = {
        "cast": lambda: q.cast(w), "round": lambda: q.round(w, u, *v), "mean": lambda: q.mean(w),
        "variance": lambda: q.variance(w), "bracket": lambda: q.bracket(w),
    }  # fmt: skip
    if q.codebook.is_complex or q.scale.is_drawn:
        del calls["bracket"]
    return {name: call for name, call in calls.items() if name in names}


def check(q, w, rng, names=OPERATIONS, always=True):
    """Equal bits for all operations; ``always``: and none is left to the plain path."""
    kept = w.tobytes()
    for name, call in operations(q, w, rng, names).items():
        with np.errstate(all="ignore"), plain():
            expected = outcome(call)
        with np.errstate(all="ignore"), compiled() as answers:
            assert outcome(call) == expected, (str(q), name)
        assert not always or isinstance(expected, tuple) or all(a is not None for a in answers), (str(q), name)
    assert w.tobytes() == kept


def outcome(call):
    """The bits of the result, or the error with its message."""
    try:
        return bits(call())
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def ordinary(text, dtype, rows, size):
    """Blocks of every kind but those that overflow: they may be left to the plain path."""
    w = probes(text, dtype, rows, size, zlib.crc32(f"{text}{dtype}".encode()))
    top = np.abs(w.astype(np.float64)).max(axis=1, keepdims=True)
    edge = float(np.abs(w.astype(np.float64)).max()) if top.size else 0
    return w[(top < min(edge, 1e4) / 8).ravel()]


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


# --- frozen lattices, own rules --------------------------------------------------------------------------------------


@needs_compiler
def test_frozen_lattices_come_with_each_call():
    rng = np.random.default_rng(11)
    w = rng.standard_normal((6, 32)).astype(np.float32)
    for text in ("int4/absmax/row", "uint4/zp-real/row", "nf4/absmax/tensor", "int4full/signed-absmax/block=8"):
        q = Quantizer.parse(text)
        for frozen in (q.freeze(w), q.freeze(2 * w)):
            check(frozen, w, rng)
    for scale in (0.25, rng.random((6, 1), dtype=np.float32) + np.float32(0.1)):
        check(Quantizer.parse("int4/frozen/row").with_scale(scale), w, rng)


@needs_compiler
def test_a_rule_with_a_condition_of_its_own_is_held_to_it():
    """A condition is compiled as it turns out for ordinary weights; others go to the plain path."""
    q = Quantizer.parse("e2m1/e4m3-sr/row")
    w = np.ones((4, 16), np.float32)
    w[2] = 1e5
    u, v = np.zeros((4, 16), np.float32), np.zeros(4, np.float32)
    with compiled() as answers:
        q.round(w[:2], u[:2], v[:2])
        with pytest.raises(ValueError, match="exceeds 2688, the reach of e4m3 scales"):
            q.round(w, u, v)
    assert [a is None for a in answers] == [False, True]


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


# --- refusals --------------------------------------------------------------------------------------------------------

BAD_WEIGHTS = {"nan": np.nan, "negative nan": -np.nan, "inf": np.inf, "-inf": -np.inf}
BAD_UNIFORMS = {"1": 1.0, "-1": -1.0, "nan": np.nan, "inf": np.inf, "tiny below 0": -1e-45, "-0 is 0": -0.0}


@pytest.mark.parametrize("text", ["int4/absmax/block=32", "nf4/absmax/row", "uint4/zp-int/tensor"])
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
    for a, b in pairs:
        for call in (lambda a=a, b=b: q.round(a, b), lambda a=a: q.cast(a)):
            with plain():
                expected = outcome(call)
            with compiled():
                assert outcome(call) == expected


@needs_compiler
@pytest.mark.parametrize("text", SERVED)
def test_weights_that_are_no_numbers_are_refused_in_every_format(text):
    q = Quantizer.parse(text)
    w = np.ones((4, 64), np.complex64 if q.codebook.is_complex else np.float32)
    for value in (np.inf, -np.inf, np.nan):
        bad = w.copy()
        bad[1, 3] = value
        with compiled(), np.errstate(all="ignore"), pytest.raises(ValueError, match="NaN or infinite"):
            q.cast(bad)


def rule_with(scale):
    """Levels ``scale(x) * code``."""
    return replace(
        scaling.scale_rule("absmax"), name="own", spans_absmax=False,
        draws=lambda x, book, kind: [scaling.Draw(SpanLattice(book, kind, scale(x)))],
    )  # fmt: skip


OWN = {
    "a scale of its own": lambda x: scaling.absmax(x) * 1.25,
    "by the length": lambda x: scaling.absmax(x) * (1.5 if x.shape[1] == 24 else 1.0),
    "by the number": lambda x: scaling.absmax(x) * (1.5 if x.shape[0] == 6 else 1.0),
    "any compared": lambda x: scaling.absmax(x) * (2.0 if (x > 0.2).any() == True else 1.0),  # noqa: E712
    "a number of numpy": lambda x: scaling.absmax(x) * np.float64(1.1),
    "another one": lambda x: scaling.absmax(x) * np.sqrt(1.3),
    "a quotient rounded down": lambda x: scaling.absmax(x) // 0.1 * 0.1 + 0.1,
    "a function of numpy": lambda x: scaling.absmax(np.roll(x, 1) * np.size(x)),
    "by the class": lambda x: scaling.absmax(x) * (1.5 if isinstance(x, np.ndarray) else 1.0),
    "by a method": lambda x: scaling.absmax(x) * (1.5 if hasattr(x, "mean") else 1.0),
    "beyond the numbers": lambda x: scaling.absmax(x) * 1e39,
    "not a number": lambda x: scaling.absmax(x) * math.nan,
}


@needs_compiler
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("book", ["int4", "e4m3"])
def test_an_own_rule_gives_what_it_gives_without_a_compiler(name, book):
    q = replace(Quantizer.parse(f"{book}/absmax/row"), scale=rule_with(OWN[name]), text="")
    w = np.random.default_rng(14).standard_normal((6, 24)).astype(np.float32)
    if name in ("beyond the numbers", "not a number"):
        with compiled(), np.errstate(all="ignore"), suppress(Exception):
            q.cast(w)  # whatever comes of it, memory outside the tables is not read
        return
    check(q, w, np.random.default_rng(15), ("cast", "round", "variance"), always=False)


def test_what_torch_records_takes_the_plain_path():
    torch = pytest.importorskip("torch")
    q, w = Quantizer.parse("int4/absmax/row"), torch.linspace(-1, 1, 64).reshape(2, 32)
    other = w.flip(0) * 3
    with compiled():
        expected = q.cast(other)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(lambda x: q.cast(x), w, check_trace=False)
        assert torch.equal(traced(other), expected)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(w, torch.ones_like(w))
            assert torch.autograd.forward_ad.unpack_dual(q.variance(dual)).tangent is not None


@needs_compiler
def test_arrays_of_any_layout_are_served():
    rng = np.random.default_rng(12)
    q = Quantizer.parse("int4/absmax/block=32")
    w, u = rng.standard_normal((64, 64), dtype=np.float32), rng.random((64, 64), dtype=np.float32)
    for a in (w.T, w[::2], w[:, ::-1], np.frombuffer(b"\0" + w.tobytes(), np.float32, offset=1).reshape(w.shape)):
        for b in (u[: len(a)], u.T[: len(a)], u[: len(a)].astype(np.float64)):
            with plain():
                expected = bits((q.cast(a), q.round(a, b)))
            with compiled() as answers:
                assert bits((q.cast(a), q.round(a, b))) == expected
            assert None not in answers


def test_what_autograd_or_a_transform_follows_is_left_to_the_plain_path():
    torch = pytest.importorskip("torch")
    q = Quantizer.parse("int4/absmax/block=32")
    w = torch.linspace(-1, 1, 64, requires_grad=True)
    with compiled() as answers:
        q.variance(w).sum().backward()
        with torch.no_grad():
            torch.func.vmap(lambda x: x + torch.ones(2))(torch.ones(3))
            q.cast(w)
    assert w.grad is not None and answers[0] is None
    assert machine.features() is None or answers[1] is not None


def test_without_a_compiler_the_plain_path_serves():
    w = np.linspace(-1, 1, 4096, dtype=np.float32)
    for text in ("int4/absmax/block=32", "mxfp4", "bitnet"):
        q = Quantizer.parse(text)
        with plain():
            expected = bits(q.cast(w))
        passes._compiled.cache_clear()
        with patch.object(machine, "features", lambda: None), compiled() as answers:
            assert bits(q.cast(w)) == expected and answers == [None]
        passes._compiled.cache_clear()


@needs_compiler
def test_compiling_waits_for_demand():
    lattices = Quantizer.parse("int4/absmax/block=32").codebook, Quantizer.parse("int4/absmax").scale
    w = np.linspace(-1, 1, 4096, dtype=np.float32)
    with patch.multiple(fast, _demand={}, _COMPILE_AFTER=2.5 * w.size):
        served = [fast.compute(lattices, 32, "cast", w) is not None for _ in range(4)]
    assert served == [False, False, True, True]


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [plain, compiled])
@pytest.mark.parametrize("text", ["int4/absmax/block=32", "mxfp4", "nvfp4/e4m3-up-2level"])
def test_out_is_filled_and_returned(text, way):
    rng = np.random.default_rng(2)
    w, u = rng.standard_normal((4, 64), dtype=np.float32), rng.random((4, 64), dtype=np.float32)
    w.flags.writeable = u.flags.writeable = False
    q = Quantizer.parse(text)
    for out in (np.full_like(w, np.nan), np.full((64, 4), np.nan, np.float32).T):
        for call, expected in (
            (lambda out: q.cast(w, out=out), q.cast(w)),
            (lambda out: q.round(w, u, out=out), q.round(w, u)),
        ):
            out[...] = np.nan
            with way():
                assert call(out) is out
            assert bits(out) == bits(expected)


def test_out_of_a_tensor_or_of_exact_weights():
    torch = pytest.importorskip("torch")
    w = torch.linspace(-1, 1, 64)
    q = Quantizer.parse("int4/absmax/block=32")
    out = torch.full_like(w, torch.nan)
    before = out._version
    with compiled():
        assert q.round(w, torch.full_like(w, 0.3), out=out) is out
    assert out._version > before
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
    buffer = np.empty_like(w)
    buffer.flags.writeable = False
    with compiled(), pytest.raises(ValueError, match="read-only"):
        q.cast(w, out=buffer)
    assert np.all(memory == 0.5)
