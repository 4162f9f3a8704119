"""Blocks at the ends of the float range: subnormal numbers, the smallest normal one, the largest, and all of them
together. Nothing there is NaN, casts and roundings are finite levels, and values that fit come out right."""

from functools import cache

import ml_dtypes
import numpy as np
import pytest
import torch

import lotion_theory as lt
from lotion_theory import Quantizer
from lotion_theory.formats import catalog, drawn
from lotion_theory.smoothing import closed_form
from tests import strategies
from tests.strategies import as_torch, numpy_type, wide

MORE = (
    "int4/absmax0.5/row", "e2m1/absmax0.5/row", "int4/slack3/row", "int8full/gauge/row", "pot3/gauge/row",
    "pot4/e8m0-sr/row", "binary/e8m0-sr/row", "uint8/zp-real/row", "uint2/zp-real/row",
)  # fmt: skip
FORMATS = tuple(
    dict.fromkeys(
        Quantizer.parse(text).with_partition("row").canonical
        for text in (*catalog.FORMATS, *MORE)
        if not text.endswith("frozen")
    )
)
REAL = [text for text in FORMATS if not text.startswith("fairy")]


@cache
def extremes(text: str, dtype: str) -> np.ndarray:
    """Rows of 6 weights, directed ones and then random ones, as large as the format accepts and the type holds."""
    info = ml_dtypes.finfo(numpy_type(dtype))
    top, tiny, sub = (float(v) for v in (info.max, info.smallest_normal, info.smallest_subnormal))
    below = float(strategies.shifted(np.array([top], numpy_type(dtype)), -1)[0])
    root = top**0.5
    rows = [
        [top, 0, 0, 0, 0, 0], [top, -top, 0, 0, 0, 0], [top] * 6, [-top] * 6, [top, -top, top, -top, top, -top],
        [-top, top / 2, top / 3, -top / 4, top / 7, sub], [top, top / 2, -top / 3, top / 4, -top / 7, -sub],
        [below, -below, top / 2, 1, -1, 0], [-below, top / 3, 0, sub, tiny, 1], [top, tiny, -tiny, sub, -sub, 0],
        [sub, 0, 0, 0, 0, 0], [sub, -sub, sub, 0, 0, 0], [sub * 3, sub * 2, -sub, 0, sub, -sub * 3],
        [sub * 19, sub * 7, -sub * 5, sub * 3, -sub * 2, sub], [tiny, -tiny, tiny / 2, sub, 0, -sub],
        [tiny * 1.5, -tiny, tiny / 2, sub * 3, 0, -sub], [1, sub, -sub, tiny, -tiny, 0], [0] * 6, [-0.0] * 6,
        [root, root / 3, -root / 2, 1, 0, root * 0.9], [top / 8, top / 16, -top / 24, 1, 0, -top / 7],
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    lead = np.concatenate([np.exp2(-rng.random(20) * 6) * top, np.exp2(rng.random(20) * 40) * sub])
    random = lead[:, None] * rng.choice([0, 1, -1, 0.5, 1e-3, -0.3, 0.9], (40, 6)) * rng.random((40, 6)).round(1)
    found = np.concatenate([np.array(rows), random]).astype(numpy_type(dtype))
    size = np.abs(wide(found)).max(axis=1)
    return found[size <= strategies.limit(text, dtype)]


def _both(w: np.ndarray):
    yield w
    yield as_torch(w)


def _uniform(w, shape, value):
    u = np.full(shape, value, np.float32)
    return torch.from_numpy(u) if isinstance(w, torch.Tensor) else u


@pytest.mark.parametrize("dtype", strategies.FLOATS)
@pytest.mark.parametrize("text", REAL)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_values_at_the_ends_of_the_range(text, dtype):
    q, x = Quantizer.parse(text), extremes(text, dtype)
    for w in _both(x):
        ends = [(q.unblock(b.cell.lo, w), q.unblock(b.cell.hi, w)) for b in q.branches(w)]
        levels = [wide(end) for pair in ends for end in pair]
        assert all(np.isfinite(v).all() for v in levels)
        for lo, hi in ends:
            assert (wide(lo) <= wide(hi)).all()
        if not q.scale.is_drawn:
            lo, hi = (wide(part) for part in q.bracket(w))
            inside = (lo <= wide(w)) & (wide(w) <= hi)
            assert (inside | (lo == hi)).all()  # beyond the last level both are that level
            near = wide(q.cast(w))
            assert ((near == lo) | (near == hi)).all()
        assert np.isfinite(wide(q.cast(w))).all()
        assert np.isfinite(wide(q.mean(w))).all()
        assert (wide(q.variance(w)) >= 0).all()  # NaN is not
        for value in (0.0, 0.5, 1 - 2.0**-24):
            scale = _uniform(w, len(x), value) if q.scale.is_drawn else None
            point = wide(q.round(w, _uniform(w, x.shape, value), scale))
            assert np.logical_or.reduce([point == level for level in levels]).all()


def _calm(q: Quantizer, x: np.ndarray) -> np.ndarray:
    """Rows whose variance has a derivative in the float range."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(wide(q.variance(x))).all(axis=1)
    if q.scale.is_drawn or q.scale.couples_blocks:
        size = np.abs(wide(x)).max(axis=1)
        finite &= size < min(strategies.LARGEST[str(x.dtype)], float(np.finfo(np.float32).max)) ** 0.5 / 64
    return x[finite]


@pytest.mark.parametrize("dtype", strategies.FLOATS)
@pytest.mark.parametrize("text", REAL)
def test_derivatives_at_the_ends_of_the_range(text, dtype):
    q, x = Quantizer.parse(text), extremes(text, dtype)
    calm = _calm(q, x)
    # The derivative in the probability of a lattice is a sum over the block.
    summed = x[np.abs(wide(x)).max(axis=1) < strategies.LARGEST[dtype] / x.shape[1]]
    for function, rows in ((q.mean, summed if q.scale.is_drawn else x), (q.variance, calm)):
        leaf = as_torch(rows).requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf).double().sum(), leaf)
        assert not torch.isnan(slope).any(), rows[torch.isnan(slope).any(dim=1).numpy()]
    if dtype in ("float32", "float64"):
        with np.errstate(over="ignore"):
            assert not np.isnan(closed_form.penalty_gradient(calm, q, np.ones(calm.shape))).any()


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("text", ["fairy/l1/row", "fairy/modulus/row"])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_complex_values_at_the_ends_of_the_range(text, dtype):
    q = Quantizer.parse(text)
    real = extremes("int4/absmax/row", "float32" if dtype == "complex64" else "float64") / 2
    x = (real[:, ::2] + 1j * real[:, 1::2]).astype(dtype)
    for w in (x, torch.from_numpy(x)):
        assert np.isfinite(np.asarray(q.cast(w))).all()
        assert np.isfinite(np.asarray(q.round(w, _uniform(w, (*x.shape, 2), 0.5)))).all()
        assert np.isfinite(np.asarray(q.mean(w))).all()
        assert not np.isnan(np.asarray(q.variance(w))).any()
    leaf = torch.from_numpy(x).requires_grad_()
    (slope,) = torch.autograd.grad(torch.view_as_real(q.mean(leaf)).sum(), leaf)
    assert not torch.isnan(torch.view_as_real(slope)).any()


EQUIVARIANT = (
    "int4/absmax/row", "int8/absmax/row", "e2m1/absmax/row", "nf4/absmax/row", "int4full/gauge/row",
    "dynamic8/gauge/row", "int4/absmax7.5/row", "ternary/absmean/row", "int4full/absmax8/row",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", EQUIVARIANT)
def test_derivatives_of_huge_blocks_are_those_of_small_ones(text, dtype):
    """``Var(s w) = s² Var(w)``: multiplied by a power of two, weights have as many times the gradient, to the bit."""
    q, rng = Quantizer.parse(text), np.random.default_rng(1)
    shift = {"float32": 125, "float64": 1021}[dtype]
    small = rng.uniform(-1.8, 1.8, (20, 5)).astype(dtype)
    small[:, 0], small[1::2, 1] = 1.9, -1.9
    grads = []
    for w in (small, np.ldexp(small, shift)):
        leaf = torch.from_numpy(w).requires_grad_()
        grads.append(torch.autograd.grad(q.variance(leaf).sum(), leaf)[0].numpy())
    assert np.isfinite(grads[1]).all()
    np.testing.assert_array_equal(grads[1], np.ldexp(grads[0], shift))


@pytest.mark.parametrize("text", ["ternary/l2l1/row", "int4full/gauge/row", "dynamic8/gauge/row", "int4/absmax/row"])
def test_autograd_agrees_with_the_rates(text):
    """Torch follows the lattice by autograd, numpy by the rule's own derivatives."""
    q, rng = Quantizer.parse(text), np.random.default_rng(2)
    for scale in (1e-36, 1.0, 1e15):
        w = (rng.normal(size=(8, 6)) * scale).astype(np.float64)
        leaf = torch.from_numpy(w).requires_grad_()
        (slope,) = torch.autograd.grad(q.variance(leaf).sum(), leaf)
        stated = 2 * closed_form.penalty_gradient(w, q, np.ones(w.shape))
        # Some ten operations per term and six terms, on numbers of a gap's size.
        np.testing.assert_allclose(slope.numpy(), stated, rtol=0, atol=100 * 2.0**-52 * np.abs(w).max())


def test_zero_blocks_have_a_derivative():
    for text in ("fairy/modulus/row", "fairy/l1/row"):
        leaf = torch.zeros(2, 3, dtype=torch.complex64, requires_grad=True)
        (slope,) = torch.autograd.grad(Quantizer.parse(text).mean(leaf).real.sum(), leaf)
        assert torch.isfinite(torch.view_as_real(slope)).all()


@pytest.mark.parametrize("text", ["e2m1/e8m0-sr/row", "int4/e8m0-sr/row", "pot4/e8m0-sr/row"])
def test_variance_of_drawn_scales_where_it_fits(text):
    """In float64 the same stored scales and levels give the value; in float32 its squares overflow on the way."""
    q, rng = Quantizer.parse(text), np.random.default_rng(3)
    high = float(q.codebook.high)
    lead = high * np.exp2(rng.integers(58, 75, 400)) * (1 + rng.choice([0, 2.0**-23, 2.0**-12, 0.3], 400))
    w = (lead[:, None] * rng.choice([1, 0.5, -1, 0.25, 0.1], (400, 4))).astype(np.float32)
    w[:, 0] = lead
    expected = q.variance(w.astype(np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        stored = expected.astype(np.float32)
        parts = [(b.prob, b.cell.target, b.cell.lo, b.cell.hi, b.cell.target) for b in q.branches(w)]
        naive = drawn._usual(*(np.broadcast_to(v, w.shape) for v in parts[1]))
    assert (~np.isfinite(naive) & np.isfinite(stored)).any(), "no example of what this is about"
    found = q.variance(w)
    assert not np.isnan(found).any()
    # A variance near the largest float may end on either side of it.
    edge = np.abs(expected / float(np.finfo(np.float32).max) - 1) < 1e-3
    assert np.array_equal(np.isfinite(found)[~edge], np.isfinite(stored)[~edge])
    fits = np.isfinite(found) & np.isfinite(stored)
    # Distances to a level and to the mean carry an error of some ulp of the weight, as do probabilities over theirs.
    slack = 64 * 2.0**-24 * np.abs(w).astype(np.float64) * np.sqrt(expected) + 1e-5 * expected
    assert (np.abs(found.astype(np.float64) - expected)[fits] <= slack[fits]).all()
    assert np.array_equal(q.variance(torch.from_numpy(w)).numpy(), found)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_scales_beyond_the_range_reach_the_largest_float(dtype):
    """A scale of twice the largest float has the levels 0 and, clipped, that float; rounding stays unbiased."""
    top = strategies.LARGEST[dtype]
    w = np.array([[top, top / 4, -top, 0]]).astype(numpy_type(dtype))
    for text in ("int4/absmax0.5/row", "int4/slack14/row"):
        q = Quantizer.parse(text)
        assert wide(q.cast(w)).tolist() == [[top, 0, -top, 0]]
        assert wide(q.mean(w)).tolist() == wide(w).tolist()


@pytest.mark.parametrize("name", ["absmax1e40", "absmax1" + "0" * 40, "slack1" + "0" * 40, "slack1" + "0" * 400,
                                  "absmax0." + "0" * 40 + "1", "absmax" + "9" * 5000])  # fmt: skip
def test_divisors_beyond_float32_are_refused(name):
    with pytest.raises(ValueError, match=r"unknown scale .*absmaxD \(divisor D, 1e-30 to 1e\+30"):
        Quantizer.parse(f"int4/{name}/row")


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(3.5e38, "float32"), (1e39, "float32"), (1e308, "float32"), (1e39, "float16"), (1e39, "bfloat16"),
     (1e-60, "float32"), (1e-60, "float16")],
)  # fmt: skip
def test_scales_that_the_type_does_not_hold_are_refused(scale, dtype):
    w = np.array([[1.0, 2.0]]).astype(numpy_type(dtype))
    for given in (scale, np.array([[scale]])):
        q = Quantizer.parse("int4/absmax/row").with_scale(given)
        with pytest.raises(ValueError, match="scale is 0 or infinite in float32"):
            q.cast(w)
    q = Quantizer.parse("int4/absmax/row").with_scale(torch.tensor([[scale]], dtype=torch.float64))
    with pytest.raises(ValueError, match="scale is 0 or infinite in float32"):
        q.variance(as_torch(w))


def test_a_scale_beyond_float16_is_worked_on_in_float32():
    q = lt.Quantizer.parse("int4/absmax/row").with_scale(1e5)
    assert q.cast(np.array([[6e4, 1.0]], np.float16)).tolist() == [[65504, 0]]
