"""Parameters that a model gets anew, loses or freezes after a trainer was made for them."""

import pytest
import torch
from torch import nn

from lotion_theory import Quantizer
from lotion_theory.training import LotionPenalty, Monitor, StraightThrough, gnb_update, quantized
from tests.torch_models import mlp

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
Y = torch.randint(0, 4, (6,), generator=torch.Generator().manual_seed(3))
COARSE = "int2/absmax/row"


def _loss(model):
    return nn.functional.cross_entropy(model(X), Y)


def _assigned(model):
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()}, assign=True)


def _new_head(model):
    torch.manual_seed(9)
    model[2] = nn.Linear(16, 4)


def _set(model):
    model[0].weight = nn.Parameter(3 * model[0].weight.detach())


def _wrapped(model):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self._checkpoint_wrapped_module = inner

        def forward(self, x):
            return self._checkpoint_wrapped_module(x)

    model[0] = Wrapper(model[0])
    _set_inner = model[0]._checkpoint_wrapped_module
    _set_inner.weight = nn.Parameter(2 * _set_inner.weight.detach())


def _converted(model):
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float64).to(torch.float32)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.parametrize("change", [_assigned, _new_head, _set, _wrapped, _converted])
def test_new_tensors_of_the_same_kind_are_followed(change):
    model = mlp()
    penalty, st, monitor = LotionPenalty(model, COARSE), StraightThrough(model, COARSE), Monitor(model, COARSE)
    stale = [item.parameter for item in penalty.items]
    change(model)
    fresh = LotionPenalty(model, COARSE)
    assert any(a is not item.parameter for a, item in zip(stale, fresh.items, strict=True))
    for part in (penalty, st, monitor):
        assert all(a.parameter is b.parameter for a, b in zip(part.items, fresh.items, strict=True))
    gradients = []
    for one in (penalty, fresh):
        model.zero_grad()
        _loss(model).backward()
        one.observe(len(X))
        one.add_gradient_()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    with torch.no_grad():
        with quantized(fresh):
            expected = float(_loss(model))
        for block in (st, quantized(penalty), quantized(StraightThrough(model, COARSE))):
            with block:
                assert float(_loss(model)) == expected
        assert monitor.losses(lambda: _loss(model))["rtn"] == expected


def test_optimizers_are_looked_up_for_the_parameters_there_are():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    penalty = LotionPenalty(model, COARSE, curvature="adam", optimizer=optimizer, batch_size=6)
    _assigned(model)
    with pytest.raises(ValueError, match=r"0\.weight is not among the optimizer's parameters"):
        penalty.curvature.estimate(0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(5, 8))), r"is \(5, 8\) float32 on cpu by now"),
        (lambda m: m.double(), r"is \(16, 8\) float64 on cpu by now, not \(16, 8\) float32 on cpu"),
        (lambda m: m.to("meta"), "on meta by now"),
        (lambda m: m.pop(0), r"the model has no parameter 0\.weight any more|by now"),
        (lambda m: setattr(m[0], "weight", None), r"the model has no parameter 0\.weight any more"),
    ],
)
def test_other_kinds_of_tensors_are_refused(change, message):
    model = mlp()
    model.append(nn.Tanh())
    curvature = {"0.weight": torch.ones(16, 8), "2.weight": torch.ones(4, 16)}
    penalty, st = LotionPenalty(model, COARSE, curvature=curvature), StraightThrough(model, COARSE)
    change(model)
    for use in (penalty, penalty.add_gradient_, penalty.parts, st.points, st.before_step_, st.__enter__):
        with pytest.raises(RuntimeError, match=message):
            use()


def test_tied_weights_that_come_apart_are_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    penalty = LotionPenalty(model, COARSE, curvature={"0.weight": torch.ones(8, 8)})
    new = nn.Parameter(torch.ones(8, 8))
    model[0].weight = new
    with pytest.raises(RuntimeError, match=r"was tied and is no longer: 0\.weight and 1\.weight hold different"):
        penalty.parts()
    model[1].weight = new
    assert penalty.items[0].parameter is new


def test_another_model_of_the_same_names():
    first, second = mlp(), mlp(seed=3)
    penalty, st = LotionPenalty(first, COARSE, ramp=(0, 4)), StraightThrough(first, COARSE, "lsq")
    _loss(first).backward()
    penalty.observe(6)
    penalty.step(), st.step()
    for part in (penalty, st):
        part.follow_(second)
    fresh = LotionPenalty(second, COARSE, ramp=(0, 4)), StraightThrough(second, COARSE, "lsq")
    for part, other in zip((penalty, st), fresh, strict=True):
        assert all(a.parameter is b.parameter for a, b in zip(part.items, other.items, strict=True))
        assert int(part.count) == 0
    assert not penalty.curvature.ready
    assert all(torch.equal(a, b) for a, b in zip(st.parameters(), fresh[1].parameters(), strict=True))
    with pytest.raises(ValueError, match=r"model that is trained has 0\.weight as \(3, 8\)"):
        penalty.follow_(mlp((8, 3, 4)))
    with pytest.raises(ValueError, match=r"has no parameter 2\.weight"):
        penalty.follow_(mlp((8, 16)))
    assert penalty.items[0].parameter is second[0].weight
    with st, pytest.raises(RuntimeError, match="weights are replaced"):
        st.follow_(first)


# --- frozen later ----------------------------------------------------------------------------------------------------


def test_layers_frozen_later_stay_where_they_are():
    for curvature in ("fisher", "gnb", "kfac", "adam"):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        more = {"optimizer": optimizer, "batch_size": 6} if curvature == "adam" else {}
        penalty = LotionPenalty(model, COARSE, curvature=curvature, weight=10.0, **more)
        if curvature == "kfac":
            penalty.watch(model)
        model[0].requires_grad_(False)
        for _ in range(2):
            before = [p.detach().clone() for p in model.parameters()]
            if curvature == "gnb":
                gnb_update(penalty, model(X))
            _loss(model).backward()
            if curvature in ("fisher", "kfac"):
                penalty.observe(6)
            if curvature == "adam":
                penalty.apply_(optimizer)
            else:
                penalty.add_gradient_()
            assert model[0].weight.grad is None
            optimizer.step(), optimizer.zero_grad(), penalty.step()
        assert torch.equal(model[0].weight, before[0])
        assert not torch.equal(model[2].weight, before[2])


@pytest.mark.parametrize("method", ["cage", "quest", "crown_q"])
def test_no_correction_moves_frozen_layers(method):
    model = mlp()
    settings = {"cage": {"silent": 0, "ramp": "constant"}, "crown_q": {"late": 0}}.get(method, {})
    st = StraightThrough(model, COARSE, method, **settings)
    with st:
        _loss(model).backward()
    model[0].requires_grad_(False)
    gradient, weight = model[0].weight.grad.clone(), model[0].weight.detach().clone()
    st.before_step_(torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(model[0].weight.grad, gradient)
    assert torch.equal(model[0].weight, weight)
    # What is deployed is quantized, frozen or not.
    with st:
        assert (method == "quest") or torch.equal(model[0].weight, Quantizer.parse(COARSE).cast(weight))


def test_a_parameter_without_averages_has_no_curvature():
    # Adam keeps none for what has had no gradient; the others are not held up.
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    penalty = LotionPenalty(model, COARSE, curvature="adam", optimizer=optimizer, batch_size=6)
    model[2](torch.randn(6, 16)).square().mean().backward()
    optimizer.step()
    assert not penalty.curvature_of("0.weight").any()
    assert penalty.curvature_of("2.weight").any()
