"""The penalty in training loops: order of calls, accumulation, clipping, AMP, parameter groups and resuming."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lotion_theory.training import LotionPenalty, quantized
from tests.torch_models import mlp


def _data(n=16, features=8, classes=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=generator), torch.randint(0, classes, (n,), generator=generator)


def _loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def _optimizer(model, **settings):
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-2, **settings})


def _step(model, optimizer, penalty, x, y):
    _loss(model, x, y).backward()
    penalty.observe(len(x))
    penalty.add_gradient_()
    optimizer.step()
    optimizer.zero_grad()
    penalty.step()


# --- the feedback trap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adding", ["value", "gradient"])
def test_the_penaltys_own_gradient_is_kept_out_of_the_curvature(adding):
    model, (x, y) = mlp(), _data()
    penalty = LotionPenalty(model, "int4")
    with pytest.raises(RuntimeError, match=r"no curvature yet: call observe"):
        penalty.add_gradient_()
    _loss(model, x, y).backward()
    penalty.observe(len(x))
    seen = penalty.curvature_of("0.weight").clone()
    if adding == "value":
        penalty().backward()
    else:
        penalty.add_gradient_()
    for observe in (lambda: penalty.observe(len(x)), lambda: penalty.observe_part(4, 16)):
        with pytest.raises(RuntimeError, match="comes before penalty\\(\\) and add_gradient_\\(\\)"):
            observe()
    assert torch.equal(penalty.curvature_of("0.weight"), seen)
    penalty.step()
    penalty.observe(len(x))


def test_looking_at_the_value_is_not_adding():
    model, (x, y) = mlp(), _data()
    penalty = LotionPenalty(model, "int4")
    _loss(model, x, y).backward()
    penalty.observe(len(x))
    with torch.no_grad():
        penalty()
    assert set(penalty.parts()) == {"0.weight", "2.weight"}
    penalty.observe(len(x))


def test_adams_averages_never_see_the_penalty():
    model, (x, y) = mlp(), _data()
    alone = copy.deepcopy(model)
    optimizer, reference = _optimizer(model, weight_decay=0.0), _optimizer(alone, weight_decay=0.0)
    penalty = LotionPenalty(model, "int4", curvature="adam", optimizer=optimizer, batch_size=len(x), weight=1e-3)
    for call in (penalty, penalty.add_gradient_):
        with pytest.raises(RuntimeError, match=r"use apply_\(optimizer\)"):
            call()
    penalty.apply_(optimizer)  # before the first step there is nothing to go by
    for other, own in ((alone, reference), (model, optimizer)):
        _loss(other, x, y).backward()
        own.step()
    p, q = model[0].weight, alone[0].weight
    assert torch.equal(p, q)
    # The move is that of Adam along this gradient: lr g / (√v̂ + ε), with g from a penalty given the same curvature.
    names = [item.name for item in penalty.items]
    given = LotionPenalty(model, "int4", curvature={n: penalty.curvature_of(n) for n in names}, weight=1e-3)
    p.grad = None
    given.add_gradient_()
    state = optimizer.state[p]
    move = 1e-2 * p.grad / ((state["exp_avg_sq"] / (1 - 0.999)).sqrt() + 1e-8)
    before, averages = p.detach().clone(), state["exp_avg_sq"].clone()
    penalty.apply_(optimizer)
    torch.testing.assert_close(p.detach(), before - move)
    assert torch.equal(state["exp_avg_sq"], averages)
    with pytest.raises(ValueError, match=r"0\.weight is not among the optimizer's parameters"):
        penalty.apply_(torch.optim.SGD(alone.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="needs Adam or AdamW"):
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        LotionPenalty(model, "int4", curvature="adam", optimizer=sgd, batch_size=4)


@pytest.mark.parametrize("eps", [1e-8, 10.0])
def test_the_move_beside_adam_is_divided_as_adam_divides(eps):
    # At the larger ε the root of the average hardly counts, at the smaller one ε does not.
    model, (x, y) = mlp(dtype=torch.float64), _data()
    optimizer = _optimizer(model, weight_decay=0.0, eps=eps)
    penalty = LotionPenalty(model, "int4", curvature="given")
    penalty.set_curvature_({item.name: torch.ones_like(item.parameter) for item in penalty.items})
    for _ in range(3):
        model.zero_grad()
        _loss(model, x.double(), y).backward()
        optimizer.step()
    model.zero_grad()
    penalty.add_gradient_()
    p = model[0].weight
    root = (optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**3)).sqrt()
    assert float(root.max()) < 1
    before = p.detach().clone()
    penalty.apply_(optimizer)
    # A weight of size 1 is rounded to an ulp of 2^-52 once; that is what the difference is off by.
    torch.testing.assert_close(before - p.detach(), 1e-2 * p.grad / (root + eps), rtol=1e-12, atol=2**-51)


# --- accumulation, clipping, AMP, groups -----------------------------------------------------------------------------


def test_accumulation_equals_one_large_batch():
    model, (x, y) = mlp(dtype=torch.float64), _data()
    x = x.double()
    results = []
    for count in (1, 4):
        penalty = LotionPenalty(model, "int4")
        model.zero_grad()
        for part_x, part_y in zip(x.chunk(count), y.chunk(count), strict=True):
            (_loss(model, part_x, part_y) / count).backward()
        penalty.observe(batch_size=len(x))
        penalty.add_gradient_()
        results.append(model[0].weight.grad.clone())
    torch.testing.assert_close(results[0], results[1])


def test_scaled_gradients():
    model, (x, y) = mlp(), _data()
    plain, scaled = LotionPenalty(model, "int4"), LotionPenalty(model, "int4")
    _loss(model, x, y).backward()
    plain.observe(16)
    model.zero_grad()
    (_loss(model, x, y) * 8).backward()
    scaled.observe(16, scale=8.0)
    torch.testing.assert_close(scaled.curvature_of("0.weight"), plain.curvature_of("0.weight"))


def test_clipping_comes_after():
    model, (x, y) = mlp(), _data()
    penalty = LotionPenalty(model, "int4", weight=100.0)
    _loss(model, x, y).backward()
    penalty.observe(16)
    unclipped = penalty.curvature_of("0.weight").clone()
    penalty.add_gradient_()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert torch.equal(penalty.curvature_of("0.weight"), unclipped)


def test_autocast_and_gradient_scaling():
    model, (x, y) = mlp(), _data()
    plain = LotionPenalty(model, "int4", curvature={"0.weight": torch.ones(16, 8), "2.weight": torch.ones(4, 16)})
    expected = plain()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = plain()
        loss = _loss(model, x, y)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    # bf16 activations; gradients, unscaled first, are those of the weights in float32.
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    penalty = LotionPenalty(model, "int4")
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    penalty.observe(16)
    model_gradient = model[0].weight.grad.clone()
    torch.testing.assert_close(penalty.curvature_of("0.weight"), 16 * model_gradient.square())
    penalty.add_gradient_()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("mean", ["neglected", "tracked"])
def test_an_overflow_is_left_out_as_a_whole(bad, mean):
    model, (x, y) = mlp(), _data()
    penalty = LotionPenalty(model, "int4", mean=mean)
    _loss(model, x, y).backward()
    penalty.observe(16)
    before = [penalty.curvature_of(item.name).clone() for item in penalty.items]
    model[2].weight.grad[1, 2] = bad
    penalty.observe(16)
    after = [penalty.curvature_of(item.name) for item in penalty.items]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_parameters_without_a_gradient_count_as_zero():
    model, (x, y) = mlp(), _data()
    penalty = LotionPenalty(model, "int4", decay=0.5)
    _loss(model, x, y).backward()
    penalty.observe(16)
    first = penalty.curvature_of("0.weight").clone()
    model[0].weight.grad = None
    penalty.observe(16)
    # (½ ½ h + ½ 0) / (1 - ¼)
    torch.testing.assert_close(penalty.curvature_of("0.weight"), first / 3)
    penalty.add_gradient_()
    assert model[0].weight.grad is not None


def test_parameter_groups_keep_their_rates():
    model, (x, y) = mlp(), _data()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    penalty = LotionPenalty(model, "int4")
    before = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    _step(model, optimizer, penalty, x, y)
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[1])


def test_attached_to_an_optimizer_it_counts_steps():
    model, (x, y) = mlp(), _data()
    optimizer = _optimizer(model)
    penalty = LotionPenalty(model, "int4", ramp=(0, 4))
    handle = penalty.attach(optimizer)
    for _ in range(3):
        _loss(model, x, y).backward()
        penalty.observe(16)
        penalty.add_gradient_()
        optimizer.step()
    assert float(penalty.weight_now) == 0.75
    handle.remove()


def test_observations_are_checked():
    model, (x, y) = mlp(), _data()
    penalty = LotionPenalty(model, "int4")
    _loss(model, x, y).backward()
    for call, message in [
        (lambda: penalty.observe(0), "batch_size = 0"),
        (lambda: penalty.observe(16.0), "batch_size = 16.0"),
        (lambda: penalty.observe(16, scale=0.0), "scale = 0.0"),
        (lambda: penalty.observe_part(16, 16), "a part of 16 samples out of 16"),
        (lambda: LotionPenalty(model, "int4", mean="tracked").observe_part(4, 16), "use one of the two"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    given = LotionPenalty(model[0], "int4", curvature="given")
    for call in (lambda: given.observe(4), lambda: given.observe_part(4, 8)):
        with pytest.raises(RuntimeError, match="this one is 'given'"):
            call()
    with pytest.raises(RuntimeError, match="no curvature yet: call set_curvature_"):
        given()
    with pytest.raises(RuntimeError, match="this one is 'fisher'"):
        penalty.set_curvature_({})
    with pytest.raises(ValueError, match=r"'nothing' is not quantized; quantized: 0.weight, 2.weight"):
        penalty.curvature_of("nothing")


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"mean": "tracked"}, {"ramp": (0, 6)}])
def test_resuming_is_bit_identical(settings, tmp_path):
    def fresh():
        model = mlp()
        return model, _optimizer(model), LotionPenalty(model, "int4", **settings)

    x, y = _data()
    model, optimizer, penalty = fresh()
    for k in range(6):
        if k == 3:
            parts = {"model": model, "optimizer": optimizer, "penalty": penalty}
            torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "state.pt")
        _step(model, optimizer, penalty, x, y)
    again = dict(zip(("model", "optimizer", "penalty"), fresh(), strict=True))
    for name, state in torch.load(tmp_path / "state.pt").items():
        again[name].load_state_dict(state)
    for _ in range(3):
        _step(*again.values(), x, y)
    for p, q in zip(model.parameters(), again["model"].parameters(), strict=True):
        assert torch.equal(p, q)


def test_states_that_do_not_fit_are_refused():
    state = LotionPenalty(mlp(), "int4").state_dict()
    with pytest.raises(ValueError, match=r"state\['kind'\] is 'fisher', expected 'gnb'"):
        LotionPenalty(mlp(), "int4", curvature="gnb").load_state_dict({**state, "curvature": {}})
    with pytest.raises(ValueError, match=r"has shape \(16, 8\), expected \(8, 8\)"):
        LotionPenalty(mlp((8, 8, 4)), "int4").load_state_dict(state)
    with pytest.raises(ValueError, match=r"state\['curvature'\]\['average'\] has \['0.weight', '2.weight'\]"):
        LotionPenalty(mlp(), "int4", exclude=("0.*",)).load_state_dict(state)


def test_training_with_the_penalty_lowers_the_quantized_loss():
    # A check of the whole: same start, same data, cast at the end.
    x, y = _data(n=64)
    losses = []
    for weight in (0.0, 1.0):
        model = mlp((8, 32, 4))
        optimizer = _optimizer(model, lr=3e-3, weight_decay=0.0)
        penalty = LotionPenalty(model, "int3/absmax/tensor", weight=weight)
        for _ in range(300):
            _step(model, optimizer, penalty, x, y)
        with quantized(penalty), torch.no_grad():
            losses.append(float(_loss(model, x, y)))
    assert losses[1] < losses[0]
    assert np.isfinite(losses).all()
