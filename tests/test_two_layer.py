"""Two-layer linear regression: its exact smoothed loss, its pieces, its optimum and its batches."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

import lotion_theory as lt
from lotion_theory import Quantizer, Stream
from testbeds.problems import tensors
from testbeds.problems.base import Problem, TrainingProblem
from testbeds.problems.two_layer import TwoLayer, two_layer

# (d, k, m): one unit, one output, more units than the teacher's rank, square, fewer inputs than outputs.
SIZES = [(1, 1, 1), (4, 1, 3), (4, 2, 1), (2, 3, 1), (3, 2, 2), (2, 2, 3)]
FORMATS = ["int3/frozen", "int2/absmax"]
sizes = pytest.mark.parametrize("size", SIZES, ids="d{0[0]}k{0[1]}m{0[2]}".format)


def _value(problem, w):
    return float(problem(w[None])[0])


def _lattice(text, w):
    """A format; where its scale is fixed, ``w`` lies within the lattice and its largest entry between two levels."""
    return Quantizer.parse("int3").with_scale(np.abs(w).max() / 2.6) if text == "int3/frozen" else Quantizer.parse(text)


def _scale(problem):
    """Loss of the zero net, to which rounding errors are relative."""
    return _value(problem, np.zeros(problem.shape))


def _coordinates(problem):
    return np.eye(problem.shape[0])


def _power(problem):
    """Gram matrix ``T Λ Tᵀ`` of the teacher's outputs."""
    return (problem.teacher * problem.spectrum) @ problem.teacher.T


@sizes
@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_expected_loss_is_the_enumerated_smoothed_loss(size, text, noise):
    problem = two_layer(*size, seed=3, noise=noise)
    q = _lattice(text, problem.start)
    w, variance = problem.start, q.variance(problem.start)
    exact = lt.smoothed_loss(problem, w, q, "exact")
    # Sums of at most 2^10 products: relative errors below 2^10 · 2^-53 = 1e-13 each.
    assert problem.expected_loss(w, variance) == pytest.approx(exact.value, rel=1e-12)
    penalty = lt.smoothed_loss(problem, w, q, "second_order", curvature=problem.curvature_at(w)).value
    gap = problem.second_order_gap(w, variance)
    assert penalty + gap == pytest.approx(exact.value, rel=1e-12)
    # Each hidden unit contributes exactly if both of its sides are off the lattice.
    (s1, s2) = problem.single("variance", variance)
    assert (gap > 0) == bool((s1.any(axis=1) & s2.any(axis=0)).any())
    assert gap == problem.second_order_gap(0 * w, variance)


@sizes
def test_quartic_term_needs_errors_in_both_layers(size):
    problem = two_layer(*size, seed=4)
    q = _lattice("int3/frozen", problem.start)
    for part in range(2):
        variance = [s.copy() for s in problem.single("variance", q.variance(problem.start))]
        variance[part][:] = 0
        assert problem.second_order_gap(problem.start, tensors.join(variance)) == 0
    assert problem.second_order_gap(problem.start, q.variance(problem.start)) > 0


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 1, 3), (3, 1, 2), (2, 2, 1)])
def test_expected_loss_depends_on_the_errors_by_their_variance_alone(size):
    problem = two_layer(*size, seed=5)
    rng = np.random.default_rng(size)
    spread = rng.uniform(0.1, 1, problem.shape)
    # Errors -a, 0 and a with probabilities p, 1 - 2p and p: not the two points of randomized rounding.
    p = 0.2
    steps = np.array(list(itertools.product([-1, 0, 1], repeat=problem.shape[0])))
    probability = np.where(steps == 0, 1 - 2 * p, p).prod(axis=1)
    mean = probability @ problem(problem.start + steps * spread)
    assert problem.expected_loss(problem.start, 2 * p * spread**2) == pytest.approx(mean, rel=1e-12)


@sizes
def test_derivatives_of_the_expected_loss(size):
    problem = two_layer(*size, seed=6, noise=0.1)
    w, variance = problem.start, np.random.default_rng(size).uniform(0, 1, problem.shape)
    slope, curvature = problem.expected_parts(w, variance)
    # E is quadratic in each weight and linear in each variance: differences over a step of 1 are exact but for rounding.
    by_weight = [
        (problem.expected_loss(w + e, variance) - problem.expected_loss(w - e, variance)) / 2
        for e in _coordinates(problem)
    ]
    by_variance = [
        problem.expected_loss(w, variance + e) - problem.expected_loss(w, variance) for e in _coordinates(problem)
    ]
    tolerance = 1e-13 * max(problem.expected_loss(np.abs(w) + 1, variance + 1), _scale(problem))
    np.testing.assert_allclose(slope, by_weight, rtol=0, atol=tolerance)
    np.testing.assert_allclose(curvature, 2 * np.array(by_variance), rtol=0, atol=tolerance)
    flat, bare = problem.expected_parts(w, np.zeros(problem.shape))
    np.testing.assert_array_equal(flat, problem.gradient(w[None])[0])
    np.testing.assert_array_equal(bare, problem.curvature_at(w))


@sizes
def test_gradient_and_curvature_are_those_of_the_value(size):
    problem = two_layer(*size, seed=7, noise=0.2)
    w, e = problem.start, _coordinates(problem)
    up, here, down = problem(w + e), problem(w[None]), problem(w - e)
    tolerance = 1e-13 * max(up.max(), down.max(), _scale(problem))
    np.testing.assert_allclose(problem.gradient(w[None])[0], (up - down) / 2, rtol=0, atol=tolerance)
    np.testing.assert_allclose(problem.curvature_at(w), up - 2 * here + down, rtol=0, atol=4 * tolerance)
    hessian = (problem.gradient(w + e) - problem.gradient(w - e)) / 2
    np.testing.assert_allclose(problem.curvature_at(w), np.diagonal(hessian), rtol=1e-12, atol=tolerance)


@sizes
@given(st.data())
def test_loss_is_the_mean_squared_error_of_the_net(size, data):
    """By the definition: the second moment of the error of a net on the whitened inputs, output by output."""
    problem = two_layer(*size, seed=data.draw(st.integers(0, 99)), noise=0.3)
    w = np.array(data.draw(st.lists(st.floats(-4, 4), min_size=problem.shape[0], max_size=problem.shape[0])))
    w1, w2 = problem.single("w", w)
    inputs = np.diag(np.sqrt(problem.spectrum))  # rows whose sum of squares has the covariance Λ
    error = np.array([w2 @ (w1 @ x) - problem.teacher @ x for x in inputs])
    expected = (error**2).sum() / size[2] + 0.3**2
    assert _value(problem, w) == pytest.approx(expected, rel=1e-12)
    assert _value(problem, w) >= problem.floor * (1 - 1e-12)


@sizes
def test_optimum_is_a_balanced_global_minimiser(size):
    d, k, m = size
    problem = two_layer(d, k, m, seed=8, noise=0.1)
    scale = _scale(problem)
    # The residual of the decomposition is a few ulp of T Λ^½; the loss is its square, the gradient linear in it.
    assert np.abs(problem.gradient(problem.optimum[None])).max() <= 1e-13 * scale * np.abs(problem.optimum).max()
    assert _value(problem, problem.optimum) == pytest.approx(problem.floor, rel=1e-13, abs=1e-13 * scale)
    # Eckart-Young by another route: the floor is what the weakest eigenvalues of T Λ Tᵀ carry.
    eigenvalues = np.linalg.eigvalsh(_power(problem))[: max(0, m - k)]
    assert problem.floor == pytest.approx(eigenvalues.sum() / m + 0.01, rel=1e-12, abs=1e-13 * scale)
    w1, w2 = problem.single("optimum", problem.optimum)
    np.testing.assert_allclose(w2.T @ w2, (w1 * problem.spectrum) @ w1.T, rtol=0, atol=1e-13 * m * scale)
    np.testing.assert_array_equal(problem.curvature, problem.curvature_at(problem.optimum))


@pytest.mark.parametrize("size", [(4, 1, 3), (3, 2, 2), (5, 2, 4)])
def test_descent_finds_nothing_below_the_floor(size):
    problem = two_layer(*size, seed=9)
    rng = np.random.default_rng(size)

    def target(w):
        return _value(problem, w), problem.gradient(w[None])[0]

    starts = [problem.start, *(problem.optimum + s * rng.standard_normal(problem.shape) for s in (0.01, 0.3, 1, 3))]
    reached = [
        minimize(target, w, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-15}).fun for w in starts
    ]
    assert min(reached) >= problem.floor - 1e-13 * _scale(problem)
    # Deep linear nets have no other local minima (Baldi and Hornik 1989), so descent ends at the floor.
    assert max(reached) <= problem.floor + 1e-6 * _scale(problem)


def _gradient_variance(problem, w):
    """Variance (P,) of the gradient of one sample, from fourth moments of normal variables (Isserlis).

    With error r = A x - noise, the gradients are ``c r_o h_i`` and ``c u_i x_j`` (h = W1 x, u = W2ᵀ r): products of
    jointly normal variables of mean zero, and ``Var(ab) = E a² E b² + (E ab)²``.
    """
    w1, w2 = problem.single("w", w)
    c, weighted = 2 / len(problem.teacher), (w2 @ w1 - problem.teacher) * problem.spectrum
    error = weighted @ (w2 @ w1 - problem.teacher).T + problem.noise**2 * np.eye(len(w2))
    hidden = (w1 * problem.spectrum) @ w1.T
    back = w2.T @ error @ w2
    first = np.outer(np.diagonal(back), problem.spectrum) + (w2.T @ weighted) ** 2
    second = np.outer(np.diagonal(error), np.diagonal(hidden)) + (weighted @ w1.T) ** 2
    return c**2 * tensors.join([first, second])


@sizes
@pytest.mark.parametrize(("noise", "batch"), [(0.0, 2), (0.0, 50), (0.7, 50)])
def test_batch_gradients_are_unbiased(size, noise, batch):
    steps = 400
    problem = two_layer(*size, seed=10, noise=noise, batch=batch)
    w = problem.start
    found = np.array([problem.batch_gradient(w, step) for step in range(steps)])
    error = found.mean(axis=0) - problem.gradient(w[None])[0]
    deviation = np.sqrt(_gradient_variance(problem, w) / batch)
    # Means of 800 or 20000 samples are close to normal (skewness of the mean below 0.1); six deviations for 144
    # coordinates in all: false alarms below 1e-5.
    assert (np.abs(error) <= 6 * deviation / np.sqrt(steps)).all()
    # The spread is the stated one. Products of two normals have an excess kurtosis of at most 12, so the mean of a batch
    # at most 12/batch, and a variance from 400 of them the relative deviation √((2 + 12/batch) / 400).
    np.testing.assert_allclose(found.var(axis=0), deviation**2, rtol=6 * np.sqrt((2 + 12 / batch) / steps), atol=0)


def test_batches_are_the_same_for_everyone_and_differ_by_step_and_seed():
    problem, again = (two_layer(6, 2, 3, seed=1, batch=4) for _ in range(2))
    w = problem.start
    np.testing.assert_array_equal(problem.batch_gradient(w, 7), again.batch_gradient(w, 7))
    assert not np.array_equal(problem.batch_gradient(w, 7), problem.batch_gradient(w, 8))
    assert not np.array_equal(problem.batch_gradient(w, 7), two_layer(6, 2, 3, seed=2, batch=4).batch_gradient(w, 7))
    full = two_layer(6, 2, 3, seed=1)
    np.testing.assert_array_equal(full.batch_gradient(w, 7), full.gradient(w[None])[0])


def test_instance_depends_on_the_seed_and_not_on_the_rest():
    first, other = two_layer(6, 2, 3, seed=1), two_layer(6, 2, 3, seed=1, noise=0.1, batch=8)
    for name in ("teacher", "spectrum", "start", "optimum"):
        np.testing.assert_array_equal(getattr(first, name), getattr(other, name))
    assert not np.array_equal(first.teacher, two_layer(6, 2, 3, seed=2).teacher)
    assert not np.array_equal(first.start, two_layer(6, 2, 3, seed=2).start)
    np.testing.assert_allclose(first.spectrum, [1, 2**-1.1, 3**-1.1, 4**-1.1, 5**-1.1, 6**-1.1], rtol=1e-15)
    named = [first, other, two_layer(6, 2, 3, seed=2), two_layer(6, 2, 3, seed=1, exponent=1.5),
             two_layer(6, 2, 3, seed=1, start="optimum"), two_layer(6, 3, 2, seed=1)]  # fmt: skip
    assert len({problem.name for problem in named}) == len(named)
    np.testing.assert_array_equal(named[4].start, first.optimum)


def test_it_is_a_training_problem():
    problem = two_layer(6, 2, 3, seed=1)
    assert isinstance(problem, TrainingProblem)
    assert isinstance(problem, Problem)
    assert problem.shape == problem.start.shape == problem.curvature.shape == (18,)
    assert problem.parts == (("W1", (2, 6)), ("W2", (3, 2)))
    w1, w2 = problem.single("w", np.arange(18.0))
    np.testing.assert_array_equal(w1, np.arange(12).reshape(2, 6))
    np.testing.assert_array_equal(w2, np.arange(12, 18).reshape(3, 2))


def test_balanced_start_has_equal_layers_and_the_teachers_power():
    d, k, m = 300, 100, 80
    problem = two_layer(d, k, m, seed=11)
    w1, w2 = problem.single("start", problem.start)
    power = problem.spectrum.sum()
    size1, size2 = ((w1**2) @ problem.spectrum).sum(), (w2**2).sum()
    # Sums of weighted squares: relative variances 2 Σλ²/(k (Σλ)²) and 2/(km); six deviations, false alarms below 4e-9.
    expected = np.sqrt(m * k * power)
    assert size1 == pytest.approx(expected, rel=6 * np.sqrt(2 * (problem.spectrum**2).sum() / k) / power)
    assert size2 == pytest.approx(expected, rel=6 * np.sqrt(2 / (k * m)))
    # Independent layers: the net's expected output power is the product of the sizes over k m, and the teacher's tr Λ.
    assert expected**2 / (k * m) == pytest.approx(power)


def test_large_batches_of_points_are_cut(monkeypatch):
    problem = two_layer(5, 2, 3, seed=12)
    points = np.random.default_rng(0).standard_normal((13, *problem.shape))
    values, slopes = problem(points), problem.gradient(points)
    monkeypatch.setattr(tensors, "_CHUNK", 60)
    np.testing.assert_allclose(problem(points), values, rtol=1e-14)
    np.testing.assert_allclose(problem.gradient(points), slopes, rtol=1e-13, atol=1e-14)
    assert problem(points[:0]).shape == (0,)
    assert problem.gradient(points[:0]).shape == (0, *problem.shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": 0}, "d = 0; valid: an integer of at least 1"),
        ({"k": 1.5}, "k = 1.5; valid: an integer"),
        ({"m": -1}, "m = -1; valid"),
        ({"batch": 0}, "batch = 0; valid"),
        ({"noise": -1.0}, r"noise = -1\.0; valid"),
        ({"exponent": float("nan")}, "exponent = nan; valid"),
        ({"start": "zero"}, "start = 'zero'; valid: balanced, optimum"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        two_layer(**{"d": 3, "k": 2, "m": 2, "seed": 0, **change})


def test_bad_arrays_are_named():
    problem = two_layer(3, 2, 2, seed=0)
    for call in (problem, problem.gradient):
        with pytest.raises(ValueError, match=r"points have shape \(10,\), expected \(n, 10\)"):
            call(problem.start)
    with pytest.raises(ValueError, match=r"w has shape \(3,\), expected \(10,\)"):
        problem.curvature_at(problem.start[:3])
    with pytest.raises(ValueError, match="variance has shape"):
        problem.expected_loss(problem.start, np.ones(3))
    with pytest.raises(ValueError, match="variance has shape"):
        problem.expected_parts(problem.start, np.ones(3))
    with pytest.raises(ValueError, match="x has shape"):
        problem.batch_gradient(problem.start[:3], 0)
    with pytest.raises(ValueError, match=r"teacher has shape \(2, 3\) and spectrum \(2,\)"):
        TwoLayer("name", "nowhere", np.ones((2, 3)), np.ones(2), 1, Stream(0, "test"))
    with pytest.raises(ValueError, match=r"spectrum has the entry 0\.0"):
        TwoLayer("name", "nowhere", np.ones((2, 2)), np.array([1, 0.0]), 1, Stream(0, "test"))
