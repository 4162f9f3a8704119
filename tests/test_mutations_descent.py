"""Do the tests of the training step bite? Each deliberate error must be caught by the check that is meant to catch it."""

import numpy as np
import pytest

from lotion_theory import kernels
from lotion_theory.methods import lotion, method, qat, rr_ste
from lotion_theory.smoothing.closed_form import smoothed_gradient
from testbeds.descent import Optimizer, plain, prepare, train
from testbeds.problems import linear_regression

PROBLEM = linear_regression(24, 3, rotation="dense")
FORMAT = "nf4/absmax/block=12"


def gradient_check() -> bool:
    """Whether LOTION's direction is the gradient of the smoothed loss, attached and detached."""
    fine = True
    for scale in ("attached", "detached"):
        state = prepare(PROBLEM, method("lotion")(scale=scale), FORMAT)
        p = plain.place(state, np.zeros(24))
        state.h[:] = PROBLEM.curvature
        found = plain.direction(state, p, PROBLEM.gradient(state.w[None])[0], np.ones(1))[0]
        exact = smoothed_gradient(PROBLEM, state.w, FORMAT, moving=scale == "attached")
        fine &= bool(np.abs(found - exact).max() <= 1e-12 * (1 + np.abs(exact).max()))
    return fine


def point_check() -> bool:
    """Whether QAT looks at the rounded weights and RR-STE at points on both sides."""
    state = prepare(PROBLEM, method("qat")(), FORMAT)
    p = plain.place(state, np.full(24, 0.5))
    near = plain.before(state, p.u, np.zeros(1))[0]
    noisy = prepare(PROBLEM, method("rr_ste")(), FORMAT)
    low, high = (plain.before(noisy, np.full(24, u), np.zeros(1))[0] for u in (1 - 2.0**-53, 0.0))
    # u = 0 sends every weight off a level up, u close to 1 every one down.
    return bool(np.array_equal(near, p.near) and np.array_equal(low, p.lo) and np.array_equal(high, p.hi))


def training_check() -> bool:
    """Whether plain training follows a textbook Adam on the float loss."""
    found = train(PROBLEM, method("ptq")(), FORMAT, Optimizer("adam", 0.05, "linear"), 15, engine="plain").state.w
    w, m, v = PROBLEM.start.copy(), np.zeros(24), np.zeros(24)
    for t in range(15):
        g = PROBLEM.gradient(w[None])[0]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.05 * (1 - t / 15) * (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
    return bool(np.allclose(found, w, rtol=1e-10, atol=0))


CHECKS = {"gradient": gradient_check, "point": point_check, "training": training_check}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_unbroken_code_passes(check):
    assert check()


MUTANTS = {
    "half the penalty": (
        lotion, "toward_levels",
        lambda p, g, h, a: g + a[0] * 0.25 * h * kernels.variance_dw(p.w, p.lo, p.hi), "gradient",
    ),
    "penalty of the wrong sign": (
        lotion, "toward_levels",
        lambda p, g, h, a: g - a[0] * 0.5 * h * kernels.variance_dw(p.w, p.lo, p.hi), "gradient",
    ),
    "curvature forgotten": (
        lotion, "toward_levels", lambda p, g, h, a: g + a[0] * 0.5 * kernels.variance_dw(p.w, p.lo, p.hi), "gradient",
    ),
    "levels swapped in the lattice's share": (
        lotion, "through_lattice",
        lambda p, g, h, a: a[0] * 0.5 * h * kernels.variance_danchor(p.w, p.lo, p.hi, p.unit_hi, p.unit_lo),
        "gradient",
    ),
    "the lattice's share lost": (lotion, "through_lattice", lambda p, g, h, a: 0 * g, "gradient"),
    "QAT at the weights": (qat, "at_nearest", lambda p, a: p.w, "point"),
    "QAT at the lower level": (qat, "at_nearest", lambda p, a: p.lo, "point"),
    "RR-STE without noise": (rr_ste, "at_rounded", lambda p, a: p.near, "point"),
    "RR-STE upside down": (rr_ste, "at_rounded", lambda p, a: kernels.pick(p.w, p.lo, p.hi, 1 - p.u), "point"),
    "sum without its last lane": (plain, "lane_sum", lambda x: float(x[: len(x) // 8 * 8].sum()), "gradient"),
    "no bias correction": (
        plain, "_moved",
        lambda x, moments, d, o, rate, powers: x - rate * d / (np.sqrt(d * d) + o.epsilon), "training",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, monkeypatch):
    module, attribute, broken, check = MUTANTS[name]
    monkeypatch.setattr(module, attribute, broken)
    assert not CHECKS[check]()


def test_the_engines_agree_only_while_their_sums_have_one_order(monkeypatch):
    """The bit-equality of the two engines is no comparison of a function with itself."""
    # An almost flat spectrum: the sums are large enough for their last bits to reach the weights.
    problem, rule = linear_regression(4096, 0, exponent=0.01), method("lotion")()

    def weights(engine):
        return train(problem, rule, "int4/absmax/block=256", Optimizer("gd", 0.1), 10, engine=engine).state.w

    assert np.array_equal(weights("compiled"), weights("plain"))
    # numpy's own sum adds the same numbers in pairs.
    monkeypatch.setattr(plain, "lane_sum", lambda x: float(np.sum(x)))
    assert not np.array_equal(weights("compiled"), weights("plain"))
