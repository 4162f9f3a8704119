"""Methods with a grid of their own against the known answers of their papers: QuEST, LSQ, PACT."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from lotion_theory import Stream
from lotion_theory.formats.codebooks import codebook
from lotion_theory.methods import lsq, pact, quest
from lotion_theory.methods import method as training_method
from testbeds.descent import Optimizer, plain
from testbeds.problems import linear_regression
from tests.rival_cases import FORMATS, parameters_at, place_at, quadratic, state_at, train_with
from tests.tolerances import standard_error_bound

# QuEST


def _midrise_error(count, clip):
    """Mean squared error of ``count`` mid-rise levels from -clip to clip on a standard normal."""
    levels = clip * np.arange(1 - count, count, 2) / (count - 1)
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    law = stats.norm
    mass, density = np.diff(law.cdf(edges)), law.pdf(edges)
    finite = np.where(np.isfinite(edges), edges, 0.0)
    first = -np.diff(density)
    second = mass - np.diff(finite * density)
    return float(np.sum(second - 2 * levels * first + levels**2 * mass))


def test_quest_clips_minimise_the_gaussian_error():
    errors = {2: 0.36338, 4: 0.11885, 8: 0.03744, 16: 0.01154}
    for count, clip in quest.CLIPS.items():
        best = minimize_scalar(lambda c, n=count: _midrise_error(n, c), bounds=(0.3, 6), method="bounded")
        # The paper's constants are exact to about four decimals up to 5 bits; at 6, 7 and 8 bits they are a little
        # below the optimum.
        excess = _midrise_error(count, clip) / best.fun - 1
        assert excess < (1e-8 if count <= 32 else 2e-3)
        assert best.x == pytest.approx(clip, abs=1e-4 if count <= 32 else 0.04)
        if count in errors:
            assert best.fun == pytest.approx(errors[count], abs=6e-6)


def test_quest_mask_is_the_paper_s():
    """``|RTN(w) - w| <= T σ``, T half a step, on 10⁵ normals: exact but for weights within rounding of its edge."""
    w = Stream(0, "test").numpy_generator().standard_normal(100_000)
    state, p = place_at(training_method("quest")(), w)
    sigma = np.sqrt(np.mean(w * w))
    assert state.book.values.tolist() == list(range(-15, 16, 2))
    assert p.top[0] == pytest.approx(2.51393 * sigma, rel=1e-14)
    mask = state.rule.direction(p, np.ones_like(w), 0, parameters_at(state))
    error, trust = np.abs(p.near - w), 2.51393 / 15 * sigma
    clear = np.abs(error - trust) > 1e-12
    assert clear.mean() > 0.9999
    np.testing.assert_array_equal(mask[clear], (error <= trust)[clear])
    # At 4 bits 2 (1 - Φ(2.51393 · 16/15)) of a normal law are dropped.
    share = 2 * stats.norm.sf(2.51393 * 16 / 15)
    assert abs(np.mean(mask == 0) - share) < standard_error_bound(share, w.size, false_alarm=1e-6)


def test_quest_mask_trusts_midpoints():
    """Weights midway between two levels, whose rounding error is half a step up to its own rounding, are kept."""
    w = np.append((np.arange(-7, 7) + 0.5) * 0.1, 0.7)
    state, p = place_at(training_method("quest")(grid="absmax"), w)
    np.testing.assert_array_equal(state.rule.direction(p, np.ones_like(w), 0, parameters_at(state)), 1)


@pytest.mark.parametrize("q", FORMATS)
def test_quest_on_absmax_is_ste(q):
    problem = linear_regression(64, seed=6)
    masked, ste = (
        train_with(problem, rule, q).state.w
        for rule in (training_method("quest")(grid="absmax"), training_method("qat")())
    )
    np.testing.assert_array_equal(masked, ste)


def test_quest_ternary_keeps_its_three_levels():
    state = state_at(training_method("quest")(), [0.3, -1.0], "ternary")
    assert state.book.units == codebook("ternary").units
    assert state.rule.rms == quest.CLIPS[3]


# LSQ and PACT


def _with_step(rule, w, top, q="int4"):
    """The state and place of a learned grid whose highest level is ``top``."""
    state = state_at(rule, w, q)
    state.top[:] = top / state.span
    return state, plain.place(state, np.zeros(len(w)))


def test_lsq_step_gradient_and_mask():
    """``round(v/s) - v/s`` inside and ± 7 beyond, the paper's eq. 3 with Q_N = Q_P = 7."""
    step = 0.25
    ratio = np.array([-5, 0.3, 0.7, 9, -8, 7])
    state, p = _with_step(training_method("lsq")(), ratio * step, 7 * step)
    one = np.ones(6)
    # The chain rule from the highest level to the step is the number of positive levels.
    through = 7 * state.rule.anchor(p, one, 0, None)
    np.testing.assert_allclose(through, [0, -0.3, 0.3, 7, -7, 7], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(state.rule.direction(p, one, 0, None), [1, 1, 1, 0, 0, 0])


def _lsq_steps(state, positive):
    return state.top * state.span / positive


def test_lsq_first_step_and_gradient_scale():
    """``s = 2 mean|v| / √Q_P``, moved by plain gradient descent by ``1/√(N Q_P)`` times its gradient."""
    rng = np.random.default_rng(0)
    w, g, rate = rng.standard_normal(32), rng.standard_normal(32), 0.1
    state, p = place_at(training_method("lsq")(), w, "int4/absmax/block=16")
    steps = 2 * np.abs(w.reshape(2, 16)).mean(axis=1) / math.sqrt(7)
    np.testing.assert_allclose(_lsq_steps(state, 7), steps, rtol=1e-14)
    through = (7 * state.rule.anchor(p, g, 0, None)).reshape(2, 16).sum(axis=1)
    plain.after(state, g, np.zeros(32), np.zeros(1), Optimizer("gd"), rate)
    np.testing.assert_allclose(_lsq_steps(state, 7), steps - rate * through / math.sqrt(16 * 7), rtol=1e-13)
    assert lsq.positive_levels(codebook("e2m1")) == 7
    assert lsq.positive_levels(codebook("nf4")) == 8


@pytest.mark.parametrize(("q", "positive"), [("int2", 1), ("int4", 7), ("int8", 127), ("e2m1", 7), ("nf4", 8)])
def test_lsq_step_and_weights_move_at_one_pace_under_adam(q, positive):
    """Adam's first steps are the learning rate; over its size, ``2 mean|w| / √Q_P``, the step's is that of a weight of
    twice the mean magnitude: the balance that the paper's gradient scale is for. So the range moves by √Q_P rates."""
    w, g, rate = np.array([1.0, -0.5, 0.25, -1.25]), np.array([1.0, -2.0, 3.0, 0.3]), 1e-3
    state = state_at(training_method("lsq")(), w, q)
    first = _lsq_steps(state, positive)
    plain.after(state, g, np.zeros(4), np.zeros(1), Optimizer("adam"), rate)
    change = np.abs(_lsq_steps(state, positive) - first) / first
    # Adam's ε over the gradient, and one rounding of each number.
    np.testing.assert_allclose(change, rate / (2 * np.abs(w).mean()), rtol=1e-6)
    np.testing.assert_allclose(np.abs(state.w - w), rate * (np.abs(w) < first * positive), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("start", [0.5, 1.3, -2.0])
def test_lsq_one_weight_finds_a_step_that_hits_it(start):
    """d = 1: a step with ``k s = w*`` for an integer k exists, and learning reaches loss 0."""
    problem = quadratic([1.0], [0.83], [start])
    result = train_with(problem, training_method("lsq")(), lr=0.05, steps=800)
    # Adam under a cosine to zero: what remains is some last steps' length.
    assert result.losses.rtn < 1e-8


def test_pact_clip_gradient_is_the_sum_over_clipped_weights():
    w = np.array([0.2, -1.5, 1.0, 2.0, -0.9])
    g = np.array([0.3, 0.5, -0.7, 1.1, 2.0])
    state, p = _with_step(training_method("pact")(), w, 1.0)
    through = state.rule.anchor(p, g, 0, None)
    np.testing.assert_array_equal(through, [0, -0.5, -0.7, 1.1, 0])
    np.testing.assert_array_equal(state.rule.direction(p, g, 0, None), [0.3, 0, 0, 0, 2.0])
    # A finite difference of g · clip(w) in the clip: no entry lies at it but w = 1, whose slope is one-sided.
    smooth = w != 1.0
    change = g * (np.clip(w, -1 - 1e-6, 1 + 1e-6) - np.clip(w, -1 + 1e-6, 1 - 1e-6)) / 2e-6
    np.testing.assert_allclose(through[smooth], change[smooth], atol=1e-9)


def test_pact_clip_starts_at_three_rms_and_rests_where_nothing_is_clipped():
    """With the clip beyond all weights no loss gradient reaches it; only the penalty ``½ λ α²`` moves it."""
    w = np.linspace(-1, 1, 16)
    problem = quadratic(np.ones(16), w, 0.9 * w)
    rms = float(np.sqrt(np.mean((0.9 * w) ** 2)))
    for decay in (0.0, 0.01):
        result = train_with(problem, pact.METHOD(decay=decay), kind="gd", lr=0.1, steps=50, schedule="constant")
        assert result.state.top[0] == pytest.approx(3 * rms * (1 - 0.1 * decay) ** 50, rel=1e-12)
