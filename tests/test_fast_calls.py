"""Calls that a compiled pass takes or leaves: frozen lattices, own rules, refusals, ``out``."""

import math
import warnings
from contextlib import suppress
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

from lotion_theory import Quantizer
from lotion_theory.formats import fast, passes, scaling
from lotion_theory.formats.lattice import SpanLattice
from lotion_theory.fused import machine
from tests.fast_cases import SERVED, bits, check, compiled, needs_compiler, outcome, plain

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
