"""Fully connected nets and the classifier of digits: value, gradient, curvature, batches and training."""

import numpy as np
import pytest

from lotion_theory import Stream
from testbeds.data import load_digits
from testbeds.problems import tensors
from testbeds.problems.base import TrainingProblem
from testbeds.problems.mlp import MLP, digits_mlp, layers


def _tiny(sizes, activation="relu", seed=0, samples=7, loss="cross_entropy", batch=None):
    """A net on random inputs with random targets, and weights of order one."""
    rng = np.random.default_rng([seed, *sizes])
    targets = (
        rng.integers(sizes[-1], size=samples) if loss == "cross_entropy" else rng.standard_normal((samples, sizes[-1]))
    )
    start = rng.standard_normal(sum(part.size for part in layers(sizes)))
    inputs = rng.standard_normal((samples, sizes[0]))
    return MLP(
        name="tiny", provenance="random", inputs=inputs, targets=targets, sizes=sizes, activation=activation, loss=loss,
        start=start, batches=Stream(seed, "test"), batch=batch,
    )  # fmt: skip


def _softmax(outputs):
    e = np.exp(outputs)
    return e / e.sum(axis=-1, keepdims=True)


SIZES = [(5, 3), (4, 3, 2), (5, 4, 3, 3)]
sizes_ = pytest.mark.parametrize("sizes", SIZES, ids=str)
losses = pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
activations = pytest.mark.parametrize("activation", ["relu", "tanh"])


@sizes_
@losses
@activations
def test_value_and_gradient(sizes, loss, activation):
    problem = _tiny(sizes, activation, loss=loss)
    points = problem.start + 0.3 * np.random.default_rng(1).standard_normal((4, *problem.shape))
    act = np.tanh if activation == "tanh" else lambda z: z * (z > 0)
    for w, value, slope in zip(points, problem(points), problem.gradient(points), strict=True):
        total = 0.0
        for x, y in zip(problem.inputs, problem.targets, strict=True):
            *hidden, last = problem.single("w", w)
            for matrix in hidden:
                x = act(matrix @ x)
            outputs = last @ x
            total += -np.log(_softmax(outputs)[y]) if loss == "cross_entropy" else ((outputs - y) ** 2).mean()
        assert value == pytest.approx(total / 7, rel=1e-13)  # sums of a few dozen terms
        # Third derivatives below 1e3 (kinks of ReLU are further away than the step): 1e3 · 1e-10, and 1e2 ulp / 1e-5.
        e = 1e-5 * np.eye(len(w))
        np.testing.assert_allclose(slope, (problem(w + e) - problem(w - e)) / 2e-5, rtol=0, atol=1e-7)


@sizes_
@losses
@activations
def test_curvature_is_the_diagonal_of_the_explicit_gauss_newton_matrix(sizes, loss, activation):
    problem = _tiny(sizes, activation, seed=2, loss=loss)
    w, c = problem.start, sizes[-1]
    # Jacobians (N, C, P) by differences of the outputs; rounding 1e2 ulp / 1e-5, truncation 1e2 · 1e-10 (tanh only).
    e = 1e-5 * np.eye(len(w))
    jacobians = ((problem.outputs(w + e) - problem.outputs(w - e)) / 2e-5).transpose(1, 2, 0)
    matrix = np.zeros((len(w), len(w)))
    for jacobian, outputs in zip(jacobians, problem.outputs(w[None])[0], strict=True):
        p = _softmax(outputs)
        hessian = np.diag(p) - np.outer(p, p) if loss == "cross_entropy" else 2 / c * np.eye(c)
        matrix += jacobian.T @ hessian @ jacobian / 7
    np.testing.assert_allclose(problem.curvature_at(w), np.diagonal(matrix), rtol=1e-6, atol=1e-7)
    assert (problem.curvature_at(w) >= 0).all()


@pytest.mark.parametrize("seed", range(3))
@losses
def test_relu_has_the_hessian_diagonal_of_gauss_newton_and_tanh_has_not(seed, loss):
    apart = {}
    for activation in ("relu", "tanh"):
        problem = _tiny((5, 4, 3, 3), activation, seed, loss=loss)
        e = 1e-5 * np.eye(problem.shape[0])
        slopes = problem.gradient(problem.start + e) - problem.gradient(problem.start - e)
        apart[activation] = np.abs(problem.curvature_at(problem.start) - np.diagonal(slopes) / 2e-5).max()
    assert apart["relu"] < 1e-7 < 1e-2 < apart["tanh"]


def test_softmax_regression_has_its_known_curvature():
    problem = digits_mlp(hidden=(), seed=0)
    p = _softmax(problem.outputs(problem.start[None])[0])
    # Means of 1348 terms of one sign.
    expected = (p * (1 - p)).T @ problem.inputs**2 / len(problem.inputs)
    np.testing.assert_allclose(problem.curvature_at(problem.start), expected.ravel(), rtol=1e-12, atol=0)


def test_large_outputs_stay_finite():
    problem = _tiny((4, 3, 2), seed=3)
    far = 1e4 * problem.start
    values = problem.outputs(far[None])[0]
    expected = (np.logaddexp.reduce(values, axis=1) - values[np.arange(7), problem.targets]).mean()
    assert problem(far[None])[0] == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(problem.gradient(far[None])).all()
    assert np.isfinite(problem.curvature_at(far)).all()


def test_large_batches_of_points_are_cut(monkeypatch):
    problem = digits_mlp(hidden=(3,), seed=0)
    points = problem.start + 0.1 * np.random.default_rng(0).standard_normal((5, *problem.shape))
    calls = (problem, problem.gradient, problem.test_loss, problem.test_accuracy)
    whole = [call(points) for call in calls]
    monkeypatch.setattr(tensors, "_CHUNK", 2 * 1348 * 77)
    for call, expected in zip(calls, whole, strict=True):
        np.testing.assert_allclose(call(points), expected, rtol=1e-13, atol=1e-15)


# The classifier of digits


def test_gradient_and_curvature_of_the_digits():
    problem = digits_mlp(seed=1)
    w, rng = problem.start, np.random.default_rng(0)
    chosen = rng.choice(len(w), 40, replace=False)
    e = 1e-5 * np.eye(len(w))[chosen]
    # Truncation and rounding as above; a kink within the step would add step · (jump of the slope).
    slopes = (problem(w + e) - problem(w - e)) / 2e-5
    np.testing.assert_allclose(problem.gradient(w[None])[0, chosen], slopes, rtol=0, atol=1e-7)
    # Differences of the gradient see such a jump in full; at this fixed point no unit changes sides within the step.
    seconds = (problem.gradient(w + e) - problem.gradient(w - e))[np.arange(40), chosen] / 2e-5
    np.testing.assert_allclose(problem.curvature_at(w)[chosen], seconds, rtol=0, atol=1e-7)


def test_split_is_the_same_for_every_seed():
    images, labels = load_digits()
    first, second, small = digits_mlp(seed=1), digits_mlp(seed=2, hidden=(8, 8)), digits_mlp(seed=1, test=0.1)
    assert (len(first.inputs), len(first.test_inputs), len(small.test_inputs)) == (1348, 449, 180)
    np.testing.assert_array_equal(first.test_inputs, second.test_inputs)
    np.testing.assert_array_equal(first.targets, second.targets)
    np.testing.assert_array_equal(first.test_targets[:180], small.test_targets)
    both = np.column_stack([np.vstack([first.inputs, first.test_inputs]), np.r_[first.targets, first.test_targets]])
    table = np.column_stack([images, labels])
    np.testing.assert_array_equal(both[np.lexsort(both.T)], table[np.lexsort(table.T)])
    # Hypergeometric counts of about 45 of each digit: six deviations are below 36.
    assert np.abs(np.bincount(first.test_targets) - 45).max() <= 36


def test_instances_of_the_digits():
    problem = digits_mlp(hidden=[16, 8], seed=3, batch=32)
    assert isinstance(problem, TrainingProblem)
    assert problem.parts == (("W1", (16, 64)), ("W2", (8, 16)), ("W3", (10, 8)))
    assert problem.shape == problem.start.shape == problem.curvature.shape == (16 * 64 + 8 * 16 + 10 * 8,)
    assert (problem.optimum, problem.floor) == (None, None)
    w = problem.start
    assert problem.expected_loss(w, w**2) is None
    assert problem.expected_parts(w, w**2) is None
    again, other = digits_mlp(hidden=(16, 8), seed=3, batch=32), digits_mlp(hidden=(16, 8), seed=4, batch=32)
    np.testing.assert_array_equal(w, again.start)
    np.testing.assert_array_equal(problem.batch_gradient(w, 5), again.batch_gradient(w, 5))
    assert not np.array_equal(w, other.start)
    for changed in (problem.batch_gradient(w, 6), other.batch_gradient(w, 5)):
        assert not np.array_equal(problem.batch_gradient(w, 5), changed)
    named = [problem, other, digits_mlp(seed=3), digits_mlp(seed=3, test=0.5), digits_mlp(seed=3, hidden=())]
    assert len({net.name for net in named}) == len(named)
    # He's initialization: mean squares of 1024 normal weights, six deviations.
    first = problem.single("start", w)[0]
    assert (first**2).mean() == pytest.approx(2 / 64, rel=6 * np.sqrt(2 / 1024))


def test_batch_gradients_are_unbiased():
    batch, steps = 16, 200
    problem = digits_mlp(hidden=(4,), seed=5, batch=batch)
    w = problem.start
    # Rows one at a time give the exact variance of one draw.
    one = digits_mlp(hidden=(4,), seed=5)
    rows = np.array(
        [one._slopes(one.tensors(w[None]), x[None], y[None])[0] for x, y in zip(one.inputs, one.targets, strict=True)]
    )
    full = problem.gradient(w[None])[0]
    np.testing.assert_allclose(rows.mean(axis=0), full, rtol=1e-10, atol=1e-13)
    found = np.array([problem.batch_gradient(w, step) for step in range(steps)])
    # Single entries of rarely inked pixels are far from normal, so the squared distance of the mean over 3200 rows is
    # judged, a weighted sum of chi-squares: P(Z >= tr C + 2 √(tr C² x) + 2 ‖C‖ x) <= e^-x (Laurent and Massart 2000);
    # x = 16 gives 1e-7.
    covariance = np.cov(rows.T, bias=True) / (batch * steps)
    trace, squares, largest = np.trace(covariance), (covariance**2).sum(), np.linalg.norm(covariance, 2)
    bound = trace + 2 * np.sqrt(16 * squares) + 32 * largest
    assert ((found.mean(axis=0) - full) ** 2).sum() <= bound
    # The spread of batches has mean tr C and, close to normal, relative variance 2 tr C² / (tr C)² per step.
    spread = found.var(axis=0, ddof=1).sum() / (steps * trace)
    assert spread == pytest.approx(1, abs=6 * np.sqrt(2 * squares / steps) / trace)
    np.testing.assert_array_equal(one.batch_gradient(w, 0), full)


def test_a_few_hundred_steps_of_adam_learn_to_read():
    problem = digits_mlp(seed=0)
    w, m, v = problem.start.copy(), 0.0, 0.0
    before = problem.test_accuracy(w[None])[0]
    for step in range(1, 301):
        g = problem.gradient(w[None])[0]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    accuracy, loss = problem.test_accuracy(w[None])[0], problem.test_loss(w[None])[0]
    assert before < 0.3
    assert accuracy > 0.93
    outputs = problem.outputs(w[None], problem.test_inputs)[0]
    assert accuracy == (outputs.argmax(axis=1) == problem.test_targets).mean()
    assert loss == pytest.approx(-np.log(_softmax(outputs)[np.arange(449), problem.test_targets]).mean(), rel=1e-9)
    assert problem(w[None])[0] < loss < 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (0,)}, r"hidden\[0\] = 0; valid"),
        ({"hidden": (4, 2.5)}, r"hidden\[1\] = 2\.5; valid"),
        ({"batch": -3}, "batch = -3; valid"),
        ({"test": 0}, "test = 0; valid"),
        ({"test": 1.0}, r"test = 1\.0; valid"),
        ({"test": 1e-9}, "test = 1e-09; valid"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        digits_mlp(**{"seed": 0, **change})


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("inputs", np.ones((7, 4)), r"inputs have shape \(7, 4\) for sizes \(5, 3\)"),
        ("targets", np.zeros(6, dtype=int), r"targets have shape \(6,\), expected \(7,\)"),
        ("targets", np.full(7, 3), "targets must be integers from 0 to 2"),
        ("targets", np.zeros(7), "targets must be integers"),
        ("sizes", (5,), "for sizes"),
        ("activation", "gelu", "activation = 'gelu'; valid: relu, tanh"),
        ("loss", "hinge", "loss = 'hinge'; valid: squared, cross_entropy"),
        ("start", np.zeros(3), r"start has shape \(3,\), expected \(15,\)"),
    ],
)
def test_bad_samples_are_named(argument, value, message):
    tiny = _tiny((5, 3))
    arguments = {
        "name": "tiny", "provenance": "random", "inputs": tiny.inputs, "targets": tiny.targets, "sizes": (5, 3),
        "activation": "relu", "loss": "cross_entropy", "start": tiny.start, "batches": Stream(0, "test"),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        MLP(**{**arguments, argument: value})


def test_bad_points_are_named():
    problem = _tiny((5, 3))
    for call in (problem, problem.gradient):
        with pytest.raises(ValueError, match=r"points have shape \(15,\), expected \(n, 15\)"):
            call(problem.start)
    with pytest.raises(ValueError, match="w has shape"):
        problem.curvature_at(problem.start[:4])
    with pytest.raises(ValueError, match="x has shape"):
        problem.batch_gradient(problem.start[:4], 0)
