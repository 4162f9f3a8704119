"""Nets small enough to enumerate: value, gradient and curvature against loops over samples, and what tanh changes."""

import itertools

import numpy as np
import pytest

import lotion_theory as lt
from lotion_theory import Quantizer
from testbeds.problems.base import TrainingProblem
from testbeds.problems.small_nets import relu_net, tanh_net

NETS = {"tanh": tanh_net, "relu": relu_net}
WIDTHS = [(1, 1), (2, 2), (3, 3), (4, 2)]
nets = pytest.mark.parametrize("kind", NETS)
widths = pytest.mark.parametrize(("width", "inputs"), WIDTHS)


def _act(kind, z):
    return np.tanh(z) if kind == "tanh" else max(z, 0.0)


def _output(kind, problem, w, x):
    """One output of one net, unit by unit."""
    w1, w2 = problem.single("w", w)
    return sum(w2[0, i] * _act(kind, sum(w1[i, j] * x[j] for j in range(len(x)))) for i in range(len(w1)))


def _jacobian(kind, problem, w):
    """Derivatives (N, P) of the outputs, by hand."""
    w1, w2 = problem.single("w", w)
    rows = []
    for x in problem.inputs:
        z = w1 @ x
        slope = 1 - np.tanh(z) ** 2 if kind == "tanh" else (z > 0).astype(float)
        rows.append(np.concatenate([np.outer(w2[0] * slope, x).ravel(), [_act(kind, v) for v in z]]))
    return np.array(rows)


def _hessian_diagonal(problem, w, step):
    """Central differences of the gradient, each along its own coordinate."""
    e = step * np.eye(len(w))
    return np.diagonal(problem.gradient(w + e) - problem.gradient(w - e)) / (2 * step)


@nets
@widths
def test_value_gradient_and_curvature(kind, width, inputs):
    problem = NETS[kind](seed=1, width=width, inputs=inputs, samples=9, noise=0.3)
    points = problem.start + np.random.default_rng(0).standard_normal((3, *problem.shape))
    errors = np.array([[_output(kind, problem, w, x) for x in problem.inputs] for w in points]) - problem.targets[:, 0]
    jacobians = np.array([_jacobian(kind, problem, w) for w in points])
    # Sums of at most 12 terms, then 9: some ulp, relative to sums without cancellation, which are below 1e3.
    np.testing.assert_allclose(problem(points), (errors**2).mean(axis=1), rtol=1e-13)
    expected = 2 * np.einsum("pn,pnw->pw", errors, jacobians) / 9
    np.testing.assert_allclose(problem.gradient(points), expected, rtol=1e-12, atol=1e-12)
    found = [problem.curvature_at(w) for w in points]
    np.testing.assert_allclose(found, 2 * (jacobians**2).mean(axis=1), rtol=1e-13, atol=1e-15)
    # Once more without the formulas: differences of the value. Third derivatives are below 1e3 for tanh and zero along
    # a weight for ReLU, whose kinks are no nearer than the step (the points are fixed): 1e3 · 1e-10 and 1e2 · 1e-16/1e-5.
    e = 1e-5 * np.eye(points.shape[1])
    for w, slope in zip(points, problem.gradient(points), strict=True):
        np.testing.assert_allclose(slope, (problem(w + e) - problem(w - e)) / 2e-5, rtol=0, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_relu_has_the_hessian_diagonal_of_gauss_newton(seed):
    problem = relu_net(seed, noise=0.5)
    for w in (problem.start, -problem.start):
        # The gradient is affine in its own weight between kinks, which are further away than the step: only rounding,
        # some 1e2 · 1e-16 / 1e-6, remains.
        np.testing.assert_allclose(problem.curvature_at(w), _hessian_diagonal(problem, w, 1e-6), rtol=0, atol=1e-7)


def test_tanh_has_not():
    apart, negative = [], 0
    for seed in range(10):
        problem = tanh_net(seed)
        hessian = _hessian_diagonal(problem, problem.start, 1e-5)
        apart.append(np.abs(problem.curvature_at(problem.start) - hessian).max())
        negative += int((hessian < 0).sum())
        # The output layer is affine in each of its weights.
        np.testing.assert_allclose(problem.curvature_at(problem.start)[-2:], hessian[-2:], rtol=0, atol=1e-8)
        assert (problem.curvature_at(problem.start) >= 0).all()
    assert min(apart) > 0.01  # differences err by 1e-8
    assert negative > 0


@nets
@pytest.mark.parametrize("seed", range(3))
def test_teacher_is_an_optimum_where_labels_have_no_noise(kind, seed):
    problem = NETS[kind](seed)
    assert problem(problem.optimum[None]) == problem.floor == 0
    np.testing.assert_array_equal(problem.gradient(problem.optimum[None]), 0)
    np.testing.assert_array_equal(problem.curvature, problem.curvature_at(problem.optimum))
    # Without errors the Hessian is the Gauss-Newton matrix for any net. Fourth derivatives below 1e3, step 1e-4.
    np.testing.assert_allclose(problem.curvature, _hessian_diagonal(problem, problem.optimum, 1e-4), rtol=0, atol=1e-5)
    noisy = NETS[kind](seed, noise=0.1)
    assert noisy.optimum is None
    assert noisy.floor is None
    np.testing.assert_array_equal(noisy.curvature, noisy.curvature_at(noisy.start))
    assert np.std(noisy.targets - problem.targets) == pytest.approx(0.1, rel=6 / np.sqrt(2 * 64))  # six deviations


@nets
def test_smoothed_loss_is_enumerated(kind):
    problem = NETS[kind](seed=2, width=3, inputs=2, samples=5)
    q = Quantizer.parse("int3").with_scale(np.abs(problem.start).max() / 2.6)
    lo, hi = q.bracket(problem.start)
    up = (problem.start - lo) / (hi - lo)
    expected = 0.0
    for corner in itertools.product([False, True], repeat=9):
        point = np.where(corner, hi, lo)
        errors = [
            _output(kind, problem, point, x) - y for x, y in zip(problem.inputs, problem.targets[:, 0], strict=True)
        ]
        expected += float(np.where(corner, up, 1 - up).prod() * np.mean(np.square(errors)))
    # 512 terms: 512 ulp are 1e-13.
    assert lt.smoothed_loss(problem, problem.start, q, "exact").value == pytest.approx(expected, rel=1e-12)
    assert problem.expected_loss(problem.start, q.variance(problem.start)) is None
    assert problem.expected_parts(problem.start, q.variance(problem.start)) is None


@nets
def test_batch_gradients_are_unbiased(kind):
    batch, steps = 12, 500  # more than there are rows: they are drawn with replacement
    problem = NETS[kind](seed=3, samples=10, noise=0.4, batch=batch)
    w = problem.start
    errors = problem.outputs(w[None])[0] - problem.targets
    rows = 2 * errors * _jacobian(kind, problem, w)
    np.testing.assert_allclose(rows.mean(axis=0), problem.gradient(w[None])[0], rtol=1e-12, atol=1e-13)
    found = np.array([problem.batch_gradient(w, step) for step in range(steps)])
    # Rows are drawn independently: the variance of a batch's mean is that of the rows over the batch's size. Six
    # deviations of a mean of 6000 rows in 12 coordinates: false alarms below 1e-7.
    deviation = rows.std(axis=0) / np.sqrt(batch)
    assert (np.abs(found.mean(axis=0) - rows.mean(axis=0)) <= 6 * deviation / np.sqrt(steps)).all()
    # Squares of nearly normal means: relative deviation about sqrt(2/500) = 0.063, more by heavy tails over 12 rows.
    np.testing.assert_allclose(found.std(axis=0), deviation, rtol=0.3)
    np.testing.assert_array_equal(found[3], NETS[kind](seed=3, samples=10, noise=0.4, batch=batch).batch_gradient(w, 3))
    full = NETS[kind](seed=3, samples=10, noise=0.4)
    np.testing.assert_array_equal(full.batch_gradient(w, 3), full.gradient(w[None])[0])


@nets
def test_a_batch_of_one_is_one_row(kind):
    problem = NETS[kind](seed=4, samples=6, batch=1)
    errors = problem.outputs(problem.start[None])[0] - problem.targets
    rows = 2 * errors * _jacobian(kind, problem, problem.start)
    drawn = set()
    for step in range(100):
        distances = np.abs(rows - problem.batch_gradient(problem.start, step)).max(axis=1)
        assert distances.min() < 1e-13 * np.abs(rows).max()
        drawn.update(np.flatnonzero(distances == distances.min()).tolist())  # dead units make rows equal
    assert drawn == set(range(6))  # some row missing from 100 draws: 6 (5/6)^100 = 7e-8


@nets
def test_instances(kind):
    first, again, other = NETS[kind](seed=5), NETS[kind](seed=5, noise=0.1, batch=4), NETS[kind](seed=6)
    assert isinstance(first, TrainingProblem)
    assert first.parts == (("W1", (2, 2)), ("W2", (1, 2)))
    assert first.inputs.shape == (64, 2)
    for name in ("inputs", "start"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert len({net.name for net in (first, again, other, NETS[kind](5, 3), NETS[kind](5, samples=32))}) == 5
    assert NETS[kind](seed=5, width=3, inputs=3).shape == (12,)


@nets
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 5}, r"width = 5 and inputs = 2 give 15 weights; valid: width \* \(inputs \+ 1\) of at most 12"),
        ({"width": 0}, "width = 0; valid"),
        ({"inputs": 0}, "inputs = 0; valid"),
        ({"samples": 0}, "samples = 0; valid"),
        ({"noise": -1}, "noise = -1; valid"),
        ({"batch": 0}, "batch = 0; valid"),
    ],
)
def test_bad_arguments_are_named(kind, change, message):
    with pytest.raises(ValueError, match=message):
        NETS[kind](seed=0, **change)
