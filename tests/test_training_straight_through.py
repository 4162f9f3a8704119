"""Straight-through training: what the loss sees, what comes back, and how loops may go wrong."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from lotion_theory import Quantizer, Stream
from lotion_theory.training import METHODS, Split, StraightThrough
from tests.tolerances import standard_error_bound
from tests.torch_models import mlp, second_of_two

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
Y = torch.randint(0, 4, (6,), generator=torch.Generator().manual_seed(3))


def _loss(model):
    return nn.functional.cross_entropy(model(X), Y)


def _matrices(model):
    return {name: p for name, p in model.named_parameters() if p.ndim == 2}


def _settings(method):
    return {"total_steps": 10} if method in ("cage", "crown_q", "hestia", "parq", "winq") else {}


@pytest.mark.parametrize(
    "text", ["int4/absmax/block=4", "e2m1", "nf4/absmax/row", "e2m1/e8m0-floor/block=8", "int4full/gauge"]
)
def test_the_loss_and_its_gradient_are_those_at_the_casts(text):
    model, q = mlp(), Quantizer.parse(text)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    casts = {name: q.cast(p.detach()).requires_grad_() for name, p in _matrices(model).items()}
    expected = nn.functional.cross_entropy(functional_call(model, casts, (X,)), Y)
    gradients = torch.autograd.grad(expected, list(casts.values()))
    st = StraightThrough(model, text)
    with st:
        loss = _loss(model)
        loss.backward()
        for name, p in _matrices(model).items():
            assert torch.equal(p, casts[name])
    st.before_step_()
    assert torch.equal(loss, expected)
    for p, gradient in zip(_matrices(model).values(), gradients, strict=True):
        assert torch.equal(p.grad, gradient)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


@pytest.mark.parametrize("text", ["int4/absmax/row", "e2m1/e8m0-sr/block=8", "nf4/e4m3-sr/block=8", "e2m1/e4m3-up/row"])
def test_randomized_points_are_roundings_with_noise_of_their_own(text):
    model, q = mlp(), Quantizer.parse(text)
    st, twin = StraightThrough(model, text, "rr_ste", seed=5), StraightThrough(model, text, "rr_ste", seed=5)
    state = torch.get_rng_state()
    first = st.points()
    for name, p in _matrices(model).items():
        for branch in q.branches(p.detach()):
            on = branch.cell
            fits = (first[name].reshape(on.lo.shape) == on.lo) | (first[name].reshape(on.lo.shape) == on.hi)
            assert fits.any()
        assert torch.equal(first[name], twin.points()[name])
    if not q.scale.is_drawn:
        u = Stream(5, "straight-through/0.weight").uniforms((16, 8), 0, like=first["0.weight"])
        assert torch.equal(first["0.weight"], q.round(model[0].weight.detach(), u))
    st.step()
    second = st.points()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_rr_ste_has_the_plain_gradient_on_average():
    # C14: on a quadratic ½ Σ h (w - c)², E[h (RR(w) - c)] = h (w - c), with variance h² Var(RR(w)).
    generator, count = torch.Generator().manual_seed(4), 2000
    w = nn.Parameter(torch.randn(2, 16, generator=generator))
    h, c = torch.rand(2, 16, generator=generator), torch.randn(2, 16, generator=generator)
    st = StraightThrough([("w", w)], "int3/absmax/row", "rr_ste", seed=1)
    total = torch.zeros(2, 16, dtype=torch.float64)
    for _ in range(count):
        total += (h * (st.points()["w"] - c)).double()
        st.step()
    variance = (h**2 * Quantizer.parse("int3/absmax/row").variance(w.detach())).numpy()
    # False alarm 1e-6 over 32 weights; the last term is the float32 rounding of the mean.
    bound = standard_error_bound(variance, count, 1e-6, 32) + 1e-6
    assert (np.abs((total / count - (h * (w.detach() - c))).numpy()) <= bound).all()


@pytest.mark.parametrize("text", ["int4/absmax/row", "e2m1/e8m0-floor/block=8", "nf4/e4m3-sr/block=8"])
def test_quant_noise_rounds_groups_of_weights(text):
    model, q, p, group = mlp(), Quantizer.parse(text), 0.3, 4
    st, rounded = StraightThrough(model, text, "quant_noise", seed=5, p=p, group=group), []
    for _ in range(40):
        for name, weights in _matrices(model).items():
            point, near = st.points()[name].reshape(-1, group), q.cast(weights.detach()).reshape(-1, group)
            as_they_are = weights.detach().reshape(-1, group)
            is_near, is_kept = (point == near).all(1), (point == as_they_are).all(1)
            assert bool((is_near | is_kept).all())
            rounded += is_near[~(is_near & is_kept)].double().tolist()
        st.step()
    bound = standard_error_bound(p * (1 - p), len(rounded), false_alarm=1e-6)
    assert abs(np.mean(rounded) - p) <= bound


# --- leaving the model as it was -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_weights_come_back_bit_for_bit(method):
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
    before = {name: p.detach().clone().view(torch.int32) for name, p in model.named_parameters()}
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    st = StraightThrough(model, "int4/absmax/row", method, **_settings(method))
    with st:
        _loss(model).backward()
    with pytest.raises(ZeroDivisionError), st:
        _ = 1 / 0
    st.points()
    for name, p in model.named_parameters():
        assert torch.equal(p.detach().view(torch.int32), before[name])
        assert p.data_ptr() == places[name]
    assert list(model.state_dict()) == list(mlp().state_dict())


def test_stepping_inside_the_block_is_refused():
    model = mlp()
    before, st = model[0].weight.detach().clone(), StraightThrough(model, "int4")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=r"0\.weight was changed while it held other values"), st:
        _loss(model).backward()
        optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_a_backward_pass_after_the_block_is_refused():
    model = mlp()
    with StraightThrough(model, "int4"):
        loss = _loss(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_order_of_calls_is_checked():
    model = mlp()
    st = StraightThrough(model, "int4", "quest")
    with st:
        with pytest.raises(RuntimeError, match="comes after the block"):
            st.before_step_()
        with pytest.raises(RuntimeError, match="replaced already"), st:
            pass
    with st:
        _loss(model).backward()
    st.before_step_()
    with pytest.raises(RuntimeError, match="corrected already"):
        st.before_step_()
    st.step()
    st.before_step_()
    cage = StraightThrough(model, "int4", "cage", total_steps=4, silent=0.0)
    with pytest.raises(RuntimeError, match="give the optimizer"):
        cage.before_step_()
    lsq = StraightThrough(model, "int4", "lsq")
    with pytest.raises(RuntimeError, match="the optimizer lacks the learned steps"):
        lsq.before_step_(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    StraightThrough(model, "int4").attach(optimizer)
    with pytest.raises(RuntimeError, match="too late for attach"):
        optimizer.step(lambda: _loss(model))


def test_accumulated_micro_batches_equal_one_batch():
    results = []
    for parts in (1, 3):
        model = mlp(dtype=torch.float64)
        st = StraightThrough(model, "int4/absmax/row", "lsq")
        with st:
            for x, y in zip(X.double().chunk(parts), Y.chunk(parts), strict=True):
                (nn.functional.cross_entropy(model(x), y) / parts).backward()
        st.before_step_()
        results.append([model[0].weight.grad, *(p.grad for p in st.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_activation_checkpointing():
    gradients = []
    for keep in (True, False):
        model = mlp()
        with StraightThrough(model, "int3/absmax/row", "rr_ste"):
            hidden = model[:2](X) if keep else checkpoint(model[:2], X, use_reentrant=False)
            nn.functional.cross_entropy(model[2](hidden), Y).backward()
        gradients.append(model[0].weight.grad)
    assert torch.equal(*gradients)


def test_tied_weights_are_rounded_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    st = StraightThrough(model, "int2")
    assert [item.name for item in st.items] == ["0.weight"]
    with st:
        assert torch.equal(model[1].weight, st.items[0].quantizer.cast(model[0].weight.detach()))


# --- when it is on ---------------------------------------------------------------------------------------------------


def test_late_start_and_stop():
    model = mlp()
    plan = Split(total_steps=8, share=0.5)
    for settings, active in [
        ({"start": 3}, [0, 0, 0, 1, 1, 1]),
        ({"start": 0.5, "stop": 0.75, "total_steps": 8}, [0, 0, 0, 0, 1, 1, 0, 0]),
        ({"start": plan.start}, [0, 0, 0, 0, 1, 1]),
    ]:
        st = StraightThrough(model, "int2", **settings)
        for expected in active:
            assert st.active == bool(expected)
            with st:
                changed = not torch.equal(model[0].weight, mlp()[0].weight)
            assert changed == bool(expected)
            st.step()


def test_before_the_start_gradients_are_left_alone():
    model = mlp()
    st = StraightThrough(model, "int4", "lsq", start=1)
    _loss(model).backward()
    gradient = model[0].weight.grad.clone()
    st.before_step_()
    assert torch.equal(model[0].weight.grad, gradient)
    assert all(p.grad is None for p in st.parameters())


def test_resuming():
    def run(st, model, steps):
        optimizer = torch.optim.SGD([*model.parameters(), *st.parameters()], lr=0.05)
        st.attach(optimizer)
        for _ in range(steps):
            with st:
                _loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()

    for method in ("lsq", "rr_ste"):
        model, again = mlp(), mlp()
        st, other = (StraightThrough(m, "int3/absmax/row", method, start=1) for m in (model, again))
        run(st, model, 3)
        again.load_state_dict(model.state_dict())
        other.load_state_dict(st.state_dict())
        run(st, model, 2)
        run(other, again, 2)
        assert torch.equal(model[0].weight, again[0].weight)
    with pytest.raises(ValueError, match=r"state\['method'\] is 'rr_ste', expected 'qat'"):
        StraightThrough(model, "int3/absmax/row").load_state_dict(st.state_dict())


def test_a_learned_step_stays_positive():
    w = nn.Parameter(torch.randn(2, 8))
    st = StraightThrough([("w", w)], "int4/absmax/row", "lsq")
    (step,) = st.parameters()
    before, optimizer = step.detach().clone(), torch.optim.SGD([w, step], lr=1.0)
    with st:
        w.sum().backward()
    st.before_step_(optimizer)
    # One step is thrown far below zero, the other moves a little.
    step.grad = torch.stack([1e3 * before[0], 0.5 * before[1]])
    optimizer.step()
    st.step()
    torch.testing.assert_close(step.detach(), torch.stack([1e-3 * before[0], 0.5 * before[1]]))


# --- sixteen bits, shards, and what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_hold_the_casts_of_their_type(dtype):
    model, q = mlp(dtype=dtype), Quantizer.parse("int4/absmax/block=4")
    with StraightThrough(model, q):
        assert torch.equal(model[0].weight, q.cast(mlp(dtype=dtype)[0].weight.detach()))


@pytest.mark.parametrize(
    ("method", "settings"),
    [("qat", {}), ("rr_ste", {}), ("diffq", {}), ("quant_noise", {"group": 5, "seed": 1})],
    ids=str,
)
def test_shards_see_their_part_of_the_whole(method, settings):
    w = torch.randn(6, 8)
    whole = StraightThrough([("w", nn.Parameter(w.clone()))], "int3/absmax/row", method, **settings).points()["w"]
    with second_of_two() as mesh:
        p = nn.Parameter(DTensor.from_local(w[3:].clone(), mesh, [Shard(0)], run_check=False))
        with StraightThrough([("w", p)], "int3/absmax/row", method, **settings):
            assert torch.equal(p.to_local(), whole[3:])
        assert torch.equal(p.to_local(), w[3:])


def test_bad_arguments():
    model = mlp()
    for arguments, message in [
        ({"method": "ste"}, f"unknown method 'ste'; valid: {', '.join(METHODS)}, noise"),
        ({"method": "ptq"}, "ptq is no straight-through training: train without"),
        ({"method": "hestia"}, "warm = 0.2 is a share"),
        ({"method": "cage", "silent": 3}, "end of silent = 1.0 is a share"),
        ({"scale": "half"}, "scale = 'half'; valid: detached, attached"),
        ({"levels": 3}, "qat has no setting 'levels'; valid: scale"),
        ({"method": "rr_ste", "weight": 1}, "valid: none"),
        ({"method": "cage"}, "give total_steps"),
        ({"method": "cage", "total_steps": 5, "silent": 1.0}, "silent = 1.0"),
        ({"method": "diffq", "variance": -1}, "variance = -1"),
        ({"method": "crown_q", "total_steps": 5, "levels": 0}, "levels = 0"),
        ({"method": "crown_q"}, "late = 0.85 is a share"),
        ({"method": "crown_q", "total_steps": 5, "variant": "true"}, "needs curvature"),
        ({"curvature": {}}, "uses no curvature"),
        ({"start": 0.5}, "start = 0.5 is a share"),
    ]:
        with pytest.raises(ValueError, match=message):
            StraightThrough(model, "int4", **arguments)
    for method in ("diffq", "quest", "crown_q"):
        with pytest.raises(ValueError, match=f"codebook e2m1: {method} is for uniform levels"):
            StraightThrough(model, "e2m1", method, total_steps=4)
    for method, settings in (("lsq", {}), ("pact", {}), ("dsq", {}), ("qat", {"scale": "attached"})):
        with pytest.raises(ValueError, match="can be trained by qat, rr_ste, quant_noise, cage"):
            StraightThrough(model, "int4/e8m0-floor/block=4", method, **settings)
