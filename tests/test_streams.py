"""Random streams: the defining formula and the same bits from every backend and chunking, and clear errors."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import math
import sys
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lotion_theory import _philox, streams
from lotion_theory.streams import Stream

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_NUMBA = importlib.util.find_spec("numba") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
BACKENDS = [
    "numpy",
    pytest.param("numba", marks=needs_numba),
    pytest.param("torch", marks=needs_torch),
    pytest.param("torch-numba", marks=[needs_torch, needs_numba]),
]
INSTALLED = ["numpy", *["numba"] * HAS_NUMBA, *["torch"] * HAS_TORCH, *["torch-numba"] * (HAS_TORCH and HAS_NUMBA)]
DTYPES = ["float32", "float64"]

seeds = st.integers(0, 2**64 - 1)
steps = st.one_of(st.integers(0, 5), seeds)
# Beyond 2**34 the low word of the counter has overflowed into the high one; the last numbers end at 2**63.
starts = st.one_of(st.integers(0, 40), st.integers(2**34 - 40, 2**34 + 40), st.integers(0, 2**63 - 200))


@contextlib.contextmanager
def patched(**values):
    """Names of :mod:`streams` set for a while; no fixture, since hypothesis shares those between examples."""
    old = {name: getattr(streams, name) for name in values}
    for name, value in values.items():
        setattr(streams, name, value)
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(streams, name, value)


def draw(backend, stream, shape, step=0, dtype="float32", start=0):
    """``stream.uniforms`` by the named backend, as numpy."""
    like = None
    if backend.startswith("torch"):
        import torch

        like = torch.empty(0)
    with patched(_COMPILE_AFTER=0 if backend.endswith("numba") else math.inf):
        return np.asarray(stream.uniforms(shape, step, dtype=dtype, like=like, start=start))


def oracle(stream, i, step, dtype):
    """Element ``i`` by the definition, on python integers and fractions."""
    message = stream.seed.to_bytes(8, "little") + stream.purpose.encode()
    key = int.from_bytes(hashlib.blake2b(message, digest_size=8, person=b"lotion.streams").digest(), "little")
    per = 4 if dtype == "float32" else 2
    counter = i // per
    block = _philox.philox4x32(counter % 2**32, counter >> 32, step % 2**32, step >> 32, key % 2**32, key >> 32)
    if dtype == "float32":
        return Fraction(block[i % 4] // 2**8, 2**24)
    high, low = block[2 * (i % 2)], block[2 * (i % 2) + 1]
    return Fraction(high // 2**5 * 2**26 + low // 2**6, 2**53)


@given(seed=seeds, purpose=st.text(min_size=1, max_size=8), step=steps, start=starts, size=st.integers(1, 25))
@example(seed=2**64 - 1, purpose="é", step=2**64 - 1, start=2**63 - 25, size=25)
@example(seed=0, purpose="x", step=2**32, start=2**34 - 3, size=9)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_backend_gives_the_defining_formula(dtype, seed, purpose, step, start, size):
    try:
        stream = Stream(seed, purpose)
    except UnicodeEncodeError:  # lone surrogates have no UTF-8 form
        return
    expected = [oracle(stream, start + i, step, dtype) for i in range(size)]
    for backend in INSTALLED:
        values = draw(backend, stream, size, step, dtype, start)
        assert values.dtype == dtype
        assert [Fraction(float(v)) for v in values] == expected, backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree_over_several_passes(backend, dtype):
    # Passes of 64 counters, whole and cut: 1000 numbers are 4 or 8 of them.
    with patched(_CPU_CHUNK=64):
        values = draw(backend, Stream(3, "passes"), 1000, 5, dtype, 7)
    assert np.array_equal(values, draw("numpy", Stream(3, "passes"), 1000, 5, dtype, 7))


@given(start=starts, cuts=st.lists(st.integers(0, 97), max_size=6))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_chunking_gives_the_same_bits(backend, dtype, start, cuts):
    stream = Stream(1, "chunks")
    whole = draw(backend, stream, 97, 2, dtype, start)
    edges = [0, *sorted(cuts), 97]
    parts = [draw(backend, stream, b - a, 2, dtype, start + a) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), whole)


@needs_numba
def test_switching_to_the_compiled_loop_is_invisible():
    stream = Stream(2, "demand")
    expected = draw("numpy", stream, 4000)
    compiled = []

    def spy(layout):
        compiled.append(layout)
        return loop(layout)

    # The demand passes the threshold in the third of the four calls.
    loop = streams._compiled
    with patched(_demand=0, _COMPILE_AFTER=2.5 * streams._CALL_COST, _compiled=spy):
        parts = [stream.uniforms(1000, start=1000 * i) for i in range(4)]
    assert compiled == [streams._LAYOUTS["float32"]] * 2
    assert np.array_equal(np.concatenate(parts), expected)


@needs_numba
def test_without_numba_the_array_path_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert streams._compiled.__wrapped__(streams._LAYOUTS["float32"]) is None


def test_the_bits_are_those_of_every_earlier_version():
    # Stored runs are replayed from (seed, purpose, step): these numbers may never change.
    u32 = (draw("numpy", Stream(0, "rounding"), 6, 1) * 2**24).astype(np.int64)
    u64 = (draw("numpy", Stream(0, "rounding"), 3, 1, "float64") * 2**53).astype(np.int64)
    assert u32.tolist() == [16111876, 10856564, 3811148, 10375524, 2263277, 5671206]
    assert u64.tolist() == [8649997941121489, 2046094678246801, 1215087945327770]


def test_shape_is_only_a_view_of_the_flat_numbers():
    stream = Stream(5, "shape")
    flat = stream.uniforms(24, 3)
    assert np.array_equal(stream.uniforms((2, 3, 4), 3), flat.reshape(2, 3, 4))
    assert np.array_equal(stream.uniforms([4, 6], 3), flat.reshape(4, 6))
    assert stream.uniforms((), 3).shape == () and stream.uniforms((), 3) == flat[0]
    assert stream.uniforms((3, 0)).shape == (3, 0)
    assert np.array_equal(stream.uniforms(24, 3), flat)  # nothing is consumed


def test_different_streams_and_steps_give_different_numbers():
    # Eight float32 numbers agree by chance with probability 2**-192 a pair.
    numbers, purposes = (0, 1, 2**32, 2**64 - 1), ("init", "Init", "data", "data/0", "data/1")
    sources = list(itertools.product(numbers, purposes, numbers))
    prefixes = {tuple(Stream(seed, purpose).uniforms(8, step).tolist()) for seed, purpose, step in sources}
    assert len(prefixes) == len(sources)


def test_spawn_names_a_sub_stream():
    stream = Stream(9, "rounding")
    assert stream.spawn("layer0") == Stream(9, "rounding/layer0")
    assert stream.spawn("layer0").spawn("bias").purpose == "rounding/layer0/bias"
    assert Stream(np.uint64(9), "rounding") == stream and hash(Stream(np.uint64(9), "rounding")) == hash(stream)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stream.seed = 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float64", 53)])
@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_extreme_words_give_zero_and_the_last_number_below_one(monkeypatch, backend, dtype, bits, word):
    def constant(c0, c1, c2, c3, k0, k1):
        same = c0 * 0 + word
        return same, same, same, same

    monkeypatch.setattr(_philox, "philox4x32", constant)
    # A cache of its own, so that the replacement is compiled and leaves no trace.
    monkeypatch.setattr(streams, "_compiled", functools.cache(streams._compiled.__wrapped__))
    values = draw(backend, Stream(0, "range"), 11, 0, dtype, 3)
    assert (values == (0 if word == 0 else 1 - 2.0**-bits)).all()
    assert (values < 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_stays_bounded(dtype):
    # About ten int64 arrays of one pass are alive at once, however many numbers are drawn; 16 leaves room for the rest.
    out = np.empty(1 << 20, dtype)
    with patched(_COMPILE_AFTER=math.inf, _CPU_CHUNK=1 << 12):
        tracemalloc.start()
        Stream(0, "memory").uniforms(out.shape, out=out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 * 8 * (1 << 12)


@pytest.mark.parametrize(("name", "drawn"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_numpy_like_sets_the_type(name, drawn):
    u = Stream(0, "like").uniforms((2, 2), like=np.ones(5, name))
    assert type(u) is np.ndarray and u.dtype == drawn
    assert np.array_equal(u, Stream(0, "like").uniforms((2, 2), dtype=drawn))
    assert Stream(0, "like").uniforms(2, like=np.ones(5, name), dtype="float64").dtype == np.float64


@needs_torch
@pytest.mark.parametrize(
    ("name", "drawn"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_torch_like_sets_kind_type_and_device(name, drawn):
    torch = pytest.importorskip("torch")
    like = torch.nn.Parameter(torch.ones(3, dtype=getattr(torch, name)))
    u = Stream(0, "like").uniforms(like.shape, like=like)
    assert isinstance(u, torch.Tensor) and u.dtype == getattr(torch, drawn) and u.device == like.device
    assert not u.requires_grad
    assert np.array_equal(u.numpy(), Stream(0, "like").uniforms(3, dtype=drawn))


@needs_torch
@pytest.mark.parametrize("default", ["float64", "bfloat16"])
def test_torch_default_dtype_does_not_matter(default):
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, default))
    try:
        u = draw("torch", Stream(0, "default"), 9)
    finally:
        torch.set_default_dtype(before)
    assert np.array_equal(u, draw("numpy", Stream(0, "default"), 9))


@needs_torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_draws_stay_on_the_device(dtype):
    torch = pytest.importorskip("torch")
    like = torch.empty(0, device="meta", dtype=getattr(torch, dtype))  # no memory: any mixing with the CPU fails
    u = Stream(4, "meta").uniforms((5, 7), like=like, start=1)
    assert u.device.type == "meta" and u.dtype == like.dtype and u.shape == (5, 7)


@needs_torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_gives_the_same_bits(dtype):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    like = torch.empty(0, device="cuda", dtype=getattr(torch, dtype))
    with patched(_DEVICE_CHUNK=100):
        u = Stream(4, "cuda").uniforms(1001, 2**40, like=like, start=2**34 - 501)
    assert u.device.type == "cuda"
    assert np.array_equal(u.cpu().numpy(), Stream(4, "cuda").uniforms(1001, 2**40, dtype=dtype, start=2**34 - 501))


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_is_filled_and_returned(backend):
    out = np.full((2, 5), 7.0)
    if backend.startswith("torch"):
        import torch

        out = torch.from_numpy(out)
    with patched(_COMPILE_AFTER=0 if backend.endswith("numba") else math.inf):
        assert Stream(0, "out").uniforms((2, 5), out=out, start=1) is out
    assert np.array_equal(np.asarray(out), Stream(0, "out").uniforms((2, 5), dtype="float64", start=1))


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ((-1, "x"), ValueError, ["seed", "-1", "[0, 2**64)"]),
        ((2**64, "x"), ValueError, ["seed", str(2**64), "[0, 2**64)"]),
        ((1.0, "x"), TypeError, ["seed", "1.0", "float", "integer"]),
        ((True, "x"), TypeError, ["seed", "True", "boolean"]),
        (("1", "x"), TypeError, ["seed", "'1'", "str"]),
        ((0, ""), ValueError, ["purpose", "''", "non-empty"]),
        ((0, 3), TypeError, ["purpose", "3", "int", "string"]),
    ],
)
def test_bad_streams_are_refused(arguments, error, parts):
    with pytest.raises(error) as caught:
        Stream(*arguments)
    assert all(part in str(caught.value) for part in parts)


def frozen(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"step": -1}, ValueError, ["step", "-1", "[0, 2**64)"]),
        ({"step": 2**64}, ValueError, ["step", "[0, 2**64)"]),
        ({"step": 0.5}, TypeError, ["step", "0.5", "integer"]),
        ({"start": -4}, ValueError, ["start", "-4", "[0, 2**63)"]),
        ({"start": 2**63}, ValueError, ["start", "[0, 2**63)"]),
        ({"start": 2**63 - 1}, ValueError, ["start", "start + size <= 2**63"]),
        ({"start": None}, TypeError, ["start", "None", "integer"]),
        ({"shape": (2, -3)}, ValueError, ["shape[1]", "-3"]),
        ({"shape": 2.0}, TypeError, ["shape", "2.0"]),
        ({"dtype": "float16"}, ValueError, ["dtype", "'float16'", "'float32'", "'float64'"]),
        ({"dtype": np.float32}, ValueError, ["dtype", "numpy.float32", "'float32'"]),
        ({"like": [1.0]}, TypeError, ["like", "list", "numpy array or a torch tensor"]),
        ({"like": np.ones(2, int)}, TypeError, ["like", "int64", "float32", "dtype"]),
        ({"like": np.array([Fraction(1)])}, TypeError, ["like", "object", "float64", "dtype"]),
        ({"out": [1.0, 2.0, 3.0]}, TypeError, ["out", "list"]),
        ({"out": np.zeros(3, np.float16)}, TypeError, ["out", "float16", "float32 or float64"]),
        ({"out": np.zeros(3, np.float32), "dtype": "float64"}, TypeError, ["out", "float32", "float64"]),
        ({"out": np.zeros((3, 1), np.float32)}, ValueError, ["out", "(3, 1)", "(3,)"]),
        ({"out": np.zeros(6, np.float32)[::2]}, ValueError, ["out", "C-contiguous"]),
        ({"out": frozen(np.zeros(3, np.float32))}, ValueError, ["out", "read-only"]),
    ],
    ids=str,
)
def test_bad_draws_are_refused(arguments, error, parts):
    with pytest.raises(error) as caught:
        Stream(0, "x").uniforms(**{"shape": 3, **arguments})
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@needs_torch
def test_bad_torch_outputs_are_refused():
    torch = pytest.importorskip("torch")
    stream = Stream(0, "x")
    with pytest.raises(ValueError, match="out requires a gradient"):
        stream.uniforms(3, out=torch.empty(3, requires_grad=True))
    with pytest.raises(ValueError, match="C-contiguous"):
        stream.uniforms((2, 3), out=torch.empty(3, 2).T)
    with pytest.raises(ValueError, match="out is on numpy and like on torch cpu"):
        stream.uniforms(3, out=np.empty(3, np.float32), like=torch.empty(3))
    with pytest.raises(TypeError, match="bfloat16"):
        stream.uniforms(3, out=torch.empty(3, dtype=torch.bfloat16))


def test_bad_spawns_and_generators_are_refused():
    with pytest.raises(ValueError, match="name = ''"):
        Stream(0, "x").spawn("")
    with pytest.raises(TypeError, match="name = 3"):
        Stream(0, "x").spawn(3)
    with pytest.raises(ValueError, match="step = -1"):
        Stream(0, "x").numpy_generator(-1)
