"""What monitors measure, and casts that leave no trace."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lotion_theory import Quantizer, Stream
from lotion_theory.training import LotionPenalty, Monitor, StraightThrough, quantized
from tests.tolerances import standard_error_bound
from tests.torch_models import mlp


def _given(model, **settings):
    curvature = {name: torch.ones_like(p) for name, p in model.named_parameters() if p.ndim == 2}
    return LotionPenalty(model, "int4/absmax/row", curvature=curvature, **settings)


def test_activity_is_measured():
    model = mlp()
    penalty = _given(model, ramp=(1, 1), weight=2.0)
    off = Monitor(penalty).measure()
    assert (off["penalty"], off["penalty_gradient"], off["penalty_active"]) == (0, 0, 0)
    penalty.step()
    on = Monitor(penalty).measure()
    assert on["penalty"] == pytest.approx(float(penalty().detach()))
    penalty.add_gradient_()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert on["penalty_gradient"] == pytest.approx(float(norm))
    assert on["penalty_active"] == 1

    st = StraightThrough(model, "int4/absmax/row", start=1)
    assert Monitor(st).measure()["straight_through_active"] == 0
    st.step()
    measured = Monitor(st).measure()
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim == 2])
    casts = torch.cat([st.items[0].quantizer.cast(p.detach()).flatten() for p in model.parameters() if p.ndim == 2])
    assert measured["forward_shift"] == pytest.approx(float((casts - weights).norm() / weights.norm()))
    assert measured["straight_through_active"] == 1
    # Switched on, and yet without effect: on the grid nothing moves. A switch would not have told.
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.copy_(st.items[0].quantizer.cast(p))
    assert st.active
    assert Monitor(st).measure()["straight_through_active"] == 0


@pytest.mark.parametrize("text", ["int4", "int4full/gauge", "e2m1/e8m0-sr"])
def test_phases(text):
    # The top level, and with step 1 phases 0, 0, .05, .95, .1, .5, .85 in its cells.
    top = 4.0 if text.startswith("e2m1") else 7.0
    unit = 0.5 if text.startswith("e2m1") else 1.0
    w = nn.Parameter(torch.tensor([[top, 0.0, 0.05 * unit, 0.95 * unit, 0.0999 * unit, 0.5 * unit, -0.85 * unit]]))
    measured = Monitor([("w", w)], text).measure()
    assert measured["on_grid"] == pytest.approx(2 / 7)
    assert measured["outer_tenth"] == pytest.approx(5 / 7)


def test_uniform_phases_put_a_fifth_into_the_outer_tenths():
    torch.manual_seed(0)
    w = nn.Parameter(7 * (2 * torch.rand(1, 20001) - 1))
    with torch.no_grad():
        w[0, 0] = 7.0
    share = Monitor([("w", w)], "int4").measure()["outer_tenth"]
    assert abs(share - 0.2) <= standard_error_bound(0.16, 20000, 1e-6) + 1e-4


def test_scale_drift():
    w = nn.Parameter(torch.tensor([[2.0, 1.0], [0.0, 0.0], [1.0, -4.0]]))
    monitor = Monitor([("w", w)], "int4/absmax/row")
    assert math.isnan(monitor.measure()["scale_drift"])
    assert monitor.measure()["scale_drift"] == 0
    with torch.no_grad():
        w[0, 0], w[2, 1] = 2.2, 3.6
    assert monitor.measure()["scale_drift"] == pytest.approx(math.sqrt((0.1**2 + 0 + 0.1**2) / 3))


@pytest.mark.parametrize("text", ["int3/absmax/row", "e2m1/e8m0-sr/block=4"])
def test_losses(text):
    model, q = mlp((4, 3)), Quantizer.parse(text)
    w = model[0].weight
    before = w.detach().clone()

    def evaluate():
        return w.detach().square().sum()

    state = torch.get_rng_state()
    monitor = Monitor(model, text)
    losses = monitor.losses(evaluate, samples=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(w, before)
    assert losses["float"] == float(evaluate())
    assert losses["rtn"] == float(q.cast(before).square().sum())
    assert losses["gap"] == losses["rtn"] - losses["float"]
    # E Σ RR(w)² = Σ w² + Σ Var(RR(w)).
    expected = float((before.square() + q.variance(before)).sum())
    assert abs(losses["rr"] - expected) <= 5 * losses["rr_error"]
    assert monitor.losses(evaluate, samples=100) == losses
    assert monitor.losses(evaluate, samples=100, draw=1)["rr"] != losses["rr"]
    assert math.isnan(monitor.losses(evaluate)["rr_error"])
    with pytest.raises(ValueError, match="samples = 0"):
        monitor.losses(evaluate, samples=0)


def test_casts_come_and_go():
    model, q, stream = mlp(), Quantizer.parse("int4/absmax/row"), Stream(1, "evaluation")
    before = [p.detach().clone() for p in model.parameters()]
    with quantized(model, q, exclude=("2.*",)) as items:
        assert [item.name for item in items] == ["0.weight"]
        assert torch.equal(model[0].weight, q.cast(before[0]))
        assert torch.equal(model[2].weight, before[2])
    with quantized(model, q, kind="randomized", stream=stream, step=3):
        u = stream.spawn("0.weight").uniforms((16, 8), 3, like=before[0])
        assert torch.equal(model[0].weight, q.round(before[0], u))
    with pytest.raises(ZeroDivisionError), quantized(model, q):
        _ = 1 / 0
    for p, original in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, original)
    model.requires_grad_(False)
    with quantized(model, q, frozen=True):
        assert torch.equal(model[2].weight, q.cast(before[2]))


def test_casts_are_those_of_deployment_inside_a_trainers_block():
    # Rounding to nearest is idempotent: casting what straight-through training has rounded already changes nothing.
    model = mlp()
    st = StraightThrough(model, "int4/absmax/block=4")
    with st, torch.no_grad():
        inside = model[0].weight.clone()
        with quantized(st):
            assert torch.equal(model[0].weight, inside)


def test_bad_casts():
    model = mlp()
    for settings, message in [
        ({"kind": "up"}, "kind = 'up'; valid: nearest, randomized"),
        ({"kind": "randomized"}, "needs stream"),
        ({"stream": Stream(0, "x")}, "'nearest' takes none"),
    ]:
        with pytest.raises(ValueError, match=message), quantized(model, "int4", **settings):
            pass
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="NaN"), quantized(model, "int4"):
        pass
    assert torch.equal(model[0].weight, before)
    np.testing.assert_array_equal(torch.isnan(model[2].weight).sum(), 1)
