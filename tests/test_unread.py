"""Tensors whose values Python does not ask for: on an accelerator (which tensors of the CPU play here), and compiled."""

from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from lotion_theory import Codebook, Quantizer, _arrays  # noqa: E402
from lotion_theory.formats import codebooks, fast  # noqa: E402
from lotion_theory.formats.catalog import FORMATS  # noqa: E402
from lotion_theory.formats.lattice import Lattice  # noqa: E402
from lotion_theory.training import LotionPenalty  # noqa: E402
from testbeds.lm.measure.format_costs import Operations  # noqa: E402
from tests.strategies import as_torch, probes, uniforms  # noqa: E402
from tests.torch_models import COMPILES, Counter  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
FEW = ("int4/absmax/block=32", "nvfp4/sr", "fairy/modulus", "nvfp4/e4m3-up-2level", "int4full/gauge/block=32")


@contextmanager
def accelerator():
    """Tensors as on a device that the host would wait for; yields what is done to them."""
    plain = patch.object(fast, "compute", lambda *_, **__: None)
    with patch.object(_arrays, "READ_DEVICES", frozenset()), plain, Operations() as seen:
        yield seen


def quantizer(text):
    q = Quantizer.parse(text)
    return q.with_scale(0.3) if text == "int4/frozen" else q


def weights(q, dtype, seed=0):
    """Ordinary blocks, zeros, subnormal numbers, ties, signs."""
    w = torch.randn(12, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w[1], w[2], w[3] = 0, w[2] * 1e-6, torch.tensor([1.0, -1.0] * 32)
    w[4] *= float(torch.finfo(dtype).tiny) if dtype != torch.float64 else 2.0**-126
    w[5] = (w[5] * 4).round() / 4
    w = w.to(dtype)
    return torch.complex(w, w.flip(0)) if q.codebook.is_complex else w


def calls(q, w, seed=1):
    """Operations of ``q`` by name, of weights and what they draw."""
    rng, real = np.random.default_rng(seed), "float64" if w.dtype in (torch.float64, torch.complex128) else "float32"
    u = as_torch(uniforms(rng, (*w.shape, 2) if q.codebook.is_complex else tuple(w.shape), real))
    v = (as_torch(uniforms(rng, (len(q.blocks(w)[0]),), real)),) if q.scale.is_drawn else ()
    found = {"cast": (q.cast,), "round": (q.round, u, *v), "mean": (q.mean,), "variance": (q.variance,)}
    if not q.scale.is_drawn and not q.codebook.is_complex:
        found["bracket"] = (lambda x: torch.stack(q.bracket(x)),)
    return {name: lambda x, f=f, a=arguments: f(x, *a) for name, (f, *arguments) in found.items()}


def reals(x):
    return torch.view_as_real(x) if x.is_complex() else x


def types_of(text):
    return DTYPES[::2] if Quantizer.parse(text).codebook.is_complex else DTYPES


@pytest.mark.parametrize("text", FORMATS)
def test_no_value_is_read_and_results_have_the_bits_of_the_cpu(text):
    q = quantizer(text)
    for dtype in types_of(text)[:2]:
        w = weights(q, dtype)
        for name, call in calls(q, w).items():
            with patch.object(fast, "compute", lambda *_, **__: None):
                expected = call(w)
            with accelerator() as seen:
                found = call(w)
            assert not seen.waits, (name, dtype)
            assert found.dtype == expected.dtype and torch.equal(reals(found), reals(expected)), (name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("text", [t for t in FORMATS if not t.startswith("fairy") and t != "int4/frozen"])
def test_the_same_bits_at_the_ends_of_the_float_range(text, dtype):
    q = Quantizer.parse(text)
    size = q.partition.size or 32
    w = as_torch(probes(f"{q.codebook.name}/{q.scale.name}", dtype, 200, size, 5))
    for name, call in calls(q, w).items():
        with patch.object(fast, "compute", lambda *_, **__: None):
            expected = call(w)
        with accelerator() as seen:
            found = call(w)
        assert not seen.waits and torch.equal(found.nan_to_num(), expected.nan_to_num()), name


def meta(x):
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


@pytest.mark.parametrize("text", FEW)
def test_constants_are_made_on_the_device_of_the_weights(text):
    """The meta device holds no values, and takes no tensor of another one."""
    q = quantizer(text)
    w = weights(q, torch.float32)
    u, v = torch.zeros((*w.shape, 2) if q.codebook.is_complex else w.shape), torch.zeros(len(q.blocks(w)[0]))
    with patch.object(_arrays, "plain", lambda x, name: x):
        q.cast(meta(w)), q.variance(meta(w))
        found = q.round(meta(w), meta(u), *((meta(v),) if q.scale.is_drawn else ()))
    assert found.device.type == "meta" and found.shape == w.shape


def refused(q, x):
    """Which blocks are all NaN; every other one has none."""
    blocks = reals(x).reshape(-1, q.partition.length(tuple(x.shape)) * (2 if x.is_complex() else 1))
    bad = blocks.isnan()
    assert torch.equal(bad.all(dim=1), bad.any(dim=1))
    return bad.any(dim=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("text", [t for t in FORMATS if "2level" not in t])
def test_what_would_be_refused_makes_its_block_nan(text, value):
    q = quantizer(text)
    w = weights(q, torch.float32)
    bad = w.clone()
    reals(bad).reshape(-1)[200] = value
    for name, call in calls(q, w).items():
        with accelerator():
            found, other = call(bad), call(w)
        if name == "bracket":
            assert torch.equal(found[0].isnan(), found[1].isnan())
            found, other = found[0], other[0]
        gone = refused(q, found)
        assert int(gone.sum()) == 1, name
        keep = ~gone
        a, b = (reals(x).reshape(len(gone), -1)[keep] for x in (found, other))
        assert torch.equal(a, b), name


def test_one_factor_for_the_tensor_makes_all_of_it_nan():
    q = Quantizer.parse("nvfp4/e4m3-up-2level")
    w = weights(q, torch.float32)
    w[3, 4] = float("inf")
    with accelerator():
        assert bool(q.cast(w).isnan().all())


def test_refused_uniforms_and_scales_give_nan():
    q, w = Quantizer.parse("nvfp4/sr"), weights(Quantizer.parse("nvfp4/sr"), torch.float32)
    u, v = torch.full(w.shape, 0.5), torch.full((48,), 0.5)
    u[0, 3], u[0, 5], u[9, 9], v[17] = 1.0, -0.1, float("nan"), 2.0
    with accelerator():
        bad = q.round(w, u, v).isnan()
    expected = torch.zeros(48, 16, dtype=torch.bool)
    expected[17] = True
    expected = expected.reshape(w.shape)
    expected[0, 3] = expected[0, 5] = expected[9, 9] = True
    assert torch.equal(bad, expected)
    w[2] = 1e9  # beyond the reach of e4m3 scales
    with accelerator():
        assert torch.equal(q.cast(w).isnan().all(dim=1), torch.arange(12) == 2)
    frozen = Quantizer.parse("int4/frozen/row").with_scale(torch.tensor([[1.0], [1e-300]], dtype=torch.float64))
    with accelerator():
        assert frozen.cast(torch.ones(2, 4)).isnan().all(dim=1).tolist() == [False, True]


@pytest.mark.parametrize("text", ["int4/absmax/block=16", "mxfp4", "int4full/gauge/row", "nvfp4/e4m3-up-2level"])
def test_a_step_of_the_penalty_reads_nothing(text):
    results = []
    for device in (nullcontext, accelerator):
        model = torch.nn.Linear(64, 32)
        with torch.no_grad():
            model.weight.copy_(weights(Quantizer.parse(text), torch.float32).repeat(3, 1)[:32])
        penalty = LotionPenalty(model, text, curvature={"weight": torch.ones(32, 64)}, ramp=(0, 4))
        model.weight.grad = torch.zeros(32, 64)
        for _ in range(2):
            with device() as seen:
                penalty.add_gradient_()
                penalty.step()
            assert seen is None or not seen.waits
        results.append(model.weight.grad)
    # Autograd adds what reaches a weight in another order; no term exceeds the largest weight of its row.
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_searching_finds_the_cells_that_guessing_finds():
    for text in ("int8/absmax/row", "dynamic8/gauge/row", "uint4/zp-real/row", "e2m1/e4m3-up/row"):
        q = Quantizer.parse(text)
        for dtype in ("float32", "bfloat16"):
            w = probes(text, dtype, 60, 24, 4)
            with patch.object(fast, "compute", lambda *_, **__: None):
                expected = q.bracket(w)
                guess = lambda self, x: np.zeros(x.shape, np.int64)  # noqa: E731
                with patch.object(Lattice, "_beside", guess):
                    found = q.bracket(w)
            assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


# --- torch.compile ---------------------------------------------------------------------------------------------------

compiles = pytest.mark.skipif(not COMPILES, reason="torch.compile reads files of its own as the locale says")


@pytest.fixture
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def check_one_graph(q, dtype, backend="aot_eager", names=("cast", "round", "mean", "variance", "bracket")):
    """All operations in one graph, for weights that ask for rare branches as for others."""
    w = weights(q, dtype)
    named = {name: call for name, call in calls(q, w).items() if name in names}
    if "bracket" in named:
        named["bracket"] = lambda x: torch.stack(q.bracket(x))

    def all_of_them(x):
        return [call(x) for call in named.values()]

    counter = Counter(backend)
    compiled = torch.compile(all_of_them, backend=counter, fullgraph=True, dynamic=False)
    for seed in (0, 7):
        x = weights(q, dtype, seed) * (1 + seed)
        with patch.object(fast, "compute", lambda *_, **__: None):
            expected = all_of_them(x)
        for name, a, b in zip(named, compiled(x), expected, strict=True):
            assert a.dtype == b.dtype and torch.equal(reals(a), reals(b)), name
    assert counter.graphs == 1


@compiles
@pytest.mark.parametrize("text", ["int4/absmax/block=32", pytest.param("mxfp4", marks=pytest.mark.slow)])
def test_one_graph_per_shape(text, fresh):
    check_one_graph(quantizer(text), torch.bfloat16, names=("cast", "round"))


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("text", FORMATS)
def test_one_graph_per_shape_and_type_for_every_format(text, fresh):
    for dtype in types_of(text):
        torch.compiler.reset()
        check_one_graph(quantizer(text), dtype)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("text", FEW)
def test_generated_code_has_the_same_bits(text, fresh):
    check_one_graph(quantizer(text), torch.float32, "inductor")
    if not quantizer(text).codebook.is_complex:
        torch.compiler.reset()
        check_one_graph(quantizer(text), torch.bfloat16, "inductor")


FROZEN = {
    "scale": lambda w: Quantizer.parse("int4/frozen/row").with_scale(0.2),
    "top": lambda w: Quantizer.parse("int4/frozen/row").with_top(torch.tensor([[1.0], [2.0], [0.0], [3.0]])),
    "kept": lambda w: Quantizer.parse("uint4/zp-real/row").freeze(w),
}


@compiles
@pytest.mark.parametrize("how", ["kept", *(pytest.param(how, marks=pytest.mark.slow) for how in ("scale", "top"))])
def test_frozen_lattices_go_into_a_graph(how, fresh):
    w = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    frozen = FROZEN[how](w)
    assert torch.equal(torch.compile(frozen.cast, backend=Counter(), fullgraph=True)(2 * w), frozen.cast(2 * w))


@compiles
@pytest.mark.slow
def test_a_scale_is_learned_through_a_graph(fresh):
    w = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    scale = torch.full((4, 1), 0.2, requires_grad=True)
    variance = Quantizer.parse("int4/frozen/row").with_scale(scale).variance
    slopes = []
    for call in (variance, torch.compile(variance, backend=Counter(), fullgraph=True)):
        slopes += torch.autograd.grad(call(w).sum(), scale)
    torch.testing.assert_close(*slopes)


@compiles
def test_a_codebook_without_a_name_is_refused(fresh):
    own = Codebook("mine", codebooks.codebook("int3").levels, codebooks.codebook("int3").even, 3, "of this test")
    q = Quantizer(own, Quantizer.parse("int4").scale, Quantizer.parse("int4").partition)
    with pytest.raises(Exception, match="register_codebook"):
        torch.compile(q.cast, backend=Counter(), fullgraph=True)(torch.ones(4))


@compiles
@pytest.mark.parametrize("text", ["mxfp4", pytest.param("nvfp4/sr", marks=pytest.mark.slow)])
def test_the_penalty_of_formats_that_only_the_quantizer_serves(text, fresh):
    model = torch.nn.Linear(64, 8)
    penalty = LotionPenalty(model, text, curvature={"weight": torch.rand(8, 64)}, ramp=(0, 4))
    counters = Counter(), Counter()
    value = torch.compile(lambda: penalty(), backend=counters[0], fullgraph=True)
    add = torch.compile(penalty.add_gradient_, backend=counters[1], fullgraph=True)
    for _ in range(3):
        found = []
        for of, to in ((penalty, penalty.add_gradient_), (value, add)):
            model.weight.grad = None
            total = of()
            total.backward()
            found.append((total.detach(), model.weight.grad.clone()))
            model.weight.grad.zero_()
            to()
            found[-1] += (model.weight.grad.clone(),)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        penalty.step()
    assert [counter.graphs for counter in counters] == [1, 1]
