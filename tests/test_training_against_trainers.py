"""Each method in torch against the same in numpy: its functions at the same places, and whole runs, step by step."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from lotion_theory import Stream
from lotion_theory.methods import method, names
from lotion_theory.training import METHODS, LotionPenalty, StraightThrough, rules
from lotion_theory.training._site import Site
from lotion_theory.training.fake import levels_of
from testbeds.descent import Optimizer, plain, prepare, train
from testbeds.problems.linear_regression import LinearRegression
from testbeds.problems.rotations import Identity

WEIGHTS, STEPS = 32, 8
VARIANTS = {
    "qat": [{}, {"scale": "attached"}],
    "rr_ste": [{}],
    "cage": [
        {"silent": 0.25},
        {"silent": 0.25, "form": "coupled"},
        {"silent": 0.5, "ramp": "constant", "point": "weight"},
    ],
    "quest": [{}, {"grid": "absmax"}],
    "lsq": [{}],
    "diffq": [{}, {"scale": "detached", "variance": 0.25}],
    "crown_q": [
        {"weight": 5.0, "late": 0.5},
        {"weight": 0.3, "late": 0.5, "variant": "published"},
        {"weight": 0.3, "variant": "true"},
        {"weight": 1.0, "levels": 15, "variant": "published"},
    ],
    "quant_noise": [{}, {"p": 0.3, "group": 3}],
    "pact": [{"start": 1.5, "decay": 1e-2}],
    "stable_qat": [{}, {"amplitude": 0.1, "grid": "absmax"}],
    "winq": [{}, {"alpha": 0.5, "resets": 2, "noise": 0.05}],
    "dsq": [{}, {"k": 3.0}],
    "dgm": [{}],
    "parq": [{}, {"steepness": 1.0, "begin": 0.25, "end": 0.75}],
    "hestia": [{}, {"tau0": 0.1, "warm": 0.5}, {"scale": "absmax"}],
    "lotion": [{"weight": 1.5}, {"scale": "detached"}, {"ramp": 0.75}],
}
RUNS = [(name, settings) for name, chosen in VARIANTS.items() for settings in chosen]


def _problem():
    rng = np.random.default_rng(4)
    spectrum, optimum = np.arange(1, WEIGHTS + 1) ** -0.5, rng.standard_normal(WEIGHTS)
    start = optimum + 0.3 * rng.standard_normal(WEIGHTS)
    return LinearRegression("test", "", spectrum, Identity(WEIGHTS), optimum, start, 0.0, None, Stream(0, "test"))


def _in_numpy(problem, name, settings, text, kind, lr):
    rule = method(name)(**settings)
    run = train(problem, rule, text, Optimizer(kind, lr, "constant"), STEPS, engine="plain")
    return run.state.w, run.state.top


def _optimizer(parameters, kind, lr):
    return torch.optim.SGD(parameters, lr=lr) if kind == "gd" else torch.optim.Adam(parameters, lr=lr, eps=1e-8)


def _loss(w, problem):
    return 0.5 * (torch.from_numpy(problem.spectrum) * (w - torch.from_numpy(problem.optimum)) ** 2).sum()


def _by_penalty(problem, settings, text, kind, lr):
    w = nn.Parameter(torch.tensor(problem.start))
    penalty = LotionPenalty(
        [("w", w)],
        text,
        curvature={"w": torch.tensor(problem.spectrum)},
        scale_gradient=settings.get("scale", "attached"),
        weight=settings.get("weight", 1.0),
        ramp=(0.0, settings.get("ramp", 0.0)),
        total_steps=STEPS,
        include=("w",),
    )
    optimizer = _optimizer([w], kind, lr)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _loss(w, problem).backward()
        penalty.add_gradient_()
        optimizer.step()
        penalty.step()
    return w, None


def _by_straight_through(problem, name, settings, text, kind, lr):
    w = nn.Parameter(torch.tensor(problem.start))
    curvature = {"w": torch.tensor(problem.spectrum)} if settings.get("variant") == "true" else None
    settings = method(name).looped(settings)
    st = StraightThrough(
        [("w", w)], text, name, total_steps=STEPS, include=("w",), curvature=curvature, **settings
    )  # fmt: skip
    optimizer = _optimizer([w, *st.parameters()], kind, lr)
    st.attach(optimizer)
    for _ in range(STEPS):
        optimizer.zero_grad()
        with st:
            _loss(w, problem).backward()
        optimizer.step()
    return w, st.parameters()


@pytest.mark.parametrize("kind", ["gd", "adam"])
@pytest.mark.parametrize("text", ["int4/absmax/block=8", "int3/absmax/tensor"])
@pytest.mark.parametrize(("name", "settings"), RUNS)
def test_same_weights_as_the_numpy_trainers(name, settings, text, kind, monkeypatch):
    problem, lr = _problem(), 0.3 if kind == "gd" else 0.05
    noise = Stream(0, "descent/rounding")

    def same_noise(self, x, count, step):
        shared = self.rule.rule.noise
        width = -(-WEIGHTS // shared)
        u = noise.uniforms((width,), dtype="float64", start=step * width)
        return torch.from_numpy(np.repeat(u, shared)[:WEIGHTS]).reshape(x.shape)

    if method(name)(**settings).noise:
        monkeypatch.setattr(Site, "_uniforms", same_noise)
    expected, tops = _in_numpy(problem, name, settings, text, kind, lr)
    if name == "lotion":
        w, learned = _by_penalty(problem, settings, text, kind, lr)
    else:
        w, learned = _by_straight_through(problem, name, settings, text, kind, lr)
    # Sums over a block add up in another order, and Adam divides by roots of small squares: a few hundred ulp.
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-11, atol=1e-12)
    assert not np.allclose(expected, problem.start)
    if learned:
        np.testing.assert_allclose(learned[0].detach().numpy()[:, 0], tops, rtol=1e-11)


def _places(rule, w, text, uniforms):
    """The places of weights ``w`` (blocks, n), one block per row, in numpy and in torch."""
    problem = LinearRegression(
        "test", "", np.ones(w.size), Identity(w.size), w.ravel(), w.ravel(), 0.0, None, Stream(0, "t")
    )
    state = prepare(problem, rule, text)
    inside = plain.place(state, uniforms.ravel())
    top = torch.from_numpy(inside.top.reshape(w.shape)[:, :1].copy())
    levels = levels_of(state.book, torch.float64, torch.device("cpu"))
    return state, inside, rules.Place(torch.from_numpy(w), top, levels, torch.from_numpy(uniforms))


# exp and tanh differ by an ulp or so between numpy and torch. Hestia's exponents, up to 30 here, and its temperatures
# magnify that.
TRANSCENDENTAL = {"stable_qat": 8, "dsq": 8, "dgm": 8, "hestia": 2000}


@pytest.mark.parametrize("text", ["int4/absmax/block=8", "int2/absmax/block=8", "nf4/absmax/block=8"])
@pytest.mark.parametrize(("name", "settings"), [*RUNS, ("ptq", {})])
def test_functions_give_the_same_bits_at_the_same_places(name, settings, text):
    rng = np.random.default_rng(7)
    w, g, h, u = rng.standard_normal((6, 8)) ** 3, rng.standard_normal((6, 8)), rng.random((6, 8)), rng.random((6, 8))
    w[1, 3:5], w[2] = 0.0, np.linspace(-1.75, 1.75, 8)
    try:
        state, inside, outside = _places(method(name)(**settings), w, text, u)
    except ValueError as error:
        assert "uniform levels" in str(error) and text.startswith("nf4")
        return
    for field in inside._fields:
        assert np.array_equal((getattr(outside, field) + 0 * outside.w).numpy().ravel(), getattr(inside, field)), field
    total = 8
    for step in range(total):
        row = state.rule.parameters(np.arange(total) / total)[step]
        a = state.rule.parameters.columns(rules.Steps(torch.tensor(step), total))
        np.testing.assert_allclose([float(x) for x in a], row, rtol=1e-15, atol=1e-15)
        # The same numbers from here on: those of a ramp may differ in their last bit.
        a = tuple(torch.tensor(x) for x in row)
        rule, gt, ht = state.rule, torch.from_numpy(g), torch.from_numpy(h)
        pairs = [(rule.point(inside, row), rule.point(outside, a))]
        for function in (rule.direction, rule.anchor):
            if function is not None:
                pairs.append((function(inside, g.ravel(), h.ravel(), row), function(outside, gt, ht, a)))
        if rule.reset is not None:
            pairs.append((rule.reset(inside, row), rule.reset(outside, a)))
        if rule.decay is not None:
            pairs.append((rule.decay(inside, h.ravel(), row), rule.decay(outside, ht, a)))
        for mine, theirs in pairs:
            tolerance = TRANSCENDENTAL.get(name, 0) * 2.0**-52 * max(1.0, float(np.abs(mine).max()))
            np.testing.assert_allclose(
                (theirs + 0 * outside.w).numpy().ravel(), mine + 0 * inside.w, rtol=0, atol=tolerance
            )


def test_every_method_is_compared():
    assert set(VARIANTS) == {*names()} - {"ptq"}
    assert set(METHODS) == {*names()} - {"ptq", "lotion"}
    for name in METHODS:
        own = {key: value for key, value in method(name).settings.items() if key not in ("curvature", "refresh")}
        if name == "pact":
            own["clip"] = own.pop("start")
        assert rules.settings_of(name) == own
        # An argument of the torch loop would hide a setting of its name.
        assert not own.keys() & {*inspect.signature(StraightThrough).parameters}
    assert rules.settings_of("noise") == rules.settings_of("diffq")
    with pytest.raises(ValueError, match="lotion is no straight-through training: LotionPenalty adds"):
        StraightThrough([("w", nn.Parameter(torch.ones(2, 2)))], "int4", "lotion")


@pytest.mark.parametrize("settings", VARIANTS["lotion"][:2], ids=str)
def test_the_penalty_is_lotion_s_functions(settings):
    """LotionPenalty's gradient against :mod:`lotion_theory.methods.lotion` with the same curvature."""
    rng = np.random.default_rng(3)
    w, h = rng.standard_normal((6, 8)), rng.random((6, 8))
    state, inside, _ = _places(method("lotion")(**settings), w, "int4/absmax/block=8", np.zeros((6, 8)))
    state.h[:] = h.ravel()
    expected, _ = plain.direction(state, inside, np.zeros(48), state.rule.parameters(np.zeros(1))[0])
    parameter = nn.Parameter(torch.from_numpy(w.copy()))
    penalty = LotionPenalty(
        [("w", parameter)], "int4/absmax/block=8", curvature={"w": torch.from_numpy(h)},
        scale_gradient=settings.get("scale", "attached"), weight=settings.get("weight", 1.0),
    )  # fmt: skip
    penalty.add_gradient_()
    # Eight terms of size up to the largest one, summed in another order.
    np.testing.assert_allclose(parameter.grad.numpy().ravel(), expected, rtol=0, atol=2.0**-52 * 8 * np.abs(w).max())
