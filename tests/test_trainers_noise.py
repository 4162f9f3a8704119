"""Methods that add noise or pull towards levels against the known answers of their papers: DiffQ, Quant-Noise, CAGE, CROWN-Q."""

import itertools
import math

import numpy as np
import pytest

from lotion_theory import Stream, kernels
from lotion_theory.methods import cage, diffq, lotion
from lotion_theory.methods import method as training_method
from testbeds.descent import Optimizer, plain, prepare
from testbeds.problems import linear_regression
from tests.rival_cases import FORMATS, midpoints, parameters_at, place_at, quadratic, state_at, train_with
from tests.tolerances import standard_error_bound

# DiffQ


@pytest.mark.parametrize("variance", [1 / 12, 1 / 4, 1 / 6])
def test_diffq_noise_has_its_variance_and_no_mean(variance):
    """The mean loss is ``L(w) + ½ h s² Var(ξ)``, the mean gradient h (w - w*) and, at the anchor, ``h s ds/dtop Var``."""
    n, h, optimum = 1000, 3.0, 0.4
    w = np.append(np.full(n, 0.37), 1.75)
    state, p = place_at(diffq.METHOD(variance=variance), w, u=np.append(midpoints(n), 0.5))
    x = state.rule.point(p, parameters_at(state))[:n]
    g, step = h * (x - optimum), 0.25
    # The variance of n equidistant points falls short of the uniform law's by 1/n².
    exact = variance * (1 - 1 / n**2)
    assert x.mean() == pytest.approx(0.37, abs=1e-13)
    assert (h / 2 * (x - optimum) ** 2).mean() == pytest.approx(h / 2 * (0.03**2 + step**2 * exact), rel=1e-12)
    assert state.rule.direction(p, np.append(g, 0), 1, parameters_at(state))[:n].mean() == pytest.approx(
        -h * 0.03, rel=1e-12
    )
    through = state.rule.anchor(p, np.append(g, 0), 1, parameters_at(state))[:n].mean()
    assert through == pytest.approx(h * step * (1 / 7) * exact, rel=1e-12)


def test_diffq_detached_has_no_anchor():
    assert diffq.METHOD(scale="detached").anchor is None


# Quant-Noise


@pytest.mark.parametrize("q", FORMATS)
def test_quant_noise_joins_qat_and_ptq(q):
    problem = linear_regression(64, seed=2)
    for p, other in ((1.0, "qat"), (0.0, "ptq")):
        mixed, same = (
            train_with(problem, rule, q).state.w
            for rule in (training_method("quant_noise")(p=p), training_method(other)())
        )
        np.testing.assert_array_equal(mixed, same)


def test_quant_noise_rounds_groups_with_probability_p():
    n, p = 80_000, 0.3
    rule = training_method("quant_noise")(p=p)
    w = np.append(np.full(n - 1, 0.37), 1.75)
    u = np.repeat(Stream(1, "test").uniforms((n // 8,), dtype="float64"), 8)
    state, at = place_at(rule, w, u=u)
    rounded = (rule.point(at, parameters_at(state)) == at.near).reshape(-1, 8)[:-1]
    assert (rounded == rounded[:, :1]).all()
    bound = standard_error_bound(p * (1 - p), len(rounded), false_alarm=1e-6)
    assert abs(rounded[:, 0].mean() - p) < bound
    assert (rule.noise, training_method("quant_noise")(group=4).noise) == (8, 4)


def test_quant_noise_expected_loss_and_gradient():
    """Over all masks of four groups: the gradient is that at ``p Q(w) + (1-p) w``, and the loss has the extra term
    ``½ Σ_B p (1-p) e_Bᵀ H_BB e_B`` of the groups' errors."""
    p, problem = 0.3, linear_regression(32, seed=4, rotation="dense")
    w = problem.start
    rule = training_method("quant_noise")(p=p)
    loss, gradient = 0.0, np.zeros(32)
    for mask in itertools.product((0, 1), repeat=4):
        prob = math.prod(p if bit else 1 - p for bit in mask)
        state, at = place_at(rule, w, u=np.repeat(1.0 - np.array(mask), 8) * 0.99)
        x = rule.point(at, parameters_at(state))
        loss += prob * problem(x[None])[0]
        gradient += prob * problem.gradient(x[None])[0]
    e = at.near - w
    blocks = sum(e[i : i + 8] @ problem.hessian[i : i + 8, i : i + 8] @ e[i : i + 8] for i in range(0, 32, 8))
    mean = w + p * e
    assert loss == pytest.approx(problem(mean[None])[0] + p * (1 - p) / 2 * blocks, rel=1e-12)
    np.testing.assert_allclose(gradient, problem.gradient(mean[None])[0], rtol=0, atol=1e-13)


def test_quant_noise_half_rounded_chatters_at_the_threshold():
    """w* = 0.83, s = 0.25, p = ½: the mean gradient points to 0.875 from both sides, where nothing is a fixed point."""
    rule = training_method("quant_noise")()
    for w, sign in ((0.875 - 1e-6, -1), (0.875 + 1e-6, 1)):
        ends = []
        for u in (0.0, 0.9):
            state, at = place_at(rule, [w, 1.75], u=[u, u])
            ends.append(rule.point(at, parameters_at(state))[0] - 0.83)
        assert np.sign(np.mean(ends)) == sign


# CAGE


def _one_weight():
    """w* = 0.83, h = 2 on a grid of step 0.25, which a second weight at 1.75 holds fixed."""
    return quadratic([2.0, 1.0], [0.83, 1.75], [0.85, 1.75])


@pytest.mark.parametrize("form", cage.FORMS)
def test_cage_fixed_points(form):
    """``q + h (w* - q) / λ`` with STE, ``(h w* + λ q) / (h + λ)`` with gradients at the weight; q = 0.75, λ = 10."""
    for point, limit in (("nearest", 0.766), ("weight", (2 * 0.83 + 10 * 0.75) / 12)):
        rule = training_method("cage")(silent=0.0, ramp="constant", form=form, point=point, weight=10.0)
        result = train_with(_one_weight(), rule, kind="gd", lr=0.05, steps=60, schedule="constant")
        # The distance to the fixed point shrinks by 1 - 0.05 · 10 or more per step: nothing but rounding is left.
        np.testing.assert_allclose(result.state.w, [limit, 1.75], rtol=0, atol=1e-14)


def test_cage_without_pull_is_ste_and_oscillates_about_the_threshold():
    problem = linear_regression(64, seed=2)
    for form in cage.FORMS:
        rule = training_method("cage")(form=form, weight=0.0)
        np.testing.assert_array_equal(
            train_with(problem, rule).state.w, train_with(problem, training_method("qat")()).state.w
        )
    still, optimizer = np.zeros(2), Optimizer("gd", 0.02)
    problem, seen = _one_weight(), []
    state = prepare(problem, rule, "int4")
    for _ in range(100):
        x, _variance = plain.before(state, still, np.zeros(1))
        plain.after(state, problem.gradient(x[None])[0], still, np.zeros(1), optimizer, 0.02)
        seen.append(state.w[0] - 0.875)
    # Moves are 0.02 · 2 · |0.83 - level| = 0.0032 up and 0.0068 down, so once there |w - 0.875| stays below the larger.
    settled = np.array(seen[20:])
    assert settled.max() > 0 > settled.min()
    assert np.abs(settled).max() <= 0.0068


def test_cage_is_silent_before_the_ramp():
    progress = np.arange(10) / 10
    ramp = training_method("cage")().parameters(progress)[:, 0]
    np.testing.assert_allclose(ramp, [0] * 9 + [5], atol=1e-14)
    np.testing.assert_array_equal(
        training_method("cage")(ramp="constant").parameters(progress)[:, 0], [0] * 8 + [10] * 2
    )


# CROWN-Q


def test_crown_q_published_is_weight_decay():
    w, weight = np.array([0.3, -0.7, 1.75]), 0.2
    state, p = place_at(training_method("crown_q")(weight=weight, variant="published"), w)
    pulled = state.rule.direction(p, np.ones(3), 0, parameters_at(state))
    e, step = 1e-4, 0.25
    ends = [weight * (w + side) ** 2 * step**2 / 12 for side in (e, -e)]
    # The penalty is quadratic, so the central difference is exact up to rounding / e.
    np.testing.assert_allclose(pulled - 1, (ends[0] - ends[1]) / (2 * e), rtol=0, atol=1e-11)
    coarse, _ = place_at(training_method("crown_q")(weight=weight, levels=15, variant="published"), w)
    assert parameters_at(coarse)[1] == 1 / 15


def test_crown_q_true_is_lotion_averaged_over_the_phase():
    """Anchor against differences of ``Σ h s²/12``, and that penalty against the mean of ½ h Var over a cell (C16)."""
    w, h = np.array([0.3, -0.7, 1.75]), np.array([2.0, 0.5, 1.5])
    state, p = place_at(training_method("crown_q")(weight=1.0, variant="true"), w)
    through = state.rule.anchor(p, np.zeros(3), h, parameters_at(state))

    def penalty(top):
        return h * (top / 7) ** 2 / 12

    e = 1e-4
    np.testing.assert_allclose(through, (penalty(1.75 + e) - penalty(1.75 - e)) / (2 * e), rtol=1e-9)
    assert state.rule.direction(p, np.full(3, 0.7), h, parameters_at(state)).tolist() == [0.7] * 3
    n = 1000
    cell = np.append(0.25 * (1 + midpoints(n)), 1.75)
    at = place_at(lotion.METHOD(), cell)[1]
    mean = (0.5 * kernels.variance(at.w, at.lo, at.hi))[:n].mean()
    # The midpoint rule of n points on a parabola of curvature 2 s² is off by s²/(12 n²).
    assert mean == pytest.approx(penalty(1.75)[0] / h[0], rel=1e-5)


def test_crown_q_rounds_late():
    rule = training_method("crown_q")()
    w = [0.3, -0.7, 1.75]
    state, p = place_at(rule, w)
    np.testing.assert_array_equal(rule.point(p, parameters_at(state, 0.84)), w)
    np.testing.assert_array_equal(rule.point(p, parameters_at(state, 0.85)), p.near)
    never = state_at(training_method("crown_q")(late=1.0), w)
    assert parameters_at(never, 0.999)[2] == 0
