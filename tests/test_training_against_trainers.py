"""The torch methods against the numpy trainers of the same names, on the same quadratic: the same weights, step by step."""

import numpy as np
import pytest
import torch
from torch import nn

from lotion_theory import Stream
from lotion_theory.training import METHODS, LotionPenalty, StraightThrough, rules
from lotion_theory.training._site import Site
from testbeds.descent import Optimizer, train
from testbeds.methods.trainers import quest, trainer
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
    "crown_q": [{"weight": 0.3, "late": 0.5}, {"weight": 0.3, "variant": "true"}, {"weight": 1.0, "levels": 15}],
    "lotion": [{"weight": 1.5}, {"scale": "detached"}, {"ramp": 0.75}],
}
RUNS = [(name, settings) for name, chosen in VARIANTS.items() for settings in chosen]


def _problem():
    rng = np.random.default_rng(4)
    spectrum, optimum = np.arange(1, WEIGHTS + 1) ** -0.5, rng.standard_normal(WEIGHTS)
    start = optimum + 0.3 * rng.standard_normal(WEIGHTS)
    return LinearRegression("test", "", spectrum, Identity(WEIGHTS), optimum, start, 0.0, None, Stream(0, "test"))


def _in_numpy(problem, name, settings, text, kind, lr):
    rule = trainer(name)(**settings)
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
        u = noise.uniforms((WEIGHTS,), dtype="float64", start=step * WEIGHTS)
        return torch.from_numpy(u).reshape(x.shape)

    if name in ("rr_ste", "diffq"):
        monkeypatch.setattr(Site, "_uniforms", same_noise)
    expected, tops = _in_numpy(problem, name, settings, text, kind, lr)
    if name == "lotion":
        w, learned = _by_penalty(problem, settings, text, kind, lr)
    else:
        w, learned = _by_straight_through(problem, name, settings, text, kind, lr)
    # Sums over a block add up in another order, and Adam divides by roots of small squares: a few hundred ulp.
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-11, atol=1e-12)
    assert not np.allclose(expected, problem.start)
    if name == "lsq":
        np.testing.assert_allclose(learned[0].detach().numpy()[:, 0], tops, rtol=1e-11)


def test_every_method_is_compared_and_has_the_same_defaults():
    assert set(VARIANTS) == {*METHODS, "lotion"}
    for name, (_, defaults) in METHODS.items():
        own = {key: value for key, value in trainer(name).settings.items() if key != "refresh"}
        assert defaults == own
    assert rules.CLIPS == quest.CLIPS
