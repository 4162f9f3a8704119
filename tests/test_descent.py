"""The training step: compiled loops against the plain step, gradients against the closed forms of lotion_theory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer, Stream
from lotion_theory.kernels import variance
from lotion_theory.methods import Rule, method
from lotion_theory.methods.rule import constant, ramped
from lotion_theory.smoothing.closed_form import smoothed_gradient
from testbeds.descent import Optimizer, block_starts, evaluate, plain, prepare, train
from testbeds.problems import linear_regression, two_layer
from testbeds.problems.base import Part
from tests.strategies import examples

FORMATS = (
    "int4/absmax/tensor",
    "int2/absmax/block=3",
    "nf4/absmax/block=12",
    "e2m1/absmax/tensor",
    "binary/absmax/block=6",
)
few = examples(10)


def _rule(name, **kw) -> Rule:
    return method(name)(**kw)


ADAM, DESCENT = Optimizer("adam", 0.03), Optimizer("gd", 0.2, "linear")
# Each line compiles a loop for each kind of lattice, which takes seconds: every kind once; the slow run takes all.
LOOPS = [
    (("none", "lotion", {}, ADAM), (*FORMATS[:1], *FORMATS[4:])),
    (("dense", "rr_ste", {}, DESCENT), FORMATS[1:4]),
]
MORE_LOOPS = [
    (rotation, name, settings, optimizer)
    for rotation in ("none", "dense")
    for name, settings in (("lotion", {}), ("lotion", {"curvature": "fisher"}), ("lotion", {"scale": "detached"}), ("qat", {"scale": "attached"}),
                           ("qat", {}), ("rr_ste", {}), ("ptq", {}))
    for optimizer in (ADAM, DESCENT)
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "formats"),
    [*LOOPS, *(pytest.param(case, FORMATS, marks=pytest.mark.slow) for case in MORE_LOOPS)],
    ids=str,
)
def test_compiled_equals_plain_bit_for_bit(case, formats):
    """Fused (diagonal H) and two-part loops, uniform and other lattices, both optimizers, odd block sizes."""
    rotation, name, kw, optimizer = case
    problem = linear_regression(96, 3, rotation=rotation)
    for text in formats:
        runs = [train(problem, _rule(name, **kw), text, optimizer, 25, seed=5, engine=e) for e in ("compiled", "plain")]
        assert np.array_equal(runs[0].state.w, runs[1].state.w), text
        assert runs[0].curve["rtn"] == runs[1].curve["rtn"]


def test_compiled_equals_plain_with_several_tensors():
    problem = two_layer(12, 3, 6, 0)
    for kw in ({"curvature": "exact"}, {"curvature": "gauss_newton", "refresh": 3}):
        rule = _rule("lotion", **kw)
        runs = [
            train(problem, rule, "int3/absmax/row", Optimizer(lr=0.02), 20, engine=e) for e in ("compiled", "plain")
        ]
        assert np.array_equal(runs[0].state.w, runs[1].state.w)
        assert np.array_equal(runs[0].state.h, runs[1].state.h)


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMATS))
def test_places_are_those_of_the_quantizer(seed, text):
    rng = np.random.default_rng(seed)
    problem = linear_regression(24, seed % 1000)
    q = Quantizer.parse(text)
    state = prepare(problem, _rule("ptq"), text, start=rng.normal(size=24) * np.exp(rng.normal()))
    state.w[rng.integers(24, size=6)] = 0.0
    on_grid = rng.integers(24, size=6)
    state.w[on_grid] = q.cast(state.w)[on_grid]
    p = plain.place(state, np.zeros(24))
    lo, hi = q.bracket(state.w)
    assert np.array_equal(p.lo, lo) and np.array_equal(p.hi, hi) and np.array_equal(p.near, q.cast(state.w))
    assert np.array_equal(variance(p.w, p.lo, p.hi), q.variance(state.w))


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMATS), st.sampled_from(["attached", "detached"]))
def test_lotion_follows_the_gradient_of_the_smoothed_loss(seed, text, scale):
    """At λ = 1 the direction is the closed form's gradient, which is itself checked against enumeration."""
    problem = linear_regression(24, seed % 1000, rotation="dense")
    rule = _rule("lotion", scale=scale, curvature="exact")
    state = prepare(problem, rule, text)
    p = plain.place(state, np.zeros(24))
    g, h = problem.expected_parts(state.w, variance(p.w, p.lo, p.hi))
    state.h[:] = h
    found = plain.direction(state, p, g, np.ones(1))[0]
    exact = smoothed_gradient(problem, state.w, text, moving=scale == "attached")
    # Sums of 24 terms of size up to the largest one.
    assert np.abs(found - exact).max() <= 1e-12 * (1 + np.abs(exact).max())


def test_rr_ste_has_no_smoothing_signal():
    """Claim C14: the mean direction is the plain gradient; bound from the known variance of the rounding."""
    problem = linear_regression(12, 1, rotation="dense")
    rule = _rule("rr_ste")
    state = prepare(problem, rule, "int3")
    draws = 4000
    u = Stream(0, "test").uniforms((draws, 12), dtype="float64")
    directions = np.stack([problem.gradient(plain.before(state, row, np.zeros(1))[0][None])[0] for row in u])
    p = plain.place(state, np.zeros(12))
    deviation = np.sqrt((problem.hessian**2) @ variance(p.w, p.lo, p.hi))
    expected = problem.gradient(state.w[None])[0]
    # Twelve coordinates at six standard errors: a false alarm once in 40 million runs.
    assert np.all(np.abs(directions.mean(axis=0) - expected) <= 6 * deviation / np.sqrt(draws))


def test_qat_oscillates_around_a_threshold():
    """The one-dimensional counterexample of claim C18: STE chatters at .875 for ever, LOTION comes to rest on a level."""

    class Line:
        name = provenance = "h = 2, w* = .83 beside a weight that fixes the scale"
        shape, parts, batch = (2,), (Part("w", (2,)),), None
        start, optimum = np.array([0.8, 1.75]), np.array([0.83, 1.75])
        curvature = np.array([2.0, 0.0])

        def __call__(self, points):
            return (points[:, 0] - 0.83) ** 2

        def gradient(self, points):
            return (points - self.optimum) * self.curvature

        def curvature_at(self, w):
            return self.curvature

        def expected_loss(self, w, variance):
            return float((w[0] - 0.83) ** 2 + variance[0])

        def expected_parts(self, w, variance):
            return self.gradient(w[None])[0], self.curvature

        def batch_gradient(self, x, step):
            return self.gradient(x[None])[0]

    # 1.75 = 7 steps of .25, held in place by a zero gradient.
    optimizer = Optimizer("gd", 0.05, "constant")
    qat = train(Line(), _rule("qat"), "int4", optimizer, 400, engine="plain", checkpoints=400)
    last = qat.state.w[0]
    assert abs(last - 0.875) < 0.05
    assert {round(v, 6) for v in qat.curve["rtn"][-40:]} == {round(0.08**2, 6), round(0.17**2, 6)}
    lotion = train(
        Line(), _rule("lotion", scale="detached"), "int4", Optimizer("gd", 0.02, "linear"), 2000, engine="plain"
    )
    assert abs(lotion.state.w[0] - 0.75) < 0.02


def test_blocks_of_several_parts():
    parts = (Part("a", (2, 6)), Part("b", (3,)))
    assert block_starts(Quantizer.parse("int4/absmax/block=3"), parts).tolist() == [0, 3, 6, 9, 12, 15]
    assert block_starts(Quantizer.parse("int4/absmax/row"), parts).tolist() == [0, 6, 12, 15]
    assert block_starts(Quantizer.parse("int4"), parts).tolist() == [0, 12, 15]
    with pytest.raises(ValueError, match="does not divide"):
        block_starts(Quantizer.parse("int4/absmax/block=4"), parts)
    for text in ("mxfp4", "uint4", "int4full", "fairy"):
        with pytest.raises(ValueError, match="absmax scale"):
            block_starts(Quantizer.parse(text), parts)


def test_same_seed_same_run_and_losses_are_those_of_the_problem():
    problem = linear_regression(64, 0, batch=8, noise=0.1)
    runs = [train(problem, _rule("rr_ste"), "int4", Optimizer(lr=0.02), 50, seed=s, engine="plain") for s in (1, 1, 2)]
    assert np.array_equal(runs[0].state.w, runs[1].state.w)
    assert not np.array_equal(runs[0].state.w, runs[2].state.w)
    losses = runs[0].losses
    w = runs[0].state.w
    q = Quantizer.parse("int4")
    assert losses.full == problem(w[None])[0] and losses.rtn == problem(q.cast(w)[None])[0]
    assert losses.rr == pytest.approx(losses.full + problem.curvature @ q.variance(w) / 2, rel=1e-12)
    assert losses.gap == losses.rtn - losses.full and losses.rr_error == 0


def test_sampled_rr_loss_agrees_with_the_closed_form():
    problem = two_layer(8, 2, 4, 0)
    state = prepare(problem, _rule("ptq"), "int4")
    exact = evaluate(problem, state, Stream(0, "a"))

    class Sampled:
        def __getattr__(self, name):
            return getattr(problem, name)

        def __call__(self, points):
            return problem(points)

        def expected_loss(self, w, variance):
            return None

    sampled = evaluate(Sampled(), state, Stream(0, "a"))
    assert sampled.rr_error > 0
    # Six standard errors; the mean of 64 bounded draws is close to normal.
    assert abs(sampled.rr - exact.rr) <= 6 * sampled.rr_error


def test_divergence_is_reported():
    problem = linear_regression(32, 0)
    run = train(problem, _rule("ptq"), "int4", Optimizer("gd", 1e3), 200, engine="plain")
    assert run.diverged and run.steps < 200


def test_ramps():
    progress = np.linspace(0, 1, 11)[:-1]
    assert ramped(2.0, 0.0, 0.0)(progress).ravel().tolist() == [2.0] * 10
    rows = ramped(1.0, 0.5, 1.0)(progress).ravel()
    assert (rows[:6] == 0).all() and np.allclose(rows[6:], [0.2, 0.4, 0.6, 0.8])
    assert constant(1.0, 2.0)(progress).shape == (10, 2)
    with pytest.raises(ValueError, match="ramp"):
        ramped(1.0, -0.1, 0.5)


def test_bad_input_is_answered():
    problem = linear_regression(16, 0)
    rule = _rule("ptq")
    with pytest.raises(ValueError, match="valid: compiled, plain"):
        train(problem, rule, "int4", Optimizer(), 5, engine="cuda")
    with pytest.raises(ValueError, match="at least 1"):
        train(problem, rule, "int4", Optimizer(), 0)
    with pytest.raises(ValueError, match="expected"):
        train(problem, rule, "int4", Optimizer(), 5, start=np.zeros(3))
    with pytest.raises(ValueError, match="valid: adam, gd"):
        Optimizer("sgdd")
    with pytest.raises(ValueError, match="valid: constant"):
        Optimizer(schedule="step")
    with pytest.raises(ValueError, match="positive"):
        Optimizer(lr=0.0)
    with pytest.raises(ValueError, match="unknown training method 'lotoin'; valid: ptq"):
        method("lotoin")
    with pytest.raises(ValueError, match="no setting 'lambda'; valid: weight"):
        method("lotion")(**{"lambda": 1})
    for setting, value in (("scale", "both"), ("curvature", "hessian")):
        with pytest.raises(ValueError, match="valid"):
            method("lotion")(**{setting: value})
