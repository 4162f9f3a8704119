"""The penalty in torch: its value against enumeration and variance, its gradient against autograd and the closed form."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from lotion_theory import Quantizer, smoothed_loss
from lotion_theory.smoothing import closed_form
from lotion_theory.training import LotionPenalty
from tests import strategies
from tests.strategies import as_torch, examples, probes
from tests.torch_models import mlp, second_of_two

LEAN = ("int2/absmax", "int4/absmax", "int8/absmax", "e2m1/absmax", "nf4/absmax", "binary/absmax")
GENERAL = ("int4full/gauge", "uint4/zp-real", "e2m1/e8m0-floor", "e2m1/e4m3-up", "int4/e8m0-sr", "ternary/absmean")
# A value is a sum of products of differences of levels; each term is off by a few ulp of the largest level squared.
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5}


def _penalty(weights, text, curvature, **settings):
    parameter = nn.Parameter(weights.clone())
    return LotionPenalty([("w", parameter)], text, curvature={"w": curvature}, **settings), parameter


def _both_gradients(weights, text, curvature, scale_gradient):
    """From the value by autograd, and by hand."""
    penalty, p = _penalty(weights, text, curvature, scale_gradient=scale_gradient)
    penalty().backward()
    by_autograd, p.grad = p.grad, None
    penalty.add_gradient_()
    return by_autograd, p.grad


def _size(x, curvature, text):
    """Largest terms that a gradient is a sum of: what its rounding errors are relative to."""
    q = Quantizer.parse(text)
    rows = q.partition.to_blocks(np.abs(strategies.wide(x)) * strategies.wide(curvature))
    return float(rows.sum(axis=1).max())


@pytest.mark.parametrize("text", (*LEAN, *GENERAL))
@pytest.mark.parametrize("partition", ["tensor", "row", "block=4"])
def test_value_is_half_the_weighted_variance(text, partition):
    torch.manual_seed(1)
    w, g = torch.randn(3, 8, dtype=torch.float64), torch.rand(3, 8, dtype=torch.float64)
    penalty, _ = _penalty(w, f"{text}/{partition}", g, weight=0.7)
    q = Quantizer.parse(f"{text}/{partition}")
    expected = 0.7 * 0.5 * float((g * q.variance(w)).sum())
    np.testing.assert_allclose(float(penalty().detach()), expected, rtol=1e-12)
    # The library's own penalty is the same number.
    np.testing.assert_allclose(expected, 0.7 * closed_form.penalty(w.numpy(), q, g.numpy()), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("text", ["int3/absmax/row", "int4/absmax/tensor", "e2m1/absmax/block=2", "nf4/absmax/row"])
def test_value_is_the_enumerated_smoothed_loss_on_linear_regression(text, dtype):
    # Mean-squared error of a linear layer is quadratic in its weights: C8 holds exactly, with H_ii from the inputs.
    model = nn.Linear(4, 2, bias=False, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(20, n, generator=generator, dtype=dtype) for n in (4, 2))
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 4, generator=generator))
    g = (2 / 2 * x.square().mean(dim=0)).expand(2, 4)

    def loss(points):
        out = torch.einsum("ni,poi->pno", x.double(), torch.as_tensor(np.array(points)).double().reshape(-1, 2, 4))
        return (out - y.double()).square().mean(dim=(1, 2)).numpy()

    w = model.weight.detach().numpy()
    penalty = LotionPenalty(model, text, curvature={"weight": g})
    smoothed = smoothed_loss(loss, w.astype(np.float64), text, method="exact").value
    plain = nn.functional.mse_loss(model(x), y)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(float((plain + penalty()).detach()), smoothed, rtol=tolerance)


# A drawn scale cannot be held still: see test_bad_arguments.
CASES = [
    (text, how) for text in (*LEAN, *GENERAL) for how in ("attached", "detached") if "sr" not in text or how[0] == "a"
]


@pytest.mark.parametrize(("text", "scale_gradient"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("partition", ["tensor", "block=4"])
def test_gradients_are_those_of_the_closed_form(text, partition, dtype, scale_gradient):
    text = f"{text}/{partition}"
    torch.manual_seed(2)
    w, g = torch.randn(3, 8, dtype=dtype), torch.rand(3, 8, dtype=dtype)
    w[0, :4] = 0
    w[1, 1] = -w[1].abs().max()  # a tie for the largest magnitude, of either sign
    w[1, 2] = w[1, 1]
    expected = closed_form.penalty_gradient(w.numpy(), text, g.numpy(), moving=scale_gradient == "attached")
    tolerance = RELATIVE[dtype] * _size(w, g, text)
    for gradient in _both_gradients(w, text, g, scale_gradient):
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=tolerance)


@examples(40)
@given(data=st.data(), text=st.sampled_from(LEAN), attached=st.booleans())
def test_gradients_agree_on_probes(data, text, attached):
    w = as_torch(probes(text, "float64", rows=6, size=8, seed=data.draw(st.integers(0, 10**6)), typical=1.0))
    g = torch.rand(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(0))
    scale_gradient = "attached" if attached else "detached"
    by_autograd, by_hand = _both_gradients(w, f"{text}/row", g, scale_gradient)
    expected = closed_form.penalty_gradient(w.numpy(), f"{text}/row", g.numpy(), moving=attached)
    tolerance = RELATIVE[w.dtype] * _size(w, g, f"{text}/row")
    np.testing.assert_allclose(by_autograd.numpy(), expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(by_hand.numpy(), expected, rtol=0, atol=tolerance)


def test_gradient_is_the_derivative_of_the_value():
    torch.manual_seed(3)
    w, g = torch.randn(2, 8, dtype=torch.float64), torch.rand(2, 8, dtype=torch.float64)
    penalty, p = _penalty(w, "int4/absmax/row", g)
    penalty.add_gradient_()
    step = 1e-6
    for index in itertools.product(range(2), range(8)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p.copy_(w)
                p[index] += sign * step
            values.append(float(penalty().detach()))
        # Inside a cell the value is a polynomial of degree 2 in one weight, whose central difference is exact.
        np.testing.assert_allclose((values[0] - values[1]) / (2 * step), float(p.grad[index]), atol=1e-8)


def test_large_tensors_and_other_memory_layouts():
    torch.manual_seed(4)
    w, g = torch.randn(160, 1024), torch.rand(160, 1024)
    for text in ("int4/absmax/tensor", "int4/absmax/row", "int4/absmax/block=32"):
        _, whole = _both_gradients(w, text, g, "attached")
        expected = closed_form.penalty_gradient(w.numpy(), text, g.numpy())
        tolerance = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(whole.numpy(), expected, rtol=0, atol=tolerance)
        parameter = nn.Parameter(w.t().contiguous().t())
        penalty = LotionPenalty([("w", parameter)], text, curvature={"w": g})
        parameter.grad = torch.zeros_like(parameter)
        penalty.add_gradient_()
        assert not parameter.is_contiguous()
        np.testing.assert_allclose(parameter.grad.numpy(), whole.numpy(), rtol=0, atol=tolerance)


def test_adds_to_the_gradients_there_are():
    torch.manual_seed(5)
    penalty, p = _penalty(torch.randn(2, 4), "int4", torch.rand(2, 4))
    penalty.add_gradient_()
    alone, before = p.grad.clone(), torch.randn(2, 4)
    p.grad = before.clone()
    penalty.add_gradient_()
    torch.testing.assert_close(p.grad, before + alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights(dtype):
    # The lattice is that of the stored type, arithmetic is float32, and the gradient is rounded once.
    torch.manual_seed(6)
    w = torch.randn(2, 8).to(dtype)
    penalty, _ = _penalty(w, "int4/absmax/row", torch.rand(2, 8))
    g = penalty.curvature_of("w")
    assert g.dtype == torch.float32
    q, name = Quantizer.parse("int4/absmax/row"), str(dtype).removeprefix("torch.")
    array = strategies.wide(w).astype(strategies.numpy_type(name))
    np.testing.assert_allclose(float(penalty().detach()), closed_form.penalty(array, q, g.numpy()), rtol=1e-6)
    expected = strategies.wide(closed_form.penalty_gradient(array, q, g.numpy()))
    for gradient in _both_gradients(w, "int4/absmax/row", g, "attached"):
        assert gradient.dtype == dtype
        unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
        np.testing.assert_allclose(
            strategies.wide(gradient), expected, rtol=4 * unit, atol=unit * np.abs(expected).max()
        )


def test_no_gradient_reaches_the_curvature_and_grid_points_are_still():
    values = torch.rand(2, 4, requires_grad=True)
    penalty, p = _penalty(Quantizer.parse("int4").cast(torch.randn(2, 4)), "int4", values)
    total = penalty()
    total.backward()
    assert values.grad is None
    assert float(total.detach()) == 0
    assert not p.grad.any()


def test_blocks_of_zeros_and_of_subnormal_numbers():
    w = torch.zeros(3, 4)
    w[1] = torch.tensor([1e-40, -1e-41, 0, 3e-42])
    for text in ("int4/absmax/row", "e2m1/absmax/row"):
        for gradient in _both_gradients(w, text, torch.ones(3, 4), "attached"):
            assert gradient.isfinite().all()
            assert not gradient[[0, 2]].any()


def test_weights_that_are_not_finite_show():
    w = torch.tensor([[1.0, float("nan"), 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    penalty, p = _penalty(w, "int4/absmax/row", torch.ones(2, 4))
    assert torch.isnan(penalty())
    penalty.add_gradient_()
    assert p.grad[0].isnan().any()
    assert p.grad[1].isfinite().all()


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    penalty = LotionPenalty(model, "int4", curvature={"0.weight": torch.ones(8, 8)})
    single = LotionPenalty(model[0], "int4", curvature={"weight": torch.ones(8, 8)})
    assert float(penalty().detach()) == float(single().detach())


def test_ramp_and_weight():
    torch.manual_seed(7)
    w, g = torch.randn(2, 4), torch.rand(2, 4)
    full = float(_penalty(w, "int4", g)[0]().detach())
    penalty, _ = _penalty(w, "int4", g, weight=3.0, ramp=(0.25, 0.75), total_steps=8)
    shares = []
    for _ in range(8):
        shares.append(float(penalty().detach()) / full)
        penalty.step()
    np.testing.assert_allclose(shares, 3 * np.array([0, 0, 0, 0.25, 0.5, 0.75, 1, 1]), rtol=1e-6)
    late, _ = _penalty(w, "int4", g, ramp=(1, 1))
    assert float(late().detach()) == 0
    late.step()
    assert float(late().detach()) == pytest.approx(full)


def test_shards_compute_their_part():
    torch.manual_seed(8)
    w, g = torch.randn(6, 8), torch.rand(6, 8)
    _, expected = _both_gradients(w, "int4/absmax/row", g, "attached")
    rows, _ = _penalty(w[3:], "int4/absmax/row", g[3:])
    with second_of_two() as mesh:
        spread = [DTensor.from_local(x[3:].clone(), mesh, [Shard(0)], run_check=False) for x in (w, g)]
        p = nn.Parameter(spread[0])
        penalty = LotionPenalty([("w", p)], "int4/absmax/row", curvature={"w": spread[1]})
        value = penalty()
        value.backward()
        torch.testing.assert_close(p.grad.to_local(), expected[3:])
        p.grad = None
        penalty.add_gradient_()
        torch.testing.assert_close(p.grad.to_local(), expected[3:])
    torch.testing.assert_close(value, rows())


def test_bad_arguments():
    model = mlp()
    for settings, message in [
        ({"curvature": "hessian"}, "curvature = 'hessian'; valid: fisher, gnb, hutchinson, kfac, adam, given"),
        ({"scale_gradient": "both"}, "scale_gradient = 'both'; valid: attached, detached"),
        ({"weight": -1.0}, "weight = -1.0"),
        ({"ramp": (0.2, 0.1), "total_steps": 10}, "ends before it starts"),
        ({"ramp": (0.0, 1.0)}, "give total_steps"),
        ({"decay": 1.0}, "decay = 1.0"),
        ({"mean": "kept"}, "mean = 'kept'; valid: neglected, tracked"),
        ({"curvature": "adam"}, "needs optimizer and batch_size"),
        ({"curvature": {"0.weight": torch.ones(16, 8)}}, "no curvature given for 2.weight"),
        ({"curvature": {"nothing": torch.ones(2)}}, "'nothing', which is not quantized; quantized: 0.weight, 2.weight"),
        ({"curvature": {"0.weight": torch.ones(2), "2.weight": torch.ones(4, 16)}}, r"has shape \(2,\)"),
        ({"curvature": {"0.weight": -torch.ones(16, 8), "2.weight": torch.ones(4, 16)}}, "negative values"),
    ]:
        with pytest.raises(ValueError, match=message):
            LotionPenalty(model, "int4", **settings)
    with pytest.raises(ValueError, match="draws its scale; use scale_gradient='attached'"):
        LotionPenalty(model, "int4/e8m0-sr/block=4", scale_gradient="detached")
