"""Optimizers and gradient scalers around a step: one step counts once, one that is left out does not."""

import pytest
import torch
from torch import nn

from lotion_theory.training import METHODS, LotionPenalty, StraightThrough, gnb_update
from tests.torch_models import mlp

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
Y = torch.randint(0, 4, (6,), generator=torch.Generator().manual_seed(3))
FORMAT = "int3/absmax/row"
STEPS = 4


def _loss(model):
    return nn.functional.cross_entropy(model(X), Y)


def _groups(model, extra=()):
    return [
        {"params": [model[0].weight, model[0].bias], "lr": 0.1},
        {"params": [model[2].weight, model[2].bias, *extra], "lr": 0.05},
    ]


def _optimizers(model, extra, split):
    groups = _groups(model, extra)
    return [torch.optim.SGD([group]) for group in groups] if split else [torch.optim.SGD(groups)]


def _settings(method):
    return {"cage": {"silent": 0.25}, "crown_q": {"late": 2}}.get(method, {}) | {"total_steps": STEPS}


def _attach(part, optimizers, how):
    if how == "at once":
        part.attach(*optimizers)
    elif how == "in a list":
        part.attach(optimizers)
    else:
        for one in optimizers:
            part.attach(one)
    if how == "twice":
        part.attach(optimizers[-1])


def _straight(method, split, how="at once", reverse=False):
    model = mlp()
    st = StraightThrough(model, FORMAT, method, **_settings(method))
    optimizers = _optimizers(model, st.parameters(), split)
    _attach(st, optimizers, how)
    for _ in range(STEPS):
        with st:
            _loss(model).backward()
        for one in reversed(optimizers) if reverse else optimizers:
            one.step()
        for one in optimizers:
            one.zero_grad()
    assert int(st.count) == STEPS
    return list(model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_two_optimizers_are_one_with_two_groups(method):
    expected = _straight(method, split=False)
    for how in ("at once", "one by one", "twice"):
        assert all(torch.equal(a, b) for a, b in zip(expected, _straight(method, True, how), strict=True)), how
    if method != "lsq":  # whose learned steps get their gradients as the first of the two optimizers steps
        assert all(torch.equal(a, b) for a, b in zip(expected, _straight(method, True, reverse=True), strict=True))


@pytest.mark.parametrize("how", ["at once", "in a list", "one by one", "twice"])
def test_a_penalty_counts_steps_of_several_optimizers_once(how):
    weights = []
    for split in (False, True):
        model = mlp()
        penalty = LotionPenalty(model, FORMAT, ramp=(0, STEPS))
        optimizers = _optimizers(model, (), split)
        _attach(penalty, optimizers, how)
        for _ in range(STEPS):
            _loss(model).backward()
            penalty.observe(6)
            penalty.add_gradient_()
            for one in optimizers:
                one.step()
                one.zero_grad()
        assert int(penalty.count) == STEPS
        weights.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_optimizers_of_different_kinds():
    def muon_and_adam(model):
        return [
            torch.optim.SGD([model[0].weight], lr=0.1, momentum=0.9),
            torch.optim.AdamW([model[0].bias, *model[2].parameters()], lr=0.1),
        ]

    model = mlp()
    optimizers = muon_and_adam(model)
    cage = StraightThrough(model, FORMAT, "cage", silent=0, ramp="constant")
    with pytest.raises(ValueError, match=r"0\.weight is not among the optimizer's parameters"):
        cage.before_step_(optimizers[1])
    before = [p.detach().clone() for p in (model[0].weight, model[2].weight)]
    cage.before_step_(optimizers)
    assert all(not torch.equal(a, b) for a, b in zip(before, (model[0].weight, model[2].weight), strict=True))
    penalty = LotionPenalty(model, FORMAT, curvature="given")
    penalty.set_curvature_({item.name: torch.ones_like(item.parameter) for item in penalty.items})
    before = [p.detach().clone() for p in (model[0].weight, model[2].weight)]
    penalty.apply_(optimizers)
    assert all(not torch.equal(a, b) for a, b in zip(before, (model[0].weight, model[2].weight), strict=True))
    with pytest.raises(ValueError, match=r"0\.weight is not among"):
        LotionPenalty(model, FORMAT, curvature="adam", optimizer=optimizers[1], batch_size=6)
    with pytest.raises(ValueError, match="needs Adam or AdamW"):
        LotionPenalty(model, FORMAT, curvature="adam", optimizer=optimizers, batch_size=6)
    both = [torch.optim.Adam([model[0].weight]), torch.optim.Adam([model[2].weight])]
    adam = LotionPenalty(model, FORMAT, curvature="adam", optimizer=both, batch_size=6)
    _loss(model).backward()
    for one in both:
        one.step()
    adam.apply_(both)
    with pytest.raises(ValueError, match="optimizer is a str; give a torch optimizer"):
        penalty.apply_("sgd")
    with pytest.raises(ValueError, match="needs an optimizer"):
        penalty.attach()


def test_parameters_that_no_optimizer_trains_are_named():
    model = mlp()
    last = _optimizers(model, (), split=True)[-1]
    penalty, qat = LotionPenalty(model, FORMAT), StraightThrough(model, FORMAT)
    quest = StraightThrough(model, FORMAT, "quest")
    for part in (penalty, qat):
        handle = part.attach(last)
        with pytest.warns(UserWarning, match=r"no attached optimizer trains 0\.weight"):
            last.step()
        last.step()  # said once
        assert int(part.count) == 2
        handle.remove()
        handle.remove()
        last.step()
        assert int(part.count) == 2
        part.step()
    quest.attach(last)
    with pytest.raises(RuntimeError, match=r"no attached optimizer trains 0\.weight: attach all"):
        last.step()
    model[0].weight.requires_grad_(False)
    last.step()
    assert int(quest.count) == 1


def test_an_optimizer_that_calls_its_base_class_steps_once():
    class Failing(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            if self.fails:
                raise ZeroDivisionError
            super().step(closure)

    model = mlp()
    torch.optim.SGD(model.parameters(), lr=0.1)  # from the first instance on its class runs hooks
    optimizer, st = Failing(model.parameters(), lr=0.1), StraightThrough(model, FORMAT, "quest")
    st.attach(optimizer)
    for k in range(3):
        with st:
            _loss(model).backward()
        optimizer.fails = k == 1
        if optimizer.fails:
            with pytest.raises(ZeroDivisionError):
                optimizer.step()
            optimizer.fails = False
        optimizer.step()
        optimizer.zero_grad()
        assert int(st.count) == k + 1


def test_counting_by_hand_as_well_is_refused():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for part in (LotionPenalty(model, FORMAT), StraightThrough(model, FORMAT)):
        part.attach(optimizer)
        with pytest.raises(RuntimeError, match=r"do not call step\(\) as well"):
            part.step()


def test_an_optimizer_that_steps_more_rarely():
    model = mlp()
    st, penalty = StraightThrough(model, FORMAT), LotionPenalty(model, FORMAT)
    often, rarely = _optimizers(model, (), split=True)
    for part in (st, penalty):
        part.attach(often, rarely)
    for k in range(4):
        _loss(model).backward()
        often.step()
        if k == 1:
            rarely.step()
    # The last one is open until something of the next step happens.
    assert int(st.count) == int(penalty.count) == 3
    assert int(st.state_dict()["step"]) == int(penalty.state_dict()["step"]) == 4
    often.step()
    with st:
        assert int(st.count) == 5
    penalty.observe(6)
    assert int(penalty.count) == 5


# --- gradient scalers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("fused", [False, True])  # fused ones are called by the scaler whatever it found
@pytest.mark.parametrize("method", ["qat", "rr_ste", "lsq"])
def test_steps_that_a_scaler_leaves_out_do_not_count(method, fused, set_to_none):
    model = mlp()
    st, penalty = StraightThrough(model, FORMAT, method), LotionPenalty(model, FORMAT, ramp=(0, 4))
    optimizer = torch.optim.SGD([*model.parameters(), *st.parameters()], lr=0.1, fused=fused)
    for part in (st, penalty):
        part.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    taken = []
    for k in range(5):
        before, scale = model[2].bias.detach().clone(), scaler.get_scale()
        with st:
            scaler.scale(_loss(model) * (float("inf") if k in (0, 2, 3) else 1.0)).backward()
        scaler.unscale_(optimizer)
        penalty.observe(6)
        penalty.add_gradient_()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=set_to_none)
        taken.append(not torch.equal(model[2].bias, before))
        assert taken[-1] == (scaler.get_scale() == scale)
        assert int(st.count) == int(penalty.count) == sum(taken)
    assert taken == [False, True, False, False, True]
    assert penalty.skipped == 3
    assert all(bool(p.isfinite().all()) for p in [*model.parameters(), *st.parameters()])


def test_a_step_left_out_for_a_parameter_that_is_not_quantized():
    # Its gradient alone overflows: what the penalty sees is finite, and its own part is forgotten with the rest.
    model = mlp()
    penalty, optimizer = LotionPenalty(model, FORMAT), torch.optim.SGD(model.parameters(), lr=0.1)
    penalty.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for k in range(2):
        scaler.scale(_loss(model)).backward()
        if k == 0:
            model[0].bias.grad[0] = float("inf")
        scaler.unscale_(optimizer)
        penalty.observe(6)
        penalty.add_gradient_()
        with pytest.raises(RuntimeError, match="comes before"):
            penalty.observe(6)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert int(penalty.count) == k


def test_corrections_by_hand_of_a_step_that_is_left_out():
    for set_to_none in (True, False):
        model = mlp()
        st, optimizer = StraightThrough(model, FORMAT, "quest"), torch.optim.SGD(model.parameters(), lr=0.1)
        st.attach(optimizer)
        for _ in range(2):
            with st:
                _loss(model).backward()
            st.before_step_(optimizer)
            optimizer.zero_grad(set_to_none)  # and no step
        assert int(st.count) == 0
        with st:
            _loss(model).backward()
        st.before_step_()
        with st:
            _loss(model).backward()  # accumulated onto corrected gradients
        with pytest.raises(RuntimeError, match="corrected already"):
            st.before_step_()


def test_scaled_gradients_are_refused_where_something_is_added_to_them():
    model = mlp()
    st = StraightThrough(model, FORMAT, "cage", form="coupled", silent=0, ramp="constant")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    st.attach(optimizer)
    for unscale in (False, True):
        with st:
            scaler.scale(_loss(model)).backward()
        if unscale:
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            assert int(st.count) == 1
        else:
            with pytest.raises(RuntimeError, match=r"call scaler\.unscale_\(optimizer\) first"):
                scaler.step(optimizer)
            del optimizer.grad_scale, optimizer.found_inf
            scaler.update()
            optimizer.zero_grad()


# --- sparse gradients ------------------------------------------------------------------------------------------------


def _embedding():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 8, sparse=True), nn.Linear(8, 4, bias=False))


TOKENS = torch.tensor([1, 2, 2])


def test_sparse_gradients_are_seen_and_not_added_to():
    model, plain = _embedding(), _embedding()
    plain[0].sparse = False
    sources = []
    for net in (model, plain):
        net(TOKENS).square().mean().backward()
        fisher = LotionPenalty(net, FORMAT)
        fisher.observe(3)
        gnb = LotionPenalty(net, FORMAT, curvature="gnb")
        gnb_update(gnb, net(TOKENS))
        sources.append((fisher, gnb))
    for a, b in zip(*sources, strict=True):
        torch.testing.assert_close(a.curvature_of("0.weight"), b.curvature_of("0.weight"))
    with pytest.raises(RuntimeError, match=r"0\.weight has a sparse gradient, the penalty's is dense"):
        sources[0][0].add_gradient_()
    assert not bool(model[1].weight.grad.isnan().any())
    # As a term of the loss the two are added by autograd.
    sources[0][0]().backward()
    sources[1][0].add_gradient_()
    torch.testing.assert_close(model[0].weight.grad.to_dense(), plain[0].weight.grad)


@pytest.mark.parametrize("method", METHODS)
def test_sparse_gradients_under_straight_through_rules(method):
    model = _embedding()
    st = StraightThrough(model, FORMAT, method, **_settings(method))
    optimizer = torch.optim.SGD([*model.parameters(), *st.parameters()], lr=0.1)
    st.attach(optimizer)
    with st:
        model(TOKENS).square().mean().backward()
    if st.rule.direction is None and st.rule.anchor is None:
        optimizer.step()
        assert int(st.count) == 1
    else:
        with pytest.raises(RuntimeError, match=r"0\.weight has a sparse gradient, which this method cannot correct"):
            optimizer.step()
