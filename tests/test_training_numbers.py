"""Values at the ends of the float range, numbers that are none, and states that belong to something else."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from lotion_theory.arguments import integer, number
from lotion_theory.training import LotionPenalty, Monitor, Split, StraightThrough, gnb_update, optimal_share, recipes
from lotion_theory.training.curvature import SCALES
from lotion_theory.training.schedules import Ramp
from tests.torch_models import mlp

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
Y = torch.randint(0, 4, (16,), generator=torch.Generator().manual_seed(3))
BAD = (float("nan"), float("inf"), -float("inf"))


def _loss(model):
    return nn.functional.cross_entropy(model(X), Y)


def _step(penalty, model, value=None):
    """One observation, of a gradient with ``value`` in one place."""
    model.zero_grad()
    _loss(model).backward()
    if value is not None:
        model[0].weight.grad[1, 2] = value
    penalty.observe(16)
    penalty.step()


# --- observations that are left out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["neglected", "tracked"])
@pytest.mark.parametrize("value", [*BAD, 1e20, -3e38])
def test_gradients_that_overflow_leave_the_curvature_as_it_was(mean, value):
    # 1e20 is finite, its square in float32 is not: once in a moving average it would stay for ever.
    model, twin = mlp(), mlp()
    penalty, clean = LotionPenalty(model, "int4", mean=mean), LotionPenalty(twin, "int4", mean=mean)
    _step(penalty, model, value)
    assert penalty.skipped == 1
    # Until there is a curvature the penalty is zero, and harmless.
    assert float(penalty().detach()) == 0
    assert not penalty.curvature_of("0.weight").any()
    model.zero_grad()
    penalty.add_gradient_()
    assert not any(p.grad.any() for p in (model[0].weight, model[2].weight))
    penalty.step()
    for k in range(4):
        if k == 2:
            _step(penalty, model, value)
        _step(penalty, model)
        _step(clean, twin)
    assert penalty.skipped == 2
    assert Monitor(penalty).measure()["skipped_observations"] == 2
    for name in ("0.weight", "2.weight"):
        assert torch.equal(penalty.curvature_of(name), clean.curvature_of(name))


@pytest.mark.parametrize("value", [*BAD, 1e20])
@pytest.mark.parametrize("late", [False, True])
def test_an_overflow_in_either_half_of_an_accumulation_leaves_out_both(value, late):
    # Half of an observation is biased: a part without the rest, or the rest without its part.
    model, twin = mlp(), mlp()
    penalty, clean = LotionPenalty(model, "int4"), LotionPenalty(twin, "int4")

    def step(penalty, model, bad):
        model.zero_grad()
        for k, rows in enumerate((slice(0, 4), slice(4, 16))):
            (nn.functional.cross_entropy(model(X[rows]), Y[rows]) * len(X[rows]) / 16).backward()
            if bad and k == late:
                model[0].weight.grad[1, 2] = value
            if k == 0:
                penalty.observe_part(4, 16, scale=1 / 4)
                if bad:
                    model.zero_grad()
        penalty.observe(16)
        penalty.step()

    for k in range(5):
        if k in (0, 3):
            step(penalty, model, True)
        step(penalty, model, False)
        step(clean, twin, False)
    assert (penalty.skipped, clean.skipped) == (2, 0)
    for name in ("0.weight", "2.weight"):
        assert torch.equal(penalty.curvature_of(name), clean.curvature_of(name))


@pytest.mark.parametrize("settings", [{"curvature": "gnb"}, {"curvature": "fisher"}])
@pytest.mark.parametrize("text", ["int4/absmax/row", "e2m1", "mxfp4/block=4", "nf4"])
def test_variances_that_overflow_float32_are_no_nan_without_curvature(text, settings):
    # Of weights around 1e30 variances are 1e60; losses that are so far out have no curvature that float32 can hold.
    model = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        model.weight.mul_(1e30)
    penalty = LotionPenalty(model, text, **settings)
    model.weight.grad = torch.zeros_like(model.weight)
    if penalty.kind == "gnb":
        gnb_update(penalty, model(X[:, :8]))
    else:
        penalty.observe(16)
    assert not penalty.curvature_of("weight").any()
    value = penalty()
    value.backward()
    assert float(value.detach()) == 0 and not model.weight.grad.any()
    assert not any(part.any() for part in penalty.parts().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_largest_square_that_fits_is_taken(dtype):
    model = mlp(dtype=dtype)
    top = torch.finfo(torch.promote_types(dtype, torch.float32)).max
    penalty = LotionPenalty(model, "int4", decay=0.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    fits = torch.tensor(0.9 * math.sqrt(top / 16), dtype=dtype)
    for value, skipped in ((fits, 0), (fits * 2, 1)):
        model[0].weight.grad[0, 0] = value
        penalty.observe(batch_size=16)
        assert penalty.skipped == skipped
        assert float(penalty.curvature_of("0.weight")[0, 0]) == pytest.approx(16 * float(fits.double()) ** 2, rel=1e-6)


def test_an_overflow_in_kfac_is_left_out():
    model, twin = mlp(), mlp()
    penalties = [LotionPenalty(net, "int4", curvature="kfac") for net in (model, twin)]
    for penalty, net in zip(penalties, (model, twin), strict=True):
        penalty.watch(net)
    bad = X.clone()
    bad[0, 0] = 1e20
    for k in range(4):
        for penalty, net in zip(penalties, (model, twin), strict=True):
            if k in (0, 2) and net is model:
                nn.functional.cross_entropy(net(bad), Y).backward()
                penalty.observe(16)
            _loss(net).backward()
            penalty.observe(16)
    assert [penalty.skipped for penalty in penalties] == [2, 0]
    for name in ("0.weight", "2.weight"):
        assert torch.equal(*(penalty.curvature_of(name) for penalty in penalties))


def test_logits_that_are_not_finite_are_left_out():
    model = mlp()
    penalty = LotionPenalty(model, "int4", curvature="gnb")
    for value in BAD:
        logits = model(X)
        gnb_update(penalty, logits + torch.tensor([value, 0.0, 0.0, 0.0]))
    # A class that is ruled out by -inf is a probability of 0, and fine.
    assert penalty.skipped == 2
    assert bool(penalty.curvature_of("0.weight").any())


def test_a_scale_is_taken_out_before_squares():
    # Powers of two change nothing; their squares would overflow or vanish.
    found = []
    for scale in (1.0, 2.0**100, 2.0**-20):
        model = mlp()
        penalty = LotionPenalty(model, "int4")
        (_loss(model) * scale).backward()
        penalty.observe(16, scale=scale)
        found.append(penalty.curvature_of("0.weight"))
    assert all(torch.equal(found[0], other) for other in found[1:])


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*BAD, "1", None, True, 1j, [1.0], np.ones(1), torch.ones(2), -1.0])
def test_what_is_no_number_in_range(value):
    with pytest.raises(ValueError, match=r"^x = .*; must be a finite number of at least 0$"):
        number(value, "x", 0.0)
    with pytest.raises(ValueError, match=r"^n = .*; must be a positive integer$"):
        integer(value, "n")


def test_numbers_of_other_libraries():
    for one in (1, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1)):
        assert type(integer(one, "n")) is int and integer(one, "n") == 1
        assert type(number(one, "x")) is float and number(one, "x") == 1
    for half in (0.5, np.float32(0.5), np.float16(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16)):
        assert type(number(half, "x")) is float and number(half, "x") == 0.5
        with pytest.raises(ValueError, match="n = "):
            integer(half, "n")
    with pytest.raises(ValueError, match=r"x = 0\.0; must be a finite number above 0"):
        number(0, "x", 0.0, open_below=True)
    with pytest.raises(ValueError, match=r"x = 2\.0; must be a number in \[0, 1\]"):
        number(2, "x", 0.0, 1.0)
    with pytest.raises(ValueError, match="n = 0; must be an integer of at least 2"):
        integer(0, "n", 2)
    model = mlp()
    ours = LotionPenalty(model, "int4", weight=0.5, ramp=(1, 4), decay=0.5)
    theirs = LotionPenalty(
        model, "int4", weight=np.float32(0.5), ramp=(np.int64(1), torch.tensor(0.5)), total_steps=np.int32(8),
        decay=torch.tensor(0.5),
    )  # fmt: skip
    _loss(model).backward()
    for batch, scale, penalty in ((16, 2.0, ours), (np.int64(16), torch.tensor(2.0), theirs)):
        penalty.observe(batch, scale)
        penalty.step(), penalty.step()
    assert float(ours().detach()) == float(theirs().detach()) != 0


@pytest.mark.parametrize("value", [*BAD, "much", None])
def test_settings_that_are_no_numbers_are_refused(value):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    penalty = LotionPenalty(model, "int4")
    gnb = LotionPenalty(model, "int4", curvature="gnb")

    def straight(method, name):
        return name, lambda: StraightThrough(model, "int4", method, total_steps=8, **{name: value})

    calls = [
        ("weight", lambda: LotionPenalty(model, "int4", weight=value)),
        ("weight", lambda: setattr(penalty, "weight", value)),
        ("decay", lambda: LotionPenalty(model, "int4", decay=value)),
        ("decay", lambda: LotionPenalty(model, "int4", decay=value, curvature="kfac")),
        ("start", lambda: LotionPenalty(model, "int4", ramp=(value, 4), total_steps=8)),
        ("end", lambda: Ramp(0, value, 8)),
        ("batch_size", lambda: penalty.observe(value)),
        ("scale", lambda: penalty.observe(16, value)),
        ("scale", lambda: penalty.observe_part(4, 16, value)),
        ("scale", lambda: gnb_update(gnb, model(X), scale=value)),
        ("start", lambda: StraightThrough(model, "int4", start=value, total_steps=8)),
        straight("cage", "weight"),
        straight("cage", "silent"),
        straight("diffq", "variance"),
        straight("crown_q", "weight"),
        straight("crown_q", "late"),
        ("tokens", lambda: optimal_share(value, 1.0, 4.0)),
        ("share", lambda: Split(8, value)),
        ("warmup", lambda: Split(8, 0.5, warmup=value)),
        ("rewarm", lambda: Split(8, 0.5, rewarm=value)),
        ("total_steps", lambda: Split(value, 0.5)),
        ("samples", lambda: Monitor(model, "int4").losses(lambda: 0.0, samples=value)),
    ]
    if value is not None:  # which means something there
        calls += [
            ("batch_size", lambda: LotionPenalty(model, "int4", "adam", optimizer=optimizer, batch_size=value)),
            ("batch_size", lambda: gnb_update(gnb, model(X), batch_size=value)),
            ("batch_size", lambda: recipes.Hooks(penalty, batch_size=value)),
            ("max_norm", lambda: recipes.Hooks(penalty, batch_size=4, max_norm=value)),
            straight("crown_q", "levels"),
            ("total_steps", lambda: LotionPenalty(model, "int4", total_steps=value)),
        ]
    for name, call in calls:
        with pytest.raises(ValueError, match=rf"^{name} = "):
            call()


def test_scales_beyond_float32_are_refused():
    penalty = LotionPenalty(mlp(), "int4")
    for scale in (0.0, -1.0, 1e-200, 1e200):
        with pytest.raises(ValueError, match="scale = "):
            penalty.observe(4, scale)
    for scale in SCALES:
        penalty.observe(4, scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_given_curvature_is_copied_whole_or_not_at_all(value):
    penalty = LotionPenalty(mlp(), "int4", curvature={"0.weight": torch.ones(16, 8), "2.weight": torch.ones(4, 16)})
    bad = torch.ones(4, 16)
    bad[0, 0] = value
    with pytest.raises(ValueError, match=r"curvature of 2\.weight holds negative values, NaN or infinities"):
        penalty.set_curvature_({"0.weight": 2 * torch.ones(16, 8), "2.weight": bad})
    assert float(penalty.curvature_of("0.weight").max()) == 1


# --- states ----------------------------------------------------------------------------------------------------------


def _penalty(text, sizes=(8, 16, 4), **settings):
    return LotionPenalty(mlp(sizes), text, **settings)


def _straight(text, sizes=(8, 16, 4), method="lsq"):
    return StraightThrough(mlp(sizes), text, method)


@pytest.mark.parametrize("make", [_penalty, _straight])
def test_states_of_other_formats_and_models_are_refused(make):
    state = make("int8/absmax/row").state_dict()
    make("int8/absmax/row").load_state_dict(copy.deepcopy(state))
    # Learned steps of an int8 grid would clip nearly every weight of an int4 one.
    with pytest.raises(ValueError, match=r"state\['format'\] is 'int8/absmax/row', expected 'int4/absmax/row'"):
        make("int4/absmax/row").load_state_dict(state)
    with pytest.raises(ValueError, match=r"expected 'int8'|expected \(1, 1\)"):
        make("int8").load_state_dict(state)
    with pytest.raises(ValueError, match=r"\(16, 8\)|\(16, 1\)|\[16, 8\]"):
        make("int8/absmax/row", (8, 3, 4)).load_state_dict(state)
    # A matrix of other shape with as many rows has as many learned steps.
    with pytest.raises(ValueError, match=r"has shape \(16, 8\)|is \[16, 8\], expected \[16, 6\]"):
        make("int8/absmax/row", (6, 16, 4)).load_state_dict(state)
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    make("int8/absmax/row").load_state_dict(torch.load(stored, weights_only=True))


@pytest.mark.parametrize("curvature", ["adam", "kfac"])
def test_states_without_buffers_of_the_weights_name_them_too(curvature):
    def make(text):
        model = mlp()
        more = {"optimizer": torch.optim.Adam(model.parameters()), "batch_size": 4} if curvature == "adam" else {}
        return LotionPenalty(model, text, curvature=curvature, **more)

    with pytest.raises(ValueError, match=r"state\['format'\] is 'int8', expected 'int4'"):
        make("int4").load_state_dict(make("int8").state_dict())


def test_a_state_of_another_number_type_is_refused():
    state = _penalty("int4").state_dict()
    with pytest.raises(ValueError, match=r"state\['step'\] has type torch\.float32, expected torch\.int64"):
        _penalty("int4").load_state_dict({**state, "step": torch.tensor(2.5)})


# --- default type and device -----------------------------------------------------------------------------------------

SOURCES = ("fisher", "tracked", "gnb", "kfac", "adam", "given")
BASE = mlp()  # made before any default changes
RULES = ("qat", "rr_ste", "cage", "quest", "lsq", "diffq", "crown_q")


def _train_penalty(source):
    model = copy.deepcopy(BASE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    more = {"optimizer": optimizer, "batch_size": 16} if source == "adam" else {}
    more |= {"mean": "tracked"} if source == "tracked" else {}
    kind = "fisher" if source == "tracked" else source
    penalty = LotionPenalty(model, "int4/absmax/block=4", curvature=kind, ramp=(0, 2), **more)
    if source == "kfac":
        penalty.watch(model)
    if source == "given":
        penalty.set_curvature_({item.name: torch.ones_like(item.parameter) for item in penalty.items})
    for seed in range(2):
        if source == "gnb":
            gnb_update(penalty, model(X), seed=seed)
        _loss(model).backward()
        if kind in ("fisher", "kfac"):
            penalty.observe(16)
        if source == "adam":
            penalty.apply_(optimizer)
        else:
            penalty.add_gradient_()
        optimizer.step(), optimizer.zero_grad(), penalty.step()
    penalty.load_state_dict(copy.deepcopy(penalty.state_dict()))
    return model, penalty


def _train_straight(method):
    model = copy.deepcopy(BASE)
    st = StraightThrough(model, "int4/absmax/block=4", method, total_steps=3)
    optimizer = torch.optim.SGD([*model.parameters(), *st.parameters()], lr=0.05)
    st.attach(optimizer)
    for _ in range(2):
        with st:
            _loss(model).backward()
        optimizer.step(), optimizer.zero_grad()
    return model, st


def _numbers(name):
    model, part = _train_penalty(name) if name in SOURCES else _train_straight(name)
    monitor = Monitor(part)
    monitor.measure()
    measured = {**monitor.measure(), **monitor.losses(lambda: _loss(model), samples=2)}
    return [p.detach().clone() for p in model.parameters()], measured


@pytest.mark.parametrize("name", (*SOURCES, *RULES))
def test_nothing_depends_on_the_default_type_or_device(name):
    weights, measured = _numbers(name)
    default = torch.get_default_dtype()
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            found, others = _numbers(name)
        finally:
            torch.set_default_dtype(default)
        assert all(torch.equal(a, b) for a, b in zip(weights, found, strict=True))
        assert others == measured
    with torch.device("meta"):
        found, others = _numbers(name)
    assert all(torch.equal(a, b) for a, b in zip(weights, found, strict=True))
    assert others == measured


def test_counts_of_many_blocks_are_exact():
    # 1001 is no number of bfloat16's.
    layer = nn.Linear(8, 1001, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(1, 2, 8008).reshape(1001, 8))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        monitor = Monitor(layer, "int4/absmax/row")
        monitor.measure()
        with torch.no_grad():
            layer.weight.mul_(1.5)
        measured = monitor.measure()
    finally:
        torch.set_default_dtype(default)
    # Each top is rounded once in float32, half an ulp.
    assert abs(measured["scale_drift"] - 0.5) <= 2**-23
    assert measured["on_grid"] <= measured["outer_tenth"] <= 1
