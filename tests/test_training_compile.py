"""Under torch.compile(fullgraph=True): one graph for all steps, and gates, ramps and noise that stay alive in it."""

import pytest
import torch
from torch import nn

from lotion_theory import Stream
from lotion_theory.training import METHODS, LotionPenalty, StraightThrough
from tests.torch_models import COMPILES, Counter, mlp

pytestmark = pytest.mark.skipif(
    not COMPILES, reason="torch.compile reads files of its own as the locale says, and they are UTF-8"
)
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
Y = torch.randint(0, 4, (6,), generator=torch.Generator().manual_seed(3))
# Sums and products may be taken in another order; a gradient is a sum of terms of its own size.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _curvature(model):
    generator = torch.Generator().manual_seed(9)
    return {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters() if p.ndim == 2}


@pytest.mark.parametrize("text", ["int4/absmax/block=4", pytest.param("nf4/absmax/tensor", marks=pytest.mark.slow)])
def test_the_penalty_in_a_compiled_loss(text):
    model, counter = mlp(), Counter()
    penalty = LotionPenalty(model, text, curvature=_curvature(model), ramp=(0, 4))

    def loss(x, y):
        return nn.functional.cross_entropy(model(x), y) + penalty()

    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for _ in range(5):
        values, gradients = [], []
        for function in (loss, compiled):
            model.zero_grad()
            value = function(X, Y)
            value.backward()
            values.append(value)
            gradients.append(model[0].weight.grad.clone())
        torch.testing.assert_close(*values, **CLOSE)
        torch.testing.assert_close(*gradients, **CLOSE)
        penalty.step()
    assert counter.graphs == 1


def _compiled_gradients(backend, text, dtype):
    model, counter = mlp(dtype=dtype), Counter(backend)
    penalty = LotionPenalty(model, text, curvature="fisher", ramp=(0, 4))
    add = torch.compile(penalty.add_gradient_, backend=counter, fullgraph=True)
    for _ in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(X.to(dtype)), Y).backward()
        penalty.observe(len(X))
        loss = [p.grad.clone() for p in model.parameters()]
        penalty.add_gradient_()
        expected = [p.grad.clone() for p in model.parameters()]
        for p, gradient in zip(model.parameters(), loss, strict=True):
            p.grad.copy_(gradient)
        add()
        for p, gradient in zip(model.parameters(), expected, strict=True):
            close = CLOSE if dtype == torch.float32 else {"rtol": 2.0**-7, "atol": 1e-4}
            torch.testing.assert_close(p.grad, gradient, **close)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=0.1)
        penalty.step()
    assert counter.graphs == 1


@pytest.mark.parametrize("text", [pytest.param("int4/absmax/block=4", marks=pytest.mark.slow), "e2m1/absmax/row"])
def test_the_gradient_form(text):
    _compiled_gradients("aot_eager", text, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", ["int4/absmax/block=4", "int8/absmax/tensor", "e2m1/absmax/row"])
def test_the_gradient_form_as_generated_code(text, dtype):
    _compiled_gradients("inductor", text, dtype)


def test_observing_is_compiled_once():
    model, counter = mlp(), Counter()
    eager, compiled = LotionPenalty(model, "int4", decay=0.5), LotionPenalty(model, "int4", decay=0.5)
    observe = torch.compile(compiled.observe, backend=counter, fullgraph=True)
    for step in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(X * (step + 1)), Y).backward()
        if step == 2:
            model[0].weight.grad[0, 0] = float("nan")  # left out, on a graph that cannot ask
        for penalty, call in ((eager, eager.observe), (compiled, observe)):
            call(len(X))
            penalty.step()
    torch.testing.assert_close(compiled.curvature_of("0.weight"), eager.curvature_of("0.weight"))
    assert counter.graphs == 1


def _weights(st):
    return [item.parameter.detach().clone() for item in st.items]


@pytest.mark.parametrize(
    "method",
    ["qat", "rr_ste", "lsq", "hestia", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS)],
)
def test_a_gate_switches_compiled_code(method):
    model, counter = mlp(), Counter()
    settings = {"total_steps": 6} if method in ("cage", "crown_q", "hestia", "parq", "winq") else {}
    if method == "crown_q":
        settings["late"] = 0
    st = StraightThrough(model, "int3/absmax/row", method, start=2, **settings)
    originals, write = _weights(st), torch.compile(st.write_, backend=counter, fullgraph=True)
    seen = []
    for step in range(5):
        if step == 4:
            st.gate.set(False)
        expected = list(st.points().values())
        write(originals)
        torch.testing.assert_close(_weights(st), expected, rtol=0, atol=1e-6)
        seen.append(not torch.equal(model[0].weight, originals[0]))
        st.step()
        for item, original in zip(st.items, originals, strict=True):
            item.local.detach().copy_(original)
    assert seen == [False, False, True, True, False]
    assert counter.graphs == 1


def test_noise_in_compiled_code_is_that_of_the_stream():
    model, counter = mlp(), Counter()
    st = StraightThrough(model, "int3/absmax/row", "rr_ste", seed=4)
    originals, write = _weights(st), torch.compile(st.write_, backend=counter, fullgraph=True)
    for step in range(3):
        u = Stream(4, "straight-through/0.weight").uniforms((16, 8), step, like=originals[0])
        write(originals)
        assert torch.equal(model[0].weight, st.items[0].quantizer.round(originals[0], u))
        st.step()
    assert counter.graphs == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["int8/absmax/block=4", "nf4/absmax/row"])
def test_generated_code_rounds_to_the_same_bits(text, dtype):
    # Generated code would drop the rounding of levels to 16 bits where it is written as a conversion there and back.
    st = StraightThrough(mlp(dtype=dtype), text)
    expected = list(st.points().values())
    torch.compile(st.write_, fullgraph=True)(_weights(st))
    for found, value in zip(_weights(st), expected, strict=True):
        assert torch.equal(found, value)


def test_a_compiled_model_sees_the_quantized_weights():
    model, counter = mlp(), Counter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    st = StraightThrough(compiled, "int3/absmax/row", start=1)
    assert [item.name for item in st.items] == ["0.weight", "2.weight"]
    outputs = []
    for _ in range(3):
        with st:
            nn.functional.cross_entropy(compiled(X), Y).backward()
            outputs.append(compiled(X).detach())
            torch.testing.assert_close(outputs[-1], model(X), **CLOSE)
        st.before_step_()
        st.step()
    assert not torch.allclose(outputs[0], outputs[1])
    assert torch.equal(outputs[1], outputs[2])
    assert counter.graphs == 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_graph_per_shape_however_many_tensors(backend):
    model, counter = mlp((8, 16, 16, 16, 16, 4)), Counter(backend)
    penalties = [LotionPenalty(model, "int4/absmax/block=4", ramp=(0, 3)) for _ in range(2)]
    penalties[1].compile(backend=counter, fullgraph=True)
    for _ in range(4):
        gradients = []
        for penalty in penalties:
            model.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            penalty.observe(len(X))
            penalty.add_gradient_()
            penalty.step()
            gradients.append([p.grad for p in model.parameters()])
        for plain, compiled in zip(*gradients, strict=True):
            torch.testing.assert_close(compiled, plain, **CLOSE)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=0.1)
    assert counter.graphs == 3  # 16 x 8, 16 x 16 and 4 x 16


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("text", ["int4/absmax/block=4", pytest.param("e2m1/absmax/row", marks=pytest.mark.slow)])
def test_casts_by_generated_code_are_the_same_bits(backend, text):
    model, counter = mlp((8, 16, 16, 16, 16, 4)), Counter(backend)
    st = StraightThrough(model, text)
    expected = st.points()
    st.compile(backend=counter, fullgraph=True)
    for _ in range(2):
        with st:
            assert all(torch.equal(st.items[k].parameter, expected[item.name]) for k, item in enumerate(st.items))
    assert counter.graphs == 3
